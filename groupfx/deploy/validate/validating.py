"""Is a candidate the same function as its reference, and if not, which site is wrong?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator

from ...errors import GroupfxError, ModelError, UsageError, first_line
from ...running.alone import alone
from ..graph.conv_nodes import conv_nodes
from ..graph.files import proto_of
from ..running.runtime import declared_inputs
from .example_feeds import example_feeds, require_fit
from .operator_checks import OperatorCheck
from .operator_runs import OperatorReport, look_at_operators
from .output_checks import OutputCheck, OutputRun, check_output, rms_difference
from .runs import Open, Run, make_runs, perturbed
from .sides import OnnxSide, Side, TorchSide, Values, open_axes, paired
from .site_checks import SiteCheck, first_and_worst
from .site_work import SiteWork

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
Progress = Callable[[int, int], None]

OFF, ON = "onnxruntime, optimisations off", "onnxruntime, optimisations on"
EVALUATOR, TORCH = "onnx reference evaluator", "torch"
SCHEMA = "groupfx.validation/1"

# Runs on which one run of the original says little: see `_error_nearby`.
_UNSTABLE_RUNS = ("large",)
_NEARBY_RUNS = 3
# The reference evaluator is plain numpy: a fourth opinion on small models only.
_SMALL_PARAMETERS = 200_000
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


@dataclass(frozen=True)
class Validation:
    """The verdict on a candidate.

    `outputs` has one entry an output and runtime, `sites` one for each convolution that could be
    looked at on its own. `first_site` is the first wrong one in the order of the graph,
    `worst_site` the one that is furthest off by what is allowed (also where all are right). `blame`
    says in words where the difference comes from; None where there is none.
    """

    ok: bool
    reference: str
    candidate: str
    dtype: str
    outputs: tuple[OutputCheck, ...]
    sites: tuple[SiteCheck, ...]
    first_site: SiteCheck | None
    worst_site: SiteCheck | None
    blame: str | None
    runs: tuple[str, ...]
    runtimes: tuple[str, ...]
    notes: tuple[str, ...]
    operators: tuple[OperatorCheck, ...] = ()

    @property
    def first_operator(self) -> OperatorCheck | None:
        """The first wrong operator in the order of the candidate."""
        return next((check for check in self.operators if not check.ok), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the schema's name and version, ready for JSON."""
        first, worst = self.first_site, self.worst_site
        return {
            "schema": SCHEMA,
            "ok": self.ok,
            "reference": self.reference,
            "candidate": self.candidate,
            "dtype": self.dtype,
            "blame": self.blame,
            "outputs": [check.to_dict() for check in self.outputs],
            "first_site": None if first is None else first.to_dict(),
            "worst_site": None if worst is None else worst.to_dict(),
            "sites": [check.to_dict() for check in self.sites],
            "operators": [check.to_dict() for check in self.operators],
            "runs": list(self.runs),
            "runtimes": list(self.runtimes),
            "notes": list(self.notes),
        }


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
    return _Comparison(reference, candidate, options).run(progress)


