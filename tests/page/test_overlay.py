"""The errors of nodes as node data of Model Explorer."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

import groupfx
from groupfx.deploy import Validation
from groupfx.errors import FileError
from groupfx.page import page_of
from groupfx.plan.blocks import BlockStructure
from tests.deploy.validate.small_files import conv_file


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("overlay")
    return conv_file(folder / "a.onnx", 1.0), conv_file(folder / "b.onnx", 1.01)


@pytest.fixture(scope="module")
def found(files: tuple[Path, Path]) -> Validation:
    return groupfx.validate(*files)


def written(found: Validation, file: Path, to: Path) -> dict[str, Any]:
    groupfx.write_overlay(found, file, to)
    loaded: dict[str, Any] = json.loads(to.read_text("utf-8"))
    return loaded


def colour(data: dict[str, Any], value: float) -> str:
    """As the viewer takes it: that of the first bound which is not below the value."""
    return next(str(each["bgColor"]) for each in data["thresholds"] if value <= each["value"])


def test_every_node_of_a_site_has_its_error(
    files: tuple[Path, Path], found: Validation, tmp_path: Path
) -> None:
    data = written(found, files[1], tmp_path / "over.json")
    values = {name: entry["value"] for name, entry in data["results"].items()}
    names = {node.name for node in onnx.load(files[1]).graph.node}
    assert {"first", "second"} <= values.keys() <= names
    assert values["first"] > 1000
    assert values["second"] <= 1
    assert values.get("between", 0.0) <= 1
    assert colour(data, values["first"]) == colour(data, 1e9)
    assert colour(data, values["second"]) != colour(data, values["first"])
    bounds = [each["value"] for each in data["thresholds"]]
    assert bounds == sorted(bounds)


def test_an_error_without_a_number_is_a_large_one(
    files: tuple[Path, Path], found: Validation, tmp_path: Path
) -> None:
    sites = tuple(replace(s, ratio=math.inf) for s in found.sites)
    data = written(replace(found, sites=sites), files[1], tmp_path / "over.json")
    assert data["results"]["second"]["value"] == 1e9


def test_an_overlay_of_nothing(files: tuple[Path, Path], found: Validation, tmp_path: Path) -> None:
    data = written(replace(found, sites=(), operators=()), files[1], tmp_path / "over.json")
    assert data["results"] == {}
    with pytest.raises(FileError):
        groupfx.write_overlay(found, tmp_path / "none.onnx", tmp_path / "over.json")
    with pytest.raises(FileError, match="no-folder"):
        groupfx.write_overlay(found, files[1], tmp_path / "no-folder" / "over.json")


def test_a_validation_shows_operations_of_both_sides_and_the_groups(found: Validation) -> None:
    first, second = page_of(found).sites
    assert [p.label for p in first.before.pieces] == ["Conv 4->6 /2, 3x3"]
    assert [p.label for p in first.after.pieces] == ["Conv 4->6 /2, 3x3"]
    assert first.structure == BlockStructure.of_groups(4, 6, 2)
    assert second.structure is None  # dense
    assert (first.tone, second.tone) == ("bad", "close")
