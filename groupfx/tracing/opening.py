"""Open a model for rewriting: by a trace, by its modules, or by `torch.export`.

The order is the one that keeps most of the model: a trace gives one plain graph; where it fails
or would change the model, only the convolution modules are taken out of it; where a grouped
convolution is a function call in a `forward` that cannot be traced, the whole is exported.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode

from ..calls import attribute
from ..convs import CONV_TYPES, original_type
from ..errors import ModelError, UsageError
from ..inputs import ExampleInputs
from .program import FRAGMENT_MODULE, WAYS, Fragment, Program, Shapes, Way, copied
from .swapped import SwappedConv
from .tracer import CannotTrace, Trace, Tracer, modes_kept, trace


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
    own = model if inplace else copied(model, share=True)
    opener = _Opener(model, own, inputs, inplace=inplace, read_only=read_only)
    if way == "trace":
        return opener.trace(fix_optional=True)
    if way == "modules":
        return opener.modules(())
    if way == "export":
        return opener.export(())
    try:
        return opener.trace()
    except CannotTrace as error:
        reason = f"not traced: {error}"
    counted = count_calls(own, inputs)
    if counted.outside == 0:
        return opener.modules((reason,), counted)
    try:
        return opener.export((reason,))
    except CannotTrace as error:
        reasons = (reason, f"not exported: {error}")
    if not counted.modules:
        raise ModelError(f"{type(model).__name__} cannot be opened: {'; '.join(reasons)}")
    missed = f"{counted.outside} grouped convolution calls outside convolution modules"
    return opener.modules((*reasons, f"{missed} are not seen"), counted)


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
        record_shapes(reference, self.own, self.inputs)
        working = self._working(reference)
        fragment = Fragment(path="", reference=reference, working=working)
        program = Program("trace", self.model, working, [fragment], self.inputs, traced.notes)
        program.uncalled = _uncalled(self.own, reference)
        return program

    def _as_it_is(self, reference: fx.GraphModule) -> Program:
        """A model that is one graph already needs no trace."""
        if isinstance(reference.graph._codegen, fx.graph._PyTreeCodeGen):
            way: Way = "export"
        else:
            way = "trace"
            record_shapes(reference, reference, self.inputs)
        fragment = Fragment(path="", reference=reference, working=self._working(reference))
        program = Program(way, self.model, fragment.working, [fragment], self.inputs)
        program.uncalled = _uncalled(self.own, reference)
        return program

    def modules(self, reasons: tuple[str, ...], counted: "Counted | None" = None) -> Program:
        counted = counted or count_calls(self.own, self.inputs)
        if counted.outside and not reasons:
            reasons = (f"{counted.outside} grouped convolution calls are not calls of modules",)
        result = self.own if self.inplace or self.read_only else copied(self.model, share=False)
        fragments, unreachable = [], {}
        for path, module in grouped_modules(self.own).items():
            calls = counted.modules.get(path, ModuleCalls(None, None, 0))
            if path == "" or (calls.count == 0 and original_type(module) not in CONV_TYPES):
                unreachable[path] = "it is not called in this forward, and its forward is its own"
                continue
            try:
                reference = module_graph(module)
                twin = result.get_submodule(path)
                working = reference if self.read_only else module_graph(twin)
            except CannotTrace as error:
                unreachable[path] = f"its forward cannot be traced: {error}"
                continue
            _shapes_of_fragment(reference, calls.example)
            _shapes_of_fragment(working, calls.example)
            fragments.append(
                Fragment(path, reference, working, calls.shapes, calls.count, is_module=True)
            )
        return Program("modules", self.model, result, fragments, self.inputs, reasons, unreachable)

    def export(self, reasons: tuple[str, ...]) -> Program:
        reference, notes = exported(self.own, self.inputs)
        working = self._working(reference)
        fragment = Fragment(path="", reference=reference, working=working)
        program = Program(
            "export", self.model, working, [fragment], self.inputs, (*reasons, *notes)
        )
        program.uncalled = _uncalled(self.own, reference)
        return program

    def _working(self, reference: fx.GraphModule) -> fx.GraphModule:
        if self.read_only:
            return reference
        if self.inplace:
            return _same_tensors(reference)
        working = copied(reference, share=False)
        assert isinstance(working, fx.GraphModule)
        _keep_persistence(reference, working)
        return working


def _same_tensors(reference: fx.GraphModule) -> fx.GraphModule:
    """A second graph over the very same tensors; passes replace modules, never change them."""
    twin = copied(reference, share=True)
    assert isinstance(twin, fx.GraphModule)
    _keep_persistence(reference, twin)
    return twin


def given_arguments(model: nn.Module, inputs: ExampleInputs) -> frozenset[str]:
    """Names of the arguments of `forward` that `inputs` fills."""
    try:
        bound = inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs)
    except TypeError as error:
        raise UsageError(
            f"the example inputs do not fit {type(model).__name__}.forward: {error}"
        ) from error
    return frozenset(bound.arguments)


def assemble(
    model: nn.Module, traced: Trace, kind: type[fx.GraphModule] = fx.GraphModule
) -> fx.GraphModule:
    """A `GraphModule` of `traced` over the modules and tensors of `model`, none left behind."""
    graph = traced.graph
    # Neither the tracer nor the file that forward stood in is part of the model.
    graph._tracer_cls = None
    graph._co_fields = {}
    for name, constant in traced.constants.items():
        model.__dict__[name] = constant
    module = kind(model, graph, class_name=type(model).__name__)
    for name in traced.constants:
        del model.__dict__[name]
        module._non_persistent_buffers_set.add(name)
    _adopt(module, model)
    _restore_order(module, model)
    return module


def _adopt(module: fx.GraphModule, model: nn.Module) -> None:
    """Put what the graph does not use where it was: every key of the state_dict stays."""
    tracer = Tracer()
    inside: list[str] = []
    for path, child in model.named_modules(remove_duplicate=False):
        if any(path.startswith(leaf) for leaf in inside):
            continue
        if path and tracer.is_leaf_module(child, path):
            inside.append(f"{path}.")
            parent, _, name = path.rpartition(".")
            holder = _ensure_holder(module, parent)
            if name not in holder._modules:
                holder.add_module(name, child)
                continue
        holder = _ensure_holder(module, path)
        for name, parameter in child._parameters.items():
            if name not in holder._parameters:
                holder.register_parameter(name, parameter)
        for name, buffer in child._buffers.items():
            if name not in holder._buffers:
                holder.register_buffer(name, buffer)
            if name in child._non_persistent_buffers_set:
                holder._non_persistent_buffers_set.add(name)


def _restore_order(module: nn.Module, model: nn.Module) -> None:
    """Give children and tensors the order of the original: optimisers number parameters by it."""
    for path, child in model.named_modules():
        holder = module.get_submodule(path)
        for kind in ("_modules", "_parameters", "_buffers"):
            order, held = child.__dict__[kind], holder.__dict__[kind]
            names = [name for name in order if name in held]
            names += [name for name in held if name not in order]
            items = [(name, held[name]) for name in names]
            held.clear()
            held.update(items)


def _ensure_holder(module: nn.Module, path: str) -> nn.Module:
    for name in path.split(".") if path else ():
        if name not in module._modules or module._modules[name] is None:
            module._modules[name] = nn.Module()
        module = module.get_submodule(name)
    return module


def _keep_persistence(reference: nn.Module, working: nn.Module) -> None:
    """Copying a `GraphModule` makes the root's buffers persistent; undo that."""
    working._non_persistent_buffers_set |= reference._non_persistent_buffers_set


