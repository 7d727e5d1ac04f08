"""torch's own hooks that compute a weight before each forward, as plain data.

`torch.nn.utils.weight_norm`, `spectral_norm` and `prune` take the weight out of a module and put
it back from a forward pre-hook. Their state is a few numbers and tensors with known names, so a
module under them can be written. Any other hook is code of the user's.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import (
    SpectralNorm,
    SpectralNormLoadStateDictPreHook,
    SpectralNormStateDictHook,
)
from torch.nn.utils.weight_norm import WeightNorm

from ...nn import is_weight_hook
from ..names import Damaged, identifier


def tensor_name(hook: object) -> str | None:
    """Name of the tensor that `hook` computes; None if it is not one of torch's weight hooks."""
    name = getattr(hook, "_tensor_name", None) or getattr(hook, "name", None)
    return name if isinstance(name, str) and is_weight_hook(hook, name) else None


def describe(hook: object) -> dict[str, object]:
    """`hook` as plain data."""
    if isinstance(hook, WeightNorm):
        return {"kind": "weight_norm", "name": hook.name, "dim": hook.dim}
    if isinstance(hook, SpectralNorm):
        return {
            "kind": "spectral_norm",
            "name": hook.name,
            "dim": hook.dim,
            "n_power_iterations": hook.n_power_iterations,
            "eps": hook.eps,
        }
    return {"kind": "prune", "name": getattr(hook, "_tensor_name", None)}


def attach(module: nn.Module, data: object) -> None:
    """Put the hook that `data` describes on `module`. Raises `Damaged`.

    What pruned a tensor is not kept, only its mask: that is all that `forward` uses.
    """
    if not isinstance(data, Mapping):
        raise Damaged("a hook is no table")
    name = identifier(data.get("name"))
    if name in module.__dict__ or hasattr(type(module), name):
        raise Damaged(f"a hook computes {name!r}, which is something else")
    hook = _build(data, name)
    _check_shapes(hook, module, name)
    module.register_forward_pre_hook(hook)
    if isinstance(hook, SpectralNorm):
        module._register_state_dict_hook(SpectralNormStateDictHook(hook))
        module._register_load_state_dict_pre_hook(SpectralNormLoadStateDictPreHook(hook))
    setattr(module, name, _current(hook, module))


def _build(data: Mapping[str, Any], name: str) -> Any:
    kind, dim = data.get("kind"), data.get("dim")
    if kind == "prune":
        hook = prune.Identity()
        hook._tensor_name = name
        return hook
    if type(dim) is not int:
        raise Damaged("a hook has no dimension")
    if kind == "weight_norm":
        return WeightNorm(name, dim)
    iterations, eps = data.get("n_power_iterations"), data.get("eps")
    if kind != "spectral_norm" or type(iterations) is not int or type(eps) is not float:
        raise Damaged("a hook is not one of torch's")
    return SpectralNorm(name, iterations, dim, eps)


def _check_shapes(hook: Any, module: nn.Module, name: str) -> None:
    """Raise `Damaged` if the tensors of a hook would spread each other to a larger one."""
    if isinstance(hook, SpectralNorm):
        # Its vectors multiply the weight to one number.
        return
    large, small = ("v", "g") if isinstance(hook, WeightNorm) else ("orig", "mask")
    shape = getattr(module, f"{name}_{large}").shape
    if torch.broadcast_shapes(shape, getattr(module, f"{name}_{small}").shape) != shape:
        raise Damaged("the tensors of a hook do not fit each other")


def _current(hook: Any, module: nn.Module) -> Tensor:
    if isinstance(hook, SpectralNorm):
        weight = hook.compute_weight(module, do_power_iteration=False)
    elif isinstance(hook, BasePruningMethod):
        weight = hook.apply_mask(module)
    else:
        weight = hook.compute_weight(module)
    # Each forward computes it again; with a history, the module could not be deep-copied.
    return weight.detach()
