"""What a run leaves behind where it is asked to: nothing, also if it fails."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import groupfx
from groupfx.errors import ModelError
from groupfx.running.unchanged import seed_torch, unchanged


class CountsThenFails(nn.Module):
    """As an observer in front of a layer that does not take every size."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        self.sizes.append(len(x))
        return x[:3].view(3)


def test_a_run_is_undone_whether_it_fails_or_not() -> None:
    model = CountsThenFails()
    with pytest.raises(RuntimeError), unchanged(model):
        model(torch.zeros(2))
    with unchanged(model):
        model(torch.zeros(5))
        assert model.seen == 1
    assert model.seen == 0
    assert model.sizes == []


@pytest.mark.parametrize("way", ["trace", "modules", "export"])
def test_no_seed_is_left_for_a_device_that_is_used_later(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`torch.manual_seed` would leave ours, and the one that the caller has left would be lost."""
    left: list[int] = []
    for device in (torch.cuda, torch.xpu, torch.mtia):
        monkeypatch.setattr(device, "manual_seed_all", left.append)
    torch.manual_seed(7)
    theirs = len(left)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Dropout())
    groupfx.rewrite(model, torch.randn(2, 4, 5, 5), way=way)
    assert left == [7] * theirs
    assert theirs


def test_a_device_in_use_is_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", left.append)
    seed_torch(11)
    assert left == [11]
    drawn = torch.rand(3)
    torch.manual_seed(11)
    assert torch.equal(drawn, torch.rand(3))


class SwitchesForItself(nn.Module):
    """Switches all of torch for a part of itself, in which a trace of it ends."""

    def __init__(self, read: Any, write: Any, value: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 1, groups=3)
        self.read, self.write, self.value = read, write, value

    def forward(self, x: Tensor) -> Tensor:
        was = self.read()
        self.write(self.value)
        mean = float(x.mean())
        self.write(was)
        return self.conv(x) * mean


@pytest.mark.parametrize(
    ("read", "write", "value"),
    [
        (torch.is_grad_enabled, torch.set_grad_enabled, False),
        (torch.get_default_dtype, torch.set_default_dtype, torch.float64),
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, 1),
        (torch.is_anomaly_enabled, torch.set_anomaly_enabled, True),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "high"),
    ],
)
def test_settings_of_torch_are_what_they_were(read: Any, write: Any, value: Any) -> None:
    before, model = read(), SwitchesForItself(read, write, value)
    try:
        groupfx.find(model, torch.randn(2, 6, 5, 7))
        assert read() == before
        assert groupfx.rewrite(model, torch.randn(2, 6, 5, 7)).report.verified
        assert read() == before
    finally:
        write(before)


def test_an_export_that_loses_its_input_is_refused() -> None:
    class Graded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 1, groups=3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.func.grad(lambda value: self.conv(value).square().sum())(x)

    with (
        pytest.warns(UserWarning, match="requires gradient"),
        pytest.raises(ModelError, match=r"cannot be exported: torch\.export left a value out"),
    ):
        groupfx.rewrite(Graded(), torch.randn(2, 6, 5, 7), way="export")


class OfEachSample(nn.Module):
    """A dense convolution of each sample, and what is no convolution with a weight for each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 1, groups=3)
        self.scales = nn.Parameter(torch.randn(4, 6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.vmap(lambda scale: (y * scale.square()).relu())(self.scales)


def _level() -> int:
    depth: int = torch._C._functorch.get_dynamic_layer_stack_depth()
    return depth


def test_a_graph_that_fails_in_a_level_of_vmap_leaves_none_open() -> None:
    model, x = OfEachSample(), torch.randn(2, 6, 5, 7)
    graph = torch.export.export(model, (x,)).module(check_guards=False)
    assert isinstance(graph, torch.fx.GraphModule)
    inside = next(node for node in graph.graph.nodes if "square" in node.name)
    inside.args = (*inside.args, "one too many")
    graph.recompile()
    try:
        with pytest.raises(RuntimeError, match="square"), unchanged(graph):
            graph(x)
        assert _level() == 0
        with pytest.raises(RuntimeError, match="square"):
            graph(x)  # without it
        assert _level() == 1
    finally:
        torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(0)


def test_a_model_with_vmap_is_exported_and_validated(tmp_path: Path) -> None:
    model, x = OfEachSample().eval(), torch.randn(2, 6, 5, 7)
    exported = groupfx.export(model, (x,), tmp_path / "m.onnx")
    checked = groupfx.validate(model, tmp_path / "m.onnx", (x,))
    assert exported.sites
    assert checked.ok
    assert _level() == 0
