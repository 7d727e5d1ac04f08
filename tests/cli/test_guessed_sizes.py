"""Numbers for a size that was guessed say so on their own line; a file's own sizes are taken."""

import json
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import groupfx
from groupfx.errors import MismatchError
from groupfx.nn import Flgc2d
from tests.cli.runs import Cli, check_json, save


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, tmp_path, monkeypatch)


def pooled() -> nn.Module:
    """Made for 32x32, for instance: nothing in it tells."""
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=4),
        nn.Conv2d(6, 6, 3, groups=3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    ).eval()


def small() -> nn.Module:
    """A linear layer behind a flatten: for 32x32 alone."""
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=4),
        nn.Conv2d(6, 6, 3, groups=3),
        nn.Flatten(),
        nn.Linear(6 * 6 * 6, 3),
    ).eval()


def _fixed(model: nn.Module, name: str) -> None:
    groupfx.export(model, (torch.randn(1, 3, 40, 36),), name, dynamic_batch=False)


GUESS = "224x224 is a guess: give yours with --input-shape"


@pytest.mark.parametrize("command", ["inspect", "rewrite"])
def test_the_line_with_the_number_says_that_it_is_for_a_guess(cli: Cli, command: str) -> None:
    save(Path("net.pt"), pooled())
    done = cli(command, "net.pt", "--json", "r.json")
    assert done.code == 0
    assert len(done.row("MACs, at a guessed 224x224")) == 3
    assert GUESS in done.out.splitlines()[2]
    document = json.loads(Path("r.json").read_text())
    assert {entry["guessed"] for entry in document["inputs"]} == {"224x224"}
    check_json(Path("r.json").read_text(), document["schema"])
    sizes = document["totals"] if command == "inspect" else document["complexity"]["before"]
    assert sizes["guessed"] == "224x224"


def test_a_file_of_ours_remembers_the_guess(cli: Cli) -> None:
    save(Path("net.pt"), pooled())
    assert cli("rewrite", "net.pt").code == 0
    again = cli("inspect", "net.groupfx.pt")
    assert f"as in the file; {GUESS}" in again.out


@pytest.mark.parametrize(
    ("make", "options"),
    [(pooled, ("--input-shape", "2,3,32,32")), (small, ())],
    ids=["given", "told"],
)
def test_what_is_known_is_no_guess(cli: Cli, make: object, options: tuple[str, ...]) -> None:
    save(Path("net.pt"), make())  # type: ignore[operator]
    done = cli("inspect", "net.pt", *options)
    assert "[2, 3, 32, 32]" in done.out
    assert "guess" not in done.out
    assert done.row("MACs, one sample")


def test_an_export_says_for_which_sizes_its_forms_were_chosen(cli: Cli) -> None:
    model = pooled()
    model[1] = Flgc2d(6, 6, 3, group_num=2)
    save(Path("net.pt"), model)
    done = cli("export", "net.pt", "-o", "net.onnx", "--json", "r.json")
    assert done.code == 0
    assert "at a guessed 224x224" in json.loads(Path("r.json").read_text())["export"]["summary"]
    assert "compared in float32" in done.out
    assert "runs at a guessed 224x224: " in done.out
    again = cli("export", "net.pt", "-o", "net.onnx", "--input-shape", "2,3,32,32")
    assert "guess" not in again.out


def test_a_file_with_fixed_sizes_is_compared_at_them(cli: Cli) -> None:
    model = pooled()
    save(Path("net.pt"), model)
    _fixed(model, "net.onnx")
    done = cli("validate", "net.pt", "net.onnx", "--json", "r.json")
    assert done.code == 0, done.err
    assert json.loads(Path("r.json").read_text())["guessed_sizes"] is None
    assert groupfx.validate(model, "net.onnx").ok
    wrong = pooled()
    wrong[1].weight.data[2] *= 1.5
    with pytest.raises(MismatchError):
        groupfx.validate(wrong, "net.onnx").require_ok("net.onnx")


def test_our_file_is_compared_at_the_sizes_that_the_other_fixes(cli: Cli) -> None:
    save(Path("net.pt"), pooled())
    assert cli("rewrite", "net.pt", "--input-shape", "2,3,32,32").code == 0
    _fixed(pooled(), "net.onnx")
    done = cli("validate", "net.groupfx.pt", "net.onnx")
    assert done.code == 0, done.err


def _open_sizes(source: Path, target: Path) -> None:
    model = onnx.load(source)
    for dimension, name in zip(
        model.graph.input[0].type.tensor_type.shape.dim, ("n", "", "h", "w"), strict=True
    ):
        if name:
            dimension.dim_param = name
    onnx.save(model, target)


@pytest.mark.parametrize("order", [("fixed", "open"), ("open", "fixed")], ids="-".join)
def test_of_two_files_one_that_fixes_its_sizes_tells(cli: Cli, order: tuple[str, str]) -> None:
    _fixed(pooled(), "fixed.onnx")
    _open_sizes(Path("fixed.onnx"), Path("open.onnx"))
    done = cli("validate", *(f"{name}.onnx" for name in order))
    assert done.code == 0, done.err
    assert "guess" not in done.out


def test_two_files_that_leave_them_open_are_compared_at_a_guess_that_is_told(cli: Cli) -> None:
    _fixed(pooled(), "fixed.onnx")
    _open_sizes(Path("fixed.onnx"), Path("open.onnx"))
    done = cli("validate", "open.onnx", "open.onnx", "--json", "r.json")
    assert done.code == 0, done.err
    assert "runs at a guessed 32x32: " in done.out
    found = check_json(Path("r.json").read_text(), "groupfx.validation/1")
    assert found["guessed_sizes"] == "32x32"
    given = cli("validate", "open.onnx", "open.onnx", "--input-shape", "2,3,40,44")
    assert "guess" not in given.out
