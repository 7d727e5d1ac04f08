"""Layers with chosen groups, and what they compute: the oracle of the tests of freezing."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groupfx.nn import Flgc1d, Flgc2d, Flgc3d

INPUT_MAP = "in_channels_in_group_assignment_map"
OUTPUT_MAP = "out_channels_in_group_assignment_map"
FORMS = ("auto", "dense", "bucketed", "padded", "split")
_LAYERS = {1: Flgc1d, 2: Flgc2d, 3: Flgc3d}
_CONVS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

Groups = Sequence[str]
"""For each channel the letters of its groups; "-" for a row of NaN."""


def scores(groups: Groups, number: int) -> Tensor:
    """A map that puts each channel into its groups, with other scores that differ by row."""
    table = torch.rand(len(groups), number) - 3
    for row, letters in zip(table, groups, strict=True):
        if letters == "-":
            row[1 % number] = float("nan")
            continue
        row[["abcdefghijklmnopqrst".index(letter) for letter in letters]] = 0.75
    return table


def mask_of(inputs: Groups, outputs: Groups) -> Tensor:
    """[out, in]: how many letters a filter and an input share, counted one by one."""
    rows = [[len((set(o) & set(i)) - {"-"}) for i in inputs] for o in outputs]
    return torch.tensor(rows, dtype=torch.float64)


@dataclass(frozen=True)
class Layer:
    """One learned-group layer: its groups, and the fields of its convolution."""

    inputs: Groups
    outputs: Groups
    conv: dict[str, Any] = field(default_factory=dict)
    dims: int = 2
    number: int = 5

    def build(self) -> nn.Module:
        fields = {"kernel_size": 3} | self.conv
        layer = _LAYERS[self.dims](
            len(self.inputs), len(self.outputs), group_num=self.number, **fields
        )
        self.assign(layer)
        return layer

    def assign(self, layer: nn.Module) -> None:
        """Give the maps of `layer` the groups, and its bias values of some size."""
        with torch.no_grad():
            layer.get_parameter(INPUT_MAP).copy_(scores(self.inputs, self.number))
            layer.get_parameter(OUTPUT_MAP).copy_(scores(self.outputs, self.number))
            if layer.conv.bias is not None:
                layer.conv.bias.uniform_(0.5, 2)

    def expected(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The convolution with the dense weight times the mask, in float64."""
        return masked_conv(layer.conv, mask_of(self.inputs, self.outputs), x)

    def example(self) -> Tensor:
        return torch.randn(2, len(self.inputs), *(9, 8, 7)[: self.dims])


def masked_conv(conv: nn.Module, mask: Tensor, x: Tensor) -> Tensor:
    """`conv` with its weight times `mask`, in float64; padding is added by hand."""
    dims = x.dim() - 2
    weight = conv.weight.detach().double() * mask[(..., *(None,) * dims)]
    bias = None if conv.bias is None else conv.bias.detach().double()
    x, padding = x.double(), conv.padding
    if conv.padding_mode != "zeros":
        x, padding = F.pad(x, edges(conv), mode=conv.padding_mode), 0
    return _CONVS[dims](x, weight, bias, conv.stride, padding, conv.dilation)


def edges(conv: nn.Module) -> list[int]:
    """Padding before and behind each dimension, the last dimension first."""
    found: list[int] = []
    for axis in reversed(range(len(conv.kernel_size))):
        if conv.padding == "same":
            total = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
            found += [total // 2, total - total // 2]
        else:
            found += [conv.padding[axis]] * 2
    return found


def run64(model: nn.Module, x: Tensor) -> Tensor:
    """The output of a copy of `model` in float64 and eval mode."""
    with torch.no_grad():
        return copy.deepcopy(model).double().eval()(x.double())


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    error = (found - expected).abs().max()
    assert error <= 1e-12 * expected.abs().max(), f"off by {error:.3g}"


def with_batchnorm(layer: nn.Module, channels: int, dims: int = 2, **options: Any) -> nn.Sequential:
    """`layer`, and behind it a BatchNorm that has seen other statistics than its default."""
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims](channels, **options)
    for name, tensor in (*norm.named_parameters(), *norm.named_buffers()):
        if tensor.dim():
            nn.init.uniform_(tensor, 0.5, 2.0)
        elif name == "num_batches_tracked":
            tensor.fill_(3)
    return nn.Sequential(layer, norm)
