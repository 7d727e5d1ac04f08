"""Three answers: same, different, and two that cannot be compared. Never a yes about nothing."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

import groupfx
from groupfx.deploy import OnnxSide, TorchSide, ValidationOptions, read_onnx, validate_sides
from groupfx.errors import NotComparableError
from groupfx.running.inputs import ExampleInputs
from tests.deploy.validate.small_files import numbers, value, write

NODE = helper.make_node
IMAGE = value("x", ["N", 8, 6, 5])


def conv_and(path: Path, *nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("y",)) -> Path:
    """A grouped convolution that gives `c`, and what lies behind it."""
    held = {"w": numbers(8, 2, 3, 3), "zero": np.float32(0), "nan": np.float32(np.nan)}
    kinds = dict.fromkeys(outputs, TensorProto.FLOAT) | {"size": TensorProto.INT64}
    if nodes[-1].op_type == "NonZero":
        kinds["y"] = TensorProto.INT64
    first = NODE("Conv", ["x", "w"], ["c"], name="conv", group=4, pads=[1, 1, 1, 1])
    return write(path, [first, *nodes], [IMAGE], [value(n, None, kinds[n]) for n in outputs], held)


VACUOUS = {
    "NaN": ([NODE("Add", ["c", "nan"], ["y"])], "output y has no finite value in any run"),
    "constant": (
        [NODE("Mul", ["c", "zero"], ["y"])],
        "output y is the same whatever goes in",
    ),
    "saturated": (
        [
            NODE("Abs", ["c"], ["a"]),
            NODE("Neg", ["a"], ["b"]),
            NODE("Relu", ["b"], ["y"]),
        ],
        "output y is the same whatever goes in",
    ),
    "empty": (
        [NODE("Greater", ["zero", "c"], ["g"]), NODE("Not", ["g"], ["h"]),
         NODE("And", ["g", "h"], ["n"]), NODE("NonZero", ["n"], ["y"])],
        "output y is empty in every run",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", VACUOUS)
def test_two_that_say_nothing_are_not_the_same(case: str, tmp_path: Path) -> None:
    nodes, reason = VACUOUS[case]
    path = conv_and(tmp_path / "m.onnx", *nodes)
    found = groupfx.validate(path, path)
    assert found.verdict == "not comparable"
    assert not found.ok
    assert found.unseen == (reason,)
    assert str(found.blame).startswith(reason)
    assert found.to_dict()["verdict"] == "not comparable"


def test_one_output_that_says_nothing_beside_one_that_does(tmp_path: Path) -> None:
    nodes = [NODE("Mul", ["c", "zero"], ["blind"]), NODE("Relu", ["c"], ["y"])]
    path = conv_and(tmp_path / "m.onnx", *nodes, outputs=("y", "blind"))
    found = groupfx.validate(path, path)
    assert found.verdict == "not comparable"
    assert found.blame == "output blind is the same whatever goes in"


def test_what_depends_on_sizes_alone_is_compared(tmp_path: Path) -> None:
    """Anchors of a detector: constants, and what is made of the input's shape."""
    nodes = [
        NODE("Relu", ["c"], ["y"]),
        NODE("Shape", ["c"], ["size"]),
        NODE("Identity", ["zero"], ["anchors"]),
    ]
    path = conv_and(tmp_path / "m.onnx", *nodes, outputs=("y", "size", "anchors"))
    assert groupfx.validate(path, path).verdict == "same"


