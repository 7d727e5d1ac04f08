"""What a user gives as a model, as a module: a compiled model, an exported program."""

import inspect
from typing import Any

import torch
from torch import nn

from ..convs.names import joined
from ..errors import ModelError, UsageError
from ..nn.swapped import is_compiled
from ..running.grouped_runs import at, place_of
from ..running.inputs import ExampleInputs
from ..running.weightless import without_fakes
from .exporting import as_exported_module


def module_of(model: object) -> tuple[nn.Module, tuple[str, ...]]:
    """The module that `model` is or holds, and a note where it is another object.

    Raises `UsageError` where there is none, and `ModelError` where torch cannot list its modules.
    """
    if isinstance(model, torch.export.ExportedProgram):
        return as_exported_module(model), ("the graph of an ExportedProgram, in its mode",)
    if not isinstance(model, nn.Module):
        raise UsageError(f"a model is a torch.nn.Module, not a {type(model).__name__}")
    _require_identities(model)
    if is_compiled(model):
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


def _require_identities(model: nn.Module) -> None:
    """Raise `ModelError` for modules that are compared by value, as those of a dataclass are.

    torch keeps modules in sets: it fails on such, or takes two that are equal for one.
    """
    pending, found = [("", model)], dict[int, tuple[str, nn.Module]]()
    while pending:
        path, module = pending.pop()
        if id(module) in found:
            continue
        found[id(module)] = path, module
        held = vars(module).get("_modules") or {}
        pending += [(joined(path, name), each) for name, each in held.items() if each is not None]
    others: dict[nn.Module, str] = {}
    for path, module in found.values():
        kind: Any = type(module)
        if kind.__hash__ is object.__hash__:
            continue
        if kind.__hash__ is None:
            what = "torch keeps modules in sets, and these have no hash"
        elif module in others:
            what = f"torch takes {others[module]} and {path} for one, as they are equal"
        else:
            others[module] = path
            continue
        raise ModelError(
            f"{path or 'the model'} ({kind.__name__}{at(_written(kind))}) is compared by value, "
            f"with an __eq__ of its class: {what}; compare by identity, such as with "
            "@dataclass(eq=False)"
        )


def _written(kind: type) -> str:
    """`file.py:12` of a class, or nothing where its source is not at hand."""
    try:
        return place_of(inspect.getfile(kind), inspect.getsourcelines(kind)[1])
    except (OSError, TypeError):
        return ""
