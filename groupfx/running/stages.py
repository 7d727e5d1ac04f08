"""What the stages of a long work take, on the clock and of the processor."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stage:
    """Seconds by a clock on the wall, and of the processor, which others' work lengthens less."""

    name: str
    wall: float
    cpu: float


@dataclass
class Stages:
    """Adds up what each stage takes, without the stages inside it."""

    _taken: dict[str, tuple[float, float]] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)
    _since: tuple[float, float] = (0.0, 0.0)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count what is done inside as `name`."""
        self._count()
        self._open.append(name)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def _count(self) -> None:
        """Write down what passed since the last time to the stage that is on."""
        now = time.perf_counter(), time.process_time()
        if self._open:
            before = self._taken.get(self._open[-1], (0.0, 0.0))
            wall, cpu = (b + n - s for b, n, s in zip(before, now, self._since, strict=True))
            self._taken[self._open[-1]] = wall, cpu
        self._since = now

    @property
    def table(self) -> tuple[Stage, ...]:
        """Each stage, in the order in which they were first left."""
        return tuple(Stage(name, wall, cpu) for name, (wall, cpu) in self._taken.items())
