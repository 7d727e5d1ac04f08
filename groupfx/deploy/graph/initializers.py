"""New initialisers of an ONNX graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir


def constant(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    """A new initialiser of `graph`, called `name`, with `_` behind it where that is taken."""
    while name in graph.initializers:
        name += "_"
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    shape, kind = ir.Shape(array.shape), ir.TensorType(tensor.dtype)
    value = ir.Value(name=name, shape=shape, type=kind, const_value=tensor)
    graph.register_initializer(value)
    return value
