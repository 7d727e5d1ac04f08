"""The size of the input, where a model tells it: in its settings, its tensors, or by what fails.

A vision transformer's position embedding has one row a patch, and a linear layer behind a flatten
fits few sizes. Nothing in a network that ends in a global pooling tells.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..convs.spec import shape_of_weight

Sizes = tuple[int, ...]

_SETTINGS = ("image_size", "img_size", "input_size", "input_resolution", "input_shape")
_HOLDERS = ("config", "hparams", "pretrained_cfg", "default_cfg", "cfg", "args")
_LARGEST = 4096
# Class and distillation tokens, which are no patches.
_EXTRA_TOKENS = (0, 1, 2)
_MOST_TRIES = 24
_NEAR = 3


def told_sizes(model: nn.Module, stride: Sequence[int]) -> Iterator[tuple[Sizes, str]]:
    """Spatial sizes that `model` names, each with what names them; `stride` is its first layer's.

    They are to be tried: a setting may mean something else.
    """
    seen = set()
    for sizes, source in (*_set(model, len(stride)), *_embedded(model, stride)):
        if sizes not in seen and all(0 < size <= _LARGEST for size in sizes):
            seen.add(sizes)
            yield sizes, source


def _set(model: nn.Module, rank: int) -> Iterator[tuple[Sizes, str]]:
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch."):
            continue
        for holder in ("", *_HOLDERS):
            held = module if not holder else setting(module, holder)
            for name in _SETTINGS if held is not None else ():
                sizes = _as_sizes(setting(held, name), rank)
                if sizes is not None:
                    yield sizes, ".".join(part for part in (path, holder, name) if part)


def setting(held: Any, name: str) -> Any:
    """A setting of an object or a mapping; None where it has none, or does not give it."""
    with contextlib.suppress(Exception):  # a property of a user's may raise anything
        return held.get(name) if isinstance(held, Mapping) else getattr(held, name, None)
    return None


def _as_sizes(value: object, rank: int) -> Sizes | None:
    if type(value) is int:
        return (value,) * rank
    if not isinstance(value, (tuple, list)) or not all(type(size) is int for size in value):
        return None
    return tuple(value[-rank:]) if rank <= len(value) <= rank + 2 else None


def _embedded(model: nn.Module, stride: Sequence[int]) -> Iterator[tuple[Sizes, str]]:
    """Sizes of which a position embedding has one row for each patch."""
    rank = len(stride)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if "pos" not in name.lower() or tensor.dim() < 2:
            continue
        if tensor.dim() == rank + 2:
            yield tuple(n * s for n, s in zip(tensor.shape[2:], stride, strict=True)), name
        for extra in _EXTRA_TOKENS:
            side = round(max(tensor.shape[-2] - extra, 0) ** (1 / rank))
            if side > 1 and side**rank == tensor.shape[-2] - extra:
                yield tuple(side * step for step in stride), name


def fitted_sizes(
    model: nn.Module, run: Callable[[Sizes], None], rank: int, start: int
) -> Iterator[tuple[Sizes, str]]:
    """Sizes that a linear layer, or a norm over an area, takes, from how far off others were.

    `run` calls the model on inputs of a size, and fails. What is given is to be tried in turn: the
    next one depends on how that failed.
    """
    for power in (1 / rank, 1.0):
        size, tried = start, {start}
        while len(tried) < _MOST_TRIES:
            misfit = _misfit(model, lambda size=size: run((size,) * rank))  # type: ignore[misc]
            if misfit is None:
                break
            name, wanted, found = misfit
            guess = max(1, min(round(size * math.pow(wanted / found, power)), _LARGEST))
            near = range(max(1, guess - _NEAR), guess + _NEAR + 1)
            # Several may fit, since poolings round: the evenest is the one that was meant.
            even = sorted((-(one & -one), abs(one - guess), one) for one in near)
            fresh = next((one for *_, one in even if one not in tried), None)
            if fresh is None:
                break
            size = fresh
            tried.add(size)
            yield (size,) * rank, name


def _misfit(model: nn.Module, run: Callable[[], None]) -> tuple[str, int, int] | None:
    """Name of the layer that what `run` brings does not fit, what it takes and what came."""
    found: list[tuple[str, int, int]] = []

    def looking(name: str, wanted: int) -> Callable[[nn.Module, Any], None]:
        def look(_: nn.Module, given: Any) -> None:
            came = given[0].shape[-1] if given and isinstance(given[0], torch.Tensor) else wanted
            if came != wanted and came:
                found.append((name, wanted, came))

        return look

    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, (nn.Linear, nn.LayerNorm)):
                last = _last_size(module)
                stack.callback(module.register_forward_pre_hook(looking(name, last)).remove)
        with contextlib.suppress(Exception):  # it is known to fail
            run()
    return found[0] if found else None


def _last_size(module: nn.Linear | nn.LayerNorm) -> int:
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[-1]
    return shape_of_weight(module)[-1]
