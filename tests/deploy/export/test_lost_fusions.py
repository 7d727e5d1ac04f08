"""An export says where ONNX Runtime fuses less than in a file with fixed sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import groupfx
from groupfx.deploy.export.constant_sizes import HIDE_SIZES
from groupfx.deploy.export.lost_fusions import _fused, lost_fusions
from groupfx.deploy.running.runtime import Session
from tests.cli.runs import Cli

X = torch.randn(2, 4, 6, 5)
SAID = "ONNX Runtime fuses 0 convolutions with what follows them, and 1 where the sizes are fixed"


class Added(nn.Module):
    """A convolution whose result is added to something."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + 2 * x)


class ShuffledAndAdded(nn.Module):
    """A shuffle in front of what is added: with all sizes open it computes them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        y = x.view(batch, 2, 2, height, width).transpose(1, 2).reshape(batch, 4, height, width)
        return F.relu(self.conv(x) + y)


def left_over(y: Tensor) -> Tensor:
    return y.reshape(-1, 2, 2, 6, 5).transpose(1, 2).reshape(-1, 4, 6, 5)


def in_windows(y: Tensor) -> Tensor:
    batch = y.shape[0]
    return y.view(batch * 2, 2, 6, 5).tanh().view(batch, 4, 6, 5)


def made_larger(y: Tensor) -> Tensor:
    return F.interpolate(y[:, :, ::2, ::2], size=y.shape[2:])


def beside_zeros(y: Tensor) -> Tensor:
    return torch.cat([y, torch.zeros(y.shape[0], 2, 6, 5)], 1)[:, :4]


def counted(y: Tensor) -> Tensor:
    return y.view(y.shape[0], y.numel() // y.shape[0]).tanh().view(-1, 4, 6, 5)


class Summed(nn.Module):
    """A convolution of what something made of the input, and that added to it."""

    def __init__(self, made: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.made = made
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.made(x)
        return F.relu(self.conv(y) + y)


def notes(model: nn.Module, folder: Path, **options: Any) -> list[str]:
    found = groupfx.export(model.eval(), (X,), folder / "m.onnx", overwrite=True, **options).notes
    return [note for note in found if "fuses" in note]


def test_it_is_said_what_open_sizes_cost(tmp_path: Path) -> None:
    (note,) = notes(ShuffledAndAdded(), tmp_path, dynamic_sizes=True)
    assert note.startswith(SAID)
    assert "Shape" in note
    assert "read sizes at run time" in note


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (ShuffledAndAdded(), {}),
        (ShuffledAndAdded(), {"dynamic_batch": False}),
        (Added(), {}),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.ReLU()), {"dynamic_sizes": True}),
    ],
    ids=["batch", "fixed", "nothing computed", "nothing lost"],
)
def test_nothing_is_said_where_nothing_is_lost(
    model: nn.Module, options: dict[str, Any], tmp_path: Path
) -> None:
    assert not notes(model, tmp_path, **options)


@pytest.mark.parametrize("made", [left_over, in_windows, made_larger, beside_zeros, counted])
def test_an_open_batch_costs_no_fusion(made: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    model = Summed(made).eval()
    assert not notes(model, tmp_path)
    file = ir.load(tmp_path / "m.onnx")
    assert str(file.graph.inputs[0].shape[0]) == "batch"
    assert _fused(file) == 1
    for node in file.graph:
        for value in node.outputs[: node.op_type in HIDE_SIZES]:
            value.shape = None
    note = lost_fusions(file, [(2, 4, 6, 5)])
    assert note is not None
    assert note.startswith(SAID)
    x = torch.randn(3, 4, 6, 5)
    (found,) = Session(file, "on", source="m").run({"x": x.numpy()}).values()
    assert torch.allclose(torch.from_numpy(found), model(x), atol=1e-5)


def test_the_model_is_not_changed(tmp_path: Path) -> None:
    notes(ShuffledAndAdded(), tmp_path, dynamic_sizes=True)
    model = ir.load(tmp_path / "m.onnx")
    before = ir.to_proto(model).SerializeToString()
    assert lost_fusions(model, [(2, 4, 6, 5)]) is not None
    assert ir.to_proto(model).SerializeToString() == before


def test_a_user_of_the_command_line_reads_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = Cli(capsys, tmp_path, monkeypatch)
    groupfx.rewrite(ShuffledAndAdded().eval(), (X,), passes=[]).save(tmp_path / "m.pt")
    given = ("export", "m.pt", "--input-shape", "2,4,6,5", "--no-verify")
    done = cli(*given, "--dynamic-sizes", "-o", "open.onnx")
    assert done.code == 0, done.err
    assert SAID in done.out
    assert SAID not in cli(*given, "-o", "m.onnx").out
