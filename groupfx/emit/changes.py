"""What a rewrite did to the modules of the user's own model, as changes that can be done again.

A convolution becomes a container, and the BatchNorm that moved into it leaves an Identity. This is
read off the plans that the rewrite left on its graph, and holds for models that have a class.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from torch import fx
from torch.nn.modules.conv import _ConvNd

from ..convs.spec import ConvSpec
from ..errors import RewriteError
from ..plan.branches import Branches
from ..plan.forms import FormPlan
from ..plan.site_plan import SitePlan, plan_of
from ..rewriting import Result
from ..rewriting.report import RewrittenSite
from ..running.grouped_runs import at
from ..tracing import Fragment
from ..tracing.places import line_of
from .nesting import modules_around


@dataclass(frozen=True)
class Change:
    """The module at `path` becomes what `plan` says.

    `norm` is the path of the BatchNorm that goes along. The pieces lie in the graph of `fragment`
    between `starts` and `output`, which is None where other operations are among them. `call` is
    the node of the graph before that gave its value.
    """

    path: str
    plan: SitePlan
    norm: str | None
    fragment: Fragment
    starts: tuple[fx.Node, ...]
    output: fx.Node | None
    call: fx.Node

    @property
    def kind(self) -> Literal["split", "called", "frozen"]:
        """A convolution for each group, one that its module calls itself, or a frozen layer."""
        if isinstance(self.plan.form, FormPlan):
            return "frozen"
        return "split" if self.plan.convs else "called"

    @property
    def groups(self) -> tuple[int, ...]:
        """The number of groups in each branch of a convolution that was split."""
        assert isinstance(self.plan.form, Branches)
        return self.plan.form.groups

    @property
    def pieces(self) -> dict[str, str]:
        """Where in the container each piece lies, by its path; a frozen one alone is the layer."""
        plan = self.plan
        if self.kind == "frozen" and plan.modules == plan.convs[:1]:
            return {plan.convs[0]: ""}
        found = {path: f"convs.{k}" for k, path in enumerate(plan.convs)}
        found |= {path: f"norms.{k}" for k, path in enumerate(plan.norms)}
        others = ("input_gather", "constants", "output_gather")
        return found | {path: name for name in others if (path := getattr(plan, name))}


def find_calls(result: Result) -> list[Change]:
    """The change at each site: what makes the original what `result` holds.

    Raises RewriteError where the rewrite did more than to put modules in the place of modules.
    """
    program = result.program
    if isinstance(program.model, fx.GraphModule):
        raise RewriteError("the model is a graph, and has no class")
    if program.way == "export":
        raise RewriteError("the model was exported, which leaves no modules of its class")
    folded = [fold for fold in result.report.folds if fold.changes]
    if folded:
        moved = (each.link.gives for fold in folded for each in fold.links if not each.untouched)
        raise RewriteError(
            f"channels changed their order{where(*moved)}, in tensors of other layers as well"
        )
    # Others are pieces of one that was rewritten before, whose plan knows of them.
    sites = [site for site in result.report.sites if site.conv or site.start]
    return [_change(site, result) for site in sites]


def by_module(calls: Iterable[Change]) -> list[Change]:
    """One change for all calls of a module. Raises RewriteError where they differ."""
    found: dict[str, Change] = {}
    for change in calls:
        other = found.setdefault(change.path, change)
        if change.kind == "called" and other.groups != change.groups:
            raise RewriteError(
                f"{change.path or 'the model'} calls with other numbers of groups: keep the model "
                "with result.save, or write each call as a layer"
            )
        if other.norm != change.norm:
            if other.kind == "frozen":
                raise RewriteError(f"{change.path} is called with one BatchNorm and with another")
            # Its calls are followed by different ones, which stay where they are.
            found[change.path] = replace(other, norm=None)
    return list(found.values())


def where(*nodes: object) -> str:
    """Where the first of `nodes` of which that is known stands in the user's source."""
    lines = (line_of(node) for node in nodes if isinstance(node, fx.Node))
    return at(next((line for line in lines if line), ""))


def _change(site: RewrittenSite, result: Result) -> Change:
    fragment = site.fragment
    nodes = {node.name: node for node in fragment.reference.graph.nodes}
    conv = nodes.get(site.conv or "")
    end = nodes.get(site.end or "")
    if conv is None or end is None:
        raise RewriteError(f"{site.name}{where(conv)} is no module of its own")
    path, inputs, last = _owner(conv, fragment)
    norm = None if end is conv else str(end.target)
    if not path and fragment.calls_of is None:
        name = site.name or "the model itself"
        raise RewriteError(f"{name}{where(conv)} is no module inside the model")
    rewritten = fragment.standing.get(end.name)
    plan = None if rewritten is None else plan_of(rewritten.meta)
    if rewritten is None or plan is None or rewritten.kwargs.get("dim", 1) != 1:
        plan = _pieces_of(path, norm, site, fragment)
        norm = norm if plan.norms else None
        return Change(path, plan, norm, fragment, (), None, last)
    if norm is not None and not (plan.norms and last is conv):
        raise RewriteError(f"{site.name}{where(conv)} was rewritten in a way that no plan tells")
    output = rewritten if last is conv else fragment.standing[last.name]
    more = isinstance(plan.form, FormPlan) and len(inputs) != 1
    if plan.convs and (output is not rewritten or more):
        raise RewriteError(f"{site.name}{where(conv)} is a part of what its module computes")
    starts = tuple(fragment.standing[node.name] for node in inputs)
    return Change(path, plan, norm, fragment, starts, output, last)


def _pieces_of(path: str, norm: str | None, site: RewrittenSite, fragment: Fragment) -> SitePlan:
    """The plan of a site whose pieces lie among other operations now, told by its modules."""
    held = dict(fragment.working.named_modules())
    lists = [[f"{home}.{k}" for k in range(site.branches)] for home in (path, norm)]
    convs, norms = ([held[each] for each in paths if each in held] for paths in lists)
    spec: ConvSpec = site.spec
    if len(convs) != site.branches or not all(isinstance(c, _ConvNd) for c in convs):
        raise RewriteError(f"{site.name} was rewritten in a way that no plan tells")
    shares = tuple(c.out_channels * spec.groups // spec.out_channels for c in convs)
    kept = tuple(lists[1]) if norms else ()
    return SitePlan(
        path, spec.in_channels, spec.out_channels, Branches(shares), tuple(lists[0]), kept
    )


def _owner(conv: fx.Node, fragment: Fragment) -> tuple[str, list[fx.Node], fx.Node]:
    """The innermost module that holds the convolution: what goes into it, and what it gives."""
    graph = fragment.reference.graph
    if fragment.path:
        given = [node for node in graph.nodes if node.op == "placeholder"]
        last = next(iter(reversed(graph.nodes)))
        return fragment.path, given, last.all_input_nodes[0]
    if conv.op == "call_module":
        return str(conv.target), conv.all_input_nodes, conv
    for path in reversed(modules_around(conv)):
        own = [node for node in graph.nodes if path in modules_around(node)]
        ends = [node for node in own if any(user not in own for user in node.users)]
        sources = dict.fromkeys(s for node in own for s in node.all_input_nodes if s not in own)
        if len(ends) == 1:
            return path, list(sources), ends[0]
    return "", [], conv
