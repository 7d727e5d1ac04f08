"""Random numbers in what is validated: made equal on both sides, or told, never rounding."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional as F

import groupfx
from tests.deploy.validate.small_files import numbers, value, write

NODE = helper.make_node
FLOAT = TensorProto.FLOAT


def drawing(path: Path, kind: str, *, head: float = 1.0, noise: float = 1.0) -> Path:
    """A convolution, something random, and a product with a matrix behind it."""
    held = {
        "w": numbers(8, 2, 3, 3),
        "h": np.float32(head) * numbers(8, 8, seed=1),
        "ratio": np.float32(0.3 * noise),
        "yes": np.array(True),
        "no": np.array(False),
    }
    conv = NODE("Conv", ["x", "w"], ["c"], name="conv", group=4, pads=[1, 1, 1, 1])
    head_node = NODE("MatMul", ["s", "h"], ["y"], name="mix")
    normal = NODE("RandomNormalLike", ["c"], ["n"], name="noise", scale=noise)
    add = NODE("Add", ["c", "n"], ["s"], name="add")
    functions: Sequence[onnx.FunctionProto] = ()
    middle = {
        "normal": [normal, add],
        "uniform": [NODE("RandomUniformLike", ["c"], ["n"], name="noise", high=2 * noise), add],
        "shaped": [NODE("RandomNormal", [], ["n"], name="noise", shape=[8, 8], scale=noise), add],
        "bernoulli": [
            NODE("Mul", ["c", "ratio"], ["q"]),
            NODE("Sigmoid", ["q"], ["p"]),
            NODE("Bernoulli", ["p"], ["n"], name="noise"),
            add,
        ],
        "dropout": [NODE("Dropout", ["c", "ratio", "yes"], ["s"], name="noise")],
        "dropout, its mask used": [
            NODE("Dropout", ["c", "ratio", "yes"], ["d", "mask"], name="noise"),
            NODE("Cast", ["mask"], ["n"], to=FLOAT),
            NODE("Add", ["d", "n"], ["s"]),
        ],
        "function": [NODE("Noisy", ["c"], ["s"], name="call", domain="local")],
        "branch": [
            NODE(
                "If",
                ["yes"],
                ["s"],
                name="if",
                then_branch=helper.make_graph(
                    [normal, NODE("Add", ["c", "n"], ["t"])], "t", [], [value("t", None)]
                ),
                else_branch=helper.make_graph(
                    [NODE("Identity", ["c"], ["e"])], "e", [], [value("e", None)]
                ),
            )
        ],
        "dropout in eval mode": [NODE("Dropout", ["c", "ratio", "no"], ["s"], name="noise")],
    }[kind]
    if kind == "function":
        opset = [helper.make_opsetid("", 17)]
        inner = [NODE("RandomNormalLike", ["a"], ["n"], name="noise", scale=noise),
                 NODE("Add", ["a", "n"], ["b"])]  # fmt: skip
        functions = [helper.make_function("local", "Noisy", ["a"], ["b"], inner, opset)]
    inputs = [value("x", ["N", 8, 8, 8])]
    return write(path, [conv, *middle, head_node], inputs, [value("y", None)], held,
                 functions=functions)  # fmt: skip


KINDS = [
    "normal",
    "uniform",
    "shaped",
    "bernoulli",
    "dropout",
    "dropout, its mask used",
    "function",
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_is_made_equal_and_what_lies_behind_it_is_compared(
    kind: str, tmp_path: Path
) -> None:
    path = drawing(tmp_path / "m.onnx", kind)
    right = groupfx.validate(path, path)
    assert right.verdict == "same", right.blame
    assert any("random numbers of" in note and "noise" in note for note in right.notes)
    wrong = groupfx.validate(path, drawing(tmp_path / "w.onnx", kind, head=1.01))
    assert wrong.verdict == "different"
    assert "ONNX Runtime" not in str(wrong.blame)


@pytest.mark.parametrize("kind", ["normal", "uniform", "dropout", "bernoulli", "function"])
def test_a_draw_from_another_distribution_is_different(kind: str, tmp_path: Path) -> None:
    """The probabilities of a Bernoulli are computed: they are compared like an output."""
    path = drawing(tmp_path / "m.onnx", kind)
    found = groupfx.validate(path, drawing(tmp_path / "w.onnx", kind, noise=1.1))
    assert found.verdict == "different"
    assert "noise" in str(found.blame) or kind == "bernoulli"


def test_a_draw_in_a_branch_cannot_be_compared(tmp_path: Path) -> None:
    path = drawing(tmp_path / "m.onnx", "branch")
    for other in (path, drawing(tmp_path / "w.onnx", "branch", head=1.4)):
        found = groupfx.validate(path, other)
        assert found.verdict == "not comparable"
        assert found.blame == "output y cannot be compared behind noise (RandomNormalLike)"


def test_what_one_side_alone_draws_cannot_be_compared(tmp_path: Path) -> None:
    plain = drawing(tmp_path / "m.onnx", "dropout in eval mode")
    noisy = drawing(tmp_path / "w.onnx", "normal")
    for pair in ((plain, noisy), (noisy, plain)):
        found = groupfx.validate(*pair)
        assert found.verdict == "not comparable"
        assert "behind noise (RandomNormalLike)" in str(found.blame)


def test_dropout_in_eval_mode_draws_nothing(tmp_path: Path) -> None:
    path = drawing(tmp_path / "m.onnx", "dropout in eval mode")
    assert groupfx.validate(path, path).verdict == "same"
    wrong = groupfx.validate(path, drawing(tmp_path / "w.onnx", "dropout in eval mode", head=1.01))
    assert wrong.verdict == "different"


class Drawing(nn.Module):
    """The same in torch."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.conv = nn.Conv2d(8, 8, 3, groups=4)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.kind == "normal":
            y = y + torch.randn_like(y)
        elif self.kind == "dropout":
            y = F.dropout(y, 0.4, training=True)
        elif self.kind == "numpy":
            y = y * float(np.random.rand())
        return self.head(y)


