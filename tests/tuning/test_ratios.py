"""What times say, on times that were made up: no clock is read here."""

from __future__ import annotations

import math

import numpy as np
import pytest

from groupfx.tuning.race import HEATS, least_seconds, race
from groupfx.tuning.ratios import UNTOUCHED, Heat, Ratio, compare, lower_half


def heats(ratio: float, noise: float, seed: int, *, number: int = HEATS) -> list[Heat]:
    """Times of two models, the second so much slower; sessions and runs differ by `noise`."""
    random = np.random.default_rng(seed)
    made: list[Heat] = []
    for _ in range(number):
        sessions = np.exp(random.normal(0, noise, 2)) * (1, ratio)
        runs = 1 + random.exponential(noise, (2, 20))
        made.append((sessions[:, None] * runs).tolist())
    return made


CASES = {
    "faster": (0.90, 0.005, "faster"),
    "much faster": (0.33, 0.02, "faster"),
    "slower": (1.08, 0.005, "slower"),
    "same": (1.0, 0.003, "same"),
    "less than is claimed": (0.993, 0.002, "same"),
    "busy": (0.97, 0.10, "cannot tell"),
}


@pytest.mark.parametrize(("ratio", "noise", "verdict"), CASES.values(), ids=CASES.keys())
def test_the_verdict_on_a_known_ratio(ratio: float, noise: float, verdict: str) -> None:
    found = compare(heats(ratio, noise, seed=7), 1)
    assert found.verdict == verdict
    assert found.low < found.value < found.high
    assert found.low < ratio < found.high
    assert found.rounds == HEATS * 20


@pytest.mark.parametrize("noise", [0.001, 0.02, 0.2])
def test_a_model_against_itself_is_rarely_another(noise: float) -> None:
    verdicts = [compare(heats(1.0, noise, seed), 1).verdict for seed in range(100)]
    assert sum(verdict in ("faster", "slower") for verdict in verdicts) <= 5


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    found = [compare(heats(0.95, 0.02, seed), 1) for seed in range(300)]
    held = sum(ratio.low < 0.95 < ratio.high for ratio in found)
    # 98 % of 300 are 294, give or take two and a half standard deviations of the binomial.
    assert 294 - 6 <= held < 300


def test_a_drift_meets_both_alike() -> None:
    drifting = [[[k * (1 + r / 5) for r in range(12)] for k in (1.0, 0.9)] for _ in range(HEATS)]
    found = compare(drifting, 1)
    assert found.value == pytest.approx(0.9)
    assert found.verdict == "faster"


def test_one_heat_claims_nothing() -> None:
    found = compare(heats(0.5, 0.001, 0, number=1), 1)
    assert (found.low, found.high, found.verdict) == (0.0, math.inf, "cannot tell")
    assert str(found).endswith("(no interval)")
    assert found.to_dict()["high"] is None


def test_outliers_do_not_count() -> None:
    assert lower_half([1.0, 1.0, 50.0, 1.0, 90.0]) == 1.0
    assert lower_half([2.0]) == 2.0


def test_a_ratio_as_text() -> None:
    assert str(Ratio(0.934, 0.921, 0.947, 120, "faster")) == "0.93 (0.92 to 0.95)"
    assert str(UNTOUCHED) == "1.00"


class MadeUpRace:
    """Models that take made-up seconds, and a clock that only they move on."""

    def __init__(self, *seconds: float, drift: float = 0.0) -> None:
        self.now = 0.0
        self.seconds, self.drift = seconds, drift
        self.runs: list[int] = []
        self.loaded: list[int] = []

    def clock(self) -> float:
        return self.now

    def load(self, place: int) -> object:
        self.loaded.append(place)

        def run() -> None:
            self.runs.append(place)
            self.now += self.seconds[place] + self.drift * self.now

        return run

    def race(self, seconds: float, *, run: float = 0.0) -> list[Heat]:
        loads = [lambda k=k: self.load(k) for k in range(len(self.seconds))]
        return race(loads, self.clock, seconds, self.clock, run=run)  # type: ignore[arg-type]


