"""The blocked layout of ONNX Runtime on this CPU: how many channels a block of it has.

It is seen in the graph that the runtime makes of a small convolution, and neither assumed nor read
off the processor's name: 16 with AVX-512, 8 with AVX2, 0 where there is no such layout.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from ...errors import ModelError, first_line
from ...plan.machine import Machine

# The narrower first: groups of 16 channels stay in a layout of blocks of 8 too.
BLOCKS = (8, 16)
_SIZE = 8
_KERNEL = 3
_SILENT = 4

Options = Callable[[], ort.SessionOptions]


def block_width(options: Options = ort.SessionOptions) -> int:
    """The width of the blocks in sessions with `options`, by default those of any user.

    0 where the runtime has none, or has its graph optimisations off. Raises ModelError where it
    does not say, as there is no room for a file.
    """
    return next((width for width in BLOCKS if _stays_blocked(width, options())), 0)


def this_machine() -> Machine:
    """The rates of the cost model, with the blocks of this CPU; nothing is timed.

    The default ones where the runtime does not say what blocks it has.
    """
    try:
        return Machine.with_blocks(block_width())
    except ModelError:
        return Machine()


def _stays_blocked(width: int, options: ort.SessionOptions) -> bool:
    """Whether two groups of `width` channels are computed in the blocked layout."""
    options.log_severity_level = _SILENT
    data = _two_groups(width).SerializeToString()
    try:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "optimised.onnx"
            options.optimized_model_filepath = str(place)
            ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            nodes = onnx.load(place).graph.node
    except Exception as error:
        # What the C++ code and protobuf raise is not of one kind.
        raise ModelError(
            f"ONNX Runtime does not say what it makes of a convolution: {first_line(error)}"
        ) from error
    return any("nchwc" in node.domain for node in nodes)


def _two_groups(width: int) -> onnx.ModelProto:
    values = np.ones((2 * width, width, _KERNEL, _KERNEL), np.float32)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2 * width, _SIZE, _SIZE])
        for name in ("x", "y")
    ]
    node = helper.make_node("Conv", ["x", "weight"], ["y"], pads=[1] * 4, group=2)
    weights = [numpy_helper.from_array(values, "weight")]
    graph = helper.make_graph([node], "probe", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)
