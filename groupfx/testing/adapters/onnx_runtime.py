"""ONNX Runtime on the CPU, at each level of its graph optimisations."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import onnxruntime as ort

from ..conformance.adapter import Adapter, Outputs, outputs_by_name
from ..kit import Case
from ..kit.known import Array

_SILENT = 4
_LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


def run_onnx(case: Case, model: bytes, level: str) -> Outputs:
    """The outputs of a model on the inputs of a case; a model with other names gets them in order.

    So it does for outputs, of which a file has the order of its case.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = _LEVELS[level]
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _SILENT
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        by_order = dict(zip(names, feeds.values(), strict=True))
        given = dict(feeds) if by_order.keys() == feeds.keys() else by_order
        return [np.asarray(value) for value in session.run(None, given)]

    return outputs_by_name(case, run)


def _run(case: Case, level: str) -> Outputs:
    return run_onnx(case, case.onnx.SerializeToString(), level)


ADAPTERS = tuple(
    Adapter(
        "onnxruntime" if level == "all" else f"onnxruntime-{level}",
        partial(_run, level=level),
        ("onnxruntime",),
    )
    for level in _LEVELS
)
