"""Outputs that recomputed convolutions alone lead to, so that no input need move them.

A layer of which every weight is masked puts out its bias whatever goes in. Two files that agree on
such an output agree on nothing that their inputs decide; but each convolution was recomputed from
what went into it, and that is a comparison.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import onnx_ir as ir

from ..graph.conv_nodes import conv_names
from ..graph.metadata import mark_of
from .sides import OnnxSide, Side
from .site_checks import SiteCheck


def settled_outputs(
    candidate: Side, names: Mapping[str, str], sites: Collection[SiteCheck]
) -> frozenset[str]:
    """Those of the reference's outputs whose twin in `names` only right sites lead to."""
    if not isinstance(candidate, OnnxSide):
        return frozenset()
    right = {check.name for check in sites if check.ok and check.seen}
    called = conv_names(candidate.model.graph)

    def judged(node: ir.Node) -> bool:
        mark = mark_of(node)
        return (called.get(node) if mark is None else mark.site) in right

    ends = {value.name: value for value in candidate.model.graph.outputs}
    return frozenset(
        name
        for name, other in names.items()
        if other in ends and all(map(judged, _leading_to(ends[other])))
    )


def _leading_to(value: ir.Value) -> Iterator[ir.Node]:
    """Every node of the graph that `value` depends on, each once."""
    seen: set[ir.Node] = set()
    waiting: list[ir.Value | None] = [value]
    while waiting:
        found = waiting.pop()
        node = None if found is None else found.producer()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += node.inputs
