"""`groupfx tune` where something is in the way: it says so, and writes what it can stand for."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

import groupfx
import groupfx.tuning.tune as tuning
from groupfx.errors import FileError, ModelError, UsageError
from groupfx.tuning.backends.onnx_runtime import OnnxRuntimeBackend
from groupfx.tuning.probe import probe
from tests.cli.runs import SHAPE, Cli, Run, grouped_model

NOISY = """
import torch
from torch import nn

class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, groups=2)

    def forward(self, x):
        return self.conv(x) + torch.randn(1)
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as an ONNX file, which is read in no time."""
    place = tmp_path_factory.mktemp("written") / "net.onnx"
    groupfx.export(grouped_model(), torch.randn(*map(int, SHAPE.split(","))), place)
    return place


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    written: Path,
) -> Cli:
    shutil.copy(written, tmp_path)
    monkeypatch.setenv("GROUPFX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "probe", lambda *given: {})
    return Cli(capsys, tmp_path, monkeypatch)


def tune(cli: Cli, *more: object) -> Run:
    return cli("tune", "net.onnx", "--no-verify", "--force", *more)


def raced(monkeypatch: pytest.MonkeyPatch, *heats: float) -> None:
    """Each heat gives this ratio to every model that races."""

    def race(loads: list[Any], *others: Any, **options: Any) -> Any:
        return [[[1.0], *([ratio] for _ in loads[1:])] for ratio in heats]

    monkeypatch.setattr(tuning, "race", race)


def profiled(monkeypatch: pytest.MonkeyPatch, change: Callable[[int], None]) -> list[int]:
    """Call `change` with the number of each profile that is made; they are counted."""
    made: list[int] = []
    profile = OnnxRuntimeBackend.profile

    def counted(self: OnnxRuntimeBackend, *given: Any) -> Any:
        made.append(len(made))
        change(made[-1])
        return profile(self, *given)

    monkeypatch.setattr(OnnxRuntimeBackend, "profile", counted)
    return made


def test_a_budget_for_nothing_leaves_the_model_untouched(cli: Cli) -> None:
    done = tune(cli, "--budget", "1e-9", "--save-plan", "plan.json")
    assert done.code == 0, done.err
    assert "the budget of 1e-09 s is too small to compare anything: one run takes" in done.out
    assert "untouched: nothing is provably faster" in done.out
    assert Path("net.tuned.onnx").exists()
    assert {s["recipe"] for s in json.loads(Path("plan.json").read_text())["sites"]} == {"grouped"}


def test_a_model_that_is_not_deterministic_is_refused(cli: Cli) -> None:
    Path("noisy.py").write_text(NOISY)
    done = cli("tune", "noisy.py:Noisy", "--input-shape", SHAPE, "--budget", "1", "-o", "n.onnx")
    assert (done.code, done.out) == (2, "")
    assert "it is not deterministic" in done.err
    assert not Path("n.onnx").exists()


def test_a_busy_machine_leaves_the_model_untouched(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiled(monkeypatch, lambda number: None)
    monkeypatch.setattr(tuning._Work, "_assembled", lambda *given: {"stem": "split"})
    raced(monkeypatch, 0.6, 1.5, 0.8, 1.3, 0.7)
    done = tune(cli, "--json", "report.json")
    assert done.code == 0, done.err
    assert "untouched: nothing is provably faster (assembled" in done.out
    assert ": cannot tell" in done.out
    assert "intervals are too wide to tell: tune again with less going on beside it" in done.out
    report = json.loads(Path("report.json").read_text())
    assert (report["untouched"], report["ratio"]["value"]) == (True, 1.0)
    assert report["races"]["assembled"]["verdict"] == "cannot tell"


def test_what_is_faster_in_every_heat_is_written(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    profiled(monkeypatch, lambda number: None)
    monkeypatch.setattr(tuning._Work, "_assembled", lambda *given: {"stem": "split"})
    raced(monkeypatch, 0.80, 0.81, 0.79, 0.80, 0.81)
    done = tune(cli)
    assert done.code == 0, done.err
    assert "0.80 (0.79 to 0.82) x the time of the untouched model" in done.out
    assert "1 of 1 site changed" in done.out


def test_a_variant_that_does_not_run_is_dropped_and_said(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(number: int) -> None:
        if number == 1:
            raise ModelError("the runtime has no kernel for it")

    made = profiled(monkeypatch, fail)
    done = tune(cli)
    assert done.code == 0, done.err
    assert len(made) > 2
    assert "variant 1 was dropped: the runtime has no kernel for it" in done.out


def test_a_second_tuning_measures_nothing_of_what_is_known(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = profiled(monkeypatch, lambda number: None)
    raced(monkeypatch, 1.0, 1.0)
    tune(cli)
    first = len(made)
    tune(cli)
    assert first > 1
    assert len(made) == first
    tune(cli, "--no-cache")
    assert len(made) == 2 * first


def test_an_interrupted_tuning_goes_on(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(number: int) -> None:
        if number == 1:
            raise KeyboardInterrupt

    made = profiled(monkeypatch, stop)
    raced(monkeypatch, 1.0, 1.0)
    done = tune(cli)
    assert done.code == 130
    assert not Path("net.tuned.onnx").exists()
    assert tune(cli).code == 0
    resumed = len(made)
    tune(cli, "--no-cache")
    # The one that was interrupted is measured again, the one before it is not.
    assert len(made) - resumed == resumed - 1


PLANS: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "CPU": ({"cpu": "a 6502"}, {}, "measured with another CPU: a 6502, and here"),
    "version": ({"version": "0.1"}, {}, "measured with another runtime: onnxruntime 0.1, and here"),
    "threads": ({"threads": 64}, {}, "measured with another number of threads: 64, and here 1"),
    "no options": ({"session": None}, {}, "1 of 1 site changed"),
    "options": (
        {"session": {"execution_mode": "ORT_PARALLEL"}},
        {},
        "with other options of the session: execution_mode=ORT_PARALLEL, and here none",
    ),
    "another site": ({}, {"signature": "x"}, "the plan fits 0 of 1 sites; the others stay as they"),
    "another name": ({}, {"site": "x"}, "1 of 1 site changed"),
}


@pytest.mark.parametrize(("whole", "site", "said"), PLANS.values(), ids=PLANS.keys())
def test_a_plan_from_elsewhere_applies_where_it_fits(
    cli: Cli, whole: dict[str, Any], site: dict[str, str], said: str
) -> None:
    tune(cli, "--budget", "1e-9", "--save-plan", "plan.json")
    plan = json.loads(Path("plan.json").read_text())
    plan["sites"][0] |= {"recipe": "split"} | site
    whole = {key: held for key, held in (plan | whole).items() if held is not None}
    Path("plan.json").write_text(json.dumps(whole))
    done = tune(cli, "--plan", "plan.json")
    assert done.code == 0, done.err
    assert said in done.out
    assert ("0 of 1 site changed" in done.out) == (site.get("signature") == "x")


NO_PLANS: dict[str, tuple[str, str]] = {
    "no JSON": ("{", "is no plan of groupfx"),
    "another file": ("{}", "its schema is not groupfx.plan/1"),
    "no options": (
        '{"schema": "groupfx.plan/1", "backend": "a", "version": "1", "cpu": "b", "threads": 1, '
        '"sites": [], "session": {"execution_mode": 3}}',
        "or an option of the session is no text",
    ),
    "no recipe": ('{"schema": "groupfx.plan/1", "backend": 3}', "is no plan of groupfx"),
}


@pytest.mark.parametrize(("text", "said"), NO_PLANS.values(), ids=NO_PLANS.keys())
def test_what_is_no_plan_is_refused(cli: Cli, text: str, said: str) -> None:
    Path("plan.json").write_text(text)
    done = tune(cli, "--plan", "plan.json")
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert not Path("net.tuned.onnx").exists()


def test_the_file_that_is_tuned_is_not_replaced(cli: Cli) -> None:
    before = Path("net.onnx").read_bytes()
    with pytest.raises(UsageError, match=r"net\.onnx is the file that is tuned"):
        groupfx.tune("net.onnx", path="net.onnx", overwrite=True)
    os.link("net.onnx", "linked.onnx")
    with pytest.raises(UsageError, match=r"linked\.onnx is the file that is tuned"):
        groupfx.tune("net.onnx", path="linked.onnx", overwrite=True)
    assert Path("net.onnx").read_bytes() == before


def test_a_file_that_the_checker_refuses_is_named(cli: Cli) -> None:
    model = onnx.load("net.onnx")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, "net.onnx")
    with pytest.raises(FileError, match=r"^net\.onnx: onnx\.checker refuses .* Mend that first"):
        groupfx.tune("net.onnx", path="tuned.onnx", cache=False)


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_measured(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = profiled(monkeypatch, lambda number: None)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(FileError, match=r"tuned\.onnx cannot be written: no permission to write"):
        groupfx.tune("net.onnx", path="tuned.onnx", cache=False)
    assert made == []


def test_a_runtime_that_does_not_optimise_is_tuned_without_blocks(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tuning, "probe", probe)
    raced(monkeypatch, 0.80, 0.81, 0.79, 0.80, 0.81)
    off = "graph_optimization_level=disable_all"
    done = cli("tune", "net.onnx", "--budget", "2", "--session", off)
    assert done.code == 0, done.err
    assert "Same function" in done.out
    assert "1 thread, graph_optimization_level=ORT_DISABLE_ALL)" in done.out
    (cache,) = (tmp_path / "cache").iterdir()
    known = json.loads(cache.read_text())
    assert known["machine"]["block"] == 0
    assert all("grouped" in recipes and len(recipes) > 1 for recipes in known["times"].values())
