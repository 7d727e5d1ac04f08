"""ONNX operators in the words of the folding rules: which rule, which parameters, which numbers.

What is not here, or has attributes that no rule takes, is a barrier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from ...folding.wiring import Operation, Parameter, Value
from ..graph.conv_nodes import FIRST_IR_WITH_DEFAULTS, constant_of


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ELEMENTWISE = _words(
    """
    Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp Floor
    Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu
    Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh
    ThresholdedRelu
    """
)
_BINARY = _words(
    """
    Add And BitwiseAnd BitwiseOr BitwiseXor Clip Div Equal Greater GreaterOrEqual Less
    LessOrEqual Max Mean Min Mod Mul Or Pow PRelu Sub Sum Where Xor
    """
)
_POOLS = _words(
    """
    AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool
    """
)
_REDUCTIONS = _words(
    """
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare
    """
)
_SHAPES = _words(
    """
    Flatten Reshape Squeeze Unsqueeze
    """
)
_FIRST_GROUP_NORM_BY_CHANNEL = 21
_RESIZE_SIZES = 3

# Of the others, the first input is the tensor, and the rest sizes, axes and parameters.
_OF_ALL_INPUTS = frozenset({"barrier", "binary", "concat"})

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Node:
    """A node, with what is known of its inputs and outputs."""

    node: ir.Node
    opset: int
    shapes: tuple[tuple[int, ...] | None, ...]
    outputs: tuple[tuple[int, ...], ...]

    def constant(self, slot: int) -> np.ndarray[Any, np.dtype[Any]] | None:
        """The numbers of an input that is a constant."""
        value = self.node.inputs[slot] if slot < len(self.node.inputs) else None
        tensor = constant_of(value, FIRST_IR_WITH_DEFAULTS)
        return None if tensor is None else tensor.numpy()

    def ints(self, name: str, slot: int | None = None) -> list[int] | None:
        """Whole numbers from an attribute, or from input `slot` where that is a constant."""
        if name in self.node.attributes:
            return list(self.node.attributes.get_ints(name) or ())
        found = None if slot is None else self.constant(slot)
        return None if found is None else [int(n) for n in found.ravel()]

    def number(self, name: str, default: int) -> int:
        """A whole number from an attribute."""
        return self.node.attributes.get_int(name, default)

    def dim(self, name: str, default: int) -> int:
        """An axis of the first input, counted from the front."""
        return self.number(name, default) % len(self.shape)

    def dims(self, given: Sequence[int]) -> list[int]:
        """Axes of the first input, counted from the front."""
        return [int(axis) % len(self.shape) for axis in given]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first input."""
        assert self.shapes[0] is not None
        return self.shapes[0]

    @property
    def resized(self) -> list[int]:
        """The axes of the first input whose size the output does not have."""
        return [
            k
            for k, pair in enumerate(zip(self.shape, self.outputs[0], strict=True))
            if pair[0] != pair[1]
        ]


Numbers = dict[str, Any]
Read = Callable[[_Node], tuple[str, Numbers] | None]


