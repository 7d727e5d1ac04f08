"""What PLiNIO takes: models in the accepted form pass, and each departure from it is named.

PLiNIO itself is no dependency. Every verdict here was compared with it (see `PLINIO.md` beside the
grammar): what is accepted went through a full cycle, what is refused raised or came out wrong.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import groupfx
from groupfx.running.inputs import ExampleInputs
from groupfx.toolchains import Obstacle
from groupfx.toolchains.plinio import CHANNEL, LAYER, PIT, SUPERNET, obstacles
from tests.models.zoo_traps import CountsCallsInPlace, DrawsRandom

X = torch.randn(2, 6, 8, 10)
GRAPHS = {PIT, LAYER, CHANNEL}
ALL = {*GRAPHS, SUPERNET}


class Sentence(nn.Module):
    """Convolutions, and what a user writes between them."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.a, self.b = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Conv2d(6, 8, 1)
        self.four, self.q = nn.Conv2d(8, 4, 1), nn.Conv2d(6, 4, 1)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 6, H, W]` to whatever the body makes."""
        return self.body(self, x)


def judged(model: nn.Module, x: Tensor = X) -> tuple[Obstacle, ...]:
    return obstacles(model, ExampleInputs.of(x))


def by_method(found: tuple[Obstacle, ...]) -> set[str]:
    return {method for each in found for method in each.methods}


def branches(m: Any, x: Tensor) -> Tensor:
    """The form that a split emits."""
    y = m.a(x)
    low, high = y[:, 0:4], y[:, 4:8]
    return m.b(F.relu(torch.cat([m.left(low), m.right(high)], dim=1)))


ACCEPTED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "branches": branches,
    "spelled slices": lambda m, x: m.left(m.a(x)[:, 0:4, :, :]),
    "every second channel": lambda m, x: m.left(m.a(x)[:, ::2]),
    "norm, Identity and index": lambda m, x: m.left(m.same(m.norm(m.a(x)))[:, 0:4]),
    "norm behind a convolution": lambda m, x: m.b(F.relu(m.norm(m.a(x)))),
    "flatten and linear": lambda m, x: m.linear(torch.flatten(m.pool(F.relu(m.a(x))), 1)),
    "residual": lambda m, x: m.b(F.relu(m.c(x) + m.a(x))),
    "gate": lambda m, x: m.b(torch.multiply(m.a(x), torch.sigmoid(m.c(m.pool(x))))),
    "positions joined": lambda m, x: torch.flatten(m.a(x), 2),
    "positions cut": lambda m, x: m.b(m.a(x)[:, :, 1:5, ::2]),
    "a norm of the input": lambda m, x: m.b(F.relu(m.a(m.six(x)))),
    "a norm at the end": lambda m, x: m.norm(F.relu(m.a(x))),
    "a number taken from the input": lambda m, x: m.b(F.relu(m.a(x - 1))),
    "a layer of one value, twice": lambda m, x: _shared(m, y := m.four(m.a(x)), torch.tanh(y)),
    "mean of positions": lambda m, x: m.linear(torch.mean(m.b(m.a(x)), [2, 3])),
    "sigmoid at the end": lambda m, x: torch.sigmoid(m.a(x)),
    "a gate of the value itself": lambda m, x: m.b(_swish(m.a(x))),
    "sigmoid in front of a depthwise": lambda m, x: m.b(m.deep(torch.sigmoid(m.a(x)))),
    "positions joined by a module": lambda m, x: m.flat(m.a(x)),
    "padding of positions": lambda m, x: m.b(F.pad(m.a(x), [1, 1])),
}


@pytest.mark.parametrize("body", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_the_accepted_form_has_no_obstacles(body: Callable[[Any, Tensor], Tensor]) -> None:
    parts = {
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(2),
        "same": nn.Identity(),
        "six": nn.BatchNorm2d(6),
        "deep": nn.Conv2d(8, 8, 1, groups=8),
    }
    assert judged(Sentence(body, **parts)) == ()


def _shared(m: Any, first: Tensor, second: Tensor) -> Tensor:
    return m.b(torch.cat([m.left(first), m.left(second)], 1))


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Tensor], set[str], str]] = {
    "method": (lambda m, x: m.b(m.a(x).sigmoid()), GRAPHS, "no rule for this operation"),
    "view": (lambda m, x: m.a(x).view(2, -1), GRAPHS, "no rule for this operation"),
    "size": (lambda m, x: m.a(x).view(x.size(0), -1), GRAPHS, "sizes that forward computes"),
    "shape": (
        lambda m, x: m.linear(m.pool(m.a(x)).view(x.shape[0], -1)),
        GRAPHS,
        "sizes that forward computes",
    ),
    "product": (lambda m, x: m.b(m.a(x) * m.c(x)), GRAPHS, "no rule for this operation"),
    "chunk": (lambda m, x: m.left(m.a(x).chunk(2, 1)[0]), GRAPHS, "no rule for this operation"),
    "functional pooling": (
        lambda m, x: m.b(F.adaptive_avg_pool2d(m.a(x), 3)),
        GRAPHS,
        "no rule for this operation",
    ),
    "interpolation": (
        lambda m, x: m.b(F.interpolate(m.a(x), scale_factor=2)),
        GRAPHS,
        "no rule for this operation",
    ),
    "assert": (lambda m, x: _asserted(m, x), ALL, "asserts have no rule"),
    "flatten of everything": (
        lambda m, x: torch.flatten(m.a(x)),
        GRAPHS,
        "only a flatten of all but the batch",
    ),
    "squeeze of all": (lambda m, x: torch.squeeze(m.pool(m.a(x))), GRAPHS, "it needs one axis"),
    "ellipsis": (lambda m, x: m.left(m.a(x)[..., 0:4, :, :]), GRAPHS, "does not begin with"),
    "one channel": (lambda m, x: m.a(x)[:, 3], {PIT}, "no slice and no list"),
    "a part of the batch": (lambda m, x: m.left(m.a(x)[0:1, 0:4]), GRAPHS, "does not begin with"),
    "mean of channels": (lambda m, x: torch.mean(m.a(x), 1), GRAPHS, "a mean over channels"),
    "padding of channels": (
        lambda m, x: F.pad(m.a(x), [0, 0, 0, 0, 1, 1]),
        GRAPHS,
        "padding of channels",
    ),
    "a number added to the input": (
        lambda m, x: m.b(F.relu(m.a(x + 1))),
        {LAYER, CHANNEL},
        "nothing but the model's input",
    ),
    "a norm of a concatenation at the end": (
        lambda m, x: m.norm(F.relu(torch.cat([m.four(m.a(x)), m.q(x)], 1))),
        {PIT},
        "of a pruned channel it makes no 0",
    ),
    "a layer of two values": (
        lambda m, x: _shared(m, m.four(m.a(x)), m.q(x)),
        {PIT},
        "it is called in several places",
    ),
    "a layer of its own value": (
        lambda m, x: m.four(m.b(F.relu(m.b(F.relu(m.a(x)))))),
        {PIT},
        "it is called in several places",
    ),
    "a list of channels": (
        lambda m, x: m.b(m.a(x)[:, [3, 1, 0, 2, 7, 6, 5, 4]]),
        {CHANNEL},
        "a list of channels",
    ),
    "the same part twice": (
        lambda m, x: _doubled(m.a(x)),
        {PIT},
        "one value is concatenated twice",
    ),
    "concat from the end": (
        lambda m, x: m.b(torch.cat([m.four(m.a(x)), m.q(x)], dim=-3)),
        GRAPHS,
        "is not along dim=1",
    ),
    "linear on positions": (
        lambda m, x: m.linear(torch.flatten(m.a(x), 1).reshape(2, -1, 8)),
        GRAPHS,
        "no rule for this operation",
    ),
    "a norm others read around": (
        lambda m, x: _around(m, x),
        GRAPHS,
        "is read by others as well",
    ),
    "two concatenations": (
        lambda m, x: m.wide(torch.cat([_pair(m, x), m.r(x)], 1)),
        {PIT},
        "a concatenation of a concatenation",
    ),
    "sum of two concatenations": (
        lambda m, x: m.b(_pair(m, x) + torch.cat([m.fours(m.c(x)), m.r(x)], 1)),
        {PIT},
        "two concatenations are added",
    ),
    "an output of parts": (lambda m, x: _pair(m, x), {PIT}, "an output of the model"),
    "a part that is passed on": (
        lambda m, x: m.b(_passed_on(m, m.a(x))),
        {CHANNEL},
        "are quantised as one",
    ),
    "a part in a sum": (
        lambda m, x: m.b(_passed_on(m, m.a(x)) + m.c(x)),
        {PIT, CHANNEL},
        "is concatenated as it is",
    ),
    "a layer in two places": (
        lambda m, x: m.b(F.relu(m.b(m.a(x)))),
        {PIT},
        "it is called in several places",
    ),
    "activation first": (
        lambda m, x: m.b(F.relu(m.norm(m.pool(m.a(x))))),
        {PIT},
        "of a pruned channel it makes no 0",
    ),
    "sigmoid between layers": (
        lambda m, x: m.b(torch.sigmoid(m.a(x))),
        {PIT},
        "of a pruned channel it makes no 0",
    ),
    "sigmoid in a sum": (
        lambda m, x: m.b(torch.sigmoid(m.a(x)) + m.c(x)),
        {PIT},
        "of a pruned channel it makes no 0",
    ),
    "a number added": (lambda m, x: m.b(m.a(x) + 1), {PIT}, "of a pruned channel it makes no 0"),
    "a border of ones": (
        lambda m, x: m.b(F.pad(m.a(x), [1, 1], value=1.0)),
        {PIT},
        "of a pruned channel it makes no 0",
    ),
    "one slope": (lambda m, x: m.b(m.slope(m.a(x))), {PIT}, "a slope for each channel"),
    "a linear layer on positions": (
        lambda m, x: m.wide_linear(torch.flatten(m.a(x), 2)),
        {PIT, CHANNEL},
        "a linear layer on a value of shape",
    ),
    "another order in front of a depthwise": (
        lambda m, x: m.b(m.deep(m.a(x)[:, [3, 1, 0, 2, 7, 6, 5, 4]])),
        {PIT, CHANNEL},
        "channels in another order",
    ),
    "depthwise on a part": (
        lambda m, x: m.left(m.dw(m.a(x)[:, 0:4])),
        {PIT, CHANNEL},
        "a depthwise convolution on 4 channels",
    ),
    "a parameter with channels": (
        lambda m, x: m.b(torch.multiply(m.a(x), m.scale)),
        {PIT},
        "scale has channels",
    ),
    "broadcast channels": (
        lambda m, x: m.b(torch.multiply(m.a(x), m.one(x))),
        {PIT, CHANNEL},
        "channels meet",
    ),
    "an index behind a norm": (
        lambda m, x: m.left(m.norm(m.a(x))[:, 0:4]),
        {PIT},
        "directly behind a norm that is fused",
    ),
    "the input in a sum": (
        lambda m, x: m.a(m.pools(x) + m.first(m.six(x))),
        {LAYER, CHANNEL},
        "the model's input is quantised as one",
    ),
    "the input in a concatenation": (
        lambda m, x: m.wide(torch.cat([F.relu(m.six(x)), x], 1)),
        {LAYER, CHANNEL},
        "the model's input is quantised as one",
    ),
    "depthwise at the input": (
        lambda m, x: m.a(m.first(x)),
        {LAYER, CHANNEL},
        "nothing but the model's input",
    ),
}


def _swish(y: Tensor) -> Tensor:
    return torch.multiply(y, torch.sigmoid(y))


def _asserted(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.a(x)
    torch._assert(y.sum() < 1e9, "small numbers")
    return y


def _doubled(y: Tensor) -> Tensor:
    return torch.cat([y, y], 1)


def _around(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    result: Tensor = m.norm(y) + y
    return result


def _passed_on(m: Any, y: Tensor) -> Tensor:
    return torch.cat([y[:, 0:4], m.four(y)], 1)


def _pair(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.four(m.a(x)), m.q(x)], 1)


@pytest.mark.parametrize(("body", "methods", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_departure_from_it_is_named(
    body: Callable[[Any, Tensor], Tensor], methods: set[str], reason: str
) -> None:
    model = Sentence(
        body,
        pool=nn.AdaptiveAvgPool2d(1),
        fours=nn.Conv2d(8, 4, 1),
        r=nn.Conv2d(6, 4, 1),
        wide=nn.Conv2d(12, 2, 1),
        dw=nn.Conv2d(4, 4, 3, groups=4),
        one=nn.Conv2d(6, 1, 1),
        first=nn.Conv2d(6, 6, 3, groups=6, padding=1),
        six=nn.Conv2d(6, 6, 1),
        pools=nn.AvgPool2d(3, 1, 1),
        deep=nn.Conv2d(8, 8, 1, groups=8),
        slope=nn.PReLU(),
        wide_linear=nn.Linear(80, 3),
    )
    found = judged(model)
    assert any(reason in each.reason for each in found), [str(each) for each in found]
    assert by_method(found) == methods
    assert all(each.line is None or "test_plinio.py:" in each.line for each in found)


def test_what_one_method_gets_wrong_hides_nothing_from_the_others() -> None:
    parts = {"pool": nn.AvgPool2d(2), "one": nn.Conv2d(6, 1, 1, stride=2)}
    gate = Sentence(lambda m, x: m.b(torch.multiply(m.norm(m.pool(m.a(x))), m.one(x))), **parts)
    found = judged(gate)
    assert {PIT, CHANNEL} == by_method(found)
    assert any("it makes no 0" in each.reason for each in found)
    assert any("channels meet" in each.reason for each in found)


MODULES = [
    *(nn.GELU(), nn.Hardswish(), nn.LeakyReLU(), nn.ELU(), nn.Softmax(1), nn.LayerNorm(10)),
    *(nn.GroupNorm(2, 8), nn.ChannelShuffle(2), nn.PixelShuffle(2), nn.Dropout2d()),
    nn.AdaptiveMaxPool2d(3),
]


INSTANCES = [
    (nn.InstanceNorm1d(8), False, {PIT, LAYER, CHANNEL}, "no running statistics"),
    (nn.InstanceNorm1d(8), True, {PIT}, "no weight and no bias"),
    (nn.InstanceNorm1d(8, affine=True), False, {PIT, LAYER, CHANNEL}, "no running statistics"),
    (nn.InstanceNorm1d(8, affine=True), True, {PIT}, "not directly behind a layer"),
    (nn.InstanceNorm1d(8, affine=True, track_running_stats=True), False, set(), ""),
]


@pytest.mark.parametrize(("norm", "behind", "methods", "reason"), INSTANCES)
def test_norms_of_instances_are_fused_as_those_of_batches(
    norm: nn.Module, behind: bool, methods: set[str], reason: str
) -> None:
    between = [nn.ReLU()] if behind else []
    model = nn.Sequential(nn.Conv1d(6, 8, 3), *between, norm, nn.Conv1d(8, 4, 1))
    told = [each for each in judged(model, torch.randn(2, 6, 9)) if "Instance" in each.operation]
    assert by_method(tuple(told)) == methods
    assert not methods or any(reason in each.reason for each in told)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: type(module).__name__)
def test_modules_without_a_rule(module: nn.Module) -> None:
    (found,) = judged(Sentence(lambda m, x: m.odd(m.a(x)), odd=module))
    assert found.operation == f"nn.{type(module).__name__}"
    assert set(found.methods) == GRAPHS
    assert found.refused
    assert found.name == "odd"


@pytest.mark.parametrize(
    ("module", "remedy"),
    [
        (nn.GELU(), "nn.ReLU, nn.ReLU6, nn.SiLU"),
        (nn.Dropout2d(), "nn.Dropout has one"),
        (nn.GroupNorm(2, 8), "nn.BatchNorm2d has one"),
        (nn.Hardswish(), "-p part-operations"),
        (nn.ConvTranspose2d(8, 8, 3), "nn.Upsample"),
    ],
)
def test_a_module_without_a_rule_is_told_with_what_has_one(module: nn.Module, remedy: str) -> None:
    found = judged(Sentence(lambda m, x: m.odd(m.a(x)), odd=module))
    assert remedy in str(found[0].remedy)


GROUPED = [
    pytest.param(nn.Conv2d(8, 8, 3, groups=2), {PIT: True, LAYER: False, SUPERNET: False}, id="2"),
    pytest.param(nn.Conv2d(8, 16, 3, groups=8), {PIT: True, LAYER: False, SUPERNET: False}, id="x"),
    pytest.param(nn.Conv2d(8, 8, 3, groups=8), {}, id="depthwise"),
    pytest.param(
        nn.ConvTranspose2d(8, 8, 3), {PIT: True, LAYER: True, SUPERNET: False}, id="transposed"
    ),
]


@pytest.mark.parametrize(("module", "expected"), GROUPED)
def test_convolutions(module: nn.Module, expected: dict[str, bool]) -> None:
    found = judged(Sentence(lambda m, x: m.odd(m.a(x)), odd=module))
    told = {method: each.refused for each in found for method in each.methods}
    assert {method: told.get(method) for method in (PIT, LAYER, SUPERNET)} == {
        method: expected.get(method) for method in (PIT, LAYER, SUPERNET)
    }


def test_a_model_that_cannot_be_traced_is_one_obstacle() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    (found,) = judged(Branches())
    assert set(found.methods) == ALL
    assert "cannot be traced" in found.reason
    assert (found.operation, found.name) == ("the model", "Branches")

    inner = nn.Sequential(nn.ReLU(), nn.Sequential(Branches()))
    (found,) = judged(nn.Sequential(nn.Conv2d(6, 8, 1), inner))
    assert (found.operation, found.name) == ("Branches", "1.1.0")
    assert found.line is not None
    assert found.line.partition(":")[0].endswith("test_plinio.py")


def test_a_rewrite_for_the_target_tells_what_is_left() -> None:
    model = Sentence(lambda m, x: m.odd(m.g(m.a(x))), odd=nn.GELU(), g=nn.Conv2d(8, 8, 1, groups=4))
    report = groupfx.rewrite(model, X, target="plinio").report
    assert report.obstacles is not None
    (found,) = report.obstacles
    assert found.operation == "nn.GELU"
    assert found.line is not None
    assert "test_plinio.py:" in found.line
    assert "nn.GELU (odd" in str(report)
    assert report.to_dict()["obstacles"] == [found.to_dict()]
    assert groupfx.rewrite(model, X).report.obstacles is None


def test_a_module_that_has_a_rule_as_a_function_becomes_one() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3), nn.LogSoftmax(1))
    x = torch.randn(3, 5)
    assert by_method(judged(model, x)) == GRAPHS
    result = groupfx.rewrite(model, x, target="plinio")
    assert result.report.obstacles == ()
    torch.testing.assert_close(result.model(x), model(x))


def test_a_rewrite_that_leaves_nothing_says_so() -> None:
    model = Sentence(lambda m, x: m.b(m.g(m.a(x)).tanh()), g=nn.Conv2d(8, 8, 1, groups=4))
    report = groupfx.rewrite(model, X, target="plinio").report
    assert report.obstacles == ()
    assert "Nothing is left that the target would refuse." in str(report)


def test_what_a_trace_would_freeze_is_named_before_plinio_traces_it() -> None:
    report = groupfx.rewrite(DrawsRandom(), torch.randn(2, 6, 11), target="plinio").report
    assert report.way == "modules"
    (found,) = [each for each in report.obstacles or () if not each.refused]
    assert set(found.methods) == ALL
    assert "random numbers" in found.reason


def test_a_buffer_that_forward_writes_to_stays_and_is_named() -> None:
    model = CountsCallsInPlace().eval()
    x = torch.randn(2, 6, 11)
    result = groupfx.rewrite(model, x, target="plinio")
    assert result.report.ok
    told = {each.operation: each for each in result.report.obstacles or ()}
    assert told[".add_"].reason == "it writes to a tensor of the model, and has no rule"
    assert told[".clone"].line is not None
    assert torch.allclose(result.model(x), model(x))
    assert torch.allclose(result.model(x), model(x))  # both count the calls


def imported_elsewhere(y: Tensor) -> Tensor:
    return torch.einsum("nchw->ncwh", y)


@pytest.mark.parametrize("way", ["trace", "export"])
def test_an_obstacle_is_told_with_its_module_and_its_line(way: str) -> None:
    inner = Sentence(lambda m, x: imported_elsewhere(m.g(m.a(x))), g=nn.Conv2d(8, 8, 1, groups=4))
    model = nn.Sequential(nn.Identity(), nn.Sequential(inner))
    report = groupfx.rewrite(model, X, target="plinio", way=way).report
    first = next(each for each in report.obstacles or () if each.refused)
    assert first.name == "1.0"
    # An export notes the lines of forwards alone.
    code = (imported_elsewhere if way == "trace" else Sentence.forward).__code__
    assert first.line is not None
    file, _, line = first.line.rpartition(":")
    assert file == __file__
    assert code.co_firstlineno < int(line) <= code.co_firstlineno + 2
