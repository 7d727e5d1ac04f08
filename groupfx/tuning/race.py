"""Run several models in turns: each round there and back, so that a drift meets all alike.

Where the weights and buffers of a session happen to lie in memory is worth several percent, for as
long as the session lives. So there are several heats, each with new sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .ratios import Heat

Clock = Callable[[], float]
"""Seconds since some moment."""

Run = Callable[[], object]

HEATS = 8
LEAST_ROUNDS = 2
"""Of a heat, besides one to warm up."""
_MOST_ROUNDS = 40


def race(
    loads: Sequence[Callable[[], Run]],
    clock: Clock,
    seconds: float,
    wall: Clock,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> list[Heat]:
    """Seconds of each model in each round of each heat, as `clock` says; each runs twice a round.

    `loads` make the models ready anew. There are as many rounds as go into `seconds` of `wall`, and
    no fewer than `LEAST_ROUNDS` a heat.
    """
    heats = []
    for number in range(HEATS):
        heats.append(_heat(loads, number, clock, seconds / HEATS, wall))
        advance(number + 1, HEATS)
    return heats


def _heat(
    loads: Sequence[Callable[[], Run]], number: int, clock: Clock, seconds: float, wall: Clock
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
    _round(runs, order, clock)
    took = max(wall() - before, 1e-9)
    left = seconds - (wall() - started)
    times: list[list[float]] = [[] for _ in loads]
    for _ in range(int(min(max(left / took, LEAST_ROUNDS), _MOST_ROUNDS))):
        for place, own in enumerate(_round(runs, order, clock)):
            times[place].append(own)
    return times


def _round(runs: dict[int, Run], order: Sequence[int], clock: Clock) -> list[float]:
    times = [0.0] * len(runs)
    for place in order:
        start = clock()
        runs[place]()
        times[place] += clock() - start
    return times
