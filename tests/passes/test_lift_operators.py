"""An exported graph becomes layers again: the same tensors, the same function, PLiNIO's grammar."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import groupfx
from groupfx.errors import MismatchError
from groupfx.passes import LiftOperators, lift_operators
from groupfx.rewriting import Place
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
    "dropout": (lambda m, x: F.dropout(x, 0.3, m.training), ["nn.Dropout"]),
    "dropout of nothing": (lambda m, x: F.dropout(x, 0.3, False), []),
    "called twice": (lambda m, x: m.grouped(m.grouped(x)), ["nn.Conv2d", "nn.Conv2d"]),
    "of a weight": (
        lambda m, x: x + torch.relu(m.linear.bias).sum(),
        ["F.relu", "aten.sum.default", "add"],
    ),
    "parts of an image": (lambda m, x: m.grouped(x[:, :, 1:, ::2]), ["nn.Conv2d"]),
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


def _classified(m: Any, x: Tensor) -> Tensor:
    """The number of images is open in an export."""
    low, high = x.split([3, 5], 1)
    mixed = torch.cat([high, low], 1) + torch.cat(torch.chunk(m.grouped(x), 2, 1), 1)
    y: Tensor = m.linear(F.adaptive_avg_pool2d(mixed, 1).view(x.size(0), -1))
    return y


def test_parts_and_views_of_an_export_are_read() -> None:
    passes = ["lift-operators", "flatten-views", "index-channels"]
    model = Exported(_classified).eval()
    result = groupfx.rewrite(model, (X,), passes=passes, way="export")
    assert not any("aten" in name for name in operations(result.model))
    assert result.report.verified
    assert "fixed" not in "".join(result.report.notes)


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


def test_an_exported_norm_with_its_activation_is_in_the_grammar_of_plinio() -> None:
    """Its activation holds nothing and is called by nobody: the norm takes its place."""

    class NormWithAct(nn.BatchNorm2d):
        def __init__(self, channels: int) -> None:
            super().__init__(channels)
            self.act = nn.Hardswish()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(super().forward(x))

    model = nn.Sequential(nn.Conv2d(3, 6, 1, groups=3), NormWithAct(6), nn.Conv2d(6, 4, 1)).eval()
    result = groupfx.rewrite(model, (X,), target="plinio", way="export")
    kinds = {type(module) for module in result.model.modules()}
    assert nn.BatchNorm2d in kinds
    assert nn.Module not in {type(module) for module in result.model.get_submodule("1").modules()}


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
    # Its train mode is lost there, and that is said, with the place.
    (told,) = result.report.obstacles or ()
    assert "it differs at aten.relu.default" in told.reason
    assert "test_lift_operators.py:" in told.reason
    assert len(told.methods) == 4
    assert not told.refused
    assert groupfx.check(ByTraining().eval(), (X,), target="plinio").last.ok is False


class Guarded(nn.BatchNorm2d):
    """A norm, a dropout and an activation in one, through which no trace can be made."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] * x.shape[2] == 0:
            return x
        return F.dropout(super().forward(x).relu(), 0.3, self.training)


def test_a_part_that_the_toolchain_cannot_trace_is_exported_with_the_whole() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1, groups=3), Guarded(6), nn.Conv2d(6, 4, 1))
    result = groupfx.rewrite(model, X, target="plinio")
    assert (result.report.way, result.report.obstacles) == ("export", ())
    # The parameters lie in branches.
    sides = (trained(each, parts=False) for each in (result.model, copy.deepcopy(model)))
    torch.testing.assert_close(*sides)


class Unread(nn.Module):
    """Calls a norm as a function, with the mode, and so never counts its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(6, momentum=0.3)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm
        statistics, affine = (n.running_mean, n.running_var), (n.weight, n.bias)
        if type(self) is Unread:
            return F.batch_norm(x, *statistics, *affine, self.training, 0.2, 1e-3)
        return torch.batch_norm(x, *affine, *statistics, self.training, 0.2, 1e-3, False)


class UnreadByTorch(Unread):
    """The same by the other name."""


class NormedTwice(nn.Module):
    """A norm that is called twice, and dropouts of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(6), nn.AlphaDropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout2d(self.norm(self.norm(x).tanh()), 0.3, self.training)
        return self.drop(F.dropout(y, 0.4 if self.training else 0.0))


