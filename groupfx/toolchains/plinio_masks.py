"""Which values PLiNIO prunes or quantises as one, and where that does not fit.

PIT gives one mask of channels to all values that must have the same: it takes the graph, cuts it in
front of what makes channels of its own (a convolution that is not depthwise, a linear layer) and in
front of `torch.cat(dim=1)`, and gives each piece that still hangs together a mask. A concatenation
has those of its parts behind one another. MPS does the same for its quantisers, and does not cut at
concatenations. An output's channels stay where its piece has no concatenation.
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from .obstacle import Obstacle
from .plinio import CHANNEL, CONVS, MPS, PIT, called, obstacle


@dataclass
class Piece:
    """Values that share a mask."""

    nodes: list[fx.Node]
    root: fx.GraphModule

    @property
    def makers(self) -> list[fx.Node]:
        return [node for node in self.nodes if makes_channels(node, self.root)]

    @property
    def concats(self) -> list[fx.Node]:
        return [node for node in self.nodes if is_concat(node)]

    @property
    def sizes(self) -> set[int]:
        """How many channels the mask would have."""
        given = [*self.makers, *self.concats]
        return {channels(node) for node in given}

    @property
    def is_pruned(self) -> bool:
        """Whether its channels may go: none of them is an input's or an output's."""
        outward = any(user.op == "output" for node in self.nodes for user in node.users)
        kept = outward or any(node.op == "placeholder" for node in self.nodes)
        return bool(self.makers or self.concats) and not kept

    @property
    def depthwise(self) -> list[fx.Node]:
        return [node for node in self.nodes if is_depthwise(node, self.root)]


def shared_masks(root: fx.GraphModule) -> Iterator[Obstacle]:
    """What does not fit, each under the first node that it concerns."""
    home = masks(root)
    for piece in {id(piece): piece for piece in home.values()}.values():
        yield from _mask_problems(piece, home)
        yield from _picked_problems(piece)
    yield from _called_apart(root, home)
    for piece in _pieces(root, cut_concats=False):
        yield from _quantiser_problems(piece)


def masks(root: fx.GraphModule) -> dict[fx.Node, Piece]:
    """The values that share the mask of each value."""
    return {n: piece for piece in _pieces(root, cut_concats=True) for n in piece.nodes}


def makes_channels(node: fx.Node, root: fx.GraphModule) -> bool:
    """Whether its channels are its own: an input, a convolution that is not depthwise, a linear."""
    if node.op == "placeholder":
        return True
    module = called(node, root)
    if isinstance(module, nn.Linear):
        return True
    return isinstance(module, CONVS) and not is_depthwise(node, root)


def is_depthwise(node: fx.Node, root: fx.GraphModule) -> bool:
    """Whether PLiNIO takes it for a depthwise convolution, one channel to one included."""
    module = called(node, root)
    if not isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return False
    return module.groups == module.in_channels == module.out_channels


def is_concat(node: fx.Node) -> bool:
    """Whether PLiNIO takes it for a concatenation of channels."""
    if node.op != "call_function" or node.target is not torch.cat:
        return False
    return bool((node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) == 1)


def channels(node: fx.Node) -> int:
    """Size of axis 1."""
    shape = node.meta.get("shape", ())
    return int(shape[1]) if len(shape) > 1 else 0


def _pieces(root: fx.GraphModule, *, cut_concats: bool) -> list[Piece]:
    """The graph in pieces, outputs and what they return apart."""
    parent: dict[fx.Node, fx.Node] = {}

    def find(node: fx.Node) -> fx.Node:
        while parent[node] is not node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    nodes = [node for node in root.graph.nodes if node.op != "output"]
    parent.update(zip(nodes, nodes, strict=True))
    for node in nodes:
        if makes_channels(node, root) or (cut_concats and is_concat(node)):
            continue
        for given in node.all_input_nodes:
            parent[find(given)] = find(node)
    grouped: dict[fx.Node, list[fx.Node]] = {}
    for node in nodes:
        grouped.setdefault(find(node), []).append(node)
    return [Piece(group, root) for group in grouped.values()]


def _mask_problems(piece: Piece, home: dict[fx.Node, Piece]) -> Iterator[Obstacle]:
    """What PIT cannot prune as one."""
    root, concats = piece.root, piece.concats
    sizes = piece.sizes
    first = (concats or piece.makers or piece.nodes)[0]
    if len(sizes) > 1:
        reason = f"values of {sorted(sizes)} channels meet, and would be pruned as one"
        yield obstacle(_meeting(piece) or first, root, (PIT,), reason)
        return
    if len(concats) > 1:
        reason = "two concatenations are added, and each is pruned by its own parts"
        yield obstacle(_meeting(piece) or concats[1], root, (PIT,), reason, refused=False)
    outward = any(user.op == "output" for node in piece.nodes for user in node.users)
    inward = any(node.op == "placeholder" for node in piece.nodes)
    if concats and (outward or inward):
        what = "an output" if outward else "an input"
        reason = f"{what} of the model has the channels of a concatenation, which are pruned"
        yield obstacle(concats[0], root, (PIT,), reason, refused=False)
    size = next(iter(sizes), None)
    for node in piece.depthwise:
        if channels(node) != size:
            reason = f"a depthwise convolution on {channels(node)} channels of a value of {size}"
            yield obstacle(node, root, (PIT, CHANNEL), reason)
    for node in _meetings(piece):
        given = {channels(each) for each in node.all_input_nodes if each.op != "get_attr"}
        if any(_is_part(each, piece) for each in node.all_input_nodes) and given != {size}:
            reason = f"parts of {sorted(given)} channels of a value of {size} meet"
            yield obstacle(node, root, (PIT,), reason, refused=False)
    masked = bool(piece.makers or piece.depthwise)
    for concat in concats:
        for part in concat.all_input_nodes:
            yield from _part_problems(concat, part, home[part], masked=masked)


def _picked_problems(piece: Piece) -> Iterator[Obstacle]:
    """Channels in another order, under the mask of the order before."""
    for node in piece.nodes:
        if node.target is not operator.getitem or not _is_list(node.args[1]):
            continue
        size = next(iter(piece.sizes), 0)
        index: Any = node.args[1]
        if max(index[1]) >= size:
            reason = f"it picks channels of which it knows no more than {size}"
            yield obstacle(node, piece.root, (PIT,), reason)
        pending, seen = [node], {node}
        while pending:
            for user in pending.pop().users:
                if user in seen or user not in piece.nodes:
                    continue
                seen.add(user)
                pending.append(user)
        behind = [n for n in piece.nodes if n in seen - {node}]
        meets = [n for n in behind if n in piece.depthwise or n in _meetings(piece)]
        if meets:
            reason = "its input has channels in another order, under the mask of the order before"
            yield obstacle(meets[0], piece.root, (PIT,), reason, "fold-permutations", refused=False)


def _is_list(index: object) -> bool:
    return isinstance(index, tuple) and len(index) > 1 and isinstance(index[1], list)


def _called_apart(root: fx.GraphModule, home: dict[fx.Node, Piece]) -> Iterator[Obstacle]:
    """Layers that are called in several pieces, whose masks others share: it has one of them."""
    calls: dict[nn.Module, list[fx.Node]] = {}
    for node in home:
        module = called(node, root)
        if isinstance(module, (*CONVS, nn.Linear)):
            calls.setdefault(module, []).append(node)
    for module, nodes in calls.items():
        pieces = {id(home[node]): home[node] for node in nodes}
        apart = len(pieces) > 1 and not all(_is_alone(module, each) for each in pieces.values())
        if apart or _reads_apart(nodes, home):
            reason = "it is called in several places, which are pruned each on its own"
            yield obstacle(nodes[0], root, (PIT,), reason, refused=False)


def _reads_apart(calls: list[fx.Node], home: dict[fx.Node, Piece]) -> bool:
    """Whether the inputs of a layer that is called again are pruned otherwise."""
    given = [home[node.all_input_nodes[0]] for node in calls]
    return len({id(piece) for piece in given}) > 1 and any(piece.is_pruned for piece in given)


def _is_alone(module: nn.Module, piece: Piece) -> bool:
    """Whether nothing but `module` has the mask of the piece."""
    makers = {called(node, piece.root) for node in piece.makers}
    outward = any(user.op == "output" for node in piece.nodes for user in node.users)
    return makers == {module} and not (piece.concats or piece.depthwise or outward)


def _part_problems(
    concat: fx.Node, part: fx.Node, piece: Piece, *, masked: bool
) -> Iterator[Obstacle]:
    """What PIT cannot put behind one another; `masked`: layers share the concatenation's mask."""
    if piece.concats:
        reason = "a concatenation of a concatenation"
        yield obstacle(concat, piece.root, (PIT,), reason, "-p merge-concats may join them")
    elif masked and piece.sizes != {channels(part)}:
        reason = (
            f"a part of {channels(part)} channels of a value of "
            f"{', '.join(map(str, sorted(piece.sizes))) or 'none'} is concatenated as it is"
        )
        yield obstacle(concat, piece.root, (PIT,), reason)


