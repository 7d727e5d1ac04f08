"""Exporting: the same bytes each time, nothing of the machine, BatchNorm, the model kept."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import groupfx
from groupfx.verify import Fingerprint
from tests.deploy.exported_model import assert_clean, assert_computes, operators, run_onnx, secrets
from tests.models import zoo
from tests.models import zoo_models as zm
from tests.models import zoo_traps as traps

SPLIT = ["split-grouped-conv"]


def net(**norm: Any) -> nn.Module:
    """A grouped convolution with a BatchNorm behind it that has seen data."""
    model = nn.Sequential(nn.Conv2d(6, 9, (3, 2), groups=3), nn.BatchNorm2d(9, **norm), nn.ReLU())
    zoo.give_statistics(model)
    return model.eval()


def image(batch: int = 2) -> Tensor:
    return torch.randn(batch, 6, 11, 7)


# The same bytes


class Refuses(nn.Module):
    """A forward that no symbolic trace takes, so that its modules are swapped."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 9, 3, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 6:
            raise ValueError("wants 6 channels")
        return self.conv(x)


WAYS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "trace": (net, (2, 6, 11, 7)),
    "export": (traps.BranchesOnShape, (2, 6, 11, 7)),
    "modules": (Refuses, (2, 6, 13)),
}


@pytest.mark.parametrize(
    "way", ["trace", *(pytest.param(way, marks=pytest.mark.long) for way in ("export", "modules"))]
)
def test_a_result_its_model_and_its_file_give_the_same_bytes(way: str, tmp_path: Path) -> None:
    make, shape = WAYS[way]
    model, x = make(), torch.randn(shape)
    result = groupfx.rewrite(model, x, passes=SPLIT, way=way)
    assert result.report.way == way
    result.save(tmp_path / "saved.pt")
    loaded = groupfx.load(tmp_path / "saved.pt", make() if way == "modules" else None)
    texts = []
    for number, source in enumerate((result, result.model, loaded)):
        path = tmp_path / f"{number}.onnx"
        export = groupfx.export(source, x, path)
        assert all(site.form == "split into 3" for site in export.sites)
        assert export.sites
        texts.append(path.read_bytes())
    assert texts[0] == texts[1]
    assert texts[0] == texts[2]
    assert_computes(tmp_path / "0.onnx", model, x)


SCRIPT = """
import sys
import torch
from network import Net
import groupfx

torch.manual_seed(7)
model = Net()
x = torch.randn(2, 6, 13)
groupfx.export(model, x, "model.onnx", passes=["split-grouped-conv"], external_data=True)
"""
NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(6, 99, 3, groups=3)
        self.parts = nn.ModuleDict({name: nn.Conv1d(99, 5, 1) for name in ("left", "right")})

    def forward(self, x):
        y = self.conv(x)
        return {name: part(y) for name, part in self.parts.items()}
"""


@pytest.mark.long
def test_two_folders_and_two_processes_give_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for number, seed in enumerate(("1", "977")):
        folder = tmp_path / f"a_folder_of_someone_{number}"
        folder.mkdir()
        (folder / "network.py").write_text(NETWORK)
        (folder / "script.py").write_text(SCRIPT)
        root = str(Path(groupfx.__file__).resolve().parents[1])
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root}
        subprocess.run([sys.executable, "script.py"], cwd=folder, env=environment, check=True)
        paths = [folder / "model.onnx", *folder.glob("model.onnx.*.data")]
        found.append([path.read_bytes() for path in paths])
        assert all(b"a_folder_of_someone" not in data for data in found[-1])
        assert_clean(*paths)
    assert found[0] == found[1]
    assert len(found[0][1]) > 99 * 2 * 3 * 4


@pytest.mark.long
def test_a_second_export_gives_the_same_bytes(tmp_path: Path) -> None:
    model, x = net(), image()
    paths = [tmp_path / "one.onnx", tmp_path / "other.onnx"]
    for path in paths:
        groupfx.export(model, x, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


# Nothing of the machine


def test_the_exporter_writes_what_we_strip(tmp_path: Path) -> None:
    """The search is first given a file that torch wrote, and must find its traces."""
    path = tmp_path / "torch.onnx"
    program = torch.onnx.export(net(), (image(),), dynamo=True, verbose=False)
    assert program is not None
    program.save(path)
    data = path.read_bytes()
    assert any(secret.encode() in data for secret in secrets())
    with pytest.raises(AssertionError):
        assert_clean(path)


class UserBlock(nn.Module):
    """Its source is a file of a user: this one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 9, 3, groups=3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        low, high = y.chunk(2, dim=2) if y.shape[2] % 2 == 0 else y.split([4, 5], dim=2)
        return torch.where(low > 0, low, -low), high.softmax(1)


@pytest.mark.parametrize(
    "external",
    [pytest.param(False, id="one-file", marks=pytest.mark.long), pytest.param(True, id="external")],
)
def test_the_file_tells_nothing_of_the_machine(external: bool, tmp_path: Path) -> None:
    export = groupfx.export(
        UserBlock().eval(), image(), tmp_path / "m.onnx", passes=SPLIT, external_data=external
    )
    assert_clean(*export.files)
    proto = onnx.load(export.path)
    assert (proto.producer_name, proto.producer_version) == ("groupfx", groupfx.__version__)
    marks = {e.key for node in proto.graph.node for e in node.metadata_props}
    assert marks == {"groupfx.site", "groupfx.group"}


