"""Which integers and bools an input may hold, and how random ones are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_GUESS = (1, 4)


@dataclass(frozen=True)
class Domain:
    """The integers `low` to `high`; a bool input has 0 and 1.

    `source` says what picks by them, None that they are guessed; `mask` that zeros lie behind ones.
    `tables` are the constants that the values pick rows from.
    """

    low: int
    high: int
    source: str | None = None
    mask: bool = False
    tables: tuple[Array, ...] = ()

    def __str__(self) -> str:
        return "ones, and zeros behind them," if self.mask else f"{self.low} to {self.high}"

    @property
    def size(self) -> int:
        """How many values there are."""
        return self.high - self.low + 1

    def sample(self, shape: Sequence[int], generator: np.random.Generator) -> Array:
        """Random values, both ends among them where there is room; int64, of `shape`."""
        if self.mask and shape:
            lengths = generator.integers(1, shape[-1] + 1, (*shape[:-1], 1))
            return np.asarray(np.arange(shape[-1]) < lengths, np.int64)
        values = np.asarray(generator.integers(self.low, self.high + 1, tuple(shape)), np.int64)
        if values.size > 1:
            values.flat[0], values.flat[-1] = self.low, self.high
        return values

    def narrower(self, other: Domain) -> Domain:
        """What both allow."""
        if self.source is None or other.source is None:
            return other if self.source is None else self
        return self if self.high <= other.high else other


def guessed_domain(name: str, kind: str) -> Domain:
    """For an input that picks from nothing; `kind` is that of a numpy dtype."""
    if "mask" in name.lower():
        return Domain(0, 1, mask=True)
    return Domain(0, 1) if kind == "b" else Domain(*_GUESS)
