"""What torch's exporter translates operators to, read once a process.

For each export it reads the source of five hundred functions anew: a third of a second, which is
more than half of what a small model takes.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch


@contextlib.contextmanager
def translations_read_once() -> Iterator[None]:
    """While active, an export gets a copy of what the first one has read for its opset."""
    registry: Any = import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
    original = vars(registry)["from_torchlib"]

    def from_torchlib(cls: type, /, **options: Any) -> Any:
        # An operator is left out as long as nobody has imported what it is a part of.
        operators = frozenset(torch._C._dispatch_get_all_op_names())
        found = copy.copy(_read(original, cls, operators, **options))
        found.functions = {name: [*known] for name, known in found.functions.items()}
        return found

    registry.from_torchlib = classmethod(from_torchlib)
    try:
        yield
    finally:
        registry.from_torchlib = original


@lru_cache(maxsize=8)
def _read(original: Any, cls: type, operators: frozenset[str], **options: Any) -> Any:
    return original.__func__(cls, **options)
