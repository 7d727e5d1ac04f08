"""A small model for each row of the table of rules: permutations in front of and behind it.

Channels are 12 and 6: not prime, as groups must divide them; other sizes are.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groupfx.nn import ChannelGather, ChannelShuffle, ConstantChannels

CHANNELS = 12
INPUT = (2, 3, 5, 7)


def permutation(channels: int, seed: int) -> list[int]:
    """One that is not the identity."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(channels, generator=generator).tolist()


class AroundRow(nn.Module):
    """conv -> permutation -> what is tested -> permutation -> conv."""

    def __init__(self, inner: nn.Module, channels: int = CHANNELS, out: int | None = None) -> None:
        super().__init__()
        out = channels if out is None else out
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.before = ChannelGather(permutation(channels, 1))
        self.inner = inner
        self.after = ChannelGather(permutation(out, 2))
        self.last = nn.Conv2d(out, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.after(self.inner(self.before(self.first(x)))))


class CalledRow(nn.Module):
    """A function as a module, which is traced through; it may hold modules and parameters."""

    def __init__(self, call: Callable[..., Tensor], *shapes: tuple[int, ...], **modules: nn.Module):
        super().__init__()
        self.call = call
        self.tensors = nn.ParameterList(nn.Parameter(torch.rand(s) + 0.5) for s in shapes)
        self.held = nn.ModuleDict(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, *self.tensors, **dict(self.held.items()))


class FlatRow(nn.Module):
    """conv -> permutation -> flatten -> linear, with the channels in front or behind."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.order = ChannelGather(permutation(CHANNELS, 3))
        self.last = last
        self.linear = nn.Linear(CHANNELS * 35, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.order(self.conv(x))
        y = y.permute(0, 2, 3, 1) if self.last else y
        return self.linear(torch.flatten(y, 1))


class TokensRow(nn.Module):
    """Linear layers on the last axis, with a LayerNorm and a permutation between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(7, CHANNELS)
        self.norm = nn.LayerNorm(CHANNELS)
        self.last = nn.Linear(CHANNELS, 5)
        self.indices: Tensor
        self.register_buffer("indices", torch.tensor(permutation(CHANNELS, 4)))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x).index_select(3, self.indices)))


class ResidualRow(nn.Module):
    """A stream that two convolutions write into, each behind a permutation of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 1)
        self.convs = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 1) for _ in range(3))
        self.orders = nn.ModuleList(ChannelGather(permutation(CHANNELS, k)) for k in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for conv, order in zip(self.convs, self.orders, strict=True):
            y = y + order(conv(torch.relu(y)))
        return y.mean((2, 3))


class AttentionRow(nn.Module):
    """Tokens, a permutation at each place around an attention, and one that it is made of.

    `kind` is how: of layers of their own, of one layer, of the tokens themselves, of a module.
    """

    def __init__(self, kind: str, heads: int = 3) -> None:
        super().__init__()
        self.kind, self.heads = kind, heads
        self.first, self.last = nn.Linear(7, CHANNELS), nn.Linear(CHANNELS, 5)
        self.layers = nn.ModuleList(nn.Linear(CHANNELS, CHANNELS) for _ in range(4))
        self.joint = nn.Linear(CHANNELS, 3 * CHANNELS)
        self.layer = nn.MultiheadAttention(CHANNELS, heads, batch_first=True)
        for k in range(7):
            self.register_buffer(f"order{k}", torch.tensor(permutation(CHANNELS, k)))
        self.register_buffer("order7", torch.tensor(permutation(3 * CHANNELS, 7)))

    def order(self, x: Tensor, number: int) -> Tensor:
        return x.index_select(-1, getattr(self, f"order{number}"))

    def split(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        return x.view(n, t, self.heads, c // self.heads).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.order(self.first(x.flatten(1, 2)), 0)
        n, t, c = y.shape
        if self.kind == "module":
            return self.last(self.order(self.layer(y, y, y)[0], 5))
        if self.kind in ("one layer", "unbind"):
            joint = self.order(self.joint(y), 7).reshape(n, t, 3, self.heads, -1)
            parts = joint.permute(2, 0, 3, 1, 4)
            q, k, v = parts.unbind(0) if self.kind == "unbind" else (parts[0], parts[1], parts[2])
        elif self.kind == "tokens":
            q, k, v = (self.split(z) for z in (y.relu(), y.tanh(), y))
        else:
            q, k, v = (self.split(self.order(self.layers[i](y), 1 + i)) for i in range(3))
        if self.kind == "products":
            z = ((q * 0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            z = F.scaled_dot_product_attention(q, k, v)
        z = self.order(z.transpose(1, 2).reshape(n, t, c), 4)
        return self.last(self.order(self.layers[3](z), 5))


class GateRow(nn.Module):
    """Squeeze and excite."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(CHANNELS, 3, 1), nn.Conv2d(3, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(torch.relu(self.down(F.adaptive_avg_pool2d(x, 1)))).sigmoid()


