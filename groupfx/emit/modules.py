"""Modules as constructor calls, each checked by making the call and comparing the result.

A module does not remember the arguments that it was made with; most keep them as attributes of the
same names. What comes out is only written once a module made with them is like the original.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from ..convs.spec import original_type
from ..errors import RewriteError
from ..nn import (
    ChannelGather,
    ConstantChannels,
    Flgc1d,
    Flgc2d,
    Flgc3d,
)
from ..nn.marks import FROZEN_MARK, ORDER_MARK
from ..nn.masked_conv import MASKED
from .imports import Imports
from .templates import FIXED, LAYERS, MASKED_LAYER
from .text import call, indented, item, parsed, written
from .values import constant, value

_MARKS = {FROZEN_MARK, ORDER_MARK}
_INTERNAL = frozenset(nn.Module().__dict__) | {"_compiled_call_impl", "training"} | _MARKS
_HOOKS = tuple(name for name in nn.Module().__dict__ if name.endswith("_hooks"))
_PLAIN = {masked: plain for plain, masked in MASKED.items()}
_FEW = 16


@dataclass(frozen=True)
class _Made:
    """A class, and the arguments that it is called with; its parameters may become buffers."""

    kind: type[nn.Module]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    fixed: bool = False

    def twin(self, module: nn.Module) -> nn.Module | None:
        """What the call makes, without numbers; None where that is not like `module`."""
        try:
            # On meta, numbers are neither made nor drawn.
            with torch.device("meta"), warnings.catch_warnings():
                # What a constructor has to say was said when the model was made.
                warnings.simplefilter("ignore")
                twin = self.kind(*self.args, **self.kwargs)
        except Exception:
            # A constructor refuses what was found: then it was not that.
            return None
        ours, theirs = dict(twin.named_modules()), dict(module.named_modules())
        alike = list(ours) == list(theirs) and all(
            _are_alike(ours[path], theirs[path]) for path in ours
        )
        return twin if alike else None


def table(name: str, remark: str, rows: Mapping[str, Sequence[object]]) -> list[str]:
    """A dict of long lists of numbers, which no formatter sets one to a line.

    A row of one list is that list, of several values a tuple.
    """
    lines = ["", f"# {remark}", "# fmt: off", f"{name} = {{"]
    for key, values in rows.items():
        shown = ", ".join(repr(list(v)) if isinstance(v, tuple) else ascii(v) for v in values)
        whole = shown if len(values) == 1 else f"({shown})"
        lines += [
            f"    {written(ast.Constant(key))}:",
            *indented(textwrap.wrap(f"{whole},", 90), 2),
        ]
    return [*lines, "}", "# fmt: on"]


class Constructors:
    """Writes the constructor calls of one file; `sources` are the classes that they need."""

    def __init__(self, imports: Imports) -> None:
        self._imports = imports
        self.sources: dict[str, str] = {}
        self._orders: dict[str, Sequence[int]] = {}

    def tree(self, module: nn.Module, path: str) -> ast.expr:
        """`module`, which lies at `path`, as a call. Raises RewriteError if there is none."""
        kind = type(module)
        problem = _problem(module)
        if problem is not None:
            raise RewriteError(
                f"{path} ({original_type(module).__name__}) cannot be written as Python: {problem}"
            )
        if kind in _PLAIN:
            return self._masked(module, path)
        if kind not in LAYERS:
            return self._call(_made(module, path))
        name = self.own(kind.__name__, LAYERS[kind])
        if isinstance(module, ConstantChannels):
            bias: dict[str, Any] = {} if module._parameters else {"bias": False}
            return self._call(_Made(kind, (len(module.bias),), bias), name)
        if isinstance(module, ChannelGather):
            if len(module.channels) <= _FEW:
                return self._call(_Made(kind, (list(module.channels),), {}), name)
            self._orders[path] = module.channels
            return call(name, [item(parsed("ORDERS"), ast.Constant(path))])
        fields = inspect.signature(kind).parameters
        return self._call(_Made(kind, tuple(getattr(module, field) for field in fields), {}), name)

    def own(self, name: str, source: str) -> str:
        """A class of the file of that name and source."""
        if name not in self.sources:
            self._imports.free(name)
            self.sources[name] = source
        return name

    def tables(self) -> list[str]:
        """The long lists of numbers that the calls need, which no formatter sets one to a line."""
        if not self._orders:
            return []
        rows = {path: [tuple(channels)] for path, channels in self._orders.items()}
        return table("ORDERS", "The channels that each gather reads.", rows)

    def lines(self) -> list[str]:
        """The classes that the calls need."""
        sources = self.sources.values()
        return [line for source in sources for line in ("", "", *source.rstrip().split("\n"))]

    def _call(self, made: _Made, name: str | None = None) -> ast.expr:
        head = name or self._imports.callable(made.kind)
        named = {key: value(given, self._imports) for key, given in made.kwargs.items()}
        tree = call(head, [value(given, self._imports) for given in made.args], named)
        return call(self.own("fixed", FIXED), [tree]) if made.fixed else tree

    def _masked(self, module: nn.Module, path: str) -> ast.expr:
        plain = _PLAIN[type(module)]
        kind = plain.__name__
        name = self.own(f"Masked{kind}", MASKED_LAYER.format(kind=kind))
        made = self._call(_made(module, path, plain), name)
        mask = constant(module.get_buffer("mask"), f"{path}.mask", self._imports)
        return call(ast.Attribute(made, "masked"), [mask])


def _problem(module: nn.Module) -> str | None:
    """Why a module cannot be written, whatever its arguments were, or None."""
    for name in _HOOKS:
        if getattr(module, name):
            return f"it has {name.strip('_').replace('_', ' ')}, which a file cannot hold"
    if nn.utils.parametrize.is_parametrized(module) or isinstance(module, ParametrizationList):
        return "its weight is computed by a parametrisation; remove_parametrizations stores it"
    if isinstance(module, Flgc1d | Flgc2d | Flgc3d):
        return "it still learns its groups; freeze-learned-groups makes plain layers of it"
    own = type(module) in LAYERS or type(module) in _PLAIN
    if not own and not type(module).__module__.startswith("torch.nn."):
        return (
            "it is a class of its own in a graph; rewrite the model before it is traced, "
            "and the file changes the model itself"
        )
    if "forward" in vars(module):
        return "its forward was put on the object itself"
    return None


def _made(module: nn.Module, path: str, kind: type[nn.Module] | None = None) -> _Made:
    """The constructor of the module's class, with arguments from attributes of their names."""
    kind = kind or type(module)
    found = _from_signature(module, kind)
    short = _Made(kind, tuple(map(_shortened, found.args)), _each_shortened(found.kwargs))
    plain = module
    if kind is not type(module):  # the mask is written apart
        plain = module.__new__(kind)
        plain.__dict__.update(module.__dict__)
        plain._buffers, plain._non_persistent_buffers_set = {}, set()
    for made in (short, found):
        twin = made.twin(plain)
        if twin is not None:
            stored = [n for n, t in twin._parameters.items() if t is not None]
            fixed = [name for name in stored if name in plain._buffers]
            if fixed in ([], stored):
                return replace(_without_needless(made, plain), fixed=bool(fixed))
    raise RewriteError(
        f"{path} ({kind.__name__}) cannot be written as Python: a new one with the same arguments "
        "is another, so its fields were changed after it was made; make it with its right arguments"
    )


