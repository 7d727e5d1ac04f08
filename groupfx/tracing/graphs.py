"""Graph modules made and copied so that nothing of the model is left behind."""

import copy
import inspect
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch._ops import HigherOrderOperator
from torch.fx.graph_module import _USER_PRESERVED_ATTRIBUTES_KEY

from ..convs.calls import OPERAND, ConvCall, function_of, read_conv, recomputed
from ..convs.names import joined
from ..convs.spec import CONV_TYPES, ConvSpec, is_plain, original_type, written_class
from ..errors import ModelError, kind_and_line
from ..learned.groups import has_learned_groups
from ..nn import ByMode, is_weight_hook
from ..nn.swapped import SwappedConv
from ..running.copies import copied
from ..running.grouped_runs import GroupedRun, GroupedRuns, at, error_place
from ..running.inputs import ExampleInputs, bound_arguments
from ..running.kept import KeptParameters
from ..running.macs import MacCounter
from ..running.twins import twin_tree
from ..running.unchanged import evaluate, unchanged
from ..running.weightless import is_weightless
from .program import FRAGMENT_MODULE, Shapes
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
    keep_transient(module)
    return module


def keep_transient(module: fx.GraphModule) -> None:
    """Let copies of `module` know which of its buffers no checkpoint holds, as torch forgets it."""
    kept = module.meta.setdefault(_USER_PRESERVED_ATTRIBUTES_KEY, {})
    # The very set: what joins it later is in a copy as well.
    kept["_non_persistent_buffers_set"] = module._non_persistent_buffers_set


def taken_names(model: nn.Module) -> list[str]:
    """Names of children and tensors of `model` that mean something else on a `GraphModule`."""
    empty = fx.GraphModule(nn.Module(), fx.Graph())
    held = (*model._modules, *model._parameters, *model._buffers)
    return [name for name in held if hasattr(empty, name) and not hasattr(nn.Module(), name)]


def adopt(module: fx.GraphModule, model: nn.Module) -> None:
    """Put what the graph does not use where it was: every key of the state_dict stays.

    What holds no tensor and is not called, such as the activation in an exported norm, is nothing.
    """
    tracer = Tracer()
    inside = "."  # the leaf whose children come next: they are installed along with it
    for path, child in model.named_modules(remove_duplicate=False):
        if path.startswith(inside):
            continue
        leaf = bool(path) and tracer.is_leaf_module(child, path)
        if leaf and not (child.state_dict() or list(child.buffers())):
            continue
        if leaf and _install_leaf(module, child, path):
            inside = f"{path}."
        else:
            _adopt_tensors(ensure_holder(module, path), child)


def _install_leaf(module: nn.Module, leaf: nn.Module, path: str) -> bool:
    """Put `leaf` at `path` if nothing is there; False if its parts have to be looked at one by one.

    A ModuleList counts as a leaf, but where items of it are called, a holder of those is there.
    """
    parent, _, name = path.rpartition(".")
    holder = ensure_holder(module, parent)
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


def ensure_holder(module: nn.Module, path: str) -> nn.Module:
    """The module at `path`, made of empty ones where there is none."""
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
    if kind.__module__.startswith("torch.export"):
        return snapshot(reference)  # nobody but torch.export may make one
    twin = kind(reference, graph, class_name=type(reference).__name__)
    adopt(twin, reference)
    restore_order(twin, reference)
    for path, module in reference.named_modules():
        # Holders are made anew, and know nothing of these; nor of what no node calls.
        parent, _, name = path.rpartition(".")
        if path and name not in (held := ensure_holder(twin, parent))._modules:
            held._modules[name] = module
        holder = twin.get_submodule(path)
        holder.training = module.training
        holder._non_persistent_buffers_set |= module._non_persistent_buffers_set
    keep_transient(twin)
    return twin


def snapshot(module: fx.GraphModule) -> fx.GraphModule:
    """The module as it is now: graphs and module objects of its own, over the same tensors."""
    twin = twin_tree(module)
    assert isinstance(twin, fx.GraphModule)
    for each in (twin, *(inner for _, inner in inner_graphs(twin))):
        each.graph = copy.deepcopy(each.graph)
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
    keep_transient(working)
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


_Left = tuple[fx.GraphModule, tuple[Any, ...]]