class _Comparison:
    def __init__(self, reference: Side, candidate: Side, options: ValidationOptions) -> None:
        self.reference = reference
        self.candidate = candidate
        self.options = options
        self.dtype = candidate.dtype
        self.notes: list[str] = []
        self.inputs = paired(reference.inputs, candidate.inputs, "input")
        self.taken: dict[tuple[str, str], list[OutputRun]] = {}
        self.names: dict[str, str] | None = None
        self.failed: list[str] = []
        self._nearby: dict[str, Mapping[str, float]] = {}
        self._too_slow = False

    def run(self, progress: Progress | None) -> Validation:
        runs = list(self._runs())
        sites = SiteWork(self.reference, self.candidate, self.dtype)
        runtimes = self._runtimes()
        done: list[Run] = []
        resized = False
        for position, run in enumerate(runs):
            if resized and "size" in run.name:
                continue
            taken = self._one(run, runtimes)
            if taken is not None:
                done.append(run)
                resized = resized or "size" in run.name
                sites.look(run, self._for_candidate(run.feeds))
            if progress is not None:
                progress(position + 1, len(runs))
        outputs = self._outputs()
        checks = sites.checks()
        first, worst = first_and_worst(checks)
        operators = self._operators(done, [check.name for check in checks if check.seen])
        judged = [check for check in outputs if check.runtime != EVALUATOR]
        # Who says how far off an output may be allows what makes it so.
        right = first is None and (operators.first is None or bool(self.options.atol))
        ok = not self.failed and right and all(check.ok for check in judged)
        if ok and not all(check.ok for check in outputs):
            self.notes.append(
                f"the {EVALUATOR} alone disagrees: ONNX Runtime computes what it should"
            )
        extra = self.reference.notes if isinstance(self.reference, OnnxSide) else []
        return Validation(
            ok=ok,
            reference=self.reference.source,
            candidate=self.candidate.source,
            dtype=str(self.dtype).removeprefix("torch."),
            outputs=outputs,
            sites=checks,
            first_site=first,
            worst_site=worst,
            blame=None
            if ok
            else _blame(outputs, first, operators.first, checks, self.failed, sites.place),
            runs=tuple(run.name for run in done),
            runtimes=tuple(runtimes),
            notes=(*self.notes, *sites.notes, *operators.notes, *extra),
            operators=operators.checks,
        )

    def _operators(self, runs: Sequence[Run], judged: Sequence[str]) -> OperatorReport:
        """What is between the sites, looked at on ordinary runs."""
        feeds = [run.feeds for run in runs if run.ordinary]
        if not feeds or self.names is None:
            return OperatorReport()
        pairs = self.inputs, self.names
        return look_at_operators(self.reference, self.candidate, pairs, feeds, self.dtype, judged)

    def _runs(self) -> Iterator[Run]:
        example = self._example()
        axes = [dict(open_axes(side)) for side in (self.reference, self.candidate)]
        free = [
            [a and b for a, b in zip(axes[0][name], axes[1][other], strict=False)]
            for name, other in self.inputs.items()
        ]
        batch = all(sizes[0] for sizes in free if sizes)
        spatial = any(len(sizes) > 2 for sizes in free) and all(
            all(sizes[2:]) for sizes in free if len(sizes) > 2
        )
        return make_runs(example, self.options.given, Open(batch, spatial), self._data())

    def _example(self) -> Values:
        """One array for each input of the reference, in the candidate's dtypes."""
        shapes = self.options.shapes
        return self._fitting(example_feeds(self.reference, self.candidate, self.inputs, shapes))

    def _fitting(self, feeds: Feeds) -> Values:
        """The same arrays in the candidate's dtypes. Raises UsageError for sizes that do not fit.

        What a user saves with numpy is float64 unless it was made otherwise.
        """
        dtypes = _dtypes(self.candidate)
        require_fit(self.reference, feeds)
        require_fit(self.candidate, self._for_candidate(feeds))
        made = {}
        for name, array in feeds.items():
            wanted = dtypes.get(self.inputs[name], array.dtype)
            floats = array.dtype.kind == "f" and np.dtype(wanted).kind == "f"
            made[name] = array.astype(wanted) if floats else array
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
        return {other: feeds[name] for name, other in self.inputs.items()}

    def _runtimes(self) -> dict[str, Callable[[Feeds], Values]]:
        """How the candidate is run."""
        if isinstance(self.candidate, TorchSide):
            side = self.candidate
            return {TORCH: lambda feeds: side.native(feeds, self.dtype)}
        found: dict[str, Callable[[Feeds], Values]] = {
            OFF: self.candidate.session.run,
            ON: self.candidate.optimised.run,
        }
        evaluator = _evaluator(self.candidate)
        if isinstance(evaluator, str):
            self.notes.append(evaluator)
        elif evaluator is not None:
            found[EVALUATOR] = evaluator
        return found

    def _one(
        self, run: Run, runtimes: Mapping[str, Callable[[Feeds], Values]]
    ) -> dict[str, Values] | None:
        """Outputs of each runtime; None where the reference is no yardstick for the run."""
        try:
            wide = self.reference.wide(run.feeds)
            original = self.reference.native(run.feeds, self.dtype)
        except Exception as error:
            if "size" in run.name:
                return None
            if isinstance(error, GroupfxError):
                raise
            shapes = ", ".join(f"{name} {list(v.shape)}" for name, v in run.feeds.items())
            raise ModelError(
                f"the reference, {self.reference.source}, does not run on {shapes}: "
                f"{first_line(error)}"
            ) from error
        if self._is_torn(run, wide, original):
            return None
        found = {}
        for runtime, call in runtimes.items():
            small = sum(array.size for array in run.feeds.values()) <= _SMALL_ELEMENTS
            if runtime == EVALUATOR and not (run.ordinary and small):
                continue
            if runtime == EVALUATOR and self._too_slow:
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
            self._note(runtime, run, wide, original, found[runtime])
        self._nearby.pop(run.name, None)
        return found

    def _is_torn(self, run: Run, wide: Values, original: Values) -> bool:
        """Whether the reference in float64 gives other shapes than as it is, which is noted."""
        torn = [name for name in wide if wide[name].shape != original[name].shape]
        self.failed += [
            f"{run.name} cannot be judged: {name} of the reference, {self.reference.source}, has "
            f"the shape {list(wide[name].shape)} in float64 and {list(original[name].shape)} as "
            "it is"
            for name in torn
        ]
        return bool(torn)

    def _cannot(self, runtime: str, run: Run, error: Exception) -> None:
        """A run that failed: a fault of the candidate, unless it is only the fourth opinion's."""
        if runtime != EVALUATOR:
            self.failed.append(f"{runtime} fails on {run.name}: {first_line(error)}")
            return
        note = f"the {EVALUATOR} gives no opinion: {first_line(error)}"
        if note not in self.notes:
            self.notes.append(note)

    def _error_nearby(self, run: Run) -> Mapping[str, float]:
        """The original's error on inputs that are one rounding away from those of a run.

        Large values saturate gates and cancel in sums: whether the original is close is luck then,
        and one run of it says little.
        """
        if run.name not in _UNSTABLE_RUNS:
            return {}
        if run.name not in self._nearby:
            errors: dict[str, float] = {}
            for feeds in perturbed(run.feeds, _NEARBY_RUNS):
                wide = self.reference.wide(feeds)
                original = self.reference.native(feeds, self.dtype)
                for name, value in wide.items():
                    error = rms_difference(original[name], value)
                    errors[name] = max(errors.get(name, 0.0), error)
            self._nearby[run.name] = errors
        return self._nearby[run.name]

    def _note(self, runtime: str, run: Run, wide: Values, original: Values, found: Values) -> None:
        if self.names is None:
            self.names = paired(tuple(wide), tuple(found), "output")
        for name, other in self.names.items():
            entry = OutputRun(
                run.name,
                run.ordinary,
                wide[name],
                original[name],
                found[other],
                self._error_nearby(run).get(name, 0.0),
            )
            self.taken.setdefault((other, runtime), []).append(entry)

    def _outputs(self) -> tuple[OutputCheck, ...]:
        names = {name for name, _ in self.taken}
        unknown = [name for name in self.options.atol if name not in names]
        if unknown and names:
            raise UsageError(
                f"atol is given for {', '.join(unknown)}, and the outputs are "
                f"{', '.join(sorted(names))}"
            )
        return tuple(
            check_output(name, runtime, runs, self.dtype, atol=self.options.atol.get(name))
            for (name, runtime), runs in sorted(self.taken.items())
        )


