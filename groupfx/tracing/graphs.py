"""Graph modules made and copied so that nothing of the model is left behind."""

import copy
import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from ..convs.calls import function_of, read_conv
from ..convs.spec import CONV_TYPES, ConvSpec, is_plain, original_type, written_class
from ..errors import ModelError, kind_and_line
from ..learned.groups import has_learned_groups
from ..nn.swapped import SwappedConv
from ..running.grouped_runs import GroupedRun, GroupedRuns
from ..running.inputs import ExampleInputs
from ..running.kept import KeptParameters
from ..running.macs import MacCounter
from ..running.twins import twin_tree
from ..running.unchanged import evaluate, unchanged
from .program import FRAGMENT_MODULE, Shapes, copied
from .tracer import CannotTrace, Trace, Tracer, seeded, trace

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def assemble(
    model: nn.Module, traced: Trace, kind: type[fx.GraphModule] = fx.GraphModule
) -> fx.GraphModule:
    """A `GraphModule` of `traced` over the modules and tensors of `model`, none left behind."""
    graph = traced.graph
    taken = taken_names(model)
    if taken:
        raise CannotTrace(f"a GraphModule has a {taken[0]} of its own, and cannot hold that name")
    # Neither the tracer nor the file that forward stood in is part of the model.
    graph._tracer_cls = None
    graph._co_fields = {}
    for name, constant in traced.constants.items():
        model.__dict__[name] = constant
    try:
        module = kind(model, graph, class_name=type(model).__name__)
    except SyntaxError as error:
        # torch.fx writes source, and a child called `class` makes no sense there.
        raise CannotTrace(f"a name in it cannot stand in Python source ({error.text})") from error
    for name in traced.constants:
        del model.__dict__[name]
        module._non_persistent_buffers_set.add(name)
    adopt(module, model)
    restore_order(module, model)
    return module


def taken_names(model: nn.Module) -> list[str]:
    """Names of children and tensors of `model` that mean something else on a `GraphModule`."""
    empty = fx.GraphModule(nn.Module(), fx.Graph())
    held = (*model._modules, *model._parameters, *model._buffers)
    return [name for name in held if hasattr(empty, name) and not hasattr(nn.Module(), name)]


def adopt(module: fx.GraphModule, model: nn.Module) -> None:
    """Put what the graph does not use where it was: every key of the state_dict stays."""
    tracer = Tracer()
    inside = "."  # the leaf whose children come next: they are installed along with it
    for path, child in model.named_modules(remove_duplicate=False):
        if path.startswith(inside):
            continue
        if path and tracer.is_leaf_module(child, path) and _install_leaf(module, child, path):
            inside = f"{path}."
        else:
            _adopt_tensors(_ensure_holder(module, path), child)


def _install_leaf(module: nn.Module, leaf: nn.Module, path: str) -> bool:
    """Put `leaf` at `path` if nothing is there; False if its parts have to be looked at one by one.

    A ModuleList counts as a leaf, but where items of it are called, a holder of those is there.
    """
    parent, _, name = path.rpartition(".")
    holder = _ensure_holder(module, parent)
    if name in holder._modules:
        return not isinstance(leaf, _CONTAINERS)
    holder.add_module(name, leaf)
    return True


def _adopt_tensors(holder: nn.Module, child: nn.Module) -> None:
    for name, parameter in child._parameters.items():
        if name not in holder._parameters:
            holder.register_parameter(name, parameter)
    for name, buffer in child._buffers.items():
        if name not in holder._buffers:
            holder.register_buffer(name, buffer)
        if name in child._non_persistent_buffers_set:
            holder._non_persistent_buffers_set.add(name)


def restore_order(module: nn.Module, model: nn.Module) -> None:
    """Give children and tensors the order of the original: optimisers number parameters by it."""
    for path, child in model.named_modules():
        try:
            holder = module.get_submodule(path)
        except AttributeError:
            continue  # an export keeps the tensors of a module, and not the modules inside it
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


def same_tensors(reference: fx.GraphModule) -> fx.GraphModule:
    """A second graph over the same tensors and leaves, under holders of its own."""
    graph = copy.deepcopy(reference.graph)
    # Of the same class: one that was exported refuses train mode.
    kind = written_class(reference)
    assert issubclass(kind, fx.GraphModule)
    twin = kind(reference, graph, class_name=type(reference).__name__)
    twin.training = reference.training
    adopt(twin, reference)
    restore_order(twin, reference)
    return twin


def snapshot(module: fx.GraphModule) -> fx.GraphModule:
    """The module as it is now: a graph and module objects of its own, over the same tensors."""
    twin = twin_tree(module)
    assert isinstance(twin, fx.GraphModule)
    twin.graph = copy.deepcopy(module.graph)
    return twin


def copied_graph(reference: fx.GraphModule) -> fx.GraphModule:
    """A copy with tensors of its own. Raises `ModelError` where a leaf cannot be copied."""
    twin = copied(reference, share=False)
    assert isinstance(twin, fx.GraphModule)
    _keep_what_copying_drops(reference, twin)
    return twin


