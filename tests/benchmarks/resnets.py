"""ResNets of their usual sizes (He et al., Deep residual learning, 2016), with random weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_BLOCKS: Mapping[int, tuple[int, ...]] = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
_EXPANSION: Mapping[int, int] = {18: 1, 50: 4}


class ResNetBlock(nn.Module):
    """Two 3 x 3 convolutions, or with an `expansion` a bottleneck, and the way around them."""

    def __init__(self, inputs: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        outputs = width * expansion
        if expansion == 1:
            convs = [(inputs, width, 3, stride), (width, outputs, 3, 1)]
        else:
            convs = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        layers = [layer for conv in convs for layer in (*_conv(*conv), nn.ReLU())]
        self.body = nn.Sequential(*layers[:-1])
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else nn.Sequential(*_conv(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def resnet(depth: int) -> nn.Sequential:
    """For `[N, 3, H, W]`, in eval mode; every BatchNorm has statistics of its own."""
    expansion, channels = _EXPANSION[depth], 64
    layers: list[nn.Module] = [*_conv(3, channels, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for stage, blocks in enumerate(_BLOCKS[depth]):
        for position in range(blocks):
            stride = 2 if stage and not position else 1
            layers.append(ResNetBlock(channels, 64 << stage, stride, expansion))
            channels = (64 << stage) * expansion
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


def _conv(inputs: int, outputs: int, size: int, stride: int) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return conv, nn.BatchNorm2d(outputs)
