"""Channels that something reads, and the same problem without the others.

An output of the model needs all of its channels, and so does an operation that takes no other
number of them. From there it goes backwards: a gather needs what it reads, a weight the inputs
whose columns are not zero in a row that is needed. Nothing else is. A grouped convolution keeps
groups of one size, so that a dead channel stays where another group has none to give, and where one
reader of a tensor needs a channel, the others take it as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .orders import Order, expanded
from .problem import Axis, GroupedWeight, Link, Mask, Orders, Problem, Reader

Live = Mapping[int, Mask]
"""For each root, which of its units something reads."""


def live_units(problem: Problem) -> Live:
    """The units that must stay; of each variable at least one."""
    work = _Liveness(problem)
    while work.sweep() or work.fill_empty():
        pass
    return work.live


def everything(problem: Problem) -> Live:
    """All of them, whether they are read or not."""
    return {root: np.ones(problem.units(root), dtype=bool) for root in problem.roots()}


class _Liveness:
    """Grows from what must stay, through the graph from its end, until nothing is added."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.live = {
            root: np.full(problem.units(root), self._stays_whole(root)) for root in problem.roots()
        }
        self._nonzero: dict[Any, Mask] = {}
        self._count = -1

    def _stays_whole(self, root: int) -> bool:
        """Whether no unit may go: its numbers of groups are those of a convolution alone."""
        problem = self.problem
        known = {
            (problem.find(v), weight.groups)
            for weight in problem.grouped.values()
            for v in (weight.inputs, weight.outputs)
        }
        groups = problem.groups(root)
        return problem.whole(root) or len(groups) > 1 or any((root, g) not in known for g in groups)

    def sweep(self) -> bool:
        """Carry everything one step; whether something was added."""
        for flow in reversed(self.problem.flows):
            if isinstance(flow, Link):
                self._link(flow)
            elif isinstance(flow, Reader):
                self._read(flow)
            else:
                self._grouped(flow)
        before, self._count = self._count, sum(int(mask.sum()) for mask in self.live.values())
        return self._count > before

    def fill_empty(self) -> bool:
        """Keep one unit where nothing reads any; whether that was so somewhere."""
        empty = [mask for mask in self.live.values() if mask.size and not mask.any()]
        for mask in empty:
            mask[0] = True
        return bool(empty)

    def _link(self, link: Link) -> None:
        """Both ways: what is read must be there, and what is there may as well be read.

        With fewer channels on one side alone, a gather would be needed where there was none.
        """
        target = self.live[self.problem.find(link.target.variable)]
        into = (np.arange(len(link.reads)) // link.target.inner) % len(target)
        start = 0
        for axis in link.sources:
            stop = start + self.problem.length(axis)
            own = (link.reads >= start) & (link.reads < stop)
            source = self.live[self.problem.find(axis.variable)]
            units = ((link.reads[own] - start) // axis.inner) % len(source)
            source[units[target[into[own]]]] = True
            target[into[own][source[units]]] = True
            start = stop

    def _read(self, reader: Reader) -> None:
        mask = self._entries(reader)
        units = self.live[self.problem.find(reader.inputs.variable)]
        if mask is None:
            units[:] = True
            return
        table = mask if reader.columns == 1 else mask.T
        places = np.flatnonzero(table[self._positions(reader.outputs)].any(axis=0))
        units[(places // reader.inputs.inner) % len(units)] = True

    def _grouped(self, weight: GroupedWeight) -> None:
        """Groups that nothing reads go; the others keep as many channels as the fullest needs."""
        roots = [self.problem.find(v) for v in (weight.inputs, weight.outputs)]
        inputs, outputs = (self.live[root].reshape(weight.groups, -1) for root in roots)
        used: Mask = np.asarray(outputs.any(axis=1) | inputs.any(axis=1))
        mask = self._entries(weight)
        if mask is None:
            inputs[used] = True
        else:
            table = mask.reshape(weight.groups, -1, mask.shape[1])
            rows, columns = (inputs, outputs) if weight.transposed else (outputs, inputs)
            if weight.transposed:
                read = (table & columns[:, None, :]).any(axis=2)
                rows |= read & used[:, None]
            else:
                columns |= (table & rows[:, :, None]).any(axis=1)
        for side in (inputs, outputs):
            _fill(side, used)

    def _entries(self, weight: Reader | GroupedWeight) -> Mask | None:
        if weight.nonzero is None:
            return None
        if weight.key not in self._nonzero:
            self._nonzero[weight.key] = weight.nonzero()
        return self._nonzero[weight.key]

    def _positions(self, axis: Axis) -> Mask:
        mask = self.live[self.problem.find(axis.variable)]
        return np.tile(np.repeat(mask, axis.inner), axis.outer)


def _fill(side: Mask, used: Mask) -> None:
    """Let each used group keep as many units as the one that needs most, of its own in order."""
    kept = side & used[:, None]
    most = max(1, int(kept.sum(axis=1).max(initial=0)))
    for group in np.flatnonzero(used):
        free = np.flatnonzero(~side[group])
        missing = most - int(side[group].sum())
        side[group, free[: max(missing, 0)]] = True


def without_dead(problem: Problem, live: Live) -> Problem:
    """The same problem over the units that stay, numbered anew; variables keep their numbers."""
    left = {weight.key: groups_left(problem, weight, live) for weight in problem.grouped.values()}
    groups = {
        problem.find(v): {weight.groups: left[weight.key]}
        for weight in problem.grouped.values()
        for v in (weight.inputs, weight.outputs)
    }
    made = problem.resized({root: int(mask.sum()) for root, mask in live.items()}, groups)
    made.links = [_link(problem, made, link, live) for link in problem.links]
    return made


def groups_left(problem: Problem, weight: GroupedWeight, live: Live) -> int:
    """How many groups of a convolution have outputs that are read."""
    outputs = live[problem.find(weight.outputs)].reshape(weight.groups, -1)
    return int(outputs.any(axis=1).sum())


def with_all_numbers(orders: Orders, live: Live) -> Orders:
    """Orders of what stays, in the numbers that the channels had."""
    return {root: np.flatnonzero(live[root])[order] for root, order in orders.items()}


def _link(problem: Problem, made: Problem, link: Link, live: Live) -> Link:
    target = _mask(problem, link.target, live)
    sources = np.concatenate([_mask(problem, axis, live) for axis in link.sources])
    places: Order = np.cumsum(sources) - 1
    count = made.length(link.target)
    moved = math.ceil(link.moved * count / max(1, problem.length(link.target)))
    return replace(link, reads=places[link.reads[target]], moved=moved)


def _mask(problem: Problem, axis: Axis, live: Live) -> Mask:
    mask = live[problem.find(axis.variable)]
    kept = expanded(np.flatnonzero(mask), axis.outer, axis.inner, len(mask))
    found = np.zeros(problem.length(axis), dtype=bool)
    found[kept] = True
    return found
