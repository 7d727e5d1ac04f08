"""Small float networks, and honest quantised files of them: by ONNX Runtime's own quantiser."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

Array = np.ndarray[Any, np.dtype[Any]]
SIZE = 8
"""Rows and columns of the images."""


@dataclass(frozen=True)
class Scheme:
    """How a file is quantised; `static` or not, and the options of the quantiser."""

    opset: int = 17
    static: bool = True
    qdq: bool = True
    per_channel: bool = True
    activations: QuantType = QuantType.QUInt8
    weights: QuantType = QuantType.QInt8
    symmetric_weights: bool = True
    symmetric_activations: bool = False
    reduce_range: bool = False
    calibration: CalibrationMethod = CalibrationMethod.MinMax

    def __str__(self) -> str:
        kind = ("QDQ" if self.qdq else "QOperator") if self.static else "dynamic"
        each = "channel" if self.per_channel else "tensor"
        names = f"{self.activations.name}/{self.weights.name}"
        return f"{kind} {names} per {each} opset {self.opset} {self.calibration.name}"


def drawn_scheme(draw: np.random.Generator) -> Scheme:
    """Any scheme that the quantiser takes for convolutions."""

    def yes(share: float = 0.5) -> bool:
        return bool(draw.random() < share)

    if yes(0.15):
        return Scheme(static=False, per_channel=yes(), weights=QuantType.QUInt8)
    qdq = yes(0.7)
    four_bits = qdq and yes(0.15)
    weights = QuantType.QInt8 if yes(0.7) else QuantType.QUInt8
    # A kernel of QLinearConv with weights int8 wants activations of uint8, or int8 as well.
    activations = QuantType.QUInt8 if weights == QuantType.QUInt8 or yes() else QuantType.QInt8
    return Scheme(
        opset=21 if four_bits else int(draw.choice([13, 17, 21])),
        qdq=qdq,
        per_channel=yes(0.7),
        activations=activations,
        weights=QuantType.QInt4 if four_bits else weights,
        symmetric_weights=weights == QuantType.QInt8 and yes(0.8),
        symmetric_activations=activations == QuantType.QInt8 and yes(),
        reduce_range=not four_bits and yes(0.2),
        calibration=[CalibrationMethod.MinMax, CalibrationMethod.Percentile][int(yes(0.2))],
    )


@dataclass
class _Net:
    draw: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: dict[str, Array] = field(default_factory=dict)
    value: str = "x"
    channels: int = 3

    def conv(self, outs: int, kernel: int, groups: int = 1, *, transposed: bool = False) -> None:
        name = f"conv{sum('Conv' in node.op_type for node in self.nodes)}"
        width = self.channels // groups
        shape = (self.channels, outs // groups) if transposed else (outs, width)
        weight = self.draw.normal(size=(*shape, kernel, kernel)) / np.sqrt(width * kernel**2)
        # Channels of a trained network differ in size.
        sizes = np.exp(self.draw.normal(0, 0.5, outs))
        each = np.tile(sizes.reshape(groups, -1), (1, 1)) if transposed else sizes
        if transposed:
            rows = np.repeat(each, width, axis=0)
            weight = weight * rows[:, :, None, None]
        else:
            weight = weight * each[:, None, None, None]
        self.tensors[f"{name}.weight"] = weight.astype(np.float32)
        self.tensors[f"{name}.bias"] = self.draw.normal(0, 0.2, outs).astype(np.float32)
        kind = "ConvTranspose" if transposed else "Conv"
        inputs = [self.value, f"{name}.weight", f"{name}.bias"]
        self.node(kind, inputs, name, group=groups, pads=[kernel // 2] * 4)
        self.channels = outs

    def norm(self) -> None:
        name = f"norm{len(self.nodes)}"
        roles = {"weight": (1, 0.2), "bias": (0, 0.2), "mean": (0, 0.2), "var": (1, 0.1)}
        for role, (mean, spread) in roles.items():
            array = self.draw.normal(mean, spread, self.channels)
            array = np.maximum(array, 0.3) if role in ("var", "weight") else array
            self.tensors[f"{name}.{role}"] = array.astype(np.float32)
        self.node("BatchNormalization", [self.value, *(f"{name}.{r}" for r in roles)], name)

    def activation(self) -> None:
        kind = str(self.draw.choice(["Relu", "Relu", "Clip", "none"]))
        name = f"act{len(self.nodes)}"
        if kind == "Clip":
            self.tensors["zero"], self.tensors["six"] = np.float32(0), np.float32(6)
            self.node("Clip", [self.value, "zero", "six"], name)
        elif kind == "Relu":
            self.node("Relu", [self.value], name)

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}.out"], name=name, **attributes))
        self.value = f"{name}.out"


def drawn_net(draw: np.random.Generator, opset: int, *, norms: bool) -> onnx.ModelProto:
    """Two to four convolutions, some grouped, depthwise or transposed, on images of 8x8."""
    net = _Net(draw)
    net.conv(8, 3)
    net.activation()
    for _ in range(int(draw.integers(1, 4))):
        kind = draw.choice(["dense", "grouped", "depthwise", "point", "transposed"])
        groups = {"grouped": int(draw.choice([2, 4])), "depthwise": 8}.get(str(kind), 1)
        kernel = 1 if kind == "point" else 3
        net.conv(8, kernel, groups, transposed=kind == "transposed")
        if norms and draw.random() < 0.5:
            net.norm()
        net.activation()
    return _model(net, opset)


def wide_net(draw: np.random.Generator, opset: int) -> onnx.ModelProto:
    """Any of what a network has between its convolutions: sums, pools, other activations, norms.

    Some end in a Gemm.
    """
    net = _Net(draw)
    net.conv(8, 3)
    net.activation()
    for place in range(int(draw.integers(2, 8))):
        _layer(net, str(draw.choice(_LAYERS)), place)
    if draw.random() < 0.5:
        net.node("GlobalAveragePool", [net.value], "mean")
        net.node("Flatten", [net.value], "flat")
        net.tensors["head.weight"] = draw.normal(size=(5, 8)).astype(np.float32)
        net.tensors["head.bias"] = draw.normal(size=5).astype(np.float32)
        net.node("Gemm", [net.value, "head.weight", "head.bias"], "head", transB=1)
    return onnx.shape_inference.infer_shapes(_model(net, opset))


_WINDOW = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
_FUNCTIONS: dict[str, dict[str, Any]] = {
    "MaxPool": _WINDOW,
    "AveragePool": _WINDOW,
    "HardSwish": {},
    "Sigmoid": {},
    "LeakyRelu": {"alpha": 0.1},
}
_LAYERS = ("dense", "grouped", "depthwise", "point", "residual", "norm", *_FUNCTIONS)


def _layer(net: _Net, kind: str, place: int) -> None:
    if kind == "norm":
        net.norm()
    elif kind in _FUNCTIONS:
        net.node(kind, [net.value], f"layer{place}", **_FUNCTIONS[kind])
    else:
        before = net.value
        net.conv(8, 1 if kind == "point" else 3, {"grouped": 2, "depthwise": 8}.get(kind, 1))
        net.activation()
        if kind == "residual":
            net.node("Add", [before, net.value], f"layer{place}")


def _model(net: _Net, opset: int) -> onnx.ModelProto:
    net.nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        net.nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in net.tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def images_of(seed: int) -> Array:
    """Images as a file is calibrated on, `[16, 3, 8, 8]`."""
    draw = np.random.default_rng(seed)
    return np.asarray(draw.normal(size=(16, 3, SIZE, SIZE)), dtype=np.float32)


class _Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: list[Array]) -> None:
        self._left = [{"x": batch} for batch in batches]

    def get_next(self) -> dict[str, Array] | None:
        return self._left.pop(0) if self._left else None


def quantised(model: onnx.ModelProto, scheme: Scheme, seed: int = 0) -> onnx.ModelProto:
    """The model in whole numbers, calibrated on images drawn from a normal distribution."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        target = Path(folder) / "int8.onnx"
        logging.disable(logging.WARNING)
        try:
            if scheme.static:
                quantize_static(
                    made,
                    target,
                    _Images([images_of(seed + k) for k in range(4)]),
                    quant_format=QuantFormat.QDQ if scheme.qdq else QuantFormat.QOperator,
                    per_channel=scheme.per_channel,
                    reduce_range=scheme.reduce_range,
                    activation_type=scheme.activations,
                    weight_type=scheme.weights,
                    calibrate_method=scheme.calibration,
                    extra_options={
                        "WeightSymmetric": scheme.symmetric_weights,
                        "ActivationSymmetric": scheme.symmetric_activations,
                    },
                )
            else:
                quantize_dynamic(
                    made,
                    target,
                    per_channel=scheme.per_channel,
                    weight_type=scheme.weights,
                    op_types_to_quantize=["Conv"],
                )
        finally:
            logging.disable(logging.NOTSET)
        return onnx.load(target)
