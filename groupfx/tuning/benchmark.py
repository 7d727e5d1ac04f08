"""Models raced as they are: how long a run takes, and by that of the first.

The race and its statistics are those of tuning. Percentiles are of single runs by a clock on the
wall, as a user waits for them; ratios are by the backend's own clock, which leaves other processes
out where it can.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import UsageError
from .backends import Backend
from .backends.backend import Program
from .race import Clock, Run, least_seconds, race
from .ratios import Ratio, compare
from .tune import alike

# Of each heat, there and back.
_WARM_UP = 2


@dataclass(frozen=True)
class Latency:
    """Seconds of a run: medians and the slow end, of so many runs."""

    p50: float
    p90: float
    p99: float
    runs: int


@dataclass(frozen=True)
class Raced:
    """How long a model takes; `ratio` is by the time of the first, which has none.

    `differs` says that its outputs are not those of the first on the same inputs.
    """

    latency: Latency
    ratio: Ratio | None
    differs: bool


@dataclass
class _Timed:
    """A model whose runs are timed one by one, beside the race that times its rounds."""

    load: Callable[[], Program]
    wall: Clock
    seconds: list[float] = field(default_factory=list)
    skipped: int = 0

    def __call__(self) -> Run:
        run, self.skipped = self.load(), 0

        def timed() -> object:
            start = self.wall()
            found = run()
            took = self.wall() - start
            if self.skipped < _WARM_UP:
                self.skipped += 1
            else:
                self.seconds.append(took)
            return found

        return timed

    @property
    def latency(self) -> Latency:
        p50, p90, p99 = (float(np.percentile(self.seconds, p)) for p in (50, 90, 99))
        return Latency(p50, p90, p99, len(self.seconds))


def race_models(
    models: Sequence[Any],
    feeds: Sequence[Any],
    backend: Backend,
    threads: int,
    budget: float,
    *,
    host: bool = True,
    wall: Clock = time.perf_counter,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Raced, ...]:
    """Race `models`, each on its own `feeds`, for about `budget` seconds.

    `host` is whether the CPU computes. Raises UsageError where the budget is too small for a race,
    ModelError for a model that does not run.
    """
    timed = [
        _Timed(lambda m=model, f=feed: backend.load(m, f, threads), wall)  # type: ignore[misc]
        for model, feed in zip(map(backend.packed, models), feeds, strict=True)
    ]
    outputs, runs = zip(*(_once(each.load, wall) for each in timed), strict=True)
    one = max(runs)
    least = least_seconds(len(models), one)
    if least > budget:
        raise UsageError(
            f"a budget of {budget:g} s is too small: one run takes {one:.3g} s; give at least "
            f"{math.ceil(least * 2)}"
        )
    clock = backend.clock(threads) if host else wall
    heats = race(timed, clock, budget, wall, advance, run=one)
    return tuple(
        Raced(
            each.latency,
            compare(heats, place) if place else None,
            not _same(outputs[0], outputs[place]),
        )
        for place, each in enumerate(timed)
    )


def _once(load: Callable[[], Program], wall: Clock) -> tuple[Sequence[Any], float]:
    """The outputs of a model, and seconds of a run that is not its first."""
    run = load()
    found, start = run(), wall()
    run()
    return found, max(wall() - start, 1e-6)


def _same(first: Sequence[Any], second: Sequence[Any]) -> bool:
    return len(first) == len(second) and all(map(alike, first, second))
