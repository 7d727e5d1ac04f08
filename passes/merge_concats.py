"""Join concatenations of channels that meet.

Before:  y = cat([relu(cat([a, b])), c])
After:   y = cat([relu(a), relu(b), c])

    cat([cat([a, b]), c]) = cat([a, b, c])
    f(cat([a, b])) = cat([f(a), f(b)])          f acts on each element alone, or on positions
    cat([a, b]) + cat([c, d]) = cat([a + c, b + d])      where a and c, b and d have equal sizes

What lies between is pushed into the branches, where the inner concatenation is read by nothing
else; one that others read stays for them.
"""

from dataclasses import dataclass

import torch
from torch import fx

from groupfx.convs.channelwise import combines, is_channelwise
from groupfx.rewriting import OperationPass, Place, Spelling, shape_of
from groupfx.verify import Rounding

_ON_PARTS = Rounding(terms=2)
"""A kernel computes several numbers at a time, and those at an end with another exp."""


@dataclass(frozen=True)
class MergeConcats(OperationPass):
    """Concatenations that meet become one; what acts on elements between them goes inside."""

    backwards = True

    refuses = ("what mixes channels between two concatenations",)

    def spell(self, place: Place) -> Spelling | None:
        if not is_channel_concat(place.node):
            return _combined(place)
        rows = _parts(place, place.node)
        values = tuple(dict.fromkeys(value for value, _ in rows))
        if len(rows) == len(place.node.all_input_nodes) or values == (place.node,):
            return None

        def emit() -> fx.Node:
            made = []
            for value, steps in rows:
                for step in reversed(steps):
                    value = _repeated(place, step, value)
                made.append(value)
            return place.call(torch.cat, made, dim=1)

        moved = any(between for _, between in rows)
        rounding = _ON_PARTS if moved else Rounding()
        return Spelling(f"torch.cat of {len(rows)}", values, emit, rounding=rounding)


def is_channel_concat(node: fx.Node) -> bool:
    """Whether it is `torch.cat([...], dim=1)`."""
    if node.op != "call_function" or node.target is not torch.cat:
        return False
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return bool(dim == 1) and isinstance(node.args[0] if node.args else None, (list, tuple))


def _combined(place: Place) -> Spelling | None:
    """A sum of two concatenations whose parts fit each other, and that nothing else reads."""
    node = place.node
    if not combines(node):
        return None
    sides = [value for value in node.args if isinstance(value, fx.Node)]
    if len(set(sides)) != 2 or not all(is_channel_concat(s) and len(s.users) == 1 for s in sides):
        return None
    parts = [side.all_input_nodes for side in sides]
    sizes = [[(shape_of(part) or (0, 0))[1] for part in side] for side in parts]
    shape = place.shape
    if shape is None or sizes[0] != sizes[1] or shape != shape_of(sides[0]):
        return None

    def emit() -> fx.Node:
        made = [place.call(node.target, a, b) for a, b in zip(*parts, strict=True)]  # type: ignore[arg-type]
        return place.call(torch.cat, made, dim=1)

    after = f"torch.cat of {len(sizes[0])} {getattr(node.target, '__name__', node.target)}"
    inputs = tuple(dict.fromkeys((*parts[0], *parts[1])))
    return Spelling(after, inputs, emit, rounding=_ON_PARTS)


Row = tuple[fx.Node, tuple[fx.Node, ...]]


def _parts(place: Place, concat: fx.Node) -> list[Row]:
    """Each value that is concatenated, and the operations that are to be repeated on it."""
    rows: list[Row] = []
    for value in concat.args[0]:  # type: ignore[union-attr]
        assert isinstance(value, fx.Node)
        inner, steps = value, []
        while len(inner.users) == 1 and is_channelwise(inner, place.root):
            steps.append(inner)
            inner = inner.all_input_nodes[0]
        if is_channel_concat(inner) and (steps == [] or len(inner.users) == 1):
            rows += [(part, (*steps, *more)) for part, more in _parts(place, inner)]
        else:
            rows.append((value, ()))
    return rows


def _repeated(place: Place, step: fx.Node, value: fx.Node) -> fx.Node:
    if step.op == "call_module":
        return place.call_part(str(step.target), value)
    return place.call(step.target, value, *step.args[1:], **step.kwargs)  # type: ignore[arg-type]
