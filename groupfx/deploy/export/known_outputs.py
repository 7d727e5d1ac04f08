"""What a forward returns, in containers that `torch.export` knows.

It takes tuples, lists, dicts and named tuples, and refuses a dataclass or a class of the user's
that nobody told it of. To a graph they are the tensors in them, under the same names.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ...running.inputs import ExampleInputs
from ...tracing.exporting import Axes, export_program


def exported_program(
    model: nn.Module, inputs: ExampleInputs, axes: Axes, batch: int | None = 2
) -> torch.export.ExportedProgram:
    """As `export_program`, whatever containers the outputs are in."""
    with _opened(model):
        return export_program(model, inputs, axes, batch)


@contextlib.contextmanager
def _opened(model: nn.Module) -> Iterator[None]:
    hook = model.register_forward_hook(lambda _model, _inputs, output: known(output))
    try:
        yield
    finally:
        hook.remove()


def known(output: Any) -> Any:
    """An output as it is, where `torch.export` knows all its containers; else in ones it knows."""
    leaves = torch.utils._pytree.tree_leaves(output)
    return _plain(output) if any(parts_of(leaf) is not None for leaf in leaves) else output


def _plain(value: Any) -> Any:
    parts = parts_of(value)
    if parts is None:
        return value
    if isinstance(parts, Mapping):
        return {key: _plain(part) for key, part in parts.items()}
    return [_plain(part) for part in parts]


def parts_of(value: Any) -> Mapping[Any, Any] | list[Any] | None:
    """What a container holds, by name or by position; None for what is none."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, (tuple, list)):
        return list(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None
