"""The models whose files are corrupted: one blind, and every form that a site takes in a file."""

import contextlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import groupfx
from groupfx.nn import Flgc1d, Flgc2d
from groupfx.passes import FreezeLearnedGroups
from groupfx.rewriting import Pass
from tests.models import zoo

Passes = Sequence[str | Pass[Any]]


class ShuffleUnit(nn.Module):
    """Grouped 1x1 conv, channel shuffle, depthwise 3x3 conv, grouped 1x1 conv, and the identity."""

    def __init__(self, channels: int, middle: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.squeeze = nn.Conv2d(channels, middle, 1, groups=groups, bias=False)
        self.squeeze_bn = nn.BatchNorm2d(middle)
        self.depthwise = nn.Conv2d(middle, middle, 3, padding=1, groups=middle, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(middle)
        self.expand = nn.Conv2d(middle, channels, 1, groups=groups)
        self.expand_bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.squeeze_bn(self.squeeze(x)))
        y = y.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        y = self.depthwise_bn(self.depthwise(y))
        return torch.relu(x + self.expand_bn(self.expand(y)))


def _shuffled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        ShuffleUnit(12, 6, 3),
        ShuffleUnit(12, 8, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 7),
    )


def _learned() -> nn.Module:
    """A layer for each form that freezing knows, in 2-d, and one in 1-d behind them."""
    return nn.Sequential(
        nn.Conv2d(3, 14, 3, padding=1),
        nn.ReLU(),
        Flgc2d(14, 18, 3, padding=1, group_num=4),
        nn.BatchNorm2d(18),
        nn.ReLU(),
        Flgc2d(18, 15, (3, 2), stride=2, group_num=3),
        nn.ReLU(),
        Flgc2d(15, 13, 1, group_num=3, bias=False),
        nn.BatchNorm2d(13),
        nn.ReLU(),
        Flgc2d(13, 11, 3, padding=1, group_num=2),
        nn.Flatten(2),
        Flgc1d(11, 12, 3, group_num=3),
    )


def _freezing() -> Passes:
    forms = {"2": "bucketed", "5": "padded", "7": "split", "10": "dense", "12": "auto"}
    return [
        FreezeLearnedGroups(form=form, skip=tuple(other for other in forms if other != name))
        for name, form in forms.items()
    ]


def _sound() -> nn.Module:
    """1-d: grouped, depthwise and transposed convolutions, and one that pads by reflection."""
    return nn.Sequential(
        nn.Conv1d(4, 12, 5, stride=2, padding=2, groups=2),
        nn.BatchNorm1d(12),
        nn.SiLU(),
        nn.ConvTranspose1d(12, 9, 4, stride=2, padding=1, groups=3),
        nn.BatchNorm1d(9),
        nn.ReLU(),
        nn.Conv1d(9, 9, 3, padding=1, groups=9),
        nn.GELU(),
        nn.ConvTranspose1d(9, 6, 3, stride=3, padding=1, output_padding=1),
        nn.Conv1d(6, 10, 3, padding=1, groups=2, padding_mode="reflect"),
    )


def _unsplit() -> nn.Module:
    """2-d: grouped convolutions that are left as they are, with strides, dilations and circles."""
    return nn.Sequential(
        nn.Conv2d(6, 12, 3, stride=2, padding=1, groups=3, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 10, (3, 2), padding=(2, 1), dilation=(2, 1), groups=2),
        nn.BatchNorm2d(10, eps=1e-3),
        nn.Hardswish(),
        nn.Conv2d(10, 15, 3, padding=1, groups=5, padding_mode="circular"),
        nn.BatchNorm2d(15),
        nn.ReLU(),
        nn.Conv2d(15, 15, 3, padding=1, groups=15, bias=False),
        nn.BatchNorm2d(15),
        nn.Conv2d(15, 8, 1),
    )


def _tiny() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 10, 3, padding=1, groups=2, bias=False),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.Conv2d(10, 6, 1),
    )


@dataclass(frozen=True)
class CorruptedModel:
    """A model, how it is rewritten (None: not at all), and how many of its files are corrupted."""

    id: str
    make: Callable[[], nn.Module]
    example: Callable[[], Any]
    passes: Passes | None
    count: int
    blind: bool = False

    def build(self) -> nn.Module:
        """In eval mode, its weights and statistics the same each time."""
        with _seeded(self.id):
            model = self.make()
            zoo.give_statistics(model)
        return model.eval()

    def inputs(self) -> Any:
        with _seeded(f"{self.id} inputs"):
            return self.example()

    def rewritten(self, model: nn.Module) -> Any:
        """What is exported."""
        if self.passes is None:
            return model
        return groupfx.rewrite(model, self.inputs(), passes=self.passes, verify=False)


@contextlib.contextmanager
def _seeded(text: str) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(text.encode()))
        yield


def _images(*shape: int) -> Callable[[], Any]:
    return lambda: (torch.randn(shape) + 0.3,)


def _of_zoo(name: str, count: int) -> CorruptedModel:
    case = zoo.CASES[name]
    return CorruptedModel(
        name, case.build, case.inputs, ("split-grouped-conv",), count, blind=case.blind
    )


SPLIT = ("split-grouped-conv",)
TINY = CorruptedModel("tiny", _tiny, _images(2, 3, 7, 5), SPLIT, 12)
MODELS = {
    model.id: model
    for model in (
        _of_zoo("resnext-blind", 34),
        CorruptedModel("shuffled", _shuffled, _images(2, 3, 13, 11), SPLIT, 34),
        CorruptedModel("frozen", _learned, _images(2, 3, 9, 8), _freezing(), 34),
        _of_zoo("regnet-y", 32),
        CorruptedModel("sound", _sound, _images(2, 4, 17), SPLIT, 34),
        CorruptedModel("unsplit", _unsplit, _images(2, 6, 11, 9), None, 32),
    )
}
