"""The small inputs of a check: searched for once, and few sizes are tried."""

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import groupfx
from groupfx.running.inputs import ExampleInputs
from groupfx.verify import compare_models, small_inputs


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 3, 224, 224), [(84, 56), (160, 96), (32, 96), (256, 288), (224, 224)]),
        ((2, 64, 80), [(30,), (32,), (80,)]),
        ((2, 6, 9, 7), [(6, 3), (9, 7)]),
        ((2, 5), [(3,), (5,)]),
    ],
)
def test_small_sizes_are_few_and_none_comes_twice(
    shape: tuple[int, ...], expected: list[tuple[int, ...]]
) -> None:
    example = ExampleInputs.of(torch.zeros(shape))
    assert [each.spatial for each in small_inputs(example)] == expected


def test_a_size_that_is_known_ends_the_search() -> None:
    model, example = nn.Conv2d(4, 4, 3, padding=1), ExampleInputs.of(torch.randn(2, 4, 11, 13))
    small = ExampleInputs.of(torch.ones(1, 4, 5, 3))
    verdict = compare_models(model, model, example, once=True, small=small)
    assert verdict.runs == (((1, 4, 5, 3),),)


class Picky(nn.Module):
    """Takes multiples of 32 alone, and notes what it refuses."""

    refused: ClassVar[list[tuple[int, ...]]] = []

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=2)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        if any(size % 32 for size in x.shape[2:]):
            self.refused.append(tuple(x.shape))
            raise ValueError("multiples of 32")
        y: Tensor = self.conv(x)
        return y * scale


def test_no_size_is_tried_twice_in_a_rewrite() -> None:
    Picky.refused.clear()
    report = groupfx.rewrite(Picky(), (torch.randn(2, 4, 64, 64),)).report
    assert Picky.refused == [(1, 4, 24, 16)]
    assert report.model.runs == (((1, 4, 32, 32),),)
    assert report.sites[0].observable
