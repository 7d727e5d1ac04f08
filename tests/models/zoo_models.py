"""The hand-written models of the zoo: each one is small and has one thing that can go wrong.

Sizes are distinct and mostly prime, so that swapped axes cannot cancel. Every grouped convolution
reaches the output, but for those of `BlindNet`. `zoo_traps.py` has the models that a symbolic trace
refuses or changes, `zoo.py` the table of cases.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def scale_output(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """A forward hook that changes the function: a rewrite that loses it is seen at once."""
    return 3 * output - 1


def scale_input(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A forward pre-hook that changes the function."""
    return (args[0] / 7 + 1,)


def scale_gradient(module: nn.Module, gradients: Any, _: Any) -> tuple[Tensor | None, ...]:
    """A backward hook that changes gradients and nothing else."""
    return tuple(None if gradient is None else 5 * gradient for gradient in gradients)


# Blocks and blindness


class ResNeXtBlock(nn.Module):
    """1x1 conv, grouped 3x3 conv, 1x1 conv, each with BatchNorm, around them the identity."""

    def __init__(self, channels: int, middle: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x
        return self.relu(y)


class ResNeXtNet(nn.Module):
    """A stem, two `ResNeXtBlock`s, and a classifier. Takes `[N, 3, H, W]`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 11, 3, stride=2, bias=False)
        self.layer1 = nn.Sequential(ResNeXtBlock(11, 10, 5), ResNeXtBlock(11, 14, 7))
        self.fc = nn.Linear(11, 13)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.stem(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class BlindNet(ResNeXtNet):
    """`ResNeXtNet` as it is often initialised: the last BatchNorm of each block multiplies by 0."""

    def __init__(self) -> None:
        super().__init__()
        for block in self.layer1:
            nn.init.zeros_(block.bn3.weight)


# Sharing


class CalledTwice(nn.Module):
    """One module at two sites, on two sizes of image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.conv(x)))


class CalledTwiceTwoNorms(nn.Module):
    """One conv at two sites, with another BatchNorm behind it at each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, groups=2, bias=False)
        self.first = nn.BatchNorm2d(6)
        self.second = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(F.relu(self.first(self.conv(x)))))


class TwoNames(nn.Module):
    """One module under two names: each call uses the other name."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv1d(6, 6, 3, groups=2)
        self.tail = self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(torch.tanh(self.head(x)))


class TiedWeights(nn.Module):
    """Two modules that share one weight, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Conv1d(6, 6, 3, groups=3)
        self.decode = nn.Conv1d(6, 6, 3, groups=3, padding=2, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(F.relu(self.encode(x)))


class WeightReadElsewhere(nn.Module):
    """The weight of a grouped conv is also an operand of something else: its own penalty."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 9, 3, groups=3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x), self.conv.weight.square().sum()


class WeightBorrowed(nn.Module):
    """A function takes the fields of a module that is called as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 6, 3, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.conv(x))
        return F.conv1d(y, self.conv.weight, self.conv.bias, groups=self.conv.groups, padding=2)


# Functional convolutions


class Positional(nn.Module):
    """`F.conv2d` with every argument by position."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9, 2, 3, 2))
        self.bias = nn.Parameter(torch.randn(9))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, (2, 1), (1, 0), (1, 2), 3)


class Keyword(nn.Module):
    """`F.conv1d` with every argument by keyword, and no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(10, 3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(input=x, weight=self.weight, groups=2, padding="same", dilation=2)


class PositionalTransposed(nn.Module):
    """`F.conv_transpose2d`, whose `groups` and `dilation` are the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 5, 3, 2))
        self.bias = nn.Parameter(torch.randn(10))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.weight, self.bias, 3, 1, 2, 2, (2, 1))


