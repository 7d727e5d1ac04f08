"""Convolutions group by group in copied memory: the same function, and no wrong split gets by."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groupfx.passes import SplitGroupedConv
from groupfx.rewriting import Pipeline
from groupfx.verify.aligned import AlignedConvs

CASES = {
    "1d": lambda x, w, b: F.conv1d(x, w, b, groups=3),
    "2d, stride and padding": lambda x, w, b: F.conv2d(x, w, b, 2, 1, 1, 3),
    "3d, dilation, same": lambda x, w, b: F.conv3d(x, w, b, padding="same", dilation=2, groups=3),
    "transposed": lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 1, 1, 3),
    "generic": lambda x, w, b: torch.convolution(x, w, b, [2, 1], [1, 0], [1, 2], False, [0, 0], 3),
    "generic transposed": lambda x, w, b: torch.convolution(
        x, w, b, [2, 1], [1, 0], [1, 2], True, [1, 0], 3
    ),
}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", CASES)
def test_the_same_function(name: str, bias: bool) -> None:
    dims = 1 if name.startswith("1d") else 3 if name.startswith("3d") else 2
    transposed = "transposed" in name
    x = torch.randn(2, 6, *(7, 5, 9)[:dims], dtype=torch.float64)
    shape = (6, 5) if transposed else (15, 2)
    weight = torch.randn(*shape, *(3,) * dims, dtype=torch.float64)
    offset = torch.randn(15, dtype=torch.float64) if bias else None
    expected: Tensor = CASES[name](x, weight, offset)
    with AlignedConvs():
        found: Tensor = CASES[name](x, weight, offset)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-14 * float(expected.abs().max())


def test_a_weight_that_is_off_by_one_ulp_differs() -> None:
    x = torch.randn(2, 6, 7, dtype=torch.float64)
    weight = torch.randn(15, 2, 3, dtype=torch.float64)
    other = weight.clone()
    other[7, 1, 2] = torch.nextafter(other[7, 1, 2], torch.tensor(9.0, dtype=torch.float64))
    with AlignedConvs():
        assert torch.equal(F.conv1d(x, weight, groups=3), F.conv1d(x, weight.clone(), groups=3))
        assert not torch.equal(F.conv1d(x, weight, groups=3), F.conv1d(x, other, groups=3))


def test_a_split_is_identical_however_rows_of_the_weight_lie_in_memory() -> None:
    """Groups of 3 x 9 numbers: on some processors their rows and copies of them differ in BLAS."""
    torch.manual_seed(1)
    for rows in (3, 5, 7):
        model = nn.Conv1d(9, 3 * rows, 3, groups=3).eval()
        result = Pipeline([SplitGroupedConv()])(model, torch.randn(2, 9, 5))
        (site,) = result.report.sites
        assert site.verdict is not None
        assert site.verdict.identical
