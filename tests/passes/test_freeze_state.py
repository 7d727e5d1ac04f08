"""Frozen layers go on training, load the original's checkpoints, and stay frozen."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import groupfx
from groupfx.errors import UsageError
from groupfx.passes import FreezeLearnedGroups
from groupfx.testing import check_pass
from tests.models.frozen_cases import FORMS, INPUT_MAP, Layer, mask_of, with_batchnorm

IN, OUT = tuple("bacabcb"), tuple("abbcdbcaabc")
CASE = Layer(IN, OUT, {"padding": 1})
TIED = Layer(("ab", *IN[1:]), ("ab", *OUT[1:]), {"padding": 1})
TRIPLE = Layer(("abc", *IN[1:]), ("abc", *OUT[1:]), {"padding": 1})


def frozen(model: nn.Module, form: Any, x: Tensor) -> groupfx.Result:
    return groupfx.rewrite(model, (x,), passes=[FreezeLearnedGroups(form=form)])


def train(
    model: nn.Module, x: Tensor, make: Callable[[Any], torch.optim.Optimizer], steps: int = 3
) -> None:
    model.train()
    optimizer = make([p for n, p in model.named_parameters() if not n.endswith("_map")])
    for step in range(steps):
        optimizer.zero_grad()
        y = model(x + step)
        (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
        optimizer.step()


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", [CASE, TRIPLE], ids=["plain", "entry-3"])
def test_three_steps_of_training_are_those_of_the_original(
    case: Layer, form: Any, optimizer: Callable[[Any], torch.optim.Optimizer]
) -> None:
    """In float64, with the maps held still; dense weights under the mask are the same after it."""
    # Behind a BatchNorm, the bias has a gradient of rounding alone, and Adam makes steps of that.
    normed = optimizer is OPTIMIZERS["sgd"]
    model = with_batchnorm(case.build(), len(OUT)) if normed else nn.Sequential(case.build())
    model.double()
    x = case.example().double()
    result = frozen(model, form, x)
    twin = result.model
    zeros = {
        name: parameter.detach() == 0
        for name, parameter in twin.named_parameters()
        if parameter.dim() == 4
    }
    train(model, x, optimizer)
    train(twin, x, optimizer)
    mask = mask_of(case.inputs, case.outputs)[:, :, None, None]
    back = result.state_dict_map.to_original(fill=model.state_dict())
    assert torch.allclose(back["0.conv.weight"] * mask, model[0].conv.weight * mask, rtol=1e-9)
    for name, value in model.state_dict().items():
        if value.dim() == 1:
            assert torch.allclose(back[name], value, rtol=1e-9, atol=1e-12), name
    for name, parameter in twin.named_parameters():
        if name in zeros:
            assert torch.equal(parameter == 0, zeros[name]), f"{name} lost its zeros"
    model.eval(), twin.eval()
    y, z = model(x), twin(x)
    assert (y - z).abs().max() <= 1e-9 * y.abs().max()


@pytest.mark.parametrize("form", FORMS)
def test_a_tie_of_two_keeps_its_structure_in_training(form: Any) -> None:
    """The weight holds the factor, so its steps are not the original's; zeros stay zeros."""
    model = nn.Sequential(TIED.build())
    twin = frozen(model, form, TIED.example()).model
    before = {n: p.detach().clone() for n, p in twin.named_parameters()}
    train(twin, TIED.example(), OPTIMIZERS["adamw"])
    for name, parameter in twin.named_parameters():
        assert not torch.equal(parameter, before[name])
        if parameter.dim() == 4:
            assert torch.equal(parameter == 0, before[name] == 0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", [CASE, TIED, TRIPLE], ids=["plain", "entry-2", "entry-3"])
def test_another_checkpoint_with_the_same_groups_loads(case: Layer, form: Any) -> None:
    model = with_batchnorm(case.build(), len(OUT)).eval()
    x = case.example()
    result = frozen(model, form, x)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name.endswith("_map"):
                parameter.mul_(3)
            else:
                nn.init.uniform_(parameter, -1, 1)
    result.state_dict_map.load_original(other.state_dict())
    expected, found = other.double()(x.double()), result.model.double()(x.double())
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_with_other_groups_is_refused(form: Any) -> None:
    model = nn.Sequential(CASE.build()).eval()
    result = frozen(model, form, CASE.example())
    before = copy.deepcopy(result.model.state_dict())
    state = copy.deepcopy(model.state_dict())
    state[f"0.{INPUT_MAP}"][2] = torch.tensor([5.0, 0, 0, 0, 0])
    with pytest.raises(UsageError, match="1 of 7 input channels are in other groups"):
        result.state_dict_map.load_original(state)
    assert all(torch.equal(value, before[key]) for key, value in result.model.state_dict().items())


def test_one_conv_and_its_batchnorm_keep_their_keys() -> None:
    case = Layer(tuple("abcacb"), tuple("cbacbaabc"))
    result = frozen(with_batchnorm(case.build(), 9).eval(), "auto", case.example())
    keys = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    assert set(result.model.state_dict()) == {
        "0.conv.weight", "0.conv.bias", *(f"1.{key}" for key in keys)
    }  # fmt: skip
    order = [str(n.target) for n in result.model.graph.nodes if n.op == "call_module"]
    assert order == ["0.input_gather", "0.conv", "1", "0.output_gather"]


def test_several_convs_take_the_batchnorm_into_their_branches() -> None:
    result = frozen(with_batchnorm(CASE.build(), 11).eval(), "auto", CASE.example())
    order = [str(n.target) for n in result.model.graph.nodes if n.op == "call_module"]
    assert order == [
        "0.input_gather",
        *("0.convs.0", "1.0", "0.convs.1", "1.1"),
        *("0.constants", "1.2", "0.output_gather"),
    ]
    assert {"1.0.weight", "1.2.running_var", "1.2.num_batches_tracked"} < set(
        result.model.state_dict()
    )


def test_several_convs_without_a_gather_take_the_batchnorm_too() -> None:
    case = Layer(tuple("aaabb"), tuple("aabbb"))
    result = check_pass(
        FreezeLearnedGroups(), with_batchnorm(case.build(), 5).eval(), case.example(), sites=1
    )
    order = [str(n.target) for n in result.model.graph.nodes if n.op == "call_module"]
    assert order == ["0.convs.0", "1.0", "0.convs.1", "1.1"]


def test_a_batchnorm_stays_behind_padded_filters() -> None:
    pass_ = FreezeLearnedGroups(form="padded")
    result = check_pass(pass_, with_batchnorm(CASE.build(), 11).eval(), CASE.example(), sites=1)
    order = [str(n.target) for n in result.model.graph.nodes if n.op == "call_module"]
    assert order[-2:] == ["0.output_gather", "1"]
    (site,) = result.report.sites
    assert any("BatchNorm stays behind: padded filters" in note for note in site.notes)


class NormOfTwoUsers(nn.Module):
    """A BatchNorm whose input, or whose output, has a second user."""

    def __init__(self, of_norm: bool) -> None:
        super().__init__()
        self.block = with_batchnorm(CASE.build(), 11)
        self.of_norm = of_norm

    def forward(self, x: Tensor) -> Tensor:
        y = self.block[0](x)
        z = self.block[1](y)
        return z + (z.relu() if self.of_norm else y)


@pytest.mark.parametrize("of_norm", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_batchnorm_with_another_user(form: Any, of_norm: bool) -> None:
    model = NormOfTwoUsers(of_norm).eval()
    result = check_pass(FreezeLearnedGroups(form=form), model, CASE.example(), sites=1)
    (site,) = result.report.sites
    stays = any("BatchNorm stays behind: " in note for note in site.notes)
    padded = form == "padded"
    assert stays == (form != "dense" and (padded or not of_norm))


def test_a_batchnorm_that_is_called_twice_stays() -> None:
    class NormTwice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = CASE.build(), CASE.build()
            self.norm = nn.BatchNorm2d(11)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.a(x)) + self.norm(self.b(x))

    result = check_pass(FreezeLearnedGroups(), NormTwice().eval(), CASE.example(), sites=2)
    assert "norm.weight" in result.model.state_dict()


EQUAL = Layer(tuple("abcacb"), tuple("cbacbaabc"))


@pytest.mark.parametrize("form", ["auto", "fastest"])
@pytest.mark.parametrize("case", [CASE, EQUAL], ids=["unequal", "equal"])
def test_a_second_default_run_finds_nothing(case: Layer, form: str, tmp_path: Path) -> None:
    model = with_batchnorm(case.build(), len(case.outputs)).eval()
    x = case.example()
    # Of layers as small as these the fastest form, which the default takes, is dense.
    passes = ["split-grouped-conv:frozen=keep", f"freeze-learned-groups:form={form}"]
    first = groupfx.rewrite(model, (x,), passes=passes)
    assert [site.pass_name for site in first.report.sites] == ["freeze-learned-groups"]
    first.save(tmp_path / "m.groupfx.pt")
    loaded = groupfx.load(tmp_path / "m.groupfx.pt").model
    for twin in (first.model, copy.deepcopy(first.model), loaded):
        second = groupfx.rewrite(twin, (x,))
        assert not second.report.sites
        reasons = [skipped.reason for skipped in second.report.skipped]
        assert all("made by freezing" in reason for reason in reasons)
        assert len(reasons) == (form == "auto")
        assert torch.equal(second.model(x), first.model(x))


@pytest.mark.parametrize("form", ["auto", "bucketed", "padded"])
def test_plinio_splits_what_was_frozen(form: str) -> None:
    model = with_batchnorm(EQUAL.build(), 9).eval()
    x = EQUAL.example()
    passes = [f"freeze-learned-groups:form={form}", "split-grouped-conv"]
    result = groupfx.rewrite(model, (x,), passes=passes)
    assert [site.pass_name for site in result.report.sites] == [
        "freeze-learned-groups",
        "split-grouped-conv",
    ]
    convs = [m for m in result.model.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.groups) for c in convs] == [(2, 3, 1)] * 3
    result.state_dict_map.load_original(model.state_dict())
    assert groupfx.rewrite(model, (x,), target="plinio").report.ok
    assert len(groupfx.rewrite(model, (x,), target="onnxruntime").report.sites) == 1


