"""The page that a command writes: beside what it does otherwise, and never instead of it."""

import json
from pathlib import Path

import pytest
from torch import nn

from groupfx.errors import FileError
from tests.cli.runs import SHAPE, Cli, grouped_model, save
from tests.deploy.validate.small_files import conv_file


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, tmp_path, monkeypatch)


@pytest.fixture
def model() -> Path:
    return save(Path("net.pt"), grouped_model())


def test_a_rewrite_writes_a_page_without_the_places_of_its_files(cli: Cli, model: Path) -> None:
    done = cli("rewrite", model.resolve(), "--input-shape", SHAPE, "--html", "page.html")
    assert done.code == 0
    assert "Wrote page.html" in done.out
    text = Path("page.html").read_text("utf-8")
    assert "<title>Rewrite: net.pt</title>" in text
    assert str(Path.cwd()) not in text


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--html", "page.txt"], "the name must end in .html"),
        (["--html", "nowhere/page.html"], "there is no folder nowhere"),
        (["--html", "folder.html"], "is a folder"),
        (["--html", "a.html", "--json", "a.html"], "both name a.html"),
    ],
    ids=["ending", "no_folder", "folder", "twice"],
)
@pytest.mark.parametrize("command", ["rewrite", "export", "tune"])
def test_a_page_that_cannot_be_written_is_refused_before_the_work(
    cli: Cli, model: Path, command: str, argv: list[str], said: str
) -> None:
    Path("folder.html").mkdir()
    done = cli(command, model, "--input-shape", SHAPE, *argv)
    assert done.code == 2
    assert said in done.err
    assert {path.name for path in Path.cwd().iterdir()} == {"net.pt", "folder.html"}


def test_a_page_that_fails_in_the_end_loses_nothing_else(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv_file(Path("a.onnx"), 1.0)

    def full(*_: object, **__: object) -> None:
        raise FileError("page.html was not written: No space left on device")

    monkeypatch.setattr("groupfx.page.write_page", full)
    argv = ("a.onnx", "-o", "b.onnx", "--html", "page.html", "--json", "report.json")
    done = cli("rewrite", *argv)
    assert done.code == 2
    assert "No space left on device" in done.err
    assert Path("b.onnx").exists()
    assert Path("report.json").exists()


def test_what_is_wrong_is_shown_and_told_by_the_exit_code(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv_file(Path("a.onnx"), 1.0)
    conv_file(Path("b.onnx"), 1.01)
    done = cli("validate", "a.onnx", "b.onnx", "--html", "page.html")
    assert done.code == 1
    text = Path("page.html").read_text("utf-8")
    assert "NOT the same function." in text
    assert "b.onnx against a.onnx" in text

    def full(*_: object, **__: object) -> None:
        raise FileError("page.html was not written: No space left on device")

    monkeypatch.setattr("groupfx.page.write_page", full)
    done = cli("validate", "a.onnx", "b.onnx", "--html", "page.html")
    assert done.code == 1
    assert "groupfx: warning: page.html was not written" in done.err


def test_a_model_without_sites_has_a_page(cli: Cli) -> None:
    path = save(Path("plain.pt"), nn.Sequential(nn.Conv2d(3, 5, 1)))
    done = cli("rewrite", path, "--input-shape", "2,3,5,7", "--html", "page.html")
    assert done.code == 0
    assert "There is no site to show." in Path("page.html").read_text("utf-8")


def test_what_differs_is_written_into_a_folder(cli: Cli) -> None:
    conv_file(Path("a.onnx"), 1.0)
    conv_file(Path("b.onnx"), 1.01)
    done = cli("validate", "a.onnx", "b.onnx", "--save-repro", "repro")
    assert done.code == 1
    assert "run repro/show.py" in done.out
    assert Path("repro/show.py").exists()
    again = cli("validate", "a.onnx", "b.onnx", "--save-repro", "repro")
    assert again.code == 2
    assert "is not empty" in again.err
    same = cli("validate", "a.onnx", "a.onnx", "--save-repro", "other")
    assert same.code == 0
    assert "Nothing differs" in same.out
    assert not Path("other").exists()


def test_no_folder_shows_what_nobody_checks(cli: Cli, model: Path) -> None:
    done = cli("export", model, "--no-verify", "--save-repro", "repro")
    assert done.code == 2
    assert "--no-verify leaves it out" in done.err


def test_an_overlay_is_for_an_onnx_file(cli: Cli, model: Path) -> None:
    conv_file(Path("a.onnx"), 1.0)
    conv_file(Path("b.onnx"), 1.01)
    done = cli("validate", "a.onnx", "b.onnx", "--overlay", "over.json")
    assert done.code == 1
    assert json.loads(Path("over.json").read_text())["results"]["first"]["value"] > 1
    done = cli("validate", "a.onnx", model, "--overlay", "other.json")
    assert done.code == 2
    assert "colours the nodes of an ONNX file" in done.err
    done = cli("export", model, "--no-verify", "--overlay", "other.json")
    assert done.code == 2
    assert not Path("other.json").exists()