def _dtypes(side: Side) -> Mapping[str, np.dtype[Any]]:
    if isinstance(side, OnnxSide):
        return {name: dtype for name, dtype, _ in declared_inputs(side.model)}
    return {name: array.dtype for name, array in side.feeds.items()}


def _evaluator(side: OnnxSide) -> Callable[[Feeds], Values] | str | None:
    """Onnx's own evaluator, for a small model that it can run; a text says why it cannot."""
    held = side.model.graph.initializers.values()
    if sum(v.const_value.size for v in held if v.const_value is not None) > _SMALL_PARAMETERS:
        return None
    convs, _ = conv_nodes(side.model)
    if any(conv.spec.transposed and conv.spec.groups > 1 for conv in convs):
        return f"the {EVALUATOR} cannot run grouped transposed convolutions: it gives no opinion"
    proto: onnx.ModelProto = proto_of(side.model)
    try:
        evaluator = ReferenceEvaluator(proto)
    except Exception as error:
        return f"the {EVALUATOR} gives no opinion: {first_line(error)}"
    names = side.outputs

    def run(feeds: Feeds) -> Values:
        return dict(zip(names, evaluator.run(None, dict(feeds)), strict=True))

    return run


def _blame(
    outputs: Sequence[OutputCheck],
    first: SiteCheck | None,
    operator: OperatorCheck | None,
    sites: Sequence[SiteCheck],
    broken: Sequence[str],
    place: Callable[[], str | None],
) -> str:
    wrong = {check.runtime for check in outputs if not check.ok}
    if first is not None:
        number = sum(not check.ok for check in sites)
        more = f" (and {number - 1} more)" if number > 1 else ""
        return f"the site {first.name}{more}: {first.reason}"
    if operator is not None:
        return str(operator)
    if broken:
        return broken[0]
    if wrong == {ON}:
        return (
            "ONNX Runtime's graph optimiser: without optimisations the file computes what it "
            "should; run it with them off, or at a lower level, and report the model"
        )
    agrees = any(check.runtime == EVALUATOR and check.ok for check in outputs)
    if agrees and EVALUATOR not in wrong:
        return f"ONNX Runtime's kernels: the {EVALUATOR} computes what it should from the same file"
    if sites:
        where = place() or "between the convolutions"
        return f"what lies {where}; each convolution computes what it should from its own input"
    return "unknown: no convolution could be looked at on its own"
