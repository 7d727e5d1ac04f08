"""onnxoptimizer with every fusion and elimination that it has."""

from __future__ import annotations

import onnx

from ..conformance.adapter import Adapter, converted


def _optimised(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxoptimizer

    passes = onnxoptimizer.get_fuse_and_elimination_passes()
    found: onnx.ModelProto = onnxoptimizer.optimize(model, passes)
    return found


ADAPTERS = (Adapter("onnxoptimizer", converted(_optimised), ("onnxoptimizer", "onnxruntime")),)
