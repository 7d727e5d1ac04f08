"""The activation behind a site in each of its branches, where a runtime fuses it.

    relu(concat(conv_1(x), conv_2(x)))     becomes     concat(relu(conv_1(x)), relu(conv_2(x)))

A runtime takes an activation along with the convolution in front of it; behind a concatenation it
is a pass over the whole tensor. The activations become part of the site.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from ..graph.conv_nodes import CONVS
from ..graph.free_names import Names
from ..graph.metadata import Mark, mark, mark_of

FUSED = frozenset({"Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
"""Activations that ONNX Runtime fuses into a convolution."""


def activate_branches(model: ir.Model) -> None:
    """Move each activation that alone reads what a site concatenates in front of that.

    Sites are told by the marks of their nodes.
    """
    names = Names(model)
    for node in list(model.graph):
        joined = node.inputs[0].producer() if node.op_type in FUSED and node.inputs[0] else None
        marks = () if joined is None or mark_of(node) is not None else tuple(_branches(joined))
        if joined is not None and marks:
            _move(model.graph, node, joined, marks, names)


def _branches(joined: ir.Node) -> Iterator[Mark]:
    """The marks of what a node joins; nothing unless these are all convolutions of its site."""
    site, found = mark_of(joined), list[Mark]()
    if joined.op_type != "Concat" or site is None or not _alone(joined.outputs[0]):
        return
    for value in joined.inputs:
        node = None if value is None else value.producer()
        own = None if node is None else mark_of(node)
        if value is None or node is None or own is None or own.site != site.site:
            return
        if node.op_type not in (*CONVS, "Add") or not _alone(value):
            return
        found.append(own)
    yield from found


def _alone(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _move(
    graph: ir.Graph, node: ir.Node, joined: ir.Node, marks: tuple[Mark, ...], names: Names
) -> None:
    for place, own in enumerate(marks):
        name = f"{node.name}.{place}"
        made = ir.Node(
            "",
            node.op_type,
            [joined.inputs[place], *node.inputs[1:]],
            node.attributes.values(),
            name=names.node(name),
        )
        mark(made, own.site, own.group)
        made.outputs[0].name = names.value(name)
        graph.insert_before(joined, made)
        joined.replace_input_with(place, made.outputs[0])
    result, value = node.outputs[0], joined.outputs[0]
    kept = result.name, result.shape, result.type
    ir.convenience.replace_all_uses_with(result, value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name = f"{result.name}.replaced"
    value.name, value.shape, value.type = kept
