"""`groupfx tune` and `export --tune`. No test depends on what turns out to be fastest."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import groupfx
from groupfx.api.tuning import _of_file, file_to_tune
from groupfx.cli.commands.export import SCHEMA as EXPORT_SCHEMA
from groupfx.cli.commands.tune import SCHEMA
from groupfx.errors import ModelError, UsageError
from groupfx.nn import Flgc2d
from groupfx.plan.cost import SLOWER
from groupfx.tuning.plan_file import SCHEMA as PLAN_SCHEMA
from tests.cli.runs import SHAPE, Cli, check_json, grouped_model, save
from tests.deploy.exported_model import assert_computes, convs_of

QUICK = ("--budget", "1", "--no-cache")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("GROUPFX_CACHE", str(tmp_path / "cache"))
    return Cli(capsys, tmp_path, monkeypatch)


def edited(place: Path, recipe: str) -> Path:
    """The plan with `recipe` at every site, as somebody might write it."""
    plan = json.loads(place.read_text())
    for site in plan["sites"]:
        site["recipe"] = recipe
    (place.parent / "edited.json").write_text(json.dumps(plan))
    return place.parent / "edited.json"


def test_a_model_is_tuned_and_its_plan_gives_the_same_bytes(cli: Cli, tmp_path: Path) -> None:
    model = grouped_model()
    path = save(tmp_path / "net.pt", model)
    given = ("tune", path, "--input-shape", SHAPE)
    done = cli(*given, *QUICK, "--save-plan", "plan.json", "--json", "report.json")
    assert done.code == 0, done.err
    assert "Same function, to rounding." in done.out
    assert "Wrote net.tuned.onnx" in done.out
    report = check_json(Path("report.json").read_text(), SCHEMA)
    plan = json.loads(Path("plan.json").read_text())
    assert report["plan"] == plan
    assert plan["schema"] == PLAN_SCHEMA
    assert [site["site"] for site in plan["sites"]] == ["stem"]
    assert report["ratio"] is not None
    before = Path("net.tuned.onnx").read_bytes()
    again = cli(*given, "--plan", "plan.json", "-o", "again.onnx", "--no-verify")
    assert again.code == 0, again.err
    assert "a plan was applied, nothing was measured" in again.out
    assert Path("again.onnx").read_bytes() == before


def test_an_edited_plan_is_carried_out_and_proved(cli: Cli, tmp_path: Path) -> None:
    model = grouped_model()
    path = save(tmp_path / "net.pt", model)
    given = ("tune", path, "--input-shape", SHAPE)
    cli(*given, *QUICK, "--no-verify", "--save-plan", "plan.json")
    plan = edited(Path("plan.json"), "dense")
    done = cli(*given, "--plan", plan, "-o", "dense.onnx", "--json", "report.json")
    assert done.code == 0, done.err
    report = check_json(Path("report.json").read_text(), SCHEMA)
    assert (report["ratio"], report["untouched"], report["validation"]["ok"]) == (None, False, True)
    convs = convs_of(Path("dense.onnx"))
    assert {conv.groups for conv in convs["stem"]} == {1}
    assert_computes(Path("dense.onnx"), model, torch.randn(3, *map(int, SHAPE.split(",")[1:])))
    wrong = cli(*given, "--plan", edited(Path("plan.json"), "merge 5"), "-o", "wrong.onnx")
    assert wrong.code == 2
    assert "the plan for stem: merge 5" in wrong.err
    assert not Path("wrong.onnx").exists()


def test_an_onnx_file_is_tuned(cli: Cli, tmp_path: Path) -> None:
    model, x = grouped_model(), torch.randn(*map(int, SHAPE.split(",")))
    groupfx.export(model, x, "theirs.onnx")
    done = cli("tune", "theirs.onnx", "--batch", "2", *QUICK, "--json", "report.json")
    assert done.code == 0, done.err
    report = check_json(Path("report.json").read_text(), SCHEMA)
    assert report["files"]["written"] == ["theirs.tuned.onnx"]
    assert report["validation"]["ok"]
    assert "2x6x9x11 to" in report["plan"]["sites"][0]["signature"]
    assert_computes(Path("theirs.tuned.onnx"), model, x)


FIXED: dict[str, tuple[list[str], str]] = {
    "batch": (["--batch", "3"], "batch=3: the file takes batches of 2 only"),
    "shape": (["--input-shape", "2,7,9,11"], "[2, 7, 9, 11], and theirs.onnx takes [2, 6, 9, 11]"),
}


@pytest.mark.parametrize(("argv", "said"), FIXED.values(), ids=FIXED.keys())
def test_what_a_file_does_not_take_is_named(cli: Cli, argv: list[str], said: str) -> None:
    model, x = grouped_model(), torch.randn(*map(int, SHAPE.split(",")))
    groupfx.export(model, x, "theirs.onnx", dynamic_batch=False)
    done = cli("tune", "theirs.onnx", *argv, *QUICK)
    assert done.code == 2
    assert said in done.err
    assert not Path("theirs.tuned.onnx").exists()


def test_an_export_is_tuned(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", grouped_model())
    given = ("export", path, "--input-shape", SHAPE, "--tune", *QUICK)
    done = cli(*given, "--json", "report.json", "--session", "execution_mode=parallel")
    assert done.code == 0, done.err
    report = check_json(Path("report.json").read_text(), EXPORT_SCHEMA)
    assert report["tuning"]["plan"]["session"] == {"execution_mode": "ORT_PARALLEL"}
    assert "1 thread, execution_mode=ORT_PARALLEL)" in done.out
    assert report["export"]["summary"] in done.out
    assert report["tuning"]["ratio"]["value"] == report["export"]["expected"]


REFUSED: dict[str, tuple[list[str], str]] = {
    "budget": (["--budget", "0"], "budget=0.0: give seconds, such as 60"),
    "threads": (["--threads", "0"], "threads=0: it must be at least 1"),
    "batch": (["--batch", "0"], "--batch 0: it must be at least 1"),
    "no plan": (["--plan", "nothing.json"], "nothing.json cannot be read"),
    "output": (["-o", "net.pt2"], "the name must end in .onnx"),
    "one file": (["--save-plan", "net.tuned.onnx"], "both name net.tuned.onnx"),
    "backend": (["--backend", "trt"], "there is no backend 'trt'"),
    "session": (["--session", "execution_mode=x"], "session: execution_mode='x' is no value of it"),
    "name": (["--session", "exec_mode=x"], "there is no option 'exec_mode': execution_mode"),
}


@pytest.mark.parametrize(("argv", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_is_refused_early(
    cli: Cli, tmp_path: Path, argv: list[str], said: str
) -> None:
    done = cli("tune", save(tmp_path / "net.pt", grouped_model()), "--input-shape", SHAPE, *argv)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_options_of_tuning_need_it(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", grouped_model())
    given = ("--save-plan", "p.json", "--budget", "3", "--session", "enable_mem_reuse=0")
    done = cli("export", path, "--input-shape", SHAPE, *given)
    assert done.code == 2
    assert "--budget, --session, --save-plan: only with --tune, or in 'groupfx tune'" in done.err
    with pytest.raises(UsageError, match="session: only with tune=True"):
        groupfx.export(grouped_model(), torch.ones(2, 6, 9, 11), session={"enable_mem_reuse": 0})


def test_options_of_a_model_are_refused_for_a_file(cli: Cli, tmp_path: Path) -> None:
    groupfx.export(grouped_model(), torch.randn(2, 6, 9, 11), "theirs.onnx")
    done = cli("tune", "theirs.onnx", "--opset", "17")
    assert done.code == 2
    assert "are for a file that is made of a model" in done.err


def test_a_model_is_tuned_for_torch(cli: Cli, tmp_path: Path) -> None:
    model, x = grouped_model(), torch.randn(*map(int, SHAPE.split(",")))
    path = save(tmp_path / "net.pt", model)
    given = ("tune", path, "--input-shape", SHAPE, "--backend", "torch")
    done = cli(*given, *QUICK, "--save-plan", "plan.json", "--json", "report.json")
    assert done.code == 0, done.err
    assert "Wrote net.tuned.pt" in done.out
    report = check_json(Path("report.json").read_text(), SCHEMA)
    assert report["files"]["written"] == ["net.tuned.pt"]
    assert (report["ok"], report["export"], report["validation"]) == (True, None, None)
    assert report["summary"] in done.out
    assert report["plan"] == json.loads(Path("plan.json").read_text())
    assert report["plan"]["backend"] == "torch"
    again = cli(*given, "--plan", edited(Path("plan.json"), "split"), "-o", "split.pt")
    assert again.code == 0, again.err
    assert "Same function" in again.out
    assert "a plan was applied, nothing was measured; 2 of 2 sites changed" in again.out
    for file in ("net.tuned.pt", "split.pt"):
        with torch.no_grad():
            torch.testing.assert_close(groupfx.load(file).model(x), model(x))
    wrong = cli(*given, "--plan", edited(Path("plan.json"), "merge 5"), "-o", "wrong.pt")
    assert wrong.code == 2
    assert "the plan for stem: 'merge 5' is no way to execute it in torch" in wrong.err


OF_TORCH: dict[str, tuple[list[str], str]] = {
    "an ONNX file": (["-o", "m.onnx"], "neither MODEL nor -o may be an .onnx file"),
    "how one is written": (["--opset", "17"], "writes no ONNX file"),
    "how one is compared": (["--atol", "y:1"], "writes no ONNX file"),
    "device": (["--device", "nowhere"], "--device nowhere: "),
    "one file": (["--save-plan", "net.tuned.pt"], "both name net.tuned.pt"),
    "batch": (["--batch", "0"], "--batch 0: it must be at least 1"),
    "many rows": (["--batch", "1000000000"], "batch=1000000000: the inputs would have"),
    "session": (["--session", "enable_mem_reuse=0"], "torch has no sessions of ONNX Runtime"),
}


@pytest.mark.parametrize(("argv", "said"), OF_TORCH.values(), ids=OF_TORCH.keys())
def test_what_torch_cannot_be_tuned_with_is_refused(
    cli: Cli, tmp_path: Path, argv: list[str], said: str
) -> None:
    given = ("tune", save(tmp_path / "net.pt", grouped_model()), "--input-shape", SHAPE)
    done = cli(*given, "--backend", "torch", *argv)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_a_backend_of_torch_takes_no_onnx(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", grouped_model())
    done = cli("tune", path, "--input-shape", SHAPE, "--device", "cpu")
    assert done.code == 2
    assert "--device: only with --backend torch or torch.compile" in done.err
    done = cli("export", path, "--input-shape", SHAPE, "--tune", "--backend", "torch")
    assert done.code == 2
    assert "--backend torch runs no ONNX file: 'groupfx tune' tunes for torch" in done.err
    Path("m.onnx").write_bytes(b"")
    done = cli("tune", "m.onnx", "--backend", "torch")
    assert done.code == 2
    assert "neither MODEL nor -o may be an .onnx file" in done.err


class NoiseAdded(nn.Module):
    """Adds noise, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y + torch.randn_like(y)


