"""Nodes of an ONNX graph in the words of the folding rules; operators are `channel_operators`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from ...folding.wiring import Operation, Parameter, Value
from ..graph.conv_nodes import FIRST_IR_WITH_DEFAULTS, constant_of
from ..quantised.tensors import is_dequantize, is_quantize
from .channel_operators import Numbers, Seen, rule_of

# Of the others, the first input is the tensor, and the rest sizes, axes and parameters.
_OF_ALL_INPUTS = frozenset({"barrier", "binary", "concat", "product"})

_DERIVED = frozenset({"Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Transpose"})
"""What makes another tensor of a constant whose elements each come from one of it."""
_AS_IT_LIES = _DERIVED - {"Transpose"}

Shapes = Mapping[str, tuple[int, ...]]


_OF_SEVERAL = frozenset({"DynamicQuantizeLinear", "Split", "TopK"})


class OnnxRules:
    """Operations of the main graph of a model, with its shapes."""

    def __init__(self, model: ir.Model, shapes: Shapes, *, unpacked: bool = False) -> None:
        """`unpacked` says that numbers of less than a byte are taken out of it, and may move."""
        self._shapes = shapes
        self._unpacked = unpacked
        self._fixed: dict[ir.Value, str | None] = {}
        self._opset = model.opset_imports.get("", 1)
        self._ir_version = model.ir_version
        self._graph = model.graph

    def operation(self, node: ir.Node, name: str) -> Operation:
        """`node` as the rules see it."""
        inputs = dict(self._inputs(node))
        outputs = tuple(self._value(value) for value in node.outputs)
        rule, numbers = self._rule(node, inputs) or ("barrier", {})
        numbers.setdefault("function", node.op_type.lower())
        if rule == "size":
            numbers = _asked(node, self._shapes)
        if node.op_type == "DynamicQuantizeLinear":
            # The scale and the zero point are one number each.
            outputs = outputs[:1]
        if rule not in _OF_ALL_INPUTS:
            first = {slot: found for slot, found in inputs.items() if slot == 0}
            if isinstance(first.get(0), Value):
                return Operation(rule, node, name, first, outputs, numbers)
            rule = "barrier"
        return Operation(rule, node, name, inputs, outputs, numbers)

    def output(self, value: ir.Value) -> Operation:
        """An output of the graph, which must be as it was."""
        return Operation("barrier", value, value.name or "output", {0: self._value(value)}, ())

    def _inputs(self, node: ir.Node) -> list[tuple[int, Value | Parameter]]:
        found: list[tuple[int, Value | Parameter]] = []
        for slot, value in enumerate(node.inputs):
            if value is not None:
                found.append((slot, self.stored(value) or self._value(value)))
        return found

    def stored(self, value: ir.Value | None) -> Parameter | None:
        """A value that is made of a constant: the constant, a transpose of it, dequantized."""
        if value is None:
            return None
        tensor = constant_of(value, self._ir_version)
        if tensor is not None:
            root = root_of(value)
            # A scale that thousands of nodes read is asked for at each of them.
            if root not in self._fixed:
                self._fixed[root] = self._why_fixed(root, tensor)
            shape, fixed = tuple(tensor.shape.numpy()), self._fixed[root]
            return Parameter(root, shape, fixed, nonzero=partial(_nonzero, tensor))
        node = value.producer()
        made = None if node is None or not _is_known(node) or not node.inputs else node.op_type
        if node is None or made not in _DERIVED:
            return None
        source = self.stored(node.inputs[0])
        if source is None or made in ("Identity", "Cast"):
            return source
        return _turned(node, source) if made == "Transpose" else self._scaled(node, source)

    def _scaled(self, node: ir.Node, source: Parameter) -> Parameter | None:
        """What is quantised or dequantised; both, where it is by the same scales."""
        given = [self.stored(value) for value in node.inputs[1:] if value is not None]
        scales = [p for p in given if p is not None and math.prod(p.shape) > 1]
        if None in given or any(len(p.shape) != 1 for p in scales):
            return None
        dim = node.attributes.get_int("axis", 1) % max(1, len(source.shape))
        along = tuple((scale, dim) for scale in scales)
        if source.along and source.along != along:
            return None
        # A number that is 0 is not 0 where the zero point is another.
        return replace(source, along=along, nonzero=None)

    def _why_fixed(self, value: ir.Value, tensor: ir.TensorProtocol | None = None) -> str | None:
        """Why a constant must stay as it is, although the main graph's nodes follow."""
        if tensor is not None and _bytes(tensor.dtype) < 1 and not self._unpacked:
            return f"{value.name} has several numbers in a byte"
        if value.is_graph_output():
            return f"{value.name} is an output of the model"
        for use in value.uses():
            if use.node.graph is not self._graph:
                return f"{value.name} is used in a subgraph"
            if use.node.op_type in _DERIVED and use.idx == 0:
                reason = self._why_fixed(use.node.outputs[0])
                if reason is not None:
                    return reason
        return None

    def _value(self, value: ir.Value) -> Value:
        shape = self._shapes.get(value.name or "", ())
        size = 4 if value.type is None else max(1, int(_bytes(value.type.dtype)))
        return Value(value, shape, size, len(value.uses()) + value.is_graph_output())

    def _rule(
        self, node: ir.Node, inputs: Mapping[int, Value | Parameter]
    ) -> tuple[str, Numbers] | None:
        if not _is_known(node) or not _known(node, inputs, self._shapes):
            return None
        shapes = tuple(None if v is None else inputs[k].shape for k, v in enumerate(node.inputs))
        seen = Seen(
            node,
            self._opset,
            shapes,
            tuple(self._shapes.get(v.name or "", ()) for v in node.outputs),
        )
        return rule_of(seen, {k: p for k, p in inputs.items() if isinstance(p, Parameter)})


