"""MobileNetV2 for small images, with projections that learn their groups.

After "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (Sandler et al., 2018) in the size
that is usual for CIFAR-10, and "Fully Learnable Group Convolution for Acceleration of Deep Neural
Networks" (Wang et al., 2019), which puts its layer in place of the last 1x1 convolution of each
block.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from groupfx.nn import Flgc2d

# expansion t, channels c, number of blocks n, stride of the first one s
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM_CHANNELS = 32
LAST_CHANNELS = 1280
DIVISOR = 8  # every width is a multiple of it


class Block(nn.Module):
    """Expand by a 1x1 conv, filter by a 3x3 depthwise conv, project by another 1x1 conv.

    With expansion 1 there is nothing to expand. With stride 1 the input is added to the result,
    through a 1x1 conv where the width changes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expansion: int,
        stride: int,
        projection: Callable[[int, int], nn.Module],
    ) -> None:
        super().__init__()
        middle = expansion * in_channels
        self.expand = _expansion(in_channels, middle) if expansion > 1 else nn.Identity()
        self.depthwise = nn.Conv2d(
            middle, middle, 3, stride=stride, padding=1, groups=middle, bias=False
        )
        self.bn1 = nn.BatchNorm2d(middle)
        self.projection = projection(middle, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels) if stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """`[N, in, H, W]` to `[N, out, H / stride, W / stride]`."""
        y = self.expand(x)
        y = F.relu6(self.bn1(self.depthwise(y)))
        y = self.bn2(self.projection(y))
        return y if self.shortcut is None else y + self.shortcut(x)


class MobileNetV2(nn.Module):
    """A stem with stride 1, 17 blocks, a last 1x1 conv, the mean over the image, a classifier."""

    def __init__(
        self,
        projection: Callable[[int, int], nn.Module],
        num_classes: int,
        in_channels: int,
        width: float,
    ) -> None:
        super().__init__()
        channels = scaled(STEM_CHANNELS, width)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        blocks = []
        for expansion, stage_channels, count, first_stride in STAGES:
            out_channels = scaled(stage_channels, width)
            for stride in (first_stride, *(1 for _ in range(count - 1))):
                blocks.append(Block(channels, out_channels, expansion, stride, projection))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        last = scaled(LAST_CHANNELS, width)
        self.conv2 = nn.Conv2d(channels, last, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(last)
        self.linear = nn.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[N, in_channels, H, W]` to logits `[N, num_classes]`."""
        x = F.relu6(self.bn1(self.conv1(x)))
        x = self.blocks(x)
        x = F.relu6(self.bn2(self.conv2(x)))
        return self.linear(x.mean((2, 3)))


def scaled(channels: int, width: float) -> int:
    """`channels * width` as the nearest multiple of 8, at least 8."""
    return max(DIVISOR, int(channels * width / DIVISOR + 0.5) * DIVISOR)


def _expansion(in_channels: int, out_channels: int) -> nn.Module:
    conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU6())


def _shortcut(in_channels: int, out_channels: int) -> nn.Module:
    if in_channels == out_channels:
        return nn.Identity()
    conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def mobilenet_v2_flgc(
    groups: int = 8,
    num_classes: int = 10,
    *,
    in_channels: int = 3,
    width: float = 1.0,
    balanced: bool | int = False,
    learn_outputs: bool = True,
) -> MobileNetV2:
    """The network whose 17 projections learn up to `groups` groups each.

    `balanced` and `learn_outputs` are those of `Flgc2d`.
    """

    def projection(channels: int, out_channels: int) -> nn.Module:
        return Flgc2d(
            channels,
            out_channels,
            1,
            group_num=groups,
            bias=False,
            balanced=balanced,
            learn_outputs=learn_outputs,
        )

    return MobileNetV2(projection, num_classes, in_channels, width)


def mobilenet_v2(
    groups: int = 1, num_classes: int = 10, *, in_channels: int = 3, width: float = 1.0
) -> MobileNetV2:
    """The same network with ordinary projections: dense ones, or in `groups` equal groups.

    Raises ValueError where the groups do not divide the channels; 2, 4 and 8 always do.
    """

    def projection(channels: int, out_channels: int) -> nn.Module:
        return nn.Conv2d(channels, out_channels, 1, groups=groups, bias=False)

    return MobileNetV2(projection, num_classes, in_channels, width)
