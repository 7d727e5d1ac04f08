"""Networks that shuffle or pick channels, one or two blocks of each, written from their papers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groupfx.nn import ChannelGather
from tests.folding.rows import permutation


def shuffle(x: Tensor, groups: int) -> Tensor:
    """View, transpose, view, as most code has it."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def conv(inputs: int, outputs: int, size: int = 1, groups: int = 1, stride: int = 1) -> nn.Module:
    """A convolution and its BatchNorm, with statistics that are not those of a new one."""
    norm = nn.BatchNorm2d(outputs)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert tensor is not None
        tensor.data.uniform_(0.5, 1.5)
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(layer, norm)


class Shuffle1Unit(nn.Module):
    """ShuffleNet (Zhang et al., 2017): grouped, shuffle, depthwise, grouped; and the way around."""

    def __init__(self, channels: int, groups: int = 3) -> None:
        super().__init__()
        self.groups = groups
        self.first = conv(channels, channels // 2, groups=groups)
        self.depthwise = conv(channels // 2, channels // 2, 3, groups=channels // 2)
        self.last = conv(channels // 2, channels, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(shuffle(torch.relu(self.first(x)), self.groups))
        return torch.relu(x + self.last(y))


class Shuffle2Unit(nn.Module):
    """ShuffleNet v2 (Ma et al., 2018): one half goes through, both are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            conv(half, half),
            nn.ReLU(),
            conv(half, half, 3, groups=half),
            conv(half, half),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        return shuffle(torch.cat([left, self.branch(right)], dim=1), 2)


class InterleavedUnit(nn.Module):
    """Interleaved group convolutions (Zhang et al., 2017): two, each behind a permutation."""

    def __init__(self, channels: int, primary: int = 2) -> None:
        super().__init__()
        self.primary, self.secondary = primary, channels // primary
        self.spatial = nn.Conv2d(channels, channels, 3, padding=1, groups=primary)
        self.point = nn.Conv2d(channels, channels, 1, groups=self.secondary)

    def forward(self, x: Tensor) -> Tensor:
        y = self.point(shuffle(self.spatial(x), self.primary))
        return torch.relu(shuffle(y, self.secondary))


class MergeUnit(nn.Module):
    """MENet (Qin et al., 2018): a ShuffleNet unit beside a narrow branch that all channels meet."""

    def __init__(self, channels: int, groups: int = 3, narrow: int = 4) -> None:
        super().__init__()
        self.groups, half = groups, channels // 2
        self.first = conv(channels, half, groups=groups)
        self.last = conv(half, channels, groups=groups)
        self.depthwise = conv(half, half, 3, groups=half)
        self.merge, self.mix, self.spread = (
            conv(half, narrow),
            conv(narrow, narrow, 3),
            conv(narrow, half),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = shuffle(torch.relu(self.first(x)), self.groups)
        gate = self.spread(torch.relu(self.mix(torch.relu(self.merge(y))))).sigmoid()
        return torch.relu(x + self.last(self.depthwise(y) * gate))


class DiceUnit(nn.Module):
    """DiCENet (Mehta et al., 2019): convolutions along three axes, shuffled, mixed by channel."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.channels = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.rows = nn.Conv2d(height, height, 3, padding=1, groups=height)
        self.columns = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mix = nn.Conv2d(3 * channels, channels, 1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.rows(x.transpose(1, 2)).transpose(1, 2)
        columns = self.columns(x.transpose(1, 3)).transpose(1, 3)
        return torch.relu(self.mix(shuffle(torch.cat([self.channels(x), rows, columns], 1), 3)))


class CondenseUnit(nn.Module):
    """CondenseNet at test (Huang et al., 2018): an index layer, a grouped conv, a shuffle."""

    def __init__(self, channels: int, groups: int = 4, growth: int = 8) -> None:
        super().__init__()
        self.groups = groups
        self.index: Tensor
        self.register_buffer("index", torch.tensor(permutation(channels, channels)))
        self.norm, self.point = nn.BatchNorm2d(channels), nn.Conv2d(channels, 16, 1, groups=groups)
        self.spatial = nn.Conv2d(16, growth, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        y = self.point(torch.relu(self.norm(torch.index_select(x, 1, self.index))))
        return torch.cat([x, self.spatial(shuffle(y, self.groups))], 1)


class HandMade(nn.Module):
    """Permutations by hand: a list, halves that change places, a reversed list."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.order = ChannelGather(permutation(channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(self.order(x)))
        a, b = y.chunk(2, 1)
        z = torch.cat([b, a], 1)[:, [5, 4, 3, 2, 1, 0, 6, 7, 8, 9, 10, 11]]
        return self.last(F.avg_pool2d(z, 2))


def network(channels: int, *units: nn.Module, out: int | None = None) -> nn.Module:
    """Units between a stem and a classifier."""
    head = nn.Linear(out or channels, 5)
    tail = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    return nn.Sequential(conv(3, channels, 3), nn.ReLU(), *units, *tail)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "ShuffleNet v1": lambda: network(12, Shuffle1Unit(12), Shuffle1Unit(12)),
    "ShuffleNet v2": lambda: network(12, Shuffle2Unit(12), Shuffle2Unit(12)),
    "IGC": lambda: network(12, InterleavedUnit(12), InterleavedUnit(12)),
    "MENet": lambda: network(12, MergeUnit(12), MergeUnit(12)),
    "DiCENet": lambda: network(12, DiceUnit(12, 6, 10), DiceUnit(12, 6, 10)),
    "CondenseNet": lambda: network(16, CondenseUnit(16), CondenseUnit(24), out=32),
    "by hand": lambda: network(12, HandMade(12), HandMade(12)),
}
"""For `[N, 3, 6, 10]`."""
