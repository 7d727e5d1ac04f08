"""The reference evaluator of onnx, in plain numpy."""

from __future__ import annotations

from onnx.reference import ReferenceEvaluator

from ..conformance.adapter import Adapter, Outputs, outputs_by_name
from ..kit import Case


def _run(case: Case) -> Outputs:
    evaluator = ReferenceEvaluator(case.onnx)
    return outputs_by_name(case, lambda feeds: [*evaluator.run(None, dict(feeds))])


ADAPTERS = (Adapter("onnx-reference", _run, ("onnx",)),)
