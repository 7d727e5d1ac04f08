"""Random models of up to 20 nodes around convolutions, the same for the same seed.

A node is a convolution, a norm, an activation, a pool, a join of branches and the like. A model
works in 1, 2 or 3 dimensions; what follows what is drawn, with the sizes at hand kept in mind.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groupfx.nn import Flgc1d, Flgc2d, Flgc3d
from tests.models import zoo

MOST_NODES = 20
_MOST_CHANNELS = 24
_SIZES = {1: (9, 19), 2: (6, 10), 3: (4, 6)}
# What is not larger may be doubled. In 3-d, large ones take the evaluator of onnx half a minute.
_MAY_GROW = {1: 9, 2: 6, 3: 2}
_LEARNED = {1: Flgc1d, 2: Flgc2d, 3: Flgc3d}
_CONTAINERS = (nn.Sequential, nn.ModuleList)
_MODES = ("zeros", "zeros", "zeros", "reflect", "replicate", "circular")

Target = Literal["none", "default", "onnxruntime", "plinio"]
TARGETS: tuple[Target, ...] = ("none", "default", "onnxruntime", "plinio")


@dataclass(frozen=True)
class RandomModel:
    """A model, its inputs, and how it is to be exported."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    target: Target
    half: bool
    dynamic_sizes: bool


