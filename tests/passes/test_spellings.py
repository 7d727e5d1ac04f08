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
from tests.passes.spelling_rows import ROWS, Written, X


def operations(model: Any) -> list[str]:
    return [operation_of(node, model) for node in model.graph.nodes if node.op.startswith("call")]


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
    assert all(each.line and "spelling_rows.py:" in each.line for each in result.report.respelled)


def gated(x: Tensor, m: Any) -> Tensor:
    y = m.conv(x)
    return y * torch.sigmoid(m.one(torch.mean(y, (2, 3), True))).view(x.size(0), -1, 1, 1)


def test_a_view_that_changes_nothing_of_one_position() -> None:
    """It is followed back to what was pooled: of other sizes it would not be its input."""
    result = check_pass(make_pass("flatten-views"), Written(gated), (X,), sites=1)
    after = ["nn.Conv2d", "torch.mean", "nn.Conv2d", "torch.sigmoid", "mul"]
    assert operations(result.model) == after


LEFT = [
    (
        "spell-calls",
        "contiguous for a view",
        lambda x, m: F.relu(m.conv(x).transpose(2, 3).contiguous()).view(2, 4, -1),
    ),
    ("spell-calls", "product of sizes", lambda x, m: m.conv(x).view(x.size(0), x.size(2) * 56)),
    ("flatten-views", "channels apart", lambda x, m: m.conv(x).view(2, 4, 2, 5, 7)),
    ("flatten-views", "a weight", lambda x, m: m.other(x) * m.other.weight.view(8, -1).sum()),
    (
        "flatten-views",
        "made of a weight",
        lambda x, m: m.other(x) * (2 * m.other.weight).view(8, -1).sum(),
    ),
    ("index-channels", "rows of an image", lambda x, m: m.conv(x).sum(1)[:, -1:]),
    ("flatten-views", "moved", lambda x, m: m.conv(x).permute(0, 2, 3, 1).reshape(2, 35, 8)),
    ("pool-means", "over channels", lambda x, m: m.conv(x).mean(1)),
    ("pool-means", "over all", lambda x, m: m.conv(x).mean()),
    ("pool-means", "in another dtype", lambda x, m: m.conv(x).mean((2, 3), dtype=torch.float64)),
    ("index-channels", "along the width", lambda x, m: m.conv(x).chunk(2, 3)[0]),
    ("index-channels", "rows shuffled", lambda x, m: m.conv(x).view(2, 8, 7, 5).transpose(2, 3)),
    ("merge-concats", "along another axis", lambda x, m: torch.cat([torch.cat([x, x], 2), x], 2)),
    ("keep-outputs", "read on", lambda x, m: m.other(torch.cat([x[:, :3], x[:, 3:]], 1))),
    ("part-operations", "relu6", lambda x, m: F.relu6(m.conv(x))),
    ("part-operations", "other bounds", lambda x, m: m.conv(x).clamp(-1, 1)),
    ("part-operations", "negative quotient", lambda x, m: m.conv(x) / -3),
    ("part-operations", "one by it", lambda x, m: 1 / m.conv(x).exp()),
    ("part-operations", "cube", lambda x, m: m.conv(x) ** 3),
    ("part-operations", "another sum", lambda x, m: torch.stack([m.conv(x), m.other(x)]).sum(1)),
    ("index-channels", "stacked rows", lambda x, m: torch.stack([m.conv(x)] * 2, 3).flatten(2, 3)),
    ("index-channels", "flipped rows", lambda x, m: m.conv(x).flip(2)),
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
        "flatten-views",
        lambda x, m: F.adaptive_avg_pool2d(m.conv(x), 1).squeeze(),
        "takes away a batch of one as well",
    ),
    ("spell-calls", lambda x, m: _counted(m, m.conv(x)), "writes to a tensor of the model"),
    ("part-operations", lambda x, m: _written_then_read(m.conv(x), "neg_"), "is read again"),
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


def _written_then_read(y: Tensor, call: str = "relu_") -> Tensor:
    z: Tensor = getattr(y, call)()
    return z + y


def _counted(m: Any, y: Tensor) -> Tensor:
    z = y / m.calls.clone()
    m.calls.add_(1)
    return z


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


def test_a_norm_is_parted_from_an_index_behind_it() -> None:
    layers = (nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1, groups=2))
    model = nn.Sequential(*layers, nn.Conv2d(8, 2, 1))
    result = groupfx.rewrite(model, X, passes=["split-grouped-conv", "part-norms"])
    front = ["nn.Conv2d", "nn.BatchNorm2d", "nn.Identity", "getitem"]
    assert operations(result.model)[:4] == front
    assert [each.after for each in result.report.respelled] == ["nn.BatchNorm + nn.Identity"]
    assert result.report.verified
    assert groupfx.rewrite(model, X, target="plinio").report.obstacles == ()


def test_outputs_that_were_summed_are_concatenated_from_the_end() -> None:
    """The sum of the parts is new, and a part of what the next pass looks at."""

    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Conv2d(6, 8, 1, groups=2), nn.Conv2d(6, 8, 1, groups=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) + self.other(x)

    passes = ["split-grouped-conv", "merge-concats", "keep-outputs"]
    result = groupfx.rewrite(Summed(), X, passes=passes)
    assert result.report.verified
    (concat,) = [node for node in result.model.graph.nodes if node.target is torch.cat]
    assert concat.kwargs == {"dim": -3}


@pytest.mark.parametrize("sizes", [(2, -1), ((2, -1),), (2, 6, -1)])
def test_a_view_that_fixes_the_batch_stays(sizes: tuple[Any, ...]) -> None:
    class Viewed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(*sizes)

    result = groupfx.rewrite(Viewed(), X, passes=["flatten-views"])
    (reason,) = [each.reason for each in result.report.skipped]
    assert reason == "it gives 2 rows for any batch; write flatten(1), or -1 for them"
    other = torch.randn(4, 6, 5, 7)
    assert torch.equal(result.model(other), Viewed()(other))
