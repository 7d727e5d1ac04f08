"""What the runs of a validation showed of an output, and what they did not.

Two files agree on nothing but NaN, and on a value that no input changes. So an output counts as
compared where half of its values in the ordinary runs can be (they are no NaN, and finite on all
sides or on none), and where two runs of the same sizes gave different ones: by more than a rounding
of its largest value, or nobody could see the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...verify.yardstick import underflow
from .runs import Run
from .verdict import Unseen

Array = npt.NDArray[Any]
_NAN = 2
# An output of which fewer values than this share can be compared counts as not compared.
_LEAST_SHARE = 0.5

Sizes = tuple[tuple[int, ...], ...]


@dataclass
class _Seen:
    """What was seen of one output: over the ordinary runs, and in the first run of each size."""

    values: int = 0
    usable: int = 0
    varies: bool = False
    first: dict[Sizes, Array] = field(default_factory=dict)
    finite: dict[Sizes, Array] = field(default_factory=dict)


class Coverage:
    """Collects, run by run, what was seen of each output of the reference."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._outputs: dict[str, _Seen] = {}
        self._empty_runs: list[str] = []

    def note(
        self, run: Run, name: str, wide: Array, original: Array, found: Mapping[str, Array]
    ) -> bool:
        """One output in one run: float64, the original, each runtime. Whether any is comparable."""
        seen = self._outputs.setdefault(name, _Seen())
        sizes = tuple(array.shape for array in run.feeds.values())
        if sizes not in seen.first and _told(wide).any():
            seen.first[sizes] = wide
        seen.varies = seen.varies or self._differs(seen.first.get(sizes, wide), wide)
        usable = _told(wide)
        for value in (original, *found.values()):
            if value.shape == usable.shape:
                usable = usable & (_kinds(value) == _kinds(wide))
        if run.ordinary:
            seen.values += wide.size
            seen.usable += int(usable.sum())
            known = seen.finite.get(sizes)
            alike = known is not None and known.shape == usable.shape
            seen.finite[sizes] = usable | known if alike else usable
        return bool(usable.any())

    def said_nothing(self, run: str) -> None:
        """No output of a run with a user's own values had a finite number in it."""
        self._empty_runs.append(run)

    def unseen(self, fixed: Callable[[], frozenset[str]]) -> Iterator[Unseen]:
        """What was not compared; `fixed` gives the outputs that no input need move."""
        for run in self._empty_runs:
            yield Unseen(f"on {run} nothing finite comes out", decides=True)
        for name, seen in self._outputs.items():
            if not seen.values:
                yield Unseen(f"output {name} is empty in every run", decides=True)
            elif not seen.usable:
                yield Unseen(f"output {name} has no finite value in any run", decides=True)
            elif seen.usable < _LEAST_SHARE * seen.values:
                share = f"{seen.usable} of {seen.values}"
                yield Unseen(f"of output {name}, {share} values are finite alone", decides=True)
            elif not seen.varies and name not in fixed():
                yield Unseen(f"output {name} is the same whatever goes in", decides=True)
            else:
                yield from self._never_finite(name, seen)

    def _never_finite(self, name: str, seen: _Seen) -> Iterator[Unseen]:
        masks = max(seen.finite.values(), key=lambda mask: mask.size)
        missing = masks.size - int(masks.sum())
        if missing:
            yield Unseen(f"{missing} of {masks.size} values of output {name} are never finite")

    def _differs(self, first: Array, value: Array) -> bool:
        if first.shape != value.shape:
            return True
        if value.dtype.kind != "f":
            return not np.array_equal(first, value)
        if (_kinds(first) != _kinds(value)).any():
            return True
        both = np.isfinite(first) & np.isfinite(value)
        before, after = first[both], value[both]
        peak = max(float(np.abs(v).max(initial=0.0)) for v in (before, after))
        step = max(torch.finfo(self._dtype).eps / 2 * peak, underflow(self._dtype))
        return bool((np.abs(after - before) > step).any())


def _told(value: Array) -> Array:
    """What can be compared: all but NaN."""
    told: Array = _kinds(value) != _NAN
    return told


def _kinds(value: Array) -> Array:
    """0 for a number, 1 and -1 for the infinities, 2 for NaN."""
    if value.dtype.kind != "f":
        return np.zeros(value.shape, int)
    found: Array = np.where(np.isinf(value), np.sign(value), 0.0)
    return np.where(np.isnan(value), _NAN, found)
