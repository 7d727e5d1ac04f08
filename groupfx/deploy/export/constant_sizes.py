"""Write the sizes that a graph computes as constants, where an operator allows it.

With an open batch, each `view` of a model becomes a Shape, a few Reshapes and a Concat that make
the target of a Reshape. The runtime does not see through them: it loses the shapes of everything
behind, and with them the fusion of convolutions with the Add or Relu that follows. Most of it says
no more than "the batch as it was", for which the operators have numbers of their own:

    Reshape   0: this size of the input; -1: what is left, once
    Expand    1: this size of the input
    Resize    a whole factor; only the axes that change (opset 18)
    Slice     the largest number there is, for "to the end"

What an Expand, a Tile or a ConstantOfShape repeats for an operator that repeats by itself need not
be repeated: `y + expand(a) = y + a` where the sum has the shape of y.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.optimizer import fold_constants

from ..graph.identities import drop_identities
from ..graph.initializers import constant

_FIRST_RESIZE_WITH_AXES = 18
READ_SIZES = frozenset({"Shape", "Size"})
HIDE_SIZES = frozenset(
    {"Reshape", "Resize", "Expand", "Slice", "Tile", "Pad", "TopK", "GatherND", "ConstantOfShape"}
)
"""Behind those the runtime does not see that an open size is that of an input, constants or not."""

_MOST_FOLDED = 1 << 10
_BROADCASTS = frozenset(
    {
        "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max",
        "Min", "Mul", "Or", "Pow", "Sub", "Where",
    }
)  # fmt: skip
_TO_THE_END = np.iinfo(np.int64).max

Size = int | str


def write_sizes(model: ir.Model) -> None:
    """Replace computed sizes in `model` by constants that mean the same; drop what made them."""
    _write(model)
    # Shape inference (onnx 1.23) takes sequences that a Loop hands on for tensors.
    sequences = any("Sequence" in node.op_type for node in model.graph.all_nodes())
    if not sequences and any(node.op_type in READ_SIZES for node in model.graph):
        # What a function of the exporter's computes has no shape yet, and what is computed of
        # sizes that are known beside the open one is no constant yet.
        _work_out(model)
        _write(model)


def _work_out(model: ir.Model) -> None:
    """Shapes of all values, and what can be computed of them."""
    common.ShapeInferencePass()(model)
    fold_constants(
        model,
        onnx_shape_inference=True,
        input_size_limit=_MOST_FOLDED,
        output_size_limit=_MOST_FOLDED,
    )
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    drop_identities(model)
    common.RemoveUnusedNodesPass()(model)


def _write(model: ir.Model) -> None:
    changed = False
    for node in model.graph:
        rule = _RULES.get(node.op_type) if not node.domain else None
        if rule is not None:
            changed |= rule(model, node)
    if changed:
        common.RemoveUnusedNodesPass()(model)


def _reshape(model: ir.Model, node: ir.Node) -> bool:
    before, after = sizes_of(node.inputs[0]), sizes_of(node.outputs[0])
    if not _is_computed(node, 1) or before is None or after is None:
        return False
    return reshape_to(model, node, before, after)


def reshape_to(
    model: ir.Model, node: ir.Node, before: tuple[Size, ...], after: tuple[Size, ...]
) -> bool:
    """Make a Reshape one of sizes `before` to sizes `after`; whether constants can say that."""
    kept = [axis < len(before) and before[axis] == size for axis, size in enumerate(after)]
    target = [
        size if isinstance(size, int) else 0 if same else -1
        for size, same in zip(after, kept, strict=True)
    ]
    # A size that is 0 would be read as a copy.
    if target.count(-1) > 1 or 0 in after:
        return False
    # With it, 0 is no copy but a size.
    node.attributes.pop("allowzero", None)
    return _replace(model, node, 1, target)


def _expand(model: ir.Model, node: ir.Node) -> bool:
    before, after = sizes_of(node.inputs[0]), sizes_of(node.outputs[0])
    if not _is_computed(node, 1) or before is None or after is None:
        return False
    aligned = (None,) * (len(after) - len(before)) + before
    target = [1 if old == new else new for old, new in zip(aligned, after, strict=True)]
    if not all(isinstance(size, int) for size in target):
        return _repeat(model, node)
    return _replace(model, node, 1, target)


def _resize(model: ir.Model, node: ir.Node) -> bool:
    before, after = sizes_of(node.inputs[0]), sizes_of(node.outputs[0])
    if len(node.inputs) < 4 or not _is_computed(node, 3) or before is None or after is None:
        return False
    if "axes" in node.attributes:
        return False
    factors = [_factor(old, new) for old, new in zip(before, after, strict=True)]
    if None not in factors:
        # ONNX Runtime stays in its blocked layout for those; of sizes, only if it knows the batch.
        numbers = np.array(factors, np.float32)
        made = constant(model.graph, f"{node.outputs[0].name}.scales", numbers)
        node.replace_input_with(2, made)
        node.resize_inputs(3)
        return True
    if model.opset_imports.get("", 0) < _FIRST_RESIZE_WITH_AXES:
        return False
    axes = [axis for axis, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    # An axis that keeps a size that is a number may be resized all the same: by a factor of 1.
    axes += [axis for axis, size in enumerate(before) if axis > 1 and axis not in axes]
    axes.sort()
    if not axes or not all(isinstance(after[axis], int) for axis in axes):
        return False
    node.attributes["axes"] = ir.AttrInt64s("axes", axes)
    return _replace(model, node, 3, [after[axis] for axis in axes])


def _factor(old: Size, new: Size) -> int | None:
    """By which whole number a size grows; None if by none, or if that depends on the input."""
    if old == new:
        return 1
    if not isinstance(old, int) or not isinstance(new, int) or not old or new % old:
        return None
    return new // old or None


def _slice(model: ir.Model, node: ir.Node) -> bool:
    """A slice of one axis from the front on to a computed end that is the end of the axis."""
    before, after = sizes_of(node.inputs[0]), sizes_of(node.outputs[0])
    if not _is_computed(node, 2) or before is None or after is None or len(node.inputs) < 4:
        return False
    starts, axes = _numbers(node.inputs[1]), _numbers(node.inputs[3])
    steps = _numbers(node.inputs[4]) if len(node.inputs) > 4 else [1]
    if starts != [0] or steps != [1] or axes is None or len(axes) != 1:
        return False
    if before[axes[0]] != after[axes[0]]:
        return False
    return _replace(model, node, 2, [_TO_THE_END])


def _repeat(model: ir.Model, node: ir.Node) -> bool:
    """Hand what is repeated to operators that repeat it by themselves."""
    source, result = node.inputs[0], node.outputs[0]
    sizes = sizes_of(source)
    if not _is_computed(node, 1) or sizes is None:
        return False
    if node.op_type == "Tile" and not _repeats_ones(sizes, sizes_of(result)):
        return False
    return _hand_on(result, source)


def _constant(model: ir.Model, node: ir.Node) -> bool:
    """A tensor of one number, by that number."""
    if not _is_computed(node, 0):
        return False
    given = node.attributes.get_tensor("value")
    number = np.zeros((), np.float32) if given is None else given.numpy().reshape(())
    result = node.outputs[0]
    return _hand_on(result, lambda: constant(model.graph, f"{result.name}.value", number))


def _repeats_ones(before: tuple[Size, ...], after: tuple[Size, ...] | None) -> bool:
    """Whether only axes of one element are repeated."""
    if after is None or len(before) != len(after):
        return False
    return all(old in (1, new) for old, new in zip(before, after, strict=True))


def _hand_on(result: ir.Value, source: ir.Value | Callable[[], ir.Value] | None) -> bool:
    """Give `source` to each reader of `result` that makes the same of it."""
    readers = [(user, place) for user, place in result.uses() if _repeats_itself(user, result)]
    if not readers or source is None:
        return False
    value = source() if callable(source) else source
    for user, place in readers:
        user.replace_input_with(place, value)
    return True


def _repeats_itself(node: ir.Node, value: ir.Value) -> bool:
    """Whether another input of `node` has the shape of the result already."""
    if node.domain or node.op_type not in _BROADCASTS:
        return False
    wanted = sizes_of(node.outputs[0])
    others = (sizes_of(other) for other in node.inputs if other is not value)
    return wanted is not None and wanted in others


_RULES: Mapping[str, Callable[[ir.Model, ir.Node], bool]] = {
    "Reshape": _reshape,
    "Expand": _expand,
    "Resize": _resize,
    "Slice": _slice,
    "Tile": _repeat,
    "ConstantOfShape": _constant,
}


def _replace(model: ir.Model, node: ir.Node, place: int, numbers: Sequence[Size]) -> bool:
    array = np.array(numbers, dtype=np.int64)
    name = f"{node.outputs[0].name}.sizes"
    node.replace_input_with(place, constant(model.graph, name, array))
    return True


def _is_computed(node: ir.Node, place: int) -> bool:
    value = node.inputs[place]
    return value is not None and value.producer() is not None


def sizes_of(value: ir.Value | None) -> tuple[Size, ...] | None:
    """Numbers, and symbols for those that are open; None where one has neither."""
    if value is None or value.shape is None:
        return None
    found = [size if isinstance(size, int) else size.value for size in value.shape]
    return None if None in found else tuple(found)  # type: ignore[arg-type]


def _numbers(value: ir.Value | None) -> list[int] | None:
    tensor = None if value is None else value.const_value
    return None if tensor is None else tensor.numpy().reshape(-1).tolist()
