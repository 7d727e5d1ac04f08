"""Fold a BatchNormalization into the convolution in front of it.

    bn(conv(x)) = s * (W * x + b - mean) + beta,   s = gamma / sqrt(var + eps)
                = (s W) * x + (s (b - mean) + beta)

The new weight and bias are computed in float64 and rounded once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .conv_nodes import CONVS
from .initializers import constant

_EPSILON = 1e-5
Array = npt.NDArray[Any]


def fold_batchnorms(model: ir.Model) -> tuple[str, ...]:
    """Fold each BatchNormalization that alone takes a convolution's output; notes on the others."""
    notes = []
    for norm in list(model.graph):
        if norm.op_type != "BatchNormalization" or norm.domain not in ("", "ai.onnx"):
            continue
        source = norm.inputs[0]
        conv = None if source is None else source.producer()
        if conv is None or conv.op_type not in CONVS or not _alone(model.graph, norm, conv):
            continue
        note = _fold(model.graph, conv, norm)
        if note is not None:
            notes.append(note)
    return tuple(notes)


def _alone(graph: ir.Graph, norm: ir.Node, conv: ir.Node) -> bool:
    value = conv.outputs[0]
    constants = [*conv.inputs[1:], *norm.inputs[1:]]
    extra = [output for output in norm.outputs[1:] if output.uses() or output in graph.outputs]
    return (
        len(value.uses()) == 1
        and value not in graph.outputs
        and not extra
        and all(v is None or _constant(v) is not None for v in constants)
    )


def _constant(value: ir.Value) -> ir.TensorProtocol | None:
    return value.const_value if value.is_initializer() else None


def _fold(graph: ir.Graph, conv: ir.Node, norm: ir.Node) -> str | None:
    held = conv.inputs[1]
    assert held is not None
    weight = _array(held)
    gamma, beta, mean, variance = (_array(value) for value in norm.inputs[1:5])
    epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else _EPSILON
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
