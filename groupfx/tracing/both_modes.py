"""One graph of both modes, out of a graph of each.

What `torch.export` or a trace records is the eval mode of a model, or its train mode. Most models
differ between them in a few constants: whether a dropout drops, and whether a norm takes its
statistics from the batch, and counts it. Those become operands: the mode is asked for when the
graph runs (`TrainingMode`). Where the two are built otherwise (a head that is trained alone, a path
that is dropped), both stay, side by side over the same tensors (`ByMode`).

Nobody is taken at their word: the model itself is run in train mode, and the graph of both with it.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import _PyTreeCodeGen
from torch.utils._pytree import tree_unflatten

from ..convs.calls import attribute
from ..convs.names import joined
from ..errors import kind_and_line
from ..nn import ByMode, TrainingMode
from ..running.grouped_runs import at
from ..running.inputs import ExampleInputs
from ..running.kept import KeptParameters
from ..running.unchanged import evaluate, unchanged
from ..verify.measures import unlike
from .graphs import SEED, ensure_holder, snapshot
from .places import line_of, operation_of, owner_of
from .tracer import seeded

_LEAF = "training_mode"
_PARTS = "by_mode"
_COUNT = torch.ops.aten.add_.Tensor
_NUMBERS = (bool, int, float, type(None))


class Difference(Exception):
    """The first node of two graphs that is not the same operation in both modes."""


def knows_modes(module: nn.Module) -> bool:
    """Whether a graph is one of both modes."""
    return any(isinstance(each, (TrainingMode, ByMode)) for each in module.modules())


def made_of_both(
    evaluated: fx.GraphModule,
    trained: fx.GraphModule,
    model: nn.Module,
    inputs: ExampleInputs,
    *,
    apart: bool = True,
) -> fx.GraphModule | str:
    """One graph of both modes of `model`, out of that of each; or why there is none.

    `apart`: where they are built otherwise, one that holds both.
    """
    made = snapshot(evaluated)
    try:
        united(made, trained)
    except Difference as error:
        if not apart:
            return f"it differs at {error}"
        side_by_side(made, trained)
    take_modes(made, model)
    return runs_alike(model, made, inputs) or made


def take_modes(graph: fx.GraphModule, model: nn.Module) -> None:
    """Put each part of a graph of both modes into the mode of the model, or of its part there."""
    flags = {path: module.training for path, module in model.named_modules()}
    for path, module in graph.named_modules():
        while path not in flags:
            path = path.rpartition(".")[0]
        module.training = flags[path]


def united(evaluated: fx.GraphModule, trained: fx.GraphModule) -> None:
    """Make `evaluated` a graph of both modes, out of that of the other mode over the same tensors.

    Raises `Difference`, with the place, where the two are built otherwise: then it is as it was.
    """
    pair = _Pair(evaluated, trained)
    pair.match()
    pair.carry_out()
    if not knows_modes(evaluated):
        evaluated.add_module(_LEAF, TrainingMode())  # which says that there is nothing to ask


def side_by_side(evaluated: fx.GraphModule, trained: fx.GraphModule) -> None:
    """Make `evaluated` a graph that runs itself or the other one, as its mode is."""
    keys = dict.fromkeys(key for each in (evaluated, trained) for key in _tensors(each))
    parts = [_with_operands(each, keys) for each in (evaluated, trained)]
    graph = fx.Graph()
    inputs = [graph.node_copy(node) for node in evaluated.graph.find_nodes(op="placeholder")]
    for key in keys:
        _keep(evaluated, trained, key)
    evaluated.add_module(_PARTS, ByMode(*parts))
    tensors = [graph.get_attr(key) for key in keys]
    graph.output(graph.call_module(_PARTS, (*inputs, *tensors)))
    signature = getattr(evaluated.graph._codegen, "pytree_info", None)
    if signature is not None:
        graph.set_codegen(_PyTreeCodeGen(signature._replace(out_spec=None)))
    evaluated.graph = graph


def _tensors(module: fx.GraphModule) -> Iterator[str]:
    """Names of the tensors that a graph reads."""
    for node in module.graph.find_nodes(op="get_attr"):
        if not isinstance(module._modules.get(str(node.target)), fx.GraphModule):
            yield str(node.target)


def _with_operands(module: fx.GraphModule, keys: Iterable[str]) -> fx.GraphModule:
    """The graph with its tensors, those called `keys`, as operands behind its inputs."""
    graph, values = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in module.graph.find_nodes(op="placeholder"):
        values[node] = graph.node_copy(node)
    # Not by their own names: `0.weight` gives no name of Python's, `a.b` and `a_b` give one.
    tensors = {key: graph.placeholder(f"held_{number}") for number, key in enumerate(keys)}
    for node in module.graph.nodes:
        if node.op == "output":
            graph.output(fx.node.map_arg(_structured(node, module), values.__getitem__))
        elif node.op == "get_attr" and node.target in tensors:
            values[node] = tensors[str(node.target)]
            values[node].meta = dict(node.meta)
        elif node.op != "placeholder":
            values[node] = graph.node_copy(node, values.__getitem__)
    inner = {key: module._modules[key] for key in module._modules if _is_read(module, key)}
    return fx.GraphModule(inner, graph, class_name=type(module).__name__)


def _is_read(module: fx.GraphModule, key: str) -> bool:
    return any(node.op == "get_attr" and node.target == key for node in module.graph.nodes)


def _structured(output: fx.Node, module: fx.GraphModule) -> Any:
    """What a graph returns, in the containers that an export keeps beside it."""
    spec = getattr(getattr(module.graph._codegen, "pytree_info", None), "out_spec", None)
    values: Any = output.args[0]
    return values if spec is None else tree_unflatten(list(values), spec)


def _keep(module: fx.GraphModule, other: fx.GraphModule, key: str) -> None:
    """Put the tensor called `key` of the other graph where it is in that one."""
    path, _, name = key.rpartition(".")
    source = other.get_submodule(path)
    holder = ensure_holder(module, path)
    if hasattr(holder, name):
        return
    if name in source._parameters:
        holder.register_parameter(name, source._parameters[name])
    elif name in source._buffers:
        persistent = name not in source._non_persistent_buffers_set
        holder.register_buffer(name, source._buffers[name], persistent=persistent)
    else:
        setattr(holder, name, getattr(source, name))


class _Pair:
    """The nodes of two graphs that are one, and what becomes of the first graph."""

    def __init__(self, evaluated: fx.GraphModule, trained: fx.GraphModule) -> None:
        self.evaluated, self.trained = evaluated, trained
        self._twins: dict[fx.Node, fx.Node] = {}
        self._counted: list[tuple[fx.Node, fx.Node]] = []  # of the train mode, in front of what
        self._read: list[fx.Node] = []
        self._modes: dict[tuple[str, str, str], fx.Node] = {}
        self._inner: list[_Pair] = []

    def match(self) -> None:
        """Find the twin of each node. Raises `Difference`."""
        held = {str(n.target): n for n in self.evaluated.graph.find_nodes(op="get_attr")}
        pending = [n for n in self.evaluated.graph.nodes if n.op != "get_attr"]
        for node in self.trained.graph.nodes:
            if node.op == "get_attr":
                if str(node.target) in held:
                    self._twins[node] = held[str(node.target)]
                    self._match_inside(
                        *(_found(each, node) for each in (self.evaluated, self.trained))
                    )
                else:
                    self._read.append(node)
            elif pending and self._is_twin(pending[0], node):
                self._twins[node] = pending.pop(0)
            elif pending and _counts(node):
                self._counted.append((node, pending[0]))
            else:
                raise Difference(_told(node, self.trained))
        if pending:
            raise Difference(_told(pending[0], self.evaluated))

    def _match_inside(self, one: object, other: object) -> None:
        if isinstance(one, fx.GraphModule) and isinstance(other, fx.GraphModule):
            self._inner.append(_Pair(one, other))
            self._inner[-1].match()

    def _is_twin(self, one: fx.Node, other: fx.Node) -> bool:
        same = (one.op, one.target) == (other.op, other.target)
        return same and self._alike((one.args, one.kwargs), (other.args, other.kwargs))

    def _alike(self, one: Any, other: Any) -> bool:
        """Whether two arguments are the same but for numbers."""
        if isinstance(one, fx.Node) or isinstance(other, fx.Node):
            return self._twins.get(other) is one
        if isinstance(one, _NUMBERS) and isinstance(other, _NUMBERS):
            return True
        if isinstance(one, tuple | list) and isinstance(other, tuple | list):
            return len(one) == len(other) and all(map(self._alike, one, other))
        if isinstance(one, dict) and isinstance(other, dict):
            return one.keys() == other.keys() and all(self._alike(one[k], other[k]) for k in one)
        return type(one) is type(other) and bool(one == other)

    def carry_out(self) -> None:
        """Make operands of what differs, and count where train mode counts."""
        for pair in self._inner:
            pair.carry_out()
        graph = self.evaluated.graph
        for node in self._read:
            _keep(self.evaluated, self.trained, str(node.target))
            first = next(n for n in graph.nodes if n.op not in ("placeholder", "get_attr"))
            with graph.inserting_before(first):
                self._twins[node] = graph.node_copy(node)
        for node, before in self._counted:
            with graph.inserting_before(before):
                step = self._chosen(0, node.args[1], node)
                graph.call_function(_COUNT, (self._twins[_counter(node)], step))
        for other, node in self._twins.items():
            if node.op in ("placeholder", "get_attr") or self._same(node, other):
                continue
            with graph.inserting_before(node):
                node.args = self._merged(node.args, other.args, other)
                node.kwargs = self._merged(node.kwargs, other.kwargs, other)
        graph.lint()
        self.evaluated.recompile()

    def _same(self, one: fx.Node, other: fx.Node) -> bool:
        return repr(one.args) == repr(
            fx.node.map_arg(other.args, self._twins.__getitem__)
        ) and repr(one.kwargs) == repr(fx.node.map_arg(other.kwargs, self._twins.__getitem__))

    def _merged(self, one: Any, other: Any, node: fx.Node) -> Any:
        if isinstance(one, tuple | list):
            return type(one)(self._merged(a, b, node) for a, b in zip(one, other, strict=True))
        if isinstance(one, dict):
            return {key: self._merged(one[key], other[key], node) for key in one}
        same = isinstance(one, fx.Node) or (type(one) is type(other) and one == other)
        return one if same or not isinstance(one, _NUMBERS) else self._chosen(one, other, node)

    def _chosen(self, evaluated: Any, trained: Any, node: fx.Node) -> fx.Node:
        """The number of the mode of the module that `node` belongs to."""
        owner, graph = owner_of(node), self.evaluated.graph
        key = (owner, repr(evaluated), repr(trained))
        if key not in self._modes:
            holder = ensure_holder(self.evaluated, owner)
            taken = (_LEAF, *(f"{_LEAF}_{number}" for number in range(1, len(self._modes) + 2)))
            name = next(each for each in taken if each not in holder._modules)
            holder.add_module(name, TrainingMode(evaluated, trained))
            first = next(n for n in graph.nodes if n.op not in ("placeholder", "get_attr"))
            with graph.inserting_before(first):
                self._modes[key] = graph.call_module(joined(owner, name))
        return self._modes[key]


def _counts(node: fx.Node) -> bool:
    """Whether a node counts in place, which nobody reads in a graph: batches, of a norm.

    Where a norm is called again, its next count is made of the last one.
    """
    counts = node.target is _COUNT and len(node.args) == 2
    return counts and all(map(_counts, node.users))


def _counter(node: fx.Node) -> fx.Node:
    """The tensor in which a node counts."""
    while node.target is _COUNT:
        (node, *_) = node.all_input_nodes
    return node


def _found(module: nn.Module, node: fx.Node) -> object:
    return attribute(module, str(node.target))


def _told(node: fx.Node, module: nn.Module) -> str:
    """An operation and its place, or the nearest one that is known, as a reason says it."""
    nodes = [*node.graph.nodes]
    index = nodes.index(node)
    near = map(line_of, (*nodes[index:], *reversed(nodes[:index])))
    line = next((each for each in near if each is not None), "")
    return f"{operation_of(node, module)}{at(line)}"


def runs_alike(model: nn.Module, graph: nn.Module, inputs: ExampleInputs) -> str | None:
    """What a graph does otherwise than the model in train mode; None if nothing."""
    given = inputs.with_batch(2) if inputs.batch else inputs
    try:
        (expected, before), (found, after) = (_trained_run(each, given) for each in (model, graph))
    except Exception as error:  # a model that cannot be run in train mode has none
        return kind_and_line(error)
    names = sorted(before.keys() & after.keys())
    left = ([each[name] for name in names] for each in (before, after))
    return unlike(expected, found) or unlike(*left)


def _trained_run(model: nn.Module, inputs: ExampleInputs) -> tuple[Any, dict[str, torch.Tensor]]:
    """What it gives in train mode, and its buffers afterwards; it is left as it was."""
    with unchanged(model), seeded(SEED), torch.no_grad(), KeptParameters(model):
        evaluate(model, training=True)
        output = inputs.map(torch.clone).call(model)
        named = model.named_buffers(remove_duplicate=False)
        return output, {name: buffer.clone() for name, buffer in named}
