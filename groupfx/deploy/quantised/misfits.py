"""What does not fit in a quantised convolution, and what cannot be cut along its channels."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from ..graph.conv_nodes import ConvNode
from ..graph.node_names import node_name
from .convs import QuantisedConv, quantised_conv
from .tensors import QuantisedTensor, kind_of, sizes_of


def misfit(conv: ConvNode) -> str | None:
    """Why a convolution cannot be cut or joined by its channels; None where it can.

    Onnx's checker passes over most of it. A convolution in floating point has none of it.
    """
    found = quantised_conv(conv)
    return None if found is None else next(_problems(found), None)


def _problems(conv: QuantisedConv) -> Iterator[str]:
    operands = {"weight": conv.weight, "bias": conv.bias, "input": conv.data, "output": conv.result}
    for what, tensor in operands.items():
        if tensor is not None:
            yield from _of(what, tensor, conv)


def _of(what: str, tensor: QuantisedTensor, conv: QuantisedConv) -> Iterator[str]:
    maker = tensor.node or conv.conv.node
    name = f"{maker.op_type} {node_name(maker)!r}"
    if tensor.block:
        yield (
            f"{name} scales its {what} in blocks of {tensor.block} along axis {tensor.axis}: only "
            "one scale, or one a channel, can be cut"
        )
    shape = _shape(what, conv)
    if tensor.axis is not None and not 0 <= tensor.axis < len(shape):
        yield f"{name} has axis={tensor.axis}, and its {what} has {len(shape)} dimensions"
    else:
        yield from _sizes(name, what, tensor, shape)
    own, zero = kind_of(tensor.stored), kind_of(tensor.zero_point)
    if None not in (own, zero) and own is not zero and tensor.zero_point is not None:
        yield (
            f"{name} has the zero point {tensor.zero_point.name!r} in {_called(zero)}, and its "
            f"{what} is in {_called(own)}"
        )


def _sizes(name: str, what: str, tensor: QuantisedTensor, shape: tuple[int, ...]) -> Iterator[str]:
    """Scales and zero points are one number, or one for each position along the axis."""
    for role, value in (("scale", tensor.scale), ("zero point", tensor.zero_point)):
        sizes = sizes_of(value)
        wanted = 1 if tensor.axis is None else shape[tensor.axis]
        count = None if sizes is None else _count(sizes)
        if value is None or count in (None, 1, wanted):
            continue
        along = "one" if tensor.axis is None else f"{wanted} along axis {tensor.axis}"
        yield (
            f"{name} has the {role} {value.name!r} of {count} numbers, and its {what} "
            f"{list(shape)} takes {along}"
        )


def _count(sizes: tuple[int | ir.SymbolicDim, ...]) -> int | None:
    total = 1
    for size in sizes:
        if not isinstance(size, int):
            return None
        total *= size
    return total


def _shape(what: str, conv: QuantisedConv) -> tuple[int, ...]:
    """The shape of an operand, of which the batch and sizes other than channels do not matter."""
    spec = conv.conv.spec
    if what == "weight":
        rows, columns = spec.out_channels, spec.in_channels // spec.groups
        if spec.transposed:
            rows, columns = spec.in_channels, spec.out_channels // spec.groups
        return (rows, columns, *spec.kernel_size)
    if what == "bias":
        return (spec.out_channels,)
    return (1, spec.in_channels if what == "input" else spec.out_channels, *(1,) * spec.dims)


def _called(kind: ir.DataType | None) -> str:
    return "?" if kind is None else kind.name.lower()
