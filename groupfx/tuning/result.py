"""What a tuning gives: the model, its plan, and what the race said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .backends import session_text
from .plan_file import TuningPlan
from .ratios import Ratio


@dataclass(frozen=True)
class Tuning:
    """A tuned model: its plan, and what it takes by the time of the untouched one.

    `model` is an ONNX graph, or a module of torch for backends that run those. `ratio` is None
    where a plan was applied and nothing measured. `races` has every model that ran against the
    untouched one. `changed` counts the sites that are not as they were.
    """

    model: Any
    plan: TuningPlan
    ratio: Ratio | None
    races: Mapping[str, Ratio]
    changed: int
    notes: tuple[str, ...]

    @property
    def untouched(self) -> bool:
        """Whether no site was changed."""
        return not self.changed

    @property
    def summary(self) -> str:
        """Such as `0.93 (0.92 to 0.94) x the time of the untouched model (...); 9 of 17 sites`."""
        plan = self.plan
        parts = (
            f"{plan.backend} {plan.version}",
            _threads(plan.threads),
            session_text(plan.session),
        )
        where = ", ".join(part for part in parts if part)
        changed = f"{self.changed} of {_sites(len(plan.sites))} changed"
        if self.ratio is None:
            return f"a plan was applied, nothing was measured; {changed}"
        if not self.untouched:
            return f"{self.ratio} x the time of the untouched model ({where}); {changed}"
        if not plan.sites:
            return "untouched: no site can be executed in another way"
        told = [f"{name} {ratio}: {ratio.verdict}" for name, ratio in self.races.items()]
        why = f" ({'; '.join(told)})" if told else ""
        return f"untouched: nothing is provably faster{why} ({where})"


def _threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"


def _sites(number: int) -> str:
    return "1 site" if number == 1 else f"{number} sites"
