"""Whether two modules are made alike: fields, names and shapes of tensors, hooks and children.

The numbers in their parameters do not count, nor do placement, precision and train mode.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod

from ..nn import is_weight_hook
from ..nn.marks import FROZEN_MARK

Fingerprint = tuple[object, ...]

_INTERNAL = frozenset(nn.Module().__dict__) | {"_compiled_call_impl"}
_HOOKS = tuple(name for name in nn.Module().__dict__ if name.endswith("_hooks"))


@dataclass(frozen=True)
class Likeness:
    """What makes two modules differ, if anything, and what has to be changed to be alike.

    `fields` have to be set; the parameters `buffers` have to become buffers.
    """

    difference: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    buffers: tuple[str, ...] = ()


def fingerprint(module: nn.Module) -> Fingerprint:
    """A key that is the same for modules that are made alike."""
    fields = sorted(
        (name, repr(value)) for name, value in _fields(module).items() if not _is_tensor(value)
    )
    hooks = [tuple(id(hook) for hook in getattr(module, name).values()) for name in _HOOKS]
    children = [
        (name, None if child is None else fingerprint(child))
        for name, child in module._modules.items()
    ]
    own = holds_numbers(module)
    return (
        type(module),
        tuple(fields),
        tensors(module),
        tuple(hooks),
        tuple(children),
        id(module) if own else None,
    )


def holds_numbers(module: nn.Module) -> bool:
    """Whether `module` itself holds numbers that are in no state_dict."""
    fields = any(_is_tensor(value) for value in _fields(module).values())
    return fields or bool(module._non_persistent_buffers_set)


def compare(twin: nn.Module, module: nn.Module) -> Likeness:
    """How `twin`, made anew, is like `module`."""
    if not isinstance(twin, nn.Module) or not _same_type(twin, module):
        return Likeness(f"made anew it is a {type(twin).__name__}")
    buffers = tuple(name for name in module._buffers if twin._parameters.get(name) is not None)
    if tensors(twin, buffers) != tensors(module):
        return Likeness(
            f"made anew it holds the tensors {_shown(twin)}, and it holds {_shown(module)}"
        )
    difference = _hook_difference(twin, module) or _child_difference(twin, module)
    if difference is not None:
        return Likeness(difference)
    return _field_likeness(twin, module, buffers)


def _same_type(twin: nn.Module, module: nn.Module) -> bool:
    if nn.utils.parametrize.is_parametrized(module):
        # Each parametrised module has a class of its own.
        return type(twin).__bases__ == type(module).__bases__
    return type(twin) is type(module)


def tensors(module: nn.Module, buffers: tuple[str, ...] = ()) -> tuple[object, ...]:
    """Names, shapes and kinds; the parameters `buffers` count as buffers."""
    held = {
        ("parameter" if name in module._parameters and name not in buffers else "buffer", name): (
            None if tensor is None else tuple(tensor.shape)
        )
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
    }
    return tuple(sorted(held.items())), tuple(sorted(module._non_persistent_buffers_set))


def _shown(module: nn.Module) -> str:
    tensors = {**module._parameters, **module._buffers}
    shown = [f"{name} {list(t.shape)}" for name, t in tensors.items() if t is not None]
    return ", ".join(shown) or "none"


def _hook_difference(twin: nn.Module, module: nn.Module) -> str | None:
    for name in _HOOKS:
        ours, theirs = ([_hook(h) for h in getattr(m, name).values()] for m in (twin, module))
        if ours != theirs:
            return f"it has {name.strip('_').replace('_', ' ')}, which a file cannot hold"
    return None


def _hook(hook: Any) -> object:
    """What a hook does: a function is itself, torch's own reparametrisations have fields."""
    if isinstance(hook, BasePruningMethod) and is_weight_hook(hook, _weight_of(hook)):
        return "prune", _weight_of(hook)
    # torch wraps some hooks, and makes those of its own reparametrisations anew for each module.
    hook = getattr(hook, "hook", hook)
    if inspect.isfunction(hook) and hook.__module__.startswith("torch."):
        return hook.__module__, hook.__qualname__
    if not hasattr(hook, "__dict__") or not type(hook).__module__.startswith("torch."):
        return hook
    return type(hook), {k: v for k, v in vars(hook).items() if isinstance(v, str | int | float)}


def _weight_of(hook: Any) -> str:
    """The name of the weight that a legacy reparametrisation hook computes, if it is one."""
    return str(getattr(hook, "name", getattr(hook, "_tensor_name", "")))


def _child_difference(twin: nn.Module, module: nn.Module) -> str | None:
    if list(twin._modules) != list(module._modules):
        return f"made anew it has the children {list(twin._modules)}, not {list(module._modules)}"
    for name, child in module._modules.items():
        other = twin._modules[name]
        if child is None or other is None:
            if child is not other:
                return f"one of the two has no {name}"
            continue
        likeness = compare(other, child)
        if likeness.difference is not None or likeness.fields or likeness.buffers:
            differing = ", ".join((*likeness.fields, *likeness.buffers))
            return f"{name}: {likeness.difference or f'other values of {differing}'}"
    return None


def _field_likeness(twin: nn.Module, module: nn.Module, buffers: tuple[str, ...]) -> Likeness:
    own, other = _fields(module), _fields(twin)
    fields = {}
    for name, value in own.items():
        if name not in other:
            # A plain remark of the user changes nothing; a function may take a method's place.
            if callable(value):
                return Likeness(f"its {name} was put on the object itself")
            if name == FROZEN_MARK:
                fields[name] = value
            continue
        if _equal(other[name], value):
            continue
        if not _is_plain(value):
            return Likeness(f"made anew it has another {name}")
        fields[name] = value
    return Likeness(fields=fields, buffers=buffers)


def _fields(module: nn.Module) -> dict[str, Any]:
    hooks = module._forward_pre_hooks.values()
    computed = {_weight_of(hook) for hook in hooks if is_weight_hook(hook, _weight_of(hook))}
    left_out = _INTERNAL | computed
    return {
        name: value
        for name, value in vars(module).items()
        if name not in left_out and not _repeats_tensors(value)
    }


def _repeats_tensors(value: object) -> bool:
    """Whether a field is a list of the module's own tensors, as recurrent layers keep one."""
    if not isinstance(value, list) or not value:
        return False
    return all(item is None or isinstance(item, torch.Tensor | weakref.ref) for item in value)


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _equal(ours: Any, theirs: Any) -> bool:
    if ours is theirs:
        return True
    if isinstance(ours, torch.Tensor) or isinstance(theirs, torch.Tensor):
        return _equaltensors(ours, theirs)
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(_equal, ours, theirs))
    try:
        return bool(ours == theirs)
    except Exception:
        # A foreign type that cannot be compared is not known to be equal.
        return False


def _equaltensors(ours: Any, theirs: Any) -> bool:
    if not _is_tensor(ours) or not _is_tensor(theirs) or ours.shape != theirs.shape:
        return False
    return not ours.is_meta and not theirs.is_meta and torch.equal(ours, theirs)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
