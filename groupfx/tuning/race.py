"""Run several models in turns: each round there and back, so that a drift meets all alike.

Where the weights and buffers of a session happen to lie in memory is worth several percent, for as
long as the session lives. So there are several heats, each with new sessions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .ratios import Heat, mean_log

Clock = Callable[[], float]
"""Seconds since some moment."""

Run = Callable[[], object]


@dataclass(frozen=True)
class Turn:
    """Runs of one model in a row, the first of them not timed.

    The first run finds the weights of the other models in the caches, as one does that has a
    machine to itself only now and then; later ones find their own, as a model that serves alone.
    """

    untimed: int = 0
    timed: int = 1


HEATS, LEAST_HEATS, MOST_HEATS = 8, 5, 32
_LEAST_ROUNDS = 2
"""Of a heat, besides one to warm up; one where there is time for no more."""
_MOST_ROUNDS = 40
_UNSTEADY = 3.0
"""What differs from round to round of a heat, by what differs from heat to heat, where measured."""


def least_seconds(models: int, run: float) -> float:
    """What the shortest race of so many models takes, a run of which takes `run` seconds."""
    return LEAST_HEATS * 2 * _round_seconds(models, run)


def _round_seconds(models: int, run: float) -> float:
    """There and back."""
    return 2 * models * run


def race(
    loads: Sequence[Callable[[], Run]],
    clock: Clock,
    seconds: float,
    wall: Clock,
    advance: Callable[[int, int], None] = lambda done, total: None,
    *,
    run: float = 0.0,
    turn: Turn | None = None,
    narrow: bool = False,
) -> list[Heat]:
    """Seconds of each model in each round of each heat, as `clock` says; each has two turns a
    round, by default of one run.

    `loads` make the models ready anew. There are as many heats and rounds as go into `seconds` of
    `wall`, and no fewer than two rounds a heat; models of which one `run` takes so long that these
    do not fit run in fewer heats, of one round at least. How many heats there are depends on what
    things take, and not on who is ahead.

    Where it is to be `narrow`, the first model and whoever is ahead of the others run the second
    half of the heats alone. A claim about that one is as good as if all had: it rests on all of its
    heats, and each of the others might have made the same error.
    """
    fits = seconds / _round_seconds(len(loads), run) if run else math.inf
    whole = fits >= HEATS * (_LEAST_ROUNDS + 1)
    number = HEATS if whole else min(max(int(fits / 2), LEAST_HEATS), HEATS)
    heat = _Heat(loads, turn or Turn(), clock, wall, _LEAST_ROUNDS if whole else 1)
    started, places = wall(), [*range(len(loads))]
    share = seconds / number
    heats = [heat.run(0, places, share)]
    if whole:
        left = seconds - (wall() - started)
        number = max(number, _heats_in(left, heat.ready, heat.took))
        share = left / (number - 1)
    advance(1, number)
    for place in range(1, number):
        if narrow and place == number // 2:
            places = [0, min(places[1:], key=lambda k: mean_log(heats, k))]
        heats.append(heat.run(place, places, share))
        advance(place + 1, number)
    return heats


def _heats_in(seconds: float, ready: float, took: float) -> int:
    """How many heats tell most, each of which is `ready` late, with rounds that take `took`.

    The variance of a mean of heats of n rounds is least, for what they take together, where
    n^2 = (variance of rounds / variance of heats) (ready / took).
    """
    rounds = max(_UNSTEADY * math.sqrt(ready / took), _LEAST_ROUNDS)
    return min(1 + int(seconds / (ready + rounds * took)), MOST_HEATS)


@dataclass
class _Heat:
    """Runs heats.

    `ready` is what loading and the round to warm up took in the last one, `took` that round alone.
    """

    loads: Sequence[Callable[[], Run]]
    turn: Turn
    clock: Clock
    wall: Clock
    least: int
    ready: float = 0.0
    took: float = 0.0

    def run(self, number: int, places: Sequence[int], seconds: float) -> Heat:
        """The seconds of each model in each round; nothing for those that are not in `places`."""
        started = self.wall()
        # Another one is loaded first, and runs first, in each heat.
        first = number % len(places)
        there = [*places[first:], *places[:first]]
        runs = dict[int, Run]()
        for place in there:
            runs[place] = self.loads[place]()
        order = [*there, *reversed(there)]
        before = self.wall()
        self._round(runs, order)
        self.took = max(self.wall() - before, 1e-9)
        self.ready = max(self.wall() - started, 1e-9)
        times: Heat = [[] for _ in self.loads]
        left = (seconds - self.ready) / self.took
        for _ in range(int(min(max(left, self.least), _MOST_ROUNDS))):
            for place, own in self._round(runs, order).items():
                times[place].append(own)
        return times

    def _round(self, runs: Mapping[int, Run], order: Sequence[int]) -> Mapping[int, float]:
        times = dict.fromkeys(runs, 0.0)
        for place in order:
            for _ in range(self.turn.untimed):
                runs[place]()
            start = self.clock()
            for _ in range(self.turn.timed):
                runs[place]()
            times[place] += self.clock() - start
        return times
