"""Networks with groups that their authors wrote, for images of 224x224, with random weights.

RegNets are those of transformers and SE-ResNeXt-50 that of monai; the others are built after their
papers: ResNeXt (Xie et al., 2017), DLA-46-X-C (Yu et al., 2018), ShuffleNet v1 (Zhang et al.,
2017).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from monai.networks.nets import SEResNext50
from torch import Tensor, nn
from transformers import RegNetConfig, RegNetModel

from examples.shufflenet_v1 import shufflenet_v1

SIZE = 224


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    """1x1, grouped 3x3, 1x1, and the way around them, which may be given."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.reduce = _conv(inputs, middle, 1)
        self.conv = _conv(middle, middle, 3, stride, groups)
        self.expand = _conv(middle, outputs, 1)

    def forward(self, x: Tensor, around: Tensor) -> Tensor:
        y = F.relu(self.conv(F.relu(self.reduce(x))))
        return F.relu(self.expand(y) + around)


class AggregatedBlock(nn.Module):
    """A bottleneck with its own way around."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.body = Bottleneck(inputs, middle, outputs, stride, groups)
        same = stride == 1 and inputs == outputs
        self.around = nn.Identity() if same else _conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x, self.around(x))


def resnext(depths: Sequence[int], groups: int) -> nn.Module:
    """ResNeXt with groups of 4 channels in its first stage: -50 32x4d, -101 64x4d."""
    layers: list[nn.Module] = [_conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, blocks in enumerate(depths):
        for position in range(blocks):
            stride = 2 if stage and not position else 1
            layers.append(
                AggregatedBlock(channels, 4 * groups << stage, 256 << stage, stride, groups)
            )
            channels = 256 << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


class Tree(nn.Module):
    """Hierarchical aggregation: two trees of one level less, and a 1x1 convolution of all."""

    def __init__(
        self, levels: int, inputs: int, outputs: int, stride: int, *, root: bool, width: int = 0
    ) -> None:
        super().__init__()
        width = (width or 2 * outputs) + (inputs if root else 0)
        self.levels, self.root = levels, root
        self.pool = nn.MaxPool2d(stride) if stride > 1 else nn.Identity()
        self.project = _conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        if levels == 1:
            self.first: nn.Module = Bottleneck(inputs, outputs, outputs, stride, groups=32)
            self.second: nn.Module = Bottleneck(outputs, outputs, outputs, 1, groups=32)
            self.join = _conv(width, outputs, 1)
        else:
            self.first = Tree(levels - 1, inputs, outputs, stride, root=False)
            self.second = Tree(levels - 1, outputs, outputs, 1, root=False, width=width + outputs)

    def forward(self, x: Tensor, around: Tensor | None = None, *children: Tensor) -> Tensor:
        below = self.pool(x)
        own = self.project(below)
        if self.root:
            children = (*children, below)
        if self.levels > 1:
            y = self.first(x)
            return self.second(y, None, *children, y)
        y = self.first(x, own)
        return F.relu(self.join(torch.cat([self.second(y, y), y, *children], 1)))


def dla_46x_c() -> nn.Module:
    """DLA-46-X-C: six levels, 32 groups."""
    return nn.Sequential(
        *(_conv(3, 16, 7), nn.ReLU(), _conv(16, 16, 3), nn.ReLU(), _conv(16, 32, 3, 2), nn.ReLU()),
        Tree(1, 32, 64, 2, root=False),
        Tree(2, 64, 64, 2, root=True),
        Tree(2, 64, 128, 2, root=True),
        Tree(1, 128, 256, 2, root=True),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 1000)),
    )


def shufflenet() -> nn.Module:
    """ShuffleNet v1 with 3 groups: the stages of the example behind the stem of the paper."""
    whole = shufflenet_v1(3, num_classes=1000)
    stem = (_conv(3, 24, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    stages = (whole.stage1, whole.stage2, whole.stage3)
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), whole.linear)


class Features(nn.Module):
    """A model of transformers as a function of one image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.model(x).pooler_output
        return found


def regnet(depths: list[int], widths: list[int], group: int, kind: str) -> nn.Module:
    """After "Designing Network Design Spaces" (Radosavovic et al., 2020), appendix."""
    config = RegNetConfig(
        depths=depths, hidden_sizes=widths, groups_width=group, layer_type=kind, embedding_size=32
    )
    return Features(RegNetModel(config))


ORDINARY: Mapping[str, Callable[[], nn.Module]] = {
    "ResNeXt-50": partial(resnext, (3, 4, 6, 3), groups=32),
    "SE-ResNeXt-50": partial(SEResNext50, spatial_dims=2, in_channels=3, num_classes=1000),
    "RegNetX-200MF": partial(regnet, [1, 1, 4, 7], [24, 56, 152, 368], 8, "x"),
    "RegNetX-400MF": partial(regnet, [1, 2, 7, 12], [32, 64, 160, 384], 16, "x"),
    "RegNetX-600MF": partial(regnet, [1, 3, 5, 7], [48, 96, 240, 528], 24, "x"),
    "RegNetY-200MF": partial(regnet, [1, 1, 4, 7], [24, 56, 152, 368], 8, "y"),
    "RegNetY-400MF": partial(regnet, [1, 3, 6, 6], [48, 104, 208, 440], 8, "y"),
    "DLA-46x-c": dla_46x_c,
    "ShuffleNet v1": shufflenet,
}