def _keep_what_copying_drops(reference: fx.GraphModule, working: fx.GraphModule) -> None:
    """Copying a `GraphModule` drops second names, and makes the root's buffers persistent."""
    working._non_persistent_buffers_set |= reference._non_persistent_buffers_set
    first: dict[nn.Module, str] = {}
    for path, module in reference.named_modules(remove_duplicate=False):
        name = first.setdefault(module, path)
        if name != path:
            parent, _, own = path.rpartition(".")
            working.get_submodule(parent)._modules[own] = working.get_submodule(name)
    for names, held in (
        (reference._parameters, working._parameters),
        (reference._buffers, working._buffers),
    ):
        keys: dict[int, str] = {}
        for name, tensor in names.items():
            key = keys.setdefault(id(tensor), name)
            held[name] = None if tensor is None else held[key]  # type: ignore[assignment]
    restore_order(working, reference)


class _ShapeRecorder(fx.Interpreter):
    """Runs a graph and notes the shape of each tensor on its node."""

    node: fx.Node

    def run_node(self, n: fx.Node) -> Any:
        self.node = n
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            n.meta["shape"] = tuple(value.shape)
        return value


@dataclass(frozen=True)
class GraphRun:
    """One run of a graph: its output, the grouped convolutions in it, and MACs of one sample."""

    output: Any = field(repr=False)
    convs: tuple[GroupedRun[fx.Node], ...]
    macs: int

    def hidden(self, module: fx.GraphModule) -> tuple[GroupedRun[fx.Node], ...]:
        """The convolutions that ran in nodes which are read as something else."""
        return tuple(run for run in self.convs if not _is_site(run.owner, module))


def _is_site(node: fx.Node, module: fx.GraphModule) -> bool:
    if read_conv(node, module) is not None:
        return True
    return node.op == "call_module" and has_learned_groups(module.get_submodule(str(node.target)))


def in_forward_order(model: nn.Module, inputs: ExampleInputs) -> tuple[Any, ...]:
    """One value an argument of `forward`, defaults included."""
    bound = inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs)
    bound.apply_defaults()
    return tuple(bound.arguments.values())


def run_graph(module: fx.GraphModule, model: nn.Module, inputs: ExampleInputs) -> GraphRun:
    """Run `module` once in eval mode and note each node's shape in `node.meta["shape"]`.

    Raises `ModelError` where the inputs do not run.
    """
    counter, recorder = MacCounter(module), _ShapeRecorder(module)
    runs = GroupedRuns(lambda: recorder.node)
    arguments = in_forward_order(model, inputs.map(torch.clone))
    kept = KeptParameters(module)
    with unchanged(module), seeded(SEED), torch.no_grad(), kept, runs, counter:
        evaluate(module)
        try:
            output = recorder.run(*arguments)
        except Exception as error:
            raise ModelError(forward_failed(model, inputs, error)) from error
    return GraphRun(output, tuple(runs.runs), counter.of_one(inputs))


SEED = 7
"""Of the run of a model, and of that of its graph."""


def forward_failed(model: nn.Module, inputs: ExampleInputs, error: Exception) -> str:
    """What to say where the example inputs do not run: the shape, the error and the remedy."""
    shapes = ", ".join(str(entry["shape"]) for entry in inputs.describe() if "shape" in entry)
    return (
        f"{type(model).__name__} does not run on an input of shape {shapes} "
        f"({kind_and_line(error)}): give the shape and dtype that it expects, "
        "such as --input-shape 2,3,224,224 or --input-shape int64:2,16"
    )


def module_graph(module: nn.Module) -> fx.GraphModule:
    """A graph that calls one convolution module, or that shows what its own `forward` does.

    Raises `CannotTrace` where a subclass's `forward` cannot be traced.
    """
    learned = has_learned_groups(module)
    if not is_plain(module) and not learned:
        names = list(inspect.signature(module.forward).parameters)
        traced = trace(module, frozenset(names[:1]), asked=True)
        return assemble(module, traced, SwappedConv)
    graph = fx.Graph()
    arguments: list[fx.Node] = [graph.placeholder("input")]
    if not learned and CONV_TYPES[original_type(module)][1]:
        arguments.append(graph.placeholder("output_size", default_value=None))
    graph.output(graph.call_module(FRAGMENT_MODULE, tuple(arguments)))
    root = nn.Module()
    root.add_module(FRAGMENT_MODULE, module)
    root.training = module.training
    return SwappedConv(root, graph, class_name=type(module).__name__)


def call_graph(spec: ConvSpec, weight: tuple[int, ...], shapes: Shapes) -> fx.GraphModule:
    """A graph of one call of a convolution function with these numbers, on tensors of these shapes.

    It takes the input, the weight and, where there is one, the bias.
    """
    graph = fx.Graph()
    data = graph.placeholder("input")
    data.meta["shape"] = shapes.input
    tensors = [graph.placeholder("weight")]
    tensors[0].meta["shape"] = weight
    if spec.bias:
        tensors.append(graph.placeholder("bias"))
        tensors[1].meta["shape"] = (spec.out_channels,)
    function, options = function_of(spec)
    node = graph.call_function(function, (data, *tensors), {**options, "groups": spec.groups})
    node.meta["shape"] = shapes.output
    graph.output(node)
    return fx.GraphModule(nn.Module(), graph, class_name=spec.type_name)


def run_for_shapes(module: fx.GraphModule, example: torch.Tensor | None) -> None:
    """Note shapes as `run_graph` does, in the graph of one module; nothing without an input."""
    if example is None:
        return
    with unchanged(module), torch.no_grad():
        evaluate(module)
        _ShapeRecorder(module).run(example)
