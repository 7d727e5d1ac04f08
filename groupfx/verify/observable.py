"""Which sites can be seen at a model's outputs at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..inputs import ExampleInputs, evaluate, unchanged

_SEED = 101


def observable_sites(
    model: nn.Module, inputs: ExampleInputs, parameters: Mapping[str, Sequence[str]]
) -> dict[str, bool | None]:
    """For each site, whether a small change of its parameters would change some output.

    One forward and one backward in eval mode and in the model's own dtype, with a random gradient
    at every output. A site is observable (True) if any element of any of its parameters gets a
    gradient that is not zero, not observable (False) if all that arrive are exactly zero. None:
    it cannot be told, because no gradient arrives, it is not finite, or the model cannot be run or
    differentiated.

    Args:
        model: left as it is: parameters and their `.grad`, buffers, modes, random generators.
        inputs: one call's arguments.
        parameters: for each site the full names of its parameters.
    """
    seen = _Seen()
    wanted = {name for names in parameters.values() for name in names}
    with unchanged(model), torch.enable_grad():
        evaluate(model)
        torch.manual_seed(_SEED)
        leaves = _leaves(model, wanted, seen)
        try:
            own = inputs.map(torch.clone)
            _backward(torch.func.functional_call(model, leaves, own.args, dict(own.kwargs)))
        except Exception:  # a model without a usable derivative is one of the answers
            return dict.fromkeys(parameters)
    return {site: seen.verdict(names) for site, names in parameters.items()}


class _Seen:
    """What gradients arrived at which parameters; the gradients themselves are dropped."""

    def __init__(self) -> None:
        self._found: dict[str, bool | None] = {}

    def watch(self, names: Sequence[str], leaf: Tensor) -> None:
        def look(tensor: Tensor) -> None:
            gradient, tensor.grad = tensor.grad, None
            if gradient is None:
                return
            finite = bool(torch.isfinite(gradient).all())
            found = bool((gradient != 0).any()) if finite else None
            self._found.update(dict.fromkeys(names, found))

        leaf.register_post_accumulate_grad_hook(look)

    def verdict(self, names: Sequence[str]) -> bool | None:
        found = [self._found.get(name) for name in names]
        if any(found):
            return True
        return None if not found or None in found else False


def _leaves(model: nn.Module, wanted: set[str], seen: _Seen) -> dict[str, Tensor]:
    """Stand-ins for all parameters (sharing their memory) and all buffers (copies)."""
    leaves: dict[str, Tensor] = {}
    made: dict[int, Tensor] = {}
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
        if id(parameter) not in made:
            made[id(parameter)] = parameter.detach()
        leaves[name] = made[id(parameter)]
    for tied in names.values():
        leaf = leaves[tied[0]]
        if wanted.intersection(tied) and (leaf.is_floating_point() or leaf.is_complex()):
            seen.watch(tied, leaf.requires_grad_())
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if id(buffer) not in made:
            made[id(buffer)] = buffer.detach().clone()
        leaves[name] = made[id(buffer)]
    return leaves


def _backward(output: Any) -> None:
    tensors = [t for t in _tensors(output) if t.requires_grad]
    if tensors:
        torch.autograd.backward(tensors, [torch.randn_like(tensor) for tensor in tensors])


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