def test_a_padded_frozen_conv_is_not_split_and_says_so() -> None:
    model = nn.Sequential(CASE.build()).eval()
    passes = ["freeze-learned-groups:form=padded", "split-grouped-conv"]
    result = groupfx.rewrite(model, (CASE.example(),), passes=passes)
    assert [site.name for site in result.report.sites] == ["0"]
    assert [skipped.reason.partition(";")[2] for skipped in result.report.skipped] == [
        " freeze with form=split to have one convolution a block"
    ]
    again = groupfx.rewrite(result.model, (CASE.example(),))
    assert again.report.way == "trace"
    assert not again.report.sites
    assert len(again.report.skipped) == 1


@pytest.mark.parametrize("form", FORMS)
def test_optimizer_state_goes_along(form: Any) -> None:
    model = nn.Sequential(CASE.build()).double()
    x = CASE.example().double()
    free = [p for n, p in model.named_parameters() if not n.endswith("_map")]
    optimizer = torch.optim.Adam(free, 1e-3)
    model(x).square().sum().backward()
    optimizer.step()
    result = frozen(model, form, x)
    twin = result.state_dict_map.convert_optimizer(optimizer, model)
    for each, opt in ((model, optimizer), (result.model, twin)):
        opt.zero_grad()
        each.train()(x).sin().sum().backward()
        opt.step()
    y, z = model.eval()(x), result.model.eval()(x)
    assert (y - z).abs().max() <= 1e-9 * y.abs().max()
