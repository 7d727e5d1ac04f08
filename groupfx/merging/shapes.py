"""The shapes of values that are sliced or gathered from, with as little running as will do.

A trace notes shapes on its nodes; what it did not see, or what was read from a file, is found out
by running the part of the graph that leads there.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..convs.sources import sources
from ..errors import ModelError
from ..nn import ChannelGather
from ..running.inputs import ExampleInputs, in_order
from ..running.unchanged import evaluate, unchanged

Shapes = dict[fx.Node, tuple[int, ...]]


def known_shapes(
    model: nn.Module, graphs: Collection[fx.GraphModule], inputs: ExampleInputs
) -> Shapes:
    """Node -> shape, for every value of `graphs` that a node picks from; `graphs` are in `model`.

    Raises `ModelError` where the model does not run on `inputs`.
    """
    found: Shapes = {}
    unknown = {graph: _unknown(graph, found) for graph in graphs}
    unknown = {graph: nodes for graph, nodes in unknown.items() if nodes}
    if not unknown:
        return found
    try:
        with unchanged(model), torch.no_grad():
            evaluate(model)
            taken = _arguments(model, unknown, inputs)
            for graph, nodes in unknown.items():
                if graph in taken:
                    _Part(graph, nodes, found).run(*taken[graph])
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} does not run on the example inputs: {error}"
        ) from error
    return found


def _unknown(graph: fx.GraphModule, found: Shapes) -> list[fx.Node]:
    """The values that are picked from and whose shape no trace noted; the others go to `found`."""
    unknown = []
    sources = [node.all_input_nodes[0] for node in graph.graph.nodes if _picks(node, graph)]
    for node in dict.fromkeys(sources):
        shape = node.meta.get("shape")
        if shape is None:
            unknown.append(node)
        else:
            found[node] = tuple(shape)
    return unknown


def _picks(node: fx.Node, root: fx.GraphModule) -> bool:
    """Whether `node` takes channels, or rows, out of one value."""
    if not node.all_input_nodes:
        return False
    if node.op == "call_module":
        return isinstance(root.get_submodule(str(node.target)), ChannelGather)
    return node.op == "call_function" and node.target is operator.getitem


def _arguments(
    model: nn.Module, graphs: Iterable[fx.GraphModule], inputs: ExampleInputs
) -> Mapping[fx.GraphModule, tuple[Any, ...]]:
    """What each graph is called with: the inputs, or inside a model what one run gives it."""
    if isinstance(model, fx.GraphModule):
        ordered = in_order(model, inputs)
        return {model: (*ordered.args, *ordered.kwargs.values())}
    taken: dict[fx.GraphModule, tuple[Any, ...]] = {}

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(module, fx.GraphModule)
        taken.setdefault(module, args)

    handles = [graph.register_forward_pre_hook(note) for graph in graphs]
    try:
        inputs.call(model)
    finally:
        for handle in handles:
            handle.remove()
    return taken


class _Part(fx.Interpreter):
    """Runs what some nodes need, and nothing else."""

    def __init__(self, graph: fx.GraphModule, nodes: Iterable[fx.Node], found: Shapes) -> None:
        super().__init__(graph)
        self._found = found
        self._wanted = set(nodes)
        self._needed = set(sources(*self._wanted))

    def run_node(self, n: fx.Node) -> Any:
        if n.op not in ("placeholder", "output") and n not in self._needed:
            return None
        value = super().run_node(n)
        if n in self._wanted and isinstance(value, Tensor):
            self._found[n] = tuple(value.shape)
        return value