def _is_known(node: ir.Node) -> bool:
    """Whether it is an operator of onnx, or one of ONNX Runtime's that means the same."""
    return node.domain in ("", "ai.onnx") or is_quantize(node) or is_dequantize(node)


def _nonzero(tensor: ir.TensorProtocol) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows and columns of a weight hold anything but zeros."""
    entries = tensor.numpy() != 0
    return np.asarray(entries.reshape(*entries.shape[:2], -1).any(axis=-1))


def _asked(node: ir.Node, shapes: Shapes) -> Numbers:
    """Of which dimensions a Shape tells a size that is read; nothing said is all."""
    rank = len(shapes.get((node.inputs[0].name if node.inputs[0] else None) or "", ()))
    if node.op_type != "Shape" or node.outputs[0].is_graph_output():
        return {}
    told = range(rank)[
        slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", rank))
    ]
    found: list[int] = []
    for use in node.outputs[0].uses():
        chosen = (
            constant_of(use.node.inputs[1], FIRST_IR_WITH_DEFAULTS)
            if use.idx == 0 and use.node.op_type == "Gather"
            else None
        )
        if chosen is None:
            return {"dims": list(told)}
        found += [told[int(place)] for place in chosen.numpy().ravel()]
    return {"dims": found}


def _turned(node: ir.Node, source: Parameter) -> Parameter | None:
    """A transpose of a stored tensor."""
    rank = len(source.shape)
    dims = tuple(node.attributes.get_ints("perm") or range(rank)[::-1])
    return replace(
        source,
        shape=tuple(source.shape[k] for k in dims),
        dims=tuple(k if source.dims is None else source.dims[k] for k in dims),
        along=tuple((other, dims.index(dim)) for other, dim in source.along),
    )


def _known(node: ir.Node, inputs: Mapping[int, Value | Parameter], shapes: Shapes) -> bool:
    """Whether all shapes are, and no output beyond the first is used where that says where."""
    if node.attributes and any(
        a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for a in node.attributes.values()
    ):
        return False
    tensors = [v for v in inputs.values() if isinstance(v, Value)]
    keys = [v.key for v in tensors]
    if not tensors or not tensors[0].shape:
        return False
    if any(v is not None and v in keys and (v.name or "") not in shapes for v in node.inputs):
        return False
    used = [v for v in node.outputs if v.uses() or v.is_graph_output()]
    if node.op_type not in _OF_SEVERAL and any(v is not node.outputs[0] for v in used):
        return False
    return all((v.name or "") in shapes for v in used)


def root_of(value: ir.Value) -> ir.Value:
    """The constant behind nodes that leave its axes as they are."""
    node = value.producer()
    while node is not None and node.op_type in _AS_IT_LIES and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _bytes(dtype: ir.DataType) -> float:
    """What a number of it takes; text, whose channels nobody reorders, as a pointer to it."""
    return 8.0 if dtype == ir.DataType.STRING else float(dtype.itemsize)
