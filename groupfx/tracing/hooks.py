"""Hooks that users put on modules: which there are, and where they were written."""

import functools
from collections.abc import Iterable
from typing import Any

from torch import nn

from ..nn import is_weight_hook
from ..running.grouped_runs import place_of

_FIELDS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooked(module: nn.Module) -> list[str]:
    """The kinds of user hooks on `module`, legacy reparametrisations not counted.

    Such as `forward hooks: doubled (model.py:12)`.
    """
    found = []
    for field in _FIELDS:
        hooks = (getattr(module, field, None) or {}).values()
        own = [_described(hook) for hook in hooks if not (_recomputes(hook) or _is_exports(hook))]
        if own:
            found.append(f"{field.strip('_').replace('_', ' ')}: {', '.join(own)}")
    return found


def backward_hooked(model: nn.Module) -> str | None:
    """The first of the modules with hooks of the backward alone, and what they are."""
    for path, module in model.named_modules():
        for kind in hooked(module):
            if kind.startswith("backward"):
                return f"{path or 'the model'} has {kind}"
    return None


def lost_with(hooks: Iterable[str], *, kept: bool = False) -> str:
    """Why a module with these hooks stays as it is, and what to do.

    `kept` is whether the module is left in its place where the model is opened by its modules.
    """
    listed = "; ".join(dict.fromkeys(hooks))
    remedy = ", or open the model with way='modules', which keeps them" if kept else ""
    return f"it has hooks ({listed}), which would be lost; remove them first{remedy}"


def _is_exports(hook: object) -> bool:
    """Whether `torch.export` put it on what it made, to look at the inputs."""
    return str(getattr(hook, "__module__", "")).startswith("torch.export")


def _recomputes(hook: object) -> bool:
    return is_weight_hook(hook, str(getattr(hook, "name", getattr(hook, "_tensor_name", ""))))


def _described(hook: Any) -> str:
    """Name of a hook and the line where it was written; the module, where that is torch's."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    function = getattr(hook, "__func__", hook)
    name = getattr(function, "__qualname__", type(hook).__qualname__).rpartition("<locals>.")[2]
    code, module = getattr(function, "__code__", None), getattr(function, "__module__", "")
    if code is None or str(module).startswith("torch."):
        return f"{module or type(hook).__module__}.{name}"
    return f"{name} ({place_of(code.co_filename, code.co_firstlineno)})"


_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def state_hooks(module: nn.Module) -> list[str]:
    """Kinds of the user's hooks on the state of `module`: a branch has another, and would run them.

    Those that torch puts there belong to a reparametrisation.
    """
    found = []
    for name in _STATE_HOOKS:
        hooks = [getattr(held, "hook", held) for held in getattr(module, name).values()]
        origins = [getattr(hook, "__module__", None) or type(hook).__module__ for hook in hooks]
        if not all(origin.startswith("torch.") for origin in origins):
            found.append(name.strip("_").replace("_", " "))
    return found
