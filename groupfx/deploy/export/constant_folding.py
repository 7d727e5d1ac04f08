"""Compute once, in torch, what a graph computes from its parameters alone.

A weight under `weight_norm`, a standardised or a masked one does not change at run time. It is
computed here, by torch in the model's own dtype, and not by the runtime or by an optimiser of
graphs: a softmax that differs in its last bit would put channels of a learned-group layer into
other groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ...convs.names import joined
from .graph_sites import GraphSite

_BASE = "folded"


def fold_constants(graph: fx.GraphModule, sites: tuple[GraphSite, ...]) -> bool:
    """Replace every value that depends on parameters alone by a buffer. False if there is none.

    The weight of a site becomes the buffer `weight` at the site's path, if nothing is there.
    """
    values = _constant_values(graph)
    wanted = {
        node: value
        for node, value in values.items()
        if node.op == "call_function" and any(user not in values for user in node.users)
    }
    homes = {_weight(site): site.path for site in sites}
    for position, (node, value) in enumerate(wanted.items()):
        key = _register(graph, homes.get(node), value, position)
        with graph.graph.inserting_before(node):
            stored = graph.graph.get_attr(key)
        stored.meta = dict(node.meta)
        node.replace_all_uses_with(stored)
    if wanted:
        graph.graph.eliminate_dead_code()
        graph.recompile()
    return bool(wanted)


def _constant_values(graph: fx.GraphModule) -> dict[fx.Node, Tensor]:
    """The value of each node that depends on stored tensors and on nothing else."""
    values: dict[fx.Node, Tensor] = {}
    with torch.no_grad():
        for node in graph.graph.nodes:
            value = _value(graph, node, values)
            if value is not None:
                values[node] = value
    return values


def _value(graph: fx.GraphModule, node: fx.Node, values: Mapping[fx.Node, Tensor]) -> Tensor | None:
    if node.op == "get_attr":
        path, _, name = str(node.target).rpartition(".")
        stored = getattr(graph.get_submodule(path), name)
        return stored if isinstance(stored, Tensor) else None
    if node.op != "call_function" or not node.all_input_nodes or node.is_impure():
        return None
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        return None
    if any(source not in values for source in node.all_input_nodes):
        return None
    assert callable(node.target)
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: values[n])
    found: Any = node.target(*args, **kwargs)
    return found if isinstance(found, Tensor) else None


def _weight(site: GraphSite) -> fx.Node | None:
    arguments = site.call.node.args
    return arguments[1] if len(arguments) > 1 and isinstance(arguments[1], fx.Node) else None


def _register(graph: fx.GraphModule, home: str | None, value: Tensor, position: int) -> str:
    holder, path = graph, home or ""
    name = "weight" if home else f"{_BASE}_{position}"
    try:
        found = graph.get_submodule(path)
    except AttributeError:
        found = graph
    if found is graph or hasattr(found, name):
        path, name = "", f"{_BASE}_{position}"
        while hasattr(graph, name):
            name += "_"
    else:
        holder = found  # type: ignore[assignment]
    holder.register_buffer(name, value.detach().clone())
    return joined(path, name)
