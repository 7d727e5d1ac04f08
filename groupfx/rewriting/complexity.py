"""How large a model is: convolutions, parameters, and multiply-accumulates of one sample."""

from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..calls import Unreadable, convs
from ..inputs import ExampleInputs, evaluate, unchanged
from .report import Totals


def totals(model: nn.Module, inputs: ExampleInputs | None) -> Totals:
    """Count `model`: what it calls as a graph, or its modules where it is not one.

    MACs are half of the floating-point operations that torch's own counter sees in one forward
    in eval mode, for one sample; None where there is no input to run.
    """
    groups = _groups(model)
    return Totals(
        convs=len(groups),
        grouped_convs=sum(count > 1 for count in groups),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        macs=None if inputs is None else _macs(model, inputs),
    )


def _groups(model: nn.Module) -> list[int]:
    """The groups of each convolution that is called."""
    if isinstance(model, fx.GraphModule):
        calls = convs(model).values()
        found = [c.groups if isinstance(c, Unreadable) else c.spec.groups for c in calls]
        return [count for count in found if count is not None]
    groups: list[int] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if module in inside:
            continue
        if isinstance(module, fx.GraphModule):
            inside.update(module.modules())
            groups += _groups(module)
            continue
        if isinstance(module, _ConvNd):
            groups.append(module.groups)
    return groups


def _macs(model: nn.Module, inputs: ExampleInputs) -> int:
    counter = _Flops()
    with unchanged(model), torch.no_grad(), counter:
        evaluate(model)
        inputs.call(model)
    return counter.total // (2 * max(inputs.batch or 1, 1))


class _Flops(TorchDispatchMode):
    """Adds up torch's own formulas; its `FlopCounterMode` would load the compiler as well."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=result))
        return result