class TwiceRow(nn.Module):
    """A module that is called twice, once behind a permutation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.order = ChannelGather(permutation(CHANNELS, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.order(self.conv(x)))


def _shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)


def _heads(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 3, c // 3, h, w).softmax(1).view(n, c, h, w)


def _batch_shuffle(x: Tensor, a: nn.Module) -> Tensor:
    """The shuffle of one ShuffleNet v2: the channels with even numbers and the others."""
    n, c, h, w = x.shape
    y = x.reshape(n * c // 2, 2, h * w).permute(1, 0, 2).reshape(2, n, c // 2, h, w)
    return a(y[0]) + a(y[1])


def _norm(module: nn.Module) -> nn.Module:
    """A normalisation with statistics that are not those of a new one."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5)
    return module


def rows() -> dict[str, tuple[nn.Module, tuple[int, ...], bool]]:
    """Name -> model, shape of its input, and whether every permutation goes."""
    conv = nn.Conv2d
    folded: dict[str, nn.Module] = {
        "relu": nn.ReLU(),
        "dropout": nn.Dropout(),
        "hardswish function": CalledRow(F.hardswish),
        "max pool": nn.MaxPool2d(2, ceil_mode=True),
        "avg pool function": CalledRow(lambda x: F.avg_pool2d(x, 2)),
        "pad": nn.ReflectionPad2d(1),
        "pad function": CalledRow(lambda x: F.pad(x, (1, 2, 0, 1), value=3.0)),
        "resize": nn.Upsample(scale_factor=2),
        "interpolate": CalledRow(lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear")),
        "sum of itself": CalledRow(lambda x: x + x.sigmoid()),
        "broadcast [1,C,1,1]": CalledRow(lambda x, w: x * w, (1, CHANNELS, 1, 1)),
        "broadcast [C,1,1]": CalledRow(lambda x, w: x * w, (CHANNELS, 1, 1)),
        "broadcast scalar": CalledRow(lambda x, w: x * w - 2, ()),
        "broadcast [N,1,H,W]": CalledRow(lambda x: x * x.mean(1, keepdim=True)),
        "broadcast width": CalledRow(lambda x, w: x * w, (7,)),
        "batch norm": _norm(nn.BatchNorm2d(CHANNELS)),
        "batch norm function": CalledRow(
            lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b), *[(CHANNELS,)] * 4
        ),
        "instance norm": _norm(nn.InstanceNorm2d(CHANNELS, affine=True, track_running_stats=True)),
        "prelu one": nn.PReLU(),
        "prelu each": nn.PReLU(CHANNELS),
        "prelu function": CalledRow(lambda x, w: F.prelu(x, w), (CHANNELS,)),
        "softmax": nn.Softmax(1),
        "normalize": CalledRow(lambda x: F.normalize(x, dim=1)),
        "conv": conv(CHANNELS, CHANNELS, 3, padding=1),
        "conv function": CalledRow(lambda x, w: F.conv2d(x, w), (CHANNELS, CHANNELS, 1, 1)),
        "transposed conv": nn.ConvTranspose2d(CHANNELS, CHANNELS, 3),
        "depthwise": conv(CHANNELS, CHANNELS, 3, groups=CHANNELS),
        "transposed depthwise": nn.ConvTranspose2d(CHANNELS, CHANNELS, 3, groups=CHANNELS),
        "gate": GateRow(),
        "concat": CalledRow(
            lambda x, a, b: torch.cat([a(x), b(x)], 1), a=conv(12, 5, 1), b=conv(12, 7, 1)
        ),
        "concat dim=-3": CalledRow(
            lambda x, a, b: torch.cat([a(x), b(x)], dim=-3), a=conv(12, 5, 1), b=conv(12, 7, 1)
        ),
        "concat of width": CalledRow(lambda x: torch.cat([x, x.relu()], dim=3)),
        "shuffle": ChannelShuffle(3),
        "shuffle view": CalledRow(_shuffle),
        "torch shuffle": CalledRow(lambda x: F.channel_shuffle(x, 3)),
        "list index": CalledRow(lambda x: x[:, [3, 1, 0, 2, 5, 4, 7, 6, 9, 8, 11, 10]]),
        "concat of a split": CalledRow(lambda x: torch.cat(x.split([3, 4, 5], 1)[::-1], 1)),
        "shuffle of flat images": CalledRow(
            lambda x: x.view(x.shape[0], 3, 4, -1).transpose(1, 2).reshape(x.shape)
        ),
        "shuffle with the batch": CalledRow(_batch_shuffle, a=conv(6, 12, 1)),
        "index with dots": CalledRow(lambda x: x[..., 1:, :]),
        "max over C": CalledRow(lambda x: x - x.max(1, keepdim=True)[0] + x.amax(1, keepdim=True)),
        "cumsum of height": CalledRow(lambda x: x.cumsum(2).flip(3).roll(1, 2)),
        "instance norm function": CalledRow(
            lambda x, m, v, w, b: F.instance_norm(x, m, v, w, b, False), *[(CHANNELS,)] * 4
        ),
        "layer norm function": CalledRow(
            lambda x, w, b: F.layer_norm(x.permute(0, 2, 3, 1), (12,), w, b).permute(0, 3, 1, 2),
            *[(CHANNELS,)] * 2,
        ),
        "rms norm function": CalledRow(
            lambda x, w: F.rms_norm(x.permute(0, 2, 3, 1), (12,), w).permute(0, 3, 1, 2),
            (CHANNELS,),
        ),
        "linear function": CalledRow(
            lambda x, w: F.linear(x.permute(0, 2, 3, 1), w).permute(0, 3, 1, 2), (12, 12)
        ),
        "product with a matrix": CalledRow(
            lambda x, w: (x.permute(0, 2, 3, 1) @ w).permute(0, 3, 1, 2), (12, 12)
        ),
        "product with a transpose": CalledRow(
            lambda x, w: (x.permute(0, 2, 3, 1) @ w.t()).permute(0, 3, 1, 2), (12, 12)
        ),
        "fake quantization of a weight": CalledRow(
            lambda x, w, s, z: F.conv2d(
                x.float(),
                torch.fake_quantize_per_channel_affine(
                    w.float(), s.float(), z.round().int(), 0, -8, 7
                ),
            ).to(x),
            (12, 12, 1, 1),
            *[(CHANNELS,)] * 2,
        ),
        "fake quantization": CalledRow(
            lambda x, s, z: torch.fake_quantize_per_channel_affine(
                x.float(), s.float(), z.round().int(), 1, -8, 7
            ).to(x),
            *[(CHANNELS,)] * 2,
        ),
        "transpose": CalledRow(lambda x: x.transpose(2, 3).permute(0, 1, 3, 2)),
    }
    kept: dict[str, nn.Module] = {
        "group norm": _norm(nn.GroupNorm(3, CHANNELS)),
        "group norm function": CalledRow(lambda x, w: F.group_norm(x, 4, w), (CHANNELS,)),
        "local response norm": nn.LocalResponseNorm(3),
        "cumsum": CalledRow(lambda x: x.cumsum(1)),
        "roll": CalledRow(lambda x: x.roll(1, 1)),
        "flip": CalledRow(lambda x: x.flip(1)),
        "layer norm of all": _norm(nn.LayerNorm([CHANNELS, 5, 7])),
        "top-k": CalledRow(lambda x: x.topk(CHANNELS, 1)[0]),
        "heads": CalledRow(_heads),
        "grouped": conv(CHANNELS, CHANNELS, 1, groups=3),
        "chunk": CalledRow(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)),
        "clamp by channel": CalledRow(lambda x, w: torch.clamp(x, min=w), (1, CHANNELS, 1, 1)),
    }
    others: dict[str, tuple[nn.Module, tuple[int, ...], bool]] = {
        "depthwise with multiplier": (AroundRow(conv(12, 24, 1, groups=12), out=24), INPUT, False),
        "transposed grouped": (
            AroundRow(nn.ConvTranspose2d(12, 24, 1, groups=3), out=24),
            INPUT,
            False,
        ),
        "split": (AroundRow(CalledRow(lambda x: x.split([5, 7], 1)[1]), out=7), INPUT, True),
        "slice": (AroundRow(CalledRow(lambda x: x[:, 2:9]), out=7), INPUT, False),
        "gather with repeats": (AroundRow(ChannelGather([3, 3, 0, 1, 7]), out=5), INPUT, False),
        "pixel shuffle": (AroundRow(nn.PixelShuffle(2), out=3), INPUT, False),
        "pixel unshuffle": (AroundRow(nn.PixelUnshuffle(1)), INPUT, True),
        "flatten": (FlatRow(last=False), INPUT, True),
        "flatten channels last": (FlatRow(last=True), INPUT, True),
        "tokens": (TokensRow(), INPUT, True),
        **{
            f"attention, {kind}": (AttentionRow(kind), INPUT, True)
            for kind in ("products", "layers", "one layer", "unbind", "tokens", "module")
        },
        "constant": (AroundRow(ConstantChannels(torch.rand(CHANNELS))), INPUT, True),
        "residual": (ResidualRow(), INPUT, False),
        "argmax": (
            AroundRow(CalledRow(lambda x: x.argmax(1, keepdim=True).float() * x)),
            INPUT,
            False,
        ),
        "twice": (AroundRow(TwiceRow()), INPUT, False),
    }
    return {
        **{name: (AroundRow(inner), INPUT, True) for name, inner in folded.items()},
        **{name: (AroundRow(inner), INPUT, False) for name, inner in kept.items()},
        **others,
    }
