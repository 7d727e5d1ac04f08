"""ONNX models with grouped convolutions that we did not write, and ONNX Runtime to run them.

They are made with onnx.helper. ONNX Runtime runs without optimisations and on one thread, so that
it computes the graph as it is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from groupfx.passes import SplitGroupedConv

Array = np.ndarray[Any, np.dtype[Any]]


def numbers(*shape: int, seed: int = 0, dtype: type = np.float32) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def value(name: str, shape: Sequence[int | str], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    x: Sequence[int | str],
    tensors: dict[str, Array],
    *,
    opset: int = 17,
    ir_version: int = 8,
    outputs: Sequence[str] = ("y",),
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model with the input `x` and outputs of unnamed sizes."""
    axes = [f"d{k}" for k in range(len(x))]
    graph = helper.make_graph(
        nodes,
        "foreign",
        [value("x", x, kind)],
        [value(name, axes, kind) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


@dataclass(frozen=True)
class ForeignConv:
    """One grouped convolution: shapes, attributes, and what else is to be seen."""

    x: tuple[int, ...]
    w: tuple[int, ...]
    groups: int
    attributes: dict[str, Any] = field(default_factory=dict)
    bias: bool = True
    op: str = "Conv"
    opset: int = 17

    @property
    def encoded(self) -> dict[str, Any]:
        """The attributes as a file holds them."""
        return {k: v.encode() if isinstance(v, str) else v for k, v in self.attributes.items()}

    @property
    def model(self) -> onnx.ModelProto:
        out = self.w[1] * self.groups if self.op == "ConvTranspose" else self.w[0]
        tensors = {"c.weight": numbers(*self.w, seed=1)}
        if self.bias:
            tensors["c.bias"] = numbers(out, seed=2)
        node = helper.make_node(
            self.op, ["x", *tensors], ["y"], name="c", group=self.groups, **self.attributes
        )
        return model_of([node], ("N", *self.x[1:]), tensors, opset=self.opset)


CASES = {
    "opset 11": ForeignConv((2, 6, 7, 5), (10, 3, 3, 3), 2, opset=11),
    "opset 13": ForeignConv((2, 6, 7, 5), (15, 2, 3, 3), 3, opset=13),
    "opset 17, no bias": ForeignConv((2, 15, 7, 5), (10, 3, 3, 3), 5, bias=False),
    "opset 21": ForeignConv((2, 6, 11, 7), (14, 3, 5, 3), 2, {"kernel_shape": [5, 3]}, opset=21),
    "depthwise": ForeignConv((2, 7, 7, 5), (7, 1, 3, 3), 7),
    "multiplier": ForeignConv((2, 5, 7, 5), (15, 1, 3, 3), 5),
    "strides": ForeignConv((2, 6, 11, 13), (10, 3, 3, 3), 2, {"strides": [2, 3], "pads": [1] * 4}),
    "dilations": ForeignConv((2, 6, 11, 13), (10, 3, 3, 3), 2, {"dilations": [2, 3]}),
    "asymmetric pads": ForeignConv((2, 6, 7, 5), (10, 3, 3, 3), 2, {"pads": [0, 2, 1, 3]}),
    "SAME_UPPER": ForeignConv(
        (2, 6, 7, 5), (10, 3, 2, 3), 2, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}
    ),
    "SAME_LOWER": ForeignConv(
        (2, 6, 7, 5), (10, 3, 2, 3), 2, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}
    ),
    "VALID": ForeignConv((2, 6, 7, 5), (10, 3, 3, 3), 2, {"auto_pad": "VALID"}),
    "1-d": ForeignConv((2, 6, 11), (10, 3, 5), 2, {"pads": [2, 1]}),
    "3-d": ForeignConv((2, 6, 5, 7, 3), (10, 3, 3, 2, 3), 2, {"pads": [1] * 6}, opset=11),
    "transposed": ForeignConv((2, 6, 5, 7), (6, 5, 3, 3), 3, op="ConvTranspose"),
    "transposed, output_padding": ForeignConv(
        (2, 6, 5, 7),
        (6, 5, 3, 3),
        2,
        {"strides": [2, 3], "pads": [1] * 4, "output_padding": [1, 2]},
        op="ConvTranspose",
    ),
    "transposed, output_shape": ForeignConv(
        (2, 6, 5, 7),
        (6, 5, 3, 3),
        2,
        {"strides": [2, 2], "output_shape": [11, 14]},
        op="ConvTranspose",
        opset=11,
    ),
    "transposed, 1-d, no bias": ForeignConv(
        (2, 15, 7), (15, 2, 3), 5, {"strides": [2]}, op="ConvTranspose", bias=False
    ),
    "transposed, 3-d": ForeignConv(
        (2, 6, 3, 2, 5), (6, 5, 3, 2, 3), 3, op="ConvTranspose", opset=21
    ),
}


def run(proto: onnx.ModelProto, **inputs: Array) -> list[Array]:
    """The outputs, as ONNX Runtime computes the graph that is written, node by node."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    data = proto.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, inputs)]


def difference(first: Sequence[Array], second: Sequence[Array]) -> float:
    """The largest difference of any output, relative to its largest value."""
    assert len(first) == len(second)
    worst = 0.0
    for one, other in zip(first, second, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        wide, gap = one.astype(np.float64), one.astype(np.float64) - other.astype(np.float64)
        worst = max(worst, float(np.abs(gap).max() / np.abs(wide).max()))
    return worst


def norm_model(opset: int = 17, **attributes: Any) -> onnx.ModelProto:
    names = ["weight", "bias", "running_mean", "running_var"]
    tensors = {"conv1.weight": numbers(10, 3, 3, 3)} | {
        f"bn1.{name}": np.abs(numbers(10, seed=k)) + 0.1 for k, name in enumerate(names)
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv1.weight"], ["c"], name="conv1", group=2),
        helper.make_node(
            "BatchNormalization", ["c", *list(tensors)[1:]], ["b"], name="bn1", **attributes
        ),
        helper.make_node("Relu", ["b"], ["y"], name="relu"),
    ]
    return model_of(nodes, ("N", 6, 7, 5), tensors, opset=opset)


TAKE_ALL = (SplitGroupedConv(depthwise="split"),)
"""A pass that leaves no grouped convolution out."""
