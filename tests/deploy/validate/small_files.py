"""Small ONNX files, written by hand, for what a validation says of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Sizes = Sequence[int | str] | None
OPSET = 17


def value(name: str, sizes: Sizes, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """An input or an output."""
    return helper.make_tensor_value_info(name, kind, sizes)


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    tensors: Mapping[str, np.ndarray],
    *,
    opset: int = OPSET,
    functions: Sequence[onnx.FunctionProto] = (),
) -> Path:
    """A file with these nodes."""
    held = [numpy_helper.from_array(np.asarray(a), n) for n, a in tensors.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, held)
    domains = {function.domain for function in functions}
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions)
    onnx.save(model, path)
    return path


def numbers(*sizes: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    """Normal random numbers."""
    return np.random.default_rng(seed).standard_normal(sizes).astype(dtype)


def conv_file(path: Path, scale: float, *, between: str = "Relu") -> Path:
    """Two convolutions, the first with groups and one filter `scale` times what it was."""
    weight = numbers(6, 2, 3, 3, seed=1)
    weight[4] *= np.float32(scale)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], "first", group=2, pads=[1, 1, 1, 1]),
        helper.make_node(between, ["a"], ["r"], "between"),
        helper.make_node("Conv", ["r", "v"], ["y"], "second"),
    ]
    tensors = {"w": weight, "b": numbers(6, seed=2), "v": numbers(5, 6, 1, 1, seed=3)}
    return write(path, nodes, [value("x", ["n", 4, 5, 7])], [value("y", ["n", 5, 5, 7])], tensors)
