"""What the nodes of an ONNX graph take that are no convolutions and lie in no stream of one.

No form changes them. They count so that what is expected of a model is not what is expected of its
convolutions alone: those of a transformer's block are a part of it.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from ...plan.cost import OnnxRuntime, Work
from ...plan.machine import Machine
from ..graph.conv_nodes import Shapes

_PRODUCTS = frozenset({"Gemm", "MatMul"})
# Passes over what the larger side holds: a few operations a value, some of them slow.
_PASSES = {"LayerNormalization": 4, "GroupNormalization": 4, "InstanceNormalization": 4}
_PASSES |= {"Softmax": 8, "ReduceMean": 1, "ReduceSum": 1, "Transpose": 4, "Concat": 1, "Split": 1}
_PASSES |= {"Slice": 1, "Gather": 1, "Pad": 1, "Resize": 1, "PRelu": 1, "Elu": 8, "Softplus": 8}
_PASSES |= {"MaxPool": 2, "AveragePool": 2, "GlobalAveragePool": 1, "Sub": 1, "Where": 1}


def others(model: ir.Model, shapes: Shapes, batch: int, machine: Machine) -> float:
    """Microseconds for so many samples; what has no known size counts as a node."""
    price = OnnxRuntime(Work(1, 1), machine)
    return sum(_of(node, shapes, batch, price) for node in model.graph if not node.domain)


def _of(node: ir.Node, shapes: Shapes, batch: int, price: OnnxRuntime) -> float:
    written = _values(node.outputs[0], shapes, batch)
    read = max((_values(value, shapes, batch) for value in node.inputs), default=0)
    if node.op_type in _PRODUCTS:
        first = node.inputs[0]
        columns = _sizes(first, shapes, batch)[-1:]
        return written * math.prod(columns) / price.machine.plain_pointwise / 1e3
    return price.copy(max(read, written)) * _PASSES.get(node.op_type, 0)


def _values(value: ir.Value | None, shapes: Shapes, batch: int) -> int:
    sizes = _sizes(value, shapes, batch)
    return math.prod(sizes) if sizes else 0


def _sizes(value: ir.Value | None, shapes: Shapes, batch: int) -> tuple[int, ...]:
    """Those of a value, an open one in front taken for the batch; none where others are open."""
    if value is None or value.is_initializer():
        return ()
    first, *rest = tuple(shapes.get(value.name or "") or value.shape or ()) or (None,)
    known = [size for size in rest if isinstance(size, int)]
    if len(known) < len(rest) or first is None:
        return ()
    return (first if isinstance(first, int) else batch, *known)
