"""onnxsim: constant folding, and the fusions of onnxoptimizer."""

from __future__ import annotations

import onnx

from ..conformance.adapter import Adapter, converted


def _simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim

    found: onnx.ModelProto = onnxsim.simplify(model)[0]
    return found


ADAPTERS = (Adapter("onnxsim", converted(_simplified), ("onnxsim", "onnxruntime")),)
