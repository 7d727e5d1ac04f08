"""A rewritten model is put together by its plans; one that lost them, or was changed, says so."""

import copy
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import groupfx
from groupfx.merging import sites
from groupfx.merging.nested import nested
from groupfx.merging.sites import merge_sites
from groupfx.nn import ChannelGather
from groupfx.plan.site_plan import NOTE, SitePlan, note, plan_of
from groupfx.running.inputs import ExampleInputs
from tests.deploy.exported_model import assert_computes, convs_of
from tests.models.frozen_cases import Layer, with_batchnorm

X = torch.randn(2, 6, 7, 7)
LEARNED = Layer(tuple("abcdab"), tuple("abcabcdd"), {"padding": 1})


class SplitAndFrozen(nn.Module):
    """A plain site, one that is called twice, one with a computed weight, and two that learned."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Sequential(nn.Conv2d(6, 9, 3, groups=3), nn.BatchNorm2d(9), nn.ReLU())
        self.twice = nn.Conv2d(9, 9, 1, groups=3)
        self.computed = nn.utils.parametrizations.weight_norm(nn.Conv2d(9, 6, 1, groups=3))
        self.learned = with_batchnorm(LEARNED.build(), 8)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.learned(self.computed(self.twice(self.twice(self.plain(x)))))


PASSES = ["split-grouped-conv", "freeze-learned-groups:form=bucketed"]
NAMES = ["plain.0", "twice", "computed", "learned.0"]


@pytest.fixture(scope="module")
def result() -> groupfx.Result:
    torch.manual_seed(0)
    return groupfx.rewrite(SplitAndFrozen().eval(), X, passes=PASSES)


@pytest.fixture
def nothing_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Iterator[object]:
        raise AssertionError("a site was recognised by its form, and a shape was asked for")

    monkeypatch.setattr(sites, "recognised", lambda *_: iter(()))
    monkeypatch.setattr(sites, "known_shapes", refuse)


def saved(result: groupfx.Result, folder: Path) -> nn.Module:
    result.save(folder / "m.pt")
    modules = result.report.way == "modules"
    return groupfx.load(folder / "m.pt", result.program.model if modules else None).model


WAYS: dict[str, Callable[[groupfx.Result, Path], nn.Module]] = {
    "at-once": lambda result, _: result.model,
    "copied": lambda result, _: copy.deepcopy(result.model),
    "loaded": saved,
}


@pytest.mark.usefixtures("nothing_guessed")
@pytest.mark.parametrize("travel", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("way", ["trace", "modules"])
def test_every_site_is_put_together_by_its_plan(
    travel: Callable[[groupfx.Result, Path], nn.Module],
    way: str,
    result: groupfx.Result,
    tmp_path: Path,
) -> None:
    if way == "modules":
        result = groupfx.rewrite(SplitAndFrozen().eval(), X, passes=PASSES, way=way)
    model = travel(result, tmp_path)
    merged = merge_sites(model, ExampleInputs.of(X))
    assert [site.name for site in merged.planned] == NAMES
    assert merged.notes == ()
    convs = [m for m in merged.model.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    assert len(convs) == 1  # the frozen one, dense; nothing is left in pieces
    torch.testing.assert_close(merged.model(X), model(X))


def retraced(model: nn.Module) -> fx.GraphModule:
    """As `torch.fx` traces it: our leaves, which it does not know, stay leaves."""

    class Leaves(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, name: str) -> bool:
            ours = type(m).__module__.startswith("groupfx.nn")
            return ours or super().is_leaf_module(m, name)

    return fx.GraphModule(model, Leaves().trace(model))


def test_a_model_that_was_traced_anew_is_recognised_and_says_so(
    result: groupfx.Result, tmp_path: Path
) -> None:
    paths = [tmp_path / "plan.onnx", tmp_path / "form.onnx"]
    by_plan = groupfx.export(result.model, X, paths[0])
    by_form = groupfx.export(retraced(result.model), X, paths[1])
    assert by_plan.notes == ()
    assert by_form.notes == (
        "learned.0, plain.0, twice and 1 more were recognised by their form: the graph carries no "
        "plan",
    )
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_one_that_is_recognised_is_named() -> None:
    model = groupfx.rewrite(nn.Sequential(nn.Conv2d(6, 9, 3, groups=3)).eval(), X).model
    found = merge_sites(fx.symbolic_trace(model), ExampleInputs.of(X))
    assert found.notes == ("0 was recognised by its form: the graph carries no plan",)


# Graphs that were changed after the rewrite. Each change keeps the model runnable.


def nodes_of(model: fx.GraphModule, target: object) -> list[fx.Node]:
    return [node for node in model.graph.nodes if node.target == target]


def move_a_slice(model: fx.GraphModule) -> None:
    node = nodes_of(model, "plain.0.1")[0].args[0]
    assert isinstance(node, fx.Node)
    node.args = (node.args[0], (slice(None), slice(1, 3)))


def swap_two_branches(model: fx.GraphModule) -> None:
    first, second = (nodes_of(model, f"plain.0.{k}")[0].args[0] for k in (0, 1))
    assert isinstance(first, fx.Node)
    assert isinstance(second, fx.Node)
    first.args, second.args = second.args, first.args


def swap_two_results(model: fx.GraphModule) -> None:
    cat = next(iter(nodes_of(model, "plain.1.0")[0].users))
    values = list(cat.args[0])  # type: ignore[arg-type]
    cat.args = ([values[1], values[0], values[2]],)


def add_a_user(model: fx.GraphModule) -> None:
    inner, output = nodes_of(model, "plain.0.1")[0], model.graph.output_node()
    with model.graph.inserting_before(output):
        mean = model.graph.call_method("mean", (inner,))
        output.args = (model.graph.call_function(operator.add, (output.args[0], mean)),)


def put_a_module_between(model: fx.GraphModule) -> None:
    model.add_module("between", nn.Tanh())
    conv = nodes_of(model, "plain.0.2")[0]
    with model.graph.inserting_after(conv):
        tanh = model.graph.call_module("between", (conv,))
    conv.replace_all_uses_with(tanh, delete_user_cb=lambda user: user is not tanh)


def another_mode_in_one(model: fx.GraphModule) -> None:
    # Without padding it is the same, but the convolutions are no longer alike.
    model.get_submodule("plain.0.1").padding_mode = "circular"


def a_hook(model: fx.GraphModule) -> None:
    model.get_submodule("plain.0.1").register_forward_hook(lambda module, args, value: value * 3)


def another_norm(model: fx.GraphModule) -> None:
    model.get_submodule("plain.1.1").eps = 0.5


def drop_the_last_node(model: fx.GraphModule) -> None:
    cat = next(iter(nodes_of(model, "plain.1.0")[0].users))
    del cat.meta[NOTE]


def another_order(model: fx.GraphModule) -> None:
    old = model.get_submodule("learned.0.output_gather")
    assert isinstance(old, ChannelGather)
    model.set_submodule("learned.0.output_gather", ChannelGather(old.channels[::-1]))


def of_the_input(model: fx.GraphModule) -> None:
    conv = nodes_of(model, "learned.0.convs.1")[0]
    conv.args = (conv.args[0].args[0],)  # type: ignore[union-attr]
    width = model.get_submodule("learned.0.convs.1").in_channels
    with model.graph.inserting_before(conv):
        index = (slice(None), slice(0, width))
        conv.args = (model.graph.call_function(operator.getitem, (conv.args[0], index)),)


CHANGES: dict[str, tuple[Callable[[fx.GraphModule], None], str, str]] = {
    "slice": (move_a_slice, "plain.0", "do not read the channels that they did"),
    "branches": (swap_two_branches, "plain.0", "do not read the channels that they did"),
    "results": (swap_two_results, "plain.0", "stands where plain.1.0 was called"),
    "user": (add_a_user, "plain.0", "mean reads a value from inside it"),
    "module": (put_a_module_between, "plain.0", "between stands where plain.0.2 was called"),
    "fields": (another_mode_in_one, "plain.0", "differ in more than their channels"),
    "hook": (a_hook, "plain.0", "plain.0.1 is no plain convolution any more"),
    "norm": (another_norm, "plain.0", "BatchNorms of its pieces differ"),
    "end": (drop_the_last_node, "plain.0", "the node that held the plan is gone"),
    "gather": (another_order, "learned.0", "output_gather does not read the channels in its order"),
    "frozen-slice": (of_the_input, "learned.0", "do not read the channels that they did"),
}


def changed_copy(model: nn.Module, change: Callable[[fx.GraphModule], None]) -> fx.GraphModule:
    twin = copy.deepcopy(model)
    assert isinstance(twin, fx.GraphModule)
    change(twin)
    twin.graph.lint()
    twin.recompile()
    return twin


@pytest.mark.parametrize(("change", "site", "reason"), CHANGES.values(), ids=CHANGES.keys())
def test_a_graph_that_was_changed_stays_as_it_is_and_says_so(
    change: Callable[[fx.GraphModule], None], site: str, reason: str, result: groupfx.Result
) -> None:
    model = changed_copy(result.model, change)
    merged = merge_sites(model, ExampleInputs.of(X))
    (said,) = merged.notes
    assert said.startswith(f"{site} is exported as the graph stands, which is not what the plan")
    assert reason in said
    assert [entry.name for entry in merged.planned] == [name for name in NAMES if name != site]
    torch.testing.assert_close(merged.model(X), model(X))


def test_a_slice_that_was_moved_is_exported_as_it_is(
    result: groupfx.Result, tmp_path: Path
) -> None:
    path, model = tmp_path / "m.onnx", changed_copy(result.model, move_a_slice)
    export = groupfx.export(model, X, path)
    assert [text for text in export.notes if text.startswith("plain.0 is exported as")]
    assert {f"plain.0.{k}" for k in range(3)} <= set(convs_of(path))
    assert_computes(path, model, X)
    verdict = groupfx.validate(model, path, X)
    assert verdict.ok, verdict.blame
    assert not groupfx.validate(result.model, path, X).ok


# Plans that are wrong, as a damaged file may hold them.


def other_plan(model: fx.GraphModule, site: str, change: dict[str, Any]) -> None:
    for node in model.graph.nodes:
        plan = plan_of(node.meta)
        if plan is not None and plan.site == site:
            data = plan.to_data()
            form = data["form"]
            if isinstance(form, dict) and not change:
                change = {"convs": ()}
            elif isinstance(form, dict):
                change = {"form": {**form, **change}}
            node.meta[NOTE] = note(site) | {"plan": {**data, **change}}


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "groups": ("plain.0", {"form": 9}, "cannot be cut into 9 equal groups"),
    "fewer": ("plain.0", {"form": 1}, "3 BatchNorms are not one for each of 1"),
    "no-plan": ("plain.0", {"form": "three"}, "no plan of a site"),
    "a-lost-path": ("plain.0", {"convs": ("a", "b", "c")}, "stands where a was called"),
    "outputs": ("plain.0", {"out_channels": 12}, "a convolution of it is now"),
    "no-convs": ("learned.0", {}, "its numbers contradict each other"),
    "constants": ("learned.0", {"constants": (0,)}, "its numbers contradict each other"),
    "gather": ("learned.0", {"output_gather": ("gather", (0, 1))}, "its numbers contradict"),
    "far-inputs": ("learned.0", {"input_gather": ("gather", (99,) * 6)}, "its numbers contradict"),
}


@pytest.mark.parametrize(("site", "change", "reason"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_plan_changes_no_function(
    site: str, change: dict[str, Any], reason: str, result: groupfx.Result
) -> None:
    model = changed_copy(result.model, lambda twin: other_plan(twin, site, change))
    merged = merge_sites(model, ExampleInputs.of(X))
    (said,) = merged.notes
    assert said.startswith(f"{site} is exported as the graph stands")
    assert reason in said
    torch.testing.assert_close(merged.model(X), model(X))


def test_frozen_and_then_split_keeps_its_name(tmp_path: Path) -> None:
    model = with_batchnorm(LEARNED.build(), 8).eval()
    split = groupfx.rewrite(model, X, passes=["freeze-learned-groups", "split-grouped-conv"])
    path = tmp_path / "m.onnx"
    export = groupfx.export(split, None, path)
    assert [site.name for site in export.sites] == ["0"]
    assert export.notes == ()
    assert list(convs_of(path)) == ["0"]
    verdict = groupfx.validate(model, path, X)
    assert verdict.ok, verdict.blame


def test_plans_read_what_they_wrote(result: groupfx.Result) -> None:
    found = [plan for node in result.model.graph.nodes if (plan := plan_of(node.meta))]
    assert [SitePlan.of_data(plan.to_data()) for plan in found] == found
    assert len(found) == len(NAMES) + 1  # `twice` is called twice


class NarrowRegNet(nn.Module):
    """Two residual blocks with a grouped convolution each, and one whose value is an output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.reduce = nn.ModuleList(nn.Conv2d(6, 6, 1) for _ in range(2))
        self.grouped = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1, groups=3) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(2))
        self.head = nn.Sequential(nn.Conv2d(6, 10, 1, groups=2), nn.BatchNorm2d(10), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for reduce, grouped, norm in zip(self.reduce, self.grouped, self.norms, strict=True):
            x = torch.relu(x + norm(grouped(torch.relu(reduce(x)))))
        return self.head(x)


def convs_in(model: nn.Module) -> int:
    return sum(isinstance(module, nn.Conv2d) for module in model.modules())


def test_what_is_written_for_plinio_is_exported_with_a_node_a_site(tmp_path: Path) -> None:
    model, x = NarrowRegNet().eval(), torch.randn(2, 3, 9, 9)
    result = groupfx.rewrite(model, x, target="plinio")
    assert any(node.kwargs.get("dim") == -3 for node in result.model.graph.nodes)
    merged = merge_sites(result.model, ExampleInputs.of(x))
    assert [site.name for site in merged.planned] == ["grouped.0", "grouped.1", "head.0"]
    assert (convs_in(merged.model), merged.notes) == (convs_in(model), ())
    path = tmp_path / "m.onnx"
    export = groupfx.export(result, path=path)
    assert [site.form for site in export.sites] == ["split into 3", "split into 3", "split into 2"]
    assert_computes(path, model, x)


class ShuffledUnit(nn.Module):
    """A ShuffleNet unit: the second site is joined with the pooled input, the first is shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(8, 8, 1, groups=2), nn.BatchNorm2d(8)
        self.second, self.behind = nn.Conv2d(8, 4, 1, groups=2), nn.BatchNorm2d(4)
        self.last = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.channel_shuffle(F.relu(self.norm(self.first(x))), 2)
        y = torch.cat([F.relu(torch.cat([self.behind(self.second(y))], 1)), F.max_pool2d(x, 1)], 1)
        return self.last(y.relu())


def test_sites_that_were_joined_with_others_are_exported_in_one_piece(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model, x = ShuffledUnit().eval(), torch.randn(2, 8, 5, 7)
    passes = ["split-grouped-conv", "index-channels", "merge-concats"]
    result = groupfx.rewrite(model, x, passes=passes)
    (end, _) = [n for n in result.model.graph.nodes if n.target is torch.cat][::-1]
    assert len(end.args[0]) == 3
    assert any(isinstance(part, list) for n in result.model.graph.nodes for part in indices(n))
    merged = merge_sites(result.model, ExampleInputs.of(x))
    assert [site.name for site in merged.planned] == ["first", "second"]
    kinds = [type(module) for module in merged.model.modules()]
    assert (kinds.count(nn.Conv2d), kinds.count(ChannelGather)) == (3, 1)
    assert torch.equal(merged.model(x), result.model(x))


def indices(node: fx.Node) -> tuple[Any, ...]:
    return node.args[1] if node.target is operator.getitem else ()  # type: ignore[return-value]


def test_what_mixes_channels_is_not_joined_again() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(nn.Conv2d(3, 4, 1) for _ in range(2))
            self.head, self.norm = nn.Conv2d(4, 4, 1), nn.Softmax(1)

        def forward(self, x: Tensor) -> Tensor:
            halves = [part(x[:, 3 * k : 3 * k + 3]) for k, part in enumerate(self.parts)]
            mixed = torch.cat([*(self.head(half) for half in halves), x], 1)
            return torch.cat([*(self.norm(half) for half in halves), mixed], 1)

    graph = fx.symbolic_trace(Shared())
    assert nested(graph) is graph
