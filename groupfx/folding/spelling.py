"""What a link is at run time, by where each of its channels is read: the cheapest way to say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..plan.channels import Slice
from ..plan.gathers import GatherPlan, plan_gather
from .orders import Order, runs

MOST_PIECES = 4
"""Slices and one concatenation are cheaper than a gather up to so many slices."""


@dataclass(frozen=True)
class Piece:
    """Channels of one source; all of it where `part` is None."""

    source: int
    part: Slice | None


@dataclass(frozen=True)
class Spelling:
    """Pieces that are concatenated (one is taken as it is), and a gather behind them, or None.

    `moves` says whether channels are reordered at run time: whole sources in any order, and one
    slice of one source, are not.
    """

    pieces: tuple[Piece, ...]
    gather: GatherPlan | None
    moves: bool

    @property
    def nothing(self) -> bool:
        """Whether the one source is the result."""
        return self.gather is None and len(self.pieces) == 1 and self.pieces[0].part is None

    def describe(self) -> str:
        """In a few words, such as `4 slices`."""
        if self.gather is not None:
            return {"shuffle": "a shuffle", "transpose": "a transpose"}.get(
                self.gather.kind, "a gather"
            )
        if len(self.pieces) > 1:
            return f"{len(self.pieces)} slices" if self.moves else "a concatenation"
        return "nothing" if self.nothing else "a slice"


def pieces_of(positions: Order, lengths: Sequence[int]) -> tuple[Piece, ...]:
    """`positions` in the concatenated sources, cut where they jump and where a source ends."""
    ends = np.cumsum(lengths)
    found = []
    for start, stop in runs(positions):
        while start < stop:
            source = int(np.searchsorted(ends, start, side="right"))
            first = int(ends[source]) - lengths[source]
            last = min(stop, int(ends[source]))
            whole = (start, last) == (first, int(ends[source]))
            found.append(Piece(source, None if whole else Slice(start - first, last - first)))
            start = last
    return tuple(found)


def moves(pieces: Sequence[Piece]) -> bool:
    """Whether so many pieces reorder channels at run time."""
    return len(pieces) > 1 and any(piece.part is not None for piece in pieces)


def spell(positions: Order, lengths: Sequence[int]) -> Spelling:
    """The cheapest way to read `positions` of the concatenated sources, each of a length."""
    pieces = pieces_of(positions, lengths)
    if not moves(pieces):
        return Spelling(pieces, None, moves=False)
    plan = plan_gather([int(p) for p in positions], int(sum(lengths)))
    if plan.kind == "gather" and len(pieces) <= MOST_PIECES:
        return Spelling(pieces, None, moves=True)
    whole = tuple(Piece(source, None) for source in range(len(lengths)))
    return Spelling(whole, plan, moves=True)
