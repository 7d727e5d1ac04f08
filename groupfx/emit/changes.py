"""What a rewrite did to the modules of the user's own model, as changes that can be done again.

A convolution becomes a container, and the BatchNorm that moved into it leaves an Identity. This is
read off the plans that the rewrite left on its graph, and holds for models that have a class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import fx, nn

from ..errors import RewriteError
from ..nn import HookedWeight
from ..plan.branches import Branches
from ..plan.forms import FormPlan
from ..plan.site_plan import SitePlan, plan_of
from ..rewriting import Result
from ..rewriting.report import RewrittenSite
from ..tracing import Fragment
from .blocks import counts_axes_from_the_end
from .nesting import reached


@dataclass(frozen=True)
class Change:
    """The module at `path` becomes a container for what `plan` says.

    `norm` is the path of the BatchNorm that goes along, `before` what the site was. `home` is where
    the pieces lie in the graph of `fragment`: between `starts` and `output`.
    """

    path: str
    plan: SitePlan
    norm: str | None
    before: str
    fragment: Fragment
    home: str
    starts: tuple[fx.Node, ...]
    output: fx.Node

    @property
    def kind(self) -> Literal["split", "sliced", "frozen"]:
        """A convolution for each group, slices of a weight that stays whole, or a frozen layer."""
        if isinstance(self.plan.form, FormPlan):
            return "frozen"
        return "split" if self.plan.convs else "sliced"

    @property
    def groups(self) -> tuple[int, ...]:
        """The number of groups in each branch of a convolution that was split."""
        assert isinstance(self.plan.form, Branches)
        return self.plan.form.groups

    def module(self) -> nn.Module:
        """What lies in the container: the pieces, and the BatchNorms under `norms`."""
        root = self.fragment.working
        held = nn.Module()
        held.__dict__.update(root.get_submodule(self.home).__dict__)
        held._modules = dict(held._modules)
        if self.norm is not None:
            held._modules["norms"] = root.get_submodule(self.norm)
        return held

    def graph(self) -> fx.Graph:
        """What happens in the container: paths are those of `module`."""
        if len(self.starts) != 1:
            raise RewriteError(
                f"a container for {self.path} would be given {len(self.starts)} values"
            )
        homes = {self.home: "", **({} if self.norm is None else {self.norm: "norms"})}
        return _inside(self.output, self.starts[0], homes, self.fragment.working)


def find_changes(result: Result) -> list[Change]:
    """The changes that make the original what `result` holds.

    Raises RewriteError where the rewrite did more than to put modules in the place of modules.
    """
    program = result.program
    if isinstance(program.model, fx.GraphModule):
        raise RewriteError("the model is a graph, and has no class")
    if program.way == "export":
        raise RewriteError("the model was exported, which leaves no modules of its class")
    if any(fold.changes for fold in result.report.folds):
        raise RewriteError("permutations were folded into layers all over the model")
    found: dict[str, Change] = {}
    regions: dict[str, set[fx.Node]] = defaultdict(set)
    for site in result.report.sites:
        if site.conv is None and site.start is None:
            continue  # a piece of one that was rewritten before, whose plan knows of it
        change = _change(site, result)
        other = found.setdefault(change.path, change)
        if other.norm != change.norm:
            if other.kind != "split":
                raise RewriteError(f"{change.path} is called with one BatchNorm and with another")
            # Its calls are followed by different ones, which stay where they are.
            found[change.path] = replace(other, norm=None)
        regions[site.fragment.path] |= _region(change.output, change.starts)
    for fragment in program.fragments:
        if not fragment.is_module:
            _require_nothing_else(fragment, regions[fragment.path])
    return list(found.values())


def _require_nothing_else(fragment: Fragment, inside: set[fx.Node]) -> None:
    """Raise RewriteError where the graph was changed outside of the sites."""
    before = {node.name: (node.op, node.target) for node in fragment.reference.graph.nodes}
    for node in fragment.working.graph.nodes:
        known = before.get(fragment.stands_for(node) or "")
        if node not in inside and known != (node.op, node.target):
            raise RewriteError(f"{node.name} was changed, which is no part of a convolution")


def _region(output: fx.Node, starts: Sequence[fx.Node]) -> set[fx.Node]:
    """The nodes that `output` is made of, from `starts` on."""
    return {output} | reached(
        [output], lambda node: [s for s in node.all_input_nodes if s not in starts]
    )


def _change(site: RewrittenSite, result: Result) -> Change:
    fragment = site.fragment
    if fragment.calls_of is not None:
        raise RewriteError(
            f"{site.name} is a call of a function that is taken while the model's own class "
            "runs, and no module that a file could put in its place: keep the model with "
            "result.save, or write the call as a layer"
        )
    nodes = {node.name: node for node in fragment.reference.graph.nodes}
    conv = nodes.get(site.conv or "")
    end = nodes.get(site.end or "")
    if conv is None or end is None:
        raise RewriteError(f"{site.name} is no module of its own")
    path, inputs, last = _owner(conv, fragment)
    norm = None if end is conv else str(end.target)
    if not path:
        raise RewriteError(f"{site.name or 'the model itself'} is no module inside the model")
    rewritten = fragment.standing[end.name]
    plan = plan_of(rewritten.meta)
    if plan is None or (norm is not None and not (plan.norms and last is conv)):
        raise RewriteError(f"{site.name} was rewritten in a way that no plan tells")
    if counts_axes_from_the_end(rewritten):
        raise RewriteError(f"{site.name} gives an output that is kept from being pruned")
    output = rewritten if last is conv else fragment.standing[last.name]
    if plan.convs and output is not rewritten:
        raise RewriteError(f"{site.name} is a part of what its module computes")
    home = "" if fragment.is_module else path
    starts = tuple(fragment.standing[node.name] for node in inputs)
    return Change(path, plan, norm, site.before, fragment, home, starts, output)


def _owner(conv: fx.Node, fragment: Fragment) -> tuple[str, list[fx.Node], fx.Node]:
    """The innermost module that holds the convolution: what goes into it, and what it gives."""
    graph = fragment.reference.graph
    if fragment.is_module or (fragment.path and conv.graph is graph):
        given = [node for node in graph.nodes if node.op == "placeholder"]
        last = next(iter(reversed(graph.nodes)))
        return fragment.path, given, last.all_input_nodes[0]
    if conv.op == "call_module":
        return str(conv.target), conv.all_input_nodes, conv
    for path in reversed(_stack(conv)):
        own = [node for node in graph.nodes if path in _stack(node)]
        ends = [node for node in own if any(user not in own for user in node.users)]
        sources = dict.fromkeys(s for node in own for s in node.all_input_nodes if s not in own)
        if len(ends) == 1:
            return path, list(sources), ends[0]
    return "", [], conv


def _stack(node: fx.Node) -> list[str]:
    stack: Mapping[str, tuple[str, object]] = node.meta.get("nn_module_stack") or {}
    return [path for path, _ in stack.values() if path]


def _inside(
    output: fx.Node, start: fx.Node, homes: Mapping[str, str], root: fx.GraphModule
) -> fx.Graph:
    """The nodes from `start` to `output` as a graph; paths below `homes` become relative."""
    found = _region(output, (start,))
    if any(node.op == "placeholder" for node in found):
        raise RewriteError(f"{output.name} reads more than what its module is given")
    # The hooks of the module itself put the weight there in front of every forward.
    hooked = {
        str(node.target): module.name
        for node in found
        if node.op == "call_module"
        and isinstance(module := root.get_submodule(str(node.target)), HookedWeight)
    }
    homes = {**dict.fromkeys(hooked, ""), **homes}
    graph = fx.Graph()
    copies = {start: graph.placeholder("x")}
    for node in output.graph.nodes:
        if node not in found:
            continue
        copies[node] = graph.node_copy(node, copies.__getitem__)
        target = str(node.target)
        if node.op == "call_module" and target in hooked:
            copies[node].op, copies[node].target = "get_attr", hooked[target]
        elif node.op in ("call_module", "get_attr"):
            copies[node].target = _relative(target, homes)
    graph.output(copies[output])
    return graph


def _relative(target: str, homes: Mapping[str, str]) -> str:
    for home, place in homes.items():
        if not home and not place:
            return target
        if home and target.startswith(f"{home}."):
            rest = target[len(home) + 1 :]
            return f"{place}.{rest}" if place else rest
    raise RewriteError(f"{target} is read by a container for another module")
