"""A small ONNX file with a grouped convolution."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def grouped(path: Path, *, name: str = "x", sizes: tuple[int, ...] = (1, 6, 7, 5)) -> Path:
    weight = np.arange(9 * 2 * 25, dtype=np.float32).reshape(9, 2, 5, 5) / 100
    node = helper.make_node("Conv", [name, "w"], ["y"], group=3, pads=[2] * 4)
    ends = [
        helper.make_tensor_value_info(end, TensorProto.FLOAT, shape)
        for end, shape in ((name, sizes), ("y", [sizes[0], 9, *sizes[2:]]))
    ]
    graph = helper.make_graph(
        [node], "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")]
    )
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path
