"""The pass that CONTRIBUTING.md shows is a working pass."""

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

TEXT = (Path(__file__).resolve().parent.parent / "CONTRIBUTING.md").read_text()


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