def test_a_random_model_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "m.onnx"
    with pytest.raises(ModelError, match="not deterministic"):
        groupfx.tune(NoiseAdded(), torch.randn(2, 6, 9, 9), place, cache=False)
    assert not place.exists()


def test_in_python(tmp_path: Path) -> None:
    model, x = grouped_model(), torch.randn(2, 6, 9, 11)
    place = tmp_path / "m.onnx"
    found = groupfx.tune(model, x, place, budget=1, batch=3, cache=False)
    assert found.export.path == place
    assert found.summary == found.export.summary
    assert found.ratio is not None
    assert found.untouched == (found.ratio.value == 1 and found.ratio.rounds == 0)
    assert found.validation is not None
    assert found.validation.ok
    assert "3x6x9x11 to" in found.plan.sites[0].signature
    json.dumps(found.to_dict(), allow_nan=False)
    again = groupfx.tune(model, x, tmp_path / "again.onnx", plan=found.plan, batch=3, threads=2)
    assert again.notes == ("the plan was measured with another number of threads: 1, and here 2",)
    assert (tmp_path / "again.onnx").read_bytes() == place.read_bytes()


def test_inputs_in_half_of_a_float_are_run_in_what_the_file_takes(tmp_path: Path) -> None:
    place = tmp_path / "two.onnx"
    onnx.save(onnx.parser.parse_model(TWO_INPUTS.format(rows=1)), place)
    inputs = {"x": torch.ones(3, 4, 8, 8, dtype=torch.bfloat16)}
    _, _, feeds = _of_file(place, inputs, None)
    assert (feeds["x"].dtype, feeds["x"].shape) == (np.float32, (3, 4, 8, 8))