def _without_needless(made: _Made, module: nn.Module) -> _Made:
    """`made` without the arguments that make no difference."""
    for name in made.kwargs:
        fewer = {key: given for key, given in made.kwargs.items() if key != name}
        without = replace(made, kwargs=fewer)
        made = made if without.twin(module) is None else without
    return made


def _from_signature(module: nn.Module, kind: type[nn.Module]) -> _Made:
    required: list[Any] = []
    optional: dict[str, Any] = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if variadic or name in ("device", "dtype") or name.startswith("_"):
            continue
        if name in module._parameters or name in module._buffers:
            # A layer that was made with or without a weight or a bias.
            given: Any = getattr(module, name) is not None
        else:
            given = getattr(module, name, parameter.default)
        if isinstance(given, torch.Tensor | nn.Module) or inspect.ismethod(given):
            continue
        if parameter.default is parameter.empty:
            required.append(given)
        elif repr(_shortened(given)) != repr(parameter.default):
            optional[name] = given
    return _Made(kind, tuple(required), optional)


def _shortened(given: Any) -> Any:
    """`3` for `(3, 3)`."""
    if isinstance(given, tuple) and given and all(part == given[0] for part in given):
        return given[0] if isinstance(given[0], int) else given
    return given


def _each_shortened(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _shortened(part) for name, part in given.items()}


def _are_alike(twin: nn.Module, module: nn.Module) -> bool:
    """Whether two modules are of one class, with the same fields and tensors of the same shapes.

    The numbers in the tensors do not count, nor do placement, precision and mode, nor what the user
    has put on the module beside its fields.
    """

    def held(inner: nn.Module) -> list[object]:
        tensors = (*inner._parameters.items(), *inner._buffers.items())
        shapes = [(name, None if t is None else tuple(t.shape)) for name, t in tensors]
        return [sorted(shapes, key=str), sorted(inner._non_persistent_buffers_set)]

    other = vars(module)
    return (
        type(twin) is type(module)
        and held(twin) == held(module)
        and all(
            repr(field) == repr(other.get(name))
            for name, field in vars(twin).items()
            if name not in _INTERNAL
        )
    )
