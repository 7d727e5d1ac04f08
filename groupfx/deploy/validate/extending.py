"""A piece with what lies in front of it, so that its inputs are such as can occur, and together.

Inputs of a piece are drawn. What differs on them alone is no difference: where it is not there with
the operators in front included, and where it is there only because one side computes again from a
value what the other reads beside it, drawn apart from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from .matching import Matching, Piece
from .value_graph import Operator

Pair = tuple[str, str]
"""A value of the candidate and that of the reference."""

_LEVELS_BACK = 2
# What reads how large a value is, and no number of it.
_SIZES = frozenset(("Shape", "Size", "sym_size", "sym_numel"))


def extended(matching: Matching, piece: Piece) -> Piece:
    """With the pieces in front of it, and those in front of them."""
    for _ in range(_LEVELS_BACK):
        piece = _longer(piece, {pair: _piece_of(matching, pair) for pair in piece.cut})
    return piece


def joint(matching: Matching, piece: Piece) -> Piece:
    """From a value on that one side alone reads, in place of all that is computed from it.

    What has no piece in front of it stays an input.
    """
    while True:
        alone = [pair for pair in piece.cut if _is_read_by_one(piece, pair)]
        behind = [
            pair
            for pair in piece.cut
            if any(o != pair and matching.candidate.depends(pair[0], o[0]) for o in alone)
        ]
        front = {pair: _piece_of(matching, pair) for pair in behind}
        if not any(front.values()):
            return piece
        piece = _longer(piece, front)


def _is_read_by_one(piece: Piece, pair: Pair) -> bool:
    """Whether one side alone reads the numbers of a pair of the cut."""
    sides = zip(pair, (piece.candidate, piece.reference), strict=True)
    found = [any(n in op.inputs and op.kind not in _SIZES for op in ops) for n, ops in sides]
    return found[0] != found[1]


def _piece_of(matching: Matching, pair: Pair) -> Piece | None:
    return matching.piece(*pair) if pair[0] in matching.candidate.producer else None


def _longer(piece: Piece, front: Mapping[Pair, Piece | None]) -> Piece:
    """A piece with those that lie in front of pairs of its cut."""
    found = [before for before in front.values() if before is not None]
    kept = [pair for pair in piece.cut if front.get(pair) is None]
    return replace(
        piece,
        candidate=_merged(piece.candidate, *(each.candidate for each in found)),
        reference=_merged(piece.reference, *(each.reference for each in found)),
        cut=tuple(dict.fromkeys((*kept, *(p for each in found for p in each.cut)))),
    )


def _merged(*groups: Sequence[Operator]) -> tuple[Operator, ...]:
    by_place = {op.index: op for group in groups for op in group}
    return tuple(by_place[index] for index in sorted(by_place))
