"""Outputs of a candidate against float64: how far off, where, and whether that is too far.

The rule is that of `verify.yardstick`. An output of few values may be close by luck, so the
original's error is also taken over all ordinary runs, relative to the largest value of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...errors import UsageError
from ...verify.measures import plain_number
from ...verify.yardstick import ADVERSARIAL_FACTOR, FACTOR, kind_mismatch, rms, rms_limit

Array = npt.NDArray[Any]

# From this share of the largest number on, whether a value overflows is one rounding.
_EDGE = 0.99
# Columns of one output that differ so much in scale are judged one by one, if they are no more
# than so many, with so many values each.
_MIXED_SCALES = 16.0
_MOST_COLUMNS = 512
_LEAST_ROWS = 16


@dataclass(frozen=True)
class OutputRun:
    """One output in one run: float64, the original in the candidate's dtype, the candidate.

    `nearby_rms` is the largest error of the original on inputs that are one rounding away, where
    that was measured. `nearby` runs the original on such inputs: pairs of float64 and the original.
    """

    run: str
    ordinary: bool
    wide: Array
    original: Array
    candidate: Array
    nearby_rms: float = 0.0
    nearby: Callable[[], Sequence[tuple[Array, Array]]] = tuple
    moved: Callable[[], Sequence[Array]] = tuple


@dataclass(frozen=True)
class OutputCheck:
    """One output of the candidate in one runtime, at the worst of all runs.

    `max_abs`, `mean_abs`, `quantile_999` and `rms` are of |candidate - float64|, `max_rel` is
    max|d| / max|y|; `cosine` compares directions, `snr_db` is 20 log10(rms(y) / rms(d)), infinite
    where nothing differs. `index`, `expected` and `found` are those of the worst element.
    `overflows` says that the wrong values are not finite, `adversarial` that this is one run
    whose inputs were made to hurt.
    """

    name: str
    runtime: str
    ok: bool
    run: str = ""
    max_abs: float = 0.0
    max_rel: float = 0.0
    mean_abs: float = 0.0
    quantile_999: float = 0.0
    cosine: float = 1.0
    snr_db: float = math.inf
    rms: float = 0.0
    original_rms: float = 0.0
    limit: float = 0.0
    index: tuple[int, ...] = ()
    expected: float | None = None
    found: float | None = None
    reason: str | None = None

    @property
    def ratio(self) -> float:
        """Error by what is allowed."""
        size = self.max_abs if self.limit_is_absolute else self.rms
        if size == 0:
            return 0.0
        return size / self.limit if self.limit > 0 else math.inf

    limit_is_absolute: bool = False
    overflows: bool = False
    adversarial: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data; a number that is not finite is None."""
        numbers = {k: plain_number(v) for k, v in vars(self).items() if isinstance(v, float)}
        return {**vars(self), "index": list(self.index), **numbers}


def require_outputs(atol: Collection[str], names: Collection[str]) -> None:
    """Raise `UsageError` where a limit is given for an output that is none of `names`."""
    unknown = [name for name in atol if name not in names]
    if unknown and names:
        raise UsageError(
            f"atol is given for {', '.join(unknown)}, and the outputs are "
            f"{', '.join(sorted(names))}"
        )


def check_outputs(
    name: str,
    runtime: str,
    runs: Sequence[OutputRun],
    dtype: torch.dtype,
    *,
    atol: float | None = None,
) -> tuple[OutputCheck, ...]:
    """Judge one output over all runs; with `atol`, those by themselves that it is too small for.

    `atol` is a user's number for values as in the ordinary runs, and holds there as it is given.
    """
    usual = max((_peak(run.wide) for run in runs if run.ordinary), default=0.0)
    larger = [run for run in runs if _scaled(atol, run, usual) != atol]
    plain = [run for run in runs if _scaled(atol, run, usual) == atol]
    given = check_output(name, runtime, runs, dtype, atol=atol, judged=plain)
    rest = (check_output(name, runtime, runs, dtype, atol=atol, judged=[run]) for run in larger)
    return given, *(replace(check, adversarial=True) for check in rest)