def random_model(seed: int) -> RandomModel:
    """The model number `seed`, in eval mode."""
    draw = random.Random(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shape = _first_shape(draw)
        inputs = (torch.randn(2, shape.channels, *shape.sizes) + 0.3,)
        model = _Drawing(draw, shape).model()
        zoo.give_statistics(model)
    return RandomModel(
        model=model.eval(),
        inputs=inputs,
        target=draw.choice(TARGETS),
        half=draw.random() < 0.15,
        dynamic_sizes=draw.random() < 0.25,
    )


def _first_shape(draw: random.Random) -> "_Shape":
    dims = draw.choice((1, 2, 2, 2, 3))
    return _Shape(draw.choice((3, 4, 6)), tuple(draw.randint(*_SIZES[dims]) for _ in range(dims)))


def number_of_nodes(model: nn.Module) -> int:
    """Modules that compute something themselves; what lies inside a learned layer is one."""
    inner = {id(layer.conv) for layer in model.modules() if hasattr(layer, "group_num")}
    return sum(
        not isinstance(module, _CONTAINERS) and id(module) not in inner
        for module in model.modules()
    )


# Nodes that torch has no module for


class Residual(nn.Module):
    """x + inner(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Branches(nn.Module):
    """The branches' outputs, one behind another along the channels."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Shuffle(nn.Module):
    """Channel shuffle."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


class SqueezeExcite(nn.Module):
    """Each channel times a number between 0 and 1 that depends on the means of all."""

    def __init__(self, squeeze: nn.Module, excite: nn.Module, dims: int) -> None:
        super().__init__()
        self.squeeze = squeeze
        self.excite = excite
        self.axes = tuple(range(2, 2 + dims))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(self.axes, keepdim=True)
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(mean))))


class Interpolate(nn.Module):
    """Twice as large."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode=self.mode)


# Drawing


@dataclass(frozen=True)
class _Shape:
    """What the next node gets: channels, and the sizes of the example."""

    channels: int
    sizes: tuple[int, ...]

    @property
    def dims(self) -> int:
        return len(self.sizes)

    @property
    def least(self) -> int:
        return min(self.sizes)


class _Drawing:
    """Draws one node after another; `shape` is what the last of them gives."""

    def __init__(self, draw: random.Random, shape: _Shape) -> None:
        self.draw = draw
        self.shape = shape

    def model(self) -> nn.Module:
        # Most models small, a few of them as large as they may be.
        wanted = min(self.draw.randint(3, MOST_NODES - _HEAD_NODES) for _ in range(2))
        parts = [self.conv()]
        while True:
            before, part = self.shape, self.draw.choice(_PARTS)(self)
            if number_of_nodes(nn.Sequential(*parts, part)) > wanted:
                self.shape = before
                return nn.Sequential(*parts, *self.head())
            parts.append(part)

    def head(self) -> list[nn.Module]:
        """A classifier, or nothing."""
        if self.draw.random() < 0.5:
            return []
        pool = self._of_dims("AdaptiveAvgPool" if self.draw.random() < 0.7 else "AdaptiveMaxPool")
        return [pool(1), nn.Flatten(), nn.Linear(self.shape.channels, 5)]

    def conv(self) -> nn.Module:
        """A convolution of any number of groups, that keeps the size or halves it."""
        inputs, outputs = self.shape.channels, self._channels()
        kernel = self.draw.choice((1, 3, 3))
        made = self._of_dims("Conv")(
            inputs,
            outputs,
            kernel,
            stride=self._stride(),
            padding=kernel // 2,
            groups=self._groups(inputs, outputs),
            bias=self.draw.random() < 0.6,
            padding_mode=self.draw.choice(_MODES),
        )
        return self._given(outputs, made)

    def same(self) -> nn.Module:
        """A convolution that keeps the size, of a kernel of even or odd length, dilated or not."""
        inputs, outputs = self.shape.channels, self._channels()
        made = self._of_dims("Conv")(
            inputs,
            outputs,
            self.draw.choice((2, 3)),
            padding="same",
            dilation=self.draw.choice((1, 2)),
            groups=self._groups(inputs, outputs),
        )
        return self._given(outputs, made)

    def depthwise(self) -> nn.Module:
        channels = self.shape.channels
        times = 2 if 2 * channels <= _MOST_CHANNELS and self.draw.random() < 0.3 else 1
        made = self._of_dims("Conv")(
            channels,
            times * channels,
            3,
            stride=self._stride(),
            padding=1,
            groups=channels,
            bias=self.draw.random() < 0.5,
        )
        return self._given(times * channels, made)

    def transposed(self) -> nn.Module:
        inputs, outputs = self.shape.channels, self._channels()
        stride = 2 if self.shape.least <= _MAY_GROW[self.shape.dims] else 1
        made = self._of_dims("ConvTranspose")(
            inputs,
            outputs,
            3,
            stride=stride,
            padding=1,
            output_padding=stride - 1,
            groups=self._groups(inputs, outputs),
            bias=self.draw.random() < 0.5,
        )
        self.shape = _Shape(outputs, tuple(stride * size for size in self.shape.sizes))
        return made

    def learned(self) -> nn.Module:
        """A layer that has learned its groups."""
        inputs, outputs = self.shape.channels, self._channels()
        made = _LEARNED[self.shape.dims](
            inputs,
            outputs,
            3,
            padding=1,
            group_num=self.draw.randint(1, 4),
            bias=self.draw.random() < 0.7,
        )
        return self._given(outputs, made)

    def normed(self) -> nn.Module:
        """A convolution and its BatchNorm."""
        conv = self.draw.choice((self.conv, self.depthwise, self.transposed, self.learned))()
        return nn.Sequential(conv, self.norm())

    def norm(self) -> nn.Module:
        eps = 10 ** self.draw.uniform(-6, -2)
        affine = self.draw.random() < 0.9
        return self._of_dims("BatchNorm")(self.shape.channels, eps=eps, affine=affine)

    def activation(self) -> nn.Module:
        kinds = (nn.ReLU, nn.GELU, nn.Sigmoid, nn.Hardswish, nn.SiLU, nn.ReLU6, nn.Tanh)
        return self.draw.choice(kinds)()

    def pool(self) -> nn.Module:
        """A pool that halves the size where there is enough of it."""
        kind = self.draw.choice(("MaxPool", "AvgPool"))
        stride = self._stride()
        made = self._of_dims(kind)(3, stride=stride, padding=1)
        return self._given(self.shape.channels, made)

    def residual(self) -> nn.Module:
        channels = self.shape.channels
        conv = self._of_dims("Conv")(
            channels, channels, 3, padding=1, groups=self._groups(channels, channels)
        )
        return Residual(nn.Sequential(conv, self.norm(), self.activation()))

    def branches(self) -> nn.Module:
        """Two convolutions of one input."""
        inputs = self.shape.channels
        outputs = [self._channels() // 2 for _ in range(2)]
        made = [
            self._of_dims("Conv")(
                inputs, number, kernel, padding=kernel // 2, groups=self._groups(inputs, number)
            )
            for number, kernel in zip(outputs, (1, 3), strict=True)
        ]
        return self._given(sum(outputs), Branches(made))

    def shuffle(self) -> nn.Module:
        return Shuffle(self._groups(self.shape.channels, self.shape.channels))

    def excite(self) -> nn.Module:
        channels, conv = self.shape.channels, self._of_dims("Conv")
        return SqueezeExcite(conv(channels, 3, 1), conv(3, channels, 1), self.shape.dims)

    def interpolate(self) -> nn.Module:
        dims = self.shape.dims
        if self.shape.least > _MAY_GROW[dims]:
            return self.activation()
        linear = {1: "linear", 2: "bilinear", 3: "trilinear"}[dims]
        self.shape = _Shape(self.shape.channels, tuple(2 * size for size in self.shape.sizes))
        return Interpolate(self.draw.choice(("nearest", linear)))

    def _of_dims(self, kind: str) -> Callable[..., nn.Module]:
        found: Callable[..., nn.Module] = getattr(nn, f"{kind}{self.shape.dims}d")
        return found

    def _channels(self) -> int:
        return self.draw.choice((4, 6, 8, 9, 10, 12, 15, 18, _MOST_CHANNELS))

    def _groups(self, inputs: int, outputs: int) -> int:
        common = [n for n in range(1, inputs + 1) if inputs % n == 0 and outputs % n == 0]
        return self.draw.choice(common)

    def _stride(self) -> int:
        return 2 if self.shape.least > 5 and self.draw.random() < 0.5 else 1

    def _given(self, channels: int, made: Any) -> nn.Module:
        """`made`, once the shape that it leaves is noted."""
        stride = made.stride if hasattr(made, "stride") else 1
        step = stride if isinstance(stride, int) else stride[0]
        self.shape = _Shape(channels, tuple(-(-size // step) for size in self.shape.sizes))
        return made


_HEAD_NODES = 3
_PARTS: tuple[Callable[[_Drawing], nn.Module], ...] = (
    _Drawing.conv,
    _Drawing.conv,
    _Drawing.same,
    _Drawing.depthwise,
    _Drawing.transposed,
    _Drawing.learned,
    _Drawing.normed,
    _Drawing.normed,
    _Drawing.normed,
    _Drawing.norm,
    _Drawing.activation,
    _Drawing.activation,
    _Drawing.activation,
    _Drawing.pool,
    _Drawing.residual,
    _Drawing.branches,
    _Drawing.shuffle,
    _Drawing.excite,
    _Drawing.interpolate,
)
