"""OpenVINO on the CPU, in the precision of the file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..conformance.adapter import Adapter, Outputs, outputs_by_name
from ..kit import Case
from ..kit.known import Array


def _run(case: Case) -> Outputs:
    import openvino

    # bfloat16, its default on some CPUs, would be another function.
    config = {"INFERENCE_NUM_THREADS": "1", "INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    model = core.read_model(case.onnx.SerializeToString())
    request = core.compile_model(model, "CPU", config).create_infer_request()

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        return [np.array(value) for value in request.infer(dict(feeds)).values()]

    return outputs_by_name(case, run)


ADAPTERS = (Adapter("openvino", _run, ("openvino",)),)
