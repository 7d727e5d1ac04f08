"""Tensors of int32 as indices, which torch takes: what its exporter writes of them is no ONNX."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import groupfx
from groupfx.deploy.export import onnx_graph
from groupfx.errors import ModelError


class Picks(nn.Module):
    """Indices on one axis and on two, beside each other and apart, read and written."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, groups=2, padding=1)
        self.register_buffer("i", torch.tensor([0, 2], dtype=dtype))
        self.register_buffer("j", torch.tensor([1, 3], dtype=dtype))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.conv(x)
        written = y.clone()
        written[:, self.i, self.j] = 1.0
        added = y.index_put((self.i - self.i, self.j), torch.ones(2, 6, 6), accumulate=True)
        return y[:, self.i], y[:, self.i, :, self.j], written, added


def exported(dtype: torch.dtype, path: Path) -> groupfx.Validation:
    model, x = Picks(dtype).eval(), (torch.randn(2, 4, 6, 6),)
    groupfx.export(model, x, path)
    return groupfx.validate(model, path, x)


def test_an_index_of_int32_is_widened(tmp_path: Path) -> None:
    found = exported(torch.int32, tmp_path / "m.onnx")
    assert found.ok, found.blame
    assert {check.name for check in found.outputs} == {f"output_{k}" for k in range(4)}


def test_one_of_int64_stays(tmp_path: Path) -> None:
    exported(torch.int64, tmp_path / "m.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert {"GatherND", "ScatterND"} <= {*kinds}
    assert "Cast" not in kinds


def test_what_torch_writes_wrongly_is_no_fault_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "widen_indices", lambda model: None)
    with pytest.raises(ModelError, match=r"torch's exporter writes no valid ONNX: .*int32"):
        exported(torch.int32, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()
