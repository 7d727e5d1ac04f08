"""Models for `test_python`: each has something that is easily lost when it is written down."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groupfx.nn import ChannelGather, ChannelShuffle, Flgc2d
from tests.models import zoo_traps as traps
from tests.models.zoo import Case, Inputs


def example(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Callable[[], Inputs]:
    def make() -> Inputs:
        generator = torch.Generator().manual_seed(5)
        return tuple((torch.randn(shape, generator=generator) + 0.3).to(dtype) for shape in shapes)

    return make


SOUND = example((2, 4, 7))


class Grouped(nn.Module):
    """One grouped convolution that keeps the size."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv1d(4, 4, 3, groups=2, padding=1)

    def forward(self, x: Tensor) -> Any:
        return self.c(x)


def with_forward(forward: Callable[..., Any], **tensors: Any) -> nn.Module:
    """A `Grouped` with another forward, and attributes."""
    model = type("Grouped", (Grouped,), {"forward": forward})()
    for name, value in tensors.items():
        setattr(model, name, value)
    return model


# Sharing, freezing, modes, precision


class SharedLayers(nn.Module):
    """One layer at three places of two containers, a container at two, and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(7, 7)
        block = nn.Sequential(nn.Linear(7, 7), layer)
        self.layers = nn.ModuleList([layer, nn.Linear(7, 7), layer])
        self.named = nn.ModuleDict({"keys2": block, "outer": nn.Sequential(block, nn.Tanh())})
        self.c = nn.Conv1d(4, 4, 3, groups=2, padding=1)
        self.d = nn.Conv1d(4, 4, 3, groups=2, padding=1)
        self.d.weight = self.c.weight
        self.wide = nn.Linear(7, 11)
        self.back = nn.Linear(11, 7)
        self.twin = nn.Linear(11, 7)
        self.twin.weight = self.back.weight

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        x = self.named["outer"](self.named["keys2"](x))
        x = self.wide(self.d(self.c(x)))
        return self.back(x) - self.twin(x)


class PartlyFrozen(nn.Module):
    """Frozen: a part, one tensor in each branch, one of a layer, one of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4))
        self.c = nn.Conv1d(4, 4, 3, groups=2)
        self.d = nn.Conv1d(4, 4, 1, groups=2)
        self.line = nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.randn(3), requires_grad=False)
        self.offsets = nn.Parameter(torch.tensor([1, 2]), requires_grad=False)
        self.drop = nn.Dropout(0.3)
        for part in (self.stem, self.c.weight, self.d, self.line.bias):
            part.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.line(self.d(self.c(self.stem(x)))) * self.scale + self.offsets.sum()
        return self.drop(x)


