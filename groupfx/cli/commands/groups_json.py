"""The document that `groupfx groups --json` writes: plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ...files.checkpoints import Series
from ...learned.layers import LearnedLayer
from ...learned.tracking import LayerChange, Side, Step
from ...running.flops import Flops

if TYPE_CHECKING:
    from ..text.groups_text import Operations

SCHEMA = "groupfx.groups/1"


def model_document(
    file: Mapping[str, Any],
    layers: Sequence[LearnedLayer],
    operations: Operations | None,
    reason: str | None,
) -> dict[str, Any]:
    """One model; `file` says what was read."""
    return {
        "schema": SCHEMA,
        "files": [{**file, "epoch": None}],
        "layers": [_layer(layer) for layer in layers],
        "operations": None if operations is None else _operations(operations),
        "not_counted": reason,
        "series": None,
    }


def series_document(
    series: Series, layers: Sequence[LearnedLayer], steps: Sequence[Step], side: Side
) -> dict[str, Any]:
    """Several checkpoints; `layers` are those of the last one."""
    epochs = series.epochs or [None] * len(series.checkpoints)
    files = [
        {**checkpoint.document, "epoch": epoch}
        for checkpoint, epoch in zip(series.checkpoints, epochs, strict=True)
    ]
    return {
        "schema": SCHEMA,
        "files": files,
        "layers": [_layer(layer) for layer in layers],
        "operations": None,
        "not_counted": "FLOPs are counted for one model",
        "series": {"side": side, "steps": [_step(step) for step in steps]},
    }


def _layer(layer: LearnedLayer) -> dict[str, Any]:
    groups, structure = layer.groups, layer.structure
    pairs = zip(groups.inputs, groups.outputs, strict=True)
    return {
        "name": layer.name,
        "in_channels": groups.in_channels,
        "out_channels": groups.out_channels,
        "kernel_size": list(layer.kernel_size),
        "groups": [{"inputs": list(i), "filters": list(o)} for i, o in pairs],
        "empty_groups": list(groups.empty_groups),
        "dead_inputs": list(groups.dead_inputs),
        "bias_only_filters": list(groups.bias_only_filters),
        "tied": {"inputs": list(layer.tied_inputs), "filters": list(layer.tied_filters)},
        "nan": {"inputs": list(groups.nan_inputs), "filters": list(groups.nan_outputs)},
        "blocks": len(structure.blocks),
        "macs_per_tap": {
            "dense": structure.dense_macs,
            "exact": structure.exact_macs,
            "padded": structure.padded_macs,
        },
    }


def _operations(operations: Operations) -> dict[str, Any]:
    learned, frozen = operations.learned, operations.frozen
    return {
        "input": operations.text,
        "positions": dict(learned.positions),
        "dense": _flops(learned.dense),
        "exact": _flops(learned.exact),
        "frozen": None if frozen is None else _flops(frozen),
    }


def _flops(flops: Flops) -> dict[str, int]:
    return {**asdict(flops), "total": flops.total}


def _step(step: Step) -> dict[str, Any]:
    return {
        "total": step.total,
        "moved": step.moved,
        "channels": step.channels,
        "layers": [_change(change) for change in step.layers],
    }


def _change(change: LayerChange) -> dict[str, Any]:
    return {
        "name": change.name,
        "total": change.total,
        "moved": list(change.moved),
        "channels": change.channels,
        "groups": [
            {"removed": list(g.removed), "added": list(g.added), "held": g.held}
            for g in change.groups
        ],
    }
