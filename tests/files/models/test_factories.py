"""What makes a model, with code of the user's: as MODEL itself, and whatever that code does."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import groupfx
from groupfx.errors import FileError, GroupfxError, UsageError
from groupfx.files.models import read_model

MAKING = """
import sys
import torch
from torch import nn

class Odd(Exception):
    def __str__(self): raise ValueError

def build(channels=4): return nn.Linear(channels, 2)

def leave(): sys.exit(0)

def stop(): raise GeneratorExit

def odd(): raise Odd

def empty(): return nn.Linear(2, 2, device="meta")
"""
CODE = {
    "making": MAKING,
    "leaving_at_once": "raise GeneratorExit('no more')",
    "leaving_at_last": "def __getattr__(name): raise KeyError(name)",
}


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    for name, text in CODE.items():
        Path(f"{name}.py").write_text(text)
    torch.save({"weight": torch.ones(2, 4), "bias": torch.ones(2)}, "weights.pt")
    torch.save(nn.Linear(2, 2, device="meta"), "meta.pt")
    yield tmp_path
    for name in (*CODE, *(f"groupfx_arch_{name}" for name in CODE)):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("place", ["making.py:build", "making:build"])
def test_a_factory_is_a_model_by_itself(place: str, code: Path) -> None:
    found = read_model(place, arch_args={"channels": 7}, python_path=[code])
    assert (found.source, found.inputs, found.notes) == ("factory", None, ())
    assert isinstance(found.model, nn.Linear)
    assert found.model.weight.shape == (2, 7)


def test_a_file_of_that_name_is_a_file(code: Path) -> None:
    Path("making:build").write_bytes(Path("weights.pt").read_bytes())
    with pytest.raises(FileError, match="holds weights without their model"):
        read_model("making:build", python_path=[code])


WRONG: dict[str, tuple[type[GroupfxError], str]] = {
    "making:leave": (UsageError, "making:leave raised SystemExit: 0"),
    "making.py:leave": (UsageError, r"making\.py:leave raised SystemExit: 0"),
    "making:stop": (UsageError, "making:stop raised GeneratorExit"),
    "making:odd": (UsageError, r"odd\(\) raised Odd$"),
    "making:empty": (UsageError, "making:empty returned has no values: weight lies on the device"),
    "leaving_at_once:build": (UsageError, "leaving_at_once:build raised GeneratorExit: no more"),
    "leaving_at_last:build": (UsageError, "looking for build raised KeyError"),
}


@pytest.mark.parametrize(("place", "told"), WRONG.items(), ids=WRONG)
@pytest.mark.parametrize("as_arch", [False, True], ids=["model", "arch"])
def test_whatever_a_factory_does_is_an_error_of_it(
    place: str, told: tuple[type[GroupfxError], str], as_arch: bool, code: Path
) -> None:
    kind, message = told
    path, arch = ("weights.pt", place) if as_arch else (place, None)
    with pytest.raises(kind, match=message):
        read_model(path, arch=arch, python_path=[code])


def test_a_factory_needs_no_other(code: Path) -> None:
    with pytest.raises(UsageError, match="leave --arch and --key out"):
        read_model("making:build", arch="making:build", python_path=[code])


def test_a_saved_model_without_values_is_not_called_verified(code: Path) -> None:
    model = read_model("meta.pt").model
    report = groupfx.rewrite(model, torch.randn(2, 2)).report
    assert not report.verified
    assert any("has no values" in note for note in report.notes), report.notes
