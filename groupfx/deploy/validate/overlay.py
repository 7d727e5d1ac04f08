"""The errors of a validation as node data of Model Explorer, to be laid over the candidate's graph.

The format is `GraphNodeData` of google-ai-edge/model-explorer
(src/builtin-adapter/node_data_builder.py, read 2026-11): `results` gives a number for each node, by
its id, and `thresholds` a colour for each number up to a bound. The id of a node of an ONNX file is
its name in the adapter for ONNX (justinchuby/model-explorer-onnx, src/model_explorer_onnx/main.py),
which shows no node without one; the name of an output is a key as well. Netron has no such format:
there, a node of a file of ours shows its site among its metadata.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from ..forms.site_drawings import site_nodes
from .onnx_values import OnnxGraph
from .verdict import Validation

MOST = 1e9
"""Stands for an error without a number: JSON has no infinity."""

# What is nothing, what is within the bound, close to it, and beyond.
_COLOURS = (
    (0.0, "#c8e6c9", "#1b1b1b"),
    (0.5, "#bbdefb", "#1b1b1b"),
    (1.0, "#64b5f6", "#1b1b1b"),
    (MOST, "#c62828", "#ffffff"),
)


def overlay(validation: Validation, model: ir.Model) -> dict[str, Any]:
    """Each node of the candidate `model` with its error by what is allowed; above 1 it is wrong.

    All nodes of a site have the error of the site. An operator that was not looked at has none.
    """
    sites = {check.name: check.ratio for check in validation.sites}
    results: dict[str, float] = {}
    for name, nodes in site_nodes(model).items():
        if name in sites:
            results.update(dict.fromkeys(_keys(nodes), sites[name]))
    named = {check.position: check.ratio for check in validation.operators}
    if named:
        for operator, runner in _operators(model):
            if operator in named:
                for key in _keys([runner]):
                    results[key] = max(results.get(key, 0.0), named[operator])
    return {
        "results": {name: {"value": _finite(ratio)} for name, ratio in sorted(results.items())},
        "thresholds": [
            {"value": value, "bgColor": colour, "textColor": text}
            for value, colour, text in _COLOURS
        ],
    }


def _operators(model: ir.Model) -> Iterator[tuple[int, ir.Node]]:
    """The operators that a validation numbers, and their nodes."""
    yield from ((place, runner.node) for place, runner in OnnxGraph(model).nodes.items())


def _keys(nodes: list[ir.Node]) -> Iterator[str]:
    """The id that a viewer has for each node."""
    for node in nodes:
        key = node.name or (node.outputs[0].name if node.outputs else None)
        if key:
            yield key


def _finite(ratio: float) -> float:
    return min(ratio, MOST) if math.isfinite(ratio) else MOST
