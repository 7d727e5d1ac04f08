"""Spell a concatenation that is an output so that none of its channels can be pruned.

Before:  return cat([a, b], dim=1)                 a, b [N, C, H, W]
After:   return cat([a, b], dim=-3)

Axis -3 of four is axis 1. PLiNIO's PIT prunes the parts of a concatenation along `dim=1`, each on
its own, and would return fewer channels than before; what it does not take for a concatenation of
channels it takes for one value with its parts, and an output's channels stay. That holds where all
parts have the same number of channels, and nothing else is added to the value on its way out.
"""

from dataclasses import dataclass

import torch
from torch import fx, nn

from groupfx.rewriting import OperationPass, Place, Skip, Spelling, shape_of

from .merge_concats import is_channel_concat

_DEFINING = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class KeepOutputs(OperationPass):
    """Concatenated outputs keep their channels when PLiNIO's PIT prunes."""

    refuses = ("parts of different sizes", "outputs that are read on, or summed with others")

    def spell(self, place: Place) -> Spelling | Skip | None:
        node = place.node
        if not is_channel_concat(node) or place.shape is None:
            return None
        carriers = _carriers(place)
        if not any(user.op == "output" for each in carriers for user in each.users):
            return None
        parts = [value for value in node.args[0] if isinstance(value, fx.Node)]  # type: ignore[union-attr]
        sizes = {(shape_of(value) or (0, 0))[1] for value in parts}
        if len(sizes) > 1:
            return Skip(f"an output is concatenated of parts with {sorted(sizes)} channels")
        others = [
            other
            for each in carriers - {node}
            for other in each.all_input_nodes
            if other not in carriers and other.op != "get_attr"
        ]
        if others:
            return Skip(f"a concatenation meets {others[0]} on its way to an output")
        if any(_defines(place, user) for each in carriers for user in each.users):
            return Skip("an output that is concatenated is read by other layers as well")
        dim = 1 - len(place.shape)
        return Spelling(
            f"torch.cat(dim={dim})",
            tuple(dict.fromkeys(parts)),
            lambda: place.call(torch.cat, parts, dim=dim),
            same_piece=True,
        )


def _carriers(place: Place) -> set[fx.Node]:
    """The concatenation, and all values that have its channels."""
    found = {place.node}
    pending = [place.node]
    while pending:
        for user in pending.pop().users:
            if user in found or user.op == "output" or _defines(place, user):
                continue
            found.add(user)
            pending.append(user)
    return found


def _defines(place: Place, node: fx.Node) -> bool:
    """Whether it makes channels of its own."""
    if node.op != "call_module":
        return False
    module = place.root.get_submodule(str(node.target))
    return type(module) in _DEFINING and getattr(module, "groups", 1) == 1
