"""The flat graph of a model, taken apart again into the parts that its modules are.

A trace calls `layer1.0.conv1` in one long forward. Where all that happens inside `layer1.0` is one
piece of the graph with one result, that piece becomes a graph of its own, called once.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass

from torch import fx
from torch.fx.node import map_arg

from ..plan.site_plan import site_of

Takes = Callable[[str, int, int], bool]

_INPUTS = ("x", "y", "z", "u", "v", "w")


def take_out_parts(
    graph: fx.Graph, paths: Iterable[str], takes: Takes = lambda _, inputs, nodes: nodes > 1
) -> dict[str, fx.Graph]:
    """Take the modules at `paths` out of `graph`, inner ones first; returns their graphs by path.

    Targets in a part are relative to it. `takes` says whether a module may be one, given how many
    values go into it and how many nodes are in it.
    """
    if any(node.target is operator.setitem for node in graph.nodes):
        return {}  # what a part writes to may be read outside of it
    _read_where_used(graph)
    parts: dict[str, fx.Graph] = {}
    for path in sorted(paths, key=lambda path: (-path.count("."), path)):
        part = _take_out(path, graph, takes)
        if part is not None:
            parts[path] = part
    return parts


def _read_where_used(graph: fx.Graph) -> None:
    """An exported graph reads all tensors first; here each is read where it is used."""
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        for user in list(node.users):
            with graph.inserting_before(user):
                user.replace_input_with(node, graph.node_copy(node))
        graph.erase_node(node)


def homes(node: fx.Node) -> Iterator[str]:
    """Paths of the modules that hold what a node calls or reads."""
    if node.op in ("call_module", "get_attr"):
        steps = str(node.target).split(".")
        yield from (".".join(steps[:count]) for count in range(1, len(steps)))


def modules_around(node: fx.Node) -> dict[str, str]:
    """The modules that were being called at a node, outer ones first: paths and classes."""
    stack = (node.meta.get("nn_module_stack") or {}).values()
    return {p: str(getattr(kind, "__name__", kind)).rpartition(".")[2] for p, kind in stack if p}


def _is_inside(node: fx.Node, path: str) -> bool:
    named = str(node.target) if node.op in ("call_module", "get_attr") else site_of(node.meta)
    return f"{named}.".startswith(f"{path}.") or path in modules_around(node)


def _take_out(path: str, graph: fx.Graph, takes: Takes) -> fx.Graph | None:
    """The piece of `graph` that is a call of the module at `path`, each of which becomes a node.

    None where its calls are several pieces, single nodes, or not the same.
    """
    nodes = list(graph.nodes)
    runs: dict[str | None, list[int]] = {}
    for place, node in enumerate(nodes):
        if _is_inside(node, path):
            runs.setdefault(call_of(node, path), []).append(place)
    if len(runs) < 3:  # what is not known of a single call belongs to it
        runs = (
            {"": sorted(place for own in runs.values() for place in own)} if None in runs else runs
        )
    found = [_Piece.of(nodes[own[0] : own[-1] + 1], path, takes) for own in runs.values()]
    pieces = [each for each in found if each is not None]
    if not pieces or len(pieces) < len(found) or len({form_of(each.graph) for each in pieces}) > 1:
        return None
    calls: dict[fx.Node, fx.Node] = {}
    for each in pieces:
        with graph.inserting_after(each.end):
            call = graph.call_module(path, tuple(calls.get(value, value) for value in each.given))
        stack = dict(each.end.meta.get("nn_module_stack") or {})
        around = {k: known for k, known in stack.items() if f"{path}.".startswith(f"{known[0]}.")}
        call.meta = {"nn_module_stack": around}
        each.end.replace_all_uses_with(call)
        calls[each.end] = call
        for node in reversed(each.inside):
            graph.erase_node(node)
    return pieces[0].graph


def call_of(node: fx.Node, path: str) -> str | None:
    """Which call of the module at `path` a node belongs to, if that was recorded."""
    stack = node.meta.get("nn_module_stack") or {}
    return next((str(key) for key, (known, _) in stack.items() if known == path), None)


@dataclass(frozen=True)
class _Piece:
    """The nodes of one call, what goes into them, the one that gives the value, and their graph."""

    inside: list[fx.Node]
    given: tuple[fx.Node, ...]
    end: fx.Node
    graph: fx.Graph

    @classmethod
    def of(cls, inside: list[fx.Node], path: str, takes: Takes) -> _Piece | None:
        own = {*inside}
        ends = [node for node in inside if any(user not in own for user in node.users)]
        given = dict.fromkeys(s for n in inside for s in n.all_input_nodes if s not in own)
        used = [str(node.target) for node in inside if node.op in ("call_module", "get_attr")]
        whole = len(ends) == 1 and 0 < len(given) <= len(_INPUTS)
        foreign = any(not target.startswith(f"{path}.") for target in used)
        outer = any(node.op in ("placeholder", "output") for node in inside)
        if not whole or foreign or outer or not takes(path, len(given), len(inside)):
            return None
        part = piece(inside, given, ends[0], lambda target: target.removeprefix(f"{path}."))
        return cls(inside, tuple(given), ends[0], part)


def form_of(graph: fx.Graph) -> Hashable:
    """What a graph does, the same for graphs that differ in names and in the order of nodes."""
    known: dict[fx.Node, int] = {}
    for node in graph.nodes:
        # By what an argument is, a node stands as its number.
        args, kwargs = map_arg((node.args, dict(sorted(node.kwargs.items()))), known.__getitem__)
        target = len(known) if node.op == "placeholder" else node.target
        known[node] = hash((node.op, target, repr(args), repr(kwargs)))
    return frozenset(Counter(known.values()).items())


def piece(
    inside: Iterable[fx.Node], given: Iterable[fx.Node], end: fx.Node, placed: Callable[[str], str]
) -> fx.Graph:
    """The nodes `inside` as a graph of what is `given`; `placed` says where targets lie in it."""
    part = fx.Graph()
    copies = {value: part.placeholder(name) for value, name in zip(given, _INPUTS, strict=False)}
    for node in inside:
        copies[node] = part.node_copy(node, copies.__getitem__)
        if node.op in ("call_module", "get_attr"):
            copies[node].target = placed(str(node.target))
    part.output(copies[end])
    return part
