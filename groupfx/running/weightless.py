"""Models without values: their tensors lie on the device `meta`, or are fake.

Such a model says all about its shapes and nothing about its numbers. It is run without any: what
an operator reads together with a tensor of `meta` counts as one, so that buffers that do have
values, and inputs on any device, go along.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Container, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_map

from ..convs.names import joined

_COMPARED = "each site was compared on drawn numbers, and no number of the model itself"
WHY = (
    f"the model has no values (its tensors lie on the device meta): {_COMPARED}; load the weights "
    "into the original and rewrite that to have them compared, or into the result through "
    "result.state_dict_map"
)
_FIRST = 3


def why_not_compared(model: nn.Module) -> str:
    """What to say of a model without values, or with tensors that have none among its others."""
    if all(map(_is_empty, model.parameters())):
        return WHY
    tensors = chain(model.named_parameters(), model.named_buffers())
    empty = [name for name, tensor in tensors if _is_empty(tensor)]
    more = f" and {len(empty) - _FIRST} more" if len(empty) > _FIRST else ""
    return (
        f"{', '.join(empty[:_FIRST])}{more} in the model: no values (on the device meta), so that "
        f"{_COMPARED}; give it values, or take it out if nothing reads it, and rewrite again"
    )


def is_weightless(model: nn.Module) -> bool:
    """Whether some tensor of `model` has no values."""
    return any(map(_is_empty, chain(model.parameters(), model.buffers())))


def _is_empty(value: object) -> bool:
    return isinstance(value, Tensor) and (value.is_meta or isinstance(value, FakeTensor))


def without_fakes(model: nn.Module) -> nn.Module:
    """`model`, or where its tensors are fake a copy of it with tensors of `meta` instead."""
    tensors = list(chain(model.parameters(), model.buffers()))
    fakes = {id(tensor): tensor for tensor in tensors if isinstance(tensor, FakeTensor)}
    if not fakes:
        return model
    return copy.deepcopy(model, {key: on_meta(tensor) for key, tensor in fakes.items()})


def on_meta(value: Any) -> Any:
    """A tensor as one of `meta`; anything else, and one that is there, as it is."""
    if not isinstance(value, Tensor) or (value.is_meta and not isinstance(value, FakeTensor)):
        return value
    if value.layout is not torch.strided:
        return value.detach().to("meta")
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return nn.Parameter(made, value.requires_grad) if isinstance(value, nn.Parameter) else made


def make_room(model: nn.Module, names: Container[str]) -> None:
    """Memory on the CPU for the tensors of these names that have none; what is tied stays tied."""
    made: dict[int, Tensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None or not tensor.is_meta or joined(path, name) not in names:
                    continue
                if id(tensor) not in made:
                    empty = torch.empty_like(tensor, device="cpu")
                    given = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if given else empty
                held[name] = made[id(tensor)]


class _OnMeta(TorchDispatchMode):
    """Takes every tensor that an operator reads together with one of `meta` for another of it."""

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        plain = not isinstance(func, HigherOrderOperator)
        if plain and tree_any(_is_empty, (args, kwargs)):
            args, kwargs = tree_map(on_meta, (args, kwargs))
            if "device" in kwargs:
                kwargs = {**kwargs, "device": torch.device("meta")}
        return func(*args, **kwargs)


@contextlib.contextmanager
def without_values(model: nn.Module) -> Iterator[None]:
    """Within it, a model without values runs; nothing changes for others."""
    if not is_weightless(model):
        yield
        return
    with _OnMeta():  # type: ignore[no-untyped-call]
        yield