def test_each_round_goes_there_and_back_from_another_start() -> None:
    machine = MadeUpRace(1.0, 2.0, 4.0)
    found = machine.race(0.0)
    assert machine.loaded[:6] == [0, 1, 2, 1, 2, 0]
    assert machine.runs[:6] == [0, 1, 2, 2, 1, 0]
    assert len(found) == HEATS
    assert found[0] == [[2.0, 2.0], [4.0, 4.0], [8.0, 8.0]]


def test_a_race_takes_as_long_as_it_may() -> None:
    machine = MadeUpRace(0.01, 0.02)
    machine.race(6.0)
    assert 4.0 < machine.now <= 6.1


@pytest.mark.parametrize(
    ("seconds", "heats", "rounds"), [(96.0, 8, 2), (95.0, 8, 1), (56.0, 7, 1), (1.0, 5, 1)]
)
def test_models_that_run_long_race_in_fewer_heats(seconds: float, heats: int, rounds: int) -> None:
    machine = MadeUpRace(1.0, 1.0)
    found = machine.race(seconds, run=1.0)
    assert [len(heat[0]) for heat in found] == [rounds] * heats
    assert machine.now <= max(seconds, least_seconds(2, 1.0))


def test_a_steady_drift_is_no_difference() -> None:
    machine = MadeUpRace(0.01, 0.01, drift=1e-3)
    found = compare(machine.race(3.0), 1)
    assert found.value == pytest.approx(1.0, abs=1e-3)
    assert found.verdict == "same"


class SharedMachine:
    """Equal models of 10 ms, each as fast as its session and the moment let it be."""

    def __init__(self, seed: int, sessions: float, rounds: float) -> None:
        self.now, self.random = 0.0, np.random.default_rng(seed)
        self.sessions, self.rounds = sessions, rounds

    def clock(self) -> float:
        return self.now

    def load(self) -> object:
        self.now += 0.05
        session = 0.01 * math.exp(self.random.normal(0, self.sessions))
        noise = iter(self.random.exponential(self.rounds, 200))

        def run() -> None:
            self.now += session * (1 + next(noise))

        return run

    def race(self, models: int, seconds: float) -> list[Heat]:
        loads = [self.load] * models
        return race(loads, self.clock, seconds, self.clock, run=0.01, narrow=True)  # type: ignore[arg-type]


def test_small_models_race_in_many_heats_and_in_time() -> None:
    machine = SharedMachine(0, 0.01, 0.05)
    found = machine.race(2, 10.0)
    assert len(found) >= 3 * HEATS
    assert 9.0 < machine.now < 11.0
    assert compare(found, 1).verdict == "same"


def test_who_is_ahead_runs_on_alone() -> None:
    machine = MadeUpRace(1.0, 0.9, 0.8, 0.95)
    loads = [lambda k=k: machine.load(k) for k in range(4)]
    found = race(loads, machine.clock, 96.0, machine.clock, run=1.0, narrow=True)  # type: ignore[arg-type]
    ran = [[bool(times) for times in heat] for heat in found]
    half = len(found) // 2
    assert ran == [[True] * 4] * half + [[True, False, True, False]] * (len(found) - half)
    # Those that fell behind keep what was measured of them.
    assert [compare(found, k).value for k in (1, 2, 3)] == pytest.approx([0.9, 0.8, 0.95])
    assert compare(found, 2).rounds > compare(found, 1).rounds


@pytest.mark.parametrize("models", [2, 4])
def test_equal_models_are_not_called_different(models: int) -> None:
    claims = same = 0
    for seed in range(60):
        found = SharedMachine(seed, 0.015, 0.03).race(models, 12.0)
        verdicts = {compare(found, place).verdict for place in range(1, models)}
        claims += not verdicts.isdisjoint({"faster", "slower"})
        same += "same" in verdicts
    assert claims <= 3
    assert same > 50
