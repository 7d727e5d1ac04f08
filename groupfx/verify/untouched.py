"""Whether a model is still what it was: the check that a rewrite left the caller's model alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@dataclass(frozen=True)
class Fingerprint:
    """What a model looked like: digests of its tensors, and its modules with their modes and hooks.

        before = Fingerprint.of(model)
        ...
        changes = before.changes(model)     # () if nothing changed

    It holds no copy of any tensor.
    """

    tensors: Mapping[str, tuple[object, ...]]
    modules: Mapping[str, tuple[object, ...]]

    @classmethod
    def of(cls, model: nn.Module) -> Fingerprint:
        """Read every byte of every parameter and buffer (about a second a gigabyte)."""
        named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        named.update(model.named_buffers(remove_duplicate=False))
        digests: dict[int, tuple[object, ...]] = {}
        for tensor in named.values():
            if id(tensor) not in digests:
                digests[id(tensor)] = _digest(tensor)
        return cls(
            {name: digests[id(tensor)] for name, tensor in named.items()},
            {name: _look(module) for name, module in model.named_modules(remove_duplicate=False)},
        )

    def changes(self, model: nn.Module) -> tuple[str, ...]:
        """Names of the parameters, buffers and modules that are new, gone or different."""
        after = Fingerprint.of(model)
        return tuple(
            name or "the model itself"
            for old, new in ((self.tensors, after.tensors), (self.modules, after.modules))
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        )


def _digest(tensor: Tensor) -> tuple[object, ...]:
    facts = (id(tensor), tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad)
    if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
        return (*facts, tensor._version)
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return (*facts, hashlib.blake2b(flat.numpy().data, digest_size=16).digest())


def _look(module: nn.Module) -> tuple[object, ...]:
    hooks = tuple(len(getattr(module, name, None) or ()) for name in _HOOKS)
    return id(module), type(module), getattr(module, "training", None), hooks
