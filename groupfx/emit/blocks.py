"""Frozen layers, whose pieces are called in a row, as one module of the emitted file."""

from __future__ import annotations

import operator
from itertools import accumulate

import torch
from torch import fx, nn

from ..plan.forms import FormPlan
from ..plan.site_plan import SitePlan, plan_of


def collapse(graph: fx.Graph, root: nn.Module) -> list[str]:
    """Make each frozen layer of several convolutions one call; returns the paths of the modules.

    The norms behind its convolutions are an argument of the call: they lie elsewhere.
    """
    homes = []
    for node in list(graph.nodes):
        plan = plan_of(node.meta)
        home = None if plan is None else _home(plan, root)
        if plan is None or home is None or counts_axes_from_the_end(node):
            continue
        inside, source = _region(node, plan)
        if source is None:
            continue
        with graph.inserting_after(node):
            whole = graph.create_node("call_module", home, (source,))
        if plan.norms:
            with graph.inserting_before(whole):
                norms = graph.create_node("get_attr", plan.norms[0].rpartition(".")[0])
            whole.args = (source, norms)
        node.replace_all_uses_with(whole)
        for gone in reversed(inside):
            graph.erase_node(gone)
        homes.append(home)
    return homes


def counts_axes_from_the_end(node: fx.Node) -> bool:
    """Whether it concatenates along an axis such as -3.

    An output is written so that PLiNIO does not prune it; the modules of a file join along axis 1.
    """
    dim = node.kwargs.get("dim")
    return node.target is torch.cat and isinstance(dim, int) and dim < 0


def _home(plan: SitePlan, root: nn.Module) -> str | None:
    """The module that holds the pieces, if they are several and named as in `Blocks`."""
    form = plan.form
    if not isinstance(form, FormPlan) or not plan.convs or len(form.convs) < 2:
        return None
    home = plan.convs[0].removesuffix(".convs.0")
    names = [f"{home}.convs.{k}" for k in range(len(plan.convs))]
    starts = list(accumulate((conv.in_channels for conv in form.convs), initial=0))
    in_a_row = all(
        conv.inputs.start == start and conv.source is None and not conv.added
        for conv, start in zip(form.convs, starts, strict=False)
    )
    return home if home and list(plan.convs) == names and in_a_row else None


def _region(end: fx.Node, plan: SitePlan) -> tuple[list[fx.Node], fx.Node | None]:
    """The nodes of a site in order, and what goes into them; None where that is not one value."""
    found: set[fx.Node] = set()
    sources: set[fx.Node] = set()
    pending = [end]
    while pending:
        node = pending.pop()
        slices = node.target is operator.getitem and isinstance(node.args[1], tuple)
        if slices or node.target in (*plan.modules, torch.cat):
            found.add(node)
            pending += [source for source in node.all_input_nodes if source not in found]
        else:
            sources.add(node)
    inside = [node for node in end.graph.nodes if node in found]
    leaves = any(user not in found for node in inside[:-1] for user in node.users)
    called = {node.target for node in inside if node.op == "call_module"}
    whole = len(sources) == 1 and not leaves and called == set(plan.modules)
    return inside, sources.pop() if whole else None
