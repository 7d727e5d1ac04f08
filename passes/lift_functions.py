"""Turn calls of functions into calls of the modules that do the same.

Before:  y = F.adaptive_avg_pool2d(x, 1)
After:   y = pool(x)                         pool = nn.AdaptiveAvgPool2d(1)

    F.f(x, a, b) = M(a, b)(x)

for pooling, resizing, padding with a constant and activations, and for a dropout that asks for the
mode of the model, as its module does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from groupfx.rewriting import OperationPass, Place, Skip, Spelling, has_node

_POOL = ("input", "kernel_size", "stride", "padding")
_MAX = (*_POOL, "dilation", "ceil_mode", "return_indices")
_AVERAGE = (*_POOL, "ceil_mode", "count_include_pad", "divisor_override")
_SIZE = ("input", "output_size")
_DROPOUT = ("input", "p", "training", "inplace")
_INTERPOLATE = (
    "input",
    "size",
    "scale_factor",
    "mode",
    "align_corners",
    "recompute_scale_factor",
)

# Function -> module and the names of its arguments. `inplace` says nothing of the value.
_MODULES: dict[Callable[..., Any], tuple[type[nn.Module], tuple[str, ...]]] = {
    F.adaptive_avg_pool1d: (nn.AdaptiveAvgPool1d, _SIZE),
    F.adaptive_avg_pool2d: (nn.AdaptiveAvgPool2d, _SIZE),
    F.adaptive_avg_pool3d: (nn.AdaptiveAvgPool3d, _SIZE),
    F.adaptive_max_pool1d: (nn.AdaptiveMaxPool1d, _SIZE),
    F.adaptive_max_pool2d: (nn.AdaptiveMaxPool2d, _SIZE),
    F.avg_pool1d: (nn.AvgPool1d, _AVERAGE),
    F.avg_pool2d: (nn.AvgPool2d, _AVERAGE),
    F.avg_pool3d: (nn.AvgPool3d, _AVERAGE),
    F.max_pool1d: (nn.MaxPool1d, _MAX),
    F.max_pool2d: (nn.MaxPool2d, _MAX),
    F.max_pool3d: (nn.MaxPool3d, _MAX),
    torch.max_pool1d: (nn.MaxPool1d, _MAX),
    torch.max_pool2d: (nn.MaxPool2d, _MAX),
    F.interpolate: (nn.Upsample, _INTERPOLATE),
    F.relu6: (nn.ReLU6, ("input", "inplace")),
    F.silu: (nn.SiLU, ("input", "inplace")),
    F.hardtanh: (nn.Hardtanh, ("input", "min_val", "max_val", "inplace")),
    F.hardswish: (nn.Hardswish, ("input", "inplace")),
    F.hardsigmoid: (nn.Hardsigmoid, ("input", "inplace")),
    F.leaky_relu: (nn.LeakyReLU, ("input", "negative_slope", "inplace")),
    F.elu: (nn.ELU, ("input", "alpha", "inplace")),
    F.gelu: (nn.GELU, ("input", "approximate")),
    F.mish: (nn.Mish, ("input", "inplace")),
    F.softplus: (nn.Softplus, ("input", "beta", "threshold")),
    F.dropout: (nn.Dropout, _DROPOUT),
    F.dropout1d: (nn.Dropout1d, _DROPOUT),
    F.dropout2d: (nn.Dropout2d, _DROPOUT),
    F.dropout3d: (nn.Dropout3d, _DROPOUT),
    F.alpha_dropout: (nn.AlphaDropout, _DROPOUT),
}


@dataclass(frozen=True)
class LiftFunctions(OperationPass):
    """Functions of pooling, resizing and activation become modules."""

    refuses = ("arguments that forward computes", "pooling that gives indices as well")

    def spell(self, place: Place) -> Spelling | Skip | None:
        known = _MODULES.get(place.node.target) if place.node.op == "call_function" else None  # type: ignore[arg-type]
        if known is None:
            return None
        kind, names = known
        given = place.arguments(*names)
        value = given.pop("input", None)
        given.pop("inplace", None)
        if names is _DROPOUT:
            given["p"] = place.dropped(given.get("p", 0.5), given.pop("training", True))
            if given["p"] is None:
                return None
        if place.shape is None or not isinstance(value, torch.fx.Node):
            return Skip("its input is not one tensor")
        if given.pop("return_indices", False):
            return Skip("it gives indices as well")
        if given.pop("antialias", False):
            return Skip("nn.Upsample has no antialias")
        if has_node(tuple(given.values())):
            return Skip("its arguments are computed in forward; write them as numbers")
        # A list of a graph is one that nothing may change, and no field of a module.
        plain = {n: tuple(e) if isinstance(e, list) else e for n, e in given.items()}
        module = kind(**{name: each for name, each in plain.items() if each is not None})
        return Spelling(f"nn.{kind.__name__}", (value,), lambda: place.call_module(module, value))