# BatchNorm


@pytest.mark.parametrize(
    ("transposed", "bias"),
    [
        pytest.param(False, False, id="conv-no-bias"),
        pytest.param(True, True, id="transposed-bias"),
        pytest.param(False, True, id="conv-bias", marks=pytest.mark.long),
        pytest.param(True, False, id="transposed-no-bias", marks=pytest.mark.long),
    ],
)
def test_a_batchnorm_is_folded_by_the_formula(transposed: bool, bias: bool, tmp_path: Path) -> None:
    kind = nn.ConvTranspose1d if transposed else nn.Conv1d
    conv, norm = kind(6, 9, 3, groups=3, bias=bias), nn.BatchNorm1d(9, eps=0.1)
    model, path = nn.Sequential(conv, norm).eval(), tmp_path / "m.onnx"
    zoo.give_statistics(model)
    groupfx.export(model, torch.randn(2, 6, 13), path)
    assert operators(path) == ["ConvTranspose" if transposed else "Conv"]
    held = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    gamma, beta, mean, variance = (
        t.detach().double() for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    scale = gamma / (variance + 0.1).sqrt()
    start = conv.bias.detach().double() if bias else torch.zeros(9, dtype=torch.float64)
    weight = conv.weight.detach().double().clone()
    for channel in range(9):
        if transposed:  # [in, out / groups, taps]: 2 inputs and 3 outputs a group
            group, place = divmod(channel, 3)
            weight[2 * group : 2 * group + 2, place] *= scale[channel]
        else:
            weight[channel] *= scale[channel]
    expected = {"0.weight": weight, "0.bias": scale * (start - mean) + beta}
    assert held.keys() == expected.keys()
    for name, value in expected.items():
        assert np.array_equal(held[name], value.float().numpy()), name


@pytest.mark.parametrize("mean", [0.0, 0.5])
def test_a_bias_of_zeros_is_left_out(mean: float, tmp_path: Path) -> None:
    conv, norm = nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
    nn.init.constant_(conv.bias, 0.5)
    assert norm.running_mean is not None
    nn.init.constant_(norm.running_mean, mean)
    model, x, path = nn.Sequential(conv, norm).eval(), torch.randn(2, 4, 5, 6), tmp_path / "m.onnx"
    groupfx.export(model, (x,), path)
    (node,) = onnx.load(path).graph.node
    assert len(node.input) == (2 if mean == 0.5 else 3)
    assert len(onnx.load(path).graph.initializer) == len(node.input) - 1
    assert_computes(path, model, x)


def test_a_batchnorm_that_float16_cannot_hold_folded_stays(tmp_path: Path) -> None:
    model, path = net(eps=1e-10), tmp_path / "m.onnx"
    with torch.no_grad():
        model[0].weight.fill_(1e-3)
        model[0].bias.fill_(3.0)
        model[1].running_var.fill_(1e-10)
        model[1].running_mean.zero_()
    export = groupfx.export(model, image(), path, dtype="float16")
    assert operators(path) == ["Conv", "BatchNormalization", "Relu"]
    assert any("BatchNormalization stays" in note for note in export.notes)
    path.unlink()
    groupfx.export(model, image(), path, dtype="float32")
    assert operators(path) == ["Conv", "Relu"]


@pytest.mark.long
def test_a_batchnorm_that_others_look_behind_stays(tmp_path: Path) -> None:
    case = zoo.CASES["bn-and-skip"]
    groupfx.export(case.build(), case.inputs(), tmp_path / "m.onnx")
    assert operators(tmp_path / "m.onnx").count("BatchNormalization") == 1


# Modes, and the model that was given


@pytest.mark.parametrize("changed", ["norm", pytest.param("all", marks=pytest.mark.long)])
def test_train_mode_is_left_and_said(changed: str, tmp_path: Path) -> None:
    model, x = net(), image(3)
    expected = model(x)
    (model if changed == "all" else model[1]).train()
    before = Fingerprint.of(model)
    export = groupfx.export(model, x, tmp_path / "m.onnx")
    assert [note for note in export.notes if "train mode" in note]
    assert before.changes(model) == ()
    assert model[1].training
    found = run_onnx(tmp_path / "m.onnx", x)[0]
    assert np.abs(found - expected.detach().numpy()).max() < 1e-5
    model.eval()
    (tmp_path / "m.onnx").unlink()
    assert not groupfx.export(model, x, tmp_path / "m.onnx").notes


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "split": {"passes": SPLIT},
    "float16": {"dtype": "float16"},
}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=() if name == "split" else pytest.mark.long)
        for name, options in OPTIONS.items()
    ],
)
def test_the_model_is_not_touched(options: dict[str, Any], tmp_path: Path) -> None:
    model = zm.ResNeXtNet().train()
    model.layer1[0].bn1.eval()
    model.fc.weight.requires_grad_(False)
    handle = model.stem.register_forward_hook(zm.scale_output)
    x = torch.randn(2, 3, 17, 19)
    before, seen = Fingerprint.of(model), torch.get_rng_state()
    groupfx.export(model, x, tmp_path / "m.onnx", **options)
    assert before.changes(model) == ()
    assert torch.equal(torch.get_rng_state(), seen)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert list(model.stem._forward_hooks) == [handle.id]
