"""Weights that come through operators on constants are looked at like those that are stored."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import groupfx
from tests.deploy.validate.small_files import numbers, value, write

NODE = helper.make_node
Nodes = Sequence[onnx.NodeProto]


def layouts(weight: np.ndarray) -> dict[str, tuple[Nodes, dict[str, np.ndarray]]]:
    """Ways to store a weight [8, 2, 3, 3], and the nodes that give it as `w`."""
    scale = np.float32(0.05)
    whole = np.clip(np.round(weight / scale), -127, 127).astype(np.int8)
    cast = NODE("Cast", ["k"], ["w"], to=TensorProto.FLOAT)
    return {
        "Transpose": (
            [NODE("Transpose", ["k"], ["w"], perm=[3, 2, 0, 1])],
            {"k": weight.transpose(2, 3, 1, 0).copy()},
        ),
        "Reshape": (
            [NODE("Reshape", ["k", "size"], ["w"])],
            {"k": weight.reshape(8, 18), "size": np.array([8, 2, 3, 3])},
        ),
        "Cast": ([cast], {"k": weight.astype(np.float16)}),
        "Mul": ([NODE("Mul", ["k", "two"], ["w"])], {"k": weight / 2, "two": np.float32(2)}),
        "DequantizeLinear": (
            [NODE("DequantizeLinear", ["k", "scale", "zero"], ["w"])],
            {"k": whole, "scale": scale, "zero": np.int8(0)},
        ),
        "two": (
            [NODE("Transpose", ["k"], ["t"], perm=[1, 0]), NODE("Reshape", ["t", "size"], ["w"])],
            {"k": weight.reshape(8, 18).T.copy(), "size": np.array([8, 2, 3, 3])},
        ),
    }


KINDS = tuple(layouts(numbers(8, 2, 3, 3)))


def stored(path: Path, kind: str, weight: np.ndarray) -> Path:
    nodes, held = layouts(weight)[kind]
    conv = NODE("Conv", ["x", "w"], ["c"], name="conv", group=4, pads=[1, 1, 1, 1])
    last = NODE("Relu", ["c"], ["y"])
    inputs = [value("x", ["N", 8, 6, 5])]
    return write(path, [*nodes, conv, last], inputs, [value("y", None)], held)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_weight_is_named_however_it_is_stored(kind: str, tmp_path: Path) -> None:
    weight = numbers(8, 2, 3, 3)
    path = stored(tmp_path / "m.onnx", kind, weight)
    right = groupfx.rewrite_onnx(path, tmp_path / "split.onnx").validation
    assert right is not None
    assert [check.name for check in right.sites] == ["conv"]
    wrong = weight.copy()
    wrong[5, 1, 2, 0] += 0.3
    found = groupfx.validate(path, stored(tmp_path / "w.onnx", kind, wrong))
    assert found.first_site is not None
    assert found.first_site.name == "conv"


@pytest.mark.parametrize("groups", [1, 4])
def test_a_weight_that_an_input_changes_is_told(groups: int, tmp_path: Path) -> None:
    nodes = [
        NODE("Mul", ["k", "s"], ["w"]),
        NODE("Conv", ["x", "w"], ["y"], name="conv", group=groups, pads=[1, 1, 1, 1]),
    ]
    inputs = [value("x", ["N", 8, 6, 5]), value("s", [])]
    held = {"k": numbers(8, 8 // groups, 3, 3)}
    path = write(tmp_path / "m.onnx", nodes, inputs, [value("y", None)], held)
    found = groupfx.validate(path, path)
    assert found.verdict == "same"
    assert found.sites == ()
    assert any("conv" in note and "its weight" in note for note in found.notes)
