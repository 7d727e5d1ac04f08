"""What ONNX Runtime computes of a file, with its optimisations off and on, and by which kernels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

Array = np.ndarray[Any, np.dtype[Any]]
LEVELS = (
    ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
)
WHOLE_KERNELS = frozenset({"QLinearConv", "ConvInteger"})


def results(model: onnx.ModelProto, x: Array) -> list[Array]:
    """The outputs for the input `x` in a row, at each of `LEVELS`."""
    sessions = [_session(model, level) for level in LEVELS]
    return [np.concatenate([y.ravel() for y in s.run(None, {"x": x})]) for s in sessions]


def kernels(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """The operators of the graph that ONNX Runtime makes of a file."""
    place = folder / "optimised.onnx"
    _session(model, LEVELS[-1], place)
    return Counter(node.op_type for node in onnx.load(place).graph.node)


def whole_kernels(model: onnx.ModelProto, folder: Path) -> int:
    """How many convolutions run on whole numbers."""
    return sum(n for kind, n in kernels(model, folder).items() if kind in WHOLE_KERNELS)


def _session(model: onnx.ModelProto, level: Any, place: Path | None = None) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if place is not None:
        options.optimized_model_filepath = str(place)
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
