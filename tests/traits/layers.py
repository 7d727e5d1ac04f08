"""Traits of convolution layers: every kind of one, in every dtype."""

import torch
from torch import Tensor, nn

from tests.traits.trait import One, grouped, only, trait


def line() -> Tensor:
    return torch.randn(2, 6, 13)


def volume() -> Tensor:
    return torch.randn(2, 6, 3, 5, 7)


@trait(example=line)
def conv1d() -> nn.Module:
    return only(nn.Conv1d(6, 9, 3, groups=3))


@trait(example=volume)
def conv3d() -> nn.Module:
    return only(nn.Conv3d(6, 9, 3, padding=1, groups=3))


@trait(example=line)
def transposed1d() -> nn.Module:
    return only(nn.ConvTranspose1d(6, 9, 3, stride=2, groups=3))


@trait()
def transposed2d() -> nn.Module:
    return only(nn.ConvTranspose2d(6, 9, (3, 2), stride=(2, 1), output_padding=(1, 0), groups=3))


@trait(example=volume)
def transposed3d() -> nn.Module:
    return only(nn.ConvTranspose3d(6, 9, 2, dilation=2, groups=3))


@trait()
class OutputSizeTrait(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = grouped(stride=2)
        self.up = nn.ConvTranspose2d(6, 9, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x), output_size=[7, 11])


@trait()
class OutputSizeOfInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(6, 9, 3, stride=2, padding=1, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x[:, :, ::2, ::2], output_size=x.size()[2:])


@trait()
def padding_same() -> nn.Module:
    return only(nn.Conv2d(6, 9, (2, 4), padding="same", groups=3))


@trait()
def padding_valid() -> nn.Module:
    return only(nn.Conv2d(6, 9, 3, padding="valid", groups=3))


@trait()
def padding_reflect() -> nn.Module:
    return only(grouped(padding_mode="reflect"))


@trait()
def padding_circular() -> nn.Module:
    return only(grouped(padding_mode="circular"))


@trait()
def padding_replicate() -> nn.Module:
    return only(grouped(padding_mode="replicate"))


@trait()
def dilated() -> nn.Module:
    return only(nn.Conv2d(6, 9, 3, dilation=(2, 3), groups=3))


@trait()
def no_bias() -> nn.Module:
    return only(grouped(bias=False))


@trait()
def channels_last() -> nn.Module:
    return only(grouped().to(memory_format=torch.channels_last))


@trait(example=lambda: torch.randn(2, 6, 7, 11).double())
def float64() -> nn.Module:
    return One().double()


@trait(example=lambda: torch.randn(2, 6, 7, 11).bfloat16())
def bfloat16() -> nn.Module:
    return One().bfloat16()


@trait(example=lambda: torch.randn(2, 6, 7, 11).half())
def float16() -> nn.Module:
    return One().half()


@trait(
    left={"conv": "its input has no batch axis (shape (6, 7, 11)); add one with unsqueeze(0)"},
    example=lambda: torch.randn(6, 7, 11),
)
def no_batch() -> nn.Module:
    return One()


@trait()
def frozen_weight() -> nn.Module:
    model = One()
    model.conv.weight.requires_grad_(False)
    return model


@trait()
def numpy_groups() -> nn.Module:
    import numpy as np

    return only(nn.Conv2d(6, 9, 3, groups=np.int64(3)))


@trait()
def numpy_strides() -> nn.Module:
    import numpy as np

    return only(nn.Conv2d(6, 9, 3, stride=(np.int64(2), np.int32(1)), groups=3))


@trait()
def groups_set_later() -> nn.Module:
    conv = nn.Conv2d(2, 9, 3)
    conv.groups = 3
    conv.in_channels = 6
    return only(conv)


@trait()
class WeightReplaced(One):
    def __init__(self) -> None:
        super().__init__()
        self.conv.weight = nn.Parameter(self.conv.weight.detach()[:3])
        self.conv.bias = nn.Parameter(self.conv.bias.detach()[:3])
