"""What ONNX Runtime fuses less in a file whose sizes are open than in the same with fixed ones.

A convolution is fused with the addition and the activation behind it where the runtime knows the
shapes there. Sizes that a graph computes from open ones hide them; most are written as constants
(see `constant_sizes`), and this says what the others cost.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from ..graph.files import proto_of

_SILENT = 4
# Loading it twice more would take long, and it does not fit into one message.
_MOST_BYTES = 1_500_000_000
_READS_SIZES = ("Shape", "Size")
_CONVS = ("Conv", "FusedConv")
# Input, weight, bias, and what is added.
_WITH_SUM = 4
_NAMED = 3


def lost_fusions(model: ir.Model, shapes: Sequence[tuple[int, ...]]) -> str | None:
    """How many fusions are lost to open sizes, in words; None if none is.

    `shapes` are sizes that the inputs may have, in their order. The model is not changed.
    """
    computed = list(_computed_sizes(model))
    held = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    if not computed or not _is_open(model) or held > _MOST_BYTES:
        return None
    fixed = model.clone()
    for value, shape in zip(fixed.graph.inputs, shapes, strict=True):
        value.shape = ir.Shape(shape)
    for value in fixed.graph.outputs:
        value.shape = None
    kept, possible = _fused(model), _fused(fixed)
    if kept is None or possible is None or kept >= possible:
        return None
    more = "" if len(computed) <= _NAMED else f" and {len(computed) - _NAMED} more"
    return (
        f"ONNX Runtime fuses {kept} convolutions with what follows them, and {possible} where the "
        f"sizes are fixed (dynamic_batch=False, --fixed-batch): {', '.join(computed[:_NAMED])}"
        f"{more} read sizes at run time, behind which it knows no shapes"
    )


def _computed_sizes(model: ir.Model) -> Iterator[str]:
    """The nodes that read sizes at run time."""
    for node in model.graph:
        if node.op_type in _READS_SIZES and not node.domain:
            yield node.name or node.op_type


def _is_open(model: ir.Model) -> bool:
    shapes = (value.shape for value in model.graph.inputs)
    return any(shape is not None and not shape.is_static() for shape in shapes)


def _fused(model: ir.Model) -> int | None:
    """How many convolutions the runtime fuses with an addition or an activation."""
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "optimised.onnx"
            options.optimized_model_filepath = str(place)
            data = proto_of(model).SerializeToString()
            ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            nodes = list(ir.load(place).graph)
    except Exception:
        # A file that cannot be loaded is told of by who validates it.
        return None
    return sum(_is_fused(node) for node in nodes if node.op_type in _CONVS)


def _is_fused(node: ir.Node) -> bool:
    added = len(node.inputs) >= _WITH_SUM and node.inputs[_WITH_SUM - 1] is not None
    return added or "activation" in node.attributes