class _ShapeRecorder(fx.Interpreter):
    """Runs a graph, and those inside it, and notes the shape of each tensor on its node.

    `running` are the nodes that run, one inside the other, and `calls` counts how often each did.
    `left` are the graphs that an operator was given and did not run, such as the other branch of
    `torch.cond`, and what it would give it.
    """

    def __init__(self, module: fx.GraphModule, outer: "_ShapeRecorder | None" = None) -> None:
        super().__init__(module)
        self.running: list[fx.Node] = [] if outer is None else outer.running
        self.calls: Counter[fx.Node] = Counter() if outer is None else outer.calls
        self.left: list[_Left] = [] if outer is None else outer.left

    @property
    def node(self) -> fx.Node:
        """The innermost node that runs."""
        return self.running[-1]

    def run_node(self, n: fx.Node) -> Any:
        self.running.append(n)
        self.calls[n] += 1
        value = super().run_node(n)
        self.running.pop()
        if isinstance(value, torch.Tensor):
            self.keep(n, value)
        return value

    def keep(self, node: fx.Node, value: torch.Tensor) -> None:
        """Note what is known of a node's tensor."""
        node.meta["shape"], node.meta["dtype"] = tuple(value.shape), value.dtype

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if not isinstance(target, HigherOrderOperator):
            return super().call_function(target, args, kwargs)
        ran: set[int] = set()
        inside = [self._recording(arg, ran) for arg in args]
        if target.name() == "tag_activation_checkpoint":
            return inside[0](*args[1:])  # what it does besides is done in a backward
        value = super().call_function(target, tuple(inside), kwargs)
        operands = tuple(leaf for arg in args if isinstance(arg, tuple | list) for leaf in arg)
        given = (arg for arg in args if isinstance(arg, fx.GraphModule))
        self.left += [(graph, operands) for graph in given if id(graph) not in ran]
        return value

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        parts = self.fetch_attr(target)
        if not isinstance(parts, ByMode):
            return super().call_module(target, args, kwargs)
        now, other = (parts.trained, parts.evaluated)[:: 1 if parts.training else -1]
        if isinstance(other, fx.GraphModule):
            self.left.append((other, args))
        return self._recording(now, set())(*args)

    def _recording(self, value: Any, ran: set[int]) -> Any:
        if not isinstance(value, fx.GraphModule):
            return value

        def recorded(*operands: Any) -> Any:
            ran.add(id(value))
            return type(self)(value, self).run(*operands)

        return recorded


CALLS = "calls"
"""Key of a node's `meta` in a graph inside another: how often it ran."""


def inner_graphs(root: fx.GraphModule) -> Iterator[tuple[str, fx.GraphModule]]:
    """The graphs that operators of `root`, or of one of these, run: path and graph, each once.

    Such are the branches of `torch.cond`, what an export found under `no_grad` or autocast, and the
    graphs of two modes.
    """
    pending, seen = [("", root)], {id(root)}
    for path, module in pending:
        for name, part in _run_by_operators(module):
            if id(part) not in seen:
                seen.add(id(part))
                pending.append((joined(path, name), part))
    yield from pending[1:]


def _run_by_operators(module: fx.GraphModule) -> Iterator[tuple[str, fx.GraphModule]]:
    for node in module.graph.nodes:
        name = str(node.target)
        held = module._modules.get(name) if node.op in ("get_attr", "call_module") else None
        parts = held._modules.items() if isinstance(held, ByMode) else ()
        found = [(f"{name}.{own}", part) for own, part in parts]
        found += [(name, held)] if node.op == "get_attr" else []
        yield from ((path, part) for path, part in found if isinstance(part, fx.GraphModule))


def _note_operands(module: fx.GraphModule) -> None:
    """Write on the inputs of the graphs inside `module` which of its tensors they are."""
    inner = dict(_run_by_operators(module))
    for node in module.graph.nodes:
        given: list[fx.Node] = []
        fx.node.map_arg((node.args, node.kwargs), given.append)
        names = [str(node.target)] if node.op == "call_module" else [str(n.target) for n in given]
        graphs = [part for key, part in inner.items() if key.partition(".")[0] in names]
        operands = [each for each in given if each.op != "get_attr" or each.target not in inner]
        for graph in graphs:
            inputs = graph.graph.find_nodes(op="placeholder")
            # In front of them stands what decides which graph runs.
            for own, operand in zip(reversed(inputs), reversed(operands), strict=False):
                name = operand.target if operand.op == "get_attr" else operand.meta.get(OPERAND)
                if name is not None:
                    own.meta[OPERAND] = str(name)