def check_output(
    name: str,
    runtime: str,
    runs: Sequence[OutputRun],
    dtype: torch.dtype,
    *,
    atol: float | None = None,
    judged: Sequence[OutputRun] | None = None,
) -> OutputCheck:
    """Judge one output over all runs, or those `judged`; with `atol`, by max|d| against that alone.

    `atol` is meant for values as in the ordinary runs: where adversarial inputs make an output
    larger than that, it grows along. Where a run fails, the original is run again on inputs that
    are one rounding away: by luck it may be close, or on one side of a tie, in one run of it.
    """
    typical = _typical_error(runs)
    usual = max((_peak(run.wide) for run in runs if run.ordinary), default=0.0)
    runs = runs if judged is None else judged
    limits = [_scaled(atol, run, usual) for run in runs]
    checks = [
        _of_run(name, runtime, run, dtype, typical, limit)
        for run, limit in zip(runs, limits, strict=True)
    ]
    # The worst first: one run that nothing excuses decides, and the others need no more work.
    for k in sorted(range(len(runs)), key=lambda k: (checks[k].ok, -checks[k].ratio)):
        if checks[k].ok:
            break
        checks[k] = _again(checks[k], runs[k], dtype, typical, limits[k])
        if not checks[k].ok:
            break
    failed = [check for check in checks if not check.ok]
    worst = max(failed or checks, key=lambda check: check.ratio)
    return replace(worst, ok=not failed)


def _again(
    check: OutputCheck, run: OutputRun, dtype: torch.dtype, typical: float, atol: float | None
) -> OutputCheck:
    """A failed check with what several runs of the original say."""
    nearby = run.nearby()
    if not nearby or atol is not None:
        return check
    if run.wide.dtype.kind != "f":
        return _of_ties(check, run, nearby)
    if any(wide.shape != run.wide.shape for wide, _ in nearby):
        return check
    errors = max(rms_difference(original, wide) for wide, original in nearby)
    again = replace(run, nearby_rms=max(run.nearby_rms, errors))
    found = _of_run(check.name, check.runtime, again, dtype, typical, atol)
    if found.ok or run.ordinary:
        return found
    # What hurts may hurt the candidate alone: its kernels add up in another order, and meet a tie
    # that the original's do not. Then a rounding of its inputs moves it by as much as it is off.
    moved = [value for value in run.moved() if value.shape == run.candidate.shape]
    own = max((rms_difference(value, run.candidate) for value in moved), default=0.0)
    again = replace(again, nearby_rms=max(again.nearby_rms, own * FACTOR / ADVERSARIAL_FACTOR))
    return _of_run(check.name, check.runtime, again, dtype, typical, atol)


def _of_ties(
    check: OutputCheck, run: OutputRun, nearby: Sequence[tuple[Array, Array]]
) -> OutputCheck:
    """Integers that rounding decides: right where the original gives several of them, or that one.

    An index of the largest of two equal scores is right for either.
    """
    given = [run.wide, run.original, *(value for pair in nearby for value in pair)]
    if any(value.shape != run.candidate.shape for value in given):
        return check
    stack = np.stack(given)
    unstable = (stack != stack[0]).any(axis=0)
    known = np.isin(run.candidate, stack)
    wrong = (run.candidate != run.wide) & ~(unstable & known)
    return check if wrong.any() else replace(check, ok=True, max_abs=0.0, reason=None)


def _scaled(atol: float | None, run: OutputRun, usual: float) -> float | None:
    """`atol` for one run: on adversarial inputs it grows with the output, if that is larger."""
    peak = _peak(run.wide)
    if atol is None or run.ordinary or not 0 < usual < peak < math.inf:
        return atol
    return atol * peak / usual


def _peak(values: Array) -> float:
    if values.dtype.kind != "f" or not values.size:
        return 0.0
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max(initial=0.0))


def _typical_error(runs: Sequence[OutputRun]) -> float:
    """The original's error by its largest value, root mean square over the ordinary runs."""
    shares = []
    for run in runs:
        if not run.ordinary or run.wide.dtype.kind not in "fc" or not run.wide.size:
            continue
        wide, original = run.wide.astype(np.float64), run.original.astype(np.float64)
        with np.errstate(all="ignore"):
            share = rms(original - wide) / np.abs(wide).max()
        if math.isfinite(share):
            shares.append(share)
    return math.sqrt(sum(s * s for s in shares) / len(shares)) if shares else 0.0


