"""What a user gives as a model, as a module: a compiled model, an exported program."""

from typing import Any

import torch
from torch import nn

from ..errors import UsageError
from ..running.inputs import ExampleInputs
from ..running.weightless import without_fakes
from .exporting import as_exported_module


def module_of(model: object) -> tuple[nn.Module, tuple[str, ...]]:
    """The module that `model` is or holds, and a note where it is another object.

    Raises `UsageError` where there is none.
    """
    if isinstance(model, torch.export.ExportedProgram):
        return as_exported_module(model), ("the graph of an ExportedProgram, in its mode",)
    if not isinstance(model, nn.Module):
        raise UsageError(f"a model is a torch.nn.Module, not a {type(model).__name__}")
    kind = type(model)
    if kind.__name__ == "OptimizedModule" and kind.__module__.startswith("torch._dynamo"):
        inner: Any = model
        return inner._orig_mod, ("the model inside of torch.compile: compile the result again",)
    plain = without_fakes(model)
    return plain, () if plain is model else ("its tensors are fake: the result's lie on meta",)


def inputs_of(model: object) -> ExampleInputs | None:
    """The inputs that an exported program was made with; None for anything else."""
    if not isinstance(model, torch.export.ExportedProgram) or model.example_inputs is None:
        return None
    args, kwargs = model.example_inputs
    return ExampleInputs(tuple(args), kwargs)
