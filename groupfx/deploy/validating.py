"""Is a candidate the same function as its reference, and if not, which site is wrong?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx.reference import ReferenceEvaluator

from ..errors import GroupfxError, ModelError, UsageError
from ..tracing import CannotTrace
from .conv_nodes import conv_nodes
from .files import proto_of
from .locating import locate
from .onnx_sites import Region, candidate_regions
from .output_checks import OutputCheck, OutputRun, check_output, rms_difference
from .reading import first_line
from .runs import Open, Run, make_runs, perturbed
from .runtime import Session, declared_inputs
from .sides import OnnxSide, Side, TorchSide, Values, open_axes, paired
from .site_checks import SiteCheck, check_site, first_and_worst
from .site_functions import SiteFunction
from .torch_values import TorchValues

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
Progress = Callable[[int, int], None]

OFF, ON = "onnxruntime, optimisations off", "onnxruntime, optimisations on"
EVALUATOR, TORCH = "onnx reference evaluator", "torch"
SCHEMA = "groupfx.validation/1"

# Runs on which sites are looked at one by one: all ordinary ones, and these.
_SITE_RUNS = ("large",)
_MOST_SITE_RUNS = 4
_UNSTABLE_RUNS = ("large",)
_NEARBY_RUNS = 3
_NAMES_SHOWN = 5
# The reference evaluator is plain numpy: a fourth opinion on small models only.
_SMALL_PARAMETERS = 200_000
_SMALL_ELEMENTS = 50_000


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
            "runs": list(self.runs),
            "runtimes": list(self.runtimes),
            "notes": list(self.notes),
        }


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
        self.failed: list[tuple[str, str, str]] = []
        self._nearby: dict[str, Mapping[str, float]] = {}

    def run(self, progress: Progress | None) -> Validation:
        runs = list(self._runs())
        sites = _SiteWork(self.reference, self.candidate, self.dtype)
        runtimes = self._runtimes()
        done: list[str] = []
        resized = False
        for position, run in enumerate(runs):
            if resized and "size" in run.name:
                continue
            taken = self._one(run, runtimes)
            if taken is not None:
                done.append(run.name)
                resized = resized or "size" in run.name
                sites.look(run, self._for_candidate(run.feeds))
            if progress is not None:
                progress(position + 1, len(runs))
        outputs = self._outputs()
        checks = sites.checks()
        first, worst = first_and_worst(checks)
        broken = [f"{name} fails on {run}: {reason}" for name, run, reason in self.failed]
        ok = not broken and first is None and all(check.ok for check in outputs)
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
            blame=None if ok else _blame(outputs, first, checks, broken, sites.place),
            runs=tuple(done),
            runtimes=tuple(runtimes),
            notes=(*self.notes, *sites.notes, *extra),
        )

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
        dtypes = _dtypes(self.candidate)
        shapes = self.options.shapes
        feeds = example_feeds(self.reference, self.candidate, self.inputs, shapes)
        _require_fit(self.reference, feeds)
        _require_fit(self.candidate, self._for_candidate(feeds))
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
            found.append({n: data[n] if n in data else data[o] for n, o in self.inputs.items()})
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
        """Outputs of each runtime; None where the reference does not take the size of the run."""
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
        found = {}
        for runtime, call in runtimes.items():
            small = sum(array.size for array in run.feeds.values()) <= _SMALL_ELEMENTS
            if runtime == EVALUATOR and not (run.ordinary and small):
                continue
            try:
                found[runtime] = call(self._for_candidate(run.feeds))
            except Exception as error:
                self.failed.append((runtime, run.name, first_line(error)))
                continue
            self._note(runtime, run, wide, original, found[runtime])
        self._nearby.pop(run.name, None)
        return found

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


class _SiteWork:
    """Looks at the sites of a candidate, run by run."""

    def __init__(self, reference: Side, candidate: Side, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.notes: tuple[str, ...] = ()
        self.pairs: tuple[tuple[SiteFunction, Region], ...] = ()
        self._checks: dict[str, SiteCheck] = {}
        self._runs = 0
        self._values: Callable[[Feeds], Mapping[str, Array]] | None = None
        functions, left = reference.site_functions()
        self._reference, self._functions = reference, functions
        self._first: tuple[Feeds, Mapping[str, Array]] | None = None
        notes = list(_by_reason(left)) if functions else list(left)
        if functions and isinstance(candidate, OnnxSide):
            notes += self._of_onnx(candidate, functions)
        elif functions and isinstance(candidate, TorchSide):
            notes += self._of_torch(candidate, functions)
        self.notes = tuple(notes)

    def _of_onnx(self, side: OnnxSide, functions: Sequence[SiteFunction]) -> Sequence[str]:
        regions, notes = candidate_regions(side.model, functions)
        by_name = {function.name: function for function in functions}
        self.pairs = tuple((by_name[region.name], region) for region in regions)
        wanted = {value for _, region in self.pairs for value in region.values}
        given = set(side.inputs)
        inner = sorted(wanted - given)
        if wanted:
            session = Session(side.model, "off", source=side.source, also=inner)
            self._values = lambda feeds: {**feeds, **session.run(feeds, inner)}
        return notes

    def _of_torch(self, side: TorchSide, functions: Sequence[SiteFunction]) -> Sequence[str]:
        try:
            values = TorchValues(side.model, side.example, functions)
        except CannotTrace as error:
            return [f"sites are not checked on their own: {error}"]
        self.pairs = values.pairs
        self._values = lambda feeds: values.of(side.given(feeds))
        return []

    def look(self, run: Run, feeds: Feeds) -> None:
        """Check every site on one run, if it is one of those that are for that."""
        wanted = run.name in _SITE_RUNS or (run.ordinary and self._runs < _MOST_SITE_RUNS)
        if not wanted or not self.pairs:
            return
        self._runs += run.ordinary
        values: Mapping[str, Array] = {}
        if self._values is not None:
            try:
                values = self._values(feeds)
            except GroupfxError:
                return  # the outputs tell of it
        self._first = self._first or (run.feeds, values)
        for function, region in self.pairs:
            check = check_site(function, region, values, self.dtype, run.name)
            earlier = self._checks.get(region.name)
            self._checks[region.name] = check if earlier is None else earlier.worse(check)

    def place(self) -> str | None:
        """Where the values of the first run leave those of the reference, if that can be told."""
        if self._first is None:
            return None
        feeds, values = self._first
        regions = [region for _, region in self.pairs]
        return locate(self._reference, self._functions, regions, values, feeds, self.dtype)

    def checks(self) -> tuple[SiteCheck, ...]:
        """What was found, in the order of the graph."""
        return tuple(self._checks.values())


def _by_reason(left: Sequence[str]) -> Iterator[str]:
    """`name: reason` of many sites, a line for each reason."""
    names: dict[str, list[str]] = {}
    for text in left:
        name, _, reason = text.partition(": ")
        names.setdefault(reason, []).append(name)
    for reason, found in names.items():
        more = f" and {len(found) - _NAMES_SHOWN} more" if len(found) > _NAMES_SHOWN else ""
        yield f"not checked on its own ({reason}): {', '.join(found[:_NAMES_SHOWN])}{more}"


def _dtypes(side: Side) -> Mapping[str, np.dtype[Any]]:
    if isinstance(side, OnnxSide):
        return {name: dtype for name, dtype, _ in declared_inputs(side.model)}
    return {name: array.dtype for name, array in side.feeds.items()}


def _require_fit(side: Side, feeds: Feeds) -> None:
    """Raise UsageError where a file declares other sizes than the inputs have."""
    if isinstance(side, TorchSide):
        return
    for name, _, sizes in declared_inputs(side.model):
        shape = feeds[name].shape
        same_rank = len(shape) == len(sizes)
        if not same_rank or any(n not in (None, k) for n, k in zip(sizes, shape, strict=True)):
            declared = ", ".join("any" if size is None else str(size) for size in sizes)
            raise UsageError(
                f"input {name} has the shape {list(shape)}, and {side.source} takes [{declared}]: "
                "give inputs of that shape (--input-shape), or export it with open sizes"
            )


def example_feeds(
    reference: Side,
    candidate: Side,
    inputs: Mapping[str, str],
    shapes: Mapping[str | int, tuple[int, ...]],
) -> Values:
    """Arrays to start from: those of a torch side, or random ones of the sizes that a file says."""
    if isinstance(reference, TorchSide):
        return reference.feeds
    if isinstance(candidate, TorchSide):
        return {name: candidate.feeds[other] for name, other in inputs.items()}
    for size in _GUESSES:
        feeds = _guessed(reference, size, shapes)
        with contextlib.suppress(GroupfxError):
            reference.session.run(feeds)
            return feeds
    texts = [f"{n} {[k or '?' for k in s]}" for n, _, s in declared_inputs(reference.model)]
    raise UsageError(
        f"cannot guess sizes that {reference.source} takes ({'; '.join(texts)}): give the shape of "
        "its inputs, with shapes= or --input-shape"
    )


_GUESSES = (32, 64, 224, 16, 128, 8, 7)


def _guessed(side: OnnxSide, size: int, shapes: Mapping[str | int, tuple[int, ...]]) -> Values:
    """Random arrays of the declared sizes, with batch 2 and `size` where they are open."""
    generator = np.random.default_rng(0)
    feeds: Values = {}
    for position, (name, dtype, sizes) in enumerate(declared_inputs(side.model)):
        opened = [2 if axis == 0 else size for axis in range(len(sizes))]
        shape = [n if n is not None else opened[axis] for axis, n in enumerate(sizes)]
        shape = list(shapes.get(name, shapes.get(position, tuple(shape))))
        if dtype.kind == "f":
            feeds[name] = generator.standard_normal(shape).astype(dtype)
        elif dtype.kind == "b":
            feeds[name] = generator.random(shape) < 0.5
        else:
            feeds[name] = generator.integers(0, 2, shape).astype(dtype)
    return feeds


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
    sites: Sequence[SiteCheck],
    broken: Sequence[str],
    place: Callable[[], str | None],
) -> str:
    wrong = {check.runtime for check in outputs if not check.ok}
    if first is not None:
        number = sum(not check.ok for check in sites)
        more = f" (and {number - 1} more)" if number > 1 else ""
        return f"the site {first.name}{more}: {first.reason}"
    if broken:
        return broken[0]
    if wrong == {ON}:
        return (
            "ONNX Runtime's graph optimiser: without optimisations the file computes what it "
            "should; run it with them off, or at a lower level, and report the model"
        )
    if wrong == {EVALUATOR}:
        return f"the {EVALUATOR} alone disagrees: ONNX Runtime computes what it should"
    agrees = any(check.runtime == EVALUATOR and check.ok for check in outputs)
    if agrees and EVALUATOR not in wrong:
        return f"ONNX Runtime's kernels: the {EVALUATOR} computes what it should from the same file"
    if sites:
        where = place() or "between the convolutions"
        return f"what lies {where}; each convolution computes what it should from its own input"
    return "unknown: no convolution could be looked at on its own"
