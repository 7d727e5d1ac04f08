"""Is what a tool computed the answer of the case?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ...verify.bounds import bound_ratio
from ...verify.yardstick import kind_mismatch
from ..kit import Answer, Case
from ..kit.known import Array
from .adapter import Outputs

Verdict = Literal["pass", "fail", "refused", "crash", "time", "skipped"]
VERDICTS: tuple[Verdict, ...] = ("pass", "fail", "refused", "crash", "time", "skipped")
# What a tool answers for: a refusal is honest, and what nobody could judge is not its fault.
WRONG: tuple[Verdict, ...] = ("fail", "crash", "time")


@dataclass(frozen=True)
class Judged:
    """A case and what came of it; `ratio` is the worst error by its bound, 1 being allowed."""

    case: str
    kind: str
    verdict: Verdict
    reason: str = ""
    ratio: float | None = None
    seconds: float = 0.0


def judge(case: Case, outputs: Outputs) -> tuple[Verdict, str, float | None]:
    """Compare every output with its answer: verdict, reason, and the worst error by its bound."""
    if len(outputs) != len(case.answers):
        return "fail", f"{len(outputs)} sets of outputs instead of {len(case.answers)}", None
    worst = 0.0
    for answers, found in zip(case.answers, outputs, strict=True):
        for answer in answers:
            problem = _other_kind(answer, found)
            if problem:
                return "fail", problem, None
            ratio = _ratio(answer, found[answer.name])
            if ratio > 1:
                return "fail", _difference(answer, found[answer.name]), ratio
            worst = max(worst, ratio)
    return "pass", "", worst


def _other_kind(answer: Answer, found: Mapping[str, Array]) -> str | None:
    """What is wrong before any number is compared."""
    if answer.name not in found:
        return f"there is no output {answer.name}"
    array = found[answer.name]
    if array.shape != answer.value.shape:
        return f"shape {list(array.shape)} instead of {list(answer.value.shape)}"
    if array.dtype.name != answer.dtype:
        return f"{array.dtype.name} instead of {answer.dtype}"
    if not np.issubdtype(array.dtype, np.floating):
        return None
    return kind_mismatch(
        answer.value, answer.value, array.astype(np.float64), getattr(torch, answer.dtype)
    )


def _ratio(answer: Answer, array: Array) -> float:
    tensors = (answer.value, array.astype(np.float64), answer.bound)
    return bound_ratio(*(torch.from_numpy(np.asarray(each)) for each in tensors))


def _difference(answer: Answer, array: Array) -> str:
    error = np.abs(array.astype(np.float64) - answer.value) - answer.bound
    place = np.unravel_index(int(error.argmax()), error.shape)
    where = [int(i) for i in place]
    count = int((error > 0).sum())
    return (
        f"{float(array[place]):.6g} instead of {float(answer.value[place]):.6g} at {where}, "
        f"{count} of {error.size} numbers"
    )
