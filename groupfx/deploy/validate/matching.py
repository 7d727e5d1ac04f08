"""Which value of a candidate is which value of the reference, and what lies between such pairs.

Values are paired where their numbers agree; of several that do (a ReLU of what is positive, the sum
with a branch that gives zeros) the pair counts that leaves the least between it and earlier pairs.
What another tool fused or folded has no partner, and is passed over: a *piece* is all that either
side computes between a pair and the pairs in front of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .sketches import SketchBook, distance
from .value_graph import Operator, ValueGraph

# Of the nearest values, those that are about as near.
_AS_NEAR, _NEAR_FLOOR = 30.0, 1e-9
_MOST_OPERATORS = 400


@dataclass(frozen=True)
class Piece:
    """What both sides compute between a pair of values and those of `cut` in front of it.

    Pairs are the value of the candidate and that of the reference. An input of the model may be one
    that a side alone reads, for its size.
    """

    ends: tuple[str, str]
    candidate: tuple[Operator, ...]
    reference: tuple[Operator, ...]
    cut: tuple[tuple[str, str], ...]

    @property
    def size(self) -> int:
        """How many operators it has on both sides."""
        return len(self.candidate) + len(self.reference)


class Matching:
    """The pairs of two graphs. `inputs` and `outputs` pair the reference's names with the others.

    `share` is the distance, by a value's size, from which on two values are different ones.
    """

    def __init__(
        self,
        candidate: ValueGraph,
        reference: ValueGraph,
        books: tuple[SketchBook, SketchBook],
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
        share: float,
    ) -> None:
        self.candidate, self.reference = candidate, reference
        self.found, self.expected = books
        self.share = share
        self.partner: dict[str, str] = {}
        self.back: dict[str, str] = {}
        for name, other in inputs.items():
            self.pair(other, name)
        self.outputs = [
            (name, candidate.outputs[other], reference.outputs[name])
            for name, other in outputs.items()
            if other in candidate.outputs and name in reference.outputs
        ]
        for _, value, other in self.outputs:
            if self.agree(value, other) and value not in self.partner and other not in self.back:
                self.pair(value, other)
        # What an output holds is that output or wrong, whatever else it may look like.
        self._ends = {end for _, value, other in self.outputs for end in ((0, value), (1, other))}
        for op in candidate.operators:
            for value in op.outputs:
                self._find(value)

    def agree(self, value: str, other: str) -> bool:
        """Whether the numbers of two values are the same up to rounding."""
        if value not in self.found.of or other not in self.expected.of:
            return value not in self.found.of and other not in self.expected.of
        return distance(self.found.of[value], self.expected.of[other]) <= self.share

    def pair(self, value: str, other: str) -> None:
        """Let two values be one."""
        self.partner[value], self.back[other] = other, value

    def paired_behind(self, value: str) -> Iterator[str]:
        """The first paired values of the candidate that are computed from a value, each once.

        Each value is looked at once: the ways through a residual network are without number.
        """
        pending, seen = [value], {value}
        while pending:
            for op in self.candidate.consumers.get(pending.pop(), ()):
                for name in op.outputs:
                    if name in seen:
                        continue
                    seen.add(name)
                    if name in self.partner:
                        yield name
                    else:
                        pending.append(name)

    def unpair(self, value: str) -> None:
        """Forget the pair of a value of the candidate."""
        del self.back[self.partner.pop(value)]

    def _find(self, value: str) -> None:
        if value in self.partner or value not in self.found.of or (0, value) in self._ends:
            return
        near = self.expected.near(self.found.of[value], self.share)
        free = [(off, n) for off, n in near if n not in self.back and (1, n) not in self._ends]
        if not free:
            return
        least = _AS_NEAR * min(free)[0] + _NEAR_FLOOR
        names = [n for off, n in free if off <= least and not self._namesake(value, n)]
        pieces = [piece for name in names if (piece := self.piece(value, name)) is not None]
        if pieces:
            best = min(pieces, key=lambda piece: piece.size)
            self.pair(*best.ends)

    def _namesake(self, value: str, other: str) -> bool:
        """Whether another value of the candidate has the numbers, and the name as well."""
        return other != value and other in self.found.of and self.agree(other, other)

    def piece(self, value: str, other: str) -> Piece | None:
        """What lies between two values and the pairs in front; None where it is too much."""
        walk = _Walk(self, value, other)
        return walk.piece() if walk.done() else None


class _Walk:
    """Goes backwards from two values on both sides until what is read is paired."""

    def __init__(self, matching: Matching, value: str, other: str) -> None:
        self.matching = matching
        self.ends = (value, other)
        self.ops: tuple[dict[int, Operator], dict[int, Operator]] = ({}, {})
        self.front: tuple[set[str], set[str]] = (set(), set())

    @property
    def _sides(self) -> tuple[ValueGraph, ValueGraph]:
        return self.matching.candidate, self.matching.reference

    def piece(self) -> Piece:
        """What was walked over."""
        candidate, reference = (tuple(ops[index] for index in sorted(ops)) for ops in self.ops)
        place, partner = self._sides[0].place, self.matching.partner
        values = self.front[0] | {self.matching.back[other] for other in self.front[1]}
        ordered = sorted(values, key=place.__getitem__)
        return Piece(self.ends, candidate, reference, tuple((v, partner[v]) for v in ordered))

    def done(self) -> bool:
        """Whether the walk ended at pairs."""
        if not all(self._expand(side, end) for side, end in enumerate(self.ends)):
            return False
        while True:
            free = self._free()
            if not free:
                return True
            # A site that was split into thousands of branches is too much from the start.
            waiting = {(s, self._sides[s].producer[v].index) for s, v in free}
            taken = len(self.ops[0]) + len(self.ops[1])
            if taken > _MOST_OPERATORS or len(waiting) > 2 * _MOST_OPERATORS:
                return False
            side, name = self._last(free)
            if not self._expand(side, name):
                return False

    def _free(self) -> list[tuple[int, str]]:
        """Values without a partner in the other side's front."""
        partner, back = self.matching.partner, self.matching.back
        found = [(0, v) for v in self.front[0] if partner.get(v) not in self.front[1]]
        found += [(1, v) for v in self.front[1] if back.get(v) not in self.front[0]]
        return [(side, v) for side, v in found if v in self._sides[side].producer]

    def _last(self, free: list[tuple[int, str]]) -> tuple[int, str]:
        """The one to go on from: not one whose partner the other side may still come to."""
        tables = (self.matching.partner, self.matching.back)
        # Once: a site that was split into thousands of branches has as many values in front.
        opposite = tuple([v for s, v in free if s != side] for side in (0, 1))
        waiting = set()
        for side, name in free:
            partner = tables[side].get(name)
            graph, others = self._sides[1 - side], opposite[side]
            if partner is not None and any(graph.depends(v, partner) for v in others):
                waiting.add((side, name))
        ready = [entry for entry in free if entry not in waiting] or free
        return max(ready, key=lambda entry: self._sides[entry[0]].place[entry[1]])

    def _expand(self, side: int, name: str) -> bool:
        op = self._sides[side].producer.get(name)
        if op is None:  # an input of the model
            return False
        self.ops[side][op.index] = op
        self.front[side].discard(name)
        self.front[side].update(op.inputs)
        # The end of the walk is not what it starts from.
        return self.ends[side] not in self.front[side]
