"""Traits of convolutions that are no calls of modules, and of those that are hard to see."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.traits.trait import One, Weighted, grouped, trait


@trait()
class FunctionalTrait(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=1, groups=3)


@trait()
class TorchConv(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        return torch.conv2d(x, self.weight, self.bias, 1, "same", 1, 3)


@trait()
class TorchConvolution(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        return torch.convolution(
            x, self.weight, self.bias, [1, 1], [0, 0], [1, 1], False, [0, 0], 3
        )


@trait()
class AtenPacket(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten.convolution(
            x, self.weight, self.bias, [1, 1], [0, 0], [1, 1], False, [0, 0], 3
        )


@trait()
class AtenOverload(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten.convolution.default(
            x, self.weight, self.bias, [1, 1], [0, 0], [1, 1], False, [0, 0], 3
        )


@trait()
class AtenConv2dPacket(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten.conv2d(x, self.weight, self.bias, groups=3)


@trait()
class AtenConv2dPadding(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten.conv2d.padding(x, self.weight, self.bias, padding="same", groups=3)


@trait()
class AtenTransposePacket(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 2, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten.conv_transpose2d(x, self.weight, None, groups=3)


@trait(counted=0)
class UnderscoreConvolution(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        return torch._convolution(
            x,
            self.weight,
            self.bias,
            [1, 1],
            [0, 0],
            [1, 1],
            False,
            [0, 0],
            3,
            False,
            False,
            True,
            True,
        )


@trait(
    "modules",
    counted=0,
    left={
        "mkldnn_convolution": "mkldnn_convolution with 3 groups runs here (HERE) where no call of torch's functions shows it: call one of torch.nn.functional there, such as conv2d"
    },
)
class MkldnnConvolution(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        return torch.mkldnn_convolution(x, self.weight, self.bias, [0, 0], [1, 1], [1, 1], 3)


@trait()
class ThnnLike(Weighted):
    """By the name that F itself looks up."""

    def forward(self, x: Tensor) -> Tensor:
        call = getattr(F, "conv2d")  # noqa: B009 - as a table of names does
        return call(input=x, weight=self.weight, bias=None, groups=3)


@trait()
class FunctionalTransposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 2, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.weight, stride=2, output_padding=1, groups=3)


@trait("modules", counted=0)
class FunctionalInference(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            y = F.conv2d(x, self.weight, self.bias, groups=3)
        return y * 2


@trait("modules")
class FunctionalNoGrad(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = F.conv2d(x, self.weight, self.bias, groups=3)
        return y * self.bias.sum()


@trait("modules")
class FunctionalAutocast(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = F.conv2d(x, self.weight, self.bias, groups=3)
        return y.float()


@trait("modules")
class FunctionalBesideUntraceable(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.weight, self.bias, groups=3)
        return y * float(y.detach().numpy().std())


@trait("modules", calls=2)
class FunctionalAndModuleBesideUntraceable(Weighted):
    def __init__(self) -> None:
        super().__init__()
        self.conv = grouped()

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(self.conv(x), self.weight, self.bias, groups=3)
        return y * float(y.detach().numpy().std())


@trait("modules")
class FunctionalBranch(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > -1e9:
            return F.conv2d(x, self.weight, self.bias, groups=3)
        return x


@trait("modules")
class ModuleWeightInFunctional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = grouped()

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2 if x.sum() > -1e9 else x
        return F.conv2d(x, self.conv.weight, self.conv.bias, padding=1, groups=3)


@trait()
class GroupsFromShape(nn.Module):
    """Groups that are computed, and the same each time."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 2, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, groups=x.shape[1] // 2)


@trait()
class GroupsFromWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 2, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, groups=x.size(1) // self.weight.size(1))


@trait()
class GroupsFromParameterNumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 2, 3, 3))
        self.groups = torch.tensor(3)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, groups=int(self.groups))


@trait()
class BlurByExpand(nn.Module):
    """An anti-aliasing filter, one kernel for every channel of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.tensor([1.0, 2.0, 1.0])[None, None, None])

    def forward(self, x: Tensor) -> Tensor:
        c = x.shape[1]
        return F.conv2d(x, self.kernel.expand(c, -1, -1, -1), groups=c)


@trait("modules")
class GaussianMadeInForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        line = torch.exp(-torch.arange(-2.0, 3.0).square() / 2)
        kernel = (line[:, None] * line[None]).repeat(6, 1, 1, 1)
        return self.head(F.conv2d(x, kernel, padding=2, groups=6))


@trait()
class PaddingFromShape(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        half = self.weight.shape[-1] // 2
        return F.conv2d(x, self.weight, self.bias, padding=half, groups=3)


@trait(
    left={
        "weight": "its dilation: computed in forward (HERE), and another for other inputs, so that no plan made once would hold"
    }
)
class DilationFromInput(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, dilation=x.shape[-1] // 5, groups=3)


@trait()
class StridedUnfold(One):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.fold(F.unfold(x, 3, padding=1), (7, 11), 3, padding=1))


@trait()
class WeightSliced(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[:6], self.bias[:6], groups=3)


@trait()
class SlimmableConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 12, 3, padding=1, groups=2)
        self.width = 3

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight[: 2 * self.width, : self.width]
        return F.conv2d(x, weight, self.conv.bias[: 2 * self.width], groups=2)


@trait()
class ConditionalConv(nn.Module):
    """A mixture of kernels, by sample of a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.Parameter(torch.randn(4, 6, 2, 3, 3))
        self.route = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        share = self.route(x.mean((0, 2, 3))).softmax(0)
        weight = (share[:, None, None, None, None] * self.kernels).sum(0)
        return F.conv2d(x, weight, padding=1, groups=3)


