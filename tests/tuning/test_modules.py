"""Tuning torch models for torch itself: sites, the model with them, and the two backends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import groupfx
import groupfx.tuning.tune as tuning
from groupfx.cli.input.options import TORCH_BACKENDS
from groupfx.errors import ModelError, UsageError
from groupfx.nn import Flgc2d
from groupfx.running.inputs import ExampleInputs
from groupfx.tuning import TuningOptions, backend_names, runs_torch, tune_module
from groupfx.tuning.backends import backend_named
from groupfx.tuning.backends.torch_compile import CompileBackend
from groupfx.tuning.backends.torch_eager import EagerBackend, device_name, on_host
from groupfx.tuning.modules import ModuleSubject


class LayerKinds(nn.Module):
    """A learned layer that is called twice, one that is called once, groups, and depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = Flgc2d(12, 12, 3, padding=1, group_num=3, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.once = Flgc2d(12, 10, 1, group_num=2)
        self.grouped = nn.Conv2d(10, 20, 3, groups=5)
        self.depthwise = nn.Conv2d(20, 20, 3, groups=20)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.twice(torch.relu(self.norm(self.twice(x)))))
        return self.depthwise(torch.relu(self.grouped(self.once(y))))


def network() -> LayerKinds:
    torch.manual_seed(3)
    model = LayerKinds()
    model.norm.running_mean.normal_()
    return model.eval()


X = ExampleInputs((torch.randn(2, 12, 11, 9),))
RECIPES = {"twice": "padded", "once": "split", "grouped": "split"}


def test_the_sites_of_a_module() -> None:
    subject, unknown = ModuleSubject.of(network(), X)
    assert not unknown
    assert {site.name: site.untouched for site in subject.sites} == {
        "twice": "dense",
        "once": "dense",
        "grouped": "grouped",
    }
    assert "2x12x11x9 to" in subject.sites[0].signature
    assert [choice.expected for choice in subject.choices(pytest.fail)] == [
        site.untouched for site in subject.sites
    ]
    recipes = {choice.site.name: choice.recipes for choice in subject.choices(pytest.fail)}
    assert recipes["grouped"] == ("split",)
    # Blocks of different sizes: bucketed is split.
    assert recipes["twice"] == ("padded", "bucketed")


@pytest.mark.parametrize("recipes", [{}, RECIPES], ids=["untouched", "in forms"])
def test_a_variant_is_the_same_function(recipes: dict[str, str]) -> None:
    model = network()
    subject, _ = ModuleSubject.of(model, X)
    made = subject.made(recipes)
    with torch.no_grad():
        torch.testing.assert_close(X.call(made), X.call(model))
    kinds = [type(module).__name__ for module in made.modules()]
    assert "Flgc2d" not in kinds
    split = sum(isinstance(module, nn.Conv2d) for module in made.get_submodule("grouped").modules())
    assert split == (5 if recipes else 1)


def test_the_callers_model_stays_as_it_is() -> None:
    model = network().train()
    before = {name: (t.data_ptr(), t.clone()) for name, t in model.state_dict().items()}
    subject, _ = ModuleSubject.of(model, X)
    EagerBackend().load(subject.made(RECIPES), X, 1)()
    assert model.training
    for name, tensor in model.state_dict().items():
        place, values = before[name]
        assert tensor.data_ptr() == place
        assert torch.equal(tensor, values)


@pytest.mark.parametrize(
    ("site", "recipe"), [("grouped", "dense"), ("grouped", "merge 5"), ("once", "grouped")]
)
def test_a_recipe_that_no_pass_writes_is_refused(site: str, recipe: str) -> None:
    subject, _ = ModuleSubject.of(network(), X)
    (found,) = [each for each in subject.sites if each.name == site]
    with pytest.raises(UsageError, match="is no way to execute it in torch: "):
        subject.fits(found, recipe)
    subject.fits(found, found.untouched)