class Bare(nn.Module):
    """Norms without a weight, and without statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.BatchNorm2d(6, affine=False)
        self.two = nn.BatchNorm2d(6, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


def trained(model: nn.Module, *, parts: bool = True) -> list[Tensor]:
    """Outputs and gradients of some steps, in both modes."""
    torch.manual_seed(3)
    seen: list[Tensor] = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for mode in (True, False, True):
        optimizer.zero_grad()
        x = X.clone().requires_grad_()
        y = model.train(mode)(x)
        y.square().mean().backward()
        read = (x, *(model.parameters() if parts else ()))
        seen += [y.detach().clone(), *(t.grad for t in read if t.grad is not None)]
        optimizer.step()
    return seen


@pytest.mark.parametrize("way", ["trace", "export"])
def test_norms_and_dropouts_are_trained(way: str) -> None:
    """As the model is: with the statistics of batches, which are counted, and with dropouts."""
    torch.manual_seed(2)
    kinds = [lambda: Guarded(6), Unread, UnreadByTorch, NormedTwice, Bare]
    parts = [make() for make in kinds[way == "trace" :]]
    model = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), *parts, nn.Conv2d(6, 4, 1))
    result = groupfx.rewrite(model, X, passes=["lift-operators", "lift-functions"], way=way)
    assert not any("norm" in name or "F.dropout" in name for name in _functions(result.model))
    assert result.report.verified
    assert any(isinstance(module, nn.BatchNorm2d) for module in result.model.modules())
    own = copy.deepcopy(model)
    torch.testing.assert_close(trained(result.model), trained(own))
    state = result.state_dict_map.to_original()
    missing = [name for name in own.state_dict() if name not in state]
    assert all(name.endswith("norm.num_batches_tracked") for name in missing)
    assert len(missing) == 2  # of Unread, which does not count
    for name, value in state.items():
        torch.testing.assert_close(value, own.state_dict()[name])


def _functions(model: Any) -> list[str]:
    """As `operations`, without modules."""
    called = [node for node in model.graph.nodes if node.op == "call_function"]
    return [operation_of(node, model) for node in called]


class FrozenStatistics(Unread):
    """Its statistics stay what they are."""

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm
        return F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias)


class CountsOnce(Unread):
    """Counts in one of two calls."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))


@pytest.mark.parametrize(
    ("make", "reason"), [(FrozenStatistics, "training=False"), (CountsOnce, "does not count each")]
)
def test_a_norm_that_would_be_trained_otherwise_stays(make: type[nn.Module], reason: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), make())
    result = groupfx.rewrite(model, X, passes=["lift-operators"], way="export")
    assert any(reason in each.reason for each in result.report.skipped)
    assert "aten.batch_norm.default" in operations(result.model)
    torch.testing.assert_close(trained(result.model), trained(copy.deepcopy(model)))


@pytest.mark.parametrize("wrong", [{"momentum": 0.5}, {"eps": 0.01}, {"training": "other"}])
def test_a_norm_that_is_lifted_wrongly_is_not_believed(
    wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it leaves behind in train mode is compared as well."""
    read = lift_operators.read_norm_function

    def misread(node: fx.Node) -> Any:
        call = read(node)
        if call is None or wrong.get("training") == "other":
            return call
        return replace(call, **wrong)

    monkeypatch.setattr(lift_operators, "read_norm_function", misread)
    if "training" in wrong:  # a norm of statistics that stay, for one whose statistics move
        monkeypatch.setattr(Place, "asks_for_the_mode", lambda *_: True)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), FrozenStatistics() if "training" in wrong else Unread()
    )
    with pytest.raises(MismatchError):
        groupfx.rewrite(model, X, passes=["lift-operators"], way="trace")


class OfTokens(nn.Module):
    """A view by the number of rows of another input, whose values are no real numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(7, 4), nn.Linear(4, 4)

    def forward(self, ids: Tensor) -> Tensor:
        rows = ids.shape[0]
        return self.out(torch.reshape(self.table(ids), [rows, -1, 4]))


class OfGroups(nn.Module):
    """Several rows for each sample, as neighbourhoods of points are."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows, points = x.shape[0], x.shape[2]
        near = x.permute(0, 2, 1).reshape(-1, 5, 1)
        return self.out(F.adaptive_max_pool1d(near, 1).view(rows * points, -1))


@pytest.mark.parametrize(
    ("model", "x", "after"),
    [
        (OfTokens(), torch.arange(6).reshape(2, 3), "its input"),
        (OfGroups(), torch.randn(2, 5, 5), "torch.flatten"),
    ],
    ids=["tokens", "groups"],
)
def test_a_view_by_the_rows_of_another_input(model: nn.Module, x: Tensor, after: str) -> None:
    """No rows are drawn for one that the other has not."""
    passes = ["lift-operators", "flatten-views"]
    result = groupfx.rewrite(model, x, passes=passes, way="export")
    made = [each for each in result.report.respelled if each.pass_name == "flatten-views"]
    assert [each.after for each in made] == [after]
    assert result.report.verified


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
