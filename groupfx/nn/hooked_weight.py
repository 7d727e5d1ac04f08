"""The weight of a convolution under one of torch's legacy reparametrisation hooks, as a module.

`torch.nn.utils.weight_norm`, `torch.nn.utils.spectral_norm` and `torch.nn.utils.prune` take the
weight out of a module, put other tensors in, and compute the weight in a forward pre-hook. A hook
cannot be a node of a graph, and the weight that it leaves behind cannot be deep-copied. This module
holds the same tensors under the same names and computes the same weight when it is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..errors import UsageError

_TENSORS = ("weight", "bias")
Kind = Literal["weight_norm", "spectral_norm", "prune"]

_PARAMETERS: Mapping[Kind, tuple[str, ...]] = {
    "weight_norm": ("g", "v"),
    "spectral_norm": ("orig",),
    "prune": ("orig",),
}
_BUFFERS: Mapping[Kind, tuple[str, ...]] = {
    "weight_norm": (),
    "spectral_norm": ("u", "v"),
    "prune": ("mask",),
}


class HookedWeight(nn.Module):
    """Computes one weight from the tensors that a legacy hook keeps. Takes no input.

    | kind            | tensors (the weight is called W) | weight                           |
    |-----------------|----------------------------------|----------------------------------|
    | `weight_norm`   | `W_g`, `W_v`                     | g v / norm(v) (over all but dim) |
    | `spectral_norm` | `W_orig`, buffers `W_u`, `W_v`   | orig / (u . orig v)              |
    | `prune`         | `W_orig`, buffer `W_mask`        | mask orig                        |

    In train mode each call of a `spectral_norm` improves `u` and `v` in place, as the hook does.
    The values and gradients are those of the hook, bit for bit.

    Args:
        kind: which of the three.
        parameters: the parameters of the table, and others (such as `bias`) that are only kept, so
            that the keys of the state_dict stay what they were; None for one that is absent.
        buffers: the buffers of the table.
        name: the name of the weight, W in the table.
        dim: the dimension of the output channels; -1 in a `weight_norm`: one norm over everything.
        n_power_iterations, eps: as in `torch.nn.utils.spectral_norm`.

    Raises UsageError for an unknown kind or a missing tensor.
    """

    def __init__(
        self,
        kind: Kind,
        parameters: Mapping[str, nn.Parameter | None],
        buffers: Mapping[str, Tensor],
        *,
        name: str = "weight",
        dim: int = 0,
        n_power_iterations: int = 1,
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            known = ", ".join(get_args(Kind))
            raise UsageError(f"HookedWeight: unknown kind {kind!r}; it can be one of {known}")
        _require(kind, _names(name, _PARAMETERS[kind]), parameters)
        _require(kind, _names(name, _BUFFERS[kind]), buffers)
        self.kind = kind
        self.name = name
        self.dim = dim
        self.n_power_iterations = n_power_iterations
        self.eps = eps
        for key, parameter in parameters.items():
            self.register_parameter(key, parameter)
        for key, buffer in buffers.items():
            self.register_buffer(key, buffer)

    @classmethod
    def from_module(cls, module: nn.Module, name: str = "weight") -> HookedWeight | None:
        """Take the weight `name` of `module` over, with the same Parameter and buffer objects.

        The module itself is left as it is. None if no legacy hook computes that weight, or if
        this class cannot stand in for it: the hook is a subclass that computes something else, or
        the module holds tensors besides the table's and a plain `bias` or `weight`.
        """
        hook = _hook_of(module, name)
        if hook is None:
            return None
        kind = _kind_of(hook)
        needed = _names(name, _PARAMETERS[kind])
        if set(module._parameters) - (set(_TENSORS) - {name}) != set(needed):
            return None
        if set(module._buffers) != set(_names(name, _BUFFERS[kind])):
            return None
        taken = cls(
            kind,
            module._parameters,
            {key: buffer for key, buffer in module._buffers.items() if buffer is not None},
            name=name,
            dim=getattr(hook, "dim", 0) if kind != "prune" else 0,
            n_power_iterations=getattr(hook, "n_power_iterations", 1),
            eps=getattr(hook, "eps", 1e-12),
        )
        return taken.train(module.training)

    def forward(self) -> Tensor:
        """The weight, in the shape of the convolution's weight."""
        weight: Tensor
        if self.kind == "weight_norm":
            weight = WeightNorm(self.name, self.dim).compute_weight(self)
        elif self.kind == "spectral_norm":
            norm = SpectralNorm(self.name, self.n_power_iterations, self.dim, self.eps)
            weight = norm.compute_weight(self, do_power_iteration=self.training)
        else:
            original = self.get_parameter(f"{self.name}_orig")
            weight = self.get_buffer(f"{self.name}_mask").to(original.dtype) * original
        return weight

    def extra_repr(self) -> str:
        options = {
            "weight_norm": f", dim={self.dim}",
            "spectral_norm": f", dim={self.dim}, n_power_iterations={self.n_power_iterations}"
            f", eps={self.eps}",
            "prune": "",
        }
        return f"{self.kind!r}, name={self.name!r}{options[self.kind]}"


def is_weight_hook(hook: object, name: str = "weight") -> bool:
    """Whether a forward pre-hook is a legacy one that `HookedWeight` can stand in for."""
    if isinstance(hook, BasePruningMethod):
        same = type(hook).apply_mask is BasePruningMethod.apply_mask
        called = type(hook).__call__ is BasePruningMethod.__call__
        return same and called and hook._tensor_name == name
    return type(hook) in (WeightNorm, SpectralNorm) and getattr(hook, "name", None) == name


def hooked_names(module: nn.Module) -> tuple[str, ...]:
    """Which tensors of a convolution legacy hooks compute."""
    hooks = module._forward_pre_hooks.values()
    return tuple(name for name in _TENSORS if any(is_weight_hook(hook, name) for hook in hooks))


def _hook_of(module: nn.Module, name: str) -> object | None:
    hooks = [hook for hook in module._forward_pre_hooks.values() if is_weight_hook(hook, name)]
    return hooks[0] if len(hooks) == 1 else None


def _kind_of(hook: object) -> Kind:
    if isinstance(hook, WeightNorm):
        return "weight_norm"
    return "spectral_norm" if isinstance(hook, SpectralNorm) else "prune"


def _names(name: str, suffixes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name}_{suffix}" for suffix in suffixes)


def _require(kind: Kind, names: tuple[str, ...], given: Mapping[str, Tensor | None]) -> None:
    missing = [name for name in names if given.get(name) is None]
    if missing:
        raise UsageError(f"HookedWeight({kind!r}) needs the tensors {', '.join(missing)}")
