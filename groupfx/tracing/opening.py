"""Open a model for rewriting: by a trace, by its modules, or by `torch.export`.

The order is the one that keeps most of the model: a trace gives one plain graph; where it fails
or would change the model, only the convolution modules are taken out of it; where a grouped
convolution is a function call in a `forward` that cannot be traced, the whole is exported.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import fx, nn

from ..convs.calls import convs
from ..convs.names import numbered
from ..convs.spec import has_users_parametrization, is_plain
from ..errors import ModelError, UsageError
from ..learned.groups import has_learned_groups
from ..running.copies import copied
from ..running.inputs import ExampleInputs, bound_arguments
from ..running.twins import twin_tree
from ..verify.measures import unlike
from .both_modes import Difference, runs_alike, take_modes, united
from .called import hidden_convs, taken_apart, uncalled
from .counting import VMAP, Counted, FunctionCalls, ModuleCalls, count_calls, site_modules
from .exporting import all_axes, exported, first_axis
from .graphs import (
    GraphRun,
    assemble,
    call_graph,
    copied_graph,
    inner_graphs,
    module_graph,
    run_for_shapes,
    run_graph,
    same_tensors,
    snapshot,
)
from .hooks import hooked
from .limits import closing_over_modules, is_plain_graph, require_no_more, users_input, users_output
from .numbers import fix_numbers
from .program import WAYS, Fragment, Program, Unreachable, Way
from .quantised import quantises, refuse_quantised
from .swapping import tried
from .tracer import CannotTrace, Trace, trace
from .unreachable import hidden_runs, untold, why_changing, why_idle, why_unseen

Leaves = Callable[[nn.Module], bool]
"""Whether a module of the user's is to stay one call in a trace."""


def open_model(
    model: nn.Module,
    inputs: ExampleInputs,
    *,
    way: str = "auto",
    inplace: bool = False,
    read_only: bool = False,
    whole: bool = False,
    fixed: bool = False,
    respells: bool = False,
    in_calls: bool = False,
    both_modes: bool = True,
    leaves: Leaves | None = None,
) -> Program:
    """Open `model` in the first way that keeps it whole, or in the given `way`.

    `read_only` makes the working side the reference itself, for looking without rewriting.
    `inplace` works on the caller's own tensors and modules instead of a copy. `whole` asks for one
    graph of the whole model rather than for its class, where it cannot be both; `respells`, one
    whose operations will be spelled as layers. `fixed` exports for images of the example's size
    alone. `in_calls` leaves each module where it is and takes its calls instead, where there is no
    graph of the whole. Without `both_modes` an export is made in eval mode alone. A trace keeps the
    modules that `leaves` names as one call each. Raises `ModelError` where no way takes the model,
    with the reason of each.
    """
    if way not in ("auto", *WAYS):
        raise UsageError(f"unknown way {way!r}: choose one of auto, {', '.join(WAYS)}")
    _refuse_lazy(model)
    refuse_quantised(model)
    manner = _Manner(inplace, read_only, whole, fixed, respells, in_calls, both_modes, leaves)
    if read_only and way == "auto":
        program = _traced_twin(model, inputs, manner)
        if program is not None:
            return program
    opener = _Opener(model, model, inputs, manner)
    try:
        opener = opener.apart()
    except ModelError as error:
        if not read_only:
            return _copied_as_graph(opener, way, error)
        opener = opener.of_itself()
    if way == "modules":
        return opener.modules(())
    if way == "auto":
        return _first_way(opener)
    try:
        return opener.trace(asked=True) if way == "trace" else opener.export(())
    except CannotTrace as error:
        done = "traced" if way == "trace" else "exported"
        raise ModelError(
            f"{type(model).__name__} cannot be {done}: {error}. With way='modules' its class stays "
            "what it is, in each of its modes"
        ) from error


