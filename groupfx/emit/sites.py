"""The pieces of a rewritten site in a graph as one call.

    cat([conv_k(x[:, part_k]), ...], 1)      becomes      in_branches(x, convs)

The plan that the rewrite left on the graph says which nodes and modules are its pieces.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import fx, nn

from ..files.archive.graphs import kept_nodes
from ..plan.site_plan import SitePlan, plan_of, site_of
from . import plain
from .layers import shortened
from .tree import is_list
from .values import Expression, counted

_DEFAULTS = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}


def collapsed(root: fx.GraphModule) -> fx.Graph:
    """A copy of the graph with one call for the convolutions of each site that lie side by side."""
    graph = fx.Graph()
    standing: dict[fx.Node, fx.Node] = {}
    for node in kept_nodes(root):
        standing[node] = graph.node_copy(node, standing.__getitem__)
    graph._codegen = root.graph._codegen
    plans = {site_of(node.meta): plan_of(node.meta) for node in standing if plan_of(node.meta)}
    for cat in standing.values():
        plan = plans.get(site_of(cat.meta)) if cat.target is torch.cat else None
        call = None if plan is None else _call(cat, plan, root)
        if call is not None:
            call.meta = dict(cat.meta)
            cat.replace_all_uses_with(call)
    graph.eliminate_dead_code(lambda node: site_of(node.meta) is None)
    return graph


def _call(cat: fx.Node, plan: SitePlan, root: nn.Module) -> fx.Node | None:
    """The call in place of `cat`, unless its parts are something else than branches."""
    ends: Any = cat.args[0]
    convs = [end.args[0] if end.target in plan.norms else end for end in ends]
    named = [tuple(str(node.target) for node in nodes) for nodes in (convs, ends)]
    whole = plan.convs in ((), named[0]) and plan.norms in ((), named[1])
    if cat.kwargs != {"dim": 1} or plan.constants is not None or not whole:
        return None
    lists = [_list_of(paths, root) for paths in (plan.convs, plan.norms) if paths]
    if None in lists:
        return None
    with cat.graph.inserting_before(cat):
        read = [cat.graph.get_attr(str(path)) for path in lists]
        if not plan.convs:
            return _in_slices(convs, plan, read)
        widths = [len(piece.inputs) for piece in plan.pieces()]
        x = _source([conv.args[0] for conv in convs], widths, 1)
        if x is None or any(len(conv.args) > 1 or conv.kwargs for conv in convs):
            return None
        return cat.graph.call_function(plain.in_branches, (x, *read))


def _in_slices(
    convs: Sequence[fx.Node], plan: SitePlan, lists: Sequence[fx.Node]
) -> fx.Node | None:
    function: Any = convs[0].target
    groups = [len(piece.columns) for piece in plan.pieces()]
    options = [{k: v for k, v in conv.kwargs.items() if k != "groups"} for conv in convs]
    alike = all(conv.target is function and len(conv.args) == 3 for conv in convs)
    if not alike or options.count(options[0]) < len(options):
        return None
    inputs, outputs = plan.in_channels // sum(groups), plan.out_channels // sum(groups)
    sizes = (inputs, inputs if "transpose" in function.__name__ else outputs, outputs)
    columns = zip(zip(*(conv.args for conv in convs), strict=True), sizes, (1, 0, 0), strict=True)
    found = [_source(parts, [size * n for n in groups], axis) for parts, size, axis in columns]
    if None in found[:2] or (found[2] is None and convs[0].args[2] is not None):
        return None
    shorter = {name: shortened(part) for name, part in options[0].items()}
    told = {name: part for name, part in shorter.items() if part != _DEFAULTS[name]}
    name = Expression(f"F.{function.__name__}")
    arguments = (name, *found, Expression(counted(groups)), sizes, *lists)
    return convs[0].graph.call_function(plain.in_slices, arguments, told)


def _source(parts: Sequence[Any], lengths: Sequence[int], axis: int) -> fx.Node | None:
    """What `parts` are slices of, one behind the other; None where they are something else."""
    ends = zip(accumulate(lengths), lengths, strict=True)
    wanted = [(*(slice(None),) * axis, slice(stop - length, stop)) for stop, length in ends]
    slices = [part.args for part in parts if getattr(part, "target", None) is operator.getitem]
    found = [index if isinstance(index, tuple) else (index,) for _, index in slices]
    alone = len({source for source, _ in slices}) == 1
    return slices[0][0] if alone and found == wanted else None


def _list_of(paths: Sequence[str], root: nn.Module) -> str | None:
    """The list that holds the modules at `paths` in this order, and nothing else."""
    home = paths[0].rpartition(".")[0]
    if not home or not is_list(root.get_submodule(home)):
        return None
    names = [f"{home}.{name}" for name in root.get_submodule(home)._modules]
    return home if list(paths) == names else None
