"""The plan of each rewritten site stands on the graph, and goes wherever the graph goes."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

import groupfx
from groupfx.convs.names import joined
from groupfx.plan.branches import Branches
from groupfx.plan.forms import FormPlan
from groupfx.plan.site_plan import SitePlan, plan_of, site_of
from tests.models.frozen_cases import Layer

X = torch.randn(2, 8, 5, 5)
PERMUTED = Layer(tuple("aabbaabb"), tuple("aaabbbaaabbb"))


class TwoCalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, groups=4, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.conv(x)))


def two_sites() -> nn.Module:
    first = nn.Conv2d(8, 12, 3, groups=4)
    return nn.Sequential(first, nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 6, 1, groups=3)).eval()


def learned() -> nn.Module:
    return nn.Sequential(PERMUTED.build(), nn.BatchNorm2d(12), nn.ReLU()).eval()


def plans(model: nn.Module) -> dict[str, SitePlan]:
    """The plans on every graph of a model, by the name of their site in the whole model."""
    found: dict[str, SitePlan] = {}
    for path, module in model.named_modules():
        for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            plan = plan_of(node.meta)
            if plan is not None:
                assert joined(path, plan.site) not in found
                found[joined(path, plan.site)] = plan
    return found


def members(model: fx.GraphModule, site: str) -> list[str]:
    return [str(node.target) for node in model.graph.nodes if site_of(node.meta) == site]


def test_a_split_site_says_what_it_was() -> None:
    model = groupfx.rewrite(two_sites(), X).model
    assert isinstance(model, fx.GraphModule)
    convs, norms = ([f"{path}.{k}" for k in range(4)] for path in "01")
    assert plans(model)["0"] == SitePlan(
        "0", 8, 12, Branches.one_each(4), tuple(convs), tuple(norms)
    )
    assert plans(model)["3"] == SitePlan("3", 12, 6, Branches.one_each(3), ("3.0", "3.1", "3.2"))
    named = [name for name in members(model, "0") if name[0] in "01"]
    assert sorted(named) == sorted([*convs, *norms])
    assert len(members(model, "0")) == 4 + len(named) + 1
    unmarked = [n.op for n in model.graph.nodes if site_of(n.meta) is None]
    assert unmarked == ["placeholder", "call_module", "output"]


def test_each_call_of_a_module_has_a_plan() -> None:
    found = plans(groupfx.rewrite(TwoCalls().eval(), X).model)
    assert list(found) == ["conv", "conv#2"]
    assert found["conv"].convs == found["conv#2"].convs
    assert (found["conv"].norms, len(found["conv#2"].norms)) == ((), 4)


def test_a_weight_that_stays_whole_is_no_piece() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 4, 3, groups=2)))
    (plan,) = plans(groupfx.rewrite(model.eval(), X).model).values()
    assert (plan.form, plan.convs) == (Branches.one_each(2), ())


@pytest.mark.parametrize("form", ["auto", "dense", "bucketed", "padded", "split"])
def test_every_piece_of_a_frozen_layer_lies_where_the_plan_says(form: str) -> None:
    case = Layer(tuple("bacabcb"), tuple("dbbcadcaabc"))
    model, passes = nn.Sequential(case.build()).eval(), [f"freeze-learned-groups:form={form}"]
    result = groupfx.rewrite(model, case.example(), passes=passes).model
    (plan,) = plans(result).values()
    assert isinstance(plan.form, FormPlan)
    assert (plan.site, plan.in_channels, plan.out_channels) == ("0", 7, 11)
    assert isinstance(result, fx.GraphModule)
    modules = [target for target in members(result, "0") if target.startswith("0.")]
    assert sorted(modules) == sorted(plan.modules)


WAYS: dict[str, Callable[[groupfx.Result, Path], nn.Module]] = {
    "copied": lambda result, _: copy.deepcopy(result.model),
    "copied twice": lambda result, _: copy.deepcopy(copy.deepcopy(result.model)),
    "saved": lambda result, path: _saved(result, path),
    "copied and saved": lambda result, path: copy.deepcopy(_saved(result, path)),
}


def _saved(result: groupfx.Result, path: Path) -> nn.Module:
    result.save(path / "m.groupfx.pt")
    original = result.program.model if result.report.way == "modules" else None
    return groupfx.load(path / "m.groupfx.pt", original).model


@pytest.mark.parametrize("travel", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("way", ["trace", "modules", "export"])
def test_plans_go_with_the_graph(
    travel: Callable[[groupfx.Result, Path], nn.Module], way: str, tmp_path: Path
) -> None:
    result = groupfx.rewrite(two_sites(), X, way=way)
    assert set(plans(result.model)) == {"0", "3"}
    assert plans(travel(result, tmp_path)) == plans(result.model)


def test_a_file_written_before_there_were_plans_is_read(tmp_path: Path) -> None:
    result = groupfx.rewrite(two_sites(), X)
    for node in result.model.graph.nodes:
        node.meta.pop("groupfx", None)
    loaded = _saved(result, tmp_path)
    assert plans(loaded) == {}
    torch.testing.assert_close(loaded(X), result.model(X))


def _frozen_then_split(*, twice: bool) -> nn.Module:
    if not twice:
        passes = ["freeze-learned-groups", "split-grouped-conv"]
        return groupfx.rewrite(learned(), X, passes=passes).model
    frozen = groupfx.rewrite(learned(), X, target="onnxruntime").model
    assert isinstance(plans(frozen)["0"].form, FormPlan)
    return groupfx.rewrite(frozen, X, passes=["split-grouped-conv"]).model


@pytest.mark.parametrize("twice", [False, True], ids=["one-run", "two-runs"])
def test_frozen_and_then_split_is_one_site(twice: bool) -> None:
    model = _frozen_then_split(twice=twice)
    ((site, plan),) = plans(model).items()
    assert (site, plan.convs, plan.norms) == ("0", ("0.conv.0", "0.conv.1"), ("1.0", "1.1"))
    assert isinstance(plan.form, FormPlan)
    assert [conv.groups for conv in plan.form.convs] == [1, 1]
    assert isinstance(model, fx.GraphModule)
    assert set(plan.modules) <= set(members(model, "0"))


def test_what_is_respelled_is_no_site_any_more() -> None:
    model = groupfx.rewrite(learned(), X, target="plinio").model
    assert isinstance(model, fx.GraphModule)
    assert members(model, "0") == []
    assert plans(model) == {}


def test_where_one_plan_cannot_say_it_the_later_one_stays() -> None:
    frozen = groupfx.rewrite(learned(), X, target="onnxruntime").model
    passes = ["split-grouped-conv:batchnorm=after"]
    model = groupfx.rewrite(frozen, X, passes=passes).model
    assert list(plans(model)) == ["0.conv"]
    assert isinstance(model, fx.GraphModule)
    assert members(model, "0") == []