def _first_way(opener: "_Opener") -> Program:
    """The first way that keeps the model whole; `ModelError` with every reason if none does."""
    try:
        return opener.trace()
    except CannotTrace as error:
        reasons: tuple[str, ...] = (f"not traced: {error}",)
        if not opener.calls_the_original:
            return _other_way(opener, reasons)
    except ModelError as error:
        if not opener.calls_the_original:
            raise
        reasons = (f"not traced: {error}",)
    with contextlib.suppress(CannotTrace, ModelError):
        return replace(opener, own=opener.model).trace()
    return _other_way(opener, reasons)


def _copied_as_graph(opener: "_Opener", way: str, error: ModelError) -> Program:
    """The trace of a model that cannot be copied, in which what is in the way may not be.

    Raises `error` where there is none.
    """
    if way in ("auto", "trace"):
        with contextlib.suppress(CannotTrace, ModelError):
            return replace(opener, own=twin_tree(opener.model)).trace(asked=way == "trace")
    raise error


def _other_way(opener: "_Opener", reasons: tuple[str, ...]) -> Program:
    """By an export or by its modules, as a trace is not the model."""
    counted = opener.counted
    graph_alone = opener.manner.whole and counted.functions
    if graph_alone or counted.unseen:
        try:
            exported = opener.export(reasons)
        except CannotTrace as error:
            reasons = (*reasons, f"not exported: {error}")
        else:
            if graph_alone or not exported.unreachable:
                return exported
    return opener.modules(reasons)


def _traced_twin(model: nn.Module, inputs: ExampleInputs, manner: "_Manner") -> Program | None:
    """The trace of a shallow copy, which is made in no time; None where it cannot be traced.

    What a shallow copy does not follow (a bound method, a module in a nested list) ends there too.
    """
    if any(isinstance(module, fx.GraphModule) for module in model.modules()):
        return None  # its twin would share the graph, which names its module
    try:
        twin = twin_tree(model)
        return _Opener(model, twin, inputs, replace(manner, inplace=False)).trace()
    except CannotTrace:
        return None


