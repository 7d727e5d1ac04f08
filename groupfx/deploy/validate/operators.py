"""The operators of a candidate, those between the convolutions included, each judged on its own.

1. Both sides run in float64 on the same inputs, and values that agree are paired (`matching`).
2. What lies between pairs is run on inputs of all magnitudes, on both sides (`node_stress`): a
   difference that is not seen from the outside is found there. It counts where no other pair of
   equal values explains it, where it is there with the operators in front of it included, so that
   it can be reached, and where ONNX Runtime computes the same as the float64 evaluator.
3. Where values part for good, the operator is looked for at which they do (`suspects`).

The values of both sides are held as sketches, and their numbers up to 256 MB a side, so that each
operator runs once; what has no room is computed again. Beyond that and the weights, memory is that
of the model's own run in float64, on the smallest inputs. A piece that treats each place alone is
looked at in some places.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..quantised.tensors import QUANTIZE
from .extending import extended, joint
from .matching import Matching, Piece
from .narrowing import Named, named, narrowed, value_sketches
from .node_stress import Finding, Inputs, compare, draws, sampled, side_function
from .onnx_values import OnnxGraph
from .operator_checks import Apart, OperatorCheck
from .sketches import SketchBook
from .suspects import Culprit, Suspect, Trial, reaches, sandwiched
from .unseen_parts import unseen_operators
from .value_graph import Operator, ValueGraph, names_of

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

# From which share of its size on a value is another one; smaller differences are for the pieces.
_SHARE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1, torch.float64: 1e-6}
# Linear, and expensive: one random input tells them apart.
_LINEAR = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"))
_CONVS = frozenset(("Conv", "ConvTranspose"))
_LARGE = 1 << 22
# What has no float64 kernel has its own rounding, and may have its own layout.
_ROUNDED_SHARE = 1e-3
_MOST_ROUNDS = 4


@dataclass(frozen=True)
class Failure:
    """A piece that differs, on what, and where in the order of the candidate."""

    piece: Piece
    finding: Finding
    inputs: Inputs


@dataclass
class OperatorWork:
    """Judges the operators of `candidate` by `reference`, in `dtype`.

    `inputs` and `outputs` pair the reference's names with the candidate's; `runs` are feeds of the
    reference, `known` its sketches in them. `judged` are the sites that were looked at already.
    """

    candidate: ValueGraph
    reference: ValueGraph
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    runs: Sequence[Feeds]
    known: SketchBook
    dtype: torch.dtype
    judged: Collection[str] = ()
    _ratios: dict[tuple[int, Piece], Finding] = field(default_factory=dict)
    _agreeing: dict[Piece, Inputs] = field(default_factory=dict)

    def checks(self) -> tuple[OperatorCheck, ...]:
        """One for each operator or piece that was looked at, in the order of the candidate."""
        self._own = [
            {other: feeds[name] for name, other in self.inputs.items()} for feeds in self.runs
        ]
        share = _SHARE.get(self.dtype, _SHARE[torch.float32])
        books = value_sketches(self.candidate, self._own), self.known
        self.matching = Matching(
            self.candidate, self.reference, books, self.inputs, self.outputs, share
        )
        failures = self._stressed()
        wrong = [self._narrowed(failure) for failure in failures]
        wrong += self._parted({check.position for check in wrong})
        named = {check.position for check in wrong}
        right = [check for check in self._right() if check.position not in named]
        first: dict[int, OperatorCheck] = {}
        for check in (*wrong, *right):
            first.setdefault(check.position, check)
        return tuple(sorted(first.values(), key=lambda check: check.position))

    def unseen(self) -> tuple[Operator, ...]:
        """The operators that no output sees and nobody recomputed; for after `checks`."""
        floats = {name for name, each in self.matching.found.of.items() if each[0].kind == "f"}
        own = [op for op in self.candidate.operators if not self._in_site(op)]
        judged = [piece for _, piece in self._ratios]
        return tuple(
            unseen_operators(self.candidate, own, floats, judged, self._agreeing, self._own[0])
        )

    # What is paired

    def _pieces(self) -> Iterator[Piece]:
        """Those that are worth a look, in the order of the candidate."""
        for op in self.candidate.operators:
            for value in op.outputs:
                partner = self.matching.partner.get(value)
                piece = None if partner is None else self.matching.piece(value, partner)
                if piece is not None and not self._is_judged(piece):
                    yield piece

    def _is_judged(self, piece: Piece) -> bool:
        return bool(self.judged) and all(map(self._in_site, piece.candidate))

    def _in_site(self, op: Operator) -> bool:
        return op.site in self.judged or (op.site is None and op.kind in _CONVS)

    def _stressed(self) -> list[Failure]:
        """The pieces that differ, once no other pairing of equal values explains it."""
        for _ in range(_MOST_ROUNDS):
            failures = [f for run in range(len(self.runs)) for f in self._stress(run)]
            changed = [failure for failure in failures if self._paired_otherwise(failure)]
            if not changed:
                return [f for f in failures if self._is_confirmed(f)]
        return []

    def _stress(self, run: int) -> Iterator[Failure]:
        pieces: dict[int, list[Piece]] = {}
        uses: dict[str, int] = {}
        for piece in self._pieces():
            pieces.setdefault(self.candidate.producer[piece.ends[0]].index, []).append(piece)
            for name, _ in piece.cut:
                uses[name] = uses.get(name, 0) + 1
        held: dict[str, Array] = dict(self._own[run])
        for op, values in self.candidate.forward(self._own[run]):
            for name in op.outputs:
                array = self.candidate.array(values[name]) if name in values else None
                if array is not None and name in uses:
                    held[name] = array
            for piece in pieces.get(op.index, ()):
                names = [name for name, _ in piece.cut]
                if all(name in held for name in names):
                    yield from self._judged(run, piece, {name: held[name] for name in names})
                for name in names:
                    uses[name] -= 1
                    if not uses[name]:
                        held.pop(name, None)

    def _judged(self, run: int, piece: Piece, base: Inputs) -> Iterator[Failure]:
        known = self._ratios.get((run, piece))
        if known is not None and known.ratio <= 1:
            return
        worst = Finding(0.0)
        worst_inputs = base
        for inputs, finding in self._findings(piece, base):
            if finding.ratio > worst.ratio:
                worst, worst_inputs = finding, inputs
        self._ratios[run, piece] = worst
        if worst.ratio > 1:
            self._agreeing.pop(piece, None)
            yield Failure(piece, worst, worst_inputs)
        elif run == 0 and len(piece.candidate) > 1:
            self._agreeing[piece] = base

    def _findings(self, piece: Piece, base: Inputs) -> Iterator[tuple[Inputs, Finding]]:
        found, expected = self._functions(piece)
        base = sampled(piece, base, (found, expected))
        linear = all(op.kind in _LINEAR for op in piece.candidate)
        few = linear or sum(value.size for value in base.values()) > _LARGE
        for draw, drawn in draws(base, few):
            inputs = {name: self.candidate.holds(name, array) for name, array in drawn.items()}
            yield inputs, compare(expected, found, inputs, self._unit(piece), draw)

    def _functions(self, piece: Piece) -> tuple[Any, Any]:
        return (
            side_function(self.candidate, piece, 0),
            side_function(self.reference, piece, 1),
        )

    def _unit(self, piece: Piece) -> float:
        unit = float(torch.finfo(self.dtype).eps) / 2
        if self._is_rounded(piece):
            return max(unit, float(torch.finfo(torch.float32).eps) / 2) * 4
        return unit

    def _is_rounded(self, piece: Piece) -> bool:
        """Whether ONNX Runtime ran a part of it, for want of a float64 kernel."""
        graph = self.candidate
        return isinstance(graph, OnnxGraph) and any(
            graph.nodes[op.index].rounded for op in piece.candidate
        )

    def _right(self) -> Iterator[OperatorCheck]:
        worst: dict[Piece, float] = {}
        for (_, piece), finding in self._ratios.items():
            worst[piece] = max(worst.get(piece, 0.0), finding.ratio)
        for piece, ratio in worst.items():
            last = piece.candidate[-1]
            if ratio <= 1:
                yield OperatorCheck(
                    last.name, last.kind, True, ratio, names_of(piece.reference), last.index
                )

    # No accusation without evidence

    def _paired_otherwise(self, failure: Failure) -> bool:
        """Whether other values with the same numbers make a pair whose pieces agree."""
        matching = self.matching
        value, other = failure.piece.ends
        if value in {mine for _, mine, _ in matching.outputs}:
            return False
        if matching.partner.get(value) != other:
            return True  # another pair took its place in this very round
        values = [name for _, name in matching.found.near(matching.found.of[value], matching.share)]
        others = [n for _, n in matching.expected.near(matching.expected.of[other], matching.share)]
        free = [(value, name) for name in others if name not in matching.back]
        free += [(name, other) for name in values if name not in matching.partner]
        matching.unpair(value)
        for pair in free:
            piece = matching.piece(*pair)
            if piece is not None and self._agrees(piece):
                matching.pair(*pair)
                return True
        matching.pair(value, other)
        if self._is_chance(value, other):
            matching.unpair(value)
            return True
        return False

    def _is_chance(self, value: str, other: str) -> bool:
        """Whether two values are near by chance: all that is behind agrees without the pair.

        It must depend on them, for what is behind a branch times 0 agrees whatever is wrong.
        """
        matching = self.matching
        ends = [(name, matching.partner[name]) for name in matching.paired_behind(value)]
        matching.unpair(value)
        try:
            pieces = [matching.piece(*pair) for pair in ends]
            return bool(pieces) and all(
                piece is not None and self._agrees(piece) and self._depends(piece, value)
                for piece in pieces
            )
        finally:
            matching.pair(value, other)

    def _depends(self, piece: Piece, value: str) -> bool:
        base = self._values(piece)
        inside = {name for op in piece.candidate for name in op.outputs}
        return base is not None and value in inside and _reaches(self.candidate, piece, value, base)

    def _agrees(self, piece: Piece) -> bool:
        base = self._values(piece)
        if base is None:
            return False
        return all(finding.ratio <= 1 for _, finding in self._findings(piece, base))

    def _values(self, piece: Piece) -> Inputs | None:
        """What goes into a piece in the first run."""
        held = self.candidate.values_at({name for name, _ in piece.cut}, self._own[0])
        arrays = {name: value for name, value in held.items() if value is not None}
        return arrays if len(arrays) == len(piece.cut) else None

    def _is_confirmed(self, failure: Failure) -> bool:
        """Whether it is there with the operators in front as well, and in ONNX Runtime."""
        piece = failure.piece
        if self._is_rounded(piece) and not _ROUNDED_SHARE < failure.finding.share < np.inf:
            return False
        if self._only_evaluator(failure):
            return False
        longer = joint(self.matching, extended(self.matching, piece))
        if longer.cut == piece.cut:
            return True
        for own in self._own:
            held = self.candidate.values_at({name for name, _ in longer.cut}, own)
            base = {name: value for name, value in held.items() if value is not None}
            if len(base) < len(longer.cut):
                return True
            if any(finding.ratio > 1 for _, finding in self._findings(longer, base)):
                return True
        return False

    def _only_evaluator(self, failure: Failure) -> bool:
        """Whether ONNX Runtime does not compute what the evaluator does in float64."""
        graph, piece = self.candidate, failure.piece
        if not isinstance(graph, OnnxGraph):
            return False
        found, expected = self._functions(piece)
        try:
            mine, right = found(failure.inputs, None), expected(failure.inputs, None)
            native = _in_runtime(graph, piece, failure.inputs)
        except Exception:
            return False
        if mine.shape != right.shape or native.shape != mine.shape:
            return bool(native.shape == right.shape)
        if mine.dtype.kind != "f":
            return bool((native == right).mean() > (native == mine).mean())
        usable = np.isfinite(mine) & np.isfinite(right) & np.isfinite(native)
        apart = float(np.linalg.norm((mine - right)[usable]))
        off = float(np.linalg.norm((native - mine)[usable]))
        return off > 0.5 * apart > 0

    def _narrowed(self, failure: Failure) -> OperatorCheck:
        piece, finding = failure.piece, failure.finding
        found = narrowed(self.candidate, self.reference, piece, failure.inputs, finding.share)
        size = "of another shape" if np.isinf(finding.share) else f"off by {finding.share:.2g}"
        reason = found.reason or (
            f"on {finding.draw} it gives other values than {found.expected} of the reference: "
            f"{size} of their size"
        )
        named_now = replace(found, reason=reason)
        return _failed(named_now, finding.ratio, self._apart(found, piece, failure.inputs))

    # What has no partner

    def _parted(self, known: Collection[int]) -> list[OperatorCheck]:
        """The operators at which values part for good, but those that are known already."""
        matching = self.matching
        wrong = [n for n, value, other in matching.outputs if not matching.agree(value, other)]
        feeds = list(zip(self._own, self.runs, strict=True))
        exchanged = list(self._exchanged(wrong))
        if exchanged:
            return exchanged
        trial = Trial(matching, feeds, wrong)
        left = self._left(trial, wrong)
        found: list[OperatorCheck] = []
        for suspect in left:
            if any(op.index in known for op in suspect.operators):
                continue
            culprit = trial.culprit(suspect) or self._twin(trial, suspect)
            if culprit is not None:
                found.append(self._accused(culprit, feeds))
                if wrong and culprit.outputs == set(wrong):
                    return found
            elif not wrong:
                found += self._sandwiched(suspect)
        between = [s for s in left if not all(map(self._in_site, s.operators))]
        if wrong and between and not found and not known:
            op = between[0].first
            reason = (
                "what goes in is as in the reference, and what comes out is found nowhere there"
            )
            found.append(_failed(Named(op, "unknown", reason), np.inf))
        return found

    def _left(self, trial: Trial, wrong: Collection[str]) -> list[Suspect]:
        """The suspects that no piece clears that agrees; what a cleared one gives is right."""
        ends = {value for name, value, _ in self.matching.outputs if name in wrong}
        cleared: set[str] = set()
        while True:
            suspects = list(trial.suspects(cleared))
            fine = {s.value for s in suspects if s.value not in ends and self._is_cleared(s)}
            if not fine:
                return suspects
            cleared |= fine

    def _twin(self, trial: Trial, suspect: Suspect) -> Culprit | None:
        """The case against an operator that gives what the suspect should, and has its partner."""
        matching, value = self.matching, suspect.value
        sketches = matching.found.of.get(value)
        if sketches is None:
            return None
        for _, other in matching.found.near(sketches, matching.share):
            partner, op = matching.partner.get(other), self.candidate.producer.get(other)
            if partner is None or op is None or other == value:
                continue
            matching.unpair(other)
            matching.pair(value, partner)
            culprit = trial.culprit(Suspect((op,), other))
            if culprit is not None:
                return culprit
            matching.unpair(value)
            matching.pair(other, partner)
        return None

    def _exchanged(self, wrong: Sequence[str]) -> Iterator[OperatorCheck]:
        """Outputs that hold what belongs to another one."""
        for name, mine, other in self.matching.outputs:
            for their, _, value in self.matching.outputs:
                if name in wrong and value != other and self.matching.agree(mine, value):
                    op = self.candidate.producer.get(mine)
                    if op is not None:
                        reason = f"its output {name} holds what {their} of the reference does"
                        yield _failed(Named(op, their, reason), np.inf)

    def _is_cleared(self, suspect: Suspect) -> bool:
        """Whether it is part of a piece that agrees, and makes a difference there."""
        for piece, base in self._agreeing.items():
            inside = suspect.operators[-1] in piece.candidate
            # A place in an order is the same for scores that are 1 % too large; numbers of a grid
            # are not.
            whole = any(sketch.kind == "i" for sketch in self.matching.found.of[piece.ends[0]])
            if whole and piece.candidate[-1].kind != QUANTIZE:
                continue
            if inside and _reaches(self.candidate, piece, suspect.value, base):
                return True
        return False

    def _accused(self, culprit: Culprit, feeds: Sequence[tuple[Feeds, Feeds]]) -> OperatorCheck:
        found = named(self.matching, culprit, feeds)
        reason = found.reason or (
            f"what it gives is off by {culprit.share:.1%} from what {found.expected} of the "
            "reference gives; with that in its place, what is behind it agrees"
        )
        piece = self.matching.piece(culprit.suspect.value, culprit.expected)
        base = None if piece is None else self._values(piece)
        shown = None if piece is None or base is None else self._apart(found, piece, base)
        return _failed(replace(found, reason=reason), np.inf, shown)

    def _apart(self, found: Named, piece: Piece, inputs: Inputs) -> Apart | None:
        """What shows it to whoever runs the file's own nodes."""
        if not all(self.candidate.lies(name) for name, _ in (*piece.cut, piece.ends)):
            return None
        what = f"the operator {found.operator}"
        return Apart(what, piece.cut, piece.ends, piece.reference, inputs)

    def _sandwiched(self, suspect: Suspect) -> Iterator[OperatorCheck]:
        for other in self.matching.expected.of:
            if other in self.matching.back or other not in self.reference.producer:
                continue
            piece = sandwiched(self.matching, suspect, other)
            base = None if piece is None else self._values(piece)
            if piece is None or base is None:
                continue
            for failure in self._judged(0, piece, base):
                if self._is_confirmed(failure):
                    yield self._narrowed(failure)
            return


def _reaches(graph: ValueGraph, piece: Piece, value: str, base: Inputs) -> bool:
    try:
        return reaches(graph, piece, value, base)
    except Exception:  # an operator does not take what it is given
        return False


def _failed(found: Named, ratio: float, apart: Apart | None = None) -> OperatorCheck:
    op, reason = found.operator, found.reason
    return OperatorCheck(op.name, op.kind, False, ratio, found.expected, op.index, reason, apart)


def _in_runtime(graph: OnnxGraph, piece: Piece, given: Inputs) -> Array:
    values: dict[str, Array] = dict(given)
    for op in piece.candidate:
        made = graph.in_runtime(op, values)
        values.update({name: made[name] for name in made if name not in given})
    return values[piece.ends[0]]
