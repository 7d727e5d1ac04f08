"""Which operator of a piece is wrong: the piece is compared with the reference's once more, inside.

What goes into a piece is the same on both sides, and drawn so that nothing hides. So its inner
values are paired like those of a whole model, and the operator at which they part is looked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .matching import Matching, Piece
from .sketches import SketchBook, distance, sketched
from .suspects import SITE_KINDS, Culprit, Suspect, Trial, plain_kind
from .value_graph import END, Operator, Part, ValueGraph, is_anchor, names_of

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

_LEAST_SHARE, _MOST_SHARE = 1e-10, 1e-3
_SAME = 1e-6
_MOVING = frozenset(
    ("Reshape", "Squeeze", "Unsqueeze", "Transpose", "Flatten", "Identity", "Cast", "Shape",
     "CastLike", "Expand", "Constant", "ConstantOfShape", "Range")
)  # fmt: skip
# What these give is known from what they read: no number is computed.
_IDLE = frozenset(("CastLike", "Shape", "Constant", "ConstantOfShape", "Identity"))
_WITH_BIAS = frozenset(("Gemm", "MatMul", "Conv", "ConvTranspose"))


@dataclass(frozen=True)
class Named:
    """An operator that is wrong, and how: words that go on behind its name."""

    operator: Operator
    expected: str
    reason: str


def value_sketches(graph: ValueGraph, runs: Sequence[Feeds]) -> SketchBook:
    """A sketch of every value that says by its numbers which one it is, in each run."""
    found: dict[str, list[Any]] = {}
    graph.keep(runs)
    outputs = set(graph.outputs.values())
    for feeds in runs:
        for name in graph.inputs:
            if is_anchor(feeds[name]):
                found.setdefault(name, []).append(sketched(feeds[name]))
        for op, values in graph.forward(feeds):
            for name in op.outputs:
                array = graph.array(values[name]) if name in values else None
                if array is not None and (is_anchor(array) or name in outputs):
                    found.setdefault(name, []).append(sketched(array))
    return SketchBook((name, each) for name, each in found.items() if len(each) == len(runs))


def narrowed(
    candidate: ValueGraph, reference: ValueGraph, piece: Piece, inputs: Feeds, share: float
) -> Named:
    """The operator of `piece` that is wrong on `inputs`, where the piece is off by `share`."""
    last = piece.candidate[-1]
    names = [pair[0] for pair in piece.cut], [pair[1] for pair in piece.cut]
    parts = (
        Part(candidate, piece.candidate, names[0], piece.ends[0]),
        Part(reference, piece.reference, names[1], piece.ends[1]),
    )
    feeds = dict(inputs), {other: inputs[name] for name, other in piece.cut}
    books = tuple(value_sketches(p, [f]) for p, f in zip(parts, feeds, strict=True))
    near = min(max(0.1 * share, _LEAST_SHARE), _MOST_SHARE) if np.isfinite(share) else _MOST_SHARE
    matching = Matching(
        *parts,
        (books[0], books[1]),
        {other: name for name, other in piece.cut},
        {END: END},
        near,
    )
    trial = Trial(matching, [feeds], [END])
    suspects = list(trial.suspects())
    for suspect in suspects:
        culprit = trial.culprit(suspect)
        if culprit is not None and culprit.outputs:
            return named(matching, culprit, [feeds])
    between = [s.first for s in suspects if s.first.site is None]
    only = odd_one(between, piece.reference) if between else last
    return Named(only, names_of(piece.reference), "")


def named(matching: Matching, culprit: Culprit, feeds: Sequence[tuple[Feeds, Feeds]]) -> Named:
    """The operator of a culprit, and what is wrong about it."""
    suspect = culprit.suspect
    piece = matching.piece(suspect.value, culprit.expected)
    acting = _acting(matching, suspect.operators)
    op = odd_one(acting or suspect.operators, () if piece is None else piece.reference)
    if culprit.spare:
        return Named(op, "nothing", "the reference has nothing in its place")
    expected = matching.reference.producer[culprit.expected]
    lacking = _lacking(matching, suspect, culprit.expected, feeds)
    if lacking is None and not acting:
        lost = f"not what {expected} of the reference does, which the reference has there"
        reason = f"it gives what it reads, {lost}"
        return Named(op, str(expected), reason)
    if lacking is None:
        return Named(op, str(expected), "")
    wanted = matching.reference.producer[lacking.wanted]
    source = matching.candidate.producer.get(lacking.read)
    there = matching.back.get(lacking.wanted)
    if source is not None and there in source.outputs:
        reason = f"its outputs are exchanged: {op} reads {lacking.read} in place of {there}"
        return Named(source, str(wanted), reason)
    if source is not None and source.kind in _WITH_BIAS and plain_kind(wanted) == "add":
        return Named(source, str(wanted), f"what {wanted} of the reference adds is missing")
    reason = f"it computes what {expected} of the reference does, but does not read what {wanted} "
    return Named(op, str(wanted), f"{reason}gives, which the reference has there")


def _acting(matching: Matching, operators: Sequence[Operator]) -> list[Operator]:
    """Those that change what they read, as a product with 1 does not; of a site all."""
    found = matching.found.of

    def passes(op: Operator) -> bool:
        return op.kind in _IDLE or any(
            given in found and made in found and distance(found[given], found[made]) <= _SAME
            for given in op.inputs
            for made in op.outputs
        )

    return [op for op in operators if op.site is not None or not passes(op)]


def odd_one(operators: Sequence[Operator], reference: Sequence[Operator]) -> Operator:
    """The operator of several that the reference has not: rather one that computes than moves."""
    if operators[0].site is not None:
        return operators[0]
    kinds = [plain_kind(op) for op in reference]
    left = []
    for op in operators:
        if plain_kind(op) in kinds:
            kinds.remove(plain_kind(op))
        else:
            left.append(op)
    computing = [op for op in left if op.kind not in _MOVING]
    return (*computing, *left, *operators)[0]


@dataclass(frozen=True)
class _Lacking:
    """A value of the reference that an operator should read, and what it reads instead."""

    wanted: str
    read: str


def _lacking(
    matching: Matching, suspect: Suspect, value: str, feeds: Sequence[tuple[Feeds, Feeds]]
) -> _Lacking | None:
    """What a suspect should read, where it computes what the reference's operator does."""
    reference = matching.reference
    if suspect.first.site is not None:
        piece = matching.piece(suspect.value, value)
        inner = () if piece is None else piece.reference
        others = [op for op in inner if plain_kind(op) not in SITE_KINDS]
        return _Lacking(others[-1].outputs[-1], suspect.first.inputs[0]) if others else None
    expected, op = reference.producer[value], suspect.operators[-1]
    if len(suspect.operators) > 1 or len(expected.inputs) != len(op.inputs):
        return None
    held = matching.candidate.values_at({*op.inputs, suspect.value}, feeds[0][0])
    arrays = {name: array for name, array in held.items() if array is not None}
    if not all(name in arrays for name in (*op.inputs, suspect.value)):
        return None
    for mine in (op.inputs, tuple(reversed(op.inputs))):
        pairs = list(zip(mine, expected.inputs, strict=True))
        if _gives(
            reference, expected, value, {r: arrays[c] for c, r in pairs}, arrays[suspect.value]
        ):
            wrong = (_Lacking(r, c) for c, r in pairs if matching.partner.get(c) != r)
            return next((each for each in wrong if each.wanted in reference.producer), None)
    return None


def _gives(reference: ValueGraph, op: Operator, value: str, given: Feeds, found: Array) -> bool:
    try:
        again = reference.compute([op], given, value)
    except Exception:  # what it is given may not fit
        return False
    return again.shape == found.shape and np.allclose(again, found, _SAME, _SAME)
