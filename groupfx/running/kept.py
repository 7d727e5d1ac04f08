"""Parameters that a forward writes to, as they were before it."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from .watching import Watcher


class KeptParameters(Watcher):
    """Puts back, at the end of `with`, the values of parameters of `model` that were written to.

    A copy is made of those alone, just before the first write. One that was given another memory
    (`parameter.data = tensor`, which no operator shows) gets back its own.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._held: dict[int, Tensor] = {}
        self._own: list[tuple[nn.Parameter, Tensor]] = []
        self._moved: set[int] = set()
        for parameter in model.parameters():
            if parameter.layout is torch.strided and not parameter.is_meta:
                self._held[parameter.untyped_storage()._cdata] = parameter
                self._own.append((parameter, parameter.data))
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def seeing(self, func: OpOverload, args: Any, kwargs: Any) -> None:
        """Copy a parameter that the operator is about to write to."""
        for position, name in _written(func):
            value = args[position] if position < len(args) else kwargs.get(name)
            if isinstance(value, Tensor) and value.layout is torch.strided:
                place = value.untyped_storage()._cdata
                if place in self._held and place not in self._before:
                    held = self._held[place].detach()
                    self._before[place] = held, held.clone()

    def held_behind(self, value: object) -> Tensor | None:
        """The tensor of the model in whose memory `value` lies, if it is one and lies in one."""
        if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_meta:
            return None
        return self._held.get(value.untyped_storage()._cdata)

    def written(self, model: nn.Module) -> tuple[str, ...]:
        """Names of the parameters of `model` that were written to."""
        return tuple(
            name
            for name, parameter in model.named_parameters()
            if id(parameter) in self._moved
            or (
                self._before
                and parameter.layout is torch.strided
                and parameter.untyped_storage()._cdata in self._before
            )
        )

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        with torch.no_grad():
            for held, kept in self._before.values():
                held.copy_(kept)
        for parameter, own in self._own:
            if parameter.untyped_storage()._cdata != own.untyped_storage()._cdata:
                self._moved.add(id(parameter))
                parameter.data = own


@contextlib.contextmanager
def values_kept(models: Iterable[nn.Module], names: Collection[str]) -> Iterator[None]:
    """Put back, at the end, the values of the parameters of these names, and their memory."""
    kept = [
        (parameter, parameter.data, parameter.detach().clone())
        for model in (models if names else ())
        for name, parameter in model.named_parameters()
        if name in names
    ]
    try:
        yield
    finally:
        for parameter, own, values in kept:
            parameter.data = own.copy_(values)


@cache
def _written(func: OpOverload) -> tuple[tuple[int, str], ...]:
    return tuple(
        (position, argument.name)
        for position, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