class MixedPrecision(nn.Module):
    """Parts in six precisions."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv1d(4, 4, 3, groups=2).double()
        self.bn = nn.BatchNorm1d(4).double()
        self.line = nn.Linear(5, 5).bfloat16()
        self.pair = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)).half()
        self.turn = nn.Parameter(torch.randn(5, dtype=torch.complex64))
        self.norm = nn.LayerNorm(5)
        self.norm.weight.data = self.norm.weight.data.double()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.line(self.bn(self.c(x.double())).bfloat16())
        return self.pair(x.half()).float() * self.turn, self.norm.weight * 2


def in_(dtype: torch.dtype) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Conv1d(4, 4, 3, groups=2), nn.BatchNorm1d(4)).to(dtype)


# Constants


class Constants(Grouped):
    """Numbers that are in no state_dict."""

    def __init__(self) -> None:
        super().__init__()
        buffers = {
            "places": torch.arange(7)[None],
            "causal": torch.ones(7, 7, dtype=torch.bool).tril(),
            "odd": torch.tensor([1.5, -0.0, float("inf"), float("-inf"), float("nan")]),
            "zeros": torch.zeros(3, 2),
            "signed": torch.tensor([0.0, -0.0]),
            "tenth": torch.full((2, 3), 0.1, dtype=torch.float16),
            "complex": torch.tensor([1 + 2j, 3]),
            "rows": torch.tensor([[0, 1, 1], [1, 0, 0]])[[0, 1, 1, 0, 0, 1, 0, 0, 1, 1]],
            "numbers": torch.linspace(0, 1, 60) ** 2,
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)
        self.register_buffer("kept", torch.tensor(3))
        self.plain = torch.tensor([[1.0, 2.0], [3.0, 4.0]])

    def forward(self, x: Tensor) -> Any:
        x = self.c(x).masked_fill(self.causal[:4], -7.5) + self.places + self.kept
        x = x + torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]) + self.plain.sum()
        rest = (self.zeros, self.tenth, self.complex, self.rows, self.numbers)
        return x, torch.signbit(self.signed), self.odd.nan_to_num(), rest


# Expressions


class Operators(Grouped):
    """Every operator, nested so that each pair of brackets counts."""

    def forward(self, x: Tensor, y: Tensor) -> Any:
        a = self.c(x)
        b = a * 2
        z = (a + b) * a - (b - (a - b))
        z = -((a + z) ** 2)
        z = (z**2) ** b.abs().clamp(0, 1)
        z = 2 ** (-z.clamp(-1, 1))
        z = (a - b) - z - (a - (b - z))
        z = z / (a * b + 9) / (a / (b + 9))
        w = (z.transpose(1, 2) @ y @ y.transpose(0, 1)) * 2
        q = ~((z > 0) & ((b < 1) | (a == a)) ^ (a != b))
        v = (a > b) == (b >= a), z % 3, z // 2, 5 - (-z), -5 - z, (-2.5) * z, +z
        u = [1 << (z > 0).int(), (z > 0).int() >> 1, (a <= b) != (b > 1)]
        return z, w, q, v, u


class Indices(Grouped):
    """Every kind of subscript, sizes, nested outputs."""

    def forward(self, x: Tensor) -> Any:
        a = self.c(x)
        parts = (a[..., ::2], a[:, None, 1:-1], a[0], a[:, -1], a[(0,)], a[[0, 1]], a[:, [1, 0]])
        more = a[()], a[(slice(0, 1),)], a[a > 0], a[None], a[1:, :, : x.shape[1]], a[-1:]
        b = a.clone()
        b += x
        b *= 2.0
        c = b.clone()
        c -= 1
        sizes = x.shape[0] + x.size(-1) * 2, x.shape, x.dim()
        return parts, more, b, {"k": (c, [sizes, None, 3, "it's"]), "m": {}}, torch.float16


class OneSize(Grouped):
    """Of the sizes that are asked for, one is read, once."""

    def forward(self, x: Tensor) -> Any:
        a = F.relu(self.c(x))
        torch._assert(a.size()[1] % 2 == 0, "wants an even number of channels")
        return a * a.shape[2]


class FunctionsWithDefaults(Grouped):
    """Functions with defaults, keywords, tuples as results."""

    def forward(self, x: Tensor) -> Any:
        a = self.c(x)
        a = F.interpolate(a, scale_factor=2.0, mode="linear", align_corners=False)
        a = F.pad(a, (1, 2), value=-float("inf")).clamp(min=-5)
        a = F.gelu(F.leaky_relu(F.max_pool1d(a, 2), 0.2), approximate="tanh")
        a = F.layer_norm(F.softmax(a, dim=-1), a.shape[-1:])
        halves = a.chunk(2, dim=1)
        most = torch.max(a, dim=1)
        a = torch.einsum("bcl,bdl->bcd", a, a)
        a = torch.where(a > 0, a, torch.zeros_like(a)).view(x.size(0), -1, 4)
        a = torch.stack([a, a], dim=-1).sum(dim=(1, -1), keepdim=True)
        made = torch.arange(3, device=x.device, dtype=torch.float32), torch.full((2,), 1e400)
        return a, halves[0] + halves[1], most[0], most[1], made, torch.cat([a, a], 2)


class Concatenations(nn.Module):
    """Concatenations that are alike and not split convolutions, and some that are almost alike."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ModuleList([nn.Conv1d(2, 2, 1), nn.Conv1d(2, 3, 1), nn.Conv1d(2, 2, 1)])
        self.b = nn.ModuleList([nn.Sequential(nn.Conv1d(2, 2, 1), nn.PReLU()) for _ in range(2)])
        self.c = nn.Conv1d(4, 4, 1, groups=2)

    def forward(self, x: Tensor) -> Any:
        return (
            torch.cat([self.a[0](x[:, :2]), self.a[1](x[:, 2:])], 1),
            torch.cat([self.a[0](x[:, 0:2]), self.a[1](x[:, 2:4])], 1),
            torch.cat([self.a[0](x[:, 0:2]), self.a[2](x[:, 2:4])], 1),
            torch.cat([self.a[1](x[:, 0:2]), self.a[0](x[:, 2:4])], 1),
            torch.cat([self.b[k](x[:, 2 * k : 2 * k + 2]) for k in range(2)], 1),
            torch.cat([x[:, 0:1], x[:, 1:2], x[:, 3:4]], 1),
            torch.cat([x[:, :, -2 * k :] for k in range(1, 4)], 2),
            torch.cat([x[:, 3 - k : 4 - k] for k in range(3)], 1),
            torch.cat([F.relu(x), F.relu(x)]),
            torch.cat([x, x]),
            torch.cat(
                [torch.cat([x[:, 2 * k + j : 2 * k + j + 1] for j in (0, 1)]) for k in (0, 1)]
            ),
            self.c(x),
        )


