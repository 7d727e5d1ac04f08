"""Scales and zero points that stand on the two ends of a quantised value, and must be the same.

Numbers that one operator makes with a scale and a zero point are read by another with its own: a
pair around one value, or a chain of operators on whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...graph.conv_nodes import input_of
from ...graph.node_names import told_name
from ...quantised.tensors import QuantisedTensor, is_dequantize, quantised
from .belonging import Fault

# Where operators on whole numbers say what they read, and what they make.
_READS = {
    "QLinearConv": ((0, 1, 2),),
    "QLinearMatMul": ((0, 1, 2), (3, 4, 5)),
    "QLinearAdd": ((0, 1, 2), (3, 4, 5)),
    "QLinearMul": ((0, 1, 2), (3, 4, 5)),
    "QLinearGlobalAveragePool": ((0, 1, 2),),
    "QLinearAveragePool": ((0, 1, 2),),
    "QLinearLeakyRelu": ((0, 1, 2),),
    "QLinearSigmoid": ((0, 1, 2),),
    "QGemm": ((0, 1, 2),),
}
_MAKES = {
    "QLinearConv": (6, 7),
    "QLinearMatMul": (6, 7),
    "QLinearAdd": (6, 7),
    "QLinearMul": (6, 7),
    "QLinearGlobalAveragePool": (3, 4),
    "QLinearAveragePool": (3, 4),
    "QLinearLeakyRelu": (3, 4),
    "QLinearSigmoid": (3, 4),
    "QGemm": (7, 8),
}
_KEEPS = frozenset(
    {
        *("Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Slice", "Split"),
        *("Squeeze", "Transpose", "Unsqueeze"),
    }
)
"""Operators that take whole numbers and give the same numbers."""


@dataclass(frozen=True)
class PairFault:
    """Two ends that disagree: `node` reads what it takes for something else."""

    node: ir.Node
    fault: Fault


def disagreements(graph: ir.Graph) -> Iterator[PairFault]:
    """Every node that reads whole numbers at another scale or zero point than they were made at."""
    for node in graph:
        for read in _reads(node):
            made = _made(read.stored)
            fault = None if made is None else _differ(made, read)
            if fault is not None:
                yield PairFault(_reader(node), fault)


def bad_scales(graph: ir.Graph) -> Iterator[PairFault]:
    """Every node that quantises or dequantises with a scale that is no positive number."""
    for node in graph:
        made = quantised(node)
        for tensor in (*_reads(node), *(() if made is None else (made,))):
            scales = tensor.scales
            if scales is None:
                continue
            wide = np.asarray(scales, np.float64)
            if not (np.isfinite(wide) & (wide > 0)).all():
                shown = wide[~(np.isfinite(wide) & (wide > 0))].ravel()[0]
                name = tensor.stored.name
                yield PairFault(
                    _reader(node), Fault("not finite", f"the scale of {name} is {shown:g}")
                )


def _reads(node: ir.Node) -> Iterator[QuantisedTensor]:
    if is_dequantize(node) and node.inputs[0] is not None:
        yield QuantisedTensor(node.inputs[0], input_of(node, 1), input_of(node, 2))
    for stored, scale, zero in _READS.get(node.op_type, ()):
        value = input_of(node, stored)
        if value is not None:
            yield QuantisedTensor(value, input_of(node, scale), input_of(node, zero))


def _made(value: ir.Value) -> QuantisedTensor | None:
    """The scale and zero point that a value of whole numbers was made with."""
    node = value.producer()
    while node is not None and node.op_type in _KEEPS and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None:
        return None
    places = _MAKES.get(node.op_type)
    if places is not None:
        scale, zero = (input_of(node, place) for place in places)
        return QuantisedTensor(value, scale, zero)
    return quantised(node)


def _differ(made: QuantisedTensor, read: QuantisedTensor) -> Fault | None:
    name = read.stored.name
    zeros, other_zeros = _zeros(made), _zeros(read)
    if zeros is not None and other_zeros is not None and not _same(zeros, other_zeros):
        lost = "" if other_zeros.any() else " (it was lost)"
        return Fault(
            "zero point",
            f"{name} is made with the zero point {_shown(zeros)} and read with "
            f"{_shown(other_zeros)}{lost}",
        )
    scales, others = made.scales, read.scales
    if scales is not None and others is not None and not _same(scales, others):
        return Fault(
            "scale",
            f"{name} is made with the scale {_shown(scales)} and read with {_shown(others)}",
        )
    return None


def _zeros(tensor: QuantisedTensor) -> npt.NDArray[Any] | None:
    return np.zeros(1) if tensor.zero_point is None else tensor.zero_points


def _same(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    wide = [np.ravel(a).astype(np.float64) for a in (one, other)]
    if 1 not in (wide[0].size, wide[1].size) and wide[0].size != wide[1].size:
        return False
    # A scale in float16 beside one in float32 is the same but for its rounding.
    return bool(np.isclose(wide[0], wide[1], rtol=1e-3, atol=0, equal_nan=True).all())


def _shown(values: npt.NDArray[Any]) -> str:
    flat = np.ravel(values).astype(np.float64)
    return f"{flat[0]:.4g}" + (" ..." if flat.size > 1 else "")


def _reader(node: ir.Node) -> ir.Node:
    """What computes with the numbers: the one user of a DequantizeLinear."""
    uses = tuple(node.outputs[0].uses()) if is_dequantize(node) else ()
    return uses[0].node if uses else node


def described(node: ir.Node) -> str:
    """A node in words."""
    return f"{node.op_type} {told_name(node)}"
