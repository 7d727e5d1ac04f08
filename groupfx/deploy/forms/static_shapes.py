"""The shapes of an ONNX graph in numbers, as onnx infers them on inputs of given sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
import onnx_ir as ir
from onnxscript.optimizer import fold_constants

from ..graph.conv_nodes import Shapes
from ..quantised.contrib import stand_in

_OF_THEIR_INPUTS_SHAPE = frozenset({"GroupNormalization", "MeanVarianceNormalization"})
_MOST_BYTES_OF_SCALES = 64
_SIZES = ((2, 64), (3, 128))
"""The batch, and the first of other sizes, where a file leaves them open: strides halve them."""
PARAMETER_TYPES = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
)


def static_shapes(model: ir.Model, inputs: Mapping[str, tuple[int, ...]] | None = None) -> Shapes:
    """The shapes of the main graph that are numbers, by the names of values.

    Those of the graph's inputs are given as `inputs`; where they are not, the batch is 1.

    Empty where onnx's shape inference fails. The model is not changed.
    """
    work = model.clone()
    for value in tuple(work.graph.inputs):
        given = (inputs or {}).get(value.name or "")
        if given is not None:
            value.shape = ir.Shape(given)
        elif not value.is_initializer():
            _set_batch_one(value)
    for name, value in tuple(work.graph.initializers.items()):
        if _is_weight(value.const_value):
            del work.graph.initializers[name]
            _declare(value)
            if not value.is_graph_input():
                work.graph.inputs.append(value)
    for node in work.graph:
        if node.op_type in _OF_THEIR_INPUTS_SHAPE and not node.domain:
            _stand_in(node)
        stand_in(node)
    found = _inferred(work)
    unknown = any(v.name not in found for node in work.graph for v in node.outputs)
    if unknown and any(node.op_type == "Shape" for node in work.graph):
        # Sizes that the graph computes, as files of old exporters do: onnx follows few of them.
        fold_constants(work, onnx_shape_inference=True)
        found |= _inferred(work)
    return found


def _inferred(model: ir.Model) -> dict[str, tuple[int, ...]]:
    try:
        inferred = onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True)
    except Exception:
        # What the C++ code raises on a graph that it cannot digest is not of one kind.
        return {}
    graph = inferred.graph
    found = {}
    for info in (*graph.input, *graph.value_info, *graph.output):
        shape = _static(info.type.tensor_type)
        if shape is not None:
            found[info.name] = shape
    return found


def _stand_in(node: ir.Node) -> None:
    """An operator that gives the shape of its input, of which onnx infers none."""
    node.op_type = "Identity"
    node.attributes.clear()
    node.resize_inputs(1)


def _is_weight(tensor: ir.TensorProtocol | None) -> bool:
    """Whether inference needs its shape only; of sizes and scales it reads the numbers."""
    if tensor is None or tensor.dtype not in PARAMETER_TYPES:
        return False
    return tensor.nbytes > _MOST_BYTES_OF_SCALES


def _declare(value: ir.Value) -> None:
    """Say what the tensor of an initialiser says, before it goes."""
    tensor = value.const_value
    if tensor is not None:
        value.shape, value.type = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)


def _set_batch_one(value: ir.Value) -> None:
    shape = value.shape
    if shape is None or len(shape) == 0 or isinstance(shape[0], int):
        return
    value.shape = ir.Shape([1, *shape[1:]])


def _static(kind: onnx.TypeProto.Tensor) -> tuple[int, ...] | None:
    if not kind.HasField("shape"):
        return None
    if not all(dim.HasField("dim_value") for dim in kind.shape.dim):
        return None
    return tuple(dim.dim_value for dim in kind.shape.dim)


def two_sizes(model: ir.Model) -> tuple[Shapes, Shapes] | None:
    """The shapes of a graph that leaves sizes open, on inputs of two sizes; None where it does not.

    None as well where they cannot be inferred for both.
    """
    given = [_sized(model, batch, first) for batch, first in _SIZES]
    if not given[0]:
        return None
    first, second = (static_shapes(model, inputs) for inputs in given)
    return (first, second) if first.keys() == second.keys() else None


def _sized(model: ir.Model, batch: int, first: int) -> dict[str, tuple[int, ...]]:
    """Shapes for the inputs that leave some size open, each symbol another one; or nothing."""
    sizes: dict[Any, int] = {}
    found = {}
    for value in model.graph.inputs:
        if value.is_initializer() or value.shape is None or value.shape.is_static():
            continue
        dims = []
        for place, dim in enumerate(value.shape):
            name = (value.name, place) if isinstance(dim, int) or not dim.value else dim.value
            own = batch if place == 0 else first + 32 * len(sizes)
            dims.append(dim if isinstance(dim, int) else sizes.setdefault(name, own))
        found[value.name or ""] = tuple(dims)
    return found