@pytest.mark.parametrize("recipes", [{}, RECIPES], ids=["untouched", "in forms"])
def test_a_profile_tells_of_every_site(recipes: dict[str, str]) -> None:
    subject, _ = ModuleSubject.of(network(), X)
    made = subject.made(recipes)
    profile = EagerBackend().profile(made, X, 1, 0.02)
    assert profile is not None
    times = subject.times(made, profile)
    assert times.keys() == RECIPES.keys()
    assert min(times.values()) > 0
    # Both calls of a layer and the BatchNorms behind it, which a form may have taken in, are its.
    own = {node.name: node.time for node in profile.nodes}
    assert sum(times.values()) < sum(own.values())
    if not recipes:
        twice = [own[name] for name in own if name.startswith(("twice", "norm"))]
        assert len(twice) == 4
        assert times["twice"] == pytest.approx(sum(twice), abs=4 * 4 + 0.1)


BACKENDS: list[tuple[str, Callable[[], EagerBackend]]] = [
    ("torch", EagerBackend),
    ("torch.compile", CompileBackend),
]


@pytest.fixture
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything of torch.compile but its code generator, which takes seconds a model; and races
    that are short.
    """
    monkeypatch.setattr(tuning, "_MOST_SECONDS_OF_A_RACE", 0.5)
    whole = nn.Module.compile

    def compile_(self: nn.Module, **options: Any) -> None:
        whole(self, backend="eager", **options)

    monkeypatch.setattr(nn.Module, "compile", compile_)


@pytest.mark.usefixtures("_uncompiled")
@pytest.mark.parametrize(("name", "kind"), BACKENDS, ids=[name for name, _ in BACKENDS])
def test_a_program_gives_what_the_model_gives(name: str, kind: Callable[[], EagerBackend]) -> None:
    model, backend, threads = network(), kind(), torch.get_num_threads()
    assert backend.name == name
    with torch.no_grad():
        wanted = X.call(model).numpy()
    made, _ = ModuleSubject.of(model, X)
    own = made.made({})
    places = {p.data_ptr() for p in own.parameters()}
    kept = [p.data for p in own.parameters()]
    for _ in range(2):
        (found,) = backend.load(own, X, 2)()
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert torch.get_num_threads() == threads
    assert not torch.is_inference_mode_enabled()
    # Each load finds its tensors elsewhere, and they hold what they held.
    assert kept
    assert not places & {p.data_ptr() for p in own.parameters()}
    assert all(torch.equal(a, b) for a, b in zip(kept, own.parameters(), strict=True))


def test_only_a_compiled_model_has_no_profile() -> None:
    made = ModuleSubject.of(network(), X)[0].made({})
    assert CompileBackend().profile(made, X, 1, 0.01) is None
    assert EagerBackend().profile(network(), X, 1, 0.01) is None


def test_what_torch_raises_is_said() -> None:
    wrong = ExampleInputs((torch.randn(2, 5, 4, 4),))
    program = EagerBackend().load(network(), wrong, 1)
    with pytest.raises(ModelError, match="torch cannot run it: "):
        program()


@pytest.mark.usefixtures("_uncompiled")
def test_what_lies_on_a_device_is_timed_on_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    there = ExampleInputs((torch.empty(2, 3, device="meta"),))
    assert on_host(X)
    assert not on_host(there)
    assert (device_name(X), device_name(there)) == (None, "meta")
    read: list[str] = []

    def race(loads: list[Any], clock: Any, *others: Any, **options_: Any) -> Any:
        read.append("wall" if clock is options.wall else "thread")
        return [[[1.0] for _ in loads]] * 2

    monkeypatch.setattr(tuning, "race", race)
    options = TuningOptions(cache=None, backend="torch.compile")
    tune_module(network(), X, options)
    monkeypatch.setattr("groupfx.tuning.modules.on_host", lambda feeds: False)
    tune_module(network(), X, options)
    assert read == ["thread", "wall"]


def test_a_model_is_tuned_and_its_plan_gives_the_same_model(tmp_path: Path) -> None:
    model = network()
    first = groupfx.tune(model, X, tmp_path / "a.pt", backend="torch", budget=1, cache=False)
    assert first.export is None
    assert first.path == tmp_path / "a.pt"
    assert first.result is not None
    assert first.result.report.ok
    assert first.ratio is not None
    assert first.plan.backend == "torch"
    loaded = groupfx.load(tmp_path / "a.pt").model
    with torch.no_grad():
        torch.testing.assert_close(X.call(loaded), X.call(model))
    again = groupfx.tune(model, X, tmp_path / "b.pt", backend="torch", plan=first.plan)
    assert (again.ratio, again.plan) == (None, first.plan)
    # The file also says when it was written.
    other = groupfx.load(tmp_path / "b.pt").model
    assert other.code == loaded.code
    assert other.state_dict().keys() == loaded.state_dict().keys()
    assert all(torch.equal(t, other.state_dict()[k]) for k, t in loaded.state_dict().items())


@pytest.mark.usefixtures("_uncompiled")
def test_whole_variants_are_raced_where_nobody_tells_of_nodes() -> None:
    options = TuningOptions(cache=None, backend="torch.compile")
    found, passes = tune_module(network(), X, options)
    assert {*found.races} <= {"variant 1", "variant 2", "variant 3"}
    assert found.races
    assert found.untouched == (found.ratio is not None and found.ratio.rounds == 0)
    forms = {getattr(pass_, "form", "split") for pass_ in passes.passes}
    assert found.untouched == (forms == {"dense"})


@pytest.mark.usefixtures("_uncompiled")
def test_a_variant_that_cannot_be_compiled_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    load = CompileBackend.load

    def picky(self: CompileBackend, model: nn.Module, *given: Any) -> Any:
        if sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 4:
            raise ModelError("no compiler takes so much")
        return load(self, model, *given)

    monkeypatch.setattr(CompileBackend, "load", picky)
    options = TuningOptions(cache=None, backend="torch.compile")
    found, _ = tune_module(network(), X, options)
    assert any("dropped, no compiler takes so much" in note for note in found.notes)


def test_a_model_that_takes_long_to_load_leaves_the_others_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]

    def slow(self: EagerBackend, model: nn.Module, feeds: ExampleInputs, threads: int) -> Any:
        now[0] += 9.0
        return lambda: [np.zeros(1)]

    monkeypatch.setattr(CompileBackend, "load", slow)
    options = TuningOptions(budget=16, cache=None, backend="torch.compile", wall=lambda: now[0])
    found, _ = tune_module(network(), X, options)
    assert found.untouched
    assert now[0] == 9.0
    assert all("left out, the budget was used up before" in note for note in found.notes)
    assert len(found.notes) == 2


def test_a_random_module_is_refused() -> None:
    class Noisy(LayerKinds):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.rand(1)

    with pytest.raises(ModelError, match="it is not deterministic"):
        tune_module(Noisy().eval(), X, TuningOptions(budget=1, cache=None, backend="torch"))


def test_a_backend_takes_models_of_its_kind(tmp_path: Path) -> None:
    assert tuple(filter(runs_torch, backend_names())) == TORCH_BACKENDS
    assert [backend_named(name).name for name in TORCH_BACKENDS] == [*TORCH_BACKENDS]
    with pytest.raises(UsageError, match="the backend onnxruntime runs ONNX graphs"):
        tune_module(network(), X, TuningOptions())
    with pytest.raises(UsageError, match=r"the backend torch runs torch models: m\.onnx is a file"):
        groupfx.tune("m.onnx", X, tmp_path / "m.pt", backend="torch")
    with pytest.raises(UsageError, match=r"name a \.pt file"):
        groupfx.tune(network(), X, tmp_path / "m.onnx", backend="torch")


@pytest.mark.long
def test_compiled_for_real() -> None:
    model = network()
    made = ModuleSubject.of(model, X)[0].made(RECIPES)
    (found,) = CompileBackend().load(made, X, 1)()
    with torch.no_grad():
        np.testing.assert_allclose(found, X.call(model).numpy(), rtol=1e-4, atol=1e-5)
