"""Consecutive rows of a tensor, the simplest thing that a tensor of a rewritten model can be."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import UsageError
from .picked import Picked


@dataclass(frozen=True)
class Rows:
    """Rows `[start, stop)` along axis 0 of the original's tensor `key`.

    `stop=None` is the whole tensor, of any shape, 0-d included.
    """

    key: str
    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        if self.stop is None and self.start == 0:
            return
        if self.stop is None or not 0 <= self.start < self.stop:
            raise UsageError(
                f"rows {self.start}:{self.stop} of '{self.key}': give 0 <= start < stop, or "
                "neither for the whole tensor"
            )

    def __str__(self) -> str:
        return self.key if self.stop is None else f"{self.key}[{self.start}:{self.stop}]"

    def of(self, whole: Tensor, *, fill: float | None = None) -> Tensor:
        """The rows, as a view of the original's tensor; all of a 0-d one. `fill` has no meaning."""
        if self.stop is None or not whole.dim():
            return whole
        return whole.detach()[self.start : self.stop]

    def gradient_of(self, whole: Tensor) -> Tensor:
        """The gradient of the rows, given the original's."""
        return self.of(whole)

    def put_back(self, part: Tensor, whole: Tensor) -> None:
        """Write the rows `part` to where they come from."""
        self.of(whole.detach()).copy_(part.detach())

    def count(self, table: Tensor) -> None:
        """Add 1 to the rows that are taken, in a table of rows or of rows by columns."""
        self.of(table).add_(1)

    def part(self, start: int, stop: int) -> Rows:
        """What the rows `[start, stop)` of these rows are."""
        if self.stop is not None and not 0 <= start < stop <= self.stop - self.start:
            raise UsageError(f"rows {start}:{stop} of {self}: it has {self.stop - self.start}")
        return Rows(self.key, self.start + start, self.start + stop)


Entry = Rows | Picked
