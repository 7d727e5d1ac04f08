"""Tuning with a runtime whose times are made up, so that what must come out is known."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import groupfx.tuning.probe as probing
import groupfx.tuning.tune as tuning
from groupfx.deploy.graph.conv_nodes import conv_nodes, sites_in
from groupfx.errors import MissingDependencyError, ModelError, UsageError
from groupfx.tuning import TuningOptions, read_plan, tune_graph
from groupfx.tuning.backends import NodeTime, Profile, backend_named
from groupfx.tuning.backends.packing import file_of as packed
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
    files: bool = False
    """whether it packs models into bytes, as real ones do"""

    random: bool = False
    fails: Callable[[ir.Model], bool] = lambda model: False
    stops: Callable[[ir.Model], bool] = lambda model: False
    """whether it loads, and does not run"""
    cost: float = 1e-6
    now: float = 0.0
    profiled: list[dict[str, int]] = field(default_factory=list)
    loaded: int = 0
    session: Mapping[str, str] = field(default_factory=dict)

    def with_session(self, given: Any, threads: int) -> MadeUp:
        self.session = given or {}
        return self

    def require(self) -> None: ...

    def version(self) -> str:
        return "1"

    def wall(self) -> float:
        return self.now

    def clock(self, threads: int) -> Callable[[], float]:
        return self.wall

    def packed(self, model: ir.Model) -> ir.Model | bytes:
        return packed(model) if self.files else model

    def load(self, model: ir.Model | bytes, feeds: Any, threads: int) -> Any:
        self.loaded += 1
        model = ir.from_proto(onnx.load_from_string(model)) if isinstance(model, bytes) else model
        if self.fails(model):
            raise ModelError("it does not load")
        took = sum(self._times(model).values()) * self.cost

        def run() -> list[np.ndarray[Any, Any]]:
            if self.stops(model):
                raise ModelError("it does not run")
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
    monkeypatch.setattr(tuning, "probe", lambda *given: {})
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


@pytest.mark.parametrize("block", [8, 16, 0])
def test_what_is_tried_fits_the_blocks_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, block: int
) -> None:
    found = dict.fromkeys(probing._MEASURED, 1.0) | {"block": block}
    monkeypatch.setattr(tuning, "probe", lambda *given: found)
    runtime = MadeUp(fast_in_blocks)
    monkeypatch.setattr(tuning, "backend_named", lambda name: runtime)
    tune_graph(network(NETWORK), FEEDS, TuningOptions(cache=tmp_path, wall=runtime.wall))
    (file,) = tmp_path.iterdir()
    tried = {recipe for own in json.loads(file.read_text())["times"].values() for recipe in own}
    widths = {int(found[1]) for recipe in tried if (found := re.match(r"bins of (\d+)", recipe))}
    assert widths == {block or 1}


def test_a_variant_on_which_the_runtime_fails_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = MadeUp(fast_in_blocks, fails=lambda model: counts(model)["a"] > 1)
    found = tuned(monkeypatch, runtime)
    assert found.untouched
    assert any(re.match(r"variants? .* dropped: it does not load", n) for n in found.notes)


def test_variants_that_fail_alike_are_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = MadeUp(fast_in_blocks, fails=lambda model: counts(model)["a"] > 1)
    (line, *_) = tuned(monkeypatch, runtime).notes
    assert re.fullmatch(r"variants 1(, \d)+ were dropped: it does not load", line)


def test_what_loads_and_does_not_run_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    # Site b is in blocks in the third of them, and no profiler ran it before.
    stops = MadeUp(
        lambda site, n: 1.0 if n == 1 else 0.5,
        profiles=False,
        stops=lambda model: counts(model)["b"] > 1 and counts(model)["a"] == 4,
    )
    found = tuned(monkeypatch, stops)
    assert any(note.endswith(": dropped, it does not run") for note in found.notes)
    assert not found.untouched


def test_a_race_that_ends_early_claims_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = MadeUp(fast_in_blocks)
    runs: list[bool] = []

    def later(model: ir.Model) -> bool:
        runs.append(counts(model)["a"] > 1)
        return sum(runs) > 20

    runtime.stops = later
    found = tuned(monkeypatch, runtime)
    assert found.untouched
    assert found.races == {}
    assert "the race was broken off, and nothing is claimed: it does not run" in found.notes


def test_a_machine_that_cannot_be_probed_has_the_usual_rates(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*given: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tuning, "backend_named", lambda name: runtime)
    monkeypatch.setattr(tuning, "probe", full)
    runtime = MadeUp(fast_in_blocks)
    (tmp_path / "file").write_text("")
    options = TuningOptions(cache=tmp_path / "file", wall=runtime.wall)
    found = tune_graph(network(NETWORK), FEEDS, options)
    assert not found.untouched
    said = "\n".join(found.notes)
    assert "cannot be probed ([Errno 28] No space left on device): usual rates are taken" in said
    assert "what was measured is not kept for the next time" in said


def test_a_machine_that_a_cache_holds_wrongly_is_probed_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime, made = MadeUp(fast_in_blocks), list[int]()
    good = dict.fromkeys(probing._MEASURED, 1.0) | {"block": 16}
    monkeypatch.setattr(tuning, "backend_named", lambda name: runtime)
    monkeypatch.setattr(tuning, "probe", lambda *given: made.append(given) or good)
    options = TuningOptions(cache=tmp_path, wall=runtime.wall)
    tune_graph(network(NETWORK), FEEDS, options)
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text().replace('"block": 16', '"block": -1'))
    for _ in range(2):
        tune_graph(network(NETWORK), FEEDS, options)
    assert made == [(1, {}), (1, {})]


def test_without_a_profiler_whole_variants_are_raced(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuned(monkeypatch, MadeUp(lambda site, n: 1.0 if n == 1 else 0.5, profiles=False))
    assert not found.untouched
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(0.5, abs=0.26)


def test_a_model_that_is_not_deterministic_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="other outputs on the same inputs"):
        tuned(monkeypatch, MadeUp(fast_in_blocks, random=True))


ONE, NEAR, FAR = (np.array([1.0, size], np.float32) for size in (2.0, 2.0 + 1e-6, 2.1))


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (ONE, NEAR, True),
        (ONE, FAR, False),
        (ONE, ONE[:1], False),
        (ONE * np.nan, ONE * np.nan, True),
        ([ONE, ONE], [ONE, NEAR], True),
        ([ONE, ONE], [ONE, FAR], False),
        ([ONE], [ONE, ONE], False),
        ([{0: 0.5}], [{0: 0.5}], True),
        (None, None, True),
    ],
)
def test_outputs_of_every_kind_are_compared(first: Any, second: Any, same: bool) -> None:
    assert tuning.alike(first, second) == same


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


@pytest.mark.parametrize(("budget", "longest"), [(60.0, 15.0), (240.0, 60.0)])
def test_more_time_than_usual_is_for_the_race(
    monkeypatch: pytest.MonkeyPatch, budget: float, longest: float
) -> None:
    asked: list[float] = []

    def race(loads: Any, clock: Any, seconds: float, *others: Any, **options: Any) -> Any:
        asked.append(seconds)
        return [[[1.0]] * len(loads)] * 2

    monkeypatch.setattr(tuning, "race", race)
    tuned(monkeypatch, MadeUp(fast_in_blocks), budget=budget)
    assert asked == [longest]


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


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), float("inf"), "60", None])
def test_a_budget_must_be_seconds(budget: Any) -> None:
    with pytest.raises(UsageError, match="give seconds, such as 60"):
        TuningOptions(budget=budget)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2"])
def test_threads_must_be_positive(threads: Any) -> None:
    with pytest.raises(UsageError, match=f"threads={threads!r}: it must be at least 1"):
        TuningOptions(threads=threads)


def test_threads_are_as_many_as_there_are_cores_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with pytest.raises(UsageError, match="this machine has 2 cores; give at most 2"):
        TuningOptions(threads=9)
    TuningOptions(threads=2)


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
