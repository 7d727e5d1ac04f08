"""Random ONNX graphs of up to 30 operations, permutations at random places, in float64.

Never other values, and never more bytes gathered than before; the evaluator of onnx judges.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groupfx.deploy.forms.rewrite_onnx import rewrite_graph
from groupfx.folding.fold import Fold
from groupfx.passes import FoldPermutations
from tests.folding.onnx_graphs import outputs
from tests.folding.onnx_programs import OPERATIONS, OnnxProgram, Step

STEP = st.tuples(
    st.sampled_from((*OPERATIONS, "permutation", "permutation", "conv")),
    st.integers(-3, -1),
    st.integers(0, 40),
    st.integers(0, 1000),
)
PROGRAMS = st.lists(STEP, min_size=1, max_size=30)


def check(steps: list[Step], batch: int | str = 2) -> Fold:
    model = OnnxProgram(steps).model(batch=batch)
    found = rewrite_graph(model, [FoldPermutations()])
    (fold,) = found.folds
    assert fold.after.moved <= fold.before.moved
    feeds = {"x": np.random.default_rng(1).normal(size=(2, 3, 4, 6))}
    with np.errstate(all="ignore"):
        sides = [outputs(m, feeds, reference=True, check=False) for m in (model, found.model)]
    for before, after in zip(*sides, strict=True):
        assert before.shape == after.shape
        assert np.isfinite(before).all()
        assert np.abs(before - after).max() <= 1e-9 * max(1, np.abs(before).max())
    return fold


def test_channels_are_concatenated_with_a_tensor_that_was_flipped() -> None:
    """It once failed: an axis of space was taken for that of the channels of all parts."""
    steps = [("flip", -1, 0, 1), ("instance norm", -2, 0, 1), ("concat", -1, 1, 0)]
    for seed in range(4):
        check([(name, first, second, seed) for name, first, second, _ in steps])


@settings(max_examples=40, deadline=None)
@given(PROGRAMS)
def test_random_files(steps: list[Step]) -> None:
    check(steps)


@settings(max_examples=10, deadline=None)
@given(PROGRAMS)
def test_random_files_with_an_open_batch(steps: list[Step]) -> None:
    check(steps, batch="n")


@pytest.mark.long
@settings(max_examples=2000, deadline=None)
@given(PROGRAMS)
def test_many_random_files(steps: list[Step]) -> None:
    check(steps)
