"""onnxslim: dead nodes, fusions, constant folding."""

from __future__ import annotations

import onnx

from ..conformance.adapter import Adapter, converted


def _slimmed(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxslim

    found: onnx.ModelProto = onnxslim.slim(model)
    return found


ADAPTERS = (Adapter("onnxslim", converted(_slimmed), ("onnxslim", "onnxruntime")),)
