"""Plans and timings as files: read back, edited, of another model, machine or kind, or broken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groupfx.errors import FileError, UsageError
from groupfx.plan.blocks import find_blocks
from groupfx.plan.cost import Work
from groupfx.tuning.cache import Cache, Key, open_cache
from groupfx.tuning.plan_file import PlannedRecipe, TuningPlan, applied, read_plan
from groupfx.tuning.sites import TunedSite

MASK = np.kron(np.eye(4, dtype=np.int64), np.ones((5, 3), dtype=np.int64))
HERE = TuningPlan("onnxruntime", "1.2", "a CPU", 1, ())


def site(name: str, signature: str = "four blocks") -> TunedSite:
    return TunedSite(name, find_blocks(MASK), Work(9, 196), signature, "dense")


def plan(*entries: tuple[str, str, str]) -> TuningPlan:
    return replace(HERE, sites=tuple(PlannedRecipe(*entry) for entry in entries))


def test_a_plan_comes_back_from_its_file(tmp_path: Path) -> None:
    made = plan(("a", "four blocks", "bins of 8: merged 0+3 1+2"), ("b", "other", "dense"))
    made.save(tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == made
    assert json.loads((tmp_path / "plan.json").read_text())["sites"][0]["site"] == "a"


BROKEN: dict[str, Any] = {
    "no schema": {"sites": []},
    "a list": [1, 2],
    "another schema": {**HERE.to_dict(), "schema": "groupfx.plan/9"},
    "no sites": {**HERE.to_dict(), "sites": None},
    "a site without a recipe": {**HERE.to_dict(), "sites": [{"site": "a", "signature": "s"}]},
    "a number for a recipe": {
        **HERE.to_dict(),
        "sites": [{"site": "a", "signature": "s", "recipe": 3}],
    },
    "threads in words": {**HERE.to_dict(), "threads": "one"},
    "threads true": {**HERE.to_dict(), "threads": True},
    "no cpu": {k: v for k, v in HERE.to_dict().items() if k != "cpu"},
}


@pytest.mark.parametrize("document", BROKEN.values(), ids=BROKEN.keys())
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, document: Any) -> None:
    place = tmp_path / "plan.json"
    place.write_text(json.dumps(document))
    with pytest.raises(FileError, match=r"is no plan of groupfx .*--save-plan"):
        read_plan(place)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b"{"])
def test_bytes_that_are_no_json_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(FileError, match="is no plan of groupfx"):
        read_plan(tmp_path / "plan.json")


def test_a_plan_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be read: No such file"):
        read_plan(tmp_path / "plan.json")


def test_a_plan_is_applied_by_name_where_the_signature_fits() -> None:
    made = plan(("a", "four blocks", "padded"), ("b", "three blocks", "split"))
    found = applied(made, [site("a"), site("b")], HERE)
    # b is another convolution now: it takes what a site like it had.
    assert found.recipes == {"a": "padded", "b": "padded"}
    assert found.notes == ()


def test_where_a_plan_of_another_model_does_not_fit_is_said() -> None:
    made = plan(("x", "three blocks", "split"), ("y", "four blocks", "padded"))
    found = applied(made, [site("a"), site("b", "five blocks")], HERE)
    assert found.recipes == {"a": "padded"}
    assert found.notes == ("the plan fits 1 of 2 sites; the others stay as they are: b",)


def test_another_version_cpu_and_number_of_threads_are_said() -> None:
    there = TuningPlan("openvino", "9", "another CPU", 4, ())
    found = applied(there, [], HERE)
    assert found.notes == (
        "the plan was measured with another runtime: openvino 9, and here onnxruntime 1.2",
        "the plan was measured with another CPU: another CPU, and here a CPU",
        "the plan was measured with another number of threads: 4, and here 1",
    )


def test_a_recipe_that_does_not_fit_its_blocks_is_refused() -> None:
    made = plan(("a", "four blocks", "bins of 8: merged 0+1 2+9"))
    with pytest.raises(UsageError, match=r"the plan for a: .*must be in one bin"):
        applied(made, [site("a")], HERE)


KEY = Key("onnxruntime", "1.2", "a CPU", 1)


def test_timings_come_back_for_the_same_machine_alone(tmp_path: Path) -> None:
    cache = open_cache(KEY, tmp_path / "new")
    cache.times["four blocks"] = {"dense": 3.5}
    cache.machine = {"block": 8}
    cache.save()
    again = open_cache(KEY, tmp_path / "new")
    assert (again.times, again.machine) == ({"four blocks": {"dense": 3.5}}, {"block": 8})
    for other in (replace(KEY, version="1.3"), replace(KEY, cpu="b"), replace(KEY, threads=2)):
        assert open_cache(other, tmp_path / "new").times == {}


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"schema": 1}', b"null", b"\xff"])
def test_a_broken_cache_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    cache = open_cache(KEY, tmp_path)
    assert cache.path is not None
    cache.path.write_bytes(content)
    assert open_cache(KEY, tmp_path).times == {}


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    open_cache(KEY, tmp_path / "file" / "below").save()
    Cache(None, KEY).save()
    assert open_cache(KEY, None).path is None
