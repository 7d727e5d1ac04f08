"""Modules as constructor calls, each checked by making the call and comparing the result.

A module does not remember the arguments that it was made with; most keep them as attributes of the
same names. What comes out is only written once a module made with them is like the original.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from .. import nn as own
from ..convs.spec import original_type
from ..errors import RewriteError
from ..files.names import INTERNAL_FIELDS
from ..nn.marks import FROZEN_MARK, ORDER_MARK
from ..nn.masked_conv import MASKED
from . import plain
from .values import called, source, table

_BESIDE = {*INTERNAL_FIELDS, "training", FROZEN_MARK, ORDER_MARK}
_HOOKS = tuple(name for name in nn.Module().__dict__ if name.endswith("_hooks"))
_LONG = 60
_PLAIN: dict[type, type[nn.Module]] = {masked: conv for conv, masked in MASKED.items()}
_OWN: dict[type, Callable[[Any], tuple[type, dict[str, Any]]]] = {
    own.ChannelGather: lambda it: (plain.ChannelGather, {"channels": list(it.channels)}),
    own.ChannelTranspose: lambda it: (plain.ChannelGather, {"channels": _order(it)}),
    own.ChannelShuffle: lambda it: (plain.ChannelShuffle, {"groups": it.groups}),
    own.ConstantChannels: lambda it: (
        plain.ConstantChannels,
        {"channels": len(it.bias), "bias": bool(it._parameters)},
    ),
    own.TrainingMode: lambda it: (
        plain.TrainingMode,
        {"evaluated": it.evaluated, "trained": it.trained},
    ),
}


def _order(transpose: own.ChannelTranspose) -> list[int]:
    channels = torch.arange(math.prod(transpose.shape))
    return transpose(channels[None, :, None]).flatten().tolist()  # type: ignore[no-any-return]


class Layers:
    """Writes the constructor calls of one file, and knows what else stands in it.

    `imports` are statements, and the name that each brings. Numbers that are too long to stand in a
    call, and those of masks, go into tables, by keys of these.
    """

    def __init__(self) -> None:
        self.imports: dict[str, str] = {}
        self._needs: dict[Any, None] = {}
        self.masks: dict[str, str] = {}
        self._numbers: dict[str, str] = {}

    @property
    def names(self) -> set[str]:
        """Functions and classes that the file has or imports."""
        return {*self.imports.values(), *(found.__name__ for found in self._needs)}

    def text(self) -> str:
        """The code of `plain` that the file needs."""
        classes = [base for found in self._needs for base in _with_others(found)]
        return "\n\n\n".join(inspect.getsource(found).strip() for found in dict.fromkeys(classes))

    def tables(self) -> str:
        """The long lists of numbers that the calls need."""
        told = "Where weights are 0: each row as the bits of a number."
        numbers = table("NUMBERS", "Long lists, by the paths of what they are for.", self._numbers)
        return numbers + table("MASKS", told, self.masks)

    def need(self, found: Any) -> str:
        """The name of something in `plain`, which the file then holds."""
        self._needs[found] = None
        return str(found.__name__)

    def numbers(self, text: str, path: str) -> str:
        """What stands for a list of numbers: a long one goes into a table."""
        if len(text) <= _LONG:
            return text
        self._numbers[f"{path!r}:"] = text
        return f"NUMBERS[{path!r}]"

    def call(self, module: nn.Module, path: str) -> str:
        """`module`, which lies at `path`, as a call. Raises RewriteError if there is none."""
        kind = type(module)
        problem = _problem(module)
        if problem is not None:
            raise RewriteError(
                f"{path} ({original_type(module).__name__}) cannot be written as Python: {problem}"
            )
        if kind in _OWN:
            own_kind, fields = _OWN[kind](module)
            named = {name: self.numbers(source(value), path) for name, value in fields.items()}
            return called(self.need(own_kind), (), named)
        base = _PLAIN.get(kind, kind)
        needed = [name for name, p in _parameters(base).items() if p.default is p.empty]
        told = {name: source(part) for name, part in _arguments(module, path, base).items()}
        given = [told.pop(name) for name in needed if name in told]
        if kind not in _PLAIN:
            made = called(f"nn.{kind.__name__}", given, told)
            fixed = [repr(name) for name in ("weight", "bias") if name in module._buffers]
            return called(self.need(plain.fixed), [made, *fixed], {}) if fixed else made
        self.masks[f"{path!r}:"] = _bits(module.get_buffer("mask"), path)
        self.need(plain.mask_of)
        made = called(self.need(getattr(plain, kind.__name__)), given, told)
        return f"{made}.masked(MASKS[{path!r}])"


def _parameters(kind: type) -> Mapping[str, inspect.Parameter]:
    """The parameters of a constructor that a module can be asked for."""
    return {
        name: parameter
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in ("device", "dtype")
        and not name.startswith("_")
    }


def _bits(mask: torch.Tensor, path: str) -> str:
    if mask.dtype != torch.bool:
        raise RewriteError(f"{path} has a mask that multiplies, which is kept by -o alone")
    rows = (sum(1 << column for column in row.nonzero().flatten().tolist()) for row in mask)
    return f"[{', '.join(map(hex, rows))}]"


def _with_others(found: Any) -> list[Any]:
    """Something of `plain` behind what it is made of, in the order in which they must stand."""
    if isinstance(found, type):
        return [base for base in reversed(found.__mro__) if base.__module__ == plain.__name__]
    called = [getattr(plain, name, None) for name in found.__code__.co_names]
    return [*filter(inspect.isfunction, called), found]


def _problem(module: nn.Module) -> str | None:
    """Why a module cannot be written, whatever its arguments were, or None."""
    kind = type(module)
    for name in _HOOKS:
        if getattr(module, name):
            return f"it has {name.strip('_').replace('_', ' ')}, which a file cannot hold"
    if is_parametrized(module):
        return "its weight is computed by a parametrisation; remove_parametrizations stores it"
    if isinstance(module, own.Flgc1d | own.Flgc2d | own.Flgc3d):
        return "it still learns its groups; freeze-learned-groups makes plain layers of it"
    if kind not in _OWN and kind not in _PLAIN and getattr(nn, kind.__name__, None) != kind:
        return (
            "it is a class of its own in a graph; rewrite the model before it is traced, "
            "and the file changes the model itself"
        )
    return "its forward was put on the object itself" if "forward" in vars(module) else None


def _arguments(module: nn.Module, path: str, kind: type[nn.Module]) -> dict[str, Any]:
    """What the constructor of `kind` was given: attributes of the names of its parameters."""
    found = dict(_attributes(module, kind))
    short = {name: shortened(part) for name, part in found.items()}
    told = next((given for given in (short, found) if _makes(kind, given, module)), None)
    if told is None:
        raise RewriteError(
            f"{path} ({kind.__name__}) cannot be written as Python: a new one with the same "
            "arguments is another, so its fields were changed after it was made; make it with its "
            "right arguments"
        )
    for name in found:  # without those that make no difference
        fewer = {other: given for other, given in told.items() if other != name}
        told = fewer if _makes(kind, fewer, module) else told
    return told


def _attributes(module: nn.Module, kind: type[nn.Module]) -> Iterator[tuple[str, Any]]:
    for name, parameter in _parameters(kind).items():
        given = getattr(module, name, parameter.default)
        if name in module._parameters or name in module._buffers:
            given = given is not None  # made with or without a weight or a bias
        if not isinstance(given, torch.Tensor | nn.Module) and not inspect.ismethod(given):
            yield name, given


def _makes(kind: type[nn.Module], given: Mapping[str, Any], module: nn.Module) -> bool:
    """Whether these arguments make a module like `module`, but for the numbers."""
    try:
        # On meta, numbers are neither made nor drawn.
        with torch.device("meta"), warnings.catch_warnings():
            # What a constructor has to say was said when the model was made.
            warnings.simplefilter("ignore")
            twin = kind(**given)
    except Exception:
        # A constructor refuses what was found: then it was not that.
        return False
    ours, theirs = dict(twin.named_modules()), dict(module.named_modules())
    return list(ours) == list(theirs) and all(are_alike(ours[p], theirs[p]) for p in ours)


def shortened(given: Any) -> Any:
    """`3` for `(3, 3)`."""
    if isinstance(given, tuple) and given and all(part == given[0] for part in given):
        return given[0] if isinstance(given[0], int) else given
    return given


def are_alike(twin: nn.Module, module: nn.Module) -> bool:
    """Whether two modules are of one class, with the same fields and tensors of the same shapes.

    The numbers in the tensors do not count, nor do placement, precision and mode, nor what the user
    has put on the module beside its fields; a mask is written apart.
    """
    return (
        type(twin) is _PLAIN.get(type(module), type(module))
        and _tensors(twin) == _tensors(module)
        and all(
            repr(field) == repr(vars(module).get(name))
            for name, field in vars(twin).items()
            if name not in _BESIDE
        )
    )


def _tensors(module: nn.Module) -> list[object]:
    masks = {"mask"} if type(module) in _PLAIN else set()
    held = {**module._parameters, **module._buffers}
    shapes = {n: None if t is None else t.shape for n, t in held.items() if n not in masks}
    return [shapes, module._non_persistent_buffers_set - masks]
