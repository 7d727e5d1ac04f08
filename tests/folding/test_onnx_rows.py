"""Every row of the table of rules in ONNX, in the spellings of several producers: same values."""

import pytest

from tests.folding.onnx_graphs import AROUND, OnnxRow, folded, model
from tests.folding.onnx_rows import rows

ROWS = rows()


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_a_file_keeps_the_function(name: str, around: str) -> None:
    row: OnnxRow = ROWS[name]
    (fold,) = folded(model(row, around), exact=row.exact, check=not row.old).folds
    assert fold.before.count >= (1 if around in ("down", "up") else 2)
    assert fold.after.moved <= fold.before.moved
    if around != "kept":
        gone = row.carries in ("both", around) or (around == "between" and row.carries != "never")
        assert (fold.after.count == 0) == gone, [str(kept) for kept in fold.kept]