def grouped_modules(model: nn.Module) -> dict[str, _ConvNd]:
    """Every grouped convolution module by its first path, subclasses included."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, _ConvNd) and module.groups > 1
    }


def _uncalled(model: nn.Module, graph: fx.GraphModule) -> tuple[str, ...]:
    """Grouped convolution modules that the graph neither calls nor reads a tensor of."""
    used = {str(node.target) for node in graph.graph.nodes if node.op in ("call_module", "get_attr")}
    tensors = {id(attribute(graph, key)) for key in used if _is_tensor(graph, key)}
    modules = {id(graph.get_submodule(key)) for key in used if not _is_tensor(graph, key)}
    return tuple(
        path
        for path, module in grouped_modules(model).items()
        if path and id(module) not in modules
        and not any(id(parameter) in tensors for parameter in module.parameters())
    )


def _is_tensor(graph: fx.GraphModule, key: str) -> bool:
    path, _, name = key.rpartition(".")
    holder = graph.get_submodule(path)
    return name in holder._parameters or name in holder._buffers


def _hidden_convs(module: fx.GraphModule) -> str | None:
    """Path of a called leaf inside which a grouped convolution module lies, if any."""
    called = {str(node.target) for node in module.graph.nodes if node.op == "call_module"}
    for path in called:
        leaf = module.get_submodule(path)
        if original_type(leaf) in CONV_TYPES:
            continue
        if any(isinstance(m, _ConvNd) and m.groups > 1 for m in leaf.modules()):
            return path
    return None


class _ShapeRecorder(fx.Interpreter):
    """Runs a graph and notes the shape of each tensor on its node."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            n.meta["shape"] = tuple(value.shape)
        return value


