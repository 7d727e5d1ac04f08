"""The files of an export: weights beside it, what may be replaced, and nothing half written."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import groupfx
from groupfx.errors import FileError, ModelError
from tests.deploy.exported_model import assert_clean, assert_computes

X = torch.ones(2, 6, 13)


def net() -> nn.Module:
    """One weight large enough to lie outside (99 x 2 x 3 floats), one that is not."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv1d(6, 99, 3, groups=3), nn.ReLU(), nn.Conv1d(99, 1, 1)).eval()


# Weights in a second file


def test_weights_beside_the_file(tmp_path: Path) -> None:
    model, path = net(), tmp_path / "net.onnx"
    export = groupfx.export(model, X, path, external_data=True)
    assert [file.suffix for file in export.files] == [".onnx", ".data"]
    assert sorted(tmp_path.iterdir()) == sorted(export.files)
    stored = onnx.load(path, load_external_data=False)
    places = {
        entry.value
        for tensor in stored.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert places == {export.files[1].name}
    assert path.stat().st_size < 99 * 2 * 3 * 4 <= export.files[1].stat().st_size
    assert_clean(*export.files)
    assert_computes(path, model, X)
    verdict = groupfx.validate(model, path, X)
    assert verdict.ok, verdict.blame


@pytest.mark.long
def test_weights_beside_the_file_are_the_same_bytes_and_move_along(tmp_path: Path) -> None:
    texts = []
    for folder in (tmp_path / "one", tmp_path / "other"):
        folder.mkdir()
        export = groupfx.export(net(), X, folder / "net.onnx", external_data=True)
        texts.append([file.read_bytes() for file in export.files])
    assert texts[0] == texts[1]
    (tmp_path / "one").rename(tmp_path / "moved")
    assert_computes(tmp_path / "moved" / "net.onnx", net(), X)


@pytest.mark.long
def test_both_kinds_of_file_hold_the_same_model(tmp_path: Path) -> None:
    one, two = tmp_path / "one.onnx", tmp_path / "two.onnx"
    groupfx.export(net(), X, one)
    groupfx.export(net(), X, two, external_data=True)
    held = [
        {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
        for path in (one, two)
    ]
    assert held[0].keys() == held[1].keys()
    assert all(np.array_equal(held[0][name], held[1][name]) for name in held[0])


# What is replaced


@pytest.mark.long
def test_a_file_of_ours_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    groupfx.export(nn.Conv1d(6, 3, 1, groups=3), X, path)
    groupfx.export(net(), X, path)
    assert_computes(path, net(), X)


def test_a_file_of_someone_else_is_not(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"mine")
    with pytest.raises(FileError, match="exists: choose another name, or replace it"):
        groupfx.export(net(), X, path)
    assert path.read_bytes() == b"mine"
    groupfx.export(net(), X, path, overwrite=True)
    assert_computes(path, net(), X)
    assert list(tmp_path.iterdir()) == [path]


def test_weights_of_someone_else_are_not_replaced(tmp_path: Path) -> None:
    data = tmp_path / "m.onnx.data"
    data.write_bytes(b"mine")
    groupfx.export(net(), X, tmp_path / "m.onnx", external_data=True)
    assert len(list(tmp_path.iterdir())) == 3
    assert data.read_bytes() == b"mine"


PLACES: dict[str, tuple[str, str]] = {
    "a-folder": ("folder", "is a folder: name a file in it"),
    "no-folder": ("nowhere/m.onnx", "nowhere"),
    "below-a-file": ("file/m.onnx", "file"),
}


@pytest.mark.parametrize("external", [False, True], ids=["one-file", "external"])
@pytest.mark.parametrize(("place", "message"), PLACES.values(), ids=PLACES)
def test_a_place_that_cannot_be_written(
    place: str, message: str, external: bool, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileError, match=message):
        groupfx.export(nn.Conv1d(6, 3, 1), X, tmp_path / place, external_data=external)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(FileError):
            groupfx.export(net(), X, tmp_path / "m.onnx")
        assert not list(tmp_path.iterdir())
    finally:
        tmp_path.chmod(0o700)


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    groupfx.export(nn.Conv1d(6, 3, 1), X, path)
    before = path.read_bytes()

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FileError, match="No space left"):
        groupfx.export(net(), X, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# What cannot be exported


@torch.library.custom_op("groupfx_tests::odd", mutates_args=())
def odd(x: Tensor) -> Tensor:
    return x * 3


@odd.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Odd(nn.Module):
    """Calls an operator that ONNX has no translation of."""

    def forward(self, x: Tensor) -> Tensor:
        return odd(x)


class BodyAndHead(nn.Module):
    """The operator lies in `head.odd`."""

    def __init__(self, odd_one: nn.Module) -> None:
        super().__init__()
        self.body = nn.Conv1d(6, 9, 3, groups=3)
        self.head = nn.Sequential()
        self.head.add_module("odd", odd_one)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class ChoosesByValue(nn.Module):
    """Control flow that depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x


class Shaped(nn.Module):
    """A size that depends on values, which no convolution takes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(int(x.sum().item()), -1)


def test_an_operator_that_the_exporter_does_not_know(tmp_path: Path) -> None:
    message = r"does not know the operator groupfx_tests\.odd.* \(in head\.odd\): replace it"
    with pytest.raises(ModelError, match=message):
        groupfx.export(BodyAndHead(Odd()), X, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [ChoosesByValue, Shaped], ids=["branching", "shaped"])
def test_control_flow_on_values(kind: type[nn.Module], tmp_path: Path) -> None:
    message = (
        "torch.export does not take BodyAndHead: .*depends on values of tensors cannot be exported"
    )
    with pytest.raises(ModelError, match=message):
        groupfx.export(BodyAndHead(kind()), X, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_a_failed_export_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    groupfx.export(nn.Conv1d(6, 3, 1), X, path)
    before = path.read_bytes()
    with pytest.raises(ModelError, match="groupfx_tests"):
        groupfx.export(BodyAndHead(Odd()), X, path)
    assert path.read_bytes() == before
