"""What the times of interleaved runs say of two models: a ratio, its interval, and a verdict.

A heat gives one ratio: what disturbs a run makes it longer and never shorter, so that a model's
time is the mean of the smaller half. The interval is that of the mean of the logarithms of the
heats' ratios, by Student's t: it holds what differs from session to session. Equivalence is shown
by two one-sided tests (Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from scipy.special import stdtrit

Verdict = Literal["faster", "slower", "same", "cannot tell"]

Heat = list[list[float]]
"""Seconds of each model in each round; nothing for one that did not run."""

# A model raced against itself must not be called another more than 5 times in 100.
_CONFIDENCE = 0.98
# Two one-sided tests at 5 % each are an interval of 90 % within the bounds.
_OF_EQUIVALENCE = 0.90
_EQUIVALENT = 0.02
# Smaller ones are not worth another form.
_LEAST_CLAIMED = 0.005


@dataclass(frozen=True)
class Ratio:
    """Time by that of a reference: the mean, and an interval of 98 % confidence.

    `faster` and `slower` are claimed where the whole interval is more than 0.5 % away from 1,
    `same` where two one-sided tests at 5 % show that it is within 2 % of it.
    """

    value: float
    low: float
    high: float
    rounds: int
    verdict: Verdict

    def __str__(self) -> str:
        if self.rounds == 0:
            return f"{self.value:.2f}"
        if not math.isfinite(self.high):
            return f"{self.value:.2f} (no interval)"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data; an interval without an end is None."""
        ends = [end if math.isfinite(end) else None for end in (self.low, self.high)]
        return {**vars(self), "low": ends[0], "high": ends[1]}


def ratio_of(data: Mapping[str, Any]) -> Ratio | None:
    """What `to_dict` wrote of a ratio with an interval; None for anything else."""
    try:
        value, low, high = (float(data[name]) for name in ("value", "low", "high"))
        rounds, verdict = data["rounds"], data["verdict"]
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    told = isinstance(rounds, int) and rounds > 0 and verdict in get_args(Verdict)
    return Ratio(value, low, high, rounds, verdict) if told and 0 < low <= value <= high else None


def settled(races: Collection[Ratio]) -> bool:
    """Whether a race has told: something is faster, or whoever ran to its end is not.

    Who fell behind by half-time cannot tell for itself, and need not.
    """
    if any(ratio.verdict == "faster" for ratio in races):
        return True
    most = max((ratio.rounds for ratio in races), default=0)
    return all(r.verdict != "cannot tell" for r in races if r.rounds == most)


UNTOUCHED = Ratio(1.0, 1.0, 1.0, 0, "same")
"""What is untouched takes as long as itself."""


def compare(heats: Sequence[Heat], place: int, reference: int = 0) -> Ratio:
    """The ratio of the model at `place` to the one at `reference`."""
    logs = _logs(heats, place, reference)
    low, high = _interval(logs, _CONFIDENCE)
    inner = _interval(logs, _OF_EQUIVALENCE)
    rounds = sum(len(heat[place]) for heat in heats)
    return Ratio(math.exp(statistics.fmean(logs)), low, high, rounds, _verdict(low, high, inner))


def mean_log(heats: Sequence[Heat], place: int) -> float:
    """The mean of the logarithms of the ratios of heats."""
    return statistics.fmean(_logs(heats, place, 0))


def _logs(heats: Sequence[Heat], place: int, reference: int) -> list[float]:
    """Of the heats that both ran in."""
    both = ((heat[place], heat[reference]) for heat in heats)
    return [math.log(lower_half(own) / lower_half(other)) for own, other in both if own and other]


def _verdict(low: float, high: float, inner: tuple[float, float]) -> Verdict:
    if high < 1 - _LEAST_CLAIMED:
        return "faster"
    if low > 1 + _LEAST_CLAIMED:
        return "slower"
    if inner[0] > 1 - _EQUIVALENT and inner[1] < 1 + _EQUIVALENT:
        return "same"
    return "cannot tell"


def lower_half(values: Sequence[float]) -> float:
    """The mean of the smaller half of `values`."""
    kept = sorted(values)[: (len(values) + 1) // 2]
    return sum(kept) / len(kept)


def _interval(logs: Sequence[float], confidence: float) -> tuple[float, float]:
    """The interval of the ratio; without ends where there are too few heats for one."""
    number = len(logs)
    if number < 2:
        return 0.0, math.inf
    error = statistics.stdev(logs) / math.sqrt(number)
    reach = float(stdtrit(number - 1, (1 + confidence) / 2)) * error
    middle = statistics.fmean(logs)
    return math.exp(middle - reach), math.exp(middle + reach)
