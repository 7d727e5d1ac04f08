"""The rule for other precisions and runtimes, at its boundary and from both sides of it."""

import math

import numpy as np
import pytest
import torch

from groupfx.deploy.validate.output_checks import OutputCheck, OutputRun, check_output
from groupfx.verify.yardstick import kind_mismatch, rms, rms_limit, underflow

NAN, INF = math.nan, math.inf
HALF, SINGLE = torch.float16, torch.float32
UNIT = {HALF: 2.0**-11, SINGLE: 2.0**-24}


@pytest.mark.parametrize("dtype", [HALF, SINGLE])
@pytest.mark.parametrize(("ordinary", "factor"), [(True, 4), (False, 32)])
def test_the_limit_is_so_many_times_the_error_of_the_original(
    dtype: torch.dtype, ordinary: bool, factor: int
) -> None:
    assert rms_limit(0.25, 1.0, dtype, ordinary=ordinary) == factor * 0.25


@pytest.mark.parametrize("dtype", [HALF, SINGLE])
@pytest.mark.parametrize("ordinary", [True, False])
def test_an_exact_original_leaves_one_rounding_of_the_largest_value(
    dtype: torch.dtype, ordinary: bool
) -> None:
    assert rms_limit(0.0, 3.0, dtype, ordinary=ordinary) == 3 * UNIT[dtype]


def test_below_the_normal_range_rounding_is_not_relative() -> None:
    assert rms_limit(0.0, 0.0, SINGLE, ordinary=True) == underflow(SINGLE) == 2.0**-126
    assert rms_limit(0.0, 0.0, HALF, ordinary=True) == underflow(HALF) == 4 * 2.0**-24


def test_the_root_mean_square() -> None:
    assert rms(np.array([3.0, -4.0, 0.0, 0.0])) == 2.5
    assert rms(np.zeros(0)) == 0.0


# The same rule where it is lived by: an output of a file, over runs in ONNX Runtime.


def judged(share: float, *, ordinary: bool, original: float, dtype: torch.dtype) -> OutputCheck:
    """An output whose original is off by `original` everywhere, the candidate by `share` of that.

    With an exact original, the candidate is off by `share` times u max|y|.
    """
    wide = np.array([1.0, -1.0, 0.5, 0.25])
    off = share * (original or UNIT[dtype])
    # As float64, so that the numbers are those that are meant; the rule takes the dtype by name.
    run = OutputRun("r", ordinary, wide, wide + original, wide - off)
    return check_output("y", "a runtime", [run], dtype)


EDGES = [
    *((True, 2.0**-9, share, ok) for share, ok in ((3.99, True), (4.01, False))),
    *((False, 2.0**-9, share, ok) for share, ok in ((31.9, True), (32.1, False))),
    *((True, 0.0, share, ok) for share, ok in ((0.99, True), (1.01, False))),
    *((False, 0.0, share, ok) for share, ok in ((0.99, True), (1.01, False))),
]


@pytest.mark.parametrize("dtype", [HALF, SINGLE])
@pytest.mark.parametrize(("ordinary", "original", "share", "ok"), EDGES)
def test_an_output_is_judged_by_the_rule(
    dtype: torch.dtype, ordinary: bool, original: float, share: float, ok: bool
) -> None:
    found = judged(share, ordinary=ordinary, original=original, dtype=dtype)
    assert found.ok is ok
    assert ("root-mean-square error" in str(found.reason)) is not ok
    assert found.ratio == pytest.approx(share / ((4 if ordinary else 32) if original else 1))


# Values that are not finite

KINDS = {
    # float64, the original, the candidate, what is wrong
    "nothing": (1.0, 1.0, 1.0, None),
    "nan where it is finite": (1.0, 1.0, NAN, "has NaN in 1 of 2 values that are finite"),
    "infinity where it is finite": (1.0, 1.0, INF, "has infinity in 1 of 2 values that are finite"),
    "the original overflows as well": (1.0, INF, INF, None),
    "both infinite": (INF, INF, INF, None),
    "the other infinity": (INF, INF, -INF, "has -infinity instead of infinity in 1 of 2 values"),
    "nan for infinity": (INF, INF, NAN, "has NaN instead of infinity in 1 of 2 values"),
    "finite for nan": (NAN, NAN, 1.0, "has finite instead of NaN in 1 of 2 values"),
    # 60,000 may overflow in float16 by rounding; 1,000 may not.
    "near the end of the range, as the original": (60000.0, INF, INF, None),
    "near the end of the range, unlike it": (
        *(60000.0, 60000.0, INF),
        "has infinity instead of finite in 1 of 2 values",
    ),
    "well inside the range": (
        *(1000.0, 1000.0, INF),
        "has infinity in 1 of 2 values that are finite",
    ),
}


@pytest.mark.parametrize(("wide", "original", "candidate", "wrong"), KINDS.values(), ids=KINDS)
def test_kinds(wide: float, original: float, candidate: float, wrong: str | None) -> None:
    values = (np.array([2.0, value]) for value in (wide, original, candidate))
    assert kind_mismatch(*values, HALF) == wrong