class OnnxRules:
    """Operations of the main graph of a model, with its shapes."""

    def __init__(self, model: ir.Model, shapes: Shapes) -> None:
        self._shapes = shapes
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
                found.append((slot, self._parameter(value) or self._value(value)))
        return found

    def _parameter(self, value: ir.Value) -> Parameter | None:
        tensor = constant_of(value, self._ir_version)
        if tensor is None:
            return None
        root, shape = root_of(value), tuple(tensor.shape.numpy())
        return Parameter(root, shape, self._why_fixed(root), nonzero=partial(_nonzero, tensor))

    def _why_fixed(self, value: ir.Value) -> str | None:
        """Why a constant must stay as it is, although the main graph's nodes follow."""
        if value.is_graph_output():
            return f"{value.name} is an output of the model"
        if any(use.node.graph is not self._graph for use in value.uses()):
            return f"{value.name} is used in a subgraph"
        return None

    def _value(self, value: ir.Value) -> Value:
        shape = self._shapes.get(value.name or "", ())
        size = 4 if value.type is None else max(1, int(value.type.dtype.itemsize))
        return Value(value, shape, size)

    def _rule(
        self, node: ir.Node, inputs: Mapping[int, Value | Parameter]
    ) -> tuple[str, Numbers] | None:
        if node.domain not in ("", "ai.onnx") or not _known(node, inputs, self._shapes):
            return None
        shapes = tuple(None if v is None else inputs[k].shape for k, v in enumerate(node.inputs))
        seen = _Node(
            node,
            self._opset,
            shapes,
            tuple(self._shapes.get(v.name or "", ()) for v in node.outputs),
        )
        parameters = {k: p for k, p in inputs.items() if isinstance(p, Parameter)}
        if node.op_type in _ELEMENTWISE or node.op_type == "Dropout":
            return "elementwise", {}
        if node.op_type in _BINARY:
            return "binary", {}
        if node.op_type in _POOLS:
            return "elementwise", {"dims": range(2, len(seen.shape))}
        if node.op_type in _REDUCTIONS:
            return _reduction(seen)
        if node.op_type in _SHAPES:
            return "reshape", _sizes(seen) if node.op_type == "Reshape" else {}
        read = _READ.get(node.op_type)
        return None if read is None else read(seen, parameters)


