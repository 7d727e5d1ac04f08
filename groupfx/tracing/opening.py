"""Open a model for rewriting: by a trace, by its modules, or by `torch.export`.

The order is the one that keeps most of the model: a trace gives one plain graph; where it fails
or would change the model, only the convolution modules are taken out of it; where a grouped
convolution is a function call in a `forward` that cannot be traced, the whole is exported.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from ..convs.calls import attribute
from ..convs.names import numbered
from ..convs.spec import has_users_parametrization, is_plain, written_class
from ..errors import ModelError, UsageError
from ..learned.groups import has_learned_groups
from ..nn.masked_conv import MASKED
from ..running.grouped_runs import at
from ..running.inputs import ExampleInputs
from ..running.twins import twin_tree
from ..verify.measures import unlike
from .counting import Counted, FunctionCalls, ModuleCalls, Unseen, count_calls, site_modules
from .exporting import exported
from .graphs import (
    GraphRun,
    assemble,
    call_graph,
    copied_graph,
    module_graph,
    run_for_shapes,
    run_graph,
    same_tensors,
)
from .numbers import fix_numbers
from .program import WAYS, Fragment, Program, Unreachable, Way, copied
from .quantised import refuse_quantised
from .tracer import CannotTrace, trace

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
    leaves: Leaves | None = None,
) -> Program:
    """Open `model` in the first way that keeps it whole, or in the given `way`.

    `read_only` makes the working side the reference itself, for looking without rewriting.
    `inplace` works on the caller's own tensors and modules instead of a copy. `whole` asks for one
    graph of the whole model rather than for its class, where it cannot be both. A trace keeps the
    modules that `leaves` names as one call each. Raises `ModelError` where no way takes the model,
    with the reason of each.
    """
    if way not in ("auto", *WAYS):
        raise UsageError(f"unknown way {way!r}: choose one of auto, {', '.join(WAYS)}")
    _refuse_lazy(model)
    refuse_quantised(model)
    if read_only and way == "auto":
        program = _traced_twin(model, inputs, leaves)
        if program is not None:
            return program
    own = twin_tree(model) if inplace else copied(model, share=True)
    opener = _Opener(model, own, inputs, inplace=inplace, read_only=read_only, leaves=leaves)
    if way == "modules":
        return opener.modules(())
    if way == "auto":
        return _first_way(opener, whole)
    try:
        return opener.trace(asked=True) if way == "trace" else opener.export(())
    except CannotTrace as error:
        done = "traced" if way == "trace" else "exported"
        raise ModelError(f"{type(model).__name__} cannot be {done}: {error}") from error


def _first_way(opener: "_Opener", whole: bool) -> Program:
    """The first way that keeps the model whole; `ModelError` with every reason if none does."""
    try:
        return opener.trace()
    except CannotTrace as error:
        reasons: tuple[str, ...] = (f"not traced: {error}",)
    counted = opener.counted
    graph_alone = whole and counted.functions
    if graph_alone or counted.unseen:
        try:
            exported = opener.export(reasons)
        except CannotTrace as error:
            reasons = (*reasons, f"not exported: {error}")
        else:
            if graph_alone or not exported.unreachable:
                return exported
    return opener.modules(reasons)


def _traced_twin(model: nn.Module, inputs: ExampleInputs, leaves: Leaves | None) -> Program | None:
    """The trace of a shallow copy, which is made in no time; None where it cannot be traced.

    What a shallow copy does not follow (a bound method, a module in a nested list) ends there too.
    """
    if any(isinstance(module, fx.GraphModule) for module in model.modules()):
        return None  # its twin would share the graph, which names its module
    try:
        twin = twin_tree(model)
        opener = _Opener(model, twin, inputs, inplace=False, read_only=True, leaves=leaves)
        return opener.trace()
    except CannotTrace:
        return None


def _refuse_lazy(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ModelError(
                f"{name} has no shape yet (a lazy module): run the model once, then rewrite it"
            )


@dataclass
class _Opener:
    """The three ways for one model; `own` shares its tensors but not its module objects."""

    model: nn.Module
    own: nn.Module
    inputs: ExampleInputs
    inplace: bool
    read_only: bool
    leaves: Leaves | None = None

    @cached_property
    def counted(self) -> Counted:
        """What one run of the model itself calls and gives."""
        return count_calls(self.own, self.inputs)

    def trace(self, *, asked: bool = False) -> Program:
        """The model as one graph. Raises `CannotTrace` where that would not be the model.

        `asked`: by name, so that what a trace can only fix or drop is said instead of refused.
        """
        own = self.own
        if isinstance(own, fx.GraphModule) and is_plain_graph(own) and not _hidden_convs(own):
            return self._as_it_is(own)
        given = given_arguments(self.own, self.inputs)
        taken = None if asked else _users_input(self.inputs)
        if taken:
            raise CannotTrace(f"forward takes a {taken}, which its class knows how to read")
        traced = trace(self.own, given, asked=asked, leaves=self._leaf_paths())
        reference = assemble(self.own, traced)
        hidden = _hidden_convs(reference)
        if hidden:
            raise CannotTrace(f"{hidden} holds grouped convolutions and stays a leaf")
        returned = None if asked else _users_output(reference)
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
        program.uncalled = _uncalled(self.own, reference)
        program.macs = run.macs
        return program

    def _leaf_paths(self) -> frozenset[str]:
        if self.leaves is None:
            return frozenset()
        named = self.own.named_modules(remove_duplicate=False)
        return frozenset(path for path, module in named if path and self.leaves(module))

    def _as_it_is(self, reference: fx.GraphModule) -> Program:
        """A model that is one graph already needs no trace."""
        if isinstance(reference.graph._codegen, fx.graph._PyTreeCodeGen):
            way: Way = "export"
            macs = None
        else:
            way = "trace"
            macs = run_graph(reference, reference, self.inputs).macs
        fragment = Fragment(path="", reference=reference, working=self._working(reference))
        program = Program(way, self.model, fragment.working, [fragment], self.inputs)
        program.uncalled = _uncalled(self.own, reference)
        program.macs = macs
        return program

    def modules(self, reasons: tuple[str, ...]) -> Program:
        """The model's own class, and a small graph for each convolution that it calls."""
        counted = self.counted
        originals = {id(module) for module in self.model.modules()}
        bound = any(_closes_over_modules(module) for module in self.model.modules())
        if not self.inplace and (bound or not counted.strangers.isdisjoint(originals)):
            raise ModelError(
                f"{type(self.model).__name__} holds a function that calls its own modules by their "
                "objects (a forward that was put on an instance): a copy would still call those of "
                "the original. Write it as a method of a class, or pass inplace=True"
            )
        result = self.own
        if not self.read_only:
            result = self.model if self.inplace else copied(self.model, share=False)
        fragments: list[Fragment] = []
        unreachable: dict[str, Unreachable] = {}
        calls = [each for each in counted.functions if each.site is None]
        for path, module in site_modules(self.own).items():
            called = counted.modules.get(path, ModuleCalls(None, None, 0))
            inside = [each for each in counted.functions if each.site == path]
            plain = is_plain(module) or has_learned_groups(module)
            if not plain and called.count == 0:
                unreachable[path] = Unreachable("it is not called in this forward", 0)
                continue
            if called.count == 0 and counted.lends_its_weight(module):
                continue  # the site is the call of a function that reads it
            kept = any(name.startswith(f"{path}.") for name in counted.written)
            kept |= (called.more and not plain) or path in counted.lent_others
            if inside and (kept or has_users_parametrization(module)):
                # Somebody needs the layer itself: forward, or a class of the user's in it.
                calls += inside
                continue
            try:
                fragments.append(self._module(path, module, called, result))
            except CannotTrace as error:
                calls += inside
                if not inside:
                    reason = f"its forward cannot be traced: {error}"
                    unreachable[path] = Unreachable(reason, called.count)
        fragments += self._functions(calls)
        for name, unseen in _named(counted.unseen):
            unreachable[name] = Unreachable(_why_unseen(self.own, unseen), unseen.count)
        original = self.own if self.inplace else self.model
        return Program(
            "modules",
            original,
            result,
            fragments,
            self.inputs,
            reasons,
            unreachable,
            macs=counted.macs,
        )

    def _module(
        self, path: str, module: nn.Module, called: ModuleCalls, result: nn.Module
    ) -> Fragment:
        """The graph of one convolution module."""
        if path == "":
            raise CannotTrace("it is the whole model")
        reference = module_graph(module)
        twin = result.get_submodule(path)
        working = reference if self.read_only else module_graph(twin)
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
                reference if self.read_only else working,
                each.shapes,
                each.count,
                calls_of=each.spec,
                label=name,
            )

    def export(self, reasons: tuple[str, ...]) -> Program:
        made = exported(self.own, self.inputs)
        reference, working = made.module, self._working(made.module)
        fragment = Fragment(path="", reference=reference, working=working)
        program = Program(
            "export", self.model, working, [fragment], self.inputs, (*reasons, *made.notes)
        )
        hidden = run_graph(reference, self.own, self.inputs).hidden(reference)
        for run in hidden:
            what = f"{run.operator} with {run.groups} groups runs inside {run.owner}"
            program.unreachable = {
                **program.unreachable,
                run.owner.name: Unreachable(f"{what}, which no pass looks into", len(hidden)),
            }
        program.dynamic = made.dynamic
        program.uncalled = _uncalled(self.own, reference)
        return program

    def _working(self, reference: fx.GraphModule) -> fx.GraphModule:
        if self.read_only:
            return reference
        # In place, the two sides share tensors: passes replace modules, they never change them.
        return same_tensors(reference) if self.inplace else copied_graph(reference)