def _of_run(
    name: str,
    runtime: str,
    run: OutputRun,
    dtype: torch.dtype,
    typical: float,
    atol: float | None,
) -> OutputCheck:
    base = OutputCheck(name, runtime, True, run.run)
    if run.candidate.shape != run.wide.shape:
        shapes = f"{list(run.candidate.shape)} instead of {list(run.wide.shape)}"
        return replace(base, ok=False, max_abs=math.inf, reason=f"has the shape {shapes}")
    if (run.candidate.dtype.kind == "f") != (run.wide.dtype.kind == "f"):
        kinds = f"{run.candidate.dtype} instead of {run.original.dtype}"
        return replace(base, ok=False, max_abs=math.inf, reason=f"has the dtype {kinds}")
    if run.wide.dtype.kind != "f":
        return _exact(base, run)
    wide, original, found = (a.astype(np.float64) for a in (run.wide, run.original, run.candidate))
    kind = _overflow_mismatch(wide, original, found, dtype)
    finite = np.isfinite(wide) & np.isfinite(original) & np.isfinite(found)
    measured = _measured(base, wide, original, found, finite)
    peak = float(np.abs(wide[finite]).max(initial=0.0))
    usual = typical * peak if math.isfinite(peak) else 0.0
    own = max(measured.original_rms, usual, run.nearby_rms)
    limit = rms_limit(own, peak, dtype, ordinary=run.ordinary) if atol is None else atol
    measured = replace(measured, limit=limit, limit_is_absolute=atol is not None)
    if kind is not None:
        return replace(measured, ok=False, overflows=True, reason=kind)
    if measured.ratio > 1:
        return replace(measured, ok=False, reason=_too_far(measured, dtype))
    return measured if atol is not None else _by_column(measured, run, dtype, typical)


def _overflow_mismatch(
    wide: Array, original: Array, found: Array, dtype: torch.dtype
) -> str | None:
    """What is wrong with values that are not finite; see `kind_mismatch`.

    Where the original itself leaves the range of its dtype, which values do so is a matter of
    rounding: as many of the candidate's may that the original keeps, by the factor of all errors.
    """
    lost = np.isfinite(wide) & ~np.isfinite(original)
    edge = np.isfinite(wide) & (np.abs(wide) > _EDGE * torch.finfo(dtype).max)
    if not lost.any() and not edge.any():
        return kind_mismatch(wide, original, found, dtype)
    more = np.isfinite(wide) & np.isfinite(original) & ~np.isfinite(found)
    flipped = np.isinf(found) & np.isfinite(wide) & (np.sign(found) != np.sign(wide)) & edge
    if flipped.any() or (more & ~edge).sum() > FACTOR * lost.sum():
        return kind_mismatch(wide, original, found, dtype) or "overflows where it should not"
    told = ~np.isfinite(wide)
    return kind_mismatch(wide[told], original[told], found[told], dtype) if told.any() else None


def _by_column(
    check: OutputCheck, run: OutputRun, dtype: torch.dtype, typical: float
) -> OutputCheck:
    """The same rule for each column, where columns are of different scale (boxes beside scores).

    What is wrong with small numbers does not show in a root mean square with large ones.
    """
    if not run.ordinary:
        return check
    wide, original, found = (a.astype(np.float64) for a in (run.wide, run.original, run.candidate))
    usable = np.isfinite(wide) & np.isfinite(original) & np.isfinite(found)
    axis = _mixed_axis(np.where(usable, np.abs(wide), 0.0))
    if axis is None:
        return check
    others = tuple(k for k in range(wide.ndim) if k != axis)
    number = np.maximum(usable.sum(axis=others), 1)
    with np.errstate(all="ignore"):
        off = np.sqrt(np.where(usable, (found - wide) ** 2, 0.0).sum(axis=others) / number)
        own = np.sqrt(np.where(usable, (original - wide) ** 2, 0.0).sum(axis=others) / number)
    peaks = np.where(usable, np.abs(wide), 0.0).max(axis=others)
    worst = check
    for column, peak in enumerate(peaks):
        usual = max(float(own[column]), typical * float(peak), run.nearby_rms)
        limit = rms_limit(usual, float(peak), dtype, ordinary=True)
        if off[column] > limit and off[column] / limit > worst.ratio:
            reason = (
                f"has a root-mean-square error of {off[column]:.3g} in column {column} of axis "
                f"{axis}, whose largest value is {peak:.3g}; {limit:.3g} is allowed"
            )
            size = float(off[column])
            worst = replace(check, ok=False, rms=size, limit=limit, reason=reason)
    return worst


