"""What a user may write, the pass that spells it otherwise, and what stands there afterwards."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

X = torch.randn(2, 6, 5, 7)


class Written(nn.Module):
    """A convolution, and then what a user may write."""

    def __init__(self, body: Callable[[Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        self.body = body
        self.conv = nn.Conv2d(6, 8, 3, padding=1)
        self.other = nn.Conv2d(6, 8, 1)
        self.one = nn.Conv2d(8, 8, 1)
        self.linear = nn.Linear(8, 4)
        self.register_buffer("calls", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 6, H, W]` to whatever the body makes."""
        return self.body(x, self)


def shuffled(y: Tensor, groups: int) -> Tensor:
    n, c, h, w = y.size()
    return y.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def halves(y: Tensor) -> Tensor:
    low, high = y.chunk(2, dim=1)
    return torch.sub(low, high)


ROWS = [
    # pass, id, body, how many, what is there afterwards
    (
        "spell-calls",
        "dropout that is off",
        lambda x, m: F.dropout(m.conv(x), 0.3, training=False),
        1,
        ["nn.Conv2d"],
    ),
    ("spell-calls", "sigmoid", lambda x, m: m.conv(x).sigmoid(), 1, ["nn.Conv2d", "torch.sigmoid"]),
    ("spell-calls", "relu", lambda x, m: m.conv(x).relu(), 1, ["nn.Conv2d", "F.relu"]),
    ("spell-calls", "relu in place", lambda x, m: m.conv(x).relu_(), 1, ["nn.Conv2d", "F.relu"]),
    (
        "spell-calls",
        "product",
        lambda x, m: m.conv(x) * m.other(x),
        1,
        ["nn.Conv2d", "nn.Conv2d", "torch.multiply"],
    ),
    (
        "spell-calls",
        "an imaginary number of each",
        lambda x, m: torch.view_as_real(m.conv(x) * 1j),
        1,
        ["nn.Conv2d", "torch.multiply", "torch.view_as_real"],
    ),
    ("spell-calls", "scaled", lambda x, m: m.conv(x) * 2, 1, ["nn.Conv2d", "torch.multiply"]),
    (
        "spell-calls",
        "expanded",
        lambda x, m: m.conv(x).mean((2, 3), keepdim=True).expand_as(m.other(x)) * m.other(x),
        1,
        ["nn.Conv2d", ".mean", "nn.Conv2d", "torch.multiply"],
    ),
    (
        "spell-calls",
        "concat from the end",
        lambda x, m: torch.concat((m.conv(x), m.other(x)), -3),
        1,
        ["nn.Conv2d", "nn.Conv2d", "torch.cat"],
    ),
    (
        "spell-calls",
        "contiguous for nothing",
        lambda x, m: F.relu(m.conv(x).transpose(2, 3).contiguous()).reshape(2, 4, -1),
        1,
        ["nn.Conv2d", ".transpose", "F.relu", ".reshape"],
    ),
    (
        "flatten-views",
        "one position, whatever the size",
        lambda x, m: m.linear(m.conv(x).flatten(2).max(2, keepdim=True)[0].view(-1, 8)),
        1,
        ["nn.Conv2d", ".flatten", ".max", "getitem", "torch.flatten", "nn.Linear"],
    ),
    (
        "flatten-views",
        "channels first of all, which are no batch",
        lambda x, m: m.conv(x).transpose(0, 1).reshape(8, -1),
        1,
        ["nn.Conv2d", ".transpose", "torch.flatten"],
    ),
    (
        "flatten-views",
        "view",
        lambda x, m: m.conv(x).view(x.size(0), -1),
        1,
        ["nn.Conv2d", "torch.flatten"],
    ),
    (
        "flatten-views",
        "reshape",
        lambda x, m: m.conv(x).reshape(x.shape[0], -1),
        1,
        ["nn.Conv2d", "torch.flatten"],
    ),
    (
        "flatten-views",
        "squeezes",
        lambda x, m: F.adaptive_avg_pool2d(m.conv(x), 1).squeeze(-1).squeeze(-1),
        1,
        ["nn.Conv2d", "F.adaptive_avg_pool2d", "torch.flatten"],
    ),
    (
        "flatten-views",
        "one position",
        lambda x, m: F.adaptive_avg_pool2d(m.conv(x), 1)[:, :, 0, 0],
        1,
        ["nn.Conv2d", "F.adaptive_avg_pool2d", "torch.flatten"],
    ),
    (
        "flatten-views",
        "positions again",
        lambda x, m: m.linear(m.conv(x).mean((2, 3))).view(x.size(0), 4, 1, 1),
        1,
        ["nn.Conv2d", ".mean", "nn.Linear", "torch.unsqueeze", "torch.unsqueeze"],
    ),
    (
        "pool-means",
        "mean",
        lambda x, m: m.conv(x).mean((2, 3)),
        1,
        ["nn.Conv2d", "nn.AdaptiveAvgPool2d", "torch.flatten"],
    ),
    (
        "pool-means",
        "listed axes",
        lambda x, m: m.conv(x).mean([-1, -2]),
        1,
        ["nn.Conv2d", "nn.AdaptiveAvgPool2d", "torch.flatten"],
    ),
    (
        "pool-means",
        "kept",
        lambda x, m: torch.mean(m.conv(x), (2, 3), keepdim=True),
        1,
        ["nn.Conv2d", "nn.AdaptiveAvgPool2d"],
    ),
    ("pool-means", "one axis", lambda x, m: m.conv(x).mean(3), 1, ["nn.Conv2d", "torch.mean"]),
    (
        "pool-means",
        "the whole window",
        lambda x, m: F.avg_pool2d(m.conv(x), m.conv(x).size()[2:]),
        1,
        ["nn.Conv2d", "nn.AdaptiveAvgPool2d"],
    ),
    (
        "lift-functions",
        "adaptive",
        lambda x, m: F.adaptive_avg_pool2d(m.conv(x), (2, 1)),
        1,
        ["nn.Conv2d", "nn.AdaptiveAvgPool2d"],
    ),
    (
        "lift-functions",
        "max",
        lambda x, m: F.max_pool2d(m.conv(x), 2, padding=1),
        1,
        ["nn.Conv2d", "nn.MaxPool2d"],
    ),
    (
        "lift-functions",
        "average",
        lambda x, m: F.avg_pool2d(m.conv(x), 2, 1),
        1,
        ["nn.Conv2d", "nn.AvgPool2d"],
    ),
    ("lift-functions", "relu6", lambda x, m: F.relu6(m.conv(x)), 1, ["nn.Conv2d", "nn.ReLU6"]),
    ("lift-functions", "silu", lambda x, m: F.silu(m.conv(x)), 1, ["nn.Conv2d", "nn.SiLU"]),
    (
        "lift-functions",
        "resize",
        lambda x, m: F.interpolate(m.conv(x), scale_factor=2, mode="nearest"),
        1,
        ["nn.Conv2d", "nn.Upsample"],
    ),
    ("index-channels", "shuffle", lambda x, m: shuffled(m.conv(x), 2), 1, ["nn.Conv2d", "getitem"]),
    (
        "index-channels",
        "shuffle function",
        lambda x, m: F.channel_shuffle(m.conv(x), 4),
        1,
        ["nn.Conv2d", "getitem"],
    ),
    (
        "index-channels",
        "chunks",
        lambda x, m: halves(m.conv(x)),
        2,
        ["nn.Conv2d", "getitem", "getitem", "torch.sub"],
    ),
    (
        "index-channels",
        "split",
        lambda x, m: m.conv(x).split([3, 5], 1)[1],
        1,
        ["nn.Conv2d", "getitem"],
    ),
    (
        "index-channels",
        "narrow",
        lambda x, m: m.conv(x).narrow(1, 2, 5),
        1,
        ["nn.Conv2d", "getitem"],
    ),
    (
        "index-channels",
        "ellipsis",
        lambda x, m: m.conv(x)[..., 1:4, :, :],
        1,
        ["nn.Conv2d", "getitem"],
    ),
    (
        "merge-concats",
        "nested",
        lambda x, m: torch.cat([torch.cat([m.conv(x), m.other(x)], 1), x], 1),
        1,
        ["nn.Conv2d", "nn.Conv2d", "torch.cat"],
    ),
    (
        "merge-concats",
        "an activation whose kernel takes several at a time",
        lambda x, m: torch.cat([F.gelu(torch.cat([x[:, k : k + 1] for k in range(6)], 1)), x], 1),
        1,
        [*["getitem"] * 6, *["F.gelu"] * 6, "torch.cat"],
    ),
    (
        "merge-concats",
        "an activation between",
        lambda x, m: torch.cat([F.relu(torch.cat([m.conv(x), m.other(x)], 1)), x], 1),
        1,
        ["nn.Conv2d", "nn.Conv2d", "F.relu", "F.relu", "torch.cat"],
    ),
    (
        "merge-concats",
        "a sum of two",
        lambda x, m: torch.cat([m.conv(x), x], 1) + torch.cat([m.other(x), x + 1], 1),
        1,
        ["nn.Conv2d", "nn.Conv2d", "add", "add", "add", "torch.cat"],
    ),
    (
        "spell-calls",
        "stacked side by side",
        lambda x, m: torch.hstack([m.conv(x), m.other(x)]),
        1,
        ["nn.Conv2d", "nn.Conv2d", "torch.cat"],
    ),
    ("spell-calls", "dropout of nothing", lambda x, m: F.dropout(m.conv(x), 0.0), 1, ["nn.Conv2d"]),
    (
        "spell-calls",
        "a copy that is written to",
        lambda x, m: m.conv(x).clone().mul_(2),
        2,
        ["nn.Conv2d", "torch.multiply"],
    ),
    (
        "flatten-views",
        "positions alone",
        lambda x, m: m.conv(x).view(x.size(0), x.size(1) + 2, -1),
        1,
        ["nn.Conv2d", "torch.flatten"],
    ),
    (
        "flatten-views",
        "one position of all",
        lambda x, m: F.adaptive_avg_pool2d(m.conv(x), 1)[..., 0, 0],
        1,
        ["nn.Conv2d", "F.adaptive_avg_pool2d", "torch.flatten"],
    ),
    (
        "flatten-views",
        "new axes",
        lambda x, m: m.conv(x).mean((2, 3))[..., None, None],
        1,
        ["nn.Conv2d", ".mean", "torch.unsqueeze", "torch.unsqueeze"],
    ),
    (
        "pool-means",
        "the whole window by name",
        lambda x, m: F.avg_pool2d(m.conv(x), kernel_size=x.shape[2:]),
        1,
        ["nn.Conv2d", "nn.AdaptiveAvgPool2d"],
    ),
    (
        "lift-operators",
        "a layer that is called as a function",
        lambda x, m: F.linear(m.conv(x).mean((2, 3)), m.linear.weight, m.linear.bias),
        1,
        ["nn.Conv2d", ".mean", "nn.Linear"],
    ),
    (
        "lift-operators",
        "a convolution that is called as a function",
        lambda x, m: F.conv2d(x, m.conv.weight, m.conv.bias, padding=1),
        1,
        ["nn.Conv2d"],
    ),
    (
        "index-channels",
        "shuffle by stacking",
        lambda x, m: torch.stack(m.conv(x).chunk(2, 1), 2).flatten(1, 2),
        1,
        ["nn.Conv2d", "getitem", "getitem", "torch.cat", "getitem"],
    ),
    (
        "index-channels",
        "stack of channels",
        lambda x, m: torch.stack([m.conv(x), m.other(x)], 1).view(x.size(0), 16, 5, 7),
        1,
        ["nn.Conv2d", "nn.Conv2d", "torch.cat"],
    ),
    (
        "index-channels",
        "shuffle in other words",
        lambda x, m: m.conv(x).unflatten(1, (2, 4)).swapaxes(1, 2).flatten(1, 2),
        1,
        ["nn.Conv2d", "getitem"],
    ),
    ("index-channels", "flip", lambda x, m: m.conv(x).flip(1), 1, ["nn.Conv2d", "getitem"]),
    ("index-channels", "roll", lambda x, m: m.conv(x).roll(3, 1), 1, ["nn.Conv2d", "getitem"]),
    (
        "index-channels",
        "a tensor of channels",
        lambda x, m: m.conv(x)[:, torch.tensor([3, 0, 7])],
        1,
        ["nn.Conv2d", "getitem"],
    ),
    *(
        ("part-operations", name, body, 1, ["nn.Conv2d", *made])
        for name, body, made in (
            (
                "hardswish",
                lambda x, m: F.hardswish(m.conv(x)),
                ["add", "F.relu6", "torch.multiply", "torch.multiply"],
            ),
            (
                "hardsigmoid",
                lambda x, m: F.hardsigmoid(m.conv(x)),
                ["add", "F.relu6", "torch.multiply"],
            ),
            (
                "leaky",
                lambda x, m: F.leaky_relu(m.conv(x), 0.3),
                ["torch.multiply", "F.relu", "torch.multiply", "add"],
            ),
            ("clamp", lambda x, m: m.conv(x).clamp(0, 6), ["F.relu6"]),
            ("clamp below", lambda x, m: torch.clamp(m.conv(x), min=0), ["F.relu"]),
            ("hardtanh", lambda x, m: F.hardtanh(m.conv(x), 0.0, 6.0), ["F.relu6"]),
            ("threshold", lambda x, m: F.threshold(m.conv(x), 0, 0), ["F.relu"]),
            ("quotient", lambda x, m: m.conv(x) / 3, ["torch.multiply"]),
            ("quotient in place", lambda x, m: m.conv(x).div_(3), ["torch.multiply"]),
            ("negative", lambda x, m: -m.conv(x), ["torch.multiply"]),
            ("square", lambda x, m: m.conv(x) ** 2, ["torch.multiply"]),
            ("reversed", lambda x, m: torch.rsub(m.conv(x), 1), ["sub"]),
            (
                "glu",
                lambda x, m: F.glu(m.conv(x), 1),
                ["getitem", "getitem", "torch.sigmoid", "torch.multiply"],
            ),
        )
    ),
    (
        "part-operations",
        "a sum over a stack",
        lambda x, m: torch.stack([m.conv(x), m.other(x)]).sum(0),
        1,
        ["nn.Conv2d", "nn.Conv2d", "add"],
    ),
    (
        "part-operations",
        "a sum with a factor",
        lambda x, m: m.conv(x).sub(m.other(x), alpha=2),
        1,
        ["nn.Conv2d", "nn.Conv2d", "torch.multiply", "sub"],
    ),
    (
        "part-operations",
        "a sum and a product",
        lambda x, m: torch.addcmul(m.conv(x), m.other(x), m.other(x), value=0.5),
        1,
        ["nn.Conv2d"] * 3 + ["torch.multiply", "torch.multiply", "add"],
    ),
    (
        "keep-outputs",
        "an output",
        lambda x, m: F.relu(torch.cat([m.conv(x), m.other(x)], 1)),
        1,
        ["nn.Conv2d", "nn.Conv2d", "torch.cat", "F.relu"],
    ),
]
