"""What `functools` keeps of the calls of a model, which must keep nothing of a trace."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any

from torch import nn


class Memories:
    """The `functools` caches of a model's classes and of the files that they are written in.

    While a trace runs, values of the graph get into them, which no later call could use.
    """

    def __init__(self, model: nn.Module) -> None:
        self._sizes = [(name, each, each.cache_info().currsize) for name, each in _caches(model)]

    def grown(self) -> str | None:
        """The name of one that holds more than before; None if none does. They are cleared."""
        found = [(n, each) for n, each, size in self._sizes if each.cache_info().currsize > size]
        for _, each in found:
            each.cache_clear()
        return found[0][0] if found else None


def _caches(model: nn.Module) -> Iterator[tuple[str, Any]]:
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    users = [kind for kind in kinds if not kind.__module__.startswith(("torch.", "builtins"))]
    files = {kind.__module__: sys.modules.get(kind.__module__) for kind in users}
    for holder in (*users, *filter(None, files.values())):
        for name, value in list(vars(holder).items()):
            if isinstance(value, functools._lru_cache_wrapper):
                yield name, value
