"""A call that makes a module, as data: it can be made, and it can be written as source."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..convs.spec import original_type
from ..errors import RewriteError
from .constants import constant
from .imports import Imports
from .layout import Doc, call
from .literals import literal, named_arguments

# Where and in what precision a module lies is said once for the whole model.
_PLACEMENT = ("device", "dtype")


@dataclass(frozen=True, eq=False)
class Numbers:
    """The very numbers of a tensor as an argument."""

    tensor: torch.Tensor

    def doc(self, imports: Imports) -> Doc:
        """The tensor as source."""
        return constant(self.tensor, "a tensor in it", imports)


@dataclass(frozen=True)
class Made:
    """A call that makes a module, or an attribute (a dotted path) of what a call makes.

    Arguments are values, or other `Made` ones, or `Numbers`. `method` names a method of `function`,
    a class, that is called instead of it.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    attribute: str | None = None
    method: str | None = None

    def build(self) -> Any:
        """Make the call."""
        args = [_built(value) for value in self.args]
        kwargs = {name: _built(value) for name, value in self.kwargs.items()}
        made = functools.reduce(getattr, self._steps(), self.function)(*args, **kwargs)
        path = self.attribute.split(".") if self.attribute else []
        return functools.reduce(getattr, path, made)

    def doc(self, imports: Imports) -> Doc:
        """The call as source."""

        def write(value: Any) -> Doc:
            return literal(value, imports, other)

        def other(value: Any) -> Doc | None:
            return value.doc(imports) if isinstance(value, Made | Numbers) else None

        named = {name: write(value) for name, value in self.kwargs.items()}
        arguments = [*(write(value) for value in self.args), *named_arguments(named)]
        head = ".".join([imports.callable(self.function), *self._steps()])
        made = call(head, arguments)
        return made if self.attribute is None else Doc(f"{made.flat}.{self.attribute}")

    def _steps(self) -> list[str]:
        return [] if self.method is None else [self.method]


def _built(value: Any) -> Any:
    if isinstance(value, Made):
        return value.build()
    if isinstance(value, Numbers):
        return value.tensor.detach().clone()
    if isinstance(value, dict):
        return {key: _built(item) for key, item in value.items()}
    return value


def from_signature(module: nn.Module) -> Made:
    """The constructor of the module's class, with arguments from attributes of their names."""
    kind = original_type(module)
    required: list[Any] = []
    optional: dict[str, Any] = {}
    by_name = False
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        needed = parameter.default is parameter.empty
        if name in _PLACEMENT and not needed:
            continue
        found, value = _argument(module, name)
        if not found and needed:
            raise RewriteError(
                f"its constructor needs {name!r}, and it has no attribute of that name"
            )
        if not found:
            continue
        by_name = by_name or not needed or parameter.kind is parameter.KEYWORD_ONLY
        if by_name:
            optional[name] = value
        else:
            required.append(value)
    return Made(kind, tuple(required), optional)


def _argument(module: nn.Module, name: str) -> tuple[bool, Any]:
    """Whether the attribute `name` can stand for the argument, and its value."""
    if name in module._parameters:
        # A layer that was made with or without a weight or a bias.
        return True, module._parameters[name] is not None
    if name in module._modules and module._modules[name] is not None:
        return False, None
    value = getattr(module, name, None)
    if isinstance(value, torch.Tensor) or not hasattr(module, name):
        return False, None
    return not inspect.ismethod(value), value
