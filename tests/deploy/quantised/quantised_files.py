"""Quantised convolutions written by hand, with the floats that they were made from.

The channels of the weight are of very different sizes, so that each has a scale of its own, and a
scale that goes to another channel shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, np.dtype[Any]]
Fields = dict[str, Any]
Nodes = list[onnx.NodeProto]

_RANGES = {
    "int4": (-8, 7),
    "uint4": (0, 15),
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "uint16": (0, 65535),
}
_SMALL = {"int4": ml_dtypes.int4, "uint4": ml_dtypes.uint4}
_ELEMENTS = {
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int16": TensorProto.INT16,
    "uint16": TensorProto.UINT16,
}


@dataclass(frozen=True)
class QuantisedCase:
    """A quantised convolution; sizes are of one group."""

    layout: str = "qdq"
    groups: int = 3
    inputs: int = 2
    outputs: int = 5
    kernel: tuple[int, ...] = (3, 3)
    transposed: bool = False
    per_channel: bool = True
    symmetric: bool = True
    data: str = "uint8"
    weight: str = "int8"
    bias: str | None = "int32"
    activation: str | None = None
    quantised_output: bool = True
    axis: int | None = None
    opset: int = 17
    size: int = 7
    seed: int = 0
    constants: bool = False
    fields: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def channels(self) -> tuple[int, int]:
        """Of the input and of the output."""
        return self.groups * self.inputs, self.groups * self.outputs

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """As ONNX has it."""
        rows = (
            (self.channels[0], self.outputs) if self.transposed else (self.channels[1], self.inputs)
        )
        return (*rows, *self.kernel)

    @property
    def scaled_axis(self) -> int:
        """The dimension of the weight with scales: ONNX Runtime takes 1 where it is transposed."""
        return self.axis if self.axis is not None else int(self.transposed)


def quantise(reals: Array, kind: str, *, symmetric: bool, axis: int | None) -> tuple[Array, ...]:
    """Whole numbers, scales and zero points."""
    low, high = _RANGES[kind]
    others = tuple(k for k in range(reals.ndim) if k != axis) if axis is not None else None
    least, most = np.minimum(reals.min(others), 0), np.maximum(reals.max(others), 0)
    if symmetric:
        most = np.maximum(-least, most)
        least, zero = -most, np.full(np.shape(most), (low + high + 1) // 2)
    scale = ((most - least) / (high - low)).astype(np.float32)
    if not symmetric:
        zero = np.clip(np.round(low - least / scale), low, high)
    spread = (
        (lambda a: a)
        if axis is None
        else (lambda a: a.reshape(-1, *(1,) * (reals.ndim - 1 - axis)))
    )
    numbers = np.clip(np.round(reals / spread(scale)) + spread(zero), low, high)
    own = _SMALL.get(kind, np.dtype(kind) if kind not in _SMALL else None)
    return numbers.astype(own), np.asarray(scale), np.asarray(zero).astype(own)


def floats(case: QuantisedCase) -> dict[str, Array]:
    """Weight and bias in float64."""
    generator = np.random.default_rng(case.seed)
    shape = case.weight_shape
    weight = generator.normal(size=shape)
    for axis in (0, 1):
        sizes = np.exp2(generator.integers(-3, 3, shape[axis]))
        weight *= sizes.reshape(-1, *(1,) * (len(shape) - 1 - axis))
    return {"w": weight, "b": generator.normal(size=case.channels[1])}


def quantised_file(case: QuantisedCase) -> onnx.ModelProto:
    """A file with one convolution, `conv`, whose input `x` and output `y` are floats where it can.

    That of a QLinearConv lies between a QuantizeLinear and a DequantizeLinear; ConvInteger gives
    int32.
    """
    reals = floats(case)
    axis = case.scaled_axis if case.per_channel else None
    w, ws, wz = quantise(reals["w"], case.weight, symmetric=case.symmetric, axis=axis)
    xs, xz = np.float32(0.037), np.array(117 if case.data == "uint8" else -11, case.data)
    # With an activation the range starts at 0, as a quantiser has it.
    lowest, above = _RANGES[case.data][0], 7 if case.activation is None else 0
    ys, yz = np.float32(0.31), np.array(lowest + above, case.data)
    held: dict[str, Array] = {"x_scale": np.asarray(xs), "x_zero": xz}
    held |= {"w_quantized": w, "w_scale": ws, "w_zero": wz}
    nodes = [helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"], name="qx")]
    fields: Fields = {"name": "conv", "group": case.groups, **dict(case.fields)}
    scale = np.asarray(ws * xs, np.float32)
    if case.bias == "int32":
        # A transposed one with scales along axis 1 has the same for each group.
        each = np.resize(scale, case.channels[1]) if axis == int(case.transposed) else scale.max()
        held["b_quantized"] = np.round(reals["b"] / each).astype(np.int32)
        held["b_scale"] = np.asarray(each, np.float32)
        held["b_zero"] = np.zeros_like(each, np.int32)
    elif case.bias == "float":
        held["b"] = reals["b"].astype(np.float32)
    if case.quantised_output and case.layout != "ConvInteger":
        held |= {"y_scale": np.asarray(ys), "y_zero": yz}
    make = {"QLinearConv": _operator, "ConvInteger": _integer}.get(case.layout, _qdq)
    nodes = (nodes if case.layout != "weight only" else []) + make(case, fields, axis, held)
    if case.layout == "weight only":
        del held["x_scale"], held["x_zero"]
    return _model(case, nodes, held)


def _qdq(
    case: QuantisedCase, fields: dict[str, Any], axis: int | None, held: dict[str, Array]
) -> list[onnx.NodeProto]:
    def dequantize(name: str, along: int | None) -> onnx.NodeProto:
        inputs = [f"{name}_quantized", f"{name}_scale", f"{name}_zero"]
        more = {} if along is None else {"axis": along}
        return helper.make_node("DequantizeLinear", inputs, [f"{name}d"], name=f"dq{name}", **more)

    nodes, inputs = [dequantize("w", axis)], ["x", "wd"]
    if case.layout == "qdq":
        inputs[0] = "xd"
        names = ["xq", "x_scale", "x_zero"]
        nodes.append(helper.make_node("DequantizeLinear", names, ["xd"], name="dqx"))
    if case.bias == "int32":
        nodes.append(dequantize("b", 0 if held["b_scale"].ndim else None))
        inputs.append("bd")
    elif case.bias == "float":
        inputs.append("b")
    kind = "ConvTranspose" if case.transposed else "Conv"
    nodes.append(helper.make_node(kind, inputs, ["c"], **fields))
    last = "c"
    if case.activation is not None:
        bounds = ["low", "high"] if case.activation == "Clip" else []
        held |= {"low": np.float32(0), "high": np.float32(6)} if bounds else {}
        nodes.append(helper.make_node(case.activation, ["c", *bounds], ["a"], name="act"))
        last = "a"
    if case.quantised_output:
        inputs = ["y_scale", "y_zero"]
        nodes.append(helper.make_node("QuantizeLinear", [last, *inputs], ["yq"], name="qy"))
        nodes.append(helper.make_node("DequantizeLinear", ["yq", *inputs], ["y"], name="dqy"))
    else:
        nodes[-1].output[0] = "y"
    return nodes


def _operator(
    case: QuantisedCase, fields: dict[str, Any], axis: int | None, held: dict[str, Array]
) -> list[onnx.NodeProto]:
    names = ["xq", "x_scale", "x_zero", "w_quantized", "w_scale", "w_zero", "y_scale", "y_zero"]
    if case.bias is not None:
        names.append("b_quantized")
        del held["b_scale"], held["b_zero"]
    return [
        helper.make_node("QLinearConv", names, ["yq"], **fields),
        helper.make_node("DequantizeLinear", ["yq", "y_scale", "y_zero"], ["y"], name="dqy"),
    ]


def _integer(
    case: QuantisedCase, fields: dict[str, Any], axis: int | None, held: dict[str, Array]
) -> list[onnx.NodeProto]:
    del held["w_scale"]
    return [
        helper.make_node("ConvInteger", ["xq", "w_quantized", "x_zero", "w_zero"], ["y"], **fields)
    ]


def _model(case: QuantisedCase, nodes: Nodes, held: dict[str, Array]) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()]
    if case.constants:
        made = [helper.make_node("Constant", [], [t.name], value=t) for t in tensors]
        nodes, tensors = [*made, *nodes], []
    sizes = [case.size] * len(case.kernel)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", case.channels[0], *sizes])
    kind = TensorProto.INT32 if case.layout == "ConvInteger" else TensorProto.FLOAT
    y = helper.make_tensor_value_info("y", kind, ["N", case.channels[1], *[None] * len(sizes)])
    graph = helper.make_graph(nodes, "quantised", [x], [y], tensors)
    opset = helper.make_opsetid("", case.opset)
    least = helper.find_min_ir_version_for([opset])
    model = helper.make_model(graph, opset_imports=[opset], ir_version=max(8, least))
    onnx.checker.check_model(model, full_check=True)
    return model
