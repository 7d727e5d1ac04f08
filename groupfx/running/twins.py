"""A model a second time, over the same tensors: what is assigned to it is not seen by the first."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def twin_tree(model: nn.Module) -> nn.Module:
    """The same tensors and attributes under new module objects; nothing is deep-copied.

    Containers among the attributes are copied one level deep, modules in them replaced by their
    twins, so that a forward that appends to a list changes the twin's list alone.
    """
    twins: dict[int, nn.Module] = {
        id(module): module.__class__.__new__(module.__class__)
        for module in model.modules()
        # What TorchScript holds lies out of Python's sight.
        if not isinstance(module, torch.jit.ScriptModule)
    }
    for module in model.modules():
        twin = twins.get(id(module))
        if twin is None:
            continue
        for name, value in module.__dict__.items():
            twin.__dict__[name] = _with_twins(value, twins)
    return twins.get(id(model), model)


def _with_twins(value: Any, twins: Mapping[int, nn.Module]) -> Any:
    """`value`, or a copy of it if it is a container, with twins in place of modules."""
    if isinstance(value, nn.Module):
        return twins.get(id(value), value)
    if not isinstance(value, (list, dict, set)):
        return value
    made = copy.copy(value)
    if isinstance(made, list):
        made[:] = [twins.get(id(item), item) for item in made]
    elif isinstance(made, dict):
        made.update({key: twins.get(id(item), item) for key, item in made.items()})
    return made