class Anchors(nn.Module):
    """The same of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, groups=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return y, torch.arange(y.shape[-1]).float()


def test_what_depends_on_sizes_alone_is_compared_in_torch() -> None:
    found = groupfx.validate(Anchors().eval(), Anchors().eval(), (torch.randn(2, 4, 7, 9),))
    assert found.verdict == "different"  # the weights are others: the checker can say no
    model = Anchors().eval()
    assert groupfx.validate(model, model, (torch.randn(2, 4, 7, 9),)).verdict == "same"


def test_values_that_are_never_finite_are_told(tmp_path: Path) -> None:
    holes = np.zeros((1, 8, 1, 1), np.float32)
    holes[:, 3] = np.nan
    nodes = [NODE("Constant", [], ["h"], value=onnx.numpy_helper.from_array(holes)),
             NODE("Add", ["c", "h"], ["y"])]  # fmt: skip
    found = groupfx.validate(*[conv_and(tmp_path / "m.onnx", *nodes)] * 2)
    assert found.verdict == "same"
    (told,) = found.unseen
    number, _, rest = told.partition(" of ")
    total = int(rest.split()[0])
    assert (8 * int(number), rest) == (total, f"{total} values of output y are never finite")


def test_data_of_nothing_but_nan(tmp_path: Path) -> None:
    path = conv_and(tmp_path / "m.onnx", NODE("Relu", ["c"], ["y"]))
    np.savez(tmp_path / "nan.npz", x=np.full((2, 8, 6, 5), np.nan, np.float32))
    np.savez(tmp_path / "fine.npz", x=numbers(2, 8, 6, 5))
    assert groupfx.validate(path, path, data=tmp_path / "fine.npz").ok
    found = groupfx.validate(path, path, data=tmp_path / "nan.npz")
    assert (found.verdict, found.blame) == ("not comparable", "on data nothing finite comes out")


def test_what_is_different_is_different_all_the_same(tmp_path: Path) -> None:
    nodes = [NODE("Mul", ["c", "zero"], ["blind"]), NODE("Relu", ["c"], ["y"])]
    path = conv_and(tmp_path / "m.onnx", *nodes, outputs=("y", "blind"))
    nodes[1] = NODE("Abs", ["c"], ["y"])
    wrong = conv_and(tmp_path / "w.onnx", *nodes, outputs=("y", "blind"))
    assert groupfx.validate(path, wrong).verdict == "different"


def half(path: Path, far: float) -> Path:
    """A convolution in float32, and what it gives so `far` away, in float16."""
    held = {"w": numbers(8, 2, 3, 3), "far": np.float32(far)}
    nodes = [
        NODE("Conv", ["x", "w"], ["c"], name="conv", group=4, pads=[1, 1, 1, 1]),
        NODE("Add", ["c", "far"], ["d"], name="away"),
        NODE("Cast", ["d"], ["y"], name="narrow", to=TensorProto.FLOAT16),
    ]
    return write(path, nodes, [IMAGE], [value("y", None, TensorProto.FLOAT16)], held)


def test_a_file_that_overflows_everywhere_is_not_compared_and_its_node_named(
    tmp_path: Path,
) -> None:
    fine = half(tmp_path / "fine.onnx", 1.0)
    assert groupfx.validate(fine, fine).verdict == "same"
    path = half(tmp_path / "over.onnx", 1e6)
    found = groupfx.validate(path, path)
    assert found.verdict == "not comparable"
    assert "in the reference, node narrow (Cast) is the first to give infinity" in str(found.blame)
    assert "in the candidate, node narrow (Cast) is the first to give infinity" in str(found.blame)
    with pytest.raises(NotComparableError, match="node narrow"):
        groupfx.rewrite_onnx(path, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_a_candidate_that_alone_overflows_is_different_and_its_node_named(tmp_path: Path) -> None:
    fine, over = half(tmp_path / "fine.onnx", 1.0), half(tmp_path / "over.onnx", 1e6)
    found = groupfx.validate(fine, over)
    assert found.verdict == "different"
    assert "in the candidate, node narrow (Cast) is the first to give infinity" in str(found.blame)


def test_a_constant_that_left_its_range_is_named(tmp_path: Path) -> None:
    fine, over = half(tmp_path / "fine.onnx", 1.0), half(tmp_path / "over.onnx", np.inf)
    assert "the constant far of node away is not finite" in str(groupfx.validate(fine, over).blame)


class Overflowing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        z = y + 6e4
        return (z * z - z * z) + y


def test_a_torch_side_names_its_operator(tmp_path: Path) -> None:
    model = Overflowing().eval()
    inputs = ExampleInputs.of(torch.randn(2, 4, 5, 7))
    groupfx.export(model, inputs, tmp_path / "h.onnx", dtype="float16")
    sides = TorchSide.of(model, inputs, "net"), OnnxSide("h", read_onnx(tmp_path / "h.onnx"))
    found = validate_sides(*sides, ValidationOptions())
    assert found.verdict == "not comparable"
    assert "in the reference, mul is the first to give infinity" in str(found.blame)
