"""Run several models in turns: each round there and back, so that a drift meets all alike.

Where the weights and buffers of a session happen to lie in memory is worth several percent, for as
long as the session lives. So there are several heats, each with new sessions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .ratios import Heat

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


HEATS, LEAST_HEATS = 8, 5
_LEAST_ROUNDS = 2
"""Of a heat, besides one to warm up; one where there is time for no more."""
_MOST_ROUNDS = 40


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
) -> list[Heat]:
    """Seconds of each model in each round of each heat, as `clock` says; each has two turns a
    round, by default of one run.

    `loads` make the models ready anew. There are as many rounds as go into `seconds` of `wall`, and
    no fewer than two a heat; models of which one `run` takes so long that these do not fit run in
    fewer heats, of one round at least.
    """
    fits = seconds / _round_seconds(len(loads), run) if run else math.inf
    whole = fits >= HEATS * (_LEAST_ROUNDS + 1)
    number = HEATS if whole else min(max(int(fits / 2), LEAST_HEATS), HEATS)
    least = _LEAST_ROUNDS if whole else 1
    heats = []
    for heat in range(number):
        heats.append(_heat(loads, heat, turn or Turn(), clock, seconds / number, wall, least))
        advance(heat + 1, number)
    return heats


def _heat(
    loads: Sequence[Callable[[], Run]],
    number: int,
    turn: Turn,
    clock: Clock,
    seconds: float,
    wall: Clock,
    least: int,
) -> Heat:
    started = wall()
    there = [*range(len(loads))]
    # Another one is loaded first, and runs first, in each heat.
    first = number % len(there)
    there = there[first:] + there[:first]
    runs = dict[int, Run]()
    for place in there:
        runs[place] = loads[place]()
    order = [*there, *reversed(there)]
    before = wall()
    _round(runs, order, clock, turn)
    took = max(wall() - before, 1e-9)
    left = seconds - (wall() - started)
    times: list[list[float]] = [[] for _ in loads]
    for _ in range(int(min(max(left / took, least), _MOST_ROUNDS))):
        for place, own in enumerate(_round(runs, order, clock, turn)):
            times[place].append(own)
    return times


def _round(runs: dict[int, Run], order: Sequence[int], clock: Clock, turn: Turn) -> list[float]:
    times = [0.0] * len(runs)
    for place in order:
        for _ in range(turn.untimed):
            runs[place]()
        start = clock()
        for _ in range(turn.timed):
            runs[place]()
        times[place] += clock() - start
    return times
