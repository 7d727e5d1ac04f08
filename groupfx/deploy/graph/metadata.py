"""What a node says of itself in an ONNX file of ours, and what must not be in one.

Exporters leave the paths of source files, stack traces and class names in the metadata of nodes,
values and graphs. A file of ours holds none of that: only, on each node that belongs to a site, the
site's name and, in a split or bucketed one, which of its convolutions the node is.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from ...convs.names import one_line

PREFIX = "groupfx."
SITE = f"{PREFIX}site"
GROUP = f"{PREFIX}group"


@dataclass(frozen=True)
class Mark:
    """The site that a node belongs to, and the position of its convolution there, if it has one."""

    site: str
    group: int | None = None


def mark(node: ir.Node, site: str, group: int | None = None) -> None:
    """Write down that `node` belongs to `site`, as part of its convolution number `group`."""
    node.metadata_props[SITE] = site
    if group is None:
        node.metadata_props.pop(GROUP, None)
    else:
        node.metadata_props[GROUP] = str(group)


def unmark(node: ir.Node) -> None:
    """Take the mark off a node whose site is no longer one piece of the graph."""
    for key in (SITE, GROUP):
        node.metadata_props.pop(key, None)


def mark_of(node: ir.Node) -> Mark | None:
    """The mark of a node, None if it has none."""
    site = node.metadata_props.get(SITE)
    if site is None:
        return None
    group = node.metadata_props.get(GROUP)
    return Mark(one_line(site), int(group) if group is not None and group.isdecimal() else None)


def strip(model: ir.Model) -> None:
    """Remove every metadata entry that is not ours, and every doc string, from the whole model."""
    model.doc_string = None
    _keep_ours(model.metadata_props)
    for graph in _graphs(model):
        graph.doc_string = None
        _keep_ours(graph.metadata_props)
        held = graph.initializers.values() if isinstance(graph, ir.Graph) else ()
        for value in (*graph.inputs, *held):
            _strip_value(value)
        for node in graph:
            node.doc_string = None
            _keep_ours(node.metadata_props)
            for value in node.outputs:
                _strip_value(value)


def _graphs(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    """The main graph, the functions, and every graph inside a node of them."""
    yield model.graph
    yield from model.graph.subgraphs()
    for function in model.functions.values():
        yield function
        yield from function.subgraphs()


def _strip_value(value: ir.Value) -> None:
    value.doc_string = None
    _keep_ours(value.metadata_props)
    tensor = value.const_value
    if isinstance(tensor, ir.TensorProtoTensor):
        # It is a message, which other models may hold too.
        message = onnx.TensorProto()
        message.CopyFrom(tensor.raw)
        message.ClearField("doc_string")
        kept = [entry for entry in message.metadata_props if entry.key.startswith(PREFIX)]
        message.ClearField("metadata_props")
        message.metadata_props.extend(kept)
        value.const_value = ir.TensorProtoTensor(message)
    elif tensor is not None:
        tensor.doc_string = None
        _keep_ours(tensor.metadata_props)


def _keep_ours(entries: MutableMapping[str, str]) -> None:
    for key in [key for key in entries if not key.startswith(PREFIX)]:
        del entries[key]
