"""Small ONNX models of float32 weights, and numbers that only float64 can hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

Array = npt.NDArray[Any]

RTOL = 1e-13  # some hundred roundings of float64; one rounding to float32 is 6e-8


def numbers(*shape: int, seed: int = 0, low: float = -3.0, high: float = 3.0) -> Array:
    """float64 that no float32 can hold."""
    return np.random.default_rng(seed).uniform(low, high, shape)


def weights(*shape: int, seed: int = 1) -> Array:
    """float32, as a model holds it."""
    return numbers(*shape, seed=seed, low=-1, high=1).astype(np.float32)


def one_node(
    op: str,
    inputs: list[Array | None],
    outputs: int = 1,
    opset: int = 23,
    domain: str = "",
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node: x, the first input, is fed; all others are float32 initializers."""
    names = ["x", *(f"i{k}" if each is not None else "" for k, each in enumerate(inputs[1:]))]
    made = [f"y{k}" for k in range(outputs)]
    node = helper.make_node(op, names, made, name="only", domain=domain, **attributes)
    constants = [
        numpy_helper.from_array(value.astype(np.float32) if value.dtype == float else value, name)
        for name, value in zip(names[1:], inputs[1:], strict=True)
        if value is not None
    ]
    return graph_model([node], ["x"], made, constants, opset)


def graph_model(
    nodes: list[onnx.NodeProto],
    inputs: list[str],
    outputs: list[str],
    constants: list[TensorProto] | None = None,
    opset: int = 23,
    functions: list[onnx.FunctionProto] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        constants or [],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions or [])


def close(found: Array, expected: Array | Tensor, rtol: float = RTOL) -> None:
    wanted = np.asarray(expected)
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=rtol, atol=rtol)
