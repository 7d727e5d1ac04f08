"""A sequence of passes over one model, from opening it to the checked result."""

import dataclasses
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import torch
from torch import nn

from ..convs.calls import ConvCall, Stored, convs
from ..errors import MismatchError, UsageError
from ..running.alone import alone
from ..running.guess import infer_inputs
from ..running.inputs import ExampleInputs
from ..running.totals import Complexity, totals
from ..state.map import Entry, Requirement, Rows, StateDictMap
from ..state.reversed_map import ReversedMap
from ..tracing import Program, inputs_of, module_of, open_model
from ..version import __version__
from .checking import Progress, check_program, check_sites, require_ok
from .driver import PassResult, run_pass
from .folding import moved_otherwise
from .graph_pass import GraphPass
from .outside import Outside
from .pass_ import Pass
from .region_pass import RegionPass
from .report import PassSummary, Report, RewrittenSite, SkippedSite
from .result import Result


@dataclass(frozen=True, init=False)
class Pipeline:
    """Passes in the order in which they run. A pipeline may stand in a pipeline, like a pass.

    Called with a model, it rewrites a copy: the model itself is never changed unless `inplace`.
    """

    passes: tuple[Pass[Any], ...]

    def __init__(self, passes: Iterable["Pass[Any] | Pipeline"]) -> None:
        flat: list[Pass[Any]] = []
        for entry in passes:
            if isinstance(entry, Pipeline):
                flat += entry.passes
            elif isinstance(entry, Pass):
                flat.append(entry)
            else:
                raise UsageError(f"{entry!r} is not a pass: give an instance, such as {_EXAMPLE}")
        _require_order(flat)
        object.__setattr__(self, "passes", tuple(flat))

    @property
    def needs_graph(self) -> bool:
        """Whether one of the passes looks at the whole graph."""
        return any(isinstance(pass_, GraphPass) for pass_ in self.passes)

    @alone
    def __call__(
        self,
        model: nn.Module,
        inputs: object = None,
        *,
        way: str = "auto",
        inplace: bool = False,
        verify: bool = True,
        progress: Progress | None = None,
    ) -> Result:
        """Rewrite `model` and check the result.

        `inputs` is a tensor, a tuple of positional arguments or a dict of keyword arguments of
        `forward`; where it is None, a shape is inferred and the report says which. Raises
        `ModelError` where the model cannot be opened, and `MismatchError` where the check fails.
        """
        given, said = module_of(model)
        example, notes = example_inputs(given, inputs_of(model) if inputs is None else inputs)
        program = open_model(given, example, way=way, inplace=inplace, whole=self.needs_graph)
        program.notes = (*program.notes, *said, *notes)
        try:
            return self.run(program, verify=verify, progress=progress)
        except MismatchError as error:
            reason = _whole_alone(error.report)
            opened = (way, program.way, inplace)
            if reason is None or self.needs_graph or opened != ("auto", "trace", False):
                raise
        # What a trace computed once, the model computes each time: its own class does.
        program = open_model(given, example, way="modules")
        program.notes = (f"not traced: {reason}", *said, *notes)
        return self.run(program, verify=verify, progress=progress)

    @alone
    def run(
        self, program: Program, *, verify: bool = True, progress: Progress | None = None
    ) -> Result:
        """Apply the passes to an opened program."""
        as_opened = Outside.of(program) if verify else None
        stored = program.result.state_dict().keys()
        dropped = program.model.state_dict().keys() - stored
        # A weight that no checkpoint holds is moved too, and the check has to know where.
        transient = set(_stored_weights(program)) - stored
        entries: dict[str, Entry | Requirement] = {key: Rows(key) for key in stored | transient}
        results: list[PassResult] = []
        changes = None
        for pass_ in self.passes:
            if as_opened is not None and changes is None and isinstance(pass_, GraphPass):
                # It leaves no tensor where it was: what is before it is compared now.
                changes = as_opened.changes(_sites(results), entries)
                results = _checked(results, program, entries, progress)
            results.append(run_pass(pass_, program, entries))
        report = _report(program, results)
        # First of all: a forward may write to its own modules.
        if as_opened is not None:
            changes = (
                as_opened.changes(report.sites, entries)
                if changes is None
                else (*changes, *moved_otherwise(program, report.sites, entries))
            )
        report = dataclasses.replace(report, changes=changes)
        try:
            before = totals(program.model, program.inputs, macs=program.macs)
            complexity = Complexity(before, totals(program.result, program.inputs))
            report = dataclasses.replace(report, complexity=complexity)
            if verify:
                report = check_program(program, report, entries, progress)
        except Exception:
            if not changes:  # which else are why it does not run
                raise
        require_ok(report)
        kept = {
            name: entry
            for name, entry in entries.items()
            if not (isinstance(entry, Entry) and entry.key in transient)
        }
        state_map = _state_map(program, kept, dropped, report.sites)
        return Result(program.result, report, state_map, program)


