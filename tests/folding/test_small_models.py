"""Networks that shuffle channels, folded: what is gathered before and after is counted."""

import pytest
import torch

from groupfx.passes import FoldPermutations
from groupfx.rewriting import Pipeline
from tests.folding.small_models import MODELS

# Permutations and bytes a sample, before and after. A shuffle between two convolutions in groups
# mixes the groups: it cannot go, and moves through a depthwise one to where it costs no more.
COUNTED = {
    "ShuffleNet v1": ((2, 2880), (2, 2880)),
    "ShuffleNet v2": ((2, 5760), (1, 2880)),
    "IGC": ((4, 11520), (3, 8640)),
    "MENet": ((2, 2880), (2, 2880)),
    "DiCENet": ((2, 17280), (2, 17280)),
    "CondenseNet": ((4, 17280), (3, 13440)),
    "by hand": ((6, 10800), (0, 0)),
}


def test_each_model_is_counted() -> None:
    assert COUNTED.keys() == MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_a_small_model_keeps_its_function(name: str) -> None:
    model = MODELS[name]().double().eval()
    x = torch.randn(2, 3, 6, 10, dtype=torch.float64)
    made = Pipeline([FoldPermutations()])(model, x, way="trace")
    (fold,) = made.report.folds
    found = [(side.count, side.moved) for side in (fold.before, fold.after)]
    assert tuple(found) == COUNTED[name]
    with torch.no_grad():
        expected, given = model(x), made.model(x)
    assert (expected - given).abs().max() <= 1e-12 * expected.abs().max()


def test_a_copy_between_the_views_of_a_shuffle_does_not_hide_it() -> None:
    """`contiguous()` once ended the view: no shuffle of a ShuffleNet was seen at all."""
    model = MODELS["ShuffleNet v2"]().double().eval()
    x = torch.randn(2, 3, 6, 10, dtype=torch.float64)
    (fold,) = Pipeline([FoldPermutations()])(model, x, way="export").report.folds
    assert fold.before.count == 2
