"""A target is a file: it is found by listing, and everything else asks for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import groupfx
from groupfx import targets
from groupfx.api.models import make_pipeline
from groupfx.errors import UsageError
from groupfx.passes import make_pass
from groupfx.targets import Opinion, target_named

FOLDER = Path(targets.__file__).parent
ANOTHER = """
from . import Opinion, Target

def opinion(conv):
    return Opinion("large" if conv.groups > 2 else "small", "counts groups")

TARGET = Target("another", place=9, passes=("split-grouped-conv:max_groups=5",), opinion=opinion)
"""


def test_every_file_is_the_target_that_it_is_named_for() -> None:
    files = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    assert {"default", *(target.name for target in targets.targets())} == files
    assert target_named(None) is target_named("default")


def test_their_order_and_passes() -> None:
    assert [target.name for target in targets.targets()] == ["plinio", "onnxruntime"]
    for target in (target_named(None), *targets.targets()):
        assert make_pipeline(None, target.name).passes == tuple(map(make_pass, target.passes))


def test_an_unknown_one_is_refused_with_the_nearest() -> None:
    words = r"no target 'plino': did you mean 'plinio'\? choose one of plinio, onnxruntime$"
    with pytest.raises(UsageError, match=words):
        groupfx.find(torch.nn.Conv2d(6, 9, 1, groups=3), target="plino")


def test_numbers_that_are_not_known_have_no_opinion() -> None:
    assert target_named("plinio").says(None).word == "?"
    (site,) = groupfx.find(torch.nn.Conv2d(6, 9, 1, groups=3), torch.randn(2, 6, 5, 7))
    assert target_named("default").says(site.spec).word == "?"
    assert target_named("plinio").says(site.spec).word == "split"


@pytest.fixture
def another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One more file in the folder of targets."""
    (tmp_path / "another.py").write_text(ANOTHER)
    monkeypatch.setattr(targets, "__path__", [str(FOLDER), str(tmp_path)])
    targets._all.cache_clear()
    yield
    targets._all.cache_clear()


def test_adding_one_is_adding_a_file(another: None) -> None:
    assert [target.name for target in targets.targets()] == ["plinio", "onnxruntime", "another"]
    model = torch.nn.Sequential(
        torch.nn.Conv2d(6, 9, 1, groups=3), torch.nn.Conv2d(9, 18, 1, groups=9)
    )
    found = groupfx.find(model, torch.randn(2, 6, 5, 7), target="another")
    assert [site.taken for site in found] == [True, False]
    assert target_named("another").says(found[0].spec) == Opinion("large", "counts groups")