def given_arguments(model: nn.Module, inputs: ExampleInputs) -> frozenset[str]:
    """Names of the arguments of `forward` that `inputs` fills."""
    if isinstance(model, torch.jit.ScriptModule):
        raise CannotTrace("the model is TorchScript")
    try:
        bound = inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs)
    except TypeError as error:
        raise UsageError(
            f"the example inputs do not fit {type(model).__name__}.forward: {error}"
        ) from error
    return frozenset(bound.arguments)


def _require_same(counted: Counted, graph: fx.GraphModule, run: GraphRun) -> None:
    """Raise `CannotTrace` where the graph does not run, or give, what the model does."""
    for hidden in run.hidden(graph)[:1]:
        what = f"{hidden.operator} with {hidden.groups} groups"
        raise CannotTrace(f"a grouped convolution runs inside {hidden.owner} ({what})")
    if len(run.convs) != counted.runs:
        ran = f"{len(run.convs)} grouped convolutions, and the model runs {counted.runs}"
        raise CannotTrace(f"the trace runs {ran}")
    if counted.written:
        raise CannotTrace(f"forward writes to its parameter {counted.written[0]}")
    difference = unlike(counted.output, run.output)
    if difference:
        raise CannotTrace(f"the trace computes something else: {difference}")


def _users_input(inputs: ExampleInputs) -> str | None:
    """Name of a class of the user's among the arguments, whose attributes a graph would read."""
    for value in (*inputs.args, *inputs.kwargs.values()):
        for leaf in tree_leaves(value):
            kind = type(leaf)
            if kind.__module__.partition(".")[0] not in ("builtins", "torch") or callable(leaf):
                return f"{kind.__module__}.{kind.__qualname__}"
    return None


