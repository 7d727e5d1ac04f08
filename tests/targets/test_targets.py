"""A target is a file of facts: it is found by listing, and everything else asks for it."""

from datetime import date
from pathlib import Path

import pytest
import torch

import groupfx
from groupfx import targets
from groupfx.api.models import make_pipeline
from groupfx.errors import FileError, UsageError
from groupfx.passes import make_pass
from groupfx.targets import Opinion, target_named
from groupfx.targets.facts import VERDICTS

FOLDER = Path(targets.__file__).parent
ANOTHER = """
schema = "groupfx.target/1"
name = "another"
title = "counts groups"
date = 2026-11-28
passes = ["split-grouped-conv:max_groups=5"]

[[fact]]
topic = "groups"
where = { groups_above = 2 }
verdict = "refused"
word = "large"
text = "more than it can count"
fix = ["split-grouped-conv"]
source = "its author"
version = "1"
date = 2026-11-28

[[fact]]
topic = "groups"
verdict = "accepted"
text = "counted"
source = "its author"
version = "1"
date = 2026-11-28
"""
NAMES = [
    *("plinio", "onnxruntime", "openvino", "tflite", "executorch"),
    *("finn", "hls4ml", "vitis-ai", "qnn"),
]


def test_every_file_is_the_target_that_it_is_named_for() -> None:
    files = {path.stem for path in FOLDER.glob("*.toml")}
    assert {"default", *(target.name for target in targets.targets())} == files
    assert target_named(None) is target_named("default")
    assert list(targets.target_names()) == sorted(NAMES)


def test_their_order_and_passes() -> None:
    assert [target.name for target in targets.targets()] == NAMES
    for target in (target_named(None), *targets.targets()):
        assert make_pipeline(None, target.name).passes == tuple(map(make_pass, target.passes))


@pytest.mark.parametrize("target", targets.targets(), ids=lambda target: target.name)
def test_each_fact_has_a_source_and_a_date_and_its_fixes_are_passes(target: targets.Target) -> None:
    assert target.facts
    assert target.title
    for fact in target.facts:
        assert fact.source
        assert fact.version
        assert date(2026, 1, 1) <= fact.date <= target.date
        assert not fact.text.endswith(".")
        for text in fact.fix:
            make_pass(text)
        if fact.verdict == "unknown" or fact.source.startswith("not found"):
            assert fact.verdict == "unknown"
    # Every kind of grouped convolution is spoken of, if only to say that nobody knows.
    assert any(fact.topic == "groups" for fact in target.facts)
    assert {fact.verdict for fact in target.facts} <= set(VERDICTS)


def test_an_unknown_one_is_refused_with_the_nearest() -> None:
    words = (
        rf"no target 'plino': did you mean 'plinio'\? choose one of {', '.join(sorted(NAMES))}, or"
    )
    with pytest.raises(UsageError, match=words):
        groupfx.find(torch.nn.Conv2d(6, 9, 1, groups=3), target="plino")


def test_numbers_that_are_not_known_have_no_opinion() -> None:
    assert target_named("plinio").says(None).word == "?"
    (site,) = groupfx.find(torch.nn.Conv2d(6, 9, 1, groups=3), torch.randn(2, 6, 5, 7))
    assert target_named("default").says(site.spec).word == "?"
    assert target_named("plinio").says(site.spec).word == "split"


MODEL = torch.nn.Sequential(torch.nn.Conv2d(6, 9, 1, groups=3), torch.nn.Conv2d(9, 18, 1, groups=9))
X = torch.randn(2, 6, 5, 7)


@pytest.fixture
def another(tmp_path: Path) -> Path:
    """The file of one more target."""
    path = tmp_path / "another.toml"
    path.write_text(ANOTHER)
    return path


def test_adding_one_is_adding_a_file(another: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(targets.FOLDERS, str(another.parent))
    assert [target.name for target in targets.targets()] == [*NAMES, "another"]
    assert "another" in targets.target_names()
    found = groupfx.find(MODEL, X, target="another")
    assert [site.taken for site in found] == [True, False]
    assert target_named("another").says(found[0].spec) == Opinion("large", "more than it can count")


def test_a_file_may_be_named_where_a_target_may(another: Path) -> None:
    result = groupfx.rewrite(MODEL, X, target=str(another))
    assert [site.name for site in result.report.sites] == ["0"]


def test_packages_bring_targets(another: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = another.parent / "their_targets"
    package.mkdir()
    (package / "__init__.py").write_text("")
    another.rename(package / "another.toml")
    info = another.parent / "theirs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[groupfx.targets]\ntheirs = their_targets\n")
    monkeypatch.syspath_prepend(str(another.parent))
    assert target_named("another").title == "counts groups"


def test_two_files_of_one_name_are_refused(another: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(targets.FOLDERS, str(another.parent))
    another.rename(another.with_name("finn.toml"))
    with pytest.raises(FileError, match=r"are both the target 'finn': rename one"):
        target_named("plinio")
    # Help and completion still work: they name what is known.
    assert list(targets.target_names()) == sorted(NAMES)


def test_a_folder_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(targets.FOLDERS, "no/such/folder")
    with pytest.raises(FileError, match="names no/such/folder, which is no folder"):
        target_named("plinio")
