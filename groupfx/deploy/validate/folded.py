"""Weights that reach a convolution through operators on constants, computed for looking at them.

TensorFlow's kernels come through Transpose and Reshape, float16 storage through Cast, quantised
ones through DequantizeLinear. The file stays as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import onnx
import onnx_ir as ir

from ...errors import GroupfxError
from ..graph.conv_nodes import is_convolution
from ..graph.files import proto_of
from ..running.float64_onnx import Float64Model
from ..running.runtime import Session
from .onnx_draws import is_draw

Array = npt.NDArray[Any]


def constant_values(graph: ir.Graph) -> frozenset[ir.Value]:
    """The values that depend on constants alone. What a user may replace counts as one."""
    found = set(graph.initializers.values())
    for node in graph:
        plain = not is_draw(node) and all(
            not a.is_ref() and a.type != ir.AttributeType.GRAPH for a in node.attributes.values()
        )
        if plain and all(value in found for value in node.inputs if value is not None):
            found.update(node.outputs)
    return frozenset(found)


def folded_weights(model: ir.Model) -> Mapping[str, Array]:
    """Weights and biases of convolutions that operators make of constants, by name, in float64."""
    constants = constant_values(model.graph)
    made = [
        value
        for node in model.graph
        if is_convolution(node)
        for value in node.inputs[1:3]
        if value is not None and not value.is_initializer() and value in constants
    ]
    names = list(dict.fromkeys(value.name or "" for value in made))
    if not names:
        return {}
    proto = _part(model, {id(node) for value in made for node in _before(value)}, names)
    with contextlib.suppress(GroupfxError):
        return Float64Model(proto).run({})
    # What has no float64, such as DequantizeLinear of an old opset.
    with contextlib.suppress(GroupfxError):
        return Session(ir.from_proto(proto), "off", source="its weights").run({}, names)
    return {}


def _before(value: ir.Value) -> list[ir.Node]:
    node = value.producer()
    if node is None:
        return []
    return [node, *(n for v in node.inputs if v is not None for n in _before(v))]


def _part(model: ir.Model, kept: set[int], names: list[str]) -> onnx.ModelProto:
    """The nodes `kept` of a model, with `names` as outputs."""
    nodes = [ir.to_proto(node) for node in model.graph if id(node) in kept]
    read = {name for node in nodes for name in node.input}
    whole = proto_of(model)
    held = [tensor for tensor in whole.graph.initializer if tensor.name in read]
    outputs = [onnx.ValueInfoProto(name=name) for name in names]
    graph = onnx.helper.make_graph(nodes, "weights", [], outputs, held)
    return onnx.helper.make_model(
        graph,
        ir_version=whole.ir_version,
        opset_imports=list(whole.opset_import),
        functions=list(whole.functions),
    )
