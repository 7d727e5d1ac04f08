"""What works on the graphs of onnx-ir: onnxscript's optimiser and version converter."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer, rewriter, version_converter

from ..conformance.adapter import Adapter, converted
from ..kit.cases.files import LAST_OPSET

_PACKAGES = ("onnxscript", "onnx-ir", "onnxruntime")
_PASSES = (
    common.IdentityEliminationPass,
    common.CommonSubexpressionEliminationPass,
    common.DeduplicateInitializersPass,
    common.LiftConstantsToInitializersPass,
    common.RemoveUnusedNodesPass,
    common.ShapeInferencePass,
    common.TopologicalSortPass,
)


def _optimized(model: ir.Model) -> ir.Model:
    return optimizer.optimize(model)


def _rewritten(model: ir.Model) -> ir.Model:
    return rewriter.rewrite(model)


def _newer(model: ir.Model) -> ir.Model:
    version_converter.convert_version(model, LAST_OPSET)
    return model


def _passed(model: ir.Model) -> ir.Model:
    for kind in _PASSES:
        model = kind()(model).model
    return model


def _of_ir(convert: Callable[[ir.Model], ir.Model]) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    return lambda model: ir.to_proto(convert(ir.from_proto(model)))


ADAPTERS = tuple(
    Adapter(name, converted(_of_ir(convert)), _PACKAGES)
    for name, convert in (
        ("onnxscript-optimizer", _optimized),
        ("onnxscript-rewriter", _rewritten),
        ("onnxscript-version-up", _newer),
        ("onnx-ir-passes", _passed),
    )
)
