"""How large a model is: convolutions, parameters, and multiply-accumulates of one sample."""

from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from ..convs.calls import Unreadable, convs
from .inputs import ExampleInputs
from .macs import MacCounter
from .unchanged import evaluate, unchanged


@dataclass(frozen=True)
class Totals:
    """Size of a model. `macs` counts convolutions and linear layers for one sample.

    `guessed` has the sizes of that sample, such as `224x224`, where they are a guess.
    """

    convs: int
    grouped_convs: int
    parameters: int
    macs: int | None
    guessed: str | None = None


@dataclass(frozen=True)
class Complexity:
    """Size before and after."""

    before: Totals
    after: Totals


def totals(model: nn.Module, inputs: ExampleInputs | None, *, macs: int | None = None) -> Totals:
    """Count `model`: what it calls as a graph, or its modules where it is not one.

    `macs` is what a run has counted already. Without it the model is run once in eval mode, and
    where there is no input either, or it does not run, its MACs are None.
    """
    groups = _groups(model)
    return Totals(
        convs=len(groups),
        grouped_convs=sum(count > 1 for count in groups),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        macs=_macs(model, inputs) if macs is None and inputs is not None else macs,
        guessed=None if inputs is None else inputs.guessed,
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
            groups.append(int(module.groups))
    return groups


def _macs(model: nn.Module, inputs: ExampleInputs) -> int | None:
    """None where the model does not run: what is wrong with it is for a check to say."""
    counter = MacCounter(model)
    with unchanged(model), torch.no_grad(), counter:
        evaluate(model)
        try:
            inputs.call(model)
        except Exception:
            return None
    return counter.of_one(inputs)
