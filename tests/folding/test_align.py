"""Blocks that begin at multiples of a number: zeros in the weights around them, nothing else."""

import copy
from itertools import accumulate, pairwise
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import groupfx
from groupfx.api.onnx import rewrite_onnx
from groupfx.errors import UsageError
from groupfx.folding.fold import Fold
from groupfx.nn import ChannelGather
from groupfx.passes import FoldPermutations
from groupfx.rewriting import Pipeline, Result
from tests.folding.pruned import randomised
from tests.folding.rows import permutation

BLOCKS = (5, 6, 2)
INPUT = (2, 3, 7, 5)


class BlockReader(nn.Module):
    """conv -> norm -> depthwise -> function -> permutation -> a convolution for each block."""

    def __init__(self, function: str) -> None:
        super().__init__()
        self.function = function
        self.first, self.norm = nn.Conv2d(3, 13, 3), nn.BatchNorm2d(13)
        self.depthwise = nn.Conv2d(13, 13, 3, padding=1, groups=13)
        self.order = ChannelGather(permutation(13, 5))
        self.blocks = nn.ModuleList(nn.Conv2d(n, 3, 3, padding=1) for n in BLOCKS)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.norm(self.first(x)))
        y = getattr(torch, self.function)(y.square() + 0.5 if self.function == "log" else y)
        y = self.order(y)
        return self.read(y)

    def read(self, y: Tensor) -> Tensor:
        """A convolution for each block of `y`."""
        ends = list(accumulate(BLOCKS, initial=0))
        parts = [y[:, first:last] for first, last in pairwise(ends)]
        return torch.cat([conv(part) for conv, part in zip(self.blocks, parts, strict=True)], 1)


def aligned(model: nn.Module, align: int = 4, way: str = "trace") -> tuple[Fold, Result]:
    """Folded with `align`, and equal to the model in float64."""
    x = torch.randn(INPUT, dtype=torch.float64)
    model = copy.deepcopy(model).double()
    result = Pipeline([FoldPermutations(align=align)])(model, x, way=way)
    with torch.no_grad():
        expected, found = model(x), result.model(x)
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()
    return result.report.folds[0], result


@pytest.mark.parametrize("way", ["trace", "export"])
@pytest.mark.parametrize("function", ["relu", "sigmoid"])
def test_blocks_begin_at_multiples(function: str, way: str) -> None:
    model = randomised(BlockReader(function))
    fold, result = aligned(model, way=way)
    assert fold.after.count == 0
    # 5, 6, 2 become 8, 8, 4: 7 filters of the convolution and of the depthwise one.
    assert fold.padding == 2 * 7
    assert "padding: 14 filters of zeros" in fold.describe()
    shapes = {key: tuple(value.shape[:2]) for key, value in result.model.state_dict().items()}
    assert shapes["first.weight"] == (20, 3)
    assert [shapes[f"blocks.{k}.weight"] for k in range(3)] == [(3, 8), (3, 8), (3, 4)]
    whole = result.state_dict_map.to_original()
    assert all(torch.equal(whole[key], value) for key, value in model.double().state_dict().items())


@pytest.mark.parametrize("align", [1, 20])
def test_what_begins_there_gets_no_more_than_it_must(align: int) -> None:
    fold, _ = aligned(randomised(BlockReader("relu")), align)
    assert fold.padding == (0 if align == 1 else 2 * (60 - 13))


def test_no_zero_becomes_infinite() -> None:
    """log(0): columns of zeros would make NaN of it."""

    class Logarithm(BlockReader):
        def forward(self, x: Tensor) -> Tensor:
            y = self.order(torch.log(self.norm(self.first(x)).square()))
            return self.read(y)

    fold, _ = aligned(randomised(Logarithm("log")))
    assert fold.padding == 0


def test_an_output_of_the_model_gets_none() -> None:
    class Shown(BlockReader):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            y = self.first(x)
            return y, super().forward(x)

    model = randomised(Shown("relu"))
    x = torch.randn(INPUT)
    result = Pipeline([FoldPermutations(align=4)])(model, x)
    assert result.model(x)[0].shape == model(x)[0].shape


def test_in_a_file(tmp_path: Path) -> None:
    model = randomised(BlockReader("sigmoid"))
    groupfx.export(model, torch.randn(INPUT), tmp_path / "whole.onnx")
    made = rewrite_onnx(
        tmp_path / "whole.onnx", tmp_path / "out.onnx", passes=["fold-permutations:align=4"]
    )
    assert made.rewrite.folds[0].padding == 14
    file = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(file, full_check=True)
    (depthwise,) = [
        attribute.i
        for node in file.graph.node
        for attribute in node.attribute
        if attribute.name == "group" and attribute.i > 1
    ]
    assert depthwise == 20
    found = groupfx.validate(model, tmp_path / "out.onnx", torch.randn(INPUT))
    assert found.ok, found.blame


def test_a_number_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match="align=0"):
        FoldPermutations(align=0)
