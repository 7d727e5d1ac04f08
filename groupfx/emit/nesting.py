"""The flat graph of a model, taken apart again into the parts that its modules are.

A trace calls `layer1.0.conv1` in one long forward. Where all that happens inside `layer1.0` is one
piece of the graph with one result, that piece becomes a graph of its own, called once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import fx, nn
from torch.nn import functional

from .blocks import collapse


@dataclass(frozen=True)
class Nested:
    """The graph of the whole, and those of its parts by their paths.

    Targets in a part are relative to it. A part in `chains` only calls its children in their order;
    `blocks` are frozen layers that are one call.
    """

    graph: fx.Graph
    parts: dict[str, fx.Graph] = field(default_factory=dict)
    chains: set[str] = field(default_factory=set)
    blocks: list[str] = field(default_factory=list)


def nested(root: fx.GraphModule) -> Nested:
    """The graph of `root`, which stays as it is, in parts."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in root.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph._codegen = root.graph._codegen
    found = Nested(graph, blocks=collapse(graph, root))
    if any(node.target in _WRITES for node in graph.nodes):
        return found
    for path in _containers(graph):
        _take_out(path, root.get_submodule(path), found)
    return found


# What a part writes to may be read outside of it.
_WRITES = (operator.setitem,)


def _containers(graph: fx.Graph) -> list[str]:
    """Paths that hold what the graph uses, the innermost first."""
    paths: set[str] = set()
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            steps = str(node.target).split(".")
            paths.update(".".join(steps[:count]) for count in range(1, len(steps)))
    return sorted(paths, key=lambda path: (-path.count("."), path))


def _take_out(path: str, module: nn.Module, found: Nested) -> None:
    graph = found.graph
    inside = _hull(path, graph)
    ends = [node for node in inside if any(user not in inside for user in node.users)]
    used = [node for node in inside if node.op in ("call_module", "get_attr")]
    alone = len(used) == 1 and used[0].op == "call_module"
    if len(ends) != 1 or alone or any(not _uses(node, path) for node in used):
        return
    end = ends[0]
    given = dict.fromkeys(
        source for node in inside for source in node.all_input_nodes if source not in inside
    )
    if not given or any(node.op in ("placeholder", "output") for node in inside):
        return
    part = fx.Graph()
    names = ("x", "y", "z", "u", "v", "w")
    lists = [str(s.target).rpartition(".")[0] for s in given if s.op == "call_module"]
    if len(given) > len(names) or len(set(lists)) < len(lists):
        return  # it begins in the middle of branches
    copies = {source: part.placeholder(name) for source, name in zip(given, names, strict=False)}
    for node in inside:
        copies[node] = part.node_copy(node, copies.__getitem__)
        if node.op in ("call_module", "get_attr"):
            copies[node].target = str(node.target)[len(path) + 1 :]
    part.output(copies[end])
    chain = _is_chain(part, module)
    if not chain and any(name.isdigit() for name in module._modules):
        return  # a list, whose members say more than it would
    with graph.inserting_after(end):
        whole = graph.create_node("call_module", path, tuple(given))
    end.replace_all_uses_with(whole)
    for node in reversed(inside):
        graph.erase_node(node)
    found.parts[path] = part
    if chain:
        found.chains.add(path)


def _hull(path: str, graph: fx.Graph) -> dict[fx.Node, None]:
    """The nodes that use what is below `path`, and all between them, in the order of the graph."""
    own = [node for node in graph.nodes if _uses(node, path) or _was_in(node, path)]
    behind = reached(own, lambda node: node.users)
    before = reached(own, lambda node: node.all_input_nodes)
    inside = (behind & before) | set(own)
    inside |= _slices(inside)
    while True:
        more = [node for node in graph.nodes if node not in inside and _joins(node, inside)]
        if not more:
            return dict.fromkeys(node for node in graph.nodes if node in inside)
        given = {source for node in inside for source in node.all_input_nodes} - inside
        sides = {source for node in more for source in node.all_input_nodes}
        inside |= {*more, *(node for node in sides - given if _is_side(node, inside | given))}


def _uses(node: fx.Node, path: str) -> bool:
    named = node.op in ("call_module", "get_attr")
    return named and str(node.target).startswith(f"{path}.")


def _was_in(node: fx.Node, path: str) -> bool:
    """Whether the trace that made the graph was inside the module when it met the call."""
    stack = dict(node.meta.get("nn_module_stack") or {}).values()
    return any(known[0] == path for known in stack)


def _slices(inside: set[fx.Node]) -> set[fx.Node]:
    """Slices that are taken for what is inside alone."""
    sources = {source for node in inside for source in node.all_input_nodes} - inside
    return {
        node
        for node in sources
        if node.target is operator.getitem and inside.issuperset(node.users)
    }


def _joins(node: fx.Node, inside: set[fx.Node]) -> bool:
    """Whether `node` belongs to what is inside: it brings branches together, or it is an assertion.

    The residual of a block and the activation behind it are mostly functions: no module holds them.
    """
    sources = node.all_input_nodes
    found = [source for source in sources if source in inside]
    if not found or node.op not in ("call_function", "call_method"):
        return False
    if len(found) == len(sources) and not _is_needed(node):
        return True
    ends = {source for source in found if inside.isdisjoint(source.users)}
    given = {source for part in inside for source in part.all_input_nodes} - inside
    if len(sources) > 1:
        sides = {source for source in sources if _is_side(source, inside | given)}
        return bool(ends) and set(sources) <= inside | given | sides
    last = sources[0]
    activates = len(last.users) == 1 and len(last.all_input_nodes) > 1
    return activates and last.op == "call_function" and node.target in _ACTIVATIONS


def _is_side(node: fx.Node, known: set[fx.Node]) -> bool:
    """Whether a call serves one other alone, and is made of what is known: a pooled shortcut."""
    alone = len(node.users) == 1 and node.op in ("call_function", "call_method")
    return alone and known.issuperset(node.all_input_nodes)


_ACTIVATIONS = (functional.relu, torch.relu, functional.relu6, functional.gelu, functional.silu)


def _is_needed(node: fx.Node) -> bool:
    """Whether the output of the graph depends on `node`."""
    return any(found.op == "output" for found in reached([node], lambda node: node.users))


def reached(start: Iterable[fx.Node], step: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    """The nodes that steps from `start` lead to."""
    found: set[fx.Node] = set()
    pending = list(start)
    while pending:
        node = pending.pop()
        for other in step(node):
            if other not in found:
                found.add(other)
                pending.append(other)
    return found


def _is_chain(part: fx.Graph, module: nn.Module) -> bool:
    """Whether the part is what `nn.Sequential` does with the children of `module`."""
    first, *calls, _ = part.nodes
    last = first
    for node in calls:
        if node.op != "call_module" or node.args != (last,) or node.kwargs:
            return False
        last = node
    called = [str(node.target) for node in calls]
    held = [*module._parameters, *module._buffers]
    return called == [str(k) for k in range(len(calls))] == list(module._modules) and not held
