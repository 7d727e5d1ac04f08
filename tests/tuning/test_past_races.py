"""A race that has told is remembered, and who took part in it is not raced again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

import groupfx.tuning.tune as tuning
from tests.tuning.test_tune import NETWORK, MadeUp, fast_in_blocks, network, tuned


def test_the_same_file_is_raced_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first, second, other, longer = (MadeUp(fast_in_blocks, files=True) for _ in range(4))
    before = tuned(monkeypatch, first, cache=tmp_path)
    again = tuned(monkeypatch, second, cache=tmp_path)
    # The untouched model alone, to see that it runs, and that it is deterministic.
    assert second.loaded == 1
    assert second.now < 0.01
    assert (again.ratio, again.plan) == (before.ratio, before.plan)
    assert ir.to_proto(again.model) == ir.to_proto(before.model)
    assert any("this file was raced before" in note for note in again.notes)
    # Other weights, or more time than that race had, and it is raced.
    model = network(NETWORK)
    held = model.graph.initializers["a.weight"]
    held.const_value = ir.tensor(2 * held.const_value.numpy())  # type: ignore[union-attr]
    tuned(monkeypatch, other, model, cache=tmp_path)
    tuned(monkeypatch, longer, cache=tmp_path, budget=240.0)
    assert min(other.loaded, longer.loaded) > 1


def made_up_race(monkeypatch: pytest.MonkeyPatch, *heats: float) -> list[int]:
    """The first contender takes so much in each heat; others fall behind by half-time. Counted."""
    raced: list[int] = []

    def race(loads: list[Any], *others: Any, **options: Any) -> Any:
        raced.append(len(loads))
        behind = [[[1.0, 1.0], [own], *([own * 1.2] for _ in loads[2:])] for own in heats[:2]]
        return behind + [[[1.0, 1.0], [own], *([] for _ in loads[2:])] for own in heats[2:]]

    monkeypatch.setattr(tuning, "race", race)
    return raced


def test_who_fell_behind_is_not_raced_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    raced = made_up_race(monkeypatch, 0.8, 0.6, 0.7, 0.7, 0.7)
    before, again = (
        tuned(monkeypatch, MadeUp(fast_in_blocks, files=True), cache=tmp_path) for _ in range(2)
    )
    assert [ratio.verdict for ratio in before.races.values()] == ["faster", "cannot tell"]
    assert raced == [3]
    assert (again.ratio, again.plan, again.races) == (before.ratio, before.plan, before.races)
    assert any("this file was raced before" in note for note in again.notes)


def test_who_won_as_a_whole_is_not_lost_where_nothing_is_profiled_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # No site gains enough by itself, and the variant that was fastest is known from no profile.
    monkeypatch.setattr(tuning._Work, "_assembled", lambda *given: {})
    monkeypatch.setattr(tuning, "expected_recipes", lambda choices: {})
    raced = made_up_race(monkeypatch, 0.7, 0.7, 0.7, 0.7, 0.7)
    before, again = (
        tuned(monkeypatch, MadeUp(fast_in_blocks, files=True), cache=tmp_path) for _ in range(2)
    )
    assert [*before.races] == ["best variant"]
    assert raced == [2]
    assert not again.untouched
    assert (again.ratio, again.plan) == (before.ratio, before.plan)


def test_a_race_that_could_not_tell_is_run_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    raced = made_up_race(monkeypatch, 0.8, 1.3, 0.7, 1.4, 0.9)
    for _ in range(2):
        found = tuned(monkeypatch, MadeUp(fast_in_blocks, files=True), cache=tmp_path)
        assert found.untouched
    assert len(raced) == 2


@pytest.mark.parametrize(
    "wrong", [{"nowhere": "split"}, {"a": "no recipe"}, {"a": "bins of 16: merged 0+9"}]
)
def test_a_race_of_what_the_model_does_not_have_is_run_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: dict[str, str]
) -> None:
    raced = made_up_race(monkeypatch, 0.7, 0.7, 0.7, 0.7, 0.7)
    tuned(monkeypatch, MadeUp(fast_in_blocks, files=True), cache=tmp_path)
    (file,) = tmp_path.iterdir()
    held = json.loads(file.read_text())
    (race,) = held["races"].values()
    race["raced"]["somebody's"] = race["raced"]["assembled"] | {"recipes": wrong}
    file.write_text(json.dumps(held))
    found = tuned(monkeypatch, MadeUp(fast_in_blocks, files=True), cache=tmp_path)
    assert len(raced) == 2
    assert not found.untouched