class Leaves(nn.Module):
    """Layers whose constructors forget what they were given, or give several values."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv1d(4, 4, 3, groups=2, padding=1)
        self.attention = nn.MultiheadAttention(7, 7, batch_first=True)
        self.shuffle = ChannelShuffle(2)
        self.gather = ChannelGather([3, 1, 2, 0])
        self.relu = nn.ReLU(inplace=True)
        self.embedding = nn.Embedding(5, 7, padding_idx=1)
        self.place = nn.Buffer(torch.tensor([0, 1, 4]))
        self.blur = nn.Conv1d(4, 4, 3, padding=1, bias=False)
        kernel = self.blur.weight.detach()
        del self.blur.weight
        self.blur.register_buffer("weight", kernel)

    def forward(self, x: Tensor) -> Any:
        x = self.attention(self.c(x), x, x, need_weights=False)[0]
        x = self.relu(self.gather(self.shuffle(self.blur(x))))
        return x, self.embedding(self.place)


class Rates(nn.Module):
    """A leaf whose constructor reads a number that it computes, and keeps its argument."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.rate = torch.linspace(0, 1, steps)[1].item()

    def forward(self, x: Tensor) -> Tensor:
        return traps.Round.apply(x) * self.rate


def learned(**fields: Any) -> Callable[[], nn.Module]:
    """Layers with learned groups, which the default pipeline freezes."""

    def make() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(
            Flgc2d(8, 12, 3, padding=1, group_num=4, **fields),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 8, 1, groups=4),
        ).eval()

    return make


def behind(leaf: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv1d(4, 4, 1, groups=2), leaf)


CASES = [
    Case("frozen", PartlyFrozen, example((2, 4, 9)), "trace", {}),
    *(
        Case(str(dtype), in_(dtype), example((2, 4, 7), dtype=dtype), "trace", {})
        for dtype in (torch.float16, torch.bfloat16, torch.float64)
    ),
    Case("constants", Constants, SOUND, "trace", {}),
    Case("constants-export", Constants, SOUND, "export", {}),
    Case("operators", Operators, example((2, 4, 7), (4, 4)), "trace", {}),
    Case("operators-export", Operators, example((2, 4, 7), (4, 4)), "export", {}),
    Case("indices", Indices, SOUND, "trace", {}),
    Case("one-size", OneSize, SOUND, "trace", {}),
    Case("functions", FunctionsWithDefaults, example((2, 4, 8)), "trace", {}),
    Case("functions-export", FunctionsWithDefaults, example((2, 4, 8)), "export", {}),
    Case("branches", Concatenations, SOUND, "trace", {}),
    Case("leaves", Leaves, SOUND, "trace", {}),
    Case("learned-groups", learned(), example((2, 8, 5, 6)), "trace", {}),
    Case("learned-groups-no-bias", learned(bias=False), example((2, 8, 5, 6)), "trace", {}),
]

# Layer and how it is written.
LEAVES = [
    (
        nn.Conv2d(3, 8, (3, 3), (2, 2), 1, bias=False),
        "nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)",
    ),
    (nn.Conv2d(3, 8, (3, 1), padding="same"), 'nn.Conv2d(3, 8, (3, 1), padding="same")'),
    (
        nn.Conv1d(3, 3, 5, padding=2, padding_mode="circular"),
        'nn.Conv1d(3, 3, 5, padding=2, padding_mode="circular")',
    ),
    (
        nn.ConvTranspose2d(4, 4, 3, 2, output_padding=1),
        "nn.ConvTranspose2d(4, 4, 3, stride=2, output_padding=1)",
    ),
    (nn.Linear(3, 5), "nn.Linear(3, 5)"),
    (nn.BatchNorm2d(4, eps=0.1, momentum=None), "nn.BatchNorm2d(4, eps=0.1, momentum=None)"),
    (nn.BatchNorm1d(4, affine=False), "nn.BatchNorm1d(4, affine=False)"),
    (nn.LayerNorm([4], bias=False), "nn.LayerNorm(4, bias=False)"),
    (nn.MaxPool2d(3, 2, 1), "nn.MaxPool2d(3, stride=2, padding=1)"),
    (nn.MaxPool1d(2), "nn.MaxPool1d(2)"),
    (nn.AdaptiveAvgPool2d((1, None)), "nn.AdaptiveAvgPool2d((1, None))"),
    (nn.Upsample(scale_factor=2), "nn.Upsample(scale_factor=2.0)"),
    (nn.Flatten(), "nn.Flatten()"),
    (nn.Embedding(5, 4, padding_idx=1), "nn.Embedding(5, 4, padding_idx=1)"),
    (nn.MultiheadAttention(4, 2, kdim=3), "nn.MultiheadAttention(4, 2, kdim=3)"),
    (nn.PReLU(4), "nn.PReLU(num_parameters=4)"),
    (nn.Hardtanh(0, 6), "nn.Hardtanh(min_val=0, max_val=6)"),
]
