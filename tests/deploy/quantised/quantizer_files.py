"""A small network with grouped convolutions in residual blocks, as ONNX Runtime quantises it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

SIZE = 12


class _Samples(CalibrationDataReader):
    """Four batches of random images."""

    def __init__(self, size: int) -> None:
        generator = np.random.default_rng(0)
        shape = (2, 3, size, size)
        self._left: Iterator[dict[str, Any]] = iter(
            [{"x": generator.normal(size=shape).astype(np.float32)} for _ in range(4)]
        )

    def get_next(self) -> Any:
        return next(self._left, None)


class _Network:
    """Nodes one after another, and their weights."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        self.held: dict[str, Any] = {}
        self.nodes: list[onnx.NodeProto] = []

    def conv(self, name: str, x: str, inputs: int, outputs: int, kernel: int, groups: int) -> str:
        """A convolution that keeps the size."""
        shape = (outputs, inputs // groups, kernel, kernel)
        weight = self.generator.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        self.held[f"{name}.weight"] = weight.astype(np.float32)
        self.held[f"{name}.bias"] = (self.generator.normal(size=outputs) / 8).astype(np.float32)
        fields = {"group": groups, "pads": [kernel // 2] * 4}
        names = [x, f"{name}.weight", f"{name}.bias"]
        self.nodes.append(helper.make_node("Conv", names, [f"{name}.y"], name=name, **fields))
        return f"{name}.y"

    def relu(self, x: str) -> str:
        """A ReLU."""
        self.nodes.append(helper.make_node("Relu", [x], [f"{x}.relu"], name=f"{x}.relu"))
        return f"{x}.relu"


def network(
    width: int = 16,
    groups: int = 4,
    blocks: int = 2,
    seed: int = 0,
    opset: int = 17,
    size: int = SIZE,
) -> onnx.ModelProto:
    """A stem and residual blocks of 1x1, grouped 3x3 and 1x1 convolutions, in floating point."""
    net = _Network(seed)
    value = net.relu(net.conv("stem", "x", 3, width, 3, 1))
    for k in range(blocks):
        inner = net.relu(net.conv(f"blocks.{k}.conv1", value, width, width, 1, 1))
        inner = net.relu(net.conv(f"blocks.{k}.conv2", inner, width, width, 3, groups))
        inner = net.conv(f"blocks.{k}.conv3", inner, width, width, 1, 1)
        net.nodes.append(helper.make_node("Add", [inner, value], [f"blocks.{k}"], name=f"add{k}"))
        value = net.relu(f"blocks.{k}")
    net.nodes.append(helper.make_node("GlobalAveragePool", [value], ["y"], name="pool"))
    graph = helper.make_graph(
        net.nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width, 1, 1])],
        [numpy_helper.from_array(array, name) for name, array in net.held.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    least = helper.find_min_ir_version_for(imports)
    return helper.make_model(graph, opset_imports=imports, ir_version=max(8, least))


def by_quantizer(
    model: onnx.ModelProto,
    folder: Path,
    *,
    operators: bool = False,
    per_channel: bool = True,
    data: str = "uint8",
) -> onnx.ModelProto:
    """The model quantised by `onnxruntime.quantization`, with Q/DQ pairs or in its operators."""
    place = folder / "float.onnx"
    onnx.save(model, place)
    logging.disable(logging.WARNING)
    try:
        quantize_static(
            place,
            folder / "int8.onnx",
            _Samples(model.graph.input[0].type.tensor_type.shape.dim[2].dim_value),
            quant_format=QuantFormat.QOperator if operators else QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type={"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}[data],
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(folder / "int8.onnx")
