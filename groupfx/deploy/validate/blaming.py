"""Where a difference comes from, and why two sides cannot be compared: in words, from evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch

from .operator_runs import OperatorReport
from .opinions import EVALUATOR, ON
from .output_checks import OutputCheck, OutputRun, check_output
from .overflow import first_overflow
from .runs import Run
from .sides import Side
from .site_checks import first_and_worst
from .site_work import SiteWork

Feeds = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Evidence:
    """What a validation has seen.

    `failed` says in words which runs failed, `taken` has the runs of an output and a runtime,
    `runs` those by name; `own` gives the feeds of a run by the names of the candidate.
    """

    reference: Side
    candidate: Side
    dtype: torch.dtype
    outputs: Sequence[OutputCheck]
    sites: SiteWork
    operators: OperatorReport
    failed: Sequence[str]
    taken: Mapping[tuple[str, str], Sequence[OutputRun]]
    runs: Mapping[str, Run]
    own: Callable[[Feeds], Feeds]

    def blame(self) -> str:
        """Where the difference comes from, as far as something was seen that shows it."""
        checks = self.sites.checks()
        first, _ = first_and_worst(checks)
        if first is not None:
            number = sum(not check.ok for check in checks)
            more = f" (and {number - 1} more)" if number > 1 else ""
            return f"the site {first.name}{more}: {first.reason}"
        if self.operators.first is not None:
            return str(self.operators.first)
        if self.failed:
            return self.failed[0]
        wrong = [c for c in self.outputs if not c.ok and c.runtime != EVALUATOR]
        if {check.runtime for check in wrong} == {ON}:
            return (
                "ONNX Runtime's graph optimiser: without optimisations the file computes what it "
                "should; run it with them off, or at a lower level, and report the model"
            )
        if all(self._evaluator_agrees(check) for check in wrong):
            return (
                f"ONNX Runtime's kernels: the {EVALUATOR} computes what it should from the same "
                "file on the same inputs"
            )
        return self._place(max(wrong, key=lambda check: check.ratio))

    def why_not(self, decisive: Sequence[str], overflowing: Run | None) -> str:
        """Why the two cannot be compared, and the first node that leaves the range of its dtype."""
        told = "; ".join(decisive)
        if overflowing is None:
            return told
        sides = (
            ("reference", self.reference, overflowing.feeds),
            ("candidate", self.candidate, self.own(overflowing.feeds)),
        )
        found = [
            f"in the {name}, {text}"
            for name, side, feeds in sides
            if (text := first_overflow(side, feeds, self.dtype)) is not None
        ]
        return "; ".join((told, *found))

    def _place(self, worst: OutputCheck) -> str:
        """Where the candidate's values part in the run in which an output is furthest off."""
        run = self.runs[worst.run]
        feeds = self.own(run.feeds)
        if worst.overflows:
            place = first_overflow(self.candidate, feeds, self.dtype)
            if place is not None:
                return f"an overflow: in the candidate, {place}"
        if not self.sites.checks():
            return "unknown: no convolution could be looked at on its own"
        return (
            f"what lies {self.sites.place(run, feeds)}; each convolution computes what it should "
            "from its own input"
        )

    def _evaluator_agrees(self, check: OutputCheck) -> bool:
        """Whether the evaluator ran the very case in which an output is wrong, and is right."""
        same = [run for run in self.taken.get((check.name, EVALUATOR), ()) if run.run == check.run]
        return bool(same) and check_output(check.name, EVALUATOR, same, self.dtype).ok