def _refuse_lazy(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ModelError(
                f"{name} has no shape yet (a lazy module): run the model once, then rewrite it"
            )


@dataclass(frozen=True)
class _Manner:
    """How a model is to be opened; see `open_model`."""

    inplace: bool
    read_only: bool
    whole: bool
    fixed: bool
    respells: bool
    in_calls: bool
    both_modes: bool
    leaves: Leaves | None


@dataclass
class _Opener:
    """The three ways for one model; `own` shares its tensors but not its module objects."""

    model: nn.Module
    own: nn.Module
    inputs: ExampleInputs
    manner: _Manner

    def of_itself(self) -> "_Opener":
        """The same on the model itself, which is only looked at and stays as it is."""
        return replace(self, own=self.model, manner=replace(self.manner, inplace=True))

    def apart(self) -> "_Opener":
        """The same with an `own` apart from the model. Raises `ModelError` if it has no copy."""
        if self.manner.inplace:
            return replace(self, own=twin_tree(self.model))
        bound = any(closing_over_modules(each) is not None for each in self.model.modules())
        if self.manner.read_only and bound:
            # Only the model itself calls its own modules.
            return self.of_itself()
        return replace(self, own=copied(self.model, share=True))

    @cached_property
    def counted(self) -> Counted:
        """What one run of the model itself calls and gives."""
        return count_calls(self.own, self.inputs)

    @cached_property
    def calls_the_original(self) -> bool:
        """Whether the copy of a model would call modules of the model itself."""
        if self.own is self.model:
            return False
        try:
            strangers = self.counted.strangers
        except ModelError:  # one that knows its modules by their ids does not know those of a copy
            return True
        bound = any(closing_over_modules(each) is not None for each in self.model.modules())
        return bound or not strangers.isdisjoint({id(module) for module in self.model.modules()})

    def trace(self, *, asked: bool = False) -> Program:
        """The model as one graph. Raises `CannotTrace` where that would not be the model.

        `asked`: by name, so that what a trace can only fix or drop is said instead of refused.
        """
        own = self.own
        if isinstance(own, fx.GraphModule) and is_plain_graph(own) and not hidden_convs(own):
            require_no_more(own)
            return self._as_it_is(own)
        given = given_arguments(self.own, self.inputs)
        taken = None if asked else users_input(self.inputs)
        if taken:
            raise CannotTrace(f"forward takes a {taken}, which its class knows how to read")
        modes = asked or self.manner.whole or self.manner.respells
        traced = trace(self.own, given, asked=asked, modes=modes, leaves=self._leaf_paths())
        reference = assemble(self.own, traced)
        if traced.trained is not None:
            self._take_in_train_mode(reference, traced)
        hidden = hidden_convs(reference)
        if hidden:
            raise CannotTrace(f"{hidden} holds grouped convolutions and stays a leaf")
        returned = None if asked else users_output(reference)
        if returned:
            raise CannotTrace(f"forward returns a {returned}, which stays as it is in its class")
        counted = self.counted  # first: what the model itself refuses is no fault of the trace
        try:
            run = run_graph(reference, self.own, self.inputs)
            fix_numbers(reference, self.own, self.inputs)
        except ModelError as error:
            raise CannotTrace(f"the trace does not run: {error}") from error
        _require_same(counted, reference, run)
        working = self._working(reference)
        fragment = Fragment(path="", reference=reference, working=working)
        program = Program("trace", self.model, working, [fragment], self.inputs, traced.notes)
        program.uncalled = uncalled(self.own, reference)
        program.unreachable = taken_apart(self.own, reference)
        program.macs = run.macs
        return program

    def _take_in_train_mode(self, reference: fx.GraphModule, traced: Trace) -> None:
        """Make the trace of eval mode one of both modes. Raises `CannotTrace`."""
        assert traced.trained is not None
        other = assemble(self.own, Trace(traced.trained, traced.constants))
        try:
            united(reference, other)
        except Difference as error:
            raise CannotTrace(f"forward is built otherwise in train mode: {error}") from error
        take_modes(reference, self.own)
        why = runs_alike(self.own, reference, self.inputs)
        if why is not None:
            raise CannotTrace(f"the trace computes something else in train mode: {why}")

    def _leaf_paths(self) -> frozenset[str]:
        if self.manner.leaves is None:
            return frozenset()
        named = self.own.named_modules(remove_duplicate=False)
        return frozenset(path for path, module in named if path and self.manner.leaves(module))

    def _as_it_is(self, reference: fx.GraphModule) -> Program:
        """A model that is one graph already needs no trace."""
        exported = isinstance(reference.graph._codegen, fx.graph._PyTreeCodeGen)
        way: Way = "export" if exported else "trace"
        run = run_graph(reference, reference, self.inputs)
        working = self._working(reference)
        fragments = self._with_inner(Fragment(path="", reference=reference, working=working))
        program = Program(way, self.model, working, fragments, self.inputs)
        program.uncalled = uncalled(self.own, reference)
        program.unreachable = hidden_runs(run, reference)
        program.macs = run.macs
        return program

    def modules(self, reasons: tuple[str, ...]) -> Program:
        """The model's own class, and a small graph for each convolution that it calls."""
        counted = self.counted
        if not self.manner.inplace and self.calls_the_original:
            if self.manner.read_only:
                return self.of_itself().modules(reasons)
            found = map(closing_over_modules, self.model.modules())
            bound = next((place for place in found if place is not None), None)
            what = "a function or a reference that it keeps"
            if bound is not None:
                what = f"a forward that was put on an instance{bound}"
            raise ModelError(
                f"{type(self.model).__name__} holds a function that calls its own modules by their "
                f"objects ({what}): a copy would still call those of the original. Write it as a "
                "method of a class, or pass inplace=True"
            )
        result = self.own
        if not self.manner.read_only:
            result = self.model if self.manner.inplace else copied(self.model, share=False)
        target = self.model if self.manner.inplace else self.own
        kept = list(site_modules(self.own)) if self.manner.in_calls else []
        fragments, unreachable, changing = self._fragments(result, kept=kept)
        seen = tried(target, fragments, self.inputs, counted.output)
        if seen.idle:
            # Forward calls the layer itself, from where nothing can be put: its calls can be taken.
            kept += [fragments[n].path for n in seen.idle if fragments[n].is_module]
            fragments, unreachable, changing = self._fragments(result, kept=kept)
            seen = tried(target, fragments, self.inputs, counted.output)
        places = [*(each.place for each in counted.unseen), *(each.place for each in changing)]
        for number in seen.idle:
            left = fragments[number]
            places.append(left.place)
            unreachable[left.label or left.path] = Unreachable(why_idle(left), left.calls)
        fragments = [each for number, each in enumerate(fragments) if number not in seen.idle]
        lost = [(c.path or "forward", why_changing(c)) for c in changing]
        lost += [(u.path or u.operator, why_unseen(self.own, u)) for u in counted.unseen]
        more = untold(seen.outside, (*unreachable.values(), *(why for _, why in lost)), places)
        lost += [(u.operator, why_unseen(self.own, u)) for u in more]
        names = numbered(name for name, _ in lost)
        unreachable |= {name: why for name, (_, why) in zip(names, lost, strict=True)}
        original = self.own if self.manner.inplace else self.model
        return Program(
            "modules",
            original,
            result,
            fragments,
            self.inputs,
            reasons,
            unreachable,
            macs=counted.macs,
            written=counted.written,
        )

    @cached_property
    def _changing(self) -> Sequence[FunctionCalls]:
        """Those with other groups for another batch: a kernel a sample takes it for channels."""
        batch = self.inputs.batch
        single = [each for each in self.counted.functions if each.shapes.input[0] == 1]
        if not single or batch is None:
            return ()
        try:
            more = count_calls(self.own, self.inputs.with_batch(batch + 1)).functions
        except ModelError:
            return ()
        again = {(each.path, each.spec.groups) for each in more}
        return [each for each in single if (each.path, each.spec.groups) not in again]

    def _fragments(
        self, result: nn.Module, kept: Collection[str]
    ) -> tuple[list[Fragment], dict[str, Unreachable], list[FunctionCalls]]:
        """Graphs of the convolutions that forward calls; why there is none of some modules.

        Last come the calls of functions that change with the batch. The modules at the paths `kept`
        stay where they are.
        """
        counted = self.counted
        fragments: list[Fragment] = []
        unreachable: dict[str, Unreachable] = {}
        calls = [each for each in counted.functions if each.site is None]
        grouped_by_vmap = {each.path for each in counted.unseen if each.inside == VMAP}
        for path, module in site_modules(self.own).items():
            if path in grouped_by_vmap and path:
                continue
            if path == "" and not (is_plain(module) or has_learned_groups(module)):
                continue  # the model itself, whose forward is looked into
            called = counted.modules.get(path, ModuleCalls(None, None, 0))
            inside = [each for each in counted.functions if each.site == path]
            plain = is_plain(module) or has_learned_groups(module)
            # Where calls of functions are not seen, one of them may read its weight.
            if (not plain or path in kept or counted.asks) and called.count == 0:
                unreachable[path] = Unreachable("it is not called in this forward", 0)
                continue
            if called.count == 0 and counted.lends_its_weight(module):
                continue  # the site is the call of a function that reads it
            needed = any(n.startswith(f"{path}.") for n in (*counted.written, *counted.switched))
            needed |= (called.more and not plain) or path in counted.lent_others or path in kept
            needed |= bool(hooked(module)) or quantises(module)
            if inside and (needed or has_users_parametrization(module)):
                # Somebody needs the layer itself: forward, a hook, or a class in it.
                calls += inside
                continue
            try:
                fragments.append(self._module(path, module, called, result))
            except CannotTrace as error:
                calls += inside
                if not inside:
                    reason = f"its forward cannot be traced: {error}"
                    unreachable[path] = Unreachable(reason, called.count)
        fragments += self._functions([each for each in calls if each not in self._changing])
        return fragments, unreachable, [each for each in calls if each in self._changing]

    def _module(
        self, path: str, module: nn.Module, called: ModuleCalls, result: nn.Module
    ) -> Fragment:
        """The graph of one convolution module."""
        if path == "":
            raise CannotTrace("it is the whole model")
        reference = module_graph(module, more=called.more)
        twin = result.get_submodule(path)
        working = reference if self.manner.read_only else module_graph(twin, more=called.more)
        run_for_shapes(reference, called.example)
        run_for_shapes(working, called.example)
        return Fragment(path, reference, working, called.shapes, called.count, is_module=True)

    def _functions(self, calls: Sequence[FunctionCalls]) -> Iterator[Fragment]:
        """A graph for the calls of a function with the same numbers in the same module."""
        names = numbered(each.path or "forward" for each in calls)
        for name, each in zip(names, calls, strict=True):
            reference, working = (call_graph(each.spec, each.weight, each.shapes) for _ in range(2))
            yield Fragment(
                each.path,
                reference,
                reference if self.manner.read_only else working,
                each.shapes,
                each.count,
                calls_of=each.spec,
                label=name,
                place=each.place,
            )

    def export(self, reasons: tuple[str, ...]) -> Program:
        if self.counted.asks:
            raise CannotTrace(
                "forward asks whether torch's functions are watched, as an export does"
            )
        axes = first_axis if self.manner.fixed else all_axes
        manner = self.manner
        trained = manner.both_modes and not manner.read_only
        self.counted.require_parameters_left()
        made = exported(self.own, self.inputs, axes, trained=trained, apart=not manner.respells)
        reference = made.module
        run = run_graph(reference, self.own, self.inputs)  # first: notes go along with a copy
        working = self._working(reference)
        fragments = self._with_inner(Fragment(path="", reference=reference, working=working))
        program = Program(
            "export", self.model, working, fragments, self.inputs, (*reasons, *made.notes)
        )
        program.unreachable = hidden_runs(run, reference)
        program.dynamic = made.dynamic
        program.uncalled = uncalled(self.own, reference)
        return program

    def _with_inner(self, whole: Fragment) -> list[Fragment]:
        """The fragment of a whole graph, and one for each graph inside it that has convolutions."""
        fragments = [whole]
        for path, reference in inner_graphs(whole.reference):
            parent, _, name = path.rpartition(".")
            if self.manner.inplace and not self.manner.read_only:
                whole.working.get_submodule(parent)._modules[name] = snapshot(reference)
            working = whole.working.get_submodule(path)
            assert isinstance(working, fx.GraphModule)
            if convs(reference):
                fragments.append(Fragment(path, reference, working, is_inner=True))
        return fragments

    def _working(self, reference: fx.GraphModule) -> fx.GraphModule:
        if self.manner.read_only:
            return reference
        # In place, the two sides share tensors: passes replace modules, they never change them.
        return same_tensors(reference) if self.manner.inplace else copied_graph(reference)


def given_arguments(model: nn.Module, inputs: ExampleInputs) -> frozenset[str]:
    """Names of the arguments of `forward` that `inputs` fills."""
    if isinstance(model, torch.jit.ScriptModule):
        raise CannotTrace("the model is TorchScript")
    return frozenset(bound_arguments(model, inputs).arguments)


def _require_same(counted: Counted, graph: fx.GraphModule, run: GraphRun) -> None:
    """Raise `CannotTrace` where the graph does not run, or give, what the model does."""
    for hidden in run.hidden(graph)[:1]:
        what = f"{hidden.operator} with {hidden.groups} groups"
        raise CannotTrace(f"a grouped convolution runs inside {hidden.owner} ({what})")
    if len(run.convs) != counted.runs:
        ran = f"{len(run.convs)} grouped convolutions, and the model runs {counted.runs}"
        raise CannotTrace(f"the trace runs {ran}")
    counted.require_parameters_left()
    difference = unlike(counted.output, run.output)
    if difference:
        raise CannotTrace(f"the trace computes something else: {difference}")
