"""Sites and gathers as they stood before passes for a toolchain spelled them otherwise.

`merge-concats` pushes what follows a site into its branches and joins them with other values;
`index-channels` writes a gather as an index. Exporters want the opposite, so a copy of the graph
goes back:

    cat([relu(conv.0(a)), relu(conv.1(b)), z])  becomes  cat([relu(cat([conv.0(a), conv.1(b)])), z])
    x[:, [3, 1, 0]]                             becomes  ChannelGather([3, 1, 0])(x)
    conv.0(cat([x[:, :2], x[:, 4:6]])), ...     becomes  conv.0(y[:, :4]), ..., y a gather of x
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from ..convs.channelwise import combines, is_channelwise
from ..convs.norms import is_batchnorm
from ..nn import ChannelGather
from .graph import targets
from .regions import cat_values, sliced

Run = tuple[int, int]
"""First and last but one of the concatenated values that are the branches of one site."""


def nested(model: nn.Module) -> nn.Module:
    """The same function over the same tensors, its sites and gathers in one piece each."""
    if not isinstance(model, fx.GraphModule) or not _is_spread(model):
        return model
    graph = fx.Graph()
    graph.set_codegen(copy.deepcopy(model.graph._codegen))
    gathers: dict[str, nn.Module] = {}
    env: dict[fx.Node, fx.Node] = {}
    reads = _reads(model)

    def gathered(node: fx.Node, base: fx.Node, channels: Sequence[int]) -> fx.Node:
        path = f"{node.name}_gather"
        gathers[path] = ChannelGather(channels)
        value = graph.call_module(path, (env[base],))
        shape = base.meta.get("shape", ())
        value.meta = {"shape": (*shape[:1], len(channels), *shape[2:])} if shape else {}
        return value

    values: dict[fx.Node, fx.Node] = {}
    for node in model.graph.nodes:
        channels, runs = _listed(node), _runs(node, model)
        if channels is not None:
            env[node] = gathered(node, node.all_input_nodes[0], channels)
        elif runs:
            env[node] = _regrouped(graph, node, runs, model, env)
        elif node in reads:
            read = reads[node]
            if read.first not in values:
                values[read.first] = gathered(node, read.base, read.channels)
            part = slice(read.start, read.stop)
            index = (values[read.first], (slice(None), part))
            given = {read.given: graph.call_function(operator.getitem, index)}
            env[node] = graph.node_copy(node, given.__getitem__)
        else:
            env[node] = graph.node_copy(node, env.__getitem__)
    made = fx.GraphModule(targets(model, graph, gathers), graph, class_name=type(model).__name__)
    made.meta = dict(model.meta)
    made.graph.eliminate_dead_code()
    made.recompile()
    return made


@dataclass(frozen=True)
class _Read:
    """What a branch reads of `base[:, channels]`, which all branches of the site read.

    `first` is the first of them, `given` what it is called with now.
    """

    first: fx.Node
    given: fx.Node
    base: fx.Node
    channels: tuple[int, ...]
    start: int
    stop: int


def _reads(root: fx.GraphModule) -> dict[fx.Node, _Read]:
    """The branches whose inputs are put together of channels of one value."""
    found: dict[fx.Node, _Read] = {}
    for node in root.graph.nodes:
        values = cat_values(node, root) or []
        for start, stop in _branches(values, root):
            convs = [conv for value in values[start:stop] if (conv := _conv(value, root))]
            given = [conv.all_input_nodes[0] for conv in convs]
            picks = [_picked(value) for value in given]
            bases = {None if pick is None else pick[0] for pick in picks}
            if len(bases) > 1 or None in bases or all(map(sliced, given)):
                continue
            channels = [channel for pick in picks if pick for channel in pick[1]]
            (base,), end = bases, 0
            for conv, value, pick in zip(convs, given, picks, strict=True):
                begin, end = end, end + len(pick[1] if pick else ())
                assert base is not None
                found[conv] = _Read(convs[0], value, base, tuple(channels), begin, end)
    return found


def _picked(node: fx.Node) -> tuple[fx.Node, list[int]] | None:
    """The value and the channels of it that `node` is."""
    part, listed = sliced(node), _listed(node)
    if part is not None:
        return part[0], list(range(part[1].start, part[1].stop))
    if listed is not None:
        return node.all_input_nodes[0], listed
    if node.op != "call_function" or node.target is not torch.cat or node.kwargs.get("dim") != 1:
        return None
    parts = [_picked(value) for value in node.all_input_nodes]
    if len({None if each is None else each[0] for each in parts}) > 1 or None in parts:
        return None
    chosen = [channel for each in parts if each for channel in each[1]]
    return (parts[0][0], chosen) if parts and parts[0] else None


def _is_spread(root: fx.GraphModule) -> bool:
    return bool(_reads(root)) or any(
        _listed(node) is not None or _runs(node, root) for node in root.graph.nodes
    )


def _listed(node: fx.Node) -> list[int] | None:
    """The channels of `x[:, [3, 1, 0]]`; None for any other node."""
    if node.op != "call_function" or node.target is not operator.getitem:
        return None
    index = node.args[1]
    if not isinstance(index, tuple) or len(index) != len((0, 1)) or index[0] != slice(None):
        return None
    chosen = index[1]
    plain = isinstance(chosen, list) and all(type(n) is int and n >= 0 for n in chosen)
    return list(chosen) if plain and chosen else None  # type: ignore[arg-type]


def _runs(node: fx.Node, root: nn.Module) -> list[Run]:
    """The values of a concatenation that were one, where there is anything to put together."""
    values = cat_values(node, root) or []
    found = [run for run in _branches(values, root) if _are_alike(values[slice(*run)], root)]
    return [] if found == [(0, len(values))] and _is_end(values[0], root) else found


def _branches(values: Sequence[fx.Node], root: nn.Module) -> list[Run]:
    """The values, in a row, that belong to convolutions that are numbered under one path."""
    branches = [_branch(value, root) for value in values]
    found: list[Run] = []
    start = 0
    while start < len(values):
        stop, home = start + 1, branches[start]
        while home and stop < len(values) and branches[stop] == _next(home, stop - start):
            stop += 1
        if stop - start > 1:
            found.append((start, stop))
        start = stop
    return found


def _next(home: tuple[str, int], steps: int) -> tuple[str, int]:
    return home[0], home[1] + steps


def _branch(value: fx.Node, root: nn.Module) -> tuple[str, int] | None:
    """The path under which the convolution behind `value` is numbered, and its number."""
    conv = _conv(value, root)
    home, _, number = ("" if conv is None else str(conv.target)).rpartition(".")
    return (home, int(number)) if number.isdecimal() else None


def _conv(value: fx.Node, root: nn.Module) -> fx.Node | None:
    """The convolution behind `value`, through first inputs."""
    while value.op in ("call_function", "call_method", "call_module"):
        if value.op == "call_module" and isinstance(_module(value, root), _ConvNd):
            return value
        if not value.all_input_nodes or cat_values(value, root) is not None:
            return None
        value = value.all_input_nodes[0]
    return None


def _module(node: fx.Node, root: nn.Module) -> nn.Module:
    return root.get_submodule(str(node.target))


def _is_end(value: fx.Node, root: nn.Module) -> bool:
    """Whether it is the value of a branch: of a convolution, or of a BatchNorm behind one."""
    if is_batchnorm(value, root):
        value = value.all_input_nodes[0]
    return value.op == "call_module" and isinstance(_module(value, root), _ConvNd)


def _are_alike(values: Sequence[fx.Node], root: nn.Module) -> bool:
    """Whether the same was done to each of the branches."""
    if all(_is_end(value, root) for value in values):
        return True
    first = values[0]
    if any(_is_end(value, root) or not _is_the_same(value, first) for value in values):
        return False
    alone = is_channelwise(first, root) or combines(first)
    if not alone or any(len(value.users) > 1 for value in values):
        return False
    inputs = zip(*(value.all_input_nodes for value in values), strict=True)
    return all(_are_alike(column, root) for column in inputs)


def _is_the_same(value: fx.Node, other: fx.Node) -> bool:
    """Whether two nodes do the same, to whatever they are given."""

    def shown(node: fx.Node) -> object:
        given = fx.node.map_arg((node.args, node.kwargs), lambda _: _GIVEN)
        return node.op, node.target, given, len(node.all_input_nodes)

    return value.op in ("call_function", "call_module") and shown(value) == shown(other)


_GIVEN = "what it is given"


def _regrouped(
    graph: fx.Graph,
    concat: fx.Node,
    runs: Sequence[Run],
    root: nn.Module,
    env: dict[fx.Node, fx.Node],
) -> fx.Node:
    values = cat_values(concat, root) or []
    made, place = [], 0
    for start, stop in runs:
        made += [env[value] for value in values[place:start]]
        made.append(_joined(graph, values[start:stop], root, env))
        place = stop
    made += [env[value] for value in values[place:]]
    if len(made) == 1:
        return made[0]
    result = graph.call_function(torch.cat, (made,), {"dim": 1})
    result.meta = dict(concat.meta)
    return result


def _joined(
    graph: fx.Graph, values: Sequence[fx.Node], root: nn.Module, env: dict[fx.Node, fx.Node]
) -> fx.Node:
    """One value in place of those of the branches, with what was done to them done once."""
    if all(_is_end(value, root) for value in values):
        return graph.call_function(torch.cat, ([env[value] for value in values],), {"dim": 1})
    columns = zip(*(value.all_input_nodes for value in values), strict=True)
    inner = {column[0]: _joined(graph, column, root, env) for column in columns}
    return graph.node_copy(values[0], inner.__getitem__)
