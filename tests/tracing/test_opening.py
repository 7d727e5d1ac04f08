"""Opening models: what a graph must keep of the model, and which way is taken when."""

import dataclasses
import operator
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import groupfx
from groupfx.errors import ModelError, UsageError
from groupfx.passes import SplitGroupedConv
from groupfx.running.inputs import ExampleInputs
from groupfx.testing import check_pass
from groupfx.tracing import open_model
from tests.models import zoo, zoo_traps

Asserts = zoo_traps.Asserts  # not in this file: pytest rewrites the asserts of tests
X = torch.randn(2, 6, 11, 7)


class Uncalled(nn.Module):
    """Children that forward does not call, in every kind of container."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(6, 6, 3, groups=2), nn.Conv2d(6, 6, 3), nn.ReLU()])
        self.named = nn.ModuleDict({"used": nn.BatchNorm2d(6), "unused": nn.BatchNorm2d(6)})
        self.head = nn.Sequential(nn.Conv2d(6, 4, 1), nn.Conv2d(6, 6, 1, groups=3))
        self.spare = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head[0](self.named["used"](self.convs[0](x)))


@pytest.mark.parametrize("way", ["trace", "modules", "export"])
def test_what_forward_does_not_call_stays_in_the_state_dict(way: str) -> None:
    model = Uncalled().eval()
    result = groupfx.rewrite(model, (X,), way=way)
    taken = {"convs.0.weight", "convs.0.bias"}
    if way == "trace":
        taken |= {f"named.used.{name}" for name in model.named["used"].state_dict()}
    if way == "modules":
        taken |= {"head.1.weight", "head.1.bias"}
    assert set(model.state_dict()) - taken <= set(result.model.state_dict())
    assert "scratch" not in result.model.state_dict()
    back = result.state_dict_map.to_original()
    assert set(back) == set(model.state_dict())
    unseen = [site.name for site in result.report.skipped]
    assert unseen == ([] if way == "modules" else ["head.1"])


def test_parameters_keep_their_order() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
            self.w = nn.Parameter(torch.randn(6, 6, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.conv2d(self.first(x), self.w))

    model = Backwards()
    program = open_model(model, ExampleInputs.of(X))
    names = [name for name, _ in program.result.named_parameters()]
    assert names == [name for name, _ in model.named_parameters()]


def test_asserts_stay_asserts() -> None:
    result = check_pass(SplitGroupedConv(), Asserts(), (X,), sites=1)
    assert result.report.way == "trace"
    with pytest.raises(AssertionError, match=r"Asserts\.forward"):
        result.model(X[:, :5])
    assert operator.mod in {node.target for node in result.model.graph.nodes}


def test_a_choice_on_data_is_no_assert() -> None:
    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 3, groups=2)

        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 1e6:
                raise ValueError("too large")
            return self.conv(x)

    result = check_pass(SplitGroupedConv(), Chooses(), (X,), sites=1, way="auto")
    assert result.report.way == "modules"
    assert "control flow" in result.report.notes[0]


def test_modules_of_the_users_class_keep_their_fields() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 9, 3, groups=3)

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[1] != self.conv.in_channels:
                raise ValueError("channels")
            return self.conv(x.to(self.conv.weight.dtype))

    result = check_pass(SplitGroupedConv(), Asks(), (X,), sites=1)
    conv: Any = result.model.conv
    assert (conv.groups, conv.kernel_size, conv.out_channels) == (3, (3, 3), 9)
    assert conv.weight.shape == (9, 2, 3, 3)
    assert conv.bias.shape == (9,)


def test_an_exported_program_refuses_train_and_the_remedy_works() -> None:
    model = Asserts().eval()
    result = groupfx.rewrite(torch.export.export(model, (X,)))
    with pytest.raises(NotImplementedError, match="rewrite the model that it was made of"):
        result.model.train()
    assert groupfx.rewrite(model, (X,), way="export").model.train().training


def test_an_export_refuses_a_size_that_it_took_for_a_constant() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 3, groups=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) * torch.ones(x.shape[2] - 2 if x.shape[2] == 11 else 1, 1)

    result = groupfx.rewrite(Fixed().eval(), (X,), way="export")
    assert any("sizes that the export fixed" in note for note in result.report.notes)
    assert result.model(X[:1]).shape == (1, 6, 9, 5)
    with pytest.raises(AssertionError, match="exported with size 11 in dimension 2"):
        result.model(torch.randn(2, 6, 13, 7))


def test_inputs_that_do_not_fit_forward() -> None:
    with pytest.raises(UsageError, match=r"do not fit Asserts\.forward"):
        groupfx.rewrite(Asserts(), (X, X))


def test_an_unknown_way() -> None:
    with pytest.raises(UsageError, match="unknown way 'guess': choose one of auto, trace"):
        groupfx.rewrite(Asserts(), (X,), way="guess")


def test_find_leaves_the_model_as_it_is() -> None:
    model = Uncalled().train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    groupfx.find(model, (X,))
    assert model.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


EXPORTED = ("weight-norm", "weight-norm-dim-2", "called-twice", "called-twice-two-norms", "conv-bn")


@pytest.mark.parametrize("name", EXPORTED)
def test_models_that_trace_can_be_exported_as_well(name: str) -> None:
    case = zoo.CASES[name]
    sites = sum(case.sites.values())
    check_pass(SplitGroupedConv(), case.build(), case.inputs(), sites=sites, way="export")


def test_a_child_with_the_name_of_a_keyword_is_no_crash() -> None:
    class NamedOutputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("class", nn.Conv2d(6, 6, 3, groups=2))

        def forward(self, x: Tensor) -> Tensor:
            return self._modules["class"](x)

    result = check_pass(SplitGroupedConv(), NamedOutputs(), (X,), sites=1)
    assert result.report.way == "modules"


@pytest.mark.parametrize(("norm", "noted"), [(nn.BatchNorm2d(6), True), (nn.Identity(), False)])
def test_a_batchnorm_out_of_sight_is_said_where_there_is_one(norm: nn.Module, noted: bool) -> None:
    model = nn.Sequential(nn.Conv2d(6, 6, 3, groups=2), norm).eval()
    result = check_pass(SplitGroupedConv(), model, (X,), sites=1, way="modules")
    assert bool(result.report.sites[0].notes) == noted


class KernelOfEachSample(nn.Module):
    """As CondConv and StyleGAN2 have it: the batch is taken for channels."""

    def __init__(self, traceable: bool) -> None:
        super().__init__()
        self.traceable = traceable
        self.conv = nn.Conv2d(6, 6, 3, groups=2)
        self.make = nn.Linear(6, 4 * 6 * 9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        b, c, h, w = x.shape
        if not self.traceable and h % 2:
            x = x.clone()
        weight = self.make(x.mean((2, 3))).view(b * 4, c, 3, 3)
        y = F.conv2d(x.reshape(1, b * c, h, w), weight, groups=b)
        return y.view(b, 4, y.size(2), y.size(3))


@pytest.mark.parametrize("traceable", [True, False])
def test_groups_that_are_the_batch_are_refused_in_every_way(traceable: bool) -> None:
    model = KernelOfEachSample(traceable)
    report = groupfx.rewrite(model, torch.randn(2, 6, 7, 7)).report
    assert report.way == ("trace" if traceable else "modules")
    assert [site.name for site in report.sites] == ["conv"]
    (left,) = report.skipped
    assert re.match(r"its groups: computed in forward \(.*:\d+\), and another for", left.reason)


def in_place(conv: nn.Conv2d) -> None:
    conv.weight.data.copy_(torch.renorm(conv.weight.data, 2, 0, 0.3))


def other_memory(conv: nn.Conv2d) -> None:
    conv.weight.data = torch.renorm(conv.weight.data, 2, 0, 0.3)


@pytest.mark.parametrize("target", [None, "plinio"])
@pytest.mark.parametrize("bring_back", [in_place, other_memory])
def test_a_layer_that_keeps_its_own_weight_in_bounds(
    bring_back: Callable[[nn.Conv2d], None], target: str | None
) -> None:
    """The bound holds for what is loaded or trained later; our runs leave the weight alone."""

    class Bounded(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            bring_back(self)
            return super().forward(x)

    model = nn.Sequential(Bounded(6, 6, 3, groups=2)).eval()
    weight = model[0].weight
    before, memory = weight.detach().clone(), weight.data_ptr()
    result = groupfx.rewrite(model, X, target=target)
    assert len(result.report.sites) == 1
    assert model[0].weight is weight
    assert weight.data_ptr() == memory
    assert torch.equal(weight, before)
    assert torch.equal(result.state_dict_map.to_original()["0.weight"], before)
    model[0].weight.data.mul_(5)
    result.state_dict_map.load_original(model.state_dict())
    torch.testing.assert_close(result.model(X), model(X))


class TakesTheName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleDict({name: nn.Conv2d(6, 6, 1, groups=3) for name in "ab"})

    def forward(self, x: Tensor, name: str, times: float | None) -> Tensor:
        return self.convs[name](x) * (times or 2.0)


def test_an_export_refuses_values_that_it_fixed(tmp_path: Path) -> None:
    x = torch.randn(2, 6, 5, 7)
    result = groupfx.rewrite(TakesTheName(), (x, "a", None), way="export")
    assert "arguments that the export fixed: name = 'a', times = None" in result.report.notes
    result.save(tmp_path / "model.pt")
    for model in (result.model, groupfx.load(tmp_path / "model.pt").model):
        model(x, "a", None)
        with pytest.raises(AssertionError, match="name was exported as 'a'"):
            model(x, "b", None)
        with pytest.raises(AssertionError, match="times was exported as None"):
            model(x, "a", 3.0)


@dataclasses.dataclass
class ComparedByValue(nn.Module):
    width: int = 6

    def __post_init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(self.width, self.width, 1, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@pytest.mark.parametrize("opened", [groupfx.find, groupfx.rewrite])
def test_modules_that_torch_cannot_list_are_refused(opened: Callable[..., Any]) -> None:
    said = r"^0 \(ComparedByValue \(tests/tracing/test_opening.py:\d+\)\) is compared by value, "
    with pytest.raises(ModelError, match=said + r".* no hash; .*@dataclass\(eq=False\)"):
        opened(HoldsOnePart(ComparedByValue()), torch.randn(2, 6, 5, 7))


class HoldsOnePart(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self._modules["0"] = part

    def forward(self, x: Tensor) -> Any:
        return self._modules["0"](x)  # type: ignore[misc]


def test_what_torch_logs_of_an_export_that_it_refuses_is_held_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Pages of a traceback: the reason is told where the way is."""

    class ForOneDevice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 2, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            numbers = [0, 0], [1, 1], [1, 1], 3
            return torch.mkldnn_convolution(x, self.weight, None, *numbers)

    (site,) = groupfx.find(ForOneDevice(), torch.randn(2, 6, 5, 7))
    assert "mkldnn_convolution with 3 groups runs here" in str(site.reason)
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