@dataclass(frozen=True)
class GraphRun:
    """One run of a graph: its output, the grouped convolutions in it, and MACs of one sample."""

    output: Any = field(repr=False)
    convs: tuple[GroupedRun[fx.Node], ...]
    macs: int

    def hidden(self, module: fx.GraphModule) -> tuple[GroupedRun[fx.Node], ...]:
        """The convolutions that ran in nodes which are read as something else."""
        homes = {inner.graph: inner for _, inner in (("", module), *inner_graphs(module))}
        return tuple(run for run in self.convs if not _is_site(run, homes))


def _is_site(run: GroupedRun[fx.Node], homes: Mapping[fx.Graph, fx.GraphModule]) -> bool:
    node = run.owner
    module = homes.get(node.graph)
    if module is None:
        return False
    call = read_conv(node, module)
    if call is not None:
        # Under vmap it may have others, one for each sample.
        return not isinstance(call, ConvCall) or call.spec.groups == run.groups
    return node.op == "call_module" and has_learned_groups(module.get_submodule(str(node.target)))


def in_forward_order(model: nn.Module, inputs: ExampleInputs) -> tuple[Any, ...]:
    """One value an argument of `forward`, defaults included."""
    bound = bound_arguments(model, inputs)
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
    if recorder.left:
        with unchanged(module), torch.no_grad():
            evaluate(module)
            for inner, operands in recorder.left:
                _ShapeRecorder(inner).run(*operands)
    for each in (module, *(inner for _, inner in inner_graphs(module))):
        _note_operands(each)
        for node in each.graph.nodes if each is not module else ():
            node.meta[CALLS] = recorder.calls[node]
    return GraphRun(output, tuple(runs.runs), counter.of_one(inputs))


class _SeenShapes(_ShapeRecorder):
    """Keeps shapes by the names of the nodes of the outer graph, and notes nothing on them."""

    def __init__(self, module: fx.GraphModule, outer: _ShapeRecorder | None = None) -> None:
        super().__init__(module, outer)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def keep(self, node: fx.Node, value: torch.Tensor) -> None:
        self.shapes[node.name] = tuple(value.shape)


def shapes_of_run(module: fx.GraphModule, inputs: ExampleInputs) -> dict[str, tuple[int, ...]]:
    """The shape of each node's tensor, by its name; empty where these inputs do not run."""
    recorder = _SeenShapes(module)
    with unchanged(module), seeded(SEED), torch.no_grad(), KeptParameters(module):
        evaluate(module)
        try:
            recorder.run(*in_forward_order(module, inputs.map(torch.clone)))
        except Exception:  # a size that it does not take
            return {}
    return recorder.shapes


SEED = 7
"""Of the run of a model, and of that of its graph."""


def forward_failed(model: nn.Module, inputs: ExampleInputs, error: Exception) -> str:
    """What to say where the inputs do not run: the shape, the error, its place and the remedy."""
    shapes = ", ".join(str(entry["shape"]) for entry in inputs.describe() if "shape" in entry)
    said = f"{kind_and_line(error)}{at(error_place(error))}"
    if is_weightless(model):
        return (
            f"{type(model).__name__} does not run without values ({said}), and has none (its "
            "tensors lie on the device meta): load the weights first, or give another input shape"
        )
    return (
        f"{type(model).__name__} does not run on an input of shape {shapes} "
        f"({said}): give the shape and dtype that it expects, "
        "such as --input-shape 2,3,224,224 or --input-shape int64:2,16"
    )


def module_graph(module: nn.Module, *, more: bool = False) -> fx.GraphModule:
    """A graph that calls one convolution module, or that shows what its own `forward` does.

    `more` is whether a call gives it anything besides its input. Raises `CannotTrace` where a
    subclass's `forward` cannot be traced.
    """
    learned = has_learned_groups(module)
    if not is_plain(module) and not learned:
        if any(map(is_weight_hook, module._forward_pre_hooks.values())):
            # A trace of forward alone would read the weight that the last call left behind.
            raise CannotTrace("a hook computes its weight in each call")
        names = list(inspect.signature(module.forward).parameters)
        traced = trace(module, frozenset(names[:1]), asked=True)
        return assemble(module, traced, SwappedConv)
    graph = fx.Graph()
    arguments: list[fx.Node] = [graph.placeholder("input")]
    # Branches of a recomputed weight are functions, which take no `output_size`.
    more |= not any(recomputed(module, name) for name in ("weight", "bias"))
    if more and not learned and CONV_TYPES[original_type(module)][1]:
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
