"""Why a convolution that runs is out of reach of every pass, where it is, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import fx, nn

from ..convs.calls import CONV_FUNCTIONS, no_constant
from ..running.grouped_runs import GroupedRun, at
from .counting import ASKS, VMAP, FunctionCalls, Unseen
from .graphs import GraphRun
from .places import innermost_line, line_of, operation_of, owner_of
from .program import Fragment, Unreachable


def why_changing(calls: FunctionCalls) -> Unreachable:
    """Of calls whose groups are others for another batch."""
    return Unreachable(no_constant("groups", calls.place), calls.count)


def why_unseen(model: nn.Module, unseen: Unseen) -> Unreachable:
    """Of what runs where nobody can look inside."""
    module = dict(model.named_modules())[unseen.path]
    ran = f"{unseen.operator} with {unseen.groups} groups runs here{at(unseen.place)}"
    if isinstance(module, torch.jit.ScriptModule):
        how = " in TorchScript: give the model as it was before torch.jit"
    elif unseen.operator.startswith("quantized::"):
        how = " on whole numbers, which no pass cuts: rewrite the model before it is quantised"
    elif unseen.inside == VMAP:
        how = (
            ", made by torch.vmap of samples with a weight each: call it in a loop over the "
            "samples, and not under torch.vmap"
        )
    elif unseen.inside == ASKS:
        how = (
            " in a forward that does something else while torch's functions are watched (it asks "
            "torch.overrides.has_torch_function or the like): call a module there, or do not ask"
        )
    elif unseen.inside.startswith("torch."):
        how = " in a branch of torch.cond or an operator like it: call a module there"
    elif unseen.inside:
        how = f" inside the operator {unseen.inside}: call it in a forward, and not in there"
    else:
        remedy = "call one of torch.nn.functional there, such as conv2d"
        how = f" where no call of torch's functions shows it: {remedy}"
    return Unreachable(f"{ran}{how}", unseen.count)


def untold(
    outside: Sequence[GroupedRun[int]], told: Iterable[Unreachable], places: Iterable[str]
) -> Iterator[Unseen]:
    """What of the convolutions that run beside all graphs nobody has told, by places in the source.

    `places` are those of which something is told.
    """
    if len(outside) > sum(each.calls for each in told):
        known = {*places}
        runs = Counter((r.operator, r.place, r.groups) for r in outside if r.place not in known)
        for key, count in runs.items():
            yield Unseen("", *key, ASKS, count)


def why_idle(fragment: Fragment) -> str:
    """Of what runs as it is, whatever stands in its place."""
    if fragment.is_module:
        return (
            "forward runs the layer itself, whatever stands in its place: call it by its name, as "
            "self.conv(x)"
        )
    return (
        f"its call{at(fragment.place)} is compiled, and nothing can take its place: call "
        "torch.nn.functional.conv in a forward, and not in TorchScript"
    )


def hidden_runs(run: GraphRun, graph: fx.GraphModule) -> dict[str, Unreachable]:
    """Grouped convolutions that run inside nodes which are no convolutions, by those nodes."""
    found: dict[str, Unreachable] = {}
    for hidden in run.hidden(graph):
        node, inner = hidden.owner, _inside(hidden.owner, graph)
        name = owner_of(inner) or node.name
        ran = f"{hidden.operator} with {hidden.groups} groups runs inside"
        line = innermost_line(inner.meta.get("stack_trace") or "") or line_of(inner)
        what = f"{ran} {operation_of(node, graph)}{at(line or '')}"
        reason = f"{what}, which no pass looks into: {_OUTSIDE}"
        calls = found[name].calls + 1 if name in found else 1
        found[name] = Unreachable(reason, calls)
    return found


_OUTSIDE = "rewrite the model that the graph was made of, whose class stays what it is"


def _inside(node: fx.Node, graph: fx.GraphModule) -> fx.Node:
    """The convolution in a part of a graph that `node` calls; `node` where none is seen."""
    held = [arg for arg in node.all_input_nodes if arg.op == "get_attr"]
    parts = [getattr(graph, str(arg.target), None) for arg in held]
    graphs = [part.graph for part in parts if isinstance(part, fx.GraphModule)]
    inner = (each for part in graphs for each in part.nodes if each.target in CONV_FUNCTIONS)
    return next(inner, node)