def test_a_file_of_another_kind_and_a_fixed_batch_are_refused(tmp_path: Path) -> None:
    x = torch.randn(2, 6, 9, 11)
    with pytest.raises(UsageError, match=r"is no \.onnx file"):
        groupfx.tune(tmp_path / "m.pt", x, tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="the file takes batches of 2 only"):
        groupfx.tune(grouped_model(), x, tmp_path / "m.onnx", dynamic_batch=False, batch=5)
    with pytest.raises(UsageError, match="and at most 268,435,456 are taken"):
        groupfx.tune(grouped_model(), x, tmp_path / "m.onnx", batch=10**8)


TWO_INPUTS = """
    <ir_version: 8, opset_import: ["" : 18]>
    two (float[batch,4,8,8] x, float[{rows},4,1,1] gate, float[4] shift) => (float[batch,4,8,8] y)
    <float[4,2,1,1] w = {{1, 2, 3, 4, 5, 6, 7, 8}}>
    {{
        gated = Mul(x, gate)
        y = Conv <group: int = 2> (gated, w, shift)
    }}
"""


@pytest.mark.parametrize(("rows", "gates"), [("1", 1), ("batch", 3)])
def test_a_batch_is_for_the_inputs_that_have_it(tmp_path: Path, rows: str, gates: int) -> None:
    place = tmp_path / "two.onnx"
    onnx.save(onnx.parser.parse_model(TWO_INPUTS.format(rows=rows)), place)
    _, _, feeds = file_to_tune(place, {}, 3)
    assert [len(feeds[name]) for name in ("x", "gate", "shift")] == [3, gates, 4]
    _, _, feeds = file_to_tune(place, {}, None)
    assert [len(feeds[name]) for name in ("x", "gate", "shift")] == [1, 1, 4]


