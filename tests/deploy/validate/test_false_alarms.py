"""What is right is not called wrong, and what is wrong does not hide: ties, overflow, columns."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from groupfx.deploy.validate.output_checks import OutputRun, check_output

HALF, SINGLE = torch.float16, torch.float32
Pairs = Sequence[tuple[np.ndarray, np.ndarray]]


def integers(found: list[int], nearby: list[list[int]]) -> bool:
    wide = np.array([3, 7, 7, 1])
    pairs: Pairs = [(np.array(n), np.array(n)) for n in nearby]
    run = OutputRun("r", True, wide, wide, np.array(found), nearby=lambda: pairs)
    return check_output("y", "a runtime", [run], SINGLE).ok


@pytest.mark.parametrize(
    ("found", "nearby", "ok"),
    [
        ([3, 7, 7, 1], [], True),
        ([3, 5, 7, 1], [[3, 5, 7, 1], [3, 7, 7, 1]], True),
        # Nobody gives 6, and the original never moves elsewhere.
        ([3, 6, 7, 1], [[3, 5, 7, 1], [3, 7, 7, 1]], False),
        ([5, 7, 7, 1], [[3, 5, 7, 1], [3, 7, 7, 1]], False),
        ([3, 5, 7, 1], [], False),
    ],
    ids=["equal", "a tie", "another value", "another place", "no tie"],
)
def test_integers_are_judged_by_ties(found: list[int], nearby: list[list[int]], ok: bool) -> None:
    assert integers(found, nearby) is ok


def overflowing(candidate_lost: int, original_lost: int, *, flipped: bool = False) -> bool:
    """An output near the end of float16, of which so many values overflow."""
    wide = np.linspace(50000, 66000, 64)
    original, candidate = (np.minimum(wide, 65504.0) for _ in range(2))
    original[:original_lost] = np.inf
    candidate[-candidate_lost:] = np.inf if not flipped else -np.inf
    run = OutputRun("r", True, wide, original, candidate)
    return check_output("y", "a runtime", [run], HALF).ok


def test_an_overflow_is_counted_and_not_matched_value_by_value() -> None:
    assert overflowing(10, 8)
    assert not overflowing(50, 2)
    assert not overflowing(10, 8, flipped=True)


def boxes_and_scores(off: float) -> bool:
    generator = np.random.default_rng(0)
    boxes = generator.uniform(0, 640, (1, 4, 100))
    wide = np.concatenate([boxes, generator.uniform(0, 1, (1, 3, 100))], axis=1)
    unit = 2.0**-24
    original = wide * (1 + unit * generator.standard_normal(wide.shape))
    candidate = wide * (1 + unit * generator.standard_normal(wide.shape))
    candidate[:, 4:] *= 1 + off
    # As a kernel that rounds everything to the largest value: the boxes alone set the limit.
    original[:, :4] += 1e-2 * generator.standard_normal(boxes.shape)
    run = OutputRun("r", True, wide, original, candidate)
    return check_output("y", "a runtime", [run], SINGLE).ok


def test_scores_beside_boxes_are_judged_by_themselves() -> None:
    assert boxes_and_scores(0.0)
    assert not boxes_and_scores(0.01)


@pytest.mark.parametrize(
    ("moves", "ordinary", "ok"),
    [
        (0.5, False, True),
        (0.5, True, False),
        (1e-6, False, False),
        (0.0, False, False),
    ],
    ids=["a tie of its own", "on ordinary inputs", "hardly moved", "not moved"],
)
def test_a_tie_that_the_candidate_alone_meets_is_none_of_its_faults(
    moves: float, ordinary: bool, ok: bool
) -> None:
    """As a gate that large values saturate: one kernel's rounding opens it, another's does not."""
    wide = np.linspace(1.0, 2.0, 64)
    original = wide * (1 + 1e-7)
    candidate = wide + 0.5
    shifted = [candidate.copy() for _ in range(5)]
    shifted[3] -= moves
    run = OutputRun(
        "large",
        ordinary,
        wide,
        original,
        candidate,
        nearby=lambda: [(wide, original)],
        moved=lambda: shifted,
    )
    assert check_output("y", "a runtime", [run], SINGLE).ok is ok
