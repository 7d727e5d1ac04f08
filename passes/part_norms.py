"""Part a BatchNorm from the layer in front of it, where others read that layer too.

Before:  y = conv(x);  z = bn(y);  r = y + ...           z = bn(conv(x));  s = z[:, 0:4]
After:   y = conv(x);  z = bn(identity(y));  r = y + ... z = identity(bn(conv(x)));  s = z[:, 0:4]

A tool that fuses a BatchNorm into the convolution directly in front of it must not do so where the
value between them is read by others as well (networks that activate first, dual paths), or where
the convolution is called elsewhere; PLiNIO stops there. Behind an Identity the BatchNorm is a layer
of its own. And PLiNIO exports a norm that it fused as a new layer, of which an index behind it
knows nothing; an Identity between them is there before and afterwards.
"""

import operator
from dataclasses import dataclass

from torch import fx, nn

from groupfx.convs.spec import BATCHNORMS
from groupfx.rewriting import OperationPass, Place, Spelling

_FUSED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class PartNorms(OperationPass):
    """A BatchNorm behind a layer that others read, or in front of an index, gets an Identity."""

    refuses = ("BatchNorm3d, which PLiNIO knows directly behind a convolution alone",)

    def spell(self, place: Place) -> Spelling | None:
        module, node = place.module, place.node
        if type(module) not in BATCHNORMS or isinstance(module, nn.BatchNorm3d):
            return None
        if len(node.all_input_nodes) != 1 or not node.args:
            return None
        (value,) = node.all_input_nodes
        if value.op != "call_module":
            return None
        layer = place.root.get_submodule(str(value.target))
        if type(layer) not in _FUSED:
            return None
        path = str(node.target)
        shared = len(value.users) > 1 or len(place.store.call_nodes(layer)) > 1
        if not shared and not any(user.target is operator.getitem for user in node.users):
            return None

        def emit() -> fx.Node:
            if not shared:
                normed = place.call_part(path, value)
                normed.meta["shape"] = place.shape
                return place.call_module(nn.Identity(), normed)
            parted = place.call_module(nn.Identity(), value)
            parted.meta["shape"] = value.meta.get("shape")
            return place.call_part(path, parted)

        told = "nn.Identity + nn.BatchNorm" if shared else "nn.BatchNorm + nn.Identity"
        return Spelling(told, (value,), emit)