def _users_output(graph: fx.GraphModule) -> str | None:
    """Name of a class of the user's in the output, which a graph would have to call."""
    pending = list(graph.graph.output_node().all_input_nodes)
    while pending:
        node = pending.pop()
        if node.op == "call_function" and isinstance(node.target, type):
            if node.target.__module__ != "builtins":
                return f"{node.target.__module__}.{node.target.__qualname__}"
            pending += node.all_input_nodes
    return None


def is_plain_graph(graph: fx.GraphModule) -> bool:
    """Whether a model is its graph and nothing else: of a class of torch's or of ours."""
    return written_class(graph).__module__.startswith(("torch.", "groupfx."))


def _closes_over_modules(module: nn.Module) -> bool:
    """Whether a function that stands for the forward of one instance has modules in its closure."""
    forward = vars(module).get("forward")
    cells = getattr(forward, "__closure__", None) or ()
    held = (cell.cell_contents for cell in cells)
    compiled = type(module).__module__.startswith("torch._dynamo")
    return not compiled and any(isinstance(getattr(v, "__self__", v), nn.Module) for v in held)


def _named(unseen: Sequence[Unseen]) -> Iterator[tuple[str, Unseen]]:
    return zip(numbered(each.path or each.operator for each in unseen), unseen, strict=True)


def _why_unseen(model: nn.Module, unseen: Unseen) -> str:
    module = dict(model.named_modules())[unseen.path]
    ran = f"{unseen.operator} with {unseen.groups} groups runs here{at(unseen.place)}"
    if isinstance(module, torch.jit.ScriptModule):
        return f"{ran} in TorchScript: give the model as it was before torch.jit"
    if unseen.inside:
        return f"{ran} in a branch of torch.cond or an operator like it: call a module there"
    return f"{ran} where no call of torch's functions shows it: call torch.nn.functional.conv there"


def _uncalled(model: nn.Module, graph: fx.GraphModule) -> tuple[str, ...]:
    """Grouped convolution modules that the graph neither calls nor reads a tensor of."""
    used = {
        str(node.target)
        for node in graph.graph.nodes
        if node.op == "call_module" or (node.op == "get_attr" and node.users)
    }
    tensors = {id(attribute(graph, key)) for key in used if _is_tensor(graph, key)}
    modules = {id(graph.get_submodule(key)) for key in used if not _is_tensor(graph, key)}
    return tuple(
        path
        for path, module in site_modules(model).items()
        if path
        and id(module) not in modules
        and not any(id(parameter) in tensors for parameter in module.parameters())
    )


def _is_tensor(graph: fx.GraphModule, key: str) -> bool:
    path, _, name = key.rpartition(".")
    # An export leaves constants as plain attributes.
    return isinstance(getattr(graph.get_submodule(path), name), torch.Tensor)


def _hidden_convs(module: fx.GraphModule) -> str | None:
    """Path of a called leaf inside which a grouped convolution module lies, if any."""
    called = {str(node.target) for node in module.graph.nodes if node.op == "call_module"}
    for path in called:
        leaf = module.get_submodule(path)
        # What freezing padded is a leaf that everything else can be seen around.
        if is_plain(leaf) or isinstance(leaf, tuple(MASKED.values())):
            continue
        if any(isinstance(m, _ConvNd) and m.groups > 1 for m in leaf.modules()):
            return path
    return None
