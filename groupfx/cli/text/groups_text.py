"""Learned groups as text: what they are, what they save, and how they changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...learned.layers import LearnedLayer
from ...learned.tracking import GroupChange, LayerChange, Side, Step
from ...running.flops import Flops
from ...running.learned_flops import LearnedFlops
from .numbers import plural, sizes
from .screen import Screen
from .table import Column, Table

_GROUPS_SHOWN = 16
_CHANNELS_SHOWN = 12
_WORDS = {"inputs": "input channel", "filters": "filter"}


@dataclass(frozen=True)
class Operations:
    """FLOPs of one sample, on inputs of the shape that `text` says; `frozen` where it worked."""

    learned: LearnedFlops
    frozen: Flops | None
    text: str


def show_layers(
    screen: Screen, layers: Sequence[LearnedLayer], operations: Operations | None
) -> None:
    """A row for each layer, what is wrong with some of them, and the total."""
    screen.line()
    numbers = [Column(t, right=True) for t in ("exact MACs", "padded MACs")]
    counts = [Column(t, right=True) for t in ("empty", "dead inputs", "bias only")]
    last = [*counts, Column("notes"), *numbers]
    rows = [_row(screen, layer) for layer in layers]
    total = _total(layers, operations)
    screen.table(
        Table([Column("layer"), Column("conv"), Column("inputs/filters a group"), *last], rows),
        Table(
            [Column("layer"), Column("conv"), Column("groups", right=True), *last],
            [
                (row[0], row[1], str(len(layer.groups.inputs)), *row[3:])
                for row, layer in zip(rows, layers, strict=True)
            ],
        ),
    )
    screen.line()
    for text in _remarks(screen, layers):
        screen.paragraph(text)
    screen.paragraph(total)


def _row(screen: Screen, layer: LearnedLayer) -> tuple[str, ...]:
    groups, structure = layer.groups, layer.structure
    return (
        layer.name or "the model",
        f"{sizes(layer.kernel_size)} {groups.in_channels}->{groups.out_channels}",
        _sizes(screen, layer),
        _number(len(groups.empty_groups)),
        _number(len(groups.dead_inputs)),
        _number(len(groups.bias_only_filters)),
        ", ".join(_marks(layer)),
        f"{structure.exact_macs / structure.dense_macs:.1%}",
        f"{structure.padded_macs / structure.dense_macs:.1%}",
    )


def _sizes(screen: Screen, layer: LearnedLayer) -> str:
    pairs = [f"{inputs}/{filters}" for inputs, filters in layer.groups.sizes]
    return _some(screen, pairs, _GROUPS_SHOWN, " ")


def _number(number: int) -> str:
    return f"{number:,}" if number else "-"


def _marks(layer: LearnedLayer) -> list[str]:
    """Words for what a user would not expect of groups."""
    nan = len(layer.groups.nan_inputs) + len(layer.groups.nan_outputs)
    ties = len(layer.tied_inputs) + len(layer.tied_filters)
    return [f"{count} {word}" for count, word in ((ties, "tied"), (nan, "NaN")) if count]


def _remarks(screen: Screen, layers: Sequence[LearnedLayer]) -> list[str]:
    found = []
    for layer in layers:
        name, groups = layer.name or "the model", layer.groups
        for channels, word in ((layer.tied_inputs, "input"), (layer.tied_filters, "filter")):
            if channels:
                found.append(
                    f"{name}: {plural(len(channels), word)} in several groups, whose scores tie: "
                    f"{_channels(screen, channels)}"
                )
        for channels, word in ((groups.nan_inputs, "input"), (groups.nan_outputs, "filter")):
            if channels:
                found.append(
                    f"{name}: the scores of {plural(len(channels), word)} are NaN after softmax, "
                    f"so that they are in no group: {_channels(screen, channels)}"
                )
    return found


def _total(layers: Sequence[LearnedLayer], operations: Operations | None) -> str:
    """What is left of the MACs of these layers, weighted by how often each is applied."""
    positions = {} if operations is None else operations.learned.positions
    dense = exact = padded = 0
    for layer in layers:
        times = positions.get(layer.name, 1) * math.prod(layer.kernel_size)
        dense += times * layer.structure.dense_macs
        exact += times * layer.structure.exact_macs
        padded += times * layer.structure.padded_macs
    what = "of their MACs as dense convolutions" if positions else "of their weights"
    if not dense:
        return "None of the layers is ever called."
    return (
        f"{plural(len(layers), 'layer')} with learned groups: the groups need "
        f"{exact / dense:.1%} {what}, {padded / dense:.1%} where each block of a layer is padded "
        "to the largest"
    )


def show_operations(screen: Screen, operations: Operations | None, reason: str | None) -> None:
    """FLOPs of the model as it is, as its groups would have it, and frozen."""
    screen.line()
    if operations is None:
        screen.paragraph(f"FLOPs not counted: {reason}")
        return
    learned = operations.learned
    rows = [
        _flops("as trained: dense, under masks", learned.dense),
        _flops("sum over learned groups", learned.exact),
    ]
    if operations.frozen is not None:
        rows.append(_flops("frozen", operations.frozen))
    titles = (Column("MACs", right=True), Column("FLOPs", right=True))
    screen.table(Table([Column("the model, one sample"), *titles], rows))
    if reason is not None:
        screen.paragraph(f"not counted frozen: {reason}")
    screen.paragraph(
        f"input {operations.text}; FLOPs: 1 a multiply-accumulate, 2 an element of BatchNorm, "
        "1 an element of ReLU6"
    )


def _flops(name: str, flops: Flops) -> tuple[str, ...]:
    macs = flops.convolutions + flops.linear
    return name, _millions(macs), _millions(flops.total)


def _millions(number: int) -> str:
    """Two decimals, as papers have it; small models in full."""
    return f"{number / 1e6:,.2f} M" if number >= 1_000_000 else f"{number:,}"


def show_series(
    screen: Screen,
    labels: Sequence[str],
    steps: Sequence[Step],
    layers: Sequence[LearnedLayer],
    side: Side,
) -> None:
    """For each layer a table of checkpoints and groups, then the totals of all layers.

    `layers` are those of the first checkpoint. Where nothing moves at all, one line says so.
    """
    word = _WORDS[side]
    if not any(step.total for step in steps):
        screen.paragraph(_nothing_moved(labels, steps, word))
        return
    screen.paragraph(
        f"{word}s of each group, as removed / added / held: those that left it since the last "
        "checkpoint, those that came, and those it has"
    )
    for place, first in enumerate(layers):
        changes = [step.layers[place] for step in steps]
        members = first.groups.inputs if side == "inputs" else first.groups.outputs
        held = [len(group) for group in members]
        screen.line()
        screen.paragraph(f"{first.name or 'the model'}, {plural(changes[0].channels, word)}")
        _show_layer(screen, labels, changes, held)
        if screen.verbose:
            _show_channels(screen, labels, changes, word)
    screen.line()
    _show_totals(screen, labels, steps, word)


def _nothing_moved(labels: Sequence[str], steps: Sequence[Step], word: str) -> str:
    channels, layers = plural(steps[0].channels, word), plural(len(steps[0].layers), "layer")
    return (
        f"nothing moved in {plural(len(labels), 'checkpoint')}, {labels[0]} to {labels[-1]}: "
        f"{channels} of {layers} with learned groups are in the same groups in all of them"
    )


def _show_layer(
    screen: Screen, labels: Sequence[str], changes: Sequence[LayerChange], held: Sequence[int]
) -> None:
    groups = range(len(held))
    cells = [[f"0/0/{count}" for count in held]]
    cells += [[_cell(group) for group in change.groups] for change in changes]
    totals = ["0", *(f"{change.total:,}" for change in changes)]
    by_epoch = [
        (label, *row, total) for label, row, total in zip(labels, cells, totals, strict=True)
    ]
    by_group = [(f"group {group}", *(row[group] for row in cells)) for group in groups]
    right = [Column(f"group {group}", right=True) for group in groups]
    screen.table(
        Table([Column(""), *right, Column("total", right=True)], by_epoch),
        Table(
            [Column(""), *(Column(label, right=True) for label in labels)],
            [*by_group, ("total", *totals)],
        ),
    )


def _cell(group: GroupChange) -> str:
    removed = f"-{len(group.removed)}" if group.removed else "0"
    added = f"+{len(group.added)}" if group.added else "0"
    return f"{removed}/{added}/{group.held}"


def _show_channels(
    screen: Screen, labels: Sequence[str], changes: Sequence[LayerChange], word: str
) -> None:
    """Which channels they are."""
    for label, change in zip(labels[1:], changes, strict=True):
        for number, group in enumerate(change.groups):
            for what, channels in (("removed", group.removed), ("added", group.added)):
                if channels:
                    named = ", ".join(map(str, channels))
                    screen.paragraph(f"{label}, group {number}: {what} {word}s {named}", "  ")


def _show_totals(screen: Screen, labels: Sequence[str], steps: Sequence[Step], word: str) -> None:
    rows = [
        (label, f"{step.total:,}", f"{step.moved:,}", _share(step))
        for label, step in zip(labels[1:], steps, strict=True)
    ]
    titles = ("removed and added", f"{word}s that moved", f"of {steps[0].channels:,}")
    screen.table(Table([Column("all layers"), *(Column(t, right=True) for t in titles)], rows))


def _share(step: Step) -> str:
    return f"{step.moved / step.channels:.2%}"


def _channels(screen: Screen, channels: Sequence[int]) -> str:
    return _some(screen, [*map(str, channels)], _CHANNELS_SHOWN, ", ")


def _some(screen: Screen, words: Sequence[str], shown: int, between: str) -> str:
    """The first of them, and how many more there are."""
    if screen.whole or len(words) <= shown:
        return between.join(words)
    return f"{between.join(words[:shown])} and {len(words) - shown} more"