@trait()
class InvolutionLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(6, 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        kernel = self.reduce(x).view(b, 1, 9, h, w)
        patches = F.unfold(x, 3, padding=1).view(b, c, 9, h, w)
        return F.conv2d((kernel * patches).sum(2), torch.ones(6, 2, 1, 1), groups=3)


@trait(
    left={
        "weight": "its groups: computed in forward (HERE), and another for other inputs, so that no plan made once would hold"
    }
)
class StyleModulated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 4, 6, 3, 3))
        self.style = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        style = self.style(x.mean((2, 3))).view(b, 1, c, 1, 1)
        weight = self.weight * style
        weight = weight * weight.square().sum((2, 3, 4), keepdim=True).add(1e-8).rsqrt()
        y = F.conv2d(x.view(1, -1, h, w), weight.view(b * 4, c, 3, 3), padding=1, groups=b)
        return y.view(b, 4, h, w)


@trait("modules")
class InsideListComprehension(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(6, 2, 3, 3)])

    def forward(self, x: Tensor) -> Tensor:
        outs = [F.conv2d(x, w, padding=1, groups=3) for w in self.weights if x.numel() > 0]
        return torch.cat(outs)


@trait()
class Bilinear(nn.Module):
    """Upsampling by a fixed transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(6, 6, 4, stride=2, padding=1, groups=6, bias=False)
        line = torch.tensor([0.25, 0.75, 0.75, 0.25])
        self.up.weight.data.copy_(line[:, None] * line[None])
        self.up.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x)


@trait()
class Wavelet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        haar = torch.tensor([[[[1.0, 1], [1, 1]]], [[[1, -1], [1, -1]]], [[[1, 1], [-1, -1]]]]) / 2
        self.register_buffer("haar", haar, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.haar.repeat(6, 1, 1, 1), stride=2, groups=6)


@trait()
class PartialConv(nn.Module):
    """As FasterNet: the first channels alone are convolved."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        first, rest = torch.split(x, [4, 2], dim=1)
        return torch.cat([self.conv(first), rest], 1)


@trait(calls=2)
class ShuffleTrait(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = grouped(), grouped(groups=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        b, c, h, w = x.shape
        x = x.view(b, 3, c // 3, h, w).transpose(1, 2).contiguous().view(b, c, h, w)
        return self.two(x)


@trait()
class ReadsWeight(One):
    def forward(self, x: Tensor) -> Any:
        return self.conv(x), self.conv.weight.square().sum()


@trait()
class ReadsFieldsTrait(One):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) / math.sqrt(self.conv.in_channels * self.conv.kernel_size[0])


@trait("modules")
class WritesWeight(One):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.conv.weight.clamp_(-0.1, 0.1)
        return self.conv(x)


@trait()
class WeightDataRead(One):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.conv.weight.data, groups=3)


@trait()
class WeightDetached(One):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.conv.weight.detach(), groups=3)


@trait()
class QuantisedWeight(Weighted):
    """Fake quantisation by hand."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.abs().amax((1, 2, 3), keepdim=True) / 127
        weight = self.weight + ((self.weight / scale).round() * scale - self.weight).detach()
        return F.conv2d(x, weight, self.bias, groups=3)


@trait()
class BinaryWeight(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x.sign(), self.weight.sign() * self.weight.abs().mean(), groups=3)


@trait()
class Int8Weight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("q", torch.randint(-127, 128, (9, 2, 3, 3), dtype=torch.int8))
        self.register_buffer("scale", torch.rand(9, 1, 1, 1) / 50)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.q.to(x.dtype) * self.scale, groups=3)


@trait()
class Float8Weight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(9, 2, 3, 3).to(torch.float8_e4m3fn)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(torch.rand(9, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.to(x.dtype) * self.scale, groups=3)


@trait()
class Float32Only(One):
    """A forward that insists on float32."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        table = torch.ones(6, 1, 1, dtype=torch.float32)
        y.copy_(y * table)
        return y


@trait("modules")
class ChecksDtype(One):
    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError(f"float32 alone, not {x.dtype}")
        return self.conv(x)


@trait()
class CastsToFloat32(One):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.float()).to(torch.float32)