def _mixed_axis(magnitudes: Array) -> int | None:
    """The axis whose columns differ most in scale, if they do; the first one is the batch."""
    found = [(_spread(magnitudes, axis), axis) for axis in range(1, magnitudes.ndim)]
    spread, axis = max(found, default=(0.0, 0))
    return axis if spread >= _MIXED_SCALES else None


def _spread(magnitudes: Array, axis: int) -> float:
    """Largest peak of a column by the smallest, 0 where they are too many or too short to tell."""
    columns = magnitudes.shape[axis]
    if not 2 <= columns <= _MOST_COLUMNS or magnitudes.size < _LEAST_ROWS * columns:
        return 0.0
    peaks = magnitudes.max(axis=tuple(k for k in range(magnitudes.ndim) if k != axis))
    seen = peaks[peaks > 0]
    return float(seen.max() / seen.min()) if seen.size else 0.0


def _exact(base: OutputCheck, run: OutputRun) -> OutputCheck:
    wrong = run.candidate != run.wide
    count = int(wrong.sum())
    if not count:
        return base
    place = tuple(int(k) for k in np.argwhere(wrong)[0])
    reason = f"differs in {count} of {wrong.size} values, which are {run.wide.dtype}"
    expected, found = float(run.wide[place]), float(run.candidate[place])
    return replace(
        base, ok=False, max_abs=math.inf, index=place, expected=expected, found=found, reason=reason
    )


def _measured(
    base: OutputCheck, wide: Array, original: Array, found: Array, finite: Array
) -> OutputCheck:
    if not finite.any():
        return base
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.where(finite, np.abs(found - wide), 0.0)
        own = (original - wide)[finite]
        used, y, z = error[finite], wide[finite], found[finite]
        scale, norms = float(np.abs(y).max()), float(np.linalg.norm(y) * np.linalg.norm(z))
        used_rms = rms(used)
        # `+ 0.0`: an integer index of the flat array, the first of equals.
        place = tuple(int(k) for k in np.unravel_index(int(error.argmax()), error.shape))
        return replace(
            base,
            max_abs=float(used.max()),
            max_rel=_share(float(used.max()), scale),
            mean_abs=float(used.mean()),
            quantile_999=float(np.quantile(used, 0.999)),
            cosine=float(y @ z / norms) if norms > 0 else float(not used.any()),
            snr_db=20 * math.log10(rms(y) / used_rms) if used_rms > 0 and y.any() else math.inf,
            rms=used_rms,
            original_rms=rms(own),
            index=place,
            expected=float(wide[place]),
            found=float(found[place]),
        )


def _share(error: float, scale: float) -> float:
    if error == 0:
        return 0.0
    return error / scale if scale > 0 else math.inf


def rms_difference(found: Array, expected: Array) -> float:
    """Root mean square of `found - expected` where both are finite; 0 for what is no float."""
    if found.dtype.kind != "f" or found.shape != expected.shape:
        return 0.0
    with np.errstate(all="ignore"):
        error = found.astype(np.float64) - expected.astype(np.float64)
    return rms(error[np.isfinite(error)])


def _too_far(check: OutputCheck, dtype: torch.dtype) -> str:
    if check.limit_is_absolute:
        return f"is off by {check.max_abs:.3g}; {check.limit:.3g} is allowed"
    return (
        f"has a root-mean-square error of {check.rms:.3g} against float64, where the original in "
        f"{str(dtype).removeprefix('torch.')} has {check.original_rms:.3g}; {check.limit:.3g} is "
        "allowed"
    )
