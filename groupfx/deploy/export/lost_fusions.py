"""What ONNX Runtime fuses less in a file whose sizes are open than in the same with fixed ones.

A convolution is fused with the addition and the activation behind it where the runtime knows the
shapes there. Sizes that a graph computes from open ones hide them, and so does what is left over
for a -1. Most of them are written as constants (see `constant_sizes`), or the shape behind them is;
this says what the others cost.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence, Set
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from ..graph.files import proto_of
from .constant_sizes import HIDE_SIZES, READ_SIZES

_SILENT = 4
# Loading it twice more would take long, and it does not fit into one message.
_MOST_BYTES = 1_500_000_000
_CONVS = ("Conv", "FusedConv")
# Input, weight, bias, and what is added.
_WITH_SUM = 4
_NAMED = 3


def lost_fusions(model: ir.Model, shapes: Sequence[tuple[int, ...]]) -> str | None:
    """How many fusions are lost to open sizes, in words; None if none is.

    `shapes` are sizes that the inputs may have, in their order. The model is not changed.
    """
    hiding = _hiding(model) if _is_open(model) else ()
    held = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    if not hiding or held > _MOST_BYTES:
        return None
    fixed = model.clone()
    for value, shape in zip(fixed.graph.inputs, shapes, strict=True):
        value.shape = ir.Shape(shape)
    for value in fixed.graph.outputs:
        value.shape = None
    kept, possible = _fused(model), _fused(fixed)
    if kept is None or possible is None or kept >= possible:
        return None
    more = "" if len(hiding) <= _NAMED else f" and {len(hiding) - _NAMED} more"
    return (
        f"ONNX Runtime fuses {kept} convolutions with what follows them, and {possible} where the "
        f"sizes are fixed (dynamic_batch=False, --fixed-batch): {', '.join(hiding[:_NAMED])}{more} "
        "read sizes at run time or work them out, behind which it knows no shapes"
    )


def _hiding(model: ir.Model) -> Sequence[str]:
    """The nodes behind which the runtime may not know a shape that a convolution depends on."""
    before = _before_convs(model)
    return [
        node.name or node.op_type
        for node in model.graph
        if node in before and not node.domain and _hides(node)
    ]


def _hides(node: ir.Node) -> bool:
    shape = node.outputs[0].shape
    known = shape is not None and not any(size is None for size in map(_size, shape))
    return node.op_type in READ_SIZES or (node.op_type in HIDE_SIZES and not known)


def _size(size: int | ir.SymbolicDim) -> int | str | None:
    return size if isinstance(size, int) else size.value


def _before_convs(model: ir.Model) -> Set[ir.Node]:
    """Whatever leads to a convolution, or to what follows one, such as what is added to it."""
    convs = [node for node in model.graph if node.op_type in _CONVS]
    waiting = [*convs, *(node for conv in convs for node in conv.successors())]
    found: set[ir.Node] = set()
    while waiting:
        for node in waiting.pop().predecessors():
            if node not in found:
                found.add(node)
                waiting.append(node)
    return found


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
