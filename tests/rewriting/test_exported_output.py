"""`.pt2` files for users of torch.export: the rewritten model, exported, checked, and written."""

from pathlib import Path

import pytest
import torch
from torch import nn

import groupfx
from groupfx.errors import FileError, ModelError
from tests.models import zoo

X = torch.randn(2, 6, 11, 7)


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(6, 9, 3, groups=3), nn.BatchNorm2d(9), nn.ReLU()).eval()


@pytest.mark.parametrize("way", ["trace", "modules", "export"])
def test_what_torch_reads_back_is_the_rewritten_model(way: str, tmp_path: Path) -> None:
    model = net()
    result = groupfx.rewrite(model, (X,), way=way)
    result.save_exported(tmp_path / "net.pt2")
    program = torch.export.load(tmp_path / "net.pt2")
    convs = [n for n in program.graph.nodes if n.target is torch.ops.aten.conv2d.default]
    assert len(convs) == 3
    for batch in (2, 5):
        x = torch.randn(batch, 6, 13, 8)
        assert torch.equal(program.module()(x), result.model(x))


def test_an_existing_file_needs_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_text("mine")
    result = groupfx.rewrite(net(), (X,))
    with pytest.raises(FileError, match="groupfx did not write it"):
        result.save_exported(path)
    assert path.read_text() == "mine"
    result.save_exported(path, overwrite=True)
    assert torch.export.load(path).graph is not None


def test_a_model_that_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    case = zoo.CASES["branches-on-data"]
    result = groupfx.rewrite(case.build(), case.inputs())
    with pytest.raises(ModelError, match=r"torch\.export does not take the rewritten model"):
        result.save_exported(tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []
