"""Traits of speech models: depthwise convolutions over time, with masks, lengths and caches."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.traits.trait import trait


def frames() -> tuple[Tensor, Tensor]:
    """Frames by features, and how many of them count."""
    return torch.randn(2, 13, 6), torch.tensor([13, 9])


def counts(lengths: Tensor, size: int) -> Tensor:
    return torch.arange(size, device=lengths.device)[None] < lengths[:, None]


class ConformerConvolution(nn.Module):
    """Pointwise, gated, depthwise, normalised, pointwise, as Conformer and Parakeet have it."""

    def __init__(self, kernel: int = 5) -> None:
        super().__init__()
        self.widen = nn.Conv1d(6, 12, 1)
        self.depthwise = nn.Conv1d(6, 6, kernel, padding=kernel // 2, groups=6, bias=False)
        self.norm = nn.BatchNorm1d(6)
        self.narrow = nn.Conv1d(6, 6, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = F.glu(self.widen(x.transpose(1, 2)), dim=1)
        if mask is not None:
            x = x.masked_fill(~mask[:, None], 0.0)
        x = F.silu(self.norm(self.depthwise(x)))
        return self.narrow(x).transpose(1, 2)


@trait("modules", example=frames)
class MaskedConformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.LayerNorm(6), ConformerConvolution()

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        mask = None if lengths is None else counts(lengths, x.shape[1])
        return x + self.conv(self.norm(x), mask)


@trait(example=frames)
class MaskedConformerAlways(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = ConformerConvolution()

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return x + self.conv(x, counts(lengths, x.shape[1]))


@trait(calls=2, example=lambda: (torch.randn(2, 17, 8), torch.tensor([17, 11])))
class StridedSubsampling(nn.Module):
    """Depthwise strides over time and frequency; the padding is zeroed in front of each."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU()])
        for _ in range(2):
            self.layers += [nn.Conv2d(6, 6, 3, 2, 1, groups=6), nn.Conv2d(6, 6, 1), nn.ReLU()]
        self.out = nn.Linear(6, 5)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = x[:, None]
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                x = x * counts(lengths, x.shape[2])[:, None, :, None]
                if layer.stride != (1, 1):
                    lengths = (lengths - 1) // layer.stride[0] + 1
            x = layer(x)
        return self.out(x.transpose(1, 2).flatten(2)), lengths


class MaskedConv1d(nn.Module):
    """A convolution that takes the lengths along, as QuartzNet and Citrinet have it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 6, 5, stride=2, padding=2, groups=6)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = x.masked_fill(~counts(lengths, x.size(2))[:, None], 0)
        lengths = torch.div(lengths + 4 - 5, 2, rounding_mode="floor") + 1
        return self.conv(x), lengths


@trait(example=lambda: (torch.randn(2, 6, 13), torch.tensor([13, 9])))
class TakesLengthsAlong(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.pointwise = MaskedConv1d(), nn.Conv1d(6, 9, 1)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x, lengths = self.depthwise(x, lengths)
        return self.pointwise(x).relu(), lengths


@trait(example=lambda: torch.randn(2, 13, 6))
class PositionalConvolution(nn.Module):
    """An even kernel with a normalised weight, its last frame cut off, as wav2vec 2.0 has it."""

    def __init__(self) -> None:
        super().__init__()
        conv = nn.Conv1d(6, 6, 4, padding=2, groups=3)
        self.conv = parametrizations.weight_norm(conv, dim=2)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.transpose(1, 2))[:, :, :-1]
        return self.norm(x + F.gelu(y).transpose(1, 2))


@trait("modules", example=lambda: (torch.randn(2, 6, 7), torch.randn(2, 6, 4)))
class StreamsWithCache(nn.Module):
    """The last frames come back as the cache of the next call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 6, 5, groups=6)

    def forward(self, x: Tensor, cache: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = F.pad(x, (4, 0)) if cache is None else torch.cat([cache, x], 2)
        return self.conv(x), x[:, :, -4:]


@trait(calls=2, example=lambda: torch.randn(2, 6, 13))
class MultiScaleOfTime(nn.Module):
    """The same frames through several widths of a depthwise kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Conv1d(6, 6, 3, padding="same", groups=6)
        self.far = nn.Conv1d(6, 6, 3, padding="same", dilation=3, groups=6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.near(x)) * torch.tanh(self.far(x))
