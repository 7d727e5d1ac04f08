"""A Pad of zeros in front of a max pool, which ONNX Runtime would take for minus infinity."""

from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import groupfx


class PaddedPool(nn.Module):
    """All values are negative, so each border window has a 0 of the padding as its maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(-self.conv(x).abs() - 1, (1, 1, 1, 0))
        return F.max_pool2d(y, 3)


def test_zeros_in_front_of_a_max_pool_stay_zeros(tmp_path: Path) -> None:
    model, x = PaddedPool().eval(), torch.randn(2, 4, 8, 7)
    path = tmp_path / "m.onnx"
    groupfx.export(model, (x,), path)
    (pad,) = (node for node in onnx.load(path).graph.node if node.op_type == "Pad")
    assert [*pad.input[3:]] == ["pad.axes"]
    assert groupfx.validate(model, path, (x,)).ok


def test_in_an_older_opset_the_optimiser_is_named(tmp_path: Path) -> None:
    model, x = PaddedPool().eval(), torch.randn(2, 4, 8, 7)
    path = tmp_path / "m.onnx"
    groupfx.export(model, (x,), path, opset=17)
    check = groupfx.validate(model, path, (x,))
    assert not check.ok
    assert "ONNX Runtime's graph optimiser" in str(check.to_dict()["blame"])
