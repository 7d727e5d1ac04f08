"""Which operator a difference starts at, shown by putting the right value in its place.

A *suspect* reads values that the reference has too, and gives one that it has not. What another
tool fused or folded does so as well. So an operator is accused only where, with a value of the
reference in the place of its own, the candidate agrees with the reference in more places than
before and in fewer in none.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .matching import Matching, Piece
from .sketches import Sketch, distance, is_zero, sketched
from .value_graph import Operator, ValueGraph, is_anchor

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

# The kinds of torch's operators by those of ONNX that they become; others have the same letters.
_KINDS = {
    "cat": "concat", "matmul": "gemm", "addmm": "gemm", "bmm": "gemm", "mm": "gemm",
    "convtranspose1d": "convtranspose", "convtranspose2d": "convtranspose",
    "convtranspose3d": "convtranspose", "conv2d": "conv", "conv1d": "conv",
    "conv3d": "conv", "view": "reshape", "batchnorm": "batchnormalization",
    "permute": "transpose", "nativebatchnormlegitnotraining": "batchnormalization",
    "maxpool2d": "maxpool", "avgpool2d": "averagepool", "upsamplenearest2d": "resize",
    "upsamplebilinear2d": "resize", "meandim": "reducemean", "mean": "reducemean",
    "sum": "reducesum", "indexselect": "gather", "hardtanh": "clip", "clamp": "clip",
    "nativelayernorm": "layernormalization", "layernorm": "layernormalization",
    "adaptiveavgpool2d": "globalaveragepool", "constantpadnd": "pad", "select": "gather",
}  # fmt: skip
# What a site is in a graph of torch.
SITE_KINDS = frozenset(("conv", "convtranspose", "batchnormalization", "getitem"))
_MOST_GUESSES = 6
# Each trial is a run of the candidate: of a large model, fewer of them.
_LEAST_TRIALS, _MOST_TRIALS = 6, 40
_MOST_ELEMENTS = 4e8
_LONGEST_CHAIN = 4
_SEED = 7
# As many operators more for a value that another kind of operator gives.
_UNLIKE = 4


def plain_kind(op: Operator) -> str:
    """The kind of an operator under one name for both sides."""
    letters = op.kind.replace("_", "").lower()
    return _KINDS.get(letters, letters)


@dataclass(frozen=True)
class Suspect:
    """An operator, or the operators of one site, and the value that has no counterpart."""

    operators: tuple[Operator, ...]
    value: str

    @property
    def first(self) -> Operator:
        """The one that gives it its name."""
        return self.operators[0]


@dataclass(frozen=True)
class Culprit:
    """A suspect, the value of the reference that belongs in its place, and the evidence.

    `healed` is how many values agree with it in place, `outputs` which outputs; `share` is how far
    off the suspect's own is. `spare` says that the operator should do nothing at all.
    """

    suspect: Suspect
    expected: str
    healed: int
    outputs: frozenset[str]
    share: float
    spare: bool


class Trial:
    """Puts values of the reference into the candidate and looks at what is behind them."""

    def __init__(
        self, matching: Matching, feeds: Sequence[tuple[Feeds, Feeds]], wrong: Sequence[str]
    ) -> None:
        """`feeds` are those of the candidate and of the reference in each run, `wrong` outputs."""
        self.matching = matching
        self.feeds = feeds
        self.wrong = frozenset(wrong)
        elements = sum(math.prod(s.shape) for each in matching.found.of.values() for s in each)
        allowed = int(_MOST_ELEMENTS / max(elements, 1))
        self._left = min(max(allowed, _LEAST_TRIALS), _MOST_TRIALS)

    def suspects(self, cleared: Collection[str] = ()) -> Iterator[Suspect]:
        """What reads values that the reference has, or `cleared` ones, and gives others."""
        matching, graph = self.matching, self.matching.candidate
        clean = {*matching.partner, *cleared}
        sites: dict[str, list[Operator]] = {}
        for op in graph.operators:
            if op.site is not None:
                sites.setdefault(op.site, []).append(op)
        for op in graph.operators:
            if not all(name in clean for name in op.inputs):
                continue
            own = [name for name in op.outputs if name not in clean]
            clean.update(name for name in own if name not in matching.found.of)
            if op.site in sites:
                ops = sites.pop(op.site)
                inside = {name for each in ops for name in each.inputs}
                ends = [n for each in ops for n in each.outputs if n not in inside]
                yield from (Suspect(tuple(ops), n) for n in ends if n not in clean)
            elif op.site is None:
                yield from (Suspect((op,), name) for name in own if name in matching.found.of)

    def culprit(self, suspect: Suspect) -> Culprit | None:
        """The evidence against a suspect, with what follows if need be; None if there is none."""
        chain = suspect
        for _ in range(_LONGEST_CHAIN):
            found = self._culprit(chain)
            if found is not None:
                return found
            longer = self._longer(chain)
            if longer is None:
                return None
            chain = longer
        return None

    def _longer(self, suspect: Suspect) -> Suspect | None:
        """With the one operator that reads what it gives, if that has no counterpart either."""
        users = self.matching.candidate.consumers.get(suspect.value, ())
        if len(users) != 1 or users[0].site is not None or len(users[0].outputs) != 1:
            return None
        (value,) = users[0].outputs
        if value in self.matching.partner or value not in self.matching.found.of:
            return None
        return Suspect((*suspect.operators, users[0]), value)

    def _culprit(self, suspect: Suspect) -> Culprit | None:
        best: Culprit | None = None
        for expected, spare in self._guesses(suspect):
            if not self._left:
                return best
            self._left -= 1
            tried = self._tried(suspect, expected, spare)
            if tried is None:
                continue
            if self.wrong and tried.outputs == self.wrong:
                return tried
            rank = (len(tried.outputs), tried.healed)
            if best is None or rank > (len(best.outputs), best.healed):
                best = tried
        return best

    def _guesses(self, suspect: Suspect) -> list[tuple[str, bool]]:
        """Values of the reference that may belong there, the likeliest first.

        Last what the operator itself reads: it may be one too many.
        """
        matching, reference = self.matching, self.matching.reference
        value, op = suspect.value, suspect.operators[-1]
        read = [name for each in suspect.operators for name in each.inputs]
        sources = [matching.partner[name] for name in read if name in matching.partner]
        shapes = _shapes(matching.found.of.get(value))
        named = {other for _, mine, other in matching.outputs if mine == value}
        ranked = []
        for other, sketches in matching.expected.of.items():
            producer = reference.producer.get(other)
            if other in matching.back or producer is None or (named and other not in named):
                continue
            aside = not any(reference.depends(other, source) for source in sources)
            if suspect.first.site is not None and plain_kind(producer) not in SITE_KINDS:
                continue
            piece = matching.piece(value, other)
            size = np.inf if piece is None else piece.size
            unlike = plain_kind(producer) != plain_kind(op)
            ranked.append((_shapes(sketches) != shapes, size + _UNLIKE * (unlike + aside), other))
        likely = [(other, False) for _, _, other in sorted(ranked)[:_MOST_GUESSES]]
        return likely + [
            (other, True)
            for other in dict.fromkeys(sources)
            if _shapes(matching.expected.of.get(other)) == shapes and not named
        ]

    def _tried(self, suspect: Suspect, expected: str, spare: bool) -> Culprit | None:
        """What a value of the reference heals; None where it breaks something or heals nothing."""
        behind: dict[str, list[Sketch]] = {}
        off = 0.0
        for own, other in self.feeds:
            right = self.matching.reference.values_at({expected}, other).get(expected)
            if right is None:
                return None
            for name, sketch in self._with(suspect.value, right, own):
                behind.setdefault(name, []).append(sketch)
            found = self.matching.candidate.values_at({suspect.value}, own)
            off = max(off, _share(found.get(suspect.value), right))
        healed = self._healed(suspect.value, expected, behind)
        outputs = self._healed_outputs(behind)
        if healed is None or not (healed or outputs):
            return None
        return Culprit(suspect, expected, healed, outputs, off, spare)

    def _with(self, value: str, right: Array, feeds: Feeds) -> Iterator[tuple[str, Sketch]]:
        """What is computed from a value once it is right."""
        graph = self.matching.candidate
        for op, values in graph.forward(feeds, {value: right}):
            for name in op.outputs:
                array = graph.array(values[name]) if name in values else None
                if array is not None and is_anchor(array) and graph.depends(name, value):
                    yield name, sketched(array)

    def _healed(
        self, value: str, expected: str, behind: Mapping[str, Sequence[Sketch]]
    ) -> int | None:
        """How many values have a counterpart now, None where one has lost it."""
        matching, healed = self.matching, 0
        for name, sketches in behind.items():
            if name == value or len(sketches) != len(self.feeds) or is_zero(sketches):
                continue
            partner = matching.partner.get(name)
            if partner is not None:
                if distance(sketches, matching.expected.of[partner]) > matching.share:
                    return None
                continue
            near = matching.expected.near(sketches, matching.share)
            healed += any(n != expected and n not in matching.back for _, n in near)
        return healed

    def _healed_outputs(self, behind: Mapping[str, Sequence[Sketch]]) -> frozenset[str]:
        expected = self.matching.expected.of
        return frozenset(
            name
            for name, mine, other in self.matching.outputs
            if name in self.wrong
            and other in expected
            and len(behind.get(mine, ())) == len(expected[other])
            and distance(behind[mine], expected[other]) <= self.matching.share
        )


def sandwiched(matching: Matching, suspect: Suspect, expected: str) -> Piece | None:
    """The piece of a suspect that would be one with `expected`, where all that reads it says so.

    What is behind must be paired, and must then be computed from this pair alone on this way.
    """
    value = suspect.value
    if value in matching.partner or expected in matching.back:
        return None
    ends = list(matching.paired_behind(value))
    if not ends:
        return None
    before = [matching.piece(name, matching.partner[name]) for name in ends]
    own = matching.piece(value, expected)
    matching.partner[value], matching.back[expected] = expected, value
    try:
        after = [matching.piece(name, matching.partner[name]) for name in ends]
    finally:
        del matching.partner[value], matching.back[expected]
    for old, new in zip(before, after, strict=True):
        if new is None or (value, expected) not in new.cut or (old and new.size >= old.size):
            return None
    return own


def reaches(graph: ValueGraph, piece: Piece, value: str, inputs: Feeds) -> bool:
    """Whether a value inside a piece makes a difference at the piece's end."""
    end = piece.ends[0]
    plain = graph.compute(piece.candidate, inputs, end)
    inner = graph.compute(piece.candidate, inputs, value)
    if inner.dtype.kind != "f":
        return True
    size = float(np.abs(inner[np.isfinite(inner)]).max(initial=0.0)) or 1.0
    drawn = np.random.default_rng(_SEED).standard_normal(inner.shape)
    moved = graph.compute(piece.candidate, {**inputs, value: inner + size * drawn}, end)
    return moved.shape != plain.shape or not np.array_equal(moved, plain, equal_nan=True)


def _shapes(sketches: Sequence[Sketch] | None) -> tuple[tuple[int, ...], ...]:
    return tuple(sketch.shape for sketch in sketches or ())


def _share(found: Array | None, expected: Array) -> float:
    if found is None or found.shape != expected.shape:
        return float("inf")
    wide = expected.astype(np.float64)
    size = float(np.linalg.norm(wide))
    off = float(np.linalg.norm(found.astype(np.float64) - wide))
    return off / size if size else (0.0 if off == 0 else float("inf"))
