"""Traits of layers with a forward of their own."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from tests.traits.trait import trait
from tests.traits.weights import legacy


class Same(nn.Conv2d):
    """Pads as TensorFlow does, by the size of its input."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        sizes = zip(x.shape[-2:], self.kernel_size, self.stride, strict=True)
        for size, kernel, stride in reversed(list(sizes)):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        x = F.pad(x, pads)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


@trait("modules")
class SamePadding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = Same(6, 9, 3, stride=2, groups=3)
        self.head = nn.Conv2d(9, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x))


@trait("modules", calls=2)
class SameIfNeeded(nn.Module):
    """Pads only where the size asks for it, as EfficientNet ports do."""

    def __init__(self) -> None:
        super().__init__()

        class SameIf(nn.Conv2d):
            def forward(self, x: Tensor) -> Tensor:
                height, width = x.size()[-2:]
                pad_h = max((math.ceil(height / 2) - 1) * 2 + 3 - height, 0)
                pad_w = max((math.ceil(width / 2) - 1) * 2 + 3 - width, 0)
                if pad_h > 0 or pad_w > 0:
                    x = F.pad(x, [pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2])
                return F.conv2d(
                    x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
                )

        self.one = SameIf(6, 9, 3, stride=2, groups=3)
        self.two = SameIf(9, 9, 3, stride=2, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


@trait()
class PlainSubclass(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        class Named(nn.Conv2d):
            pass

        self.conv = Named(6, 9, 3, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@trait()
class StandardisedSubclass(nn.Module):
    """Weight standardisation."""

    def __init__(self) -> None:
        super().__init__()

        class Standardised(nn.Conv2d):
            def forward(self, x: Tensor) -> Tensor:
                mean = self.weight.mean(dim=(1, 2, 3), keepdim=True)
                std = self.weight.std(dim=(1, 2, 3), keepdim=True) + 1e-5
                return self._conv_forward(x, (self.weight - mean) / std, self.bias)

        self.conv = Standardised(6, 9, 3, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@trait()
class SubclassThatActs(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        class Acts(nn.Conv2d):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x).relu()

        self.conv = Acts(6, 9, 3, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@trait()
class SubclassWithParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        class Normed(nn.Conv2d):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self.norm = nn.BatchNorm2d(self.out_channels)

            def forward(self, x: Tensor) -> Tensor:
                return self.norm(super().forward(x))

        self.conv = Normed(6, 9, 3, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@trait()
class SubclassWithScale(nn.Module):
    """An equalised learning rate."""

    def __init__(self) -> None:
        super().__init__()

        class Equalised(nn.Conv2d):
            def forward(self, x: Tensor) -> Tensor:
                scale = math.sqrt(2 / self.weight[0].numel())
                return F.conv2d(x, self.weight * scale, self.bias, groups=self.groups)

        self.conv = Equalised(6, 9, 3, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@trait("modules")
class CausalBySize(nn.Module):
    """A 1-d convolution that pads on the left if the input is short."""

    def __init__(self) -> None:
        super().__init__()

        class Causal(nn.Conv1d):
            def forward(self, x: Tensor) -> Tensor:
                if x.shape[-1] < 100:
                    x = F.pad(x, (2, 0))
                return super().forward(x)

        self.conv = Causal(77, 14, 3, groups=7)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.flatten(2).transpose(1, 2)[:, :77])


@trait()
class OverriddenConvForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        class Halved(nn.Conv2d):
            def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
                return super()._conv_forward(x / 2, weight, bias)

        self.conv = Halved(6, 9, 3, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@trait()
class WeightProperty(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        class Doubled(nn.Module):
            groups = 3

            def __init__(self) -> None:
                super().__init__()
                self.raw = nn.Parameter(torch.randn(9, 2, 3, 3))

            @property
            def weight(self) -> Tensor:
                return 2 * self.raw

            def forward(self, x: Tensor) -> Tensor:
                return F.conv2d(x, self.weight, groups=self.groups)

        self.conv = Doubled()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Streaming(nn.Conv1d):
    """A causal convolution that may be given what came before its input."""

    def forward(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        x = F.pad(x, (2, 0)) if before is None else torch.cat([before, x], 2)
        return super().forward(x)


class Streams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = Streaming(6, 9, 3, groups=3)


@trait("modules", example=lambda: torch.randn(2, 6, 11))
class GivenItsCache(Streams):
    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return self.conv(x, before=x[..., :2])


@trait("modules", example=lambda: torch.randn(2, 6, 11))
class GivenNoCache(Streams):
    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return self.conv(x, None)


@trait("modules", calls=2, example=lambda: torch.randn(2, 6, 11))
class GivenItsCacheLater(Streams):
    def forward(self, x: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        return self.conv(x), self.conv(x, before=x[..., :2])


class TimeFirst(nn.Conv1d):
    """As in fairseq: a convolution of `[T, N, C]`."""

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        if state is not None:
            raise NotImplementedError("one step at a time")
        return super().forward(x.permute(1, 2, 0))[:, :, : -self.padding[0]].permute(2, 0, 1)


class TimeFirstNet(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x.flatten(2).permute(2, 0, 1))
        y = y[: max(y.shape[0] // 2, 1)] if y.shape[0] % 2 else y
        return y.permute(1, 2, 0)


@trait("modules")
def axes_that_a_subclass_moves() -> nn.Module:
    return TimeFirstNet(TimeFirst(6, 9, 3, padding=2, groups=3))


@trait("modules")
def legacy_norm_of_a_subclass_with_a_forward() -> nn.Module:
    return TimeFirstNet(legacy(nn.utils.weight_norm, TimeFirst(6, 9, 3, padding=2, groups=3)))


@trait("modules")
def legacy_spectral_norm_of_a_subclass_with_a_forward() -> nn.Module:
    return TimeFirstNet(legacy(nn.utils.spectral_norm, TimeFirst(6, 9, 3, padding=2, groups=3)))


@trait("modules")
def pruned_subclass_with_a_forward() -> nn.Module:
    conv = TimeFirst(6, 9, 3, padding=2, groups=3)
    prune.l1_unstructured(conv, "weight", amount=0.5)
    return TimeFirstNet(conv)
