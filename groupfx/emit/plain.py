"""What emitted files hold as it stands here: a file gets the text of those that it calls.

All of it is plain torch, and each asks for nothing but what a file imports.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def in_branches(x: Tensor, convs: Sequence[nn.Conv2d], norms: Sequence[nn.Module] = ()) -> Tensor:
    """Each convolution on the next channels of `x`, with the norm behind it, put together."""
    parts, start = [], 0
    for conv in convs:
        stop = start + conv.in_channels
        parts.append(conv(x[:, start:stop]))
        start = stop
    parts = [norm(part) for norm, part in zip(norms, parts, strict=True)] if len(norms) else parts
    return torch.cat(parts, dim=1)


def in_slices(
    conv: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: Sequence[int],
    sizes: tuple[int, int, int],
    norms: Sequence[nn.Module] = (),
    **options: object,
) -> Tensor:
    """A convolution for each entry of `groups`, on slices of the input and of what is one weight.

    `sizes` are those of one group: channels of `x`, rows of the weight, rows of the bias.
    """
    parts, start = [], 0
    for n in groups:
        own, rows, offsets = (slice(start * size, (start + n) * size) for size in sizes)
        given = (x[:, own], weight[rows], None if bias is None else bias[offsets])
        parts.append(conv(*given, groups=n, **options))
        start += n
    parts = [norm(part) for norm, part in zip(norms, parts, strict=True)] if len(norms) else parts
    return torch.cat(parts, dim=1)


class InSlices(TorchFunctionMode):
    """Takes calls of a grouped convolution as calls on slices, a branch for each of `groups`."""

    def __init__(self, groups: Sequence[int]) -> None:
        super().__init__()
        self.groups = groups

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        names = ["input", "weight", "bias", "stride", "padding", "dilation", "groups"]
        transposed = func in (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
        if transposed:
            names[5:] = ["output_padding", "groups", "dilation"]
        given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        known = transposed or func in (F.conv1d, F.conv2d, F.conv3d)
        total = sum(self.groups)
        if not known or given.pop("groups", 1) != total:
            return func(*args, **(kwargs or {}))
        x, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)
        rows, columns = weight.shape[0] // total, weight.shape[1]
        sizes = (rows, rows, columns) if transposed else (columns, rows, rows)
        return in_slices(func, x, weight, bias, self.groups, sizes, **given)


class CallsInSlices(nn.Module):
    """The forward of a module that makes inputs or weights of convolutions itself."""

    branches: Sequence[int]

    def forward(self, *args: object, **kwargs: object) -> object:
        with InSlices(self.branches):
            return super().forward(*args, **kwargs)


def cut(tensor: Tensor, groups: Sequence[int]) -> list[Tensor]:
    """Copies of the rows of a tensor, in proportion to `groups`; a number goes to each."""
    if not tensor.dim():
        return [tensor.clone() for _ in groups]
    size = len(tensor) // sum(groups)
    return [rows.clone() for rows in tensor.split([size * n for n in groups])]


def in_parts(
    module: nn.Module, groups: Sequence[int], known: dict[Tensor, list[Tensor]]
) -> list[nn.Module]:
    """A convolution or a BatchNorm as several; `known` are the rows of what was cut before."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    parts = [copy.deepcopy(module, {id(t): t for _, t in tensors}) for _ in groups]
    for name, tensor in tensors:
        if tensor not in known:
            known[tensor] = cut(tensor.detach(), groups)
            if isinstance(tensor, nn.Parameter):
                known[tensor] = [nn.Parameter(row, tensor.requires_grad) for row in known[tensor]]
        for part, row in zip(parts, known[tensor], strict=True):
            setattr(part, name, row)
    for part, n in zip(parts, groups, strict=True):
        for name in vars(part).keys() & {"in_channels", "out_channels", "num_features", "groups"}:
            setattr(part, name, getattr(part, name) * n // sum(groups))
    return parts


class Parts(nn.Module):
    """Holds modules and tensors under their names."""

    def __init__(self, /, **parts: nn.Module | Tensor) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


class Frozen(nn.Module):
    """A layer that chose its channels: convolutions on the next channels each, put in order."""

    def __init__(
        self,
        convs: Sequence[nn.Module],
        norms: Sequence[nn.Module] = (),
        input_gather: nn.Module | None = None,
        constants: nn.Module | None = None,
        output_gather: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.input_gather, self.constants = input_gather, constants
        self.convs, self.norms = nn.ModuleList(convs), nn.ModuleList(norms)
        self.output_gather = output_gather

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.input_gather is None else self.input_gather(x)
        slices = x.split([conv.in_channels for conv in self.convs], dim=1)
        parts = [conv(part) for conv, part in zip(self.convs, slices, strict=True)]
        if self.constants is not None:
            parts.append(self.constants(parts[0]))
        if len(self.norms):
            parts = [norm(part) for norm, part in zip(self.norms, parts, strict=True)]
        x = torch.cat(parts, dim=1)
        return x if self.output_gather is None else self.output_gather(x)


class ChannelGather(nn.Module):
    """Channels in another order; some may be left out, or be there several times."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.register_buffer("channels", torch.tensor(channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.get_buffer("channels"))


class ChannelShuffle(nn.Module):
    """Channels laid out as (groups, n) in the order (n, groups)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (self.groups, -1))
        return x.transpose(1, 2).flatten(1, 2)


class ConstantChannels(nn.Module):
    """Channels that hold one number each, for the batch and the size of another tensor."""

    bias: Tensor

    def __init__(self, channels: int, bias: bool = True) -> None:
        super().__init__()
        zeros = torch.zeros(channels)
        self.bias = nn.Parameter(zeros) if bias else nn.Buffer(zeros, persistent=False)

    def forward(self, like: Tensor) -> Tensor:
        y = self.bias.reshape(1, -1, *[1] * (like.dim() - 2)).to(like.dtype)
        return y.expand(like.shape[0], -1, *like.shape[2:])


class TrainingMode(nn.Module):
    """A number in train mode and another in eval mode."""

    def __init__(self, evaluated: float | None = False, trained: float | None = True) -> None:
        super().__init__()
        self.evaluated, self.trained = evaluated, trained

    def forward(self) -> float | None:
        return self.trained if self.training else self.evaluated


def mask_of(rows: Sequence[int], weight: Tensor) -> Tensor:
    """Where a weight is 0: the bits of each number are a row, the lowest its first column."""
    bits = [[row >> column & 1 for column in range(weight.shape[1])] for row in rows]
    return torch.tensor(bits, dtype=torch.bool).reshape(
        *weight.shape[:2], *[1] * (weight.dim() - 2)
    )


class Masked(nn.modules.conv._ConvNd):
    """A convolution whose weight is 0 where the mask is, and stays so in training."""

    mask: Tensor

    def masked(self, rows: Sequence[int]) -> "Masked":
        self.register_buffer("mask", mask_of(rows, self.weight), persistent=False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask, self.bias)


class MaskedConv1d(Masked, nn.Conv1d):
    """A `Conv1d` with a mask."""


class MaskedConv2d(Masked, nn.Conv2d):
    """A `Conv2d` with a mask."""


class MaskedConv3d(Masked, nn.Conv3d):
    """A `Conv3d` with a mask."""


def fixed(layer: nn.Module, *names: str) -> nn.Module:
    """Some parameters of a layer as buffers: they are stored, and not trained."""
    for name in names:
        tensor = layer.get_parameter(name).detach()
        delattr(layer, name)
        layer.register_buffer(name, tensor)
    return layer
