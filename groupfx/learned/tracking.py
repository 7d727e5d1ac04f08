"""What changed in learned groups from one checkpoint to the next. Integers only."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import UsageError
from .groups import LearnedGroups, Members
from .layers import LearnedLayer

Side = Literal["inputs", "filters"]


@dataclass(frozen=True)
class GroupChange:
    """Channels that left a group, that came into it, and the number that it holds now."""

    removed: tuple[int, ...]
    added: tuple[int, ...]
    held: int


@dataclass(frozen=True)
class LayerChange:
    """The change of each group of a layer.

    `total` counts each leaving and each coming, as the public tracker of FLGC does: a channel that
    moves from one group to another counts twice. `moved` are the channels themselves.
    """

    name: str
    channels: int
    groups: tuple[GroupChange, ...]

    @property
    def total(self) -> int:
        """Channels removed from groups and added to groups, together."""
        return sum(len(group.removed) + len(group.added) for group in self.groups)

    @property
    def moved(self) -> tuple[int, ...]:
        """Channels whose groups are not what they were."""
        changed = {c for group in self.groups for c in (*group.removed, *group.added)}
        return tuple(sorted(changed))


@dataclass(frozen=True)
class Step:
    """The changes of all layers from one checkpoint to the next."""

    layers: tuple[LayerChange, ...]

    @property
    def total(self) -> int:
        """The sum over layers; see `LayerChange`."""
        return sum(layer.total for layer in self.layers)

    @property
    def moved(self) -> int:
        """Number of channels whose groups are not what they were."""
        return sum(len(layer.moved) for layer in self.layers)

    @property
    def channels(self) -> int:
        """Number of all channels that could have moved."""
        return sum(layer.channels for layer in self.layers)


def change_of(
    name: str, before: LearnedGroups, after: LearnedGroups, side: Side = "inputs"
) -> LayerChange:
    """The change of the layer `name`, for its input channels or its filters.

    Raises UsageError where both are not of one layer: other channels, or other numbers of groups.
    """
    if _sizes(before) != _sizes(after):
        raise UsageError(f"{name} {_differ(_sizes(before), _sizes(after))}")
    pairs = zip(_members(before, side), _members(after, side), strict=True)
    channels = before.in_channels if side == "inputs" else before.out_channels
    return LayerChange(name, channels, tuple(_change(old, new) for old, new in pairs))


def track(states: Sequence[Sequence[LearnedLayer]], side: Side = "inputs") -> tuple[Step, ...]:
    """The changes from each state of a network's learned layers to the next; one fewer than states.

    Raises UsageError, with the first layer that differs, for states of different networks.
    """
    steps = []
    for before, after in itertools.pairwise(states):
        difference = first_difference(before, after)
        if difference is not None:
            raise UsageError(difference)
        now = {layer.name: layer.groups for layer in after}
        changes = (change_of(b.name, b.groups, now[b.name], side) for b in before)
        steps.append(Step(tuple(changes)))
    return tuple(steps)


def first_difference(before: Sequence[LearnedLayer], after: Sequence[LearnedLayer]) -> str | None:
    """The first learned layer that two networks do not have in common, in words, or None."""
    others = {layer.name: layer for layer in after}
    for layer in before:
        other = others.pop(layer.name, None)
        if other is None:
            return f"the learned layer {layer.name} is in one and not in the other"
        mine, theirs = _description(layer), _description(other)
        if mine != theirs:
            return f"the learned layer {layer.name} {_differ(mine, theirs)}"
    if others:
        return f"the learned layer {next(iter(others))} is in one and not in the other"
    return None


def _members(groups: LearnedGroups, side: Side) -> Members:
    return groups.inputs if side == "inputs" else groups.outputs


def _change(before: tuple[int, ...], after: tuple[int, ...]) -> GroupChange:
    old, new = set(before), set(after)
    return GroupChange(tuple(sorted(old - new)), tuple(sorted(new - old)), len(new))


def _sizes(groups: LearnedGroups) -> str:
    count = len(groups.inputs)
    return f"{groups.in_channels} -> {groups.out_channels} channels in {count} groups"


def _description(layer: LearnedLayer) -> str:
    return f"{_sizes(layer.groups)}, kernel {'x'.join(map(str, layer.kernel_size))}"


def _differ(one: str, other: str) -> str:
    return f"is of {one} in one and of {other} in the other"
