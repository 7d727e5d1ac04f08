"""From the times of a runtime's nodes to those of sites.

The runtime renames and fuses: what is left of ours is names of tensors. A node belongs to the site
whose tensor it gives, or that its name repeats; what follows a site element by element, and would
be fused into a dense convolution, belongs to it as well. A change of the layout belongs to who
needs it: into the plain layout to the site that reads it, out of it to the site that left it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ..deploy.graph.metadata import mark_of
from .backends import NodeTime, Profile

_FOLLOWS = frozenset(
    {
        "Add", "BatchNormalization", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu",
        "Mul", "PRelu", "Relu", "Sigmoid", "Softplus", "Sum", "Tanh",
    }
)  # fmt: skip
# The runtime calls a convolution of its blocked layout so, behind the name of the tensor.
_BLOCKED = re.compile(r"_nchwc(_token_\d+)?$")
# Microseconds a node; what is beyond is a disturbance.
_MOST_OVERHEAD = 4.0
_INTO_PLAIN, _INTO_BLOCKED = "ReorderOutput", "ReorderInput"

Owners = Mapping[str, str]
"""Sites by the names of the tensors that their nodes give."""


def owners(model: ir.Model, sites: Sequence[str]) -> Owners:
    """Whose each tensor is, in the graph as it is given to the runtime."""
    wanted, found = set(sites), dict[str, str]()
    for node in model.graph:
        mark = mark_of(node)
        owner = None
        if mark is not None and mark.site in wanted:
            owner = mark.site
        elif node.op_type in _FOLLOWS and mark is None:
            # The latest of them: a residual stream was another site's before.
            own = [found[v.name] for v in node.inputs if v is not None and v.name in found]
            owner = max(own, key=list(found.values()).index, default=None)
        for value in node.outputs:
            if owner is not None and value.name:
                found[value.name] = owner
    return found


def site_times(profile: Profile, owned: Owners) -> dict[str, float]:
    """Microseconds of each site, without what profiling adds to a node."""
    nodes, less = profile.nodes, overhead(profile)
    own = {node.name: _owner(node, owned) for node in nodes}
    readers: dict[str, list[str]] = {}
    for node in nodes:
        owner = own[node.name]
        for value in node.inputs:
            if owner is not None:
                readers.setdefault(value, []).append(owner)
    times: dict[str, float] = {}
    for node in nodes:
        owner = own[node.name]
        if node.op_type == _INTO_PLAIN:
            owner = next(iter(readers.get(node.outputs[0], ())), owner)
        elif node.op_type == _INTO_BLOCKED:
            reading = iter(readers.get(node.outputs[0], ()))
            owner = owned.get(node.inputs[0]) or next(reading, None)
        if owner is not None:
            times[owner] = times.get(owner, 0.0) + max(0.0, node.time - less)
    return times


def overhead(profile: Profile) -> float:
    """What profiling adds to a node: what all take together beyond the whole without it."""
    number = max(len(profile.nodes), 1)
    excess = (sum(node.time for node in profile.nodes) - profile.total) / number
    return min(max(excess, 0.0), _MOST_OVERHEAD)


def _owner(node: NodeTime, owned: Owners) -> str | None:
    if node.op_type == _INTO_BLOCKED:
        return None
    names = [*node.outputs, _BLOCKED.sub("", node.name), node.name]
    return next((owned[name] for name in names if name in owned), None)
