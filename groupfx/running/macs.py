"""Multiply-accumulates of a forward, counted while it runs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils.flop_counter import conv_flop_count, flop_registry

from ..learned.groups import INPUT_SCORES, OUTPUT_SCORES, has_learned_groups
from .inputs import ExampleInputs
from .watching import Watcher

# torch 2.13 has a formula for it that wants an argument which it does not take.
_SLOW = torch.ops.aten._slow_conv2d_forward.default


class MacCounter(Watcher):
    """Counts the convolutions and matrix products that run inside `with`, by torch's own formulas.

    A layer that learns its groups makes its mask anew in each forward, as a matrix product of
    `[out, groups]` and `[groups, in]`: that is no work on a sample, and is not counted. torch's
    `FlopCounterMode` does the rest, and loads the compiler as well.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._flops = 0
        self._masks = {
            (*getattr(layer, OUTPUT_SCORES).shape, len(getattr(layer, INPUT_SCORES)))
            for layer in model.modules()
            if has_learned_groups(layer)
        }

    def of_one(self, inputs: ExampleInputs) -> int:
        """MACs of one sample: two floating-point operations each."""
        return self._flops // (2 * max(inputs.batch or 1, 1))

    def saw(self, func: OpOverload, args: Any, kwargs: Any, result: Any) -> None:
        """Add what one operator multiplies."""
        formula = flop_registry.get(func._overloadpacket)
        mask = func is torch.ops.aten.mm.default and (*args[0].shape, args[1].shape[1])
        if formula is None or mask in self._masks:
            return
        if func is _SLOW:
            self._flops += int(conv_flop_count(args[0].shape, args[1].shape, result.shape))
            return
        # One of sizes is wrapped into a search for tensors, which takes longer than small layers.
        of_sizes = getattr(formula, "__wrapped__", None)
        if of_sizes is None or not isinstance(result, Tensor):
            self._flops += int(formula(*args, **kwargs, out_val=result))
        else:
            named = {name: _size(value) for name, value in kwargs.items()}
            self._flops += int(of_sizes(*map(_size, args), **named, out_shape=result.shape))


def _size(value: object) -> object:
    return value.shape if isinstance(value, Tensor) else value
