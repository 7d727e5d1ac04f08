"""Each pass over operations: what becomes of them, and what it leaves."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import groupfx
from groupfx.nn import ChannelGather
from groupfx.passes import make_pass
from groupfx.testing import check_pass
from groupfx.tracing.places import operation_of

X = torch.randn(2, 6, 5, 7)


class Written(nn.Module):
    """A convolution, and then what a user may write."""

    def __init__(self, body: Callable[[Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        self.body = body
        self.conv = nn.Conv2d(6, 8, 3, padding=1)
        self.other = nn.Conv2d(6, 8, 1)
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 6, H, W]` to whatever the body makes."""
        return self.body(x, self)


def operations(model: Any) -> list[str]:
    return [operation_of(node, model) for node in model.graph.nodes if node.op.startswith("call")]


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
        "keep-outputs",
        "an output",
        lambda x, m: F.relu(torch.cat([m.conv(x), m.other(x)], 1)),
        1,
        ["nn.Conv2d", "nn.Conv2d", "torch.cat", "F.relu"],
    ),
]


@pytest.mark.parametrize(
    ("name", "body", "count", "expected"),
    [row[:1] + row[2:] for row in ROWS],
    ids=[f"{row[0]}: {row[1]}" for row in ROWS],
)
def test_what_becomes_of_an_operation(
    name: str, body: Callable[[Tensor, nn.Module], Tensor], count: int, expected: list[str]
) -> None:
    result = check_pass(make_pass(name), Written(body), (X,), sites=count)
    assert operations(result.model) == expected
    assert all(each.line and "test_spellings.py:" in each.line for each in result.report.respelled)


LEFT = [
    (
        "spell-calls",
        "contiguous for a view",
        lambda x, m: F.relu(m.conv(x).transpose(2, 3).contiguous()).view(2, 4, -1),
    ),
    ("spell-calls", "product of sizes", lambda x, m: m.conv(x).view(x.size(0), x.size(2) * 56)),
    ("flatten-views", "channels apart", lambda x, m: m.conv(x).view(2, 4, 2, 5, 7)),
    ("flatten-views", "moved", lambda x, m: m.conv(x).permute(0, 2, 3, 1).reshape(2, 35, 8)),
    ("pool-means", "over channels", lambda x, m: m.conv(x).mean(1)),
    ("pool-means", "over all", lambda x, m: m.conv(x).mean()),
    ("pool-means", "in another dtype", lambda x, m: m.conv(x).mean((2, 3), dtype=torch.float64)),
    ("index-channels", "along the width", lambda x, m: m.conv(x).chunk(2, 3)[0]),
    ("index-channels", "rows shuffled", lambda x, m: m.conv(x).view(2, 8, 7, 5).transpose(2, 3)),
    ("merge-concats", "along another axis", lambda x, m: torch.cat([torch.cat([x, x], 2), x], 2)),
    ("keep-outputs", "read on", lambda x, m: m.other(torch.cat([x[:, :3], x[:, 3:]], 1))),
    ("drop-asserts", "what counts", lambda x, m: m.conv(x)),
]


@pytest.mark.parametrize(
    ("name", "body"), [(row[0], row[2]) for row in LEFT], ids=[f"{r[0]}: {r[1]}" for r in LEFT]
)
def test_what_a_pass_has_nothing_to_do_with(
    name: str, body: Callable[[Tensor, nn.Module], Tensor]
) -> None:
    check_pass(make_pass(name), Written(body), (X,), sites=0, skipped=0)


REFUSED = [
    ("lift-functions", lambda x, m: F.max_pool2d(m.conv(x), 2, return_indices=True)[0], None),
    (
        "lift-functions",
        lambda x, m: F.adaptive_avg_pool2d(m.conv(x), x.size(2)),
        "its arguments are computed in forward",
    ),
    (
        "lift-functions",
        lambda x, m: F.interpolate(m.conv(x), scale_factor=2.0, mode="bilinear", antialias=True),
        "nn.Upsample has no antialias",
    ),
    (
        "spell-calls",
        lambda x, m: _written_then_read(m.conv(x)),
        "it writes to a value that is read again afterwards",
    ),
    (
        "keep-outputs",
        lambda x, m: torch.cat([m.conv(x), x], 1),
        r"an output is concatenated of parts with \[6, 8\] channels",
    ),
    (
        "keep-outputs",
        lambda x, m: torch.cat([m.conv(x), m.other(x)], 1) + torch.cat([x, x[:, :6], x[:, :4]], 1),
        "on its way to an output",
    ),
]


def _written_then_read(y: Tensor) -> Tensor:
    z = y.relu_()
    return z + y


@pytest.mark.parametrize(("name", "body", "reason"), REFUSED)
def test_a_refusal_says_why(
    name: str, body: Callable[[Tensor, nn.Module], Tensor], reason: str | None
) -> None:
    result = groupfx.rewrite(Written(body), X, passes=[name])
    reasons = [left.reason for left in result.report.skipped]
    if reason is not None:
        assert any(re.search(reason, each) for each in reasons), reasons
    assert not result.report.respelled


def test_asserts_and_what_nobody_reads_go() -> None:
    def body(x: Tensor, m: Any) -> Tensor:
        torch._assert(x.shape[1] == 6, "six channels")
        x.size()
        return m.conv(x)

    result = check_pass(make_pass("drop-asserts"), Written(body), (X,), sites=2)
    assert operations(result.model) == ["nn.Conv2d"]


def test_a_norm_that_counts_is_not_dropped() -> None:
    class Counts(Written):
        def __init__(self) -> None:
            super().__init__(lambda x, m: m.conv(x))
            self.norm = nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            self.norm(x)
            return self.conv(x)

    check_pass(make_pass("drop-asserts"), Counts(), (X,), sites=0)


def test_a_gather_becomes_a_list() -> None:
    model = nn.Sequential(nn.Conv2d(6, 8, 1), ChannelGather([3, 1, 0, 7, 2]), nn.Conv2d(5, 2, 1))
    result = check_pass(make_pass("index-channels"), model, (X,), sites=1)
    (index,) = [node for node in result.model.graph.nodes if node.op == "call_function"]
    assert index.args[1] == (slice(None), [3, 1, 0, 7, 2])


def test_an_output_is_concatenated_from_the_end() -> None:
    model = nn.Sequential(nn.Conv2d(6, 8, 1, groups=2))
    result = groupfx.rewrite(model, X, passes=["split-grouped-conv", "keep-outputs"])
    (concat,) = [node for node in result.model.graph.nodes if node.target is torch.cat]
    assert concat.kwargs == {"dim": -3}


def test_a_norm_is_parted_from_a_layer_that_others_read() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y) + y

    result = check_pass(make_pass("part-norms"), Twice(), (X,), sites=1)
    assert operations(result.model) == ["nn.Conv2d", "nn.Identity", "nn.BatchNorm2d", "add"]
    check_pass(
        make_pass("part-norms"), nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)), (X,), sites=0
    )