def _state_map(
    program: Program,
    entries: Mapping[str, Entry | Requirement],
    dropped: Iterable[str],
    sites: Sequence[RewrittenSite],
) -> StateDictMap:
    joined = {key: rows for site in sites for key, rows in site.joined.items()}
    if not joined:
        return StateDictMap(entries, dropped=dropped, model=program.result)
    kept = {key: entry for key, entry in entries.items() if isinstance(entry, Rows)}
    back = {rows.key: Rows(key) for key, rows in kept.items()} | joined
    return ReversedMap(back, dropped=dropped, model=program.result)


def _stored_weights(program: Program) -> Iterator[str]:
    """Names of the tensors that functions of convolution read as they are stored."""
    for fragment in program.fragments:
        for call in convs(fragment.working).values():
            if isinstance(call, ConvCall):
                for source in (call.weight, call.bias):
                    if isinstance(source, Stored):
                        yield fragment.working_key(source.key)


def _whole_alone(report: object) -> str | None:
    """Why a model differs of which no part does, if that is so."""
    assert isinstance(report, Report)
    parts = all(site.verdict is None or site.verdict.ok for site in report.sites)
    if not parts or report.changes or report.model is None:
        return None
    return report.model.reason


def _require_order(passes: Sequence[Pass[Any]]) -> None:
    """A site is compared with the original's, whose channels it must still have."""
    merging = [each for each in passes if isinstance(each, RegionPass)]
    if merging and len(passes) > 1:
        raise UsageError(
            f"{merging[0].pass_name()} beside other passes: it joins tensors, which the map of a "
            "rewrite with others cannot say; rewrite with it alone, and then its result"
        )
    for first, second in pairwise(passes):
        if isinstance(first, GraphPass) and not isinstance(second, GraphPass):
            raise UsageError(
                f"{second.pass_name()} behind {first.pass_name()}: a pass over the whole graph "
                "moves channels, so that sites cannot be compared any more; put it last"
            )


def _sites(results: Sequence[PassResult]) -> list[RewrittenSite]:
    return [site for result in results for site in result.sites]


def _checked(
    results: Sequence[PassResult],
    program: Program,
    entries: dict[str, Entry | Requirement],
    progress: Progress | None,
) -> list[PassResult]:
    """The results so far, their sites checked while each still has the channels that it had."""
    checked = iter(check_sites(program, _sites(results), entries, progress))
    return [
        dataclasses.replace(result, sites=tuple(islice(checked, len(result.sites))))
        for result in results
    ]


def example_inputs(model: nn.Module, inputs: object) -> tuple[ExampleInputs, tuple[str, ...]]:
    """The given inputs, or inferred ones with a note that says which."""
    if inputs is not None:
        return ExampleInputs.of(inputs), ()
    found = infer_inputs(model)
    return found.inputs, (found.source,)


def _report(program: Program, results: Sequence[PassResult]) -> Report:
    return Report(
        way=program.way,
        notes=program.notes,
        inputs=tuple(program.inputs.describe()) if program.inputs else (),
        passes=tuple(
            PassSummary(
                name=result.pass_.pass_name(),
                options=dataclasses.asdict(result.pass_),  # type: ignore[call-overload]
                rewritten=len(result.sites),
                skipped=len(result.skipped),
            )
            for result in results
        ),
        sites=tuple(site for result in results for site in result.sites),
        skipped=tuple(_once(site for result in results for site in result.skipped)),
        folds=tuple(result.fold for result in results if result.fold is not None),
        versions={
            "groupfx": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    )


def _once(skipped: Iterable[SkippedSite]) -> Iterator[SkippedSite]:
    """Each site that no pass can see once, not once a pass."""
    seen = set()
    for site in skipped:
        key = (site.name, site.reason) if site.kind == "unknown" else site
        if key not in seen:
            yield site
        seen.add(key)


_EXAMPLE = "groupfx.passes.SplitGroupedConv()"
