"""ONNX operators in the words of the folding rules, each with the numbers that its rule needs.

What is not here, or has attributes that no rule takes, is a barrier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from ...folding.wiring import Parameter
from ...plan.channels import takes_all
from ..graph.conv_nodes import FIRST_IR_WITH_DEFAULTS, constant_of


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ELEMENTWISE = _words(
    """
    Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp Floor
    Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu
    Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh
    ThresholdedRelu
    Dropout DynamicQuantizeLinear
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
    Flatten Squeeze Unsqueeze
    """
)
_FIRST_BROADCAST = 7
"""Before, a second operand of fewer dimensions began at `axis`, and a slope at the channels."""
_FIRST_SOFTMAX_OF_ONE_AXIS = 13
_FIRST_GROUP_NORM_BY_CHANNEL = 21
_RESIZE_SIZES = 3


@dataclass(frozen=True)
class Seen:
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


def keeps_channels(node: ir.Node) -> bool:
    """Whether each channel that a node gives is made of that channel alone of what it reads."""
    return node.op_type in _ELEMENTWISE | _BINARY | _POOLS | {"BatchNormalization"}


Numbers = dict[str, Any]
Found = tuple[str, Numbers]


Parameters = Mapping[int, Parameter]


def rule_of(seen: Seen, parameters: Parameters) -> Found | None:
    """The rule of an operator, with what it needs to know; None for a barrier."""
    read = _READ.get(seen.node.op_type)
    return None if read is None else read(seen, parameters)


def _always(rule: str, **numbers: Any) -> Read:
    return lambda seen, given: (rule, dict(numbers))


def _binary(seen: Seen, given: Parameters) -> Found | None:
    ranks = {len(shape) for shape in seen.shapes if shape is not None}
    if seen.opset < _FIRST_BROADCAST and len(ranks) > 1:
        return None
    return "binary", {}


def _pool(seen: Seen, given: Parameters) -> Found | None:
    return "elementwise", {"dims": range(2, len(seen.shape))}


def _reshape(seen: Seen, given: Parameters) -> Found | None:
    """A dimension of which the new shape says 0 is copied from the input."""
    wanted = seen.ints("shape", 1)
    copied: tuple[int, ...] = ()
    if wanted is not None and not seen.number("allowzero", 0):
        copied = tuple(k for k, size in enumerate(wanted) if size == 0)
    return "reshape", {"copied": copied, **_sizes(seen)}


def _sizes(seen: Seen, slot: int = 1) -> Numbers:
    """The sizes that an input asks for, None for each where it is computed."""
    found = seen.constant(slot)
    rank = len(seen.outputs[0])
    if found is None or found.ndim != 1 or len(found) != rank:
        return {"sizes": [None] * rank}
    return {"sizes": [int(size) for size in found]}


def _reduction(seen: Seen, given: Parameters) -> Found | None:
    axes = seen.ints("axes", 1)
    if axes is None and len([v for v in seen.node.inputs if v is not None]) > 1:
        return None
    if not axes:
        if seen.number("noop_with_empty_axes", 0):
            return "elementwise", {}
        axes = list(range(len(seen.shape)))
    return "reduce", {"dims": seen.dims(axes), "keep": bool(seen.number("keepdims", 1))}


def _conv(seen: Seen, given: Parameters) -> Found | None:
    if 1 not in given or (
        2 not in given and len([v for v in seen.node.inputs if v is not None]) > 2
    ):
        return None
    transposed = seen.node.op_type == "ConvTranspose"
    numbers: Numbers = {"weight": given[1], "bias": given.get(2), "transposed": transposed}
    return "convolution", {**numbers, "groups": seen.number("group", 1)}


def _gemm(seen: Seen, given: Parameters) -> Found | None:
    bias = given.get(2)
    if 1 not in given or seen.number("transA", 0) or len(given[1].shape) != 2:
        return None
    if bias is None and len([v for v in seen.node.inputs if v is not None]) > 2:
        return None
    if bias is not None and (not bias.shape or math.prod(bias.shape[:-1]) != 1):
        return None
    transposed = not seen.number("transB", 0)
    return "linear", {"weight": given[1], "bias": bias, "transposed": transposed}


def _matmul(seen: Seen, given: Parameters) -> Found | None:
    if not given:
        return "product", {}
    if 1 not in given or 0 in given or len(given[1].shape) != 2 or len(seen.shape) < 2:
        return None
    return "linear", {"weight": given[1], "bias": None, "transposed": True}


def _dense_input(seen: Seen, given: Parameters) -> Found | None:
    """A convolution or a product of whole numbers, whose scales are inputs of their own."""
    weight, bias, others, scales = _QUANTIZED[seen.node.op_type]
    made = given.get(weight)
    if made is None or any(k not in given or math.prod(given[k].shape) != 1 for k in others):
        return None
    used = [k for k, value in enumerate(seen.node.inputs) if value is not None and k]
    # The zero point of the input may be computed: it is one number, or one a row of a matrix.
    computed = {2} if seen.node.op_type.endswith("Integer") else set()
    if any(k not in given and k not in computed for k in used):
        return None
    convolution = "Conv" in seen.node.op_type
    rows = 0 if convolution else 1
    each = tuple((given[k], rows) for k in scales if k in given and given[k].shape)
    if any(len(scale.shape) > 1 for scale, _ in each) or len(made.shape) < 2:
        return None
    scaled = tuple(held for held in each if math.prod(held[0].shape) > 1)
    made = replace(made, along=scaled, nonzero=None)
    if convolution:
        numbers = {"groups": seen.number("group", 1), "transposed": False}
        return "convolution", {"weight": made, "bias": given.get(bias), **numbers}
    return (
        None
        if len(made.shape) != 2
        else ("linear", {"weight": made, "bias": None, "transposed": True})
    )


# Of each: its weight, its bias, what has to be one number, and what there may be one of a row.
_QUANTIZED: Mapping[str, tuple[int, int, tuple[int, ...], tuple[int, ...]]] = {
    "ConvInteger": (1, -1, (), (3,)),
    "MatMulInteger": (1, -1, (), (3,)),
    "QLinearConv": (3, 8, (1, 2, 6, 7), (4, 5)),
    "QLinearMatMul": (3, -1, (1, 2, 6, 7), (4, 5)),
}


def _scales(seen: Seen, given: Parameters) -> Found | None:
    """QuantizeLinear and DequantizeLinear: scales that are computed are those of all channels."""
    held = [k for k, value in enumerate(seen.node.inputs) if value is not None and k]
    sizes = [math.prod(seen.shapes[k] or ()) for k in held]
    if any(len(seen.shapes[k] or ()) > 1 for k in held):
        return None
    if any(k not in given and size != 1 for k, size in zip(held, sizes, strict=True)):
        return None
    numbers = {"scale": given.get(1), "zero": given.get(2)}
    return "quantize", {"dim": seen.dim("axis", 1), **numbers}


def _batch_norm(seen: Seen, given: Parameters) -> Found | None:
    if (
        seen.number("training_mode", 0)
        or not seen.number("spatial", 1)
        or any(slot not in given for slot in range(1, 5))
    ):
        return None
    roles = ("weight", "bias", "mean", "variance")
    return "per channel", {role: given[k + 1] for k, role in enumerate(roles)}


def _instance_norm(seen: Seen, given: Parameters) -> Found | None:
    if 1 not in given or 2 not in given:
        return None
    return "per channel", {"weight": given[1], "bias": given[2]}


def _layer_norm(seen: Seen, given: Parameters) -> Found | None:
    first = seen.dim("axis", -1)
    wanted = seen.shape[first:]
    if any(
        given[k].shape != wanted if k in given else v is not None
        for k, v in enumerate(seen.node.inputs)
        if k
    ):
        return None
    return "layer norm", {"first": first, "weight": given.get(1), "bias": given.get(2)}


def _group_norm(seen: Seen, given: Parameters) -> Found | None:
    if 1 not in given or 2 not in given:
        return None
    numbers: Numbers = {"groups": seen.number("num_groups", 1)}
    if seen.opset < _FIRST_GROUP_NORM_BY_CHANNEL:
        numbers["per_group"] = True
    return "group norm", {**numbers, "weight": given[1], "bias": given[2]}


def _pad(seen: Seen, given: Parameters) -> Found | None:
    return "elementwise", {"dims": seen.resized} if _only_grows(seen) else {
        "dims": range(len(seen.shape))
    }


def _only_grows(seen: Seen) -> bool:
    """Whether an axis whose size stays is not padded: one end could grow and the other shrink."""
    pads, named = seen.ints("pads", 1), seen.ints("axes", 3)
    if pads is None or (named is None and len(seen.node.inputs) > 3 and seen.node.inputs[3]):
        return False
    half = len(pads) // 2
    axes = list(range(half)) if named is None else seen.dims(named)
    return all(
        not (pads[k] or pads[k + half]) for k, axis in enumerate(axes) if axis not in seen.resized
    )


def _resize(seen: Seen, given: Parameters) -> Found | None:
    cropped = seen.node.attributes.get_string("coordinate_transformation_mode", "")
    if cropped == "tf_crop_and_resize":
        return None
    sized = len(seen.node.inputs) > _RESIZE_SIZES and seen.node.inputs[_RESIZE_SIZES] is not None
    return "elementwise", {"dims": seen.resized, **(_sizes(seen, _RESIZE_SIZES) if sized else {})}


def _softmax(seen: Seen, given: Parameters) -> Found | None:
    if seen.node.op_type == "LpNormalization" or seen.opset >= _FIRST_SOFTMAX_OF_ONE_AXIS:
        return "normalise", {"dims": [seen.dim("axis", -1)]}
    return "normalise", {"dims": range(seen.dim("axis", 1), len(seen.shape))}


def _mean_variance(seen: Seen, given: Parameters) -> Found | None:
    return "normalise", {"dims": seen.dims(seen.ints("axes") or [0, 2, 3])}


def _hardmax(seen: Seen, given: Parameters) -> Found | None:
    """The first of those that are greatest: their order is seen."""
    first = seen.dim("axis", 1 if seen.opset < _FIRST_SOFTMAX_OF_ONE_AXIS else -1)
    last = len(seen.shape) if seen.opset < _FIRST_SOFTMAX_OF_ONE_AXIS else first + 1
    return "elementwise", {"dims": range(first, last)}


def _along(seen: Seen, given: Parameters) -> Found | None:
    """What goes along one axis and leaves the others alone, such as TopK."""
    if seen.node.op_type == "CumSum":
        axes = seen.ints("axis", 1)
        return None if axes is None else ("elementwise", {"dims": seen.dims(axes)})
    return "elementwise", {"dims": [seen.dim("axis", -1)]}


def _arg(seen: Seen, given: Parameters) -> Found | None:
    dim = seen.dim("axis", 0)
    return "reduce", {"dims": [dim], "keep": bool(seen.number("keepdims", 1)), "ordered": True}


def _concat(seen: Seen, given: Parameters) -> Found | None:
    return "concat", {"dim": seen.number("axis", 1) % len(seen.outputs[0])}


def _gather(seen: Seen, given: Parameters) -> Found | None:
    indices = seen.constant(1)
    dim = seen.dim("axis", 0)
    if 0 in given or (indices is not None and (indices.ndim > 1 or not indices.size)):
        return None
    count = seen.shape[dim]
    beyond: Sequence[int] = (
        [] if indices is None else indices[(indices < -count) | (indices >= count)].tolist()
    )
    if indices is None or len(beyond):
        missing = f"there is no channel {beyond[0]} among {count}" if len(beyond) else None
        told = {"untaken": missing or "its indices are computed"} if dim == 1 else {}
        return "barrier", told
    if indices.ndim == 0:
        return "pick", {"dim": dim, "picked": [int(indices) % count]}
    return "select", {"dim": dim, "reads": [indices % count]}


def _slice(seen: Seen, given: Parameters) -> Found | None:
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
    cut = [k for k, part in enumerate(parts) if not takes_all(part)] or [*range(len(parts))][:1]
    if len(cut) != 1:
        return "elementwise", {"dims": [dims[k] for k in cut]}
    dim, part = dims[cut[0]], parts[cut[0]]
    reads = [np.arange(seen.shape[dim])[part]]
    return "select", {"dim": dim, "reads": reads, "slice": True, "whole": takes_all(part)}


def _ends(ends: Sequence[int], steps: Sequence[int] | None) -> list[int | None]:
    """Ends as Python takes them: with a negative step, one before the first channel is None."""
    backwards = [step < 0 for step in steps] if steps else [False] * len(ends)
    return [
        None if back and end < -(2**30) else end for end, back in zip(ends, backwards, strict=True)
    ]


def _split(seen: Seen, given: Parameters) -> Found | None:
    dim = seen.dim("axis", 0)
    sizes = [shape[dim] for shape in seen.outputs if shape]
    if len(sizes) != len(seen.node.outputs) or sum(sizes) != seen.shape[dim]:
        return None
    ends = np.cumsum(sizes)
    return "select", {
        "dim": dim,
        "slice": True,
        "reads": [np.arange(e - n, e) for e, n in zip(ends, sizes, strict=True)],
    }


def _transpose(seen: Seen, given: Parameters) -> Found | None:
    dims = seen.ints("perm") or list(range(len(seen.shape)))[::-1]
    return "transpose", {"dims": dims}


def _expand(seen: Seen, given: Parameters) -> Found | None:
    if len(seen.outputs[0]) != len(seen.shape):
        return None
    return "elementwise", {"dims": seen.resized, **_sizes(seen)}


def _depth_to_space(seen: Seen, given: Parameters) -> Found | None:
    """Depth to space has a mode; space to depth puts the channels inside, as the mode DCR does."""
    up = seen.node.op_type == "DepthToSpace"
    mode = seen.node.attributes.get_string("mode", "DCR")
    block = seen.number("blocksize", 1) ** 2
    return "pixel shuffle", {"block": block, "up": up, "outside": not up or mode == "DCR"}


def _size(seen: Seen, given: Parameters) -> Found | None:
    return "size", {}


Read = Callable[[Seen, Parameters], Found | None]

_READ: Mapping[str, Read] = {
    **dict.fromkeys(_ELEMENTWISE, _always("elementwise")),
    **dict.fromkeys(("Dropout", "Identity"), _always("elementwise", same=True)),
    **dict.fromkeys(_BINARY, _binary),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(_SHAPES, _always("reshape")),
    **dict.fromkeys(_QUANTIZED, _dense_input),
    "ArgMax": _arg,
    "ArgMin": _arg,
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv,
    "CumSum": _along,
    "DepthToSpace": _depth_to_space,
    "DequantizeLinear": _scales,
    "Expand": _expand,
    "Gather": _gather,
    "Gemm": _gemm,
    "GroupNormalization": _group_norm,
    "Hardmax": _hardmax,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _softmax,
    "LpNormalization": _softmax,
    "MatMul": _matmul,
    "MeanVarianceNormalization": _mean_variance,
    "Pad": _pad,
    "QuantizeLinear": _scales,
    "RMSNormalization": _layer_norm,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _size,
    "Size": _size,
    "Slice": _slice,
    "Softmax": _softmax,
    "SpaceToDepth": _depth_to_space,
    "Split": _split,
    "TopK": _along,
    "Transpose": _transpose,
    "Upsample": _resize,
}
