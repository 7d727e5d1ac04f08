"""Networks as their libraries write them, at a few channels: layers that compute their padding,
norms with their activation, weights made anew, caches, trees, loops and codecs.

Each is written from its paper for what is particular in how it calls its grouped convolutions.
`NETWORKS` is the table.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Network:
    """`runs` grouped convolutions in one forward; `left` are those that no split takes.

    `exported` is whether `torch.export` takes it.
    """

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    way: str
    runs: int
    left: int = 0
    exported: bool = True


def same_padding(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """TensorFlow's padding, of the size and not of the layer."""
    pads: list[int] = []
    for size, k, s in zip(x.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):
        total = max((math.ceil(size / s) - 1) * s + k - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


class SamePaddedConv(nn.Conv2d):
    """As in the networks that were trained in TensorFlow."""

    def forward(self, x: Tensor) -> Tensor:
        x = same_padding(x, self.kernel_size, self.stride)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class StandardisedSameConv(nn.Conv2d):
    """NFNet: scaled weight standardisation, with a gain for each filter."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups)
        self.gain = nn.Parameter(torch.rand(outputs, 1, 1, 1) + 0.5)
        self.scale = self.weight[0].numel() ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        x = same_padding(x, self.kernel_size, self.stride)
        rows = self.weight.reshape(1, self.out_channels, -1)
        gain = (self.gain * self.scale).view(-1)
        weight = F.batch_norm(rows, None, None, weight=gain, training=True, eps=1e-6)
        weight = weight.reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, 0, self.dilation, self.groups)


class NormDropAct(nn.BatchNorm2d):
    """timm's: a norm, dropout and an activation in one module."""

    def __init__(self, channels: int, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            raise ValueError(f"expected 4D input (got {x.ndim}D input)")
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias,
            self.training, self.momentum or 0.0, self.eps,
        )  # fmt: skip
        return self.act(self.drop(x))


class StochasticDepth(nn.Module):
    """Stochastic depth."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(0.9)
        return x * keep.div_(0.9)


class ExpandedResidual(nn.Module):
    def __init__(self, channels: int, conv: type[nn.Module] = SamePaddedConv) -> None:
        super().__init__()
        self.expand, self.norm1 = nn.Conv2d(channels, 12, 1, bias=False), NormDropAct(12, nn.SiLU)
        self.conv = conv(12, 12, 5, 1, groups=4)
        self.norm2, self.project = NormDropAct(12, nn.SiLU), nn.Conv2d(12, channels, 1)
        self.drop_path = StochasticDepth()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv(self.norm1(self.expand(x))))
        return x + self.drop_path(self.project(y))


class ExpertsConv(nn.Module):
    """CondConv: experts mixed by a routing; the batch is taken for channels."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__()
        self.shape, self.stride, self.groups = (outputs, inputs // groups, kernel), stride, groups
        self.experts = nn.Parameter(torch.randn(3, outputs * inputs // groups * kernel**2) * 0.1)
        self.routing = nn.Linear(inputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        outputs, inputs, kernel = self.shape
        weight = torch.sigmoid(self.routing(x.mean((2, 3)))) @ self.experts
        weight = weight.view(b * outputs, inputs, kernel, kernel)
        x = x.reshape(1, b * c, h, w)
        y = F.conv2d(x, weight, None, self.stride, kernel // 2, groups=self.groups * b)
        return y.permute([1, 0, 2, 3]).view(b, outputs, y.shape[-2], y.shape[-1])


class SplitAttention(nn.Module):
    """ResNeSt with one split: a gate whose view changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm2d(8)
        self.fc1, self.fc2 = nn.Conv2d(8, 4, 1, groups=2), nn.Conv2d(4, 8, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(self.stem(x))))
        b = x.shape[0]
        gate = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return (x * gate.sigmoid().view(b, -1, 1, 1)).contiguous()


class AntiAliased(nn.Module):
    """TResNet: space to depth, and a blur whose kernel is a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(12, 8, 3, padding=1, groups=4), nn.BatchNorm2d(8)
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.blur = (row[:, None] * row)[None, None].repeat(8, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.size()
        x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).contiguous()
        x = F.leaky_relu(self.norm(self.conv(x.view(n, c * 4, h // 2, w // 2))), 1e-3)
        x = F.pad(x, (1, 1, 1, 1), "reflect")
        return F.conv2d(x, self.blur.to(x), stride=2, groups=x.shape[1])


class AnchorDetector(nn.Module):
    """YOLO: layers that say where their inputs come from, and a head that keeps its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1, groups=4), nn.Upsample(None, 2)]
        )
        self.sources = (-1, -1, -1)
        self.head = nn.Conv2d(16, 6, 1, groups=2)
        self.shape: tuple[int, ...] | None = None
        self.anchors = torch.empty(0)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        kept = [x]
        for source, layer in zip(self.sources, self.layers, strict=True):
            kept.append(layer(kept[source]))
        maps = [self.head(torch.cat([kept[1], kept[3]], 1))]
        if self.shape != maps[0].shape:
            h, w = maps[0].shape[2:]
            grid = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            self.anchors, self.shape = torch.stack(grid).flatten(1).to(x.dtype) + 0.5, maps[0].shape
        box, score = maps[0].flatten(2).split((2, 4), 1)
        return torch.cat([box + self.anchors, score.sigmoid()], 1), maps


class SoundCodec(nn.Module):
    """SEANet: padding by the length of the sound, and normed transposed convolutions."""

    def __init__(self, norm: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.down, self.up = norm(nn.Conv1d(4, 8, 4, 2, groups=2)), norm(_up(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        extra = x.shape[-1] % 2
        x = F.pad(x, (1, 1), "reflect")
        if extra:
            x = F.pad(x, (0, extra))
        x = F.elu(self.down(x))
        y = self.up(x)
        return y[..., 1 : y.shape[-1] - 1]


def _up(inputs: int, outputs: int) -> nn.Module:
    return nn.ConvTranspose1d(inputs, outputs, 4, 2, groups=2)


class LengthMasked(nn.Module):
    """QuartzNet: what lies behind the end of a sound is 0, and the lengths go along."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, 5, padding=2, groups=groups)

    def forward(self, given: tuple[list[Tensor], Tensor]) -> tuple[list[Tensor], Tensor]:
        (x,), lengths = given
        there = torch.arange(x.size(2), device=x.device).unsqueeze(0) < lengths.unsqueeze(1)
        return [F.relu(self.conv(x * there.unsqueeze(1).to(x.dtype)))], lengths


class SoundNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            LengthMasked(4, 8, 4), LengthMasked(8, 8, 8), LengthMasked(8, 6, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.full((x.shape[0],), x.shape[2] - 3)
        (y,), _ = self.blocks(([x], lengths))
        return y


class LayerTree(nn.Module):
    """DLA: a tree whose nodes hand their children down in a list."""

    def __init__(self, levels: int, channels: int, more: int = 0) -> None:
        super().__init__()
        self.levels = levels
        if levels:
            self.left, self.right = (
                LayerTree(levels - 1, channels),
                LayerTree(levels - 1, channels, more + 1),
            )
        else:
            self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=3)
            self.root = nn.Conv2d(channels * (more + 1), channels, 1)

    def forward(self, x: Tensor, children: list[Tensor] | None = None) -> Tensor:
        children = [] if children is None else children
        if not self.levels:
            return F.relu(self.root(torch.cat([self.conv(x), *children], 1)))
        left = self.left(x)
        children.append(left)
        return self.right(left, children)


class FlowInLoop(nn.Module):
    """RAFT: one cell called in a loop, and a list of what it gives each time."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.cell = nn.Conv2d(3, 6, 5, 2, 2), nn.Conv2d(12, 6, 3, 1, 1, groups=3)
        self.flow = nn.Conv2d(6, 2, 3, padding=1, groups=2)

    def forward(self, first: Tensor, second: Tensor, steps: int | None = None) -> list[Tensor]:
        a, b = self.encoder(first), self.encoder(second)
        state, flow, found = torch.tanh(a), torch.zeros_like(a[:, :2]), []
        for _ in range(steps or 3):
            flow = flow.detach()
            state = torch.tanh(self.cell(torch.cat([state, a - b], 1)))
            flow = flow + self.flow(state)
            found.append(flow)
        return found


class ModulatedStyles(nn.Module):
    """StyleGAN2: a kernel for each style, once transposed; and an ordinary grouped one before."""

    def __init__(self) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.randn(1, 8, 4, 5))
        self.conv, self.style = nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Linear(5, 8)
        self.weight = nn.Parameter(torch.randn(1, 6, 8, 3, 3) / 8)

    def forward(self, z: Tensor) -> Tensor:
        b = z.shape[0]
        x = self.conv(self.constant.repeat(b, 1, 1, 1))
        weight = self.weight * self.style(z).view(b, 1, 8, 1, 1)
        weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4], keepdim=True) + 1e-8)
        weight = weight.transpose(1, 2).reshape(b * 8, 6, 3, 3)
        y = F.conv_transpose2d(x.view(1, b * 8, 4, 5), weight, stride=2, groups=b)
        _, _, h, w = y.shape
        return y.view(b, 6, h, w)


class MaxNormConv(nn.Conv2d):
    """EEGNet: a weight that forward brings back under its largest norm."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, 2, 0, 0.5)
        return super().forward(x)


class Brain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time, self.norm = nn.Conv2d(1, 3, (1, 8), padding=(0, 4)), nn.BatchNorm2d(3)
        self.space = MaxNormConv(3, 6, (4, 1), groups=3, bias=False)
        self.depth = nn.Conv2d(6, 6, (1, 4), groups=6)

    def forward(self, x: Tensor) -> Tensor:
        while len(x.shape) < 4:
            x = x.unsqueeze(1)
        return self.depth(F.elu(self.space(self.norm(self.time(x)))))


@dataclass
class DecodedImage:
    """What an autoencoder gives."""

    sample: Tensor
    indices: Tensor = field(repr=False)


class NearestCodes(nn.Module):
    """VQ-GAN: the nearest of some codes, straight through, in a class of the library's own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 8, 3, 2, 1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.codes = nn.Embedding(16, 8)
        self.decoder = nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=4)

    def forward(self, x: Tensor) -> DecodedImage:
        z = checkpoint(self.middle, self.encoder(x), use_reentrant=False).permute(0, 2, 3, 1)
        flat = z.reshape(-1, 8)
        nearest = torch.cdist(flat, self.codes.weight).argmin(1)
        q = z + (self.codes(nearest).view(z.shape) - z).detach()
        return DecodedImage(self.decoder(q.permute(0, 3, 1, 2).contiguous()), nearest)


class TimeFirstConv(nn.Conv1d):
    """fairseq's: a convolution of `[T, N, C]` that sees no future."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x.permute(1, 2, 0))
        return y[:, :, : -self.padding[0]].permute(2, 0, 1)


class GatedTranslator(nn.Module):
    """The convolutional translator: gated, residual, under the old weight norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, 8, 1)
        convs = (TimeFirstConv(8, 16, 3, padding=2, groups=g) for g in (2, 4))
        self.convs = nn.ModuleList(_old_weight_norm(conv) for conv in convs)
        self.cached: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).permute(2, 0, 1)
        for number, conv in enumerate(self.convs):
            if x.shape[0] < 2:
                break
            x = (F.glu(conv(x), dim=2) + x) * math.sqrt(0.5)
            if self.training:
                self.cached[str(number)] = x.detach()
        return x.permute(1, 2, 0)


def _old_weight_norm(conv: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(conv)


class FourierPositions(nn.Module):
    """EdgeNeXt: a cascade over parts, and positions that are counted by rows and columns."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.parts = nn.Conv2d(3, 12, 4, 4), nn.ModuleList(map(_depthwise, (4, 4)))
        self.project, self.down = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 18, 2, 2, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        parts, done = self.stem(x).chunk(3, 1), list[Tensor]()
        for number, conv in enumerate(self.parts):
            part = parts[number]
            done.append(conv(part + done[-1] if done else part))
        x = torch.cat([*done, parts[-1]], 1)
        count = torch.ones_like(x[:, 0])
        rows, columns = count.cumsum(1), count.cumsum(2)
        rows, columns = rows / (rows[:, -1:, :] + 1e-6), columns / (columns[:, :, -1:] + 1e-6)
        scales = 2.0 ** torch.arange(4)
        found = [(each[..., None] / scales).sin() for each in (rows, columns)]
        return self.down(x + self.project(torch.cat(found, 3).permute(0, 3, 1, 2)))


def _depthwise(channels: int) -> nn.Module:
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels)


class RecursiveBlock(nn.Module):
    """CARN-M: one grouped block three times, and what it gave each time."""

    def __init__(self) -> None:
        super().__init__()
        convs = (nn.Conv2d(8, 8, 3, padding=1, groups=g) for g in (4, 2))
        self.first, self.block = nn.Conv2d(3, 8, 1), nn.Sequential(*convs, nn.ReLU())
        self.mixes = nn.ModuleList(nn.Conv2d(8 * n, 8, 1) for n in (2, 3, 4))
        self.up = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1, groups=4), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        seen = x = self.first(x)
        for mix in self.mixes:
            seen = torch.cat([seen, self.block(x)], 1)
            x = F.relu(mix(seen))
        return self.up(x)


class SearchedCell(nn.Module):
    """NAS-Bench-201: edges in a dict, by names that are no identifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.edges = nn.ModuleDict()
        for end in range(1, 4):
            for start in range(end):
                conv = nn.Conv2d(8, 8, 3, padding=1, groups=2 ** (end - start), bias=False)
                layers = (nn.ReLU(), conv, nn.BatchNorm2d(8, affine=start > 0))
                self.edges[f"{end}<-{start}"] = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        nodes = [self.first(x)]
        for end in range(1, 4):
            nodes.append(sum(self.edges[f"{end}<-{start}"](nodes[start]) for start in range(end)))
        return nodes[-1]


def _residuals(conv: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), ExpandedResidual(8, conv), NormDropAct(8))


IMAGE, SOUND = ((2, 3, 18, 22),), ((2, 4, 26),)
NETWORKS: dict[str, Network] = {
    "tf-efficientnet": Network(lambda: _residuals(SamePaddedConv), IMAGE, "modules", 1),
    "nfnet": Network(lambda: _residuals(StandardisedSameConv), IMAGE, "modules", 1),
    "condconv": Network(lambda: _residuals(ExpertsConv), IMAGE, "modules", 1, left=1),
    "resnest": Network(SplitAttention, IMAGE, "trace", 3),
    "tresnet": Network(AntiAliased, IMAGE, "trace", 2),
    "yolo": Network(AnchorDetector, ((2, 3, 16, 20),), "modules", 2),
    "seanet": Network(lambda: SoundCodec(parametrizations.weight_norm), SOUND, "modules", 2),
    "seanet-spectral": Network(lambda: SoundCodec(spectral_norm), SOUND, "modules", 2),
    "quartznet": Network(SoundNet, SOUND, "trace", 3),
    "dla": Network(lambda: nn.Sequential(nn.Conv2d(3, 6, 3), LayerTree(2, 6)), IMAGE, "trace", 4),
    "raft": Network(FlowInLoop, (*IMAGE, *IMAGE), "modules", 6),
    "stylegan2": Network(ModulatedStyles, ((2, 5),), "trace", 2, left=1),
    "fairseq": Network(GatedTranslator, SOUND, "modules", 2),
    "edgenext": Network(FourierPositions, IMAGE, "trace", 3),
    "carn-m": Network(RecursiveBlock, IMAGE, "trace", 7),
    "nas-bench-201": Network(SearchedCell, IMAGE, "trace", 6),
    "eegnet": Network(Brain, SOUND, "modules", 2, exported=False),
    "vqgan": Network(NearestCodes, ((2, 3, 12, 16),), "modules", 2),
}


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor of an output, in order, those of a dataclass included."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | DecodedImage):
        for each in (value if isinstance(value, dict) else vars(value)).values():
            yield from tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors(each)
