"""One gather in place of two between sites that follow each other.

    relu(conv_1(x)[:, i])[:, k]      becomes      relu(conv_1(x))[:, i[k]]

What stands between works channel by channel, and is fused into a convolution that nothing gathers
behind. The convolutions say in which order the channels lie now.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...plan.channel_order import PADDING
from ..graph.channel_order import orders_of, write_orders
from ..graph.conv_nodes import CONVS, FIRST_IR_WITH_DEFAULTS, constant_of
from ..graph.initializers import constant
from ..graph.metadata import mark_of

_BETWEEN = frozenset({"Clip", "HardSwish", "LeakyRelu", "Relu", "Sigmoid"})


def join_gathers(model: ir.Model) -> None:
    """Take off each gather behind a site that only gathers of one other site read."""
    for node in list(model.graph):
        readers = tuple(_readers(node))
        if readers:
            _join(model.graph, node, readers)


def _readers(node: ir.Node) -> Iterator[ir.Node]:
    """The gathers that alone read what `node` gathers; nothing where there is another reader."""
    if _picked(node) is None:
        return
    value = node.outputs[0]
    while not value.is_graph_output():
        found = [use.node for use in value.uses()]
        if len(found) == 1 and found[0].op_type in _BETWEEN and found[0].inputs[0] is value:
            value = found[0].outputs[0]
            continue
        sites = {_site(reader) for reader in found}
        if len(sites) == 1 and all(_picked(reader) is not None for reader in found):
            yield from dict.fromkeys(found)
        return


def _picked(node: ir.Node) -> np.ndarray[Any, np.dtype[Any]] | None:
    """The channels that a gather of a site picks; None for every other node."""
    axis = node.attributes.get("axis")
    if node.op_type != "Gather" or _site(node) is None or axis is None or axis.as_int() != 1:
        return None
    tensor = constant_of(node.inputs[1], FIRST_IR_WITH_DEFAULTS)
    return None if tensor is None else tensor.numpy()


def _site(node: ir.Node) -> str | None:
    mark = mark_of(node)
    return None if mark is None else mark.site


def _join(graph: ir.Graph, gather: ir.Node, readers: Sequence[ir.Node]) -> None:
    source, picked = gather.inputs[0], _picked(gather)
    made = None if source is None else source.producer()
    if source is None or picked is None or made is None or _site(made) != _site(gather):
        return
    channels = _channels(source)
    if channels is None or len(set(picked.tolist())) < len(picked):
        return
    order = np.full(channels, PADDING)
    order[picked] = np.arange(len(picked))
    for node in graph:
        if node.op_type in CONVS and _site(node) in (_site(gather), _site(readers[0])):
            behind = _site(node) == _site(gather)
            sides = (None, order) if behind else (order, None)
            write_orders(node, orders_of(node).then(*sides))
    for reader in readers:
        name = f"{reader.name}.joined"
        indices = picked[_picked(reader)].astype(np.int64)
        reader.replace_input_with(1, constant(graph, name, indices))
    ir.convenience.replace_all_uses_with(gather.outputs[0], source)
    graph.remove(gather, safe=True)


def _channels(value: ir.Value) -> int | None:
    """How many a site gives in front of its gather; None where it is not known."""
    node = value.producer()
    if node is None:
        return None
    if node.op_type in CONVS:
        weight = constant_of(node.inputs[1], FIRST_IR_WITH_DEFAULTS)
        return None if weight is None or node.op_type != "Conv" else len(weight.numpy())
    if node.op_type == "Add" and node.inputs[0] is not None:
        return _channels(node.inputs[0])
    if node.op_type != "Concat":
        return None
    parts = [None if part is None else _channels(part) for part in node.inputs]
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None
