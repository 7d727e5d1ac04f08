"""Which BatchNormalization belongs to a convolution of an ONNX graph, and folding it in.

    bn(conv(x)) = s * (W * x + b - mean) + beta,   s = gamma / sqrt(var + eps)
                = (s W) * x + (s (b - mean) + beta)

The new weight and bias are computed in float64 and rounded once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .conv_nodes import CONVS, FIRST_IR_WITH_DEFAULTS, constant_of
from .initializers import constant

_EPSILON = 1e-5
_NORM_INPUTS = 5
Array = npt.NDArray[Any]


def norm_behind(conv: ir.Node, ir_version: int = FIRST_IR_WITH_DEFAULTS) -> ir.Node | str | None:
    """The BatchNormalization that takes the value of `conv`, on constants, and nothing else does.

    A text says why the one that follows is not its own; None, that none follows. `ir_version` is
    that of `constant_of`: from 4 on, what a user may replace is no constant.
    """
    output = conv.outputs[0]
    uses = output.uses()
    norms = [use.node for use in uses if _is_norm(use.node) and use.idx == 0]
    if not norms:
        return None
    norm = norms[0]
    if output.is_graph_output():
        return f"{output.name} is an output of the graph too"
    if len(uses) > 1:
        return f"{output.name} has {len(uses)} users"
    if norm.graph is not conv.graph:
        return f"{norm.name} is in a subgraph"
    more = [value for value in norm.outputs[1:] if value.uses() or value.is_graph_output()]
    if norm.attributes.get_int("training_mode", 0) or more:
        return f"{norm.name} is in training mode"
    constants = [constant_of(value, ir_version) for value in norm.inputs[1:]]
    if len(norm.inputs) != _NORM_INPUTS or any(tensor is None for tensor in constants):
        return f"{norm.name} has parameters that are no constants"
    return norm


def _is_norm(node: ir.Node) -> bool:
    return node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx")


def fold_batchnorms(model: ir.Model) -> tuple[str, ...]:
    """Fold each BatchNormalization that belongs to a convolution; notes on those that stay."""
    notes = []
    for conv in [node for node in model.graph if node.op_type in CONVS]:
        # A second one behind the first is behind the convolution as soon as that is gone.
        while isinstance(norm := norm_behind(conv), ir.Node) and _held(conv, norm):
            note = _fold(model.graph, conv, norm)
            if note is not None:
                notes.append(note)
                break
    return tuple(notes)


def _held(conv: ir.Node, norm: ir.Node) -> bool:
    """Whether every tensor that folding changes or needs is an initialiser."""
    values = [value for value in (*conv.inputs[1:], *norm.inputs[1:]) if value is not None]
    return all(value.is_initializer() and value.const_value is not None for value in values)


def _fold(graph: ir.Graph, conv: ir.Node, norm: ir.Node) -> str | None:
    held = conv.inputs[1]
    assert held is not None
    weight = _array(held)
    gamma, beta, mean, variance = (_array(value) for value in norm.inputs[1:5])
    epsilon = epsilon_of(norm)
    scale = gamma / np.sqrt(variance + epsilon)
    offset = conv.inputs[2] if len(conv.inputs) > 2 else None
    bias = np.zeros_like(mean) if offset is None else _array(offset)
    dtype = _dtype(held)
    wide = [weight * _spread(scale, conv, weight), scale * (bias - mean) + beta]
    with np.errstate(over="ignore"):
        new = [value.astype(dtype) for value in wide]
    if not all(np.isfinite(value.astype(np.float64)).all() for value in new):
        return f"{conv.name}: its BatchNormalization stays, folded it is not finite in {dtype.name}"
    stem = (held.name or "weight").removesuffix(".weight")
    shared = any(v is not None and len(v.uses()) > 1 for v in (held, offset))
    suffix = f".{norm.outputs[0].name}" if shared else ""
    names = (f"{stem}.weight{suffix}", f"{stem}.bias{suffix}")
    for position, (name, value) in enumerate(zip(names, new, strict=True), start=1):
        _set_input(graph, conv, position, name, value)
    drop_zero_bias(graph, conv)
    result, replaced = conv.outputs[0], norm.outputs[0]
    wanted, result.shape, result.type = replaced.name, replaced.shape, replaced.type
    ir.convenience.replace_all_uses_with(replaced, result, replace_graph_outputs=True)
    parameters = [value for value in norm.inputs[1:] if value is not None]
    graph.remove(norm, safe=True)
    result.name = wanted
    _drop_unused(graph, parameters)
    return None


def _spread(scale: Array, conv: ir.Node, weight: Array) -> Array:
    """One factor for each filter, in the shape of the weight: `[out, in/g, ...]` or, transposed,
    `[in, out/g, ...]`.
    """
    taps = (1,) * (weight.ndim - 2)
    if conv.op_type == "Conv":
        return scale.reshape(-1, 1, *taps)
    groups = conv.attributes["group"].as_int() if "group" in conv.attributes else 1
    each = scale.reshape(groups, 1, weight.shape[1])
    rows = np.repeat(each, weight.shape[0] // groups, axis=1)
    return rows.reshape(weight.shape[0], weight.shape[1], *taps)


def _set_input(graph: ir.Graph, conv: ir.Node, position: int, name: str, value: Array) -> None:
    old = conv.inputs[position] if len(conv.inputs) > position else None
    if len(conv.inputs) <= position:
        conv.resize_inputs(position + 1)
    if old is not None:
        conv.replace_input_with(position, None)
        _drop_unused(graph, [old])
    conv.replace_input_with(position, constant(graph, name, value))


def drop_zero_bias(graph: ir.Graph, conv: ir.Node) -> None:
    """Take off a bias of zeros: to add it is a percent or two of the time of a whole network."""
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    if bias is None or bias.const_value is None or np.any(bias.const_value.numpy()):
        return
    conv.resize_inputs(2)
    _drop_unused(graph, [bias])


def _drop_unused(graph: ir.Graph, values: list[ir.Value]) -> None:
    for value in values:
        if value.is_initializer() and not value.uses() and not value.is_graph_output():
            graph.initializers.pop(value.name or "", None)


def _array(value: ir.Value | None) -> Array:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float64)


def _dtype(value: ir.Value) -> np.dtype[np.generic]:
    assert value.const_value is not None
    return value.const_value.numpy().dtype


def epsilon_of(norm: ir.Node) -> float:
    """What a BatchNormalization adds to the variance: its own number, or ONNX's default."""
    return norm.attributes.get_float("epsilon", _EPSILON)