def _nonzero(tensor: ir.TensorProtocol) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows and columns of a weight hold anything but zeros."""
    entries = tensor.numpy() != 0
    return np.asarray(entries.reshape(*entries.shape[:2], -1).any(axis=-1))


def _sizes(seen: _Node, slot: int = 1) -> Numbers:
    """The sizes that an input asks for, None for each where it is computed."""
    found = seen.constant(slot)
    rank = len(seen.outputs[0])
    if found is None or found.ndim != 1 or len(found) != rank:
        return {"sizes": [None] * rank}
    return {"sizes": [int(size) for size in found]}


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


def _known(node: ir.Node, inputs: Mapping[int, Value | Parameter], shapes: Shapes) -> bool:
    """Whether all shapes are, and no output beyond the first is used where that says where."""
    if node.attributes and any(
        a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for a in node.attributes.values()
    ):
        return False
    tensors = [v for v in inputs.values() if isinstance(v, Value)]
    if not tensors or any(not v.shape for v in tensors):
        return False
    used = [v for v in node.outputs if v.uses() or v.is_graph_output()]
    if node.op_type not in ("Split", "TopK") and any(v is not node.outputs[0] for v in used):
        return False
    return all((v.name or "") in shapes for v in used)


def root_of(value: ir.Value) -> ir.Value:
    """The constant behind Identity nodes."""
    node = value.producer()
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


Parameters = Mapping[int, Parameter]


def _reduction(seen: _Node) -> tuple[str, Numbers] | None:
    axes = seen.ints("axes", 1)
    if axes is None and len([v for v in seen.node.inputs if v is not None]) > 1:
        return None
    if not axes:
        if seen.number("noop_with_empty_axes", 0):
            return "elementwise", {}
        axes = list(range(len(seen.shape)))
    return "reduce", {"dims": seen.dims(axes), "keep": bool(seen.number("keepdims", 1))}


def _conv(seen: _Node, given: Parameters) -> tuple[str, Numbers] | None:
    if 1 not in given or (
        2 not in given and len([v for v in seen.node.inputs if v is not None]) > 2
    ):
        return None
    transposed = seen.node.op_type == "ConvTranspose"
    numbers: Numbers = {"weight": given[1], "bias": given.get(2), "transposed": transposed}
    return "convolution", {**numbers, "groups": seen.number("group", 1)}


def _gemm(seen: _Node, given: Parameters) -> tuple[str, Numbers] | None:
    bias = given.get(2)
    if 1 not in given or seen.number("transA", 0) or len(given[1].shape) != 2:
        return None
    if bias is None and len([v for v in seen.node.inputs if v is not None]) > 2:
        return None
    if bias is not None and (not bias.shape or math.prod(bias.shape[:-1]) != 1):
        return None
    transposed = not seen.number("transB", 0)
    return "linear", {"weight": given[1], "bias": bias, "transposed": transposed}


def _matmul(seen: _Node, given: Parameters) -> tuple[str, Numbers] | None:
    if 1 not in given or 0 in given or len(given[1].shape) != 2 or len(seen.shape) < 2:
        return None
    return "linear", {"weight": given[1], "bias": None, "transposed": True}


def _batch_norm(seen: _Node, given: Parameters) -> tuple[str, Numbers] | None:
    if seen.number("training_mode", 0) or any(slot not in given for slot in range(1, 5)):
        return None
    roles = ("weight", "bias", "mean", "variance")
    return "per channel", {role: given[k + 1] for k, role in enumerate(roles)}


def _instance_norm(seen: _Node, given: Parameters) -> tuple[str, Numbers] | None:
    if 1 not in given or 2 not in given:
        return None
    return "per channel", {"weight": given[1], "bias": given[2]}


def _layer_norm(seen: _Node, given: Parameters) -> tuple[str, Numbers] | None:
    first = seen.dim("axis", -1)
    wanted = seen.shape[first:]
    if any(
        given[k].shape != wanted if k in given else v is not None
        for k, v in enumerate(seen.node.inputs)
        if k
    ):
        return None
    return "layer norm", {"first": first, "weight": given.get(1), "bias": given.get(2)}


def _group_norm(seen: _Node, given: Parameters) -> tuple[str, Numbers] | None:
    if seen.opset < _FIRST_GROUP_NORM_BY_CHANNEL or 1 not in given or 2 not in given:
        return None
    groups = seen.number("num_groups", 1)
    return "group norm", {"groups": groups, "weight": given[1], "bias": given[2]}


def _pad(seen: _Node, given: Parameters) -> tuple[str, Numbers] | None:
    return "elementwise", {"dims": seen.resized} if _only_grows(seen) else {
        "dims": range(len(seen.shape))
    }


def _only_grows(seen: _Node) -> bool:
    """Whether an axis whose size stays is not padded: one end could grow and the other shrink."""
    pads = seen.ints("pads", 1)
    if pads is None or seen.constant(3) is not None:
        return False
    half = len(pads) // 2
    return all(not (pads[k] or pads[k + half]) for k in range(half) if k not in seen.resized)


def _resize(seen: _Node, given: Parameters) -> tuple[str, Numbers] | None:
    cropped = seen.node.attributes.get_string("coordinate_transformation_mode", "")
    if cropped == "tf_crop_and_resize":
        return None
    sized = len(seen.node.inputs) > _RESIZE_SIZES and seen.node.inputs[_RESIZE_SIZES] is not None
    return "elementwise", {"dims": seen.resized, **(_sizes(seen, _RESIZE_SIZES) if sized else {})}


def _softmax(seen: _Node, given: Parameters) -> tuple[str, Numbers] | None:
    return "normalise", {}


def _along(seen: _Node, given: Parameters) -> tuple[str, Numbers] | None:
    """What goes along one axis and leaves the others alone, such as TopK."""
    if seen.node.op_type == "CumSum":
        axes = seen.ints("axis", 1)
        return None if axes is None else ("elementwise", {"dims": seen.dims(axes)})
    return "elementwise", {"dims": [seen.dim("axis", -1)]}


def _arg(seen: _Node, given: Parameters) -> tuple[str, Numbers] | None:
    dim = seen.dim("axis", 0)
    return "reduce", {"dims": [dim], "keep": bool(seen.number("keepdims", 1)), "ordered": True}


def _concat(seen: _Node, given: Parameters) -> tuple[str, Numbers] | None:
    return "concat", {"dim": seen.number("axis", 1) % len(seen.outputs[0])}


def _gather(seen: _Node, given: Parameters) -> tuple[str, Numbers] | None:
    indices = seen.constant(1)
    dim = seen.dim("axis", 0)
    if 0 in given or (indices is not None and indices.ndim != 1):
        return None
    count = seen.shape[dim]
    beyond: Sequence[int] = (
        [] if indices is None else indices[(indices < -count) | (indices >= count)].tolist()
    )
    if indices is None or len(beyond):
        missing = f"there is no channel {beyond[0]} among {count}" if len(beyond) else None
        told = {"untaken": missing or "its indices are computed"} if dim == 1 else {}
        return "barrier", told
    return "select", {"dim": dim, "reads": [indices % count]}


def _slice(seen: _Node, given: Parameters) -> tuple[str, Numbers] | None:
    starts, ends = seen.ints("starts", 1), seen.ints("ends", 2)
    if starts is None or ends is None:
        return None
    optional = [v is not None for v in seen.node.inputs[3:]]
    axes, steps = seen.ints("axes", 3), seen.ints("steps", 4)
    if (axes is None and any(optional[:1])) or (steps is None and any(optional[1:2])):
        return None
    dims = seen.dims(list(range(len(starts))) if axes is None else axes)
    parts = [
        slice(*part)
        for part in zip(starts, _ends(ends, steps), steps or [1] * len(starts), strict=True)
    ]
    if len(dims) != 1:
        return "elementwise", {"dims": dims}
    return "select", {"dim": dims[0], "reads": [np.arange(seen.shape[dims[0]])[parts[0]]]}


def _ends(ends: Sequence[int], steps: Sequence[int] | None) -> list[int | None]:
    """Ends as Python takes them: with a negative step, one before the first channel is None."""
    backwards = [step < 0 for step in steps] if steps else [False] * len(ends)
    return [
        None if back and end < -(2**30) else end for end, back in zip(ends, backwards, strict=True)
    ]


def _split(seen: _Node, given: Parameters) -> tuple[str, Numbers] | None:
    dim = seen.dim("axis", 0)
    sizes = [shape[dim] for shape in seen.outputs if shape]
    if len(sizes) != len(seen.node.outputs) or sum(sizes) != seen.shape[dim]:
        return None
    ends = np.cumsum(sizes)
    return "select", {
        "dim": dim,
        "reads": [np.arange(e - n, e) for e, n in zip(ends, sizes, strict=True)],
    }


def _transpose(seen: _Node, given: Parameters) -> tuple[str, Numbers] | None:
    dims = seen.ints("perm") or list(range(len(seen.shape)))[::-1]
    return "transpose", {"dims": dims}


def _expand(seen: _Node, given: Parameters) -> tuple[str, Numbers] | None:
    if len(seen.outputs[0]) != len(seen.shape):
        return None
    return "elementwise", {"dims": seen.resized, **_sizes(seen)}


def _depth_to_space(seen: _Node, given: Parameters) -> tuple[str, Numbers] | None:
    block = seen.number("blocksize", 1) ** 2
    if seen.node.attributes.get_string("mode", "DCR") != "CRD":
        return None
    return "pixel shuffle", {"block": block, "up": True}


def _size(seen: _Node, given: Parameters) -> tuple[str, Numbers] | None:
    return "size", {}


_READ: Mapping[str, Callable[[_Node, Parameters], tuple[str, Numbers] | None]] = {
    "ArgMax": _arg,
    "ArgMin": _arg,
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv,
    "CumSum": _along,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Gather": _gather,
    "Gemm": _gemm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _softmax,
    "LpNormalization": _softmax,
    "MatMul": _matmul,
    "Pad": _pad,
    "RMSNormalization": _layer_norm,
    "Resize": _resize,
    "Shape": _size,
    "Size": _size,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "TopK": _along,
    "Transpose": _transpose,
}
