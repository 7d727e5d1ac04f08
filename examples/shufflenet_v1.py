"""ShuffleNet v1 for 32x32 images: grouped 1x1 convolutions, with a channel shuffle between them.

After "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices"
(Zhang et al., 2017), in the size that is usual for CIFAR-10.

A grouped 1x1 convolution is cheap, but a group sees only its own channels. The shuffle deals the
channels of each group out to all groups, so that the next grouped convolution mixes what this one
kept apart.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEM_CHANNELS = 24
BLOCKS = (4, 8, 4)
WIDTHS = {2: (200, 400, 800), 3: (240, 480, 960)}  # groups -> channels after each stage


class ChannelShuffle(nn.Module):
    """Channel `(g, n)` moves to `(n, g)`: the transpose of the channels seen as a table."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Shuffle `[N, C, H, W]`; `C` must be divisible by the groups."""
        batch, channels, height, width = x.size()
        groups = self.groups
        assert channels % groups == 0
        table = x.view(batch, groups, channels // groups, height, width)
        return table.transpose(1, 2).flatten(1, 2)


class Bottleneck(nn.Module):
    """1x1 grouped conv, shuffle, 3x3 depthwise conv, 1x1 grouped conv, and a shortcut around them.

    With stride 1 the shortcut is the input itself, added. With stride 2 it is the pooled input,
    concatenated: the convolutions then put out `out_channels - in_channels` channels.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        made = out_channels - in_channels if stride == 2 else out_channels
        middle = made // 4
        # The stem is too narrow for groups to pay: the paper leaves the first 1x1 conv dense.
        first_groups = 1 if in_channels == STEM_CHANNELS else groups

        self.conv1 = nn.Conv2d(in_channels, middle, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.shuffle = ChannelShuffle(first_groups)
        self.conv2 = nn.Conv2d(
            middle, middle, 3, stride=stride, padding=1, groups=middle, bias=False
        )
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, made, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(made)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, in, H, W]` to `[N, out, H / stride, W / stride]`."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(self.shuffle(y)))
        y = self.bn3(self.conv3(y))
        if self.stride == 1:
            return F.relu(y + x)
        return F.relu(torch.cat([y, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1))


class ShuffleNet(nn.Module):
    """ShuffleNet v1: a stem, three stages that halve the image, and a linear classifier."""

    def __init__(self, groups: int, num_classes: int) -> None:
        super().__init__()
        if groups not in WIDTHS:
            raise ValueError(f"groups is {groups}; widths are known for {sorted(WIDTHS)}")
        widths = WIDTHS[groups]
        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.stage1 = _stage(STEM_CHANNELS, widths[0], groups, BLOCKS[0])
        self.stage2 = _stage(widths[0], widths[1], groups, BLOCKS[1])
        self.stage3 = _stage(widths[1], widths[2], groups, BLOCKS[2])
        self.linear = nn.Linear(widths[2], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[N, 3, 32, 32]` to logits `[N, num_classes]`."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        x = F.avg_pool2d(x, 4)
        x = x.view(x.size(0), -1)
        return self.linear(x)


def _stage(in_channels: int, out_channels: int, groups: int, blocks: int) -> nn.Sequential:
    first = Bottleneck(in_channels, out_channels, groups, stride=2)
    rest = (Bottleneck(out_channels, out_channels, groups, stride=1) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def shufflenet_v1(groups: int = 3, num_classes: int = 10) -> ShuffleNet:
    """ShuffleNet v1 with 2 groups (widths 200, 400, 800) or 3 groups (240, 480, 960).

    Raises ValueError for any other number of groups.
    """
    return ShuffleNet(groups, num_classes)


def shufflenet_v1_g2() -> ShuffleNet:
    """ShuffleNet v1 with 2 groups and 10 classes: a factory for the command line."""
    return shufflenet_v1(groups=2)


def shufflenet_v1_g3() -> ShuffleNet:
    """ShuffleNet v1 with 3 groups and 10 classes: a factory for the command line."""
    return shufflenet_v1(groups=3)
