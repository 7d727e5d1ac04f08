"""Write a graph anew with each rewritten site in one piece. The graph that is read stays as it is.

`groupfx.merging.sites` finds the regions and says what call stands for each; this puts the calls
in, and leaves out what only the regions needed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from ..plan.branches import Branches
from ..plan.forms import FormPlan

WHOLE = "whole"


@dataclass(frozen=True)
class PlannedSite:
    """A site that is exported as one convolution, and the form that it gets in the ONNX graph.

    `path` is the module that stands for the site in the exported model, `name` the site's name.
    `form` are the branches to split it into, or a plan of its blocks.
    """

    path: str
    name: str
    form: Branches | FormPlan


@dataclass(frozen=True)
class Call:
    """`norm(place(*arguments))` in place of the region that ends in `end`."""

    end: fx.Node
    place: str
    arguments: tuple[Any, ...]
    norm: str | None = None


@dataclass
class Gathered:
    """What stands for the sites: the calls to put in, and the modules that they call."""

    calls: list[Call] = field(default_factory=list)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    planned: list[PlannedSite] = field(default_factory=list)


def place_of(home: str) -> str:
    """Where the module of a site goes: `home`, or a name of its own where that is the root."""
    return home or WHOLE


def rewritten(root: fx.GraphModule, gathered: Gathered) -> fx.GraphModule:
    """A graph module over the same tensors with the calls put in."""
    calls = {call.end: call for call in gathered.calls}
    needed = _needed(root.graph, calls)
    graph = fx.Graph()
    graph.set_codegen(copy.deepcopy(root.graph._codegen))
    env: dict[fx.Node, fx.Node] = {}
    for node in root.graph.nodes:
        if node not in needed:
            continue
        if node in calls:
            env[node] = _emit(graph, calls[node], env)
        else:
            env[node] = graph.node_copy(node, env.__getitem__)
    return fx.GraphModule(
        targets(root, graph, gathered.modules), graph, class_name=type(root).__name__
    )


def _emit(graph: fx.Graph, call: Call, env: Mapping[fx.Node, fx.Node]) -> fx.Node:
    arguments = fx.node.map_arg(call.arguments, env.__getitem__)
    value = graph.call_module(call.place, arguments)
    return value if call.norm is None else graph.call_module(call.norm, (value,))


def _needed(graph: fx.Graph, calls: Mapping[fx.Node, Call]) -> set[fx.Node]:
    """What is computed still: inputs, effects, and what the outputs depend on."""
    kept = ("placeholder", "output")
    pending = [node for node in graph.nodes if node.op in kept or node.is_impure()]
    needed: set[fx.Node] = set()
    while pending:
        node = pending.pop()
        if node in needed:
            continue
        needed.add(node)
        call = calls.get(node)
        pending += node.all_input_nodes if call is None else _nodes_in(call.arguments)
    return needed


def _nodes_in(arguments: Sequence[Any]) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(tuple(arguments), found.append)
    return found


def targets(
    root: fx.GraphModule, graph: fx.Graph, modules: Mapping[str, nn.Module]
) -> dict[str, Any]:
    """Every module that the graph calls and every tensor that it reads, by its path."""
    found: dict[str, Any] = {}
    for node in graph.nodes:
        target = str(node.target)
        if node.op == "call_module":
            found[target] = modules[target] if target in modules else root.get_submodule(target)
        elif node.op == "get_attr":
            path, _, name = target.rpartition(".")
            found[target] = getattr(root.get_submodule(path), name)
    return found
