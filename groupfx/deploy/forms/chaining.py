"""One gather in place of two between sites that follow each other.

    relu(conv_1(x)[:, i])[:, k]      becomes      relu(conv_1(x))[:, i[k]]

What stands between does the same in each channel, and is fused into a convolution that nothing
gathers behind. The convolutions say in which order the channels lie now.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...plan.channel_order import PADDING
from ..graph.channel_order import orders_of, write_orders
from ..graph.conv_nodes import CONVS, FIRST_IR_WITH_DEFAULTS, constant_of
from ..graph.free_names import Names
from ..graph.initializers import constant
from ..graph.metadata import mark_of

_BETWEEN = frozenset(
    {
        "Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid",
        "Tanh",
    }
)  # fmt: skip
# With a number.
_WITH_NUMBER = frozenset({"Add", "Div", "Mul"})


def join_gathers(model: ir.Model) -> None:
    """Take off each gather behind a site that only gathers of one other site read.

    Sites are told by the marks of their nodes.
    """
    names = Names(model)
    for node in list(model.graph):
        readers = tuple(_readers(node))
        if readers:
            _join(model.graph, node, readers, names)


def _readers(node: ir.Node) -> Iterator[ir.Node]:
    """The gathers that alone read what `node` gathers; nothing where there is another reader."""
    if _picked(node) is None:
        return
    *inner, value = (node.outputs[0], *_between(node.outputs[0]))
    found = dict.fromkeys(use.node for use in value.uses())
    sites = {_site(reader) for reader in found}
    seen = any(each.is_graph_output() for each in (*inner, value))
    if not seen and len(sites) == 1 and all(_picked(reader) is not None for reader in found):
        yield from found


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


def _join(graph: ir.Graph, gather: ir.Node, readers: Sequence[ir.Node], names: Names) -> None:
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
        name = names.value(f"{reader.name}.joined")
        indices = picked[_picked(reader)].astype(np.int64)
        reader.replace_input_with(1, constant(graph, name, indices))
    for value in _between(gather.outputs[0]):
        # It may be said of it how many channels it had.
        value.shape = None
    ir.convenience.replace_all_uses_with(gather.outputs[0], source)
    graph.remove(gather, safe=True)


def _between(value: ir.Value) -> Iterator[ir.Value]:
    """What the activations behind a value give, one behind the other."""
    while len(uses := value.uses()) == 1:
        (use,) = uses
        if not _is_between(use.node, use.idx):
            return
        value = use.node.outputs[0]
        yield value


def _is_between(node: ir.Node, place: int) -> bool:
    """Whether a node does the same in each channel of its input at a `place`."""
    if node.op_type in _BETWEEN:
        return place == 0
    others = [value for at, value in enumerate(node.inputs) if at != place]
    tensors = [constant_of(value, FIRST_IR_WITH_DEFAULTS) for value in others]
    numbers = all(tensor is not None and tensor.size == 1 for tensor in tensors)
    return node.op_type in _WITH_NUMBER and numbers


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