class TorchFunctions(nn.Module):
    """`torch.conv2d` on buffers, then `torch.convolution`, the general function below them all."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.randn(10, 3, 2, 3))
        self.weight = nn.Parameter(torch.randn(15, 2, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(torch.conv2d(x, self.kernel, groups=2))
        return torch.convolution(x, self.weight, None, [1, 2], [0, 1], [1, 1], False, [0, 0], 5)


class BlurPool(nn.Module):
    """A fixed blur of every channel: `groups` is read from the input, not from a field."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        kernel = torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 3.0, 2.0]))
        self.register_buffer("kernel", (kernel / kernel.sum()).repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), self.kernel, stride=2, groups=x.shape[1])


# Computed weights


class StandardisedConv2d(nn.Conv2d):
    """Weight standardisation: the weight of each output channel has mean 0 and variance 1."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.flatten(1)
        flat = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-5)
        weight = flat.view_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ScaledConv2d(nn.Conv2d):
    """A subclass that looks like a conv and is not one: it has a gain after it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.tensor(1.7))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * super().forward(x)


class MaskedConv(nn.Module):
    """A grouped weight under a mask that is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9, 2, 3))
        self.bias = nn.Parameter(torch.randn(9))
        self.register_buffer("mask", (torch.rand(9, 2, 1) < 0.7).float())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight * self.mask, self.bias, groups=3)


# BatchNorm behind a grouped convolution


class NormAndSkip(nn.Module):
    """The conv's output goes to the BatchNorm and around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 10, 3, groups=2)
        self.bn = nn.BatchNorm2d(10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return F.relu(self.bn(y)) + y


class NormCalledTwice(nn.Module):
    """One BatchNorm behind two convs."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(6, 10, 3, groups=2, bias=False)
        self.b = nn.Conv2d(10, 10, 3, groups=5)
        self.bn = nn.BatchNorm2d(10)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.b(F.relu(self.bn(self.a(x)))))


class NormReshaped(nn.Module):
    """Between conv and BatchNorm the channels are regrouped: 15 become 5 with 3 rows each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 15, 3, groups=3)
        self.bn = nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y.reshape(y.shape[0], 5, 3, y.shape[2]))


class NormUnbatched(nn.Module):
    """Input `[6, 13]`: the BatchNorm takes the 9 channels for a batch, the 11 places for channels.

    No reshape gives it away: the BatchNorm follows the conv directly.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 9, 3, groups=3)
        self.bn = nn.BatchNorm1d(11)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


# Inputs and outputs


class DictOutput(nn.Module):
    """Two named outputs, one of them before the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 10, 3, groups=2)
        self.fc = nn.Linear(10, 7)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = F.relu(self.conv(x))
        return {"features": features, "logits": self.fc(features.mean((2, 3)))}


class TupleOutput(nn.Module):
    """A tuple in a tuple; the last entry is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(6, 9, 3, groups=3)
        self.b = nn.Conv1d(9, 15, 3, groups=3)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, int]]:
        y = self.a(x)
        return y, (self.b(y), 3)


class TwoInputs(nn.Module):
    """Two inputs of different shapes, each with its own grouped conv."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(6, 10, 3, groups=2)
        self.sound = nn.Conv1d(9, 10, 5, groups=1)
        self.mix = nn.Conv1d(10, 15, 1, groups=5)

    def forward(self, image: Tensor, sound: Tensor) -> Tensor:
        y = self.image(image).flatten(2).mean(2, keepdim=True)
        return self.mix(torch.tanh(self.sound(sound)) + y)


class Upsampler(nn.Module):
    """A transposed conv that is told how large its output has to be."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(6, 9, 3, stride=2, padding=1, groups=3)
        self.up = nn.ConvTranspose2d(9, 6, 3, stride=2, padding=1, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.relu(self.down(x)), output_size=x.shape[2:]) + x


class HookedConv(nn.Module):
    """A dense conv, then a grouped conv on which a test can put hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(5, 6, 1)
        self.conv = nn.Conv1d(6, 9, 3, groups=3)
        self.bn = nn.BatchNorm1d(9)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(self.stem(x))))
