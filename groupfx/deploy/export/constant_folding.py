"""Compute once, in torch, what a graph computes from its parameters alone.

A weight under `weight_norm`, a standardised or a masked one does not change at run time. It is
computed here, by torch in the model's own dtype, and not by the runtime or by an optimiser of
graphs: a softmax that differs in its last bit would put channels of a learned-group layer into
other groups.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.export.graph_signature import InputKind, InputSpec, OutputSpec, TensorArgument

from ...convs.names import joined
from .graph_sites import GraphSite

_BASE = "folded"
_STATE = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


@dataclass(frozen=True)
class Constant:
    """What a node of the graph gives, and the path of the buffer that holds it from now on."""

    path: str
    value: Tensor


def constants_of(graph: fx.GraphModule, sites: tuple[GraphSite, ...]) -> Mapping[str, Constant]:
    """Every value that depends on parameters alone and is read by what does not, by its node.

    The weight of a site becomes the buffer `weight` at the site's path, if nothing is there.
    """
    values = _constant_values(graph)
    wanted = {
        node: value
        for node, value in values.items()
        if node.op == "call_function" and any(user not in values for user in node.users)
    }
    homes = {_weight(site): site.path for site in sites}
    found: dict[str, Constant] = {}
    for position, (node, value) in enumerate(wanted.items()):
        path = _path(graph, homes.get(node), position)
        if path in {constant.path for constant in found.values()}:
            # A module that is called twice may have a weight for each call.
            path = _path(graph, None, position)
        found[node.name] = Constant(path, value.detach().clone())
    return found


def with_constants(
    program: torch.export.ExportedProgram, constants: Mapping[str, Constant]
) -> torch.export.ExportedProgram:
    """The program with these values as buffers, without what computed them.

    It is edited: exporting it anew takes as long as the first time. Node names are those of the
    program's own graph, which its module has too. `program` is of no use any more.
    """
    graph = program.graph
    nodes = {node.name: node for node in graph.nodes}
    first = next(iter(graph.nodes))
    made: list[InputSpec] = []
    names: dict[str, str] = {}
    for name, constant in constants.items():
        with graph.inserting_before(first):
            held = graph.placeholder(f"b_{re.sub(r'[^A-Za-z0-9_]', '_', constant.path)}")
        held.meta = dict(nodes[name].meta)
        nodes[name].replace_all_uses_with(held)
        names[name] = held.name
        made.append(
            InputSpec(InputKind.BUFFER, TensorArgument(held.name), constant.path, persistent=True)
        )
    graph.eliminate_dead_code()
    specs = (*made, *program.graph_signature.input_specs)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    unused = [
        node.users == {} and spec.kind in _STATE
        for node, spec in zip(placeholders, specs, strict=True)
    ]
    for node, gone in zip(placeholders, unused, strict=True):
        if gone:
            graph.erase_node(node)
    kept = [spec for spec, gone in zip(specs, unused, strict=True) if not gone]
    outputs = [_renamed(spec, names) for spec in program.graph_signature.output_specs]
    signature = replace(program.graph_signature, input_specs=kept, output_specs=outputs)
    held_now = {constant.path: constant.value for constant in constants.values()}
    read = {spec.target for spec in kept}
    state = {k: v for k, v in {**program.state_dict, **held_now}.items() if k in read}
    program.graph_module.recompile()
    edited: torch.export.ExportedProgram = program._update(
        program.graph_module, signature, state_dict=state
    )
    return edited


def _renamed(spec: OutputSpec, names: Mapping[str, str]) -> OutputSpec:
    """What the program gives, where that is one of the constants."""
    if not isinstance(spec.arg, TensorArgument) or spec.arg.name not in names:
        return spec
    return replace(spec, arg=TensorArgument(names[spec.arg.name]))


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


def _path(graph: fx.GraphModule, home: str | None, position: int) -> str:
    """Where a value is to lie: at its site, if that is a module without a weight."""
    try:
        found = graph.get_submodule(home or "")
    except AttributeError:
        found = graph
    if found is not graph and not hasattr(found, "weight"):
        return joined(str(home), "weight")
    name = f"{_BASE}_{position}"
    while hasattr(graph, name):
        name += "_"
    return name
