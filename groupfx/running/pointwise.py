"""A convolution whose kernel is one point, as the matrix product over channels that it is.

For few positions torch takes many times as long for such a convolution as for the product: on maps
of 2 to 8 positions, with 2 million weights and one thread, 2 to 3 times in float64, 8 times in
float32, and 20 times backward. That is where the runs of a check spend their time, whose inputs are
small and whose weights are what they are.

In float64 torch runs a grouped convolution group by group, which takes long for a depthwise one:
there it is one product for all groups, of its weight and of what each position reads. Other groups
are added up as their branches are, so that a split agrees to the bit end to end too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_FIELDS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_RANKS: Mapping[Any, int] = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}

# With fewer weights the calls take longer than what they compute.
_LEAST = 2**14
# Of float64, half a megabyte.
_BLOCK = 2**16
# What the positions of a grouped convolution read: 32 megabytes of float64.
_MOST = 2**22


class Pointwise(TorchFunctionMode):
    """Context manager under which such convolutions are computed as products."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        product = product_of(func, args, named)
        return func(*args, **named) if product is None else product


def product_of(
    func: Any,
    args: tuple[Any, ...],
    named: Mapping[str, Any],
    widened: Callable[[Tensor], Tensor] | None = None,
) -> Tensor | None:
    """The value of a call that is such a convolution, contiguous; None for any other call.

    With `widened` the weight is taken a few rows at a time, each part of them as it gives it back,
    before the next: what is made of a part is still in the processor's own memory when it is read.
    Only the weight, and a bias, may be narrower than the data then.
    """
    rank = _RANKS.get(func)
    if rank is None:
        return None
    call = {**dict(zip(_FIELDS, args, strict=False)), **named}
    data, weight = call.get("input"), call.get("weight")
    if not isinstance(data, Tensor) or not isinstance(weight, Tensor):
        return None
    groups = call.get("groups", 1)
    if widened is not None and groups != 1 and tuple(weight.shape[:2]) == (groups, 1):
        return _depthwise(call, widened)
    if not _is_of_a_point(call, rank, groups):
        return None
    if groups == 1:
        return _of_a_point(call, rank, widened)
    return None if widened is None else _in_branches(call, rank, widened)


def _is_of_a_point(call: Mapping[str, Any], rank: int, groups: int) -> bool:
    """Whether each group is such a convolution, with weights enough."""
    data, weight, padding = call["input"], call["weight"], call.get("padding", 0)
    sizes = weight.shape
    if weight.numel() < _LEAST * groups or sizes[0] * sizes[1] != weight.numel():
        return False
    if padding not in (0, "same", "valid", *((0,) * n for n in (1, rank))):
        return False
    ranks = (rank + 1, rank + 2) if groups == 1 else (rank + 2,)
    return data.dim() in ranks and data.shape[-rank - 1] == sizes[1] * groups


def _of_a_point(
    call: Mapping[str, Any], rank: int, widened: Callable[[Tensor], Tensor] | None
) -> Tensor:
    data, weight, bias = call["input"], call["weight"], call.get("bias")
    for axis, step in enumerate(np.broadcast_to(call.get("stride", 1), rank).tolist()):
        data = data[(slice(None),) * (data.dim() - rank + axis) + (slice(None, None, step),)]
    data = data.movedim(-rank - 1, -1)
    # Of a matrix whose rows lie in one piece, forward and backward, the product takes a third.
    rows = data.reshape(-1, data.shape[-1]).contiguous()
    matrix = weight.flatten(1)
    if widened is None:
        product = F.linear(rows, matrix, bias)
    else:
        parts = matrix.split(max(_BLOCK // matrix.shape[1], 1))
        product = torch.cat([F.linear(rows, widened(part)) for part in parts], 1)
        product = product if bias is None else product.add_(bias)
    if product.requires_grad:
        product.register_hook(Tensor.contiguous)
    return product.view(*data.shape[:-1], weight.shape[0]).movedim(-1, -rank - 1).contiguous()


def _in_branches(call: Mapping[str, Any], rank: int, widened: Callable[[Tensor], Tensor]) -> Tensor:
    """A grouped convolution as the branches that a split makes of it."""
    groups, data, bias = call["groups"], call["input"], call.get("bias")
    biases = [None] * groups if bias is None else bias.chunk(groups)
    given = zip(data.chunk(groups, 1), call["weight"].chunk(groups), biases, strict=True)
    names = ("input", "weight", "bias")
    calls = [{**call, **dict(zip(names, each, strict=True)), "groups": 1} for each in given]
    return torch.cat([_of_a_point(each, rank, widened) for each in calls], 1)


def _depthwise(call: Mapping[str, Any], widened: Callable[[Tensor], Tensor]) -> Tensor | None:
    """A depthwise convolution of one or two dimensions as one product; None for others."""
    data, weight, bias, groups = call["input"], call["weight"], call.get("bias"), call["groups"]
    rank, padding = weight.dim() - 2, call.get("padding", 0)
    positions = data.shape[2:].numel() * weight.shape[2:].numel()
    if rank > 2 or data.dim() != rank + 2 or isinstance(padding, str):
        return None
    if not data.numel() or data.shape[1] != weight.shape[1] * groups:
        return None
    if data.shape[:2].numel() * positions > _MOST:
        return None
    options: dict[str, Any] = {}
    for name, value, flat in (
        ("kernel_size", tuple(weight.shape[2:]), 1),
        ("stride", call.get("stride", 1), 1),
        ("padding", padding, 0),
        ("dilation", call.get("dilation", 1), 1),
    ):
        options[name] = (*(flat,) * (2 - rank), *np.broadcast_to(value, rank).tolist())
    image = data if rank == 2 else data.unsqueeze(2)
    read = F.unfold(image, **options).unflatten(1, (groups, -1))
    product = torch.matmul(widened(weight).reshape(groups, weight.shape[0] // groups, -1), read)
    sizes = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(image.shape[2:], *options.values(), strict=True)
    ]
    found: Tensor = product.flatten(1, 2).unflatten(2, sizes[2 - rank :])
    return found if bias is None else found + bias.view(-1, *(1,) * rank)
