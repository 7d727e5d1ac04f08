"""Models that are raced as they are, on a clock that is made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from groupfx.errors import UsageError
from groupfx.tuning import race_models
from groupfx.tuning.backends import Profile, Program


@dataclass
class Slept:
    """A runtime whose models are what a run takes, in seconds, and what it gives."""

    noise: float = 0.001
    name: str = "slept"
    now: float = 0.0
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(3))

    def require(self) -> None: ...

    def version(self) -> str:
        return "1"

    def wall(self) -> float:
        return self.now

    def packed(self, model: Any) -> Any:
        return model

    def clock(self, threads: int) -> Callable[[], float]:
        return self.wall

    def load(self, model: tuple[float, float], feeds: Any, threads: int) -> Program:
        session = float(np.exp(self.random.normal(0, self.noise)))

        def run() -> Sequence[np.ndarray[Any, Any]]:
            self.now += model[0] * session * (1 + self.random.exponential(self.noise))
            return [np.full(3, model[1], np.float32)]

        return run

    def profile(self, *_: object) -> Profile | None:
        return None


def race(*models: tuple[float, float], noise: float = 0.001, budget: float = 10.0) -> Any:
    backend = Slept(noise)
    return race_models(models, [{}] * len(models), backend, 1, budget, wall=backend.wall)


CASES = {
    "faster": (0.008, 0.001, "faster"),
    "slower": (0.012, 0.001, "slower"),
    "itself": (0.010, 0.001, "same"),
    "noisy": (0.0097, 0.1, "cannot tell"),
}


@pytest.mark.parametrize(("seconds", "noise", "verdict"), CASES.values(), ids=CASES)
def test_a_race_says_what_is_so(seconds: float, noise: float, verdict: str) -> None:
    first, second = race((0.010, 1), (seconds, 1), noise=noise)
    assert first.ratio is None
    assert second.ratio.verdict == verdict
    assert second.ratio.low < seconds / 0.010 < second.ratio.high


def test_percentiles_are_of_single_runs() -> None:
    first, second, third = race((0.010, 1), (0.005, 1), (0.020, 1))
    for raced, seconds in ((first, 0.010), (second, 0.005), (third, 0.020)):
        latency = raced.latency
        assert latency.p50 == pytest.approx(seconds, rel=0.01)
        assert latency.p50 < latency.p90 < latency.p99 < seconds * 1.02
        # There and back in each round, without those that warm up.
        assert latency.runs == 2 * second.ratio.rounds


def test_other_outputs_are_noticed() -> None:
    _, same, other = race((0.01, 1.0), (0.01, 1.0), (0.01, 1.5))
    assert (same.differs, other.differs) == (False, True)


def test_a_budget_in_which_nothing_can_be_compared() -> None:
    with pytest.raises(UsageError, match=r"a budget of 1 s is too small: one run takes 0.5"):
        race((0.5, 1), (0.5, 1), budget=1)
