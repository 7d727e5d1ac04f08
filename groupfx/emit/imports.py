"""What an emitted file imports, and under which name it calls a function or a class."""

from __future__ import annotations

import builtins
import functools
import importlib
import math
import operator
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..convs.names import joined
from ..errors import RewriteError
from .text import free, is_name

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
# Those of them that are not used are dropped when the file is finished.
_ALWAYS = (
    "import copy",
    "import math",
    "import operator",
    "import torch",
    "import torch.nn.functional as F",
    "from collections.abc import Sequence",
    "from torch import Tensor, nn",
)

# Names that code of an emitted file uses for itself; no argument or class may be called so.
RESERVED = frozenset(
    {
        "copy",
        "math",
        "operator",
        "torch",
        "F",
        "Tensor",
        "nn",
        "self",
        "Sequence",
        "ORDERS",
        "super",
    }
)


class Imports:
    """Collects the imports of one file."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}
        self.taken = set(RESERVED)

    def callable(self, function: Callable[..., Any]) -> str:
        """Source text that names `function`, a class included.

        Raises RewriteError for one that cannot be imported by name.
        """
        known = _known().get(id(function))
        if known is not None:
            return known
        module, qualified = _importable(function)
        top, *rest = qualified.split(".")
        line = f"from {module} import {top}"
        if line not in self._lines:
            self._lines[line] = self.free(top)
        own = self._lines[line]
        return ".".join([own, *rest])

    def free(self, name: str) -> str:
        """`name`, with a number where the file has something else of that name; it is taken."""
        found = free((name,), self.taken.union(dir(builtins)))
        self.taken.add(found)
        return found

    def lines(self) -> list[str]:
        """The import statements, in any order."""
        named = (
            line if line.endswith(f" {own}") else f"{line} as {own}"
            for line, own in self._lines.items()
        )
        return [*_ALWAYS, *named]


@functools.cache
def _known() -> dict[int, str]:
    """Name of each function of the rooms by its id; its own name goes before a second one."""
    found: dict[int, str] = {}
    for room, prefix in _ROOMS:
        for name in dir(room):
            value = getattr(room, name)
            # `functional` holds classes too, which it only uses.
            stranger = room is functional and isinstance(value, type)
            if name.startswith("_") or not callable(value) or stranger:
                continue
            own = getattr(value, "__name__", "") == name
            if id(value) not in found or (own and found[id(value)].startswith(f"{prefix}.")):
                found[id(value)] = joined(prefix, name)
    return found


def _importable(function: Any) -> tuple[str, str]:
    """Module and qualified name of `function`, if importing them gives it."""
    module = str(getattr(function, "__module__", None))
    name = str(getattr(function, "__qualname__", getattr(function, "__name__", "?")))
    if module.partition(".")[0] == "groupfx":
        raise RewriteError(
            f"{module}.{name} is a part of groupfx, and the file is to run without it: "
            "write the model with -o instead"
        )
    found = sys.modules.get(module) if module != "__main__" and _on_path(module) else None
    for step in name.split("."):
        found = getattr(found, step, None) if is_name(step) else None
    if found is not function:
        raise RewriteError(
            f"{module}.{name} cannot be imported by that name, so a file that uses it cannot be "
            "written: put it into a module on the Python path"
        )
    return module, name


def _on_path(module: str) -> bool:
    """Whether a fresh interpreter with this path would find the top package of `module`."""
    importlib.invalidate_caches()
    finders = [getattr(finder, "find_spec", None) for finder in sys.meta_path]
    top = module.partition(".")[0]
    return any(find is not None and find(top, None) is not None for find in finders)
