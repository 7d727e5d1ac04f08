"""Every row of the table of rules on a real model, traced and exported: folded or kept, equal."""

import copy
from itertools import product

import pytest
import torch
from torch import nn

from groupfx.passes import FoldPermutations
from groupfx.rewriting import Pipeline, Result
from tests.folding.rows import rows
from tests.thinning import one_in

ROWS = rows()


def folded(model: nn.Module, shape: tuple[int, ...], way: str) -> Result:
    """The model folded, and checked in float64 against the model itself, beside what it checks."""
    x = torch.randn(shape, dtype=torch.float64)
    model = copy.deepcopy(model).double().eval()
    result = Pipeline([FoldPermutations()])(model, x, way=way)
    with torch.no_grad():
        expected, found = model(x), result.model(x)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()
    return result


NOT_EXPORTED = {"fake quantization"}
# torch.export takes no model with it.


@pytest.mark.parametrize(
    ("way", "name"), [*product(["trace"], ROWS), *one_in(4, product(["export"], ROWS))]
)
def test_a_row_keeps_the_function(way: str, name: str) -> None:
    if way == "export" and name in NOT_EXPORTED:
        pytest.skip("torch.export does not take it")
    model, shape, all_gone = ROWS[name]
    (fold,) = folded(model, shape, way).report.folds
    assert fold.after.moved <= fold.before.moved
    assert fold.before.count >= 1
    if all_gone:
        assert fold.after.count == 0, [str(kept) for kept in fold.kept]
