"""Write what a pass made of a site on the graph; `groupfx.plan.site_plan` says how and why."""

from collections.abc import Iterator

from torch import fx

from ..plan.site_plan import NOTE, note, plan_of, site_of
from .pass_ import Rewritten
from .site import Site


def remember(site: Site, made: Rewritten, before: fx.Node) -> None:
    """Note the plan of `made` on its nodes: all between `before` and the site's convolution.

    Where the convolution is itself a piece of a site that was rewritten before, the two plans
    become one; where they cannot, the later one is kept.
    """
    plan, output, conv = made.plan, made.output, site.call.node
    new = list(_between(before, conv))
    outer = site_of(conv.meta)
    if outer is not None:
        members = [node for node in site.graph.nodes if site_of(node.meta) == outer]
        end = next((node for node in members if plan_of(node.meta) is not None), None)
        known = None if end is None else plan_of(end.meta)
        refined = None if known is None or plan is None else known.refined(site.call.path, plan)
        if refined is None:
            for node in members:
                node.meta.pop(NOTE, None)
        else:
            plan = refined
            output = output if end is conv or end is None else end
    if plan is None:
        return
    for node in new:
        node.meta[NOTE] = note(plan.site)
    output.meta[NOTE] = note(plan.site, plan)


def _between(before: fx.Node, after: fx.Node) -> Iterator[fx.Node]:
    node = before.next
    while node is not after:
        yield node
        node = node.next
