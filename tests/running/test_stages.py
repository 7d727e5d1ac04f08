"""What stages take is added up, and a stage inside another is not counted twice."""

from __future__ import annotations

import pytest

from groupfx.running import stages as counting
from groupfx.running.stages import Stage, Stages


class Clock:
    """A time that moves when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(counting.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(counting.time, "process_time", lambda: self.now / 2)


def test_stages_add_up_without_those_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stage = Clock(monkeypatch), Stages()
    clock.now = 3
    for _ in range(2):
        with stage("race"):
            clock.now += 2
            with stage("load"):
                clock.now += 5
            clock.now += 1
        clock.now += 100
    assert stage.table == (Stage("race", 6.0, 3.0), Stage("load", 10.0, 5.0))


def test_a_stage_that_fails_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stage = Clock(monkeypatch), Stages()

    def fail() -> None:
        with stage("race"), stage("load"):
            clock.now += 4
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with stage("write"):
        clock.now += 2
    assert [(each.name, each.wall) for each in stage.table] == [
        ("race", 0.0),
        ("load", 4.0),
        ("write", 2.0),
    ]