def record_shapes(module: fx.GraphModule, model: nn.Module, inputs: ExampleInputs) -> None:
    """Run `module` once in eval mode and note each node's shape in `node.meta["shape"]`."""
    bound = inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs)
    bound.apply_defaults()
    with modes_kept(module), torch.no_grad():
        module.eval()
        try:
            _ShapeRecorder(module).run(*bound.arguments.values())
        except Exception as error:
            raise ModelError(_forward_failed(model, inputs, error)) from error


def _forward_failed(model: nn.Module, inputs: ExampleInputs, error: Exception) -> str:
    shapes = ", ".join(str(entry["shape"]) for entry in inputs.describe() if "shape" in entry)
    lines = str(error).strip().splitlines() or [""]
    return (
        f"{type(model).__name__} does not run on an input of shape {shapes} "
        f"({type(error).__name__}: {lines[0]}): give the shape that it expects"
    )


def module_graph(module: nn.Module) -> fx.GraphModule:
    """A graph that calls one convolution module, or that shows what its own `forward` does.

    Raises `CannotTrace` where a subclass's `forward` cannot be traced.
    """
    if original_type(module) not in CONV_TYPES:
        names = list(inspect.signature(module.forward).parameters)
        traced = trace(module, frozenset(names[:1]), fix_optional=True)
        return assemble(module, traced, SwappedConv)
    graph = fx.Graph()
    arguments: list[fx.Node] = [graph.placeholder("input")]
    if CONV_TYPES[original_type(module)][1]:
        arguments.append(graph.placeholder("output_size", default_value=None))
    graph.output(graph.call_module(FRAGMENT_MODULE, tuple(arguments)))
    root = nn.Module()
    root.add_module(FRAGMENT_MODULE, module)
    root.training = module.training
    return SwappedConv(root, graph, class_name=type(module).__name__)


def _shapes_of_fragment(module: fx.GraphModule, example: torch.Tensor | None) -> None:
    if example is None:
        return
    with modes_kept(module), torch.no_grad():
        module.eval()
        _ShapeRecorder(module).run(example)


@dataclass
class ModuleCalls:
    """How often a convolution module was called, and the first call's shapes.

    `example` is the input of that call, kept only where a `forward` has to be run to see inside.
    """

    shapes: Shapes | None
    example: torch.Tensor | None
    count: int = 1


@dataclass
class Counted:
    """Grouped convolution calls of one forward: by module, and outside of all of them."""

    modules: dict[str, ModuleCalls]
    outside: int


class _GroupedCalls(TorchDispatchMode):
    """Counts grouped convolutions that run while no convolution module is running."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = 0
        self.outside = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default and args[8] > 1 and not self.inside:
            self.outside += 1
        return func(*args, **(kwargs or {}))


def count_calls(model: nn.Module, inputs: ExampleInputs) -> Counted:
    """Run `model` once in eval mode and see where its grouped convolutions are called."""
    counter = _GroupedCalls()
    found: dict[str, ModuleCalls] = {}
    handles = []
    for path, module in grouped_modules(model).items():
        if not path:
            continue

        def before(_module: nn.Module, _args: Any) -> None:
            counter.inside += 1

        def after(_module: nn.Module, args: Any, kwargs: Any, output: Any, path: str = path) -> None:
            counter.inside -= 1
            data = args[0] if args else kwargs["input"]
            if path in found:
                found[path].count += 1
            elif isinstance(output, torch.Tensor):
                shapes = Shapes(tuple(data.shape), tuple(output.shape))
                plain = original_type(_module) in CONV_TYPES
                found[path] = ModuleCalls(shapes, None if plain else data.detach())

        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        with modes_kept(model), torch.no_grad(), counter:
            model.eval()
            inputs.call(model)
    except Exception as error:
        raise ModelError(_forward_failed(model, inputs, error)) from error
    finally:
        for handle in handles:
            handle.remove()
    return Counted(found, counter.outside)


def exported(model: nn.Module, inputs: ExampleInputs) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """Graph of `torch.export` in eval mode, with every size dynamic that can be.

    Raises `CannotTrace` with the reason where the exporter refuses.
    """
    pair = inputs.with_batch(2)
    dynamic = torch.export.Dim.AUTO

    def sizes(value: Any) -> Any:
        return dict.fromkeys(range(value.dim()), dynamic) if isinstance(value, torch.Tensor) else None

    shapes = torch.utils._pytree.tree_map(
        sizes, inspect.signature(model.forward).bind(*pair.args, **pair.kwargs).arguments
    )
    with modes_kept(model), torch.no_grad():
        model.eval()
        try:
            program = torch.export.export(
                model, pair.args, dict(pair.kwargs), dynamic_shapes=dict(shapes)
            )
            module = program.module(check_guards=False)
        except Exception as error:
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
            raise CannotTrace(f"{type(error).__name__}: {first_line}") from error
    assert isinstance(module, fx.GraphModule)
    return module, ("exported in eval mode: result.model stays in it",)
