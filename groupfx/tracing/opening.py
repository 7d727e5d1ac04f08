"""Open a model for rewriting: by a trace, by its modules, or by `torch.export`.

The order is the one that keeps most of the model: a trace gives one plain graph; where it fails
or would change the model, only the convolution modules are taken out of it; where a grouped
convolution is a function call in a `forward` that cannot be traced, the whole is exported.
"""

import inspect
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from ..convs.calls import attribute
from ..convs.spec import CONV_TYPES, original_type
from ..errors import ModelError, UsageError
from ..learned.groups import has_learned_groups
from ..nn.masked_conv import MASKED
from ..running.inputs import ExampleInputs
from .counting import Counted, ModuleCalls, count_calls, site_modules
from .exporting import exported
from .graphs import (
    assemble,
    copied_graph,
    module_graph,
    record_shapes,
    run_for_shapes,
    same_tensors,
)
from .program import WAYS, Fragment, Program, Way, copied, twin_tree
from .tracer import CannotTrace, trace


def open_model(
    model: nn.Module,
    inputs: ExampleInputs,
    *,
    way: str = "auto",
    inplace: bool = False,
    read_only: bool = False,
) -> Program:
    """Open `model` in the first way that keeps it whole, or in the given `way`.

    `read_only` makes the working side the reference itself, for looking without rewriting.
    `inplace` works on the caller's own tensors and modules instead of a copy. Raises `ModelError`
    where no way takes the model, with the reason of each.
    """
    if way not in ("auto", *WAYS):
        raise UsageError(f"unknown way {way!r}: choose one of auto, {', '.join(WAYS)}")
    _refuse_lazy(model)
    if read_only and way == "auto":
        program = _traced_twin(model, inputs)
        if program is not None:
            return program
    own = twin_tree(model) if inplace else copied(model, share=True)
    opener = _Opener(model, own, inputs, inplace=inplace, read_only=read_only)
    if way == "trace":
        return opener.trace(fix_optional=True)
    if way == "modules":
        return opener.modules(())
    if way == "export":
        return opener.export(())
    return _first_way(opener)


def _first_way(opener: "_Opener") -> Program:
    """The first way that keeps the model whole; `ModelError` with every reason if none does."""
    try:
        return opener.trace()
    except CannotTrace as error:
        reason = f"not traced: {error}"
    counted = count_calls(opener.own, opener.inputs)
    if counted.outside == 0:
        return opener.modules((reason,), counted)
    try:
        return opener.export((reason,))
    except CannotTrace as error:
        reasons = (reason, f"not exported: {error}")
    if not counted.modules:
        raise ModelError(f"{type(opener.model).__name__} cannot be opened: {'; '.join(reasons)}")
    missed = f"{counted.outside} grouped convolution calls outside convolution modules"
    return opener.modules((*reasons, f"{missed} are not seen"), counted)


def _traced_twin(model: nn.Module, inputs: ExampleInputs) -> Program | None:
    """The trace of a shallow copy, which is made in no time; None where it cannot be traced.

    What a shallow copy does not follow (a bound method, a module in a nested list) ends there too.
    """
    if any(isinstance(module, fx.GraphModule) for module in model.modules()):
        return None
    try:
        return _Opener(model, twin_tree(model), inputs, inplace=False, read_only=True).trace()
    except CannotTrace:
        return None


def _refuse_lazy(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ModelError(
                f"{name} has no shape yet (a lazy module): run the model once, then rewrite it"
            )
        if parameter.is_meta:
            raise ModelError(f"{name} has no values (it lies on the device meta): load them first")


@dataclass
class _Opener:
    """The three ways for one model; `own` shares its tensors but not its module objects."""

    model: nn.Module
    own: nn.Module
    inputs: ExampleInputs
    inplace: bool
    read_only: bool

    def trace(self, *, fix_optional: bool = False) -> Program:
        if isinstance(self.own, fx.GraphModule) and not _hidden_convs(self.own):
            return self._as_it_is(self.own)
        given = given_arguments(self.own, self.inputs)
        try:
            traced = trace(self.own, given, fix_optional=fix_optional)
        except CannotTrace as error:
            if not fix_optional:
                raise
            raise ModelError(f"{type(self.model).__name__} cannot be traced: {error}") from error
        reference = assemble(self.own, traced)
        hidden = _hidden_convs(reference)
        if hidden:
            raise CannotTrace(f"{hidden} holds grouped convolutions and stays a leaf")
        macs = record_shapes(reference, self.own, self.inputs)
        working = self._working(reference)
        fragment = Fragment(path="", reference=reference, working=working)
        program = Program("trace", self.model, working, [fragment], self.inputs, traced.notes)
        program.uncalled = _uncalled(self.own, reference)
        program.macs = macs
        return program

    def _as_it_is(self, reference: fx.GraphModule) -> Program:
        """A model that is one graph already needs no trace."""
        if isinstance(reference.graph._codegen, fx.graph._PyTreeCodeGen):
            way: Way = "export"
            macs = None
        else:
            way = "trace"
            macs = record_shapes(reference, reference, self.inputs)
        fragment = Fragment(path="", reference=reference, working=self._working(reference))
        program = Program(way, self.model, fragment.working, [fragment], self.inputs)
        program.uncalled = _uncalled(self.own, reference)
        program.macs = macs
        return program

    def modules(self, reasons: tuple[str, ...], counted: "Counted | None" = None) -> Program:
        counted = counted or count_calls(self.own, self.inputs)
        if counted.outside and not reasons:
            reasons = (f"{counted.outside} grouped convolution calls are not calls of modules",)
        result = self.own
        if not self.read_only:
            result = self.model if self.inplace else copied(self.model, share=False)
        fragments, unreachable = [], {}
        for path, module in site_modules(self.own).items():
            calls = counted.modules.get(path, ModuleCalls(None, None, 0))
            plain = original_type(module) in CONV_TYPES or has_learned_groups(module)
            if path == "" or (calls.count == 0 and not plain):
                unreachable[path] = "it is not called in this forward, and its forward is its own"
                continue
            try:
                reference = module_graph(module)
                twin = result.get_submodule(path)
                working = reference if self.read_only else module_graph(twin)
            except CannotTrace as error:
                unreachable[path] = f"its forward cannot be traced: {error}"
                continue
            run_for_shapes(reference, calls.example)
            run_for_shapes(working, calls.example)
            fragments.append(
                Fragment(path, reference, working, calls.shapes, calls.count, is_module=True)
            )
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

    def export(self, reasons: tuple[str, ...]) -> Program:
        made = exported(self.own, self.inputs)
        reference, working = made.module, self._working(made.module)
        fragment = Fragment(path="", reference=reference, working=working)
        program = Program(
            "export", self.model, working, [fragment], self.inputs, (*reasons, *made.notes)
        )
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
    try:
        bound = inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs)
    except TypeError as error:
        raise UsageError(
            f"the example inputs do not fit {type(model).__name__}.forward: {error}"
        ) from error
    return frozenset(bound.arguments)


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
        if original_type(leaf) in CONV_TYPES or isinstance(leaf, tuple(MASKED.values())):
            continue
        if any(isinstance(m, _ConvNd) and m.groups > 1 for m in leaf.modules()):
            return path
    return None
