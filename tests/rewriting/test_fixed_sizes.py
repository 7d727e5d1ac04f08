"""What an export fixes to the size of the example is told as that, with what to do."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import groupfx
from groupfx.errors import MismatchError


class PaddedByItsSize(nn.Module):
    """As the ports of TensorFlow's models pad."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, stride=2, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        down = 1 if height % 2 == 0 else max(3 - height % 2, 0)
        right = 1 if width % 2 == 0 else max(3 - width % 2, 0)
        padding = (right // 2, right - right // 2, down // 2, down - down // 2)
        return self.conv(F.pad(x, padding)).relu()


@pytest.mark.long
def test_a_padding_that_an_export_fixed_is_named() -> None:
    with pytest.raises(MismatchError, match=r"has shape .* opened by torch.export, .*nn.ZeroPad2d"):
        groupfx.rewrite(PaddedByItsSize().eval(), torch.randn(2, 4, 9, 12), target="plinio")
