"""A pass of one's own: from a file, a module, or an installed package."""

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import groupfx
from groupfx.errors import UsageError
from groupfx.passes import SplitGroupedConv, make_pass, pass_names

CODE = '''
import sys
from dataclasses import dataclass
from groupfx.passes import SplitGroupedConv

@dataclass(frozen=True)
class Own(SplitGroupedConv):
    """A pass of one's own."""

    more: int = 1
    """what is not used"""

def none(): pass

class Plain: pass
'''
X = torch.randn(2, 6, 7, 7)


@pytest.fixture(autouse=True)
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("own_passes.py").write_text(CODE)
    Path("leaving_passes.py").write_text("import sys\nsys.exit(0)")
    yield
    for name in ("own_passes", "groupfx_arch_own_passes"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["own_passes.py:Own", "./own_passes.py:Own", "own_passes:Own"])
def test_a_pass_of_a_file_or_a_module(name: str) -> None:
    made = make_pass(f"{name}:more=3,only=0")
    assert type(made).__name__ == "Own"
    assert isinstance(made, SplitGroupedConv)
    assert (made.only, vars(made)["more"]) == (("0",), 3)
    model = nn.Sequential(nn.Conv2d(6, 6, 3, groups=2))
    report = groupfx.rewrite(model, (X,), passes=[name]).report
    assert [site.pass_name for site in report.sites] == ["own"]


def test_a_pass_of_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = importlib.metadata.EntryPoint("others-own", "own_passes:Own", "groupfx.passes")
    monkeypatch.setattr(
        "groupfx.passes.entry_points", lambda group: [entry] if group == "groupfx.passes" else []
    )
    assert "others-own" in pass_names()
    assert vars(make_pass("others-own:more=5"))["more"] == 5
    with pytest.raises(UsageError, match="did you mean 'others-own'"):
        make_pass("others-ow")


WRONG = {
    "own_passes.py:Owm": "did you mean Own",
    "own_passes.py:none": "this is no pass",
    "own_passes.py:Plain": "this is no pass",
    "own_passes.py:Own:mores=3": "own has no option 'mores': did you mean 'more'",
    "leaving_passes.py:Own": "-p leaving_passes.py:Own raised SystemExit",
    "gone.py:Own": "-p: there is no file gone.py",
}


@pytest.mark.parametrize(("text", "told"), WRONG.items(), ids=WRONG)
def test_what_is_no_pass_is_said(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        make_pass(text)
