"""`inspect` and `passes`."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import groupfx
from groupfx.cli.commands.inspect import SCHEMA as INSPECT_SCHEMA
from groupfx.cli.commands.passes import SCHEMA as PASSES_SCHEMA
from groupfx.passes import PASSES, pass_class
from groupfx.rewriting.report import SCHEMA as REPORT_SCHEMA
from groupfx.targets import targets
from tests.cli.runs import SHAPE, Cli, check_json, dense_model, grouped_model, save


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, tmp_path, monkeypatch)


def test_inspect_prints_a_row_for_each_site(cli: Cli, tmp_path: Path) -> None:
    done = cli("inspect", save(tmp_path / "net.pt", grouped_model()), "--input-shape", SHAPE)
    assert done.code == 0
    macs = f"{99 * 9 * 2 * 15:,}"
    row = ["stem", "grouped", "Conv2d", "6->15", "3", "3x3", "285", macs, "2x15x9x11", "1", "yes"]
    assert done.row("stem") == [*row, "split", "reorders"]
    deep = [row for row in done.rows if row[:1] == ["deep"]]
    assert deep[0][10:] == ["no", "ok", "reorders"]
    assert deep[1:] == [["deep"]]
    reason = "2-d depthwise is left alone; depthwise=split splits it"
    assert f"  1 depthwise: {reason}\n     deep\n" in done.out
    assert "3 grouped convolutions, of which a rewrite would take 2." in done.out


def test_inspect_heeds_passes(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", grouped_model())
    done = cli("inspect", path, "--input-shape", SHAPE, "-p", "split-grouped-conv:max_groups=3")
    assert "a rewrite would take 1." in done.out
    assert "15 groups would make 15 branches, max_groups=3" in done.out


def test_inspect_as_json(cli: Cli, tmp_path: Path) -> None:
    model = grouped_model()
    path = save(tmp_path / "net.pt", model)
    done = cli("inspect", path, "--input-shape", SHAPE, "--json", "-")
    found = check_json(done.out, INSPECT_SCHEMA)
    assert found["history"] is None
    assert found["inputs"] == [{"name": None, "dtype": "float32", "shape": [2, 6, 9, 11]}]
    for site in found["sites"]:
        module = model.get_submodule(site["name"])
        assert site["groups"] == module.groups
        assert site["parameters"] == sum(p.numel() for p in module.parameters())
    assert [site["name"] for site in found["sites"]] == ["stem", "deep", "wide"]
    assert found["totals"]["parameters"] == sum(p.numel() for p in model.parameters())


def test_inspect_tells_what_was_done_to_a_file_of_ours(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", grouped_model())
    cli("rewrite", path, "--input-shape", SHAPE)
    done = cli("inspect", "net.groupfx.pt")
    assert "net.groupfx.pt: a file of groupfx" in done.out
    made = rf"written: \d{{4}}-\d\d-\d\dT\S+ by groupfx {groupfx.__version__} and torch 2\."
    assert re.search(made, done.out)
    assert "split-grouped-conv: 2 sites rewritten, 1 left" in done.out
    assert "checked: the same function" in done.out
    history = check_json(cli("inspect", "net.groupfx.pt", "--json", "-").out, INSPECT_SCHEMA)
    check_json(json.dumps(history["history"]["report"]), REPORT_SCHEMA)
    assert "written:" not in cli("inspect", path, "--input-shape", SHAPE).out


def test_inspect_of_a_dense_model(cli: Cli, tmp_path: Path) -> None:
    done = cli("inspect", save(tmp_path / "net.pt", dense_model()), "--input-shape", SHAPE)
    assert done.code == 0
    assert "There is no grouped convolution." in done.out


TARGET_WORDS = {
    "grouped": ((32, 64, 2), "split", "blocked"),
    "half_blocks": ((16, 48, 2), "split", "blocked 8"),
    "depthwise": ((48, 48, 48), "ok", "blocked"),
    "multiplier": ((16, 32, 16), "split", "reorders"),
    "odd": ((6, 15, 3), "split", "reorders"),
}


@pytest.mark.parametrize(
    ("numbers", "plinio", "runtime"), TARGET_WORDS.values(), ids=TARGET_WORDS.keys()
)
def test_what_targets_say(
    cli: Cli, tmp_path: Path, numbers: tuple[int, int, int], plinio: str, runtime: str
) -> None:
    inner, outer, groups = numbers
    model = torch.nn.Sequential(torch.nn.Conv2d(inner, outer, 3, groups=groups))
    path = save(tmp_path / "net.pt", model)
    done = cli("inspect", path, "--input-shape", f"2,{inner},5,7", "--json", "-")
    (site,) = check_json(done.out, INSPECT_SCHEMA)["sites"]
    words = {name: said["word"] for name, said in site["targets"].items()}
    assert (words["plinio"], words["onnxruntime"]) == (plinio, runtime)
    assert list(words) == [target.name for target in targets()]


def test_columns_are_of_targets_that_want_one_and_of_the_one_that_is_named(
    cli: Cli, tmp_path: Path
) -> None:
    path = save(tmp_path / "net.pt", grouped_model())
    usual = cli("inspect", path, "--input-shape", SHAPE)
    assert usual.row("site")[-2:] == ["plinio", "onnxruntime"]
    named = cli("inspect", path, "--input-shape", SHAPE, "--target", "finn")
    assert named.row("site")[-3:] == ["plinio", "onnxruntime", "finn"]
    assert named.row("stem")[-1] == "refused"
    assert "finn:\n  refused, 2 sites: LowerConvsToMatMul" in named.out


@pytest.mark.parametrize(
    ("module", "shape", "plinio"),
    [
        (torch.nn.Conv3d(6, 6, 3, groups=6), "2,6,5,5,5", "split"),
        (torch.nn.Conv1d(6, 6, 3, groups=6), "2,6,5", "ok"),
        (torch.nn.ConvTranspose2d(6, 9, 3, groups=3), "2,6,5,5", "no rule"),
    ],
    ids=["depthwise_3d", "depthwise_1d", "transposed"],
)
def test_what_plinio_says_of_other_dimensions(
    cli: Cli, tmp_path: Path, module: torch.nn.Module, shape: str, plinio: str
) -> None:
    path = save(tmp_path / "net.pt", torch.nn.Sequential(module))
    done = cli("inspect", path, "--input-shape", shape, "--json", "-")
    (site,) = check_json(done.out, INSPECT_SCHEMA)["sites"]
    assert site["targets"]["plinio"]["word"] == plinio
    assert site["targets"]["onnxruntime"]["word"] == "runs"


def test_passes_lists_every_pass_and_every_option(cli: Cli) -> None:
    done = cli("passes")
    assert done.code == 0
    for name in PASSES:
        assert f"{name}\n" in done.out
        for option in pass_class(name).options():
            assert f"  {option.name}=" in done.out
            assert option.text in done.out
            assert "|".join(option.choices) in done.out
    for target in targets():
        assert f"--target {target.name}: {', '.join(target.passes)}" in done.out


def test_passes_as_json(cli: Cli) -> None:
    found = check_json(cli("passes", "--json", "-").out, PASSES_SCHEMA)
    assert [entry["name"] for entry in found["passes"]] == list(PASSES)
    assert list(found["pipelines"]) == ["default", *(target.name for target in targets())]
    passes = ["freeze-learned-groups", "split-grouped-conv", "fold-permutations"]
    plinio = [name.partition(":")[0] for name in found["pipelines"]["plinio"]]
    assert [name for name in plinio if name in passes] == passes
    # Around them stand the passes that bring all else into PLiNIO's form.
    assert set(plinio) - set(passes) <= set(PASSES)
    assert plinio.index("unfuse-norm-activations") < plinio.index("split-grouped-conv")
    one = check_json(cli("passes", "split-grouped-conv", "--json", "-").out, PASSES_SCHEMA)
    assert [entry["name"] for entry in one["passes"]] == ["split-grouped-conv"]


def test_inspect_and_rewrite_agree_on_what_is_taken(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", grouped_model())
    argv = (path, "--input-shape", SHAPE, "--json", "-")
    found = check_json(cli("inspect", *argv).out, INSPECT_SCHEMA)["sites"]
    report = check_json(cli("rewrite", *argv).out, REPORT_SCHEMA)
    taken = [site["name"] for site in found if site["taken"]]
    assert taken == [site["name"] for site in report["sites"]]


def test_a_model_without_values_is_inspected_and_rewritten_and_not_vouched_for(
    cli: Cli, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2)).to("meta")
    torch.save(model, tmp_path / "net.pt")
    assert cli("inspect", "net.pt", "--input-shape", "2,4,7,11").row("0")[1] == "grouped"
    run = cli("rewrite", "net.pt", "--input-shape", "2,4,7,11")
    assert run.code == 0
    assert "the model has no values" in run.out
    assert "Each site was checked on its own" in run.out
    assert "Same function" not in run.out
