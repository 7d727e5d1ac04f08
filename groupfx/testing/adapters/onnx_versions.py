"""The version converter of onnx itself: every case in another opset."""

from __future__ import annotations

from functools import partial

import onnx
from onnx import version_converter

from ..conformance.adapter import Adapter, converted
from ..kit.cases.files import FIRST_OPSET, LAST_OPSET


def _to(target: int, model: onnx.ModelProto) -> onnx.ModelProto:
    return version_converter.convert_version(model, target)


ADAPTERS = (
    Adapter("onnx-version-up", converted(partial(_to, LAST_OPSET)), ("onnx", "onnxruntime")),
    Adapter("onnx-version-down", converted(partial(_to, FIRST_OPSET)), ("onnx", "onnxruntime")),
)