def _quantiser_problems(piece: Piece) -> Iterator[Obstacle]:
    """What MPS cannot quantise as one."""
    root = piece.root
    makers = [node for node in piece.makers if node.op != "placeholder"]
    needing = [*makers, *piece.depthwise]
    # A sum is one of theirs, of two values or of a value and a number.
    added = [node for node in piece.nodes if _adds(node)]
    if not makers and (piece.depthwise or added):
        reason = "nothing but the model's input stands in front of it"
        remedy = None if piece.depthwise else "do it to the data, before the model"
        yield obstacle((piece.depthwise or added)[0], root, MPS, reason, remedy)
    given = [node for node in piece.nodes if node.op == "placeholder"]
    if makers and given:
        reason = "the model's input is quantised as one with a layer that meets it"
        yield obstacle((_meetings(piece) or piece.concats or makers)[0], root, MPS, reason)
    sizes = {channels(node) for node in needing}
    if len(sizes) > 1:
        reason = f"layers of {sorted(sizes)} channels are quantised as one"
        yield obstacle(_meeting(piece) or makers[0], root, (CHANNEL,), reason)
    for node in needing:
        if isinstance(called(node, root), nn.Conv1d):
            yield obstacle(node, root, (CHANNEL,), "its export of a Conv1d fails")
            return


def _meetings(piece: Piece) -> list[fx.Node]:
    """Operations of two values that have the channels of the piece."""
    return [
        node
        for node in piece.nodes
        if sum(each.op != "get_attr" for each in node.all_input_nodes) > 1
        and not makes_channels(node, piece.root)
        and not is_concat(node)
    ]


def _meeting(piece: Piece) -> fx.Node | None:
    return next(iter(_meetings(piece)), None)


def _adds(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "") == "add"


def _is_part(node: fx.Node, piece: Piece) -> bool:
    return channels(node) not in piece.sizes
