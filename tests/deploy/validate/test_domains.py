"""What a validation feeds: scalars, integers over their whole range, masks, each side's dtypes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import groupfx
from groupfx.deploy import OnnxSide, TorchSide, read_onnx
from groupfx.deploy.validate.domain import Domain, guessed_domain
from groupfx.deploy.validate.picking import read_domains
from groupfx.running.inputs import ExampleInputs
from tests.deploy.validate.small_files import numbers, value, write

NODE = helper.make_node
INT = TensorProto.INT64


def test_a_sample_holds_both_ends() -> None:
    drawn = Domain(0, 96).sample((3, 5), np.random.default_rng(0))
    assert (drawn.min(), drawn.max()) == (0, 96)
    assert Domain(2, 7).sample((), np.random.default_rng(0)).shape == ()


def test_a_mask_is_ones_and_zeros_behind_them() -> None:
    mask = guessed_domain("attention_mask", "i").sample((50, 6), np.random.default_rng(0))
    assert set(mask.sum(1)) == set(range(1, 7))
    assert (np.diff(mask, axis=1) <= 0).all()


def picking(path: Path, table: np.ndarray, *, through: bool = True) -> Path:
    """An embedding of `ids`, behind operators that move them, and a convolution of it."""
    nodes = [
        NODE("Unsqueeze", ["ids", "axis"], ["i"]),
        NODE("Cast", ["i"], ["j"], to=TensorProto.INT32),
        NODE("Squeeze", ["j", "axis"], ["k"]),
        NODE("Gather", ["table", "k" if through else "ids"], ["e"], name="embed"),
        NODE("Transpose", ["e"], ["t"], perm=[0, 2, 1]),
        NODE("Conv", ["t", "w"], ["y"], name="conv", group=2, pads=[1, 1]),
    ]
    held = {"table": table, "axis": np.array([0]), "w": numbers(8, 2, 3)}
    return write(path, nodes, [value("ids", ["N", 6], INT)], [value("y", None)], held)


def test_ids_are_drawn_from_the_whole_table(tmp_path: Path) -> None:
    table = numbers(97, 4, seed=3)
    path = picking(tmp_path / "m.onnx", table)
    found = read_domains(OnnxSide("m", read_onnx(path)))["ids"]
    assert (found.low, found.high, found.source) == (0, 96, "embed")
    assert groupfx.validate(path, path).verdict == "same"
    wrong = table.copy()
    wrong[50:] *= 1.01
    other = groupfx.validate(path, picking(tmp_path / "w.onnx", wrong))
    assert other.verdict == "different"


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(61, 4)
        self.conv = nn.Conv1d(4, 6, 3, groups=2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.conv(self.table(ids.unsqueeze(0).squeeze(0)).transpose(1, 2))


def test_ids_of_a_torch_model_go_beyond_the_example(tmp_path: Path) -> None:
    model, ids = Embedded().eval(), torch.zeros(2, 9, dtype=torch.int64)
    side = TorchSide.of(model, ExampleInputs.of(ids), "net")
    assert read_domains(side)["ids"].high == 60
    groupfx.export(model, (ids,), tmp_path / "m.onnx")
    assert groupfx.validate(model, tmp_path / "m.onnx", (ids,)).ok
    proto = onnx.load(tmp_path / "m.onnx")
    (held,) = [t for t in proto.graph.initializer if list(t.dims) == [61, 4]]
    array = numpy_helper.to_array(held).copy()
    array[1:] *= 1.5
    held.CopyFrom(numpy_helper.from_array(array, held.name))
    onnx.save(proto, tmp_path / "w.onnx")
    assert groupfx.validate(model, tmp_path / "w.onnx", (ids,)).verdict == "different"


def scalar(path: Path, kind: int, *, wrong: bool = False) -> Path:
    """A convolution, and a scalar: a length to cut at, a scale, or a flag with two branches."""
    first = NODE("Conv", ["x", "w"], ["c"], name="conv", group=3, pads=[2, 2])
    if kind == INT:
        rest = [
            NODE("Range", ["zero", "s", "one"], ["r"]),
            NODE("Gather", ["c", "r"], ["y"], axis=2),
        ]
    elif kind == TensorProto.FLOAT:
        rest = [NODE("Mul", ["c", "s"], ["y"])]
    else:
        made = [
            helper.make_graph([NODE(op, ["c"], [out])], out, [], [value(out, None)])
            for op, out in (("Relu", "a"), ("Abs" if wrong else "Neg", "b"))
        ]
        rest = [NODE("If", ["s"], ["y"], then_branch=made[0], else_branch=made[1])]
    held = {"w": numbers(12, 4, 5), "zero": np.int64(0), "one": np.int64(1)}
    inputs = [value("x", ["N", 12, 16]), value("s", [], kind)]
    return write(path, [first, *rest], inputs, [value("y", None)], held)


@pytest.mark.parametrize("kind", [INT, TensorProto.FLOAT, TensorProto.BOOL])
def test_scalars_stay_scalars(kind: int, tmp_path: Path) -> None:
    path = scalar(tmp_path / "m.onnx", kind)
    found = groupfx.validate(path, path)
    assert found.verdict == "same", found.blame
    guessed = "nothing says which integers s takes: 1 to 4 are guessed"
    assert (guessed in found.notes) is (kind == INT)


def test_both_values_of_a_flag_are_tried(tmp_path: Path) -> None:
    path = scalar(tmp_path / "m.onnx", TensorProto.BOOL)
    wrong = scalar(tmp_path / "w.onnx", TensorProto.BOOL, wrong=True)
    assert groupfx.validate(path, wrong).verdict == "different"


class TwoDtypes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.one, self.two = nn.Conv2d(6, 10, 3), nn.Conv2d(10, 15, 3, groups=5)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu())


@pytest.mark.parametrize("pair", [("float32", "float16"), ("float16", "float32")])
def test_two_files_of_other_dtypes(pair: tuple[str, str], tmp_path: Path) -> None:
    model, x = TwoDtypes().eval(), torch.randn(2, 6, 9, 7)
    for dtype in pair:
        groupfx.export(model, (x,), tmp_path / f"{dtype}.onnx", dtype=dtype)
    first, second = (tmp_path / f"{dtype}.onnx" for dtype in pair)
    found = groupfx.validate(first, second)
    assert found.verdict == "same", found.blame
    assert found.dtype == "float16"
    with torch.no_grad():
        model.two.weight[4, 1] *= -1
    groupfx.export(model, (x,), second, dtype=pair[1], overwrite=True)
    wrong = groupfx.validate(first, second)
    assert wrong.first_site is not None
    assert wrong.first_site.name == "two"
