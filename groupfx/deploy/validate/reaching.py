"""Which values of an ONNX graph depend on others: not on their sizes, but on what they hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

# They read the sizes of a value alone.
_SIZES = ("Shape", "Size")


def values_behind(graph: ir.Graph, starts: Iterable[ir.Value]) -> set[ir.Value]:
    """All values of `graph` that depend on `starts`, and those themselves."""
    found = set(starts)
    for node in graph:
        if node.op_type not in _SIZES and any(value in found for value in _read(node)):
            found.update(node.outputs)
    return found


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """What a node takes, and what the graphs inside it read."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            inside = [attribute.as_graph()]
        elif attribute.type == ir.AttributeType.GRAPHS:
            inside = list(attribute.as_graphs())
        else:
            continue
        for graph in inside:
            for inner in graph:
                yield from _read(inner)
            yield from graph.outputs
