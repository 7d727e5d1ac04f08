"""An exported graph becomes layers again: the same tensors, the same function, PLiNIO's grammar."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import groupfx
from groupfx.passes import LiftOperators
from groupfx.tracing.places import operation_of

X = torch.randn(2, 3, 9, 8)


class Exported(nn.Module):
    """A convolution and its norm, and what is done with them."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.body = body
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8, eps=0.1)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.line = nn.Conv1d(8, 4, 2, stride=2)
        self.linear = nn.Linear(8, 4)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to whatever the body makes."""
        return self.body(self, F.relu(self.norm(self.conv(x))))


def operations(model: Any) -> list[str]:
    called = [n for n in model.graph.nodes if n.op.startswith("call")]
    names = [operation_of(node, model) for node in called]
    return [name for name in names if "tree" not in name and name != "getitem"]


ROWS: dict[str, tuple[Callable[[Any, Tensor], Tensor], list[str]]] = {
    "classifier": (
        lambda m, x: m.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)),
        ["F.adaptive_avg_pool2d", "torch.flatten", "nn.Linear"],
    ),
    "groups": (lambda m, x: m.grouped(x), ["nn.Conv2d"]),
    "sum and gate": (
        lambda m, x: (x + m.grouped(x)) * torch.sigmoid(x),
        ["nn.Conv2d", "add", "torch.sigmoid", "torch.multiply"],
    ),
    "in place": (lambda m, x: F.relu_(m.grouped(x)), ["nn.Conv2d", "F.relu"]),
    "relu6": (lambda m, x: F.hardtanh(x, 0, 6), ["nn.ReLU6"]),
    "mean": (lambda m, x: m.linear(x.mean((2, 3))), ["torch.mean", "nn.Linear"]),
    "one dimension": (lambda m, x: m.line(x.flatten(2)), ["torch.flatten", "nn.Conv1d"]),
    "pooling": (lambda m, x: F.max_pool2d(F.avg_pool2d(x, 2), 2), ["F.avg_pool2d", "F.max_pool2d"]),
    "concat": (lambda m, x: torch.cat([x, m.grouped(x)], -3), ["nn.Conv2d", "torch.cat"]),
    "dropout": (lambda m, x: F.dropout(x, 0.3, m.training), []),
    "called twice": (lambda m, x: m.grouped(m.grouped(x)), ["nn.Conv2d", "nn.Conv2d"]),
    "padding": (lambda m, x: F.pad(x, [1, 1], value=2.0), ["F.pad"]),
}


@pytest.mark.parametrize(("body", "after"), ROWS.values(), ids=ROWS.keys())
def test_operators_become_layers_and_functions(
    body: Callable[[Any, Tensor], Tensor], after: list[str]
) -> None:
    model = Exported(body).eval()
    for layer in (model.grouped, model.line, model.linear):
        nn.init.normal_(layer.bias)
    result = groupfx.rewrite(model, (X,), passes=[LiftOperators()], way="export")
    assert operations(result.model) == ["nn.Conv2d", "nn.BatchNorm2d", "F.relu", *after]
    assert result.report.ok
    assert result.report.verified
    state = result.model.state_dict()
    assert all(
        torch.equal(state[key], value) for key, value in model.state_dict().items() if key in state
    )
    norm = result.model.get_submodule("norm")
    assert (norm.eps, norm.momentum) == (0.1, 0.1)
    torch.testing.assert_close(result.model(X), model(X))


class SharedWeight(nn.Module):
    """A convolution whose weight something else reads as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.conv.weight.sum()


def test_tensors_that_are_read_elsewhere_stay() -> None:
    result = groupfx.rewrite(SharedWeight(), (X,), passes=[LiftOperators()], way="export")
    assert any("read elsewhere" in each.reason for each in result.report.skipped)


def test_what_could_only_be_exported_is_in_the_grammar_of_plinio() -> None:
    model = Exported(lambda m, x: m.linear(F.adaptive_avg_pool2d(m.grouped(x), 1).flatten(1)))
    result = groupfx.rewrite(model.eval(), (X,), target="plinio", way="export")
    assert result.report.way == "export"
    assert result.report.obstacles == ()


def test_the_norm_of_an_exported_site_goes_into_its_branches() -> None:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(3, 6, 1, groups=3), nn.BatchNorm2d(6), nn.ReLU()).eval()
    passes = ["lift-operators", "split-grouped-conv"]
    result = groupfx.rewrite(model, (X,), passes=passes, way="export")
    (site,) = result.report.sites
    assert site.after.endswith("+ BatchNorm")
    assert site.notes == ()


class ByTraining(nn.Module):
    """Its forward asks for the mode, so that no trace is the model."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x)) if self.training else self.conv(x)


def test_what_the_toolchain_cannot_trace_is_exported_for_it() -> None:
    result = groupfx.rewrite(ByTraining().eval(), (X,), target="plinio")
    assert result.report.way == "export"
    assert not any(each.operation == "the model" for each in result.report.obstacles or ())
    assert groupfx.rewrite(ByTraining().eval(), (X,)).report.way == "modules"
    found = groupfx.check(ByTraining().eval(), (X,), target="plinio")
    assert (found.ok, found.last.ok) == (False, True)


class Turned(nn.Module):
    """A view of computed sizes, which takes no tensor that lies in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 6, 1, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        turned = self.conv(x).transpose(1, 2).contiguous()
        return turned.view(x.shape[0], x.shape[2] * 3, 2)


def test_a_copy_that_a_view_needs_stays() -> None:
    result = groupfx.rewrite(Turned().eval(), torch.randn(2, 6, 5), target="plinio", way="export")
    assert result.report.ok
