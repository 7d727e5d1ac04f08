"""Tuning with a runtime whose times are made up, so that what must come out is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import groupfx.tuning.tune as tuning
from groupfx.deploy.graph.conv_nodes import conv_nodes, sites_in
from groupfx.errors import MissingDependencyError, ModelError, UsageError
from groupfx.tuning import TuningOptions, read_plan, tune_graph
from groupfx.tuning.backends import NodeTime, Profile, backend_named
from groupfx.tuning.probe import machine_of

FEEDS = {"x": np.ones((1, 32, 28, 28), np.float32)}
_DENSE = 1000.0


def weight(groups: int) -> np.ndarray[Any, Any]:
    """A 3x3 convolution of 32 to 32 channels in blocks, with zeros outside them."""
    rows = np.repeat(np.eye(groups, dtype=np.float32), 32 // groups, 0)
    mask = np.repeat(rows, 32 // groups, 1)
    return mask[:, :, None, None] * np.ones((1, 1, 3, 3), np.float32) / 40


def network(groups: Mapping[str, int]) -> ir.Model:
    """A chain of masked convolutions, one a name."""
    value = ir.Value(name="x", shape=ir.Shape(["batch", 32, 28, 28]), type=FLOAT)
    first, nodes, held = value, [], []
    for name, number in groups.items():
        tensor = ir.Value(name=f"{name}.weight", const_value=ir.tensor(weight(number)))
        held.append(tensor)
        out = ir.Value(name=f"{name}_out", type=FLOAT)
        nodes.append(
            ir.node("Conv", [value, tensor], {"pads": [1, 1, 1, 1]}, outputs=[out], name=name)
        )
        value = out
    value.shape = ir.Shape(["batch", 32, 28, 28])
    graph = ir.Graph([first], [value], nodes=nodes, initializers=held, opset_imports={"": 20})
    return ir.Model(graph, ir_version=10)


FLOAT = ir.TensorType(ir.DataType.FLOAT)
NETWORK = {"a": 4, "b": 8}


@dataclass
class MadeUp:
    """A runtime in which a site takes `factor(site, convolutions)` of what it takes dense.

    The profiler says so, and so does the race: loading a model gives one that moves the clock on.
    """

    factor: Callable[[str, int], float]
    name: str = "made up"
    profiles: bool = True
    random: bool = False
    fails: Callable[[ir.Model], bool] = lambda model: False
    cost: float = 1e-6
    now: float = 0.0
    profiled: list[dict[str, int]] = field(default_factory=list)

    def require(self) -> None: ...

    def version(self) -> str:
        return "1"

    def wall(self) -> float:
        return self.now

    def clock(self, threads: int) -> Callable[[], float]:
        return self.wall

    def load(self, model: ir.Model, feeds: Any, threads: int) -> Any:
        if self.fails(model):
            raise ModelError("it does not load")
        took = sum(self._times(model).values()) * self.cost

        def run() -> list[np.ndarray[Any, Any]]:
            self.now += took
            return [np.array([self.now if self.random else 1.0])]

        return run

    def profile(self, model: ir.Model, feeds: Any, threads: int, seconds: float) -> Any:
        if self.fails(model):
            raise ModelError("it does not load")
        self.now += seconds
        if not self.profiles:
            return None
        times = self._times(model)
        self.profiled.append(counts(model))
        ends = {site: node.outputs[0].name for node, site in convs(model)}
        nodes = [NodeTime(s, "Conv", (), (str(ends[s]),), time) for s, time in times.items()]
        return Profile(tuple(nodes), sum(times.values()))

    def _times(self, model: ir.Model) -> dict[str, float]:
        return {site: _DENSE * self.factor(site, n) for site, n in counts(model).items()}


def convs(model: ir.Model) -> list[tuple[ir.Node, str]]:
    return [(conv.node, site_of(conv.name)) for conv in conv_nodes(model)[0]]


def site_of(name: str) -> str:
    return name.partition("#")[0].partition(".")[0]


def counts(model: ir.Model) -> dict[str, int]:
    """How many convolutions, or groups of them, execute each site: 1 where it is untouched."""
    found: dict[str, int] = {}
    for conv in conv_nodes(model)[0]:
        site = site_of(conv.name)
        found[site] = found.get(site, 0) + conv.spec.groups
    return found


def tuned(
    monkeypatch: pytest.MonkeyPatch, runtime: MadeUp, model: ir.Model | None = None, **options: Any
) -> Any:
    monkeypatch.setattr(tuning, "backend_named", lambda name: runtime)
    monkeypatch.setattr(tuning, "probe", lambda threads: {})
    given = TuningOptions(**{"cache": None, "wall": runtime.wall, **options})
    return tune_graph(model or network(NETWORK), FEEDS, given)


def fast_in_blocks(site: str, convolutions: int) -> float:
    """Site a gains in blocks, site b loses."""
    return 1.0 if convolutions == 1 else {"a": 0.5, "b": 1.4}[site]


def test_each_site_takes_what_its_own_nodes_say(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuned(monkeypatch, MadeUp(fast_in_blocks))
    after = counts(found.model)
    assert after["a"] > 1
    assert after["b"] == 1
    assert not found.untouched
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(0.75)
    assert found.ratio.verdict == "faster"
    assert {entry.site: entry.recipe != "dense" for entry in found.plan.sites} == {
        "a": True,
        "b": False,
    }
    assert found.summary == (
        "0.75 (0.75 to 0.75) x the time of the untouched model (made up 1, 1 thread); "
        "1 of 2 sites changed"
    )


def test_nothing_faster_leaves_the_model_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuned(monkeypatch, MadeUp(lambda site, n: 1.0 if n == 1 else 1.2))
    assert found.untouched
    assert set(counts(found.model).values()) == {1}
    assert found.ratio is not None
    assert found.ratio.value == 1
    assert found.summary.startswith("untouched: nothing is provably faster")


def test_a_profile_that_misleads_does_not_win_the_race(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = MadeUp(fast_in_blocks)
    slower = MadeUp(lambda site, n: 1.0 if n == 1 else 1.3)
    monkeypatch.setattr(runtime, "load", slower.load)
    monkeypatch.setattr(runtime, "clock", slower.clock)
    found = tuned(monkeypatch, runtime, wall=slower.wall)
    assert found.untouched
    assert {ratio.verdict for ratio in found.races.values()} == {"slower"}


def test_the_same_plan_gives_the_same_model_without_measuring(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = tuned(monkeypatch, MadeUp(fast_in_blocks))
    first.plan.save(tmp_path / "plan.json")
    runtime = MadeUp(fast_in_blocks)
    again = tuned(monkeypatch, runtime, plan=read_plan(tmp_path / "plan.json"))
    assert ir.to_proto(again.model) == ir.to_proto(first.model)
    assert again.plan == first.plan
    assert (again.ratio, runtime.profiled, runtime.now) == (None, [], 0.0)
    assert again.summary == "a plan was applied, nothing was measured; 1 of 2 sites changed"


def test_what_was_measured_once_is_not_measured_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = MadeUp(fast_in_blocks)
    before = tuned(monkeypatch, first, cache=tmp_path)
    assert first.profiled
    # The same layers in another order: a second model of the family.
    second = MadeUp(lambda site, n: fast_in_blocks({"b": "a", "a": "b"}[site], n))
    family = network({"b": 4, "a": 8})
    again = tuned(monkeypatch, second, family, cache=tmp_path)
    assert second.profiled == []
    assert second.now < 10
    assert again.ratio.value == pytest.approx(before.ratio.value)


def test_an_interrupted_tuning_goes_on_where_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = MadeUp(fast_in_blocks)
    tuned(monkeypatch, whole, cache=tmp_path / "whole")
    broken = MadeUp(fast_in_blocks)

    def interrupted(model: ir.Model) -> bool:
        if len(broken.profiled) == 2:
            raise KeyboardInterrupt
        return False

    broken.fails = interrupted
    with pytest.raises(KeyboardInterrupt):
        tuned(monkeypatch, broken, cache=tmp_path / "broken")
    rest = MadeUp(fast_in_blocks)
    tuned(monkeypatch, rest, cache=tmp_path / "broken")
    assert broken.profiled + rest.profiled == whole.profiled


def test_a_variant_on_which_the_runtime_fails_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = MadeUp(fast_in_blocks, fails=lambda model: counts(model)["a"] > 1)
    found = tuned(monkeypatch, runtime)
    assert found.untouched
    assert any("was dropped: it does not load" in note for note in found.notes)


def test_without_a_profiler_whole_variants_are_raced(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuned(monkeypatch, MadeUp(lambda site, n: 1.0 if n == 1 else 0.5, profiles=False))
    assert not found.untouched
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(0.5, abs=0.26)


def test_a_model_that_is_not_deterministic_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="other outputs on the same inputs"):
        tuned(monkeypatch, MadeUp(fast_in_blocks, random=True))


def test_a_budget_for_less_than_one_variant_leaves_it_untouched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = MadeUp(fast_in_blocks, cost=1e-3)
    found = tuned(monkeypatch, runtime, budget=5.0)
    assert found.untouched
    assert runtime.profiled == []
    (note,) = found.notes
    assert note.startswith("the budget of 5 s is too small to compare anything: one run takes 2 s")


def test_a_model_that_runs_long_is_raced_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    # A run takes 0.6 s: eight heats of two rounds would take twice what is left for the race.
    runtime = MadeUp(fast_in_blocks, cost=3e-4)
    found = tuned(monkeypatch, runtime, budget=40.0)
    assert not found.untouched
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(0.75)
    assert 5 <= found.ratio.rounds < 16
    assert runtime.now < 45


def test_what_was_found_is_raced_though_profiles_took_their_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = MadeUp(fast_in_blocks)
    profile, load = runtime.profile, runtime.load

    def slow(work: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            runtime.now += seconds
            return work(*given)

        return call

    monkeypatch.setattr(runtime, "profile", slow(profile, 7.0))
    monkeypatch.setattr(runtime, "load", slow(load, 1.0))
    found = tuned(monkeypatch, runtime, budget=60.0)
    assert any(note.startswith("the budget was used up after") for note in found.notes)
    assert found.ratio is not None
    assert found.ratio.verdict == "faster"


def test_a_budget_that_ends_early_uses_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = MadeUp(fast_in_blocks)
    profile = runtime.profile

    def slow(*given: Any) -> Any:
        runtime.now += 9.0
        return profile(*given)

    monkeypatch.setattr(runtime, "profile", slow)
    found = tuned(monkeypatch, runtime, budget=20.0)
    assert len(runtime.profiled) == 2
    assert any(note.startswith("the budget was used up after 2 of ") for note in found.notes)


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_must_be_seconds(budget: float) -> None:
    with pytest.raises(UsageError, match="give seconds, such as 60"):
        TuningOptions(budget=budget)


def test_threads_must_be_positive() -> None:
    with pytest.raises(UsageError, match="threads=0: it must be at least 1"):
        TuningOptions(threads=0)


def test_a_model_without_blocks_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuned(monkeypatch, MadeUp(fast_in_blocks), network({"a": 1}))
    assert found.summary == "untouched: no site can be executed in another way"
    assert found.races == {}
    assert list(sites_in(found.model)) == ["a"]


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(UsageError, match="choose one of onnxruntime, openvino"):
        backend_named("tensorrt")


def test_a_backend_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"needs OpenVINO, .* -e '\.\[openvino\]'"):
        backend_named("openvino")


@pytest.mark.parametrize("found", [{}, {"block": 16}, {"block": "x"}, {"block": None}])
def test_a_probe_of_another_kind_is_the_default_machine(found: dict[str, Any]) -> None:
    assert machine_of(found).block == 16
