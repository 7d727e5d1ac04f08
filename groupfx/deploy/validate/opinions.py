"""Who runs a candidate: torch, ONNX Runtime with its optimisations and without, the evaluator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt
import onnx
import torch
from onnx.reference import ReferenceEvaluator

from ...errors import first_line
from ..graph.conv_nodes import conv_names, conv_nodes
from ..graph.files import proto_of
from .sides import OnnxSide, Side, TorchSide, Values

Feeds = Mapping[str, npt.NDArray[Any]]
Runtime = Callable[[Feeds], Values]
"""From inputs by the candidate's names to its outputs. Raises what it raises."""

OFF, ON = "onnxruntime, optimisations off", "onnxruntime, optimisations on"
EVALUATOR, TORCH = "onnx reference evaluator", "torch"
BRIEF_RUNTIMES: Mapping[str, str] = {OFF: "optimised off", ON: "optimised on"}
"""Shorter names of runtimes, where a line has little room."""

# The reference evaluator is plain numpy: a fourth opinion on small models only.
_SMALL_PARAMETERS = 200_000
# ONNX Runtime 1.31 takes 0.3 s to optimise 1,000 convolutions, 9 s for 4,000 and 53 s for 8,000.
_MOST_OPTIMISED = 4_096


def runtimes_of(candidate: Side, dtype: torch.dtype) -> tuple[dict[str, Runtime], list[str]]:
    """How a candidate is run, and notes on who gives no opinion.

    Raises `FileError` where ONNX Runtime cannot load a file.
    """
    if isinstance(candidate, TorchSide):
        side = candidate
        return {TORCH: lambda feeds: side.native(feeds, dtype)}, []
    file, notes = candidate, []
    _ = file.session  # a file that cannot be loaded is an error, no answer
    found: dict[str, Runtime] = {OFF: lambda feeds: file.session.run(file.own(feeds))}
    number = len(conv_names(file.model.graph))
    if number <= _MOST_OPTIMISED:
        _ = file.optimised
        found[ON] = lambda feeds: file.optimised.run(file.own(feeds))
    else:
        notes.append(
            f"not run with ONNX Runtime's optimisations, which take minutes to prepare a file of "
            f"{number:,} convolutions: it was run without them"
        )
    evaluator = _evaluator(file)
    if isinstance(evaluator, str):
        notes.append(evaluator)
    elif evaluator is not None:
        found[EVALUATOR] = evaluator
    return found, notes


def _evaluator(side: OnnxSide) -> Runtime | str | None:
    """Onnx's own evaluator, for a small model that it can run; a text says why it cannot."""
    held = side.model.graph.initializers.values()
    if sum(v.const_value.size for v in held if v.const_value is not None) > _SMALL_PARAMETERS:
        return None
    convs, _ = conv_nodes(side.model)
    if any(conv.spec.transposed and conv.spec.groups > 1 for conv in convs):
        return f"the {EVALUATOR} cannot run grouped transposed convolutions: it gives no opinion"
    proto: onnx.ModelProto = proto_of(side.model)
    try:
        evaluator = ReferenceEvaluator(proto)
    except Exception as error:
        return f"the {EVALUATOR} gives no opinion: {first_line(error)}"
    names = side.outputs

    def run(feeds: Feeds) -> Values:
        return dict(zip(names, evaluator.run(None, dict(side.own(feeds))), strict=True))

    return run
