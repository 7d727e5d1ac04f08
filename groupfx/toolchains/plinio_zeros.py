"""Where a channel that PIT prunes is not 0 any more, and so is not gone.

PIT multiplies what a layer makes with its mask, and the layers behind read the zeros; its export
leaves the channels out. The two are one function only while every operation between makes 0 of 0:

    relu(0) = 0, tanh(0) = 0         sigmoid(0) = 1/2, 0 + 1 = 1, a border that is padded with 1

A product with a value that is 0 there is 0 again, so a gate of sigmoids does no harm.
"""

import operator
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import fx, nn

from .obstacle import Obstacle
from .plinio import CONVS, PIT, called, obstacle
from .plinio_masks import makes_channels, masks

_SUMS = (torch.add, operator.add, torch.sub, operator.sub)
_MOVED = (torch.sigmoid, F.log_softmax)
_REASON = "of a pruned channel it makes no 0, and a layer behind reads it"


def values_of_pruned(root: fx.GraphModule) -> Iterator[Obstacle]:
    """What makes another value than 0 of 0, where a layer that sums over channels reads it."""
    home = masks(root)
    moved: dict[fx.Node, fx.Node | None] = {}
    told: set[fx.Node] = set()
    for node in root.graph.nodes:
        given = [moved.get(each) for each in node.all_input_nodes]
        if makes_channels(node, root) or _is_depthwise_or_norm(node, root):
            sums = isinstance(called(node, root), (*CONVS, nn.Linear))
            for source in given if sums and makes_channels(node, root) else ():
                if source is not None and source not in told and home[source].is_pruned:
                    told.add(source)
                    yield obstacle(source, root, (PIT,), _REASON, refused=False)
            moved[node] = None
        elif _moves(node, root):
            moved[node] = node
        elif node.target is torch.multiply and len(given) > 1:
            moved[node] = None if None in given else given[0]
        else:
            moved[node] = next((each for each in given if each is not None), None)


def _is_depthwise_or_norm(node: fx.Node, root: fx.GraphModule) -> bool:
    """Whether it has the mask on its own output, or is judged by itself."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return isinstance(called(node, root), (*CONVS, *norms))


def _moves(node: fx.Node, root: fx.GraphModule) -> bool:
    """Whether it makes another value than 0 of 0."""
    module = called(node, root)
    if isinstance(module, (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)):
        return module.value != 0
    if module is not None:
        return isinstance(module, nn.Sigmoid)
    if node.target in _SUMS:
        return any(isinstance(each, (int, float)) and each != 0 for each in node.args)
    if node.target is F.pad:
        value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
        return value not in (None, 0)
    return node.target in _MOVED
