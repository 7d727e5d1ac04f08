"""Plans and timings as files: read back, edited, of another model, machine or kind, or broken."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groupfx.errors import FileError, UsageError
from groupfx.plan.blocks import find_blocks
from groupfx.plan.cost import Work
from groupfx.tuning.cache import Cache, Key, PastRace, open_cache
from groupfx.tuning.plan_file import PlannedRecipe, TuningPlan, applied, read_plan
from groupfx.tuning.ratios import Ratio
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


def test_what_is_written_twice_is_refused(tmp_path: Path) -> None:
    place, made = tmp_path / "plan.json", plan(("a", "s", "dense"), ("a", "s", "split"))
    made.save(place)
    with pytest.raises(FileError, match="the site 'a' is there twice"):
        read_plan(place)
    plan(("a", "s", "dense")).save(place)
    place.write_text(place.read_text().replace('"recipe"', '"recipe": "split", "recipe"'))
    with pytest.raises(FileError, match="'recipe' is there twice"):
        read_plan(place)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b"{"])
def test_bytes_that_are_no_json_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(FileError, match="is no plan of groupfx"):
        read_plan(tmp_path / "plan.json")


def test_a_plan_that_never_ends_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "plan.json")
    with pytest.raises(FileError, match="is not a regular file"):
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
    assert found.notes == (
        "the plan fits 1 of 2 sites; the others stay as they are: b",
        "the plan names sites that are not here, nor any like them: x",
    )


def test_how_a_site_differs_from_what_was_measured_is_said() -> None:
    found = applied(
        plan(("a", "1x1, 1x8x8, 4 x 8", "padded")), [site("a", "1x1, 9x8x8, 4 x 8")], HERE
    )
    assert found.notes[1] == "a was measured as 1x8x8, and here it is 9x8x8"
    found = applied(plan(("a", "1x1, 4 x 8", "padded")), [site("a", "1x1, 4 x 8, permuted")], HERE)
    assert found.notes[1] == "a was measured as 1x1, 4 x 8, and here it is 1x1, 4 x 8, permuted"


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


@pytest.mark.parametrize("recipe", ["bins of 9999: merged 0 1 2 3", "absorbed 9999: 0 1 2 3"])
def test_blocks_that_no_machine_has_are_refused(recipe: str) -> None:
    # Padded to them, a small layer would fill the memory.
    with pytest.raises(UsageError, match=r"the plan for a: .* blocks have 1 to 64 channels"):
        applied(plan(("a", "four blocks", recipe)), [site("a")], HERE)


@pytest.mark.parametrize("recipe", ["bins of 8: merged {}", "absorbed 8: {}", "merge {}"])
def test_a_number_without_end_is_no_recipe(recipe: str) -> None:
    made = plan(("a", "four blocks", recipe.format("9" * 5000)))
    with pytest.raises(UsageError, match=r"the plan for a: .* no way"):
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


def test_two_at_once_keep_what_each_has_measured(tmp_path: Path) -> None:
    first, second = (open_cache(KEY, tmp_path) for _ in range(2))
    first.times = {"four blocks": {"dense": 3.5, "split": 9.0}}
    second.times = {"four blocks": {"dense": 4.5, "padded": 2.0}}
    first.save()
    second.save()
    assert open_cache(KEY, tmp_path).times == {
        "four blocks": {"dense": 4.5, "split": 9.0, "padded": 2.0}
    }


def test_what_is_no_time_is_not_taken_from_a_cache(tmp_path: Path) -> None:
    cache = open_cache(KEY, tmp_path)
    cache.times["a"] = {"dense": -1.0, "split": float("nan"), "padded": float("inf"), "merge 2": 3}
    cache.save()
    assert open_cache(KEY, tmp_path).times == {"a": {"merge 2": 3.0}}


TOLD = Ratio(0.9, 0.88, 0.92, 16, "faster")


def test_a_race_comes_back_where_it_was_long_enough(tmp_path: Path) -> None:
    cache = open_cache(KEY, tmp_path)
    race = PastRace(7.0, {"assembled": {"a": "split"}}, {"assembled": TOLD})
    cache.remember("one model", race)
    cache.save()
    again = open_cache(KEY, tmp_path)
    assert again.raced("one model", 7.0) == race
    assert again.raced("one model", 7.1) is None
    assert again.raced("another", 1.0) is None


UNTOLD = Ratio(1.0, 0.9, 1.1, 16, "cannot tell")
FELL_BEHIND = replace(UNTOLD, rounds=8)
SLOWER = replace(FELL_BEHIND, verdict="slower")
SETTLED: dict[str, tuple[list[Ratio], bool]] = {
    "one is faster": ([TOLD], True),
    "nobody can tell": ([UNTOLD], False),
    "one is faster, and one fell behind": ([FELL_BEHIND, TOLD], True),
    "one is the same, and one fell behind": ([replace(TOLD, verdict="same"), FELL_BEHIND], True),
    "one fell behind, and nobody can tell": (
        [SLOWER, UNTOLD],
        False,
    ),
}


@pytest.mark.parametrize(("ratios", "told"), SETTLED.values(), ids=SETTLED.keys())
def test_a_race_is_remembered_where_it_has_told(
    tmp_path: Path, ratios: list[Ratio], told: bool
) -> None:
    named = dict(zip("ab", ratios, strict=False))
    cache = open_cache(KEY, tmp_path)
    cache.remember("one model", PastRace(7.0, {name: {"s": name} for name in named}, named))
    assert (cache.raced("one model", 7.0) is not None) == told


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        {},
        {"seconds": "7"},
        {"value": float("nan")},
        {"low": 0.0},
        {"low": 0.95},
        {"high": None},
        {"high": "wide"},
        {"rounds": 0},
        {"rounds": 1.5},
        {"verdict": "fastest"},
        {"value": 10**400},
        {"recipes": 3},
        {"recipes": {"a": 3}},
        {"recipes": None},
    ],
)
def test_what_is_no_race_is_not_taken_from_a_cache(tmp_path: Path, wrong: Any) -> None:
    cache = open_cache(KEY, tmp_path)
    cache.remember("b", PastRace(7.0, {"assembled": {"a": "split"}}, {"assembled": TOLD}))
    raced = {"assembled": cache.races["b"]["raced"]["assembled"] | (wrong or {})}
    whole = {"seconds": (wrong or {}).get("seconds", 7.0), "raced": raced}
    cache.races["b"] = whole if wrong else wrong
    cache.save()
    assert open_cache(KEY, tmp_path).raced("b", 1.0) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"schema": 1}', b"null", b"\xff"])
def test_a_broken_cache_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    cache = open_cache(KEY, tmp_path)
    assert cache.path is not None
    cache.path.write_bytes(content)
    assert open_cache(KEY, tmp_path).times == {}


@pytest.mark.parametrize("time", ["9" * 400, "{}", '"fast"', "[1]"])
def test_a_time_that_no_float_holds_breaks_nothing(tmp_path: Path, time: str) -> None:
    cache = open_cache(KEY, tmp_path)
    cache.times = {"a": {"dense": 3.0}}
    cache.save()
    assert cache.path is not None
    cache.path.write_text(cache.path.read_text().replace("3.0", time))
    again = open_cache(KEY, tmp_path)
    assert again.times == {}
    assert again.problem == f"{cache.path} cannot be read as timings: they are measured anew"


def test_a_cache_says_where_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = open_cache(KEY, tmp_path / "file" / "below")
    assert cache.problem is None
    cache.save()
    assert cache.problem is not None
    assert "is not kept for the next time" in cache.problem
    assert cache.problem.endswith("name another folder with $GROUPFX_CACHE")
    assert "Not a directory" in cache.problem


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    open_cache(KEY, tmp_path / "file" / "below").save()
    Cache(None, KEY).save()
    assert open_cache(KEY, None).path is None