def test_a_batch_that_a_file_fixes_is_said(tmp_path: Path) -> None:
    place = tmp_path / "two.onnx"
    onnx.save(onnx.parser.parse_model(TWO_INPUTS.format(rows=1).replace("batch", "2")), place)
    assert len(file_to_tune(place, {}, 2)[2]["x"]) == 2
    with pytest.raises(UsageError, match="batch=3: the file takes batches of 2 only"):
        file_to_tune(place, {}, 3)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a batch of none": ({"batch": 0}, "batch=0: it must be at least 1"),
    "a batch that is no number": ({"batch": "2"}, "batch='2': it must be at least 1"),
    "a batch that no memory holds": ({"batch": 10**9}, "batch=1000000000: the inputs would have "),
    "a plan that is none": ({"plan": {}}, "plan={}: give a plan that a tuning made, or the path"),
    "a shape of an input that is not there": (
        {"inputs": {"x": torch.zeros(1, 4, 8, 8), 7: torch.zeros(1)}},
        "has no input 7",
    ),
    "a file of another kind": ({"path": "x.pt"}, "x.pt: the name must end in .onnx, such as x.pt."),
    "a tensor without values": (
        {"inputs": {"x": torch.zeros(1, 4, 8, 8, device="meta")}},
        "an input has no values to run on: ",
    ),
    "a budget without end": ({"budget": 10**400}, "give seconds, such as 60"),
    "an input that is not there": ({"inputs": {"z": torch.zeros(1)}}, "has no input 'z': its inp"),
}


@pytest.mark.parametrize(("given", "said"), WRONG.values(), ids=WRONG.keys())
def test_what_makes_no_sense_is_refused_in_python(
    tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    place = tmp_path / "two.onnx"
    onnx.save(onnx.parser.parse_model(TWO_INPUTS.format(rows=1)), place)
    with pytest.raises(UsageError, match=re.escape(said)):
        groupfx.tune(place, **{"path": tmp_path / "tuned.onnx", "cache": False, **given})
    assert not (tmp_path / "tuned.onnx").exists()


class SmallMasked(nn.Sequential):
    """A layer that loses in every form but dense, as its masks are small."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 24, 1), Flgc2d(24, 16, 1, group_num=4, bias=False))


STORIES = {
    "export": (["export", "-o", "m.onnx", "--no-verify"], False),
    "export --tune": (["export", "-o", "m.onnx", "--no-verify", "--tune", *QUICK], False),
    "rewrite to a file": (["rewrite", "-o", "m.onnx", "--target", "onnxruntime"], False),
    "a form that was asked for": (
        ["export", "-o", "m.onnx", "--no-verify", "-p", "freeze-learned-groups:form=split"],
        True,
    ),
}


@pytest.mark.parametrize(("argv", "told"), STORIES.values(), ids=STORIES.keys())
def test_one_story_is_told_of_the_form_of_a_site(
    cli: Cli, tmp_path: Path, argv: list[str], told: bool
) -> None:
    result = groupfx.rewrite(SmallMasked().eval(), torch.randn(2, 3, 8, 8), passes=[])
    result.save("m.pt")
    done = cli(argv[0], "m.pt", *argv[1:], "--json", "report.json")
    assert done.code == 0, done.err
    report = json.loads(Path("report.json").read_text())
    (site,) = (report.get("rewrite") or report)["sites"]
    notes = [note for note in site["notes"] if note.startswith(SLOWER)]
    assert (SLOWER in done.out, bool(notes)) == (told, told)
    # What a rewrite by multiplications would have made, and nobody wrote.
    assert "bucketed" not in done.out
    chosen = ("expected 1.00 x the time of masked dense", "untouched model", "untouched: nothing")
    assert any(line in done.out for line in chosen) != told


@pytest.mark.long
def test_an_export_in_python_is_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUPFX_CACHE", str(tmp_path / "cache"))
    model, x, place = grouped_model(), torch.randn(2, 6, 9, 11), tmp_path / "m.onnx"
    # Open sizes as well: it is tuned for those of the inputs.
    export = groupfx.export(model, x, place, tune=True, dynamic_sizes=True)
    assert export.summary is not None
    assert "untouched" in export.summary
    assert [site.name for site in export.sites] == ["stem"]
    (cache,) = (tmp_path / "cache").iterdir()
    assert "2x6x9x11 to" in next(iter(json.loads(cache.read_text())["times"]))
    assert_computes(place, model, torch.randn(3, 6, 12, 10))