@pytest.mark.parametrize("kind", ["normal", "dropout"])
def test_a_torch_model_draws_what_its_file_does(kind: str, tmp_path: Path) -> None:
    model, x = Drawing(kind).eval(), torch.randn(2, 8, 9, 7)
    groupfx.export(model, (x,), tmp_path / "m.onnx")
    found = groupfx.validate(model, tmp_path / "m.onnx", (x,))
    assert found.verdict == "same", found.blame
    assert groupfx.validate(model, model, (x,)).verdict == "same"
    with torch.no_grad():
        model.head.weight *= 1.01
    wrong = groupfx.validate(model, tmp_path / "m.onnx", (x,))
    assert wrong.verdict == "different"
    assert "ONNX Runtime" not in str(wrong.blame)


def test_random_numbers_that_are_not_torchs_are_found_by_running_twice() -> None:
    model, x = Drawing("numpy").eval(), torch.randn(2, 8, 9, 7)
    found = groupfx.validate(model, model, (x,))
    assert found.verdict == "not comparable"
    assert "gives other values each time" in str(found.blame)


@pytest.mark.long
def test_a_model_with_branches_of_torch_cond_is_compared(tmp_path: Path) -> None:
    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(6, 6, 1, groups=3), nn.Conv2d(6, 6, 1, groups=2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, self.one, self.two, (x,))

    x = torch.rand(2, 6, 5, 5)
    model = torch.export.export(Chooses().eval(), (x,)).module()
    path = tmp_path / "chooses.onnx"
    groupfx.export(model, (x,), path)
    assert groupfx.validate(model, path, (x,)).ok
    other = torch.export.export(Chooses().eval(), (x,)).module()
    assert not groupfx.validate(other, path, (x,)).ok
