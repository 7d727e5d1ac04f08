"""CONTRIBUTING.md tells what is so: its pass works, its layers and the files that it names are."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from groupfx.rewriting import Skip
from groupfx.testing import check_pass
from tests.test_layers import LAYERS

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


@pytest.fixture
def shown(tmp_path: Path) -> ModuleType:
    """The code block, as the file that it says it is."""
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    path = tmp_path / "halve_groups.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location("halve_groups", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["halve_groups"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["halve_groups"]


def test_the_shown_pass_holds_to_every_rule(shown: ModuleType) -> None:
    model = nn.Sequential(nn.Conv2d(12, 18, 3, groups=6), nn.ConvTranspose2d(18, 6, 2, groups=3))
    x = torch.randn(2, 12, 7, 5)
    result = check_pass(shown.HalveGroups(above=4), model, (x,), sites=1, skipped=1)
    assert [m.groups for m in result.model.get_submodule("0").children()] == [3, 3]


def test_it_says_why_it_leaves_a_site(shown: ModuleType) -> None:
    model = nn.Sequential(nn.Conv2d(6, 6, 3, groups=3))
    result = check_pass(shown.HalveGroups(above=2), model, (torch.randn(2, 6, 7, 5),), sites=0)
    assert "3 groups cannot be halved" in result.report.skipped[0].reason


def test_its_option_is_shown(shown: ModuleType) -> None:
    (option,) = shown.HalveGroups.options()
    assert (option.name, option.default) == ("above", 32)
    assert option.text == "the largest number of groups that is left as it is"
    assert shown.HalveGroups.pass_name() == "halve-groups"
    assert Skip("x").reason == "x"


def layers(text: str) -> list[list[str]]:
    """The rooms of each layer in the table, from the bottom up; a line without a number goes on."""
    (table,) = re.findall(r"## Layers\n.*?```\n(.*?)```", text, flags=re.DOTALL)
    found: list[list[str]] = []
    for line in table.splitlines():
        number, rooms = line[:3].strip(), line[3:].partition("  ")[0].split()
        if number:
            found.insert(0, [])
        found[0] += rooms
    return found


def test_the_layers_are_those_that_are_enforced() -> None:
    assert layers(TEXT) == [sorted(rooms) for rooms in LAYERS]


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_file_that_is_named_is_there(document: str) -> None:
    text = (ROOT / document).read_text()
    named = set(re.findall(r"[\[`(]((?:tests|examples|passes|groupfx)/[\w/.-]*\w)[])`]", text))
    assert named
    assert sorted(path for path in named if not (ROOT / path).exists()) == []
