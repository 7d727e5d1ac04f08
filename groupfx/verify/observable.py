"""Which sites can be seen at a model's outputs at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..running.inputs import ExampleInputs
from ..running.pointwise import Pointwise
from ..running.unchanged import evaluate, seed_torch, unchanged

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
    seen = observed_at(model, inputs, parameters)
    return dict.fromkeys(parameters) if seen is None else seen


def observed_at(
    model: nn.Module, inputs: ExampleInputs, parameters: Mapping[str, Sequence[str]]
) -> dict[str, bool | None] | None:
    """The same; None where the model does not run on these inputs."""
    seen = _Seen()
    ran = False
    wanted = {name for names in parameters.values() for name in names}
    try:
        with unchanged(model), torch.enable_grad(), _stand_ins(model, wanted, seen):
            evaluate(model)
            seed_torch(_SEED)
            with Pointwise():
                output = inputs.map(torch.clone).call(model)
            ran = True
            _backward(output)
    except Exception:  # that a model has no usable derivative is one of the answers
        return dict.fromkeys(parameters) if ran else None
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


@contextlib.contextmanager
def _stand_ins(model: nn.Module, wanted: set[str], seen: _Seen) -> Iterator[None]:
    """Put leaves that share their memory in place of all parameters, and watch the wanted ones.

    Buffers are replaced by copies: written to in a forward, they would become part of its history.
    Not `torch.func.functional_call`: where a module is registered under two names, that one leaves
    other parameters behind than it found.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    found = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
    ]
    leaves: dict[int, Tensor] = {}
    copies: dict[int, Tensor] = {}
    for _, _, parameter in found:
        if id(parameter) in leaves:
            continue
        leaf = leaves[id(parameter)] = parameter.detach()
        tied = names[id(parameter)]
        if wanted.intersection(tied) and (leaf.is_floating_point() or leaf.is_complex()):
            seen.watch(tied, leaf.requires_grad_())
    try:
        for module, name, parameter in found:
            module._parameters[name] = leaves[id(parameter)]  # type: ignore[assignment]
        for module in model.modules():
            for name, buffer in list(module._buffers.items()):
                if buffer is not None:
                    copies.setdefault(id(buffer), buffer.detach().clone())
                    module._buffers[name] = copies[id(buffer)]
        yield
    finally:
        for module, name, parameter in found:
            module._parameters[name] = parameter
        _refresh_recurrent(model)


def _refresh_recurrent(model: nn.Module) -> None:
    """Recurrent layers list their weights a second time, and renew the list in a forward only."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module._flat_weights = [getattr(module, n, None) for n in module._flat_weights_names]


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
