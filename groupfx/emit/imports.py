"""What an emitted file imports, and under which name it calls a function or a class."""

from __future__ import annotations

import builtins
import functools
import importlib
import math
import operator
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..convs.names import joined
from ..errors import RewriteError
from .layout import WIDTH

# Where a function is looked for, and how it is then called, in this order.
_ROOMS: tuple[tuple[ModuleType, str], ...] = (
    (functional, "F"),
    (torch, "torch"),
    (nn, "nn"),
    (builtins, ""),
    (operator, "operator"),
    (math, "math"),
    (torch.linalg, "torch.linalg"),
    (torch.fft, "torch.fft"),
    (torch.special, "torch.special"),
)

# How a module of this name is imported. The first two lines of every file are among them.
_LINES = {
    "math": "import math",
    "operator": "import operator",
    "torch": "import torch",
    "F": "import torch.nn.functional as F",
    "nn": "from torch import nn",
}
_STANDARD = ("math", "operator")

# Names that only members of these modules may have.
_KEPT_FOR = {"Tensor": "torch", "OrderedDict": "collections", "Iterable": "collections.abc"}

# Names that code of an emitted file uses for itself; no variable may be called so.
RESERVED = frozenset({*dir(builtins), *_LINES, *_KEPT_FOR, "self", "Parts"})
# Variables of its loops; the argument of a function may be called so.
LOOP_NAMES = frozenset({"i", "conv", "bn", "branch", "kept", "owner"})


class Imports:
    """Collects the imports of one file, whose own names are `own`."""

    def __init__(self, own: Iterable[str] = ()) -> None:
        self._own = RESERVED.union(own)
        self._rooms: set[str] = set()
        self._members: dict[str, dict[str, str]] = {}
        self._taken: dict[str, tuple[str, str]] = {}

    @property
    def names(self) -> frozenset[str]:
        """Names that imported members have in the file."""
        return frozenset(self._taken)

    def module(self, name: str) -> str:
        """Import `torch`, `nn`, `F`, `math` or `operator`."""
        self._rooms.add(name)
        return name

    def member(self, module: str, name: str) -> str:
        """Import `name` from `module`; returns the name that it has in the file."""
        own = name
        count = 1
        while self._is_taken(own, module, name):
            count += 1
            own = f"{name}_{count}"
        self._taken[own] = (module, name)
        self._members.setdefault(module, {})[own] = name
        return own

    def _is_taken(self, own: str, module: str, name: str) -> bool:
        if own in self._own and (own != name or _KEPT_FOR.get(own) != module):
            return True
        return self._taken.get(own, (module, name)) != (module, name)

    def callable(self, function: Callable[..., Any]) -> str:
        """Source text that names `function`, a class included.

        Raises RewriteError for one that cannot be imported by name.
        """
        room, _, name = _known().get(id(function), "").rpartition(".")
        if name:
            if room:
                self.module(room.partition(".")[0])
            return joined(room, name)
        module, qualified = _importable(function)
        top, *rest = qualified.split(".")
        return ".".join([self.member(module, top), *rest])

    def lines(self) -> list[str]:
        """The import statements, sorted, standard library first."""
        standard = [_LINES[name] for name in _STANDARD if name in self._rooms]
        plain = [_LINES[name] for name in ("torch", "F") if name in self._rooms]
        members = {module: dict(names) for module, names in self._members.items()}
        if "nn" in self._rooms:
            members.setdefault("torch", {})["nn"] = "nn"
        own = [module for module in members if module.partition(".")[0] in sys.stdlib_module_names]
        standard += [_from(module, members.pop(module)) for module in sorted(own)]
        others = [_from(module, names) for module, names in sorted(members.items())]
        blocks = [block for block in (standard, [*plain, *others]) if block]
        return "\n\n".join("\n".join(block) for block in blocks).split("\n")


def _from(module: str, names: dict[str, str]) -> str:
    """One statement, and one for each member under another name."""
    ordered = sorted(names.items(), key=lambda pair: _order(pair[1]))
    plain = [name for own, name in ordered if own == name]
    lines = [f"from {module} import {', '.join(plain)}"] if plain else []
    if lines and len(lines[0]) > WIDTH:
        lines = [f"from {module} import (", *(f"    {name}," for name in plain), ")"]
    lines += [f"from {module} import {name} as {own}" for own, name in ordered if own != name]
    return "\n".join(lines)


def _order(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest, as import sorters have it."""
    if name.isupper() and len(name) > 1:
        return 0, name
    return (1 if name[:1].isupper() else 2), name


@functools.cache
def _known() -> dict[int, str]:
    """Name of each function of the rooms by its id; its own name goes before a second one."""
    found: dict[int, str] = {}
    for room, prefix in _ROOMS:
        for name in dir(room):
            value = getattr(room, name)
            if name.startswith("_") or not callable(value):
                continue
            # `functional` holds classes too, which it only uses.
            if room is functional and isinstance(value, type):
                continue
            full = f"{prefix}.{name}"
            if id(value) not in found or (
                getattr(value, "__name__", "") == name
                and found[id(value)].rpartition(".")[0] == prefix
            ):
                found[id(value)] = full
    return found


def _importable(function: Any) -> tuple[str, str]:
    """Module and qualified name of `function`, if importing them gives it."""
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", getattr(function, "__name__", None))
    shown = f"{module}.{name}" if name else repr(type(function).__name__)
    if not isinstance(module, str) or not isinstance(name, str):
        raise RewriteError(
            f"{shown} has no name to import it by, so it cannot be written as Python"
        )
    reached: Any = None
    parts = [*module.split("."), *name.split(".")]
    if (
        module != "__main__"
        and all(part.isascii() and part.isidentifier() for part in parts)
        and _on_path(module)
    ):
        reached = functools.reduce(
            lambda value, part: getattr(value, part, None), name.split("."), sys.modules.get(module)
        )
    if reached is not function:
        raise RewriteError(
            f"{shown} cannot be imported by that name, so a file that uses it cannot be written: "
            "put it into a module on the Python path"
        )
    return _shortest(module, name.partition(".")[0]), name


def _shortest(module: str, name: str) -> str:
    """The outermost package that offers the member `name` of `module`."""
    member = getattr(sys.modules[module], name)
    parts = module.split(".")
    packages = [".".join(parts[:count]) for count in range(1, len(parts))]
    return next((p for p in packages if getattr(sys.modules.get(p), name, None) is member), module)


def _on_path(module: str) -> bool:
    """Whether a fresh interpreter with this path would find the top package of `module`."""
    top = module.partition(".")[0]
    importlib.invalidate_caches()
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        if find is not None and find(top, None) is not None:
            return True
    return False
