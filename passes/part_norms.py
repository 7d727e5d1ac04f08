"""Part a BatchNorm from the layer in front of it, where others read that layer too.

Before:  y = conv(x);  z = bn(y);  r = y + ...
After:   y = conv(x);  z = bn(identity(y));  r = y + ...

A tool that fuses a BatchNorm into the convolution directly in front of it must not do so where the
value between them is read by others as well (networks that activate first, dual paths), or where
the convolution is called elsewhere; PLiNIO stops there. Behind an Identity the BatchNorm is a layer
of its own.
"""

from dataclasses import dataclass

from torch import nn

from groupfx.convs.spec import BATCHNORMS
from groupfx.rewriting import OperationPass, Place, Spelling

_FUSED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class PartNorms(OperationPass):
    """A BatchNorm behind a layer that others read gets an Identity in front of it."""

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
        shared = len(value.users) > 1 or len(place.store.call_nodes(layer)) > 1
        if type(layer) not in _FUSED or not shared:
            return None
        path = str(node.target)

        def emit() -> object:
            parted = place.call_module(nn.Identity(), value)
            parted.meta["shape"] = value.meta.get("shape")
            return place.call_part(path, parted)

        return Spelling("nn.Identity + nn.BatchNorm", (value,), emit)  # type: ignore[arg-type]
