"""A sequence of passes over one model, from opening it to the checked result."""

import contextlib
import dataclasses
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn

from ..errors import MismatchError, ModelError, UsageError
from ..running.alone import alone
from ..running.guess import infer_inputs
from ..running.inputs import ExampleInputs
from ..running.kept import values_kept
from ..running.totals import Complexity, totals
from ..running.weightless import is_weightless, on_meta, without_values
from ..tracing import Program, inputs_of, module_of, open_model
from ..version import __version__
from .checking import Progress, check_program, require_ok
from .graph_pass import GraphPass
from .operation_pass import OperationPass
from .pass_ import Pass
from .region_pass import RegionPass
from .report import PassSummary, Report, SkippedSite
from .result import Result
from .stages import Stages


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
        return any(isinstance(pass_, (GraphPass, RegionPass)) for pass_ in self.passes)

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
        program = self.opened(model, inputs, way=way, inplace=inplace)
        fixed = in_calls = False
        while True:
            try:
                return self.run(program, verify=verify, progress=progress)
            except MismatchError as error:
                reason = _whole_alone(error.report)
                if reason is None or inplace:
                    raise
                if _may_be_fixed(program) and not fixed:
                    # What it computes of a size, such as a padding, was computed once.
                    fixed = True
                    program = self.opened(model, inputs, way="export", fixed=True)
                    reason = f"exported for one size, because with open ones {reason}"
                elif not in_calls and _swaps_modules(program):
                    # Forward looks at its modules or their parameters, which then are others.
                    in_calls = True
                    program = self.opened(model, inputs, way="modules", in_calls=True)
                    reason = f"its modules stay, and their calls are taken, because else {reason}"
                elif way == "auto" and not (program.way == "trace" and self.needs_graph):
                    # What was computed once there, the model computes each time.
                    done = {"trace": "traced", "export": "exported"}.get(program.way)
                    if done is None:
                        raise
                    program = self.opened(model, inputs, way="modules")
                    reason = f"not {done}: {reason}"
                else:
                    raise
                program.notes = (reason, *program.notes)

    def opened(
        self,
        model: nn.Module,
        inputs: object = None,
        *,
        way: str = "auto",
        inplace: bool = False,
        read_only: bool = False,
        fixed: bool = False,
        in_calls: bool = False,
    ) -> Program:
        """`model` as the passes want to see it, with notes on its inputs; see `open_model`."""
        given, said = module_of(model)
        reading = [each.pass_name() for each in self.passes if each.reads_values]
        if reading and is_weightless(given):
            raise ModelError(
                f"{reading[0]} looks at the numbers of the weights, and {type(given).__name__} has "
                "none (its tensors lie on the device meta): load them first"
            )
        with without_values(given):
            example, notes = example_inputs(given, inputs_of(model) if inputs is None else inputs)
            if is_weightless(given):
                example = example.map(on_meta)
            opening = partial(
                open_model,
                given,
                example,
                inplace=inplace,
                read_only=read_only,
                whole=self.needs_graph,
                fixed=fixed,
                respells=self._respells,
                in_calls=in_calls,
                both_modes=not self._is_blind,  # they look for norms in eval mode
                leaves=self.keeps_whole,
            )
            program = opening(way=way)
            if way == "auto" and program.way == "modules" and self._is_blind and not inplace:
                # Nothing can be done module by module: one graph that is fixed to its mode can.
                with contextlib.suppress(ModelError):
                    program = opening(way="export")
        program.notes = (*program.notes, *said, *notes)
        return program

    @property
    def _respells(self) -> bool:
        """Whether a pass gives operations another spelling, which only a graph has."""
        return any(isinstance(pass_, OperationPass) for pass_ in self.passes)

    @property
    def _is_blind(self) -> bool:
        """Whether no pass has anything to do where there is no graph."""
        return bool(self.passes) and all(isinstance(pass_, RegionPass) for pass_ in self.passes)

    def keeps_whole(self, module: nn.Module) -> bool:
        """Whether a pass wants to see a call of `module` where a trace would look into it."""
        return any(pass_.keeps_whole(module) for pass_ in self.passes)

    @alone
    def run(
        self, program: Program, *, verify: bool = True, progress: Progress | None = None
    ) -> Result:
        """Apply the passes to an opened program."""
        with without_values(program.model):
            return self._run(program, verify=verify, progress=progress)

    def _run(self, program: Program, *, verify: bool, progress: Progress | None) -> Result:
        stages = Stages(program, verify=verify, progress=progress)
        for pass_ in self.passes:
            stages.run(pass_)
        # First of all: a forward may write to its own modules.
        stages.compare()
        report = _report(program, stages)
        kept = partial(values_kept, (program.model, program.result), program.written)
        try:
            with kept():
                before = totals(program.model, program.inputs, macs=program.macs)
                complexity = Complexity(before, totals(program.result, program.inputs))
            with kept():  # again: what is compared is what the count did not write to
                stages.check()
                report = dataclasses.replace(_report(program, stages), complexity=complexity)
                if verify:
                    report = check_program(program, report)
        except Exception:
            if not stages.changes:  # which else are why it does not run
                raise
        require_ok(report)
        return Result(program.result, report, stages.state_map(), program)


def _may_be_fixed(program: Program) -> bool:
    """Whether the model can be exported for the sizes of the example alone, and was for more."""
    given = isinstance(program.model, fx.GraphModule)
    return program.way == "export" and program.dynamic and not given


def _swaps_modules(program: Program) -> bool:
    """Whether modules of the model's own class were replaced."""
    return program.way == "modules" and any(each.is_module for each in program.fragments)


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
        if isinstance(first, GraphPass) and not isinstance(second, GraphPass | OperationPass):
            raise UsageError(
                f"{second.pass_name()} behind {first.pass_name()}: a pass over the whole graph "
                "moves channels, so that sites cannot be compared any more; put it last"
            )


def example_inputs(model: nn.Module, inputs: object) -> tuple[ExampleInputs, tuple[str, ...]]:
    """The given inputs, or inferred ones with a note that says which."""
    if inputs is not None:
        return ExampleInputs.of(inputs), ()
    found = infer_inputs(model)
    return found.inputs, (found.source,)


def _report(program: Program, stages: Stages) -> Report:
    results = stages.results
    return Report(
        way=program.way,
        notes=program.notes,
        inputs=tuple(program.inputs.describe()) if program.inputs else (),
        passes=tuple(
            PassSummary(
                name=result.pass_.pass_name(),
                options=dataclasses.asdict(result.pass_),  # type: ignore[call-overload]
                rewritten=len(result.sites) + len(result.respelled),
                skipped=len(result.skipped),
            )
            for result in results
        ),
        sites=tuple(site for result in results for site in result.sites),
        skipped=tuple(_once(site for result in results for site in result.skipped)),
        folds=tuple(result.fold for result in results if result.fold is not None),
        respelled=tuple(each for result in results for each in result.respelled),
        changes=stages.changes,
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
