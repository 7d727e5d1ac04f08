"""Is a candidate the same function as its reference, and if not, which site is wrong?"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...errors import GroupfxError, ModelError, UsageError, first_line, kind_and_line
from ...plan.channel_order import Order
from ...running.alone import alone
from .blaming import Evidence
from .coverage import Coverage
from .difference import Difference
from .drawn_batches import batches
from .draws import PREFIX, settle_draws
from .example_feeds import example_feeds, input_domains, require_fit
from .nearby import MOVES, neighbours
from .operator_runs import OperatorReport, chosen_runs, look_at_operators
from .opinions import EVALUATOR, ON, Runtime, runtimes_of
from .output_checks import OutputCheck, OutputRun, check_outputs, require_outputs
from .quantised.comparing import is_quantised, validate_quantised
from .quantised.feeds import Given
from .runs import Open, Run, make_runs, perturbed
from .settled import settled_outputs
from .sides import OnnxSide, Side, TorchSide, Values, open_axes, paired
from .site_checks import first_and_worst
from .site_work import SiteWork
from .verdict import Unseen, Validation, Verdict

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
Progress = Callable[[int, int], None]

_SMALL_ELEMENTS = 50_000
_SLOW_OPINION = 1.0


@dataclass(frozen=True)
class ValidationOptions:
    """What to compare on, and how strictly; see `groupfx.validate`.

    `given` says that the torch side's example inputs are a user's own. `shapes` are those of the
    inputs of two files, by name or position, where the files leave sizes open.
    """

    atol: Mapping[str, float] = field(default_factory=dict)
    data: Sequence[Mapping[str, Array]] = ()
    given: bool = False
    shapes: Mapping[str | int, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.atol.items():
            if not value >= 0:
                raise UsageError(f"atol of {name} is {value}: it must be at least 0")


@alone
def validate_sides(
    reference: Side,
    candidate: Side,
    options: ValidationOptions,
    progress: Progress | None = None,
) -> Validation:
    """Compare two sides on all runs; `progress` is called with how many are done and of how many.

    Raises `UsageError` where inputs or outputs cannot be paired, `FileError` where ONNX Runtime
    cannot load a file, `ModelError` where the reference does not run.
    """
    if isinstance(candidate, OnnxSide) and is_quantised(candidate.model):
        held = isinstance(reference, OnnxSide) and is_quantised(reference.model)
        if not held:
            given = Given(options.data, options.shapes, options.given, options.atol)
            return validate_quantised(reference, candidate, given, progress)
    return _Comparison(reference, candidate, options).run(progress)


class _Comparison:
    def __init__(self, reference: Side, candidate: Side, options: ValidationOptions) -> None:
        self.reference = reference
        self.candidate = candidate
        self.options = options
        # Of two files either may be the one that was rounded.
        narrow = isinstance(reference, OnnxSide) and reference.dtype == torch.float16
        self.dtype = torch.float16 if narrow else candidate.dtype
        self.notes: list[str] = []
        self.inputs = paired(reference.inputs, candidate.inputs, "input")
        self.taken: dict[tuple[str, str], list[OutputRun]] = {}
        self.names: dict[str, str] | None = None
        self.failed: list[str] = []
        self.coverage = Coverage(self.dtype)
        self.domains, guessed = input_domains(reference, candidate, self.inputs)
        self.notes += [
            f"nothing says which integers {name} takes: {self.domains[name]} are guessed"
            for name in guessed
        ]
        self.drawn: tuple[str, ...] = ()
        self.guessed: str | None = None
        self.example = self._example()
        feeds = self.example, self._for_candidate(self.example)
        self.draws = settle_draws(reference, candidate, feeds, self.dtype)
        self.drawn = self.draws.names
        self.reference, self.candidate = self.draws.reference, self.draws.candidate
        if isinstance(self.reference, TorchSide) and not any(_open_beside_batch(self.candidate)):
            self.reference.with_fixed_sizes()
        self.notes += self.draws.notes
        self.failed += [self.draws.wrong] if self.draws.wrong else []
        self.random: list[Unseen] = []
        self.bound = False
        self.refused: GroupfxError | None = None
        self.overflowing: Run | None = None
        self._near: dict[str, Sequence[tuple[Values, Values]]] = {}
        self._wide: dict[str, Values] = {}
        self._too_slow = False

    def run(self, progress: Progress | None) -> Validation:
        sites = SiteWork(self.reference, self.candidate, self.dtype)
        runtimes, notes = runtimes_of(self.candidate, self.dtype)
        self.notes += notes
        done: list[Run] = []
        waiting = self._runs(bound=False)
        tried = 0
        while waiting:
            run = waiting.pop(0)
            tried += 1
            with contextlib.suppress(Exception):  # a run that the reference does not take
                run = replace(run, feeds={**run.feeds, **self.draws.draw(run.feeds)})
            taken = self._one(run, runtimes)
            if taken is not None:
                done.append(run)
                if run.resized:
                    waiting = [other for other in waiting if not other.resized]
                sites.look(run, self._for_candidate(run.feeds))
            elif run.rebatched and not self.bound:
                self.bound = True
                known = {run.name, *(other.name for other in done)}
                waiting = [r for r in self._runs(bound=True) if r.name not in known]
            if progress is not None:
                progress(tried, tried + len(waiting))
        if not done and self.refused is not None:
            raise self.refused
        return self._verdict(sites, done, tuple(runtimes))

    def _verdict(
        self, sites: SiteWork, done: Sequence[Run], runtimes: tuple[str, ...]
    ) -> Validation:
        outputs = self._outputs()
        checks = sites.checks()
        first, worst = first_and_worst(checks)
        off = {check.run for check in outputs if not check.ok}
        seen = [check.name for check in checks if check.seen]
        operators = self._operators(done, off, seen, self._tied(outputs), sites.orders())
        judged = [check for check in outputs if check.runtime != EVALUATOR]
        # Who says how far off an output may be allows what makes it so.
        right = first is None and (operators.first is None or bool(self.options.atol))
        wrong = bool(self.failed) or not right or not all(check.ok for check in judged)
        if not wrong and not all(check.ok for check in outputs):
            self.notes.append(
                f"the {EVALUATOR} alone disagrees: ONNX Runtime computes what it should"
            )

        def settled() -> frozenset[str]:
            proved = settled_outputs(self.candidate, self.names or {}, checks)
            return self.reference.fixed_outputs() | proved

        hidden = map(Unseen, operators.unseen)
        unseen = (*self.random, *self.coverage.unseen(settled), *hidden)
        verdict: Verdict = "different" if wrong else "same"
        evidence = Evidence(
            reference=self.reference,
            candidate=self.candidate,
            dtype=self.dtype,
            outputs=outputs,
            sites=sites,
            operators=operators,
            failed=self.failed,
            taken=self.taken,
            runs={run.name: run for run in done},
            own=self._for_candidate,
        )
        blame = evidence.blame() if wrong else None
        decisive = [found.text for found in unseen if found.decides]
        if not wrong and decisive:
            verdict, blame = "not comparable", evidence.why_not(decisive, self.overflowing)
        return Validation(
            verdict=verdict,
            reference=self.reference.source,
            candidate=self.candidate.source,
            dtype=str(self.dtype).removeprefix("torch."),
            outputs=outputs,
            sites=checks,
            first_site=first,
            worst_site=worst,
            blame=blame,
            unseen=tuple(found.text for found in unseen),
            runs=tuple(run.name for run in done),
            runtimes=runtimes,
            notes=(*self.notes, *sites.notes, *operators.notes, *self.reference.notes),
            operators=operators.checks,
            guessed=self.guessed,
            pieces=sites.pieces(),
            blocks=sites.blocks(),
            difference=self._difference(sites, operators, outputs, done) if wrong else None,
        )

    def _difference(
        self,
        sites: SiteWork,
        operators: OperatorReport,
        outputs: Sequence[OutputCheck],
        done: Sequence[Run],
    ) -> Difference:
        """What is needed to look at it again."""
        off = [check for check in outputs if not check.ok and check.runtime != EVALUATOR]
        first = next((check for check in sites.checks() if not check.ok), None)
        pairs = {region.name: (function, region) for function, region in sites.pairs}
        wrong = {check.run for check in off} | ({first.run} if first else set())
        return Difference(
            reference=self.reference,
            candidate=self.candidate,
            dtype=self.dtype,
            inputs=self.inputs,
            outputs=self.names or {},
            runs={run.name: run.feeds for run in done if run.name in wrong},
            site=None if first is None else (first, *pairs[first.name]),
            apart=next((c.apart for c in operators.checks if c.apart is not None), None),
            output=max(off, key=lambda check: check.ratio, default=None),
        )

    def _tied(self, outputs: Sequence[OutputCheck]) -> set[str]:
        """Outputs of whole numbers that differ and are right: any of several equal ones is."""
        right = {c.name for c in outputs} - {c.name for c in outputs if not c.ok}
        return {
            name
            for (name, _), runs in self.taken.items()
            if name in right and any(_differ(run) for run in runs)
        }

    def _operators(
        self,
        runs: Sequence[Run],
        wrong: set[str],
        judged: list[str],
        tied: set[str],
        orders: Mapping[str, Order] | None,
    ) -> OperatorReport:
        """What is between the sites, looked at on ordinary runs, one of them a `wrong` one."""
        # A side has draws of its own; what leaves the range of a dtype is wrong on both sides.
        drawn = bool(self.drawn or self.random)
        chosen = chosen_runs([run for run in runs if run.ordinary], wrong)
        if not chosen or self.names is None or drawn or self.overflowing is not None:
            return OperatorReport()
        pairs = (
            self.inputs,
            {n: o for n, o in self.names.items() if not n.startswith(PREFIX) and o not in tied},
        )
        feeds = [(run.feeds, self._wide[run.name]) for run in chosen]
        sides = self.reference, self.candidate
        return look_at_operators(*sides, pairs, feeds, self.dtype, judged, orders)

    def _runs(self, *, bound: bool) -> list[Run]:
        """All runs; of the example's own batch where it is `bound`."""
        axes = [dict(open_axes(side)) for side in (self.reference, self.candidate)]
        free = [
            [a and b for a, b in zip(axes[0][name], axes[1][other], strict=False)]
            for name, other in self.inputs.items()
        ]
        batch = not bound and all(sizes[0] for sizes in free if sizes)
        spatial = any(len(sizes) > 2 for sizes in free) and all(
            all(sizes[2:]) for sizes in free if len(sizes) > 2
        )
        side, opened = self.candidate, Open(batch, spatial)
        rows = batches(self.example, side.model if isinstance(side, OnnxSide) else None)
        more = self._data(), self.domains, rows
        return list(make_runs(self.example, self.options.given, opened, *more))

    def _example(self) -> Values:
        """One array for each input of the reference, in the candidate's dtypes."""
        shapes, sides = self.options.shapes, (self.reference, self.candidate)
        found = example_feeds(*sides, self.inputs, shapes, self.domains)
        self.guessed = found.guessed
        return self._fitting(found.feeds)

    def _fitting(self, feeds: Feeds) -> Values:
        """The same arrays in the candidate's dtypes. Raises UsageError for sizes that do not fit.

        What a user saves with numpy is float64 unless it was made otherwise. Both sides get the
        same numbers: where a file takes float16, those that it can hold.
        """
        dtypes = _dtypes(self.candidate)
        own = _dtypes(self.reference) if isinstance(self.reference, OnnxSide) else {}
        require_fit(self.reference, feeds)
        require_fit(self.candidate, self._for_candidate(feeds))
        made = {}
        for name, array in feeds.items():
            wanted = dtypes.get(self.inputs[name], array.dtype)
            floats = array.dtype.kind == "f" and np.dtype(wanted).kind == "f"
            narrowed = array.astype(own.get(name, array.dtype)) if floats else array
            made[name] = np.asarray(narrowed.astype(wanted) if floats else array)
        return made

    def _data(self) -> list[Feeds]:
        found: list[Feeds] = []
        for data in self.options.data:
            missing = [n for n, o in self.inputs.items() if n not in data and o not in data]
            if missing:
                raise UsageError(
                    f"the given data has no {', '.join(missing)}; it has {', '.join(data)}"
                )
            named = {n: data[n] if n in data else data[o] for n, o in self.inputs.items()}
            found.append(self._fitting(named))
        return found

    def _for_candidate(self, feeds: Feeds) -> Feeds:
        given = {other: feeds[name] for name, other in self.inputs.items()}
        return {**given, **{name: feeds[name] for name in self.drawn if name in feeds}}

    def _one(self, run: Run, runtimes: Mapping[str, Runtime]) -> dict[str, Values] | None:
        """Outputs of each runtime; None where the reference does not run, which is noted."""
        try:
            wide, original = self._yardstick(run.feeds)
        except Exception as error:
            self._refused(run, error)
            return None
        self._wide[run.name] = wide
        found = {}
        small = sum(array.size for array in run.feeds.values()) <= _SMALL_ELEMENTS
        for runtime, call in runtimes.items():
            if runtime == EVALUATOR and (self._too_slow or not (run.ordinary and small)):
                continue
            started = time.perf_counter()
            try:
                found[runtime] = call(self._for_candidate(run.feeds))
            except Exception as error:
                self._cannot(runtime, run, error)
                continue
            if runtime == EVALUATOR and time.perf_counter() - started > _SLOW_OPINION:
                self._too_slow = True
                self.notes.append(f"the {EVALUATOR} is slow here: it was asked on {run.name} alone")
            alike = self._alike(runtime, run, original)
            self._note(call, runtime, run, wide, alike, found[runtime])
        self._cover(run, wide, original, found)
        return found

    def _alike(self, runtime: str, run: Run, original: Values) -> Values:
        """The original run as the candidate is, where that is more than another rounding.

        Optimised, whole numbers are multiplied as such, and a tie goes to the other side.
        """
        side = self.reference
        if runtime != ON or not isinstance(side, OnnxSide) or not side.quantises:
            return original
        return side.optimised.run(side.own(run.feeds))

    def _yardstick(self, feeds: Feeds) -> tuple[Values, Values]:
        """The reference in float64 and in the candidate's dtype.

        Where float64 fails, or gives other shapes than the reference has, the reference in its own
        dtype takes its place, which is noted.
        """
        original = self.reference.native(feeds, self.dtype)
        try:
            wide = self.reference.wide(feeds)
            torn = [name for name in wide if wide[name].shape != original[name].shape]
            reason = None
            if torn:
                shapes = [list(values[torn[0]].shape) for values in (wide, original)]
                reason = f"there {torn[0]} has the shape {shapes[0]}, and {shapes[1]} as it is"
        except Exception as error:  # each operator fails in its own way
            reason = kind_and_line(error)
        if reason is None:
            return wide, original
        self.reference.without_float64(reason)
        wide, original = self.reference.wide(feeds), self.reference.native(feeds, self.dtype)
        same = {n: original[n] if original[n].shape == v.shape else v for n, v in wide.items()}
        return wide, same

    def _refused(self, run: Run, error: Exception) -> None:
        """A run that the reference does not take: its batch is bound, or its sizes are."""
        if run.rebatched and not self.bound:
            self.notes.append(
                f"the batch is bound: on {run.name} the reference fails ({first_line(error)})"
            )
        elif run.user and not isinstance(self.refused, GroupfxError):
            raise self._as_model_error(run, error) from error
        self.refused = self.refused or self._as_model_error(run, error)

    def _as_model_error(self, run: Run, error: Exception) -> GroupfxError:
        if isinstance(error, GroupfxError):
            return error
        shapes = ", ".join(f"{name} {list(v.shape)}" for name, v in run.feeds.items())
        return ModelError(
            f"the reference, {self.reference.source}, does not run on {shapes}: {first_line(error)}"
        )

    def _cover(self, run: Run, wide: Values, original: Values, found: Mapping[str, Values]) -> None:
        """Note what could be compared in a run."""
        comparable = []
        for name, other in (self.names or {}).items():
            values = {r: v[other] for r, v in found.items() if r != EVALUATOR}
            comparable.append(self.coverage.note(run, name, wide[name], original[name], values))
        if found and run.user and not any(comparable):
            self.coverage.said_nothing(run.name)
        if found and run.ordinary and not all(comparable):
            self.overflowing = self.overflowing or run

    def _cannot(self, runtime: str, run: Run, error: Exception) -> None:
        """A run that failed: a fault of the candidate, unless it is only the fourth opinion's."""
        if runtime != EVALUATOR:
            self.failed.append(f"{runtime} fails on {run.name}: {first_line(error)}")
            return
        note = f"the {EVALUATOR} gives no opinion: {first_line(error)}"
        if note not in self.notes:
            self.notes.append(note)

    def _nearby(self, run: Run) -> Sequence[tuple[Values, Values]]:
        """The yardstick on inputs that are one rounding away from those of a run.

        Large values saturate gates and cancel in sums: whether the original is close is luck then,
        and one run of it says little.
        """
        if run.name not in self._near:
            pairs = []
            for side, feeds in neighbours(self.reference, run, self.dtype):
                with contextlib.suppress(Exception):  # a run less
                    pairs.append((side.wide(feeds), side.native(feeds, self.dtype)))
            self._near[run.name] = pairs
        return self._near[run.name]

    def _paired_outputs(self, wide: Values, found: Values) -> dict[str, str]:
        """The outputs that can be compared: those that nothing random reaches."""
        own, other = ([n for n in v if not n.startswith(PREFIX)] for v in (wide, found))
        pairs = paired(own, other, "output")
        pairs |= {name: name for name in wide if name.startswith(PREFIX)}
        first, second = self.draws.behind
        nodes = {n: first.get(n) or second.get(o) for n, o in pairs.items()}
        self.random = [
            Unseen(f"output {n} cannot be compared behind {node}", decides=True)
            for n, node in nodes.items()
            if node
        ]
        return {n: o for n, o in pairs.items() if nodes[n] is None}

    def _note(self, call: Runtime, runtime: str, run: Run, *values: Values) -> None:
        wide, original, found = values
        if self.names is None:
            self.names = self._paired_outputs(wide, found)

        @cache
        def moved() -> list[Values]:
            return [call(self._for_candidate(feeds)) for feeds in perturbed(run.feeds, MOVES)]

        for name, other in self.names.items():

            def nearby(name: str = name) -> Sequence[tuple[Array, Array]]:
                return [(exact[name], plain[name]) for exact, plain in self._nearby(run)]

            def shifted(other: str = other) -> Sequence[Array]:
                return [made[other] for made in moved()]

            own = wide[name], original[name], found[other]
            entry = OutputRun(run.name, run.ordinary, *own, nearby=nearby, moved=shifted)
            self.taken.setdefault((other, runtime), []).append(entry)

    def _outputs(self) -> tuple[OutputCheck, ...]:
        require_outputs(self.options.atol, {name for name, _ in self.taken})
        atol = self.options.atol
        return tuple(
            check
            for (name, runtime), runs in sorted(self.taken.items())
            for check in check_outputs(name, runtime, runs, self.dtype, atol=atol.get(name))
        )


def _open_beside_batch(side: Side) -> Iterator[bool]:
    """Whether each size is open but the first of each input."""
    for _, sizes in open_axes(side):
        yield from sizes[1:]


def _differ(run: OutputRun) -> bool:
    return run.wide.dtype.kind != "f" and not np.array_equal(run.wide, run.candidate)


def _dtypes(side: Side) -> Mapping[str, np.dtype[Any]]:
    if isinstance(side, OnnxSide):
        return {name: dtype for name, dtype, _ in side.declared}
    return {name: array.dtype for name, array in side.feeds.items()}
