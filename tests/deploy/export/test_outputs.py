"""What goes in and comes out: names, nesting, and values that are no tensors or come twice."""

from collections import UserDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import groupfx
from tests.deploy.exported_model import assert_clean, run_onnx
from tests.thinning import long_unless

Pair = namedtuple("Pair", ("low", "high"))


@dataclass
class Found:
    """What detectors return."""

    score: Tensor
    where: Tensor | None = None


torch.export.register_dataclass(Found)


@dataclass(frozen=True, slots=True)
class Untold:
    """A class that `torch.export` was not told of."""

    score: Tensor
    count: int
    parts: Any = None


class Named(dict[str, Any]):
    """As libraries have, to reach entries by attributes."""


class Returns(nn.Module):
    """A grouped convolution, and what is made of its output."""

    def __init__(self, make: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 9, 3, groups=3)
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x, self.conv(x))


# What forward makes of its input and the convolution's output; then the names, and the values.
OUTPUTS: dict[str, tuple[Callable[..., Any], list[str], Callable[..., list[Tensor]]]] = {
    "one": (lambda x, y: y, ["output"], lambda x, y: [y]),
    "tuple": (lambda x, y: (y, 2 * y), ["output_0", "output_1"], lambda x, y: [y, 2 * y]),
    "list-of-one": (lambda x, y: [y], ["output_0"], lambda x, y: [y]),
    "dict": (
        lambda x, y: {"high part": y, "b": -y},
        ["high_part", "b"],
        lambda x, y: [y, -y],
    ),
    "nested": (
        lambda x, y: (y, {"a": (y + 1, [y + 2])}),
        ["output_0", "output_1_a_0", "output_1_a_1_0"],
        lambda x, y: [y, y + 1, y + 2],
    ),
    "named": (lambda x, y: Pair(y, y * 3), ["low", "high"], lambda x, y: [y, y * 3]),
    "dataclass": (lambda x, y: Found(y, y + 5), ["score", "where"], lambda x, y: [y, y + 5]),
    "dataclass-none": (lambda x, y: Found(y + 5), ["score"], lambda x, y: [y + 5]),
    "untold-dataclass": (
        lambda x, y: Untold(y, 3, Untold(y + 1, 4)),
        ["score", "parts_score"],
        lambda x, y: [y, y + 1],
    ),
    "untold-dict": (
        lambda x, y: [Named(a=y, b=None), UserDict({"b c": y - 2})],
        ["output_0_a", "output_1_b_c"],
        lambda x, y: [y, y - 2],
    ),
    "none-and-number": (
        lambda x, y: (None, y, 7, {"n": None, "k": y - 1}),
        ["output_1", "output_3_k"],
        lambda x, y: [y, y - 1],
    ),
    "an-input": (lambda x, y: (x, y), ["output_0", "output_1"], lambda x, y: [x, y]),
    "only-an-input": (lambda x, y: x, ["output"], lambda x, y: [x]),
    "twice": (
        lambda x, y: {"a": y, "b": y, "c": y + 0},
        ["a", "b", "c"],
        lambda x, y: [y, y, y],
    ),
    "name-of-the-input": (lambda x, y: {"x": y, "y": x}, ["x_out", "y_out"], lambda x, y: [y, x]),
    "same-name": (
        lambda x, y: {"a_b": y, "a": {"b": y + 1}},
        ["a_b", "a_b_2"],
        lambda x, y: [y, y + 1],
    ),
    "a-constant": (
        lambda x, y: (y, torch.arange(3)),
        ["output_0", "output_1"],
        lambda x, y: [y, torch.arange(3)],
    ),
    "integers": (
        lambda x, y: (y.argmax(1), y > 0),
        ["output_0", "output_1"],
        lambda x, y: [y.argmax(1), y > 0],
    ),
}
QUICK = ("untold-dataclass", "none-and-number", "twice", "name-of-the-input", "a-constant")


@pytest.mark.parametrize(
    ("make", "names", "values"),
    long_unless(QUICK, OUTPUTS),
)
def test_outputs_have_the_names_and_values_that_they_have_in_torch(
    make: Callable[..., Any], names: list[str], values: Callable[..., list[Tensor]], tmp_path: Path
) -> None:
    model, x, path = Returns(make).eval(), torch.randn(2, 6, 13), tmp_path / "m.onnx"
    export = groupfx.export(model, x, path)
    assert [info.name for info in export.outputs] == names
    assert [value.name for value in onnx.load(path).graph.output] == names
    with torch.no_grad():
        expected = values(x, model.conv(x))
    for found, wanted in zip(run_onnx(path, x), expected, strict=True):
        assert found.shape == tuple(wanted.shape)
        assert found.dtype == wanted.numpy().dtype
        assert np.abs(found.astype(np.float64) - wanted.double().numpy()).max() < 1e-5
    assert_clean(path)
    verdict = groupfx.validate(model, path, x)
    assert verdict.ok, verdict.blame
    assert {check.name for check in verdict.outputs} == set(names)


def test_a_model_without_an_output_is_refused(tmp_path: Path) -> None:
    model = Returns(lambda x, y: (None, 3))
    with pytest.raises(groupfx.errors.UsageError, match="returns no tensor: there is nothing to"):
        groupfx.export(model, torch.randn(2, 6, 13), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


class Unknown:
    """What holds a tensor, and tells nobody."""

    def __init__(self, score: Tensor) -> None:
        self.score = score


def test_an_output_that_torch_does_not_know_is_refused(tmp_path: Path) -> None:
    model = Returns(lambda x, y: Unknown(y))
    with pytest.raises(groupfx.errors.ModelError, match="Unknown'> in output, which is not a"):
        groupfx.export(model, torch.randn(2, 6, 13), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


class Inputs(nn.Module):
    """Named inputs, one of them unused, one of them a number, and one in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 6, 3, padding=1, groups=3)

    def forward(
        self, sound: Tensor, scale: float, unused: Tensor, *, more: dict[str, Tensor]
    ) -> Tensor:
        return self.conv(sound) * scale + more["noise"] - 2 * more["mask"]


def test_keyword_inputs_in_another_order_and_an_unused_one(tmp_path: Path) -> None:
    model, path = Inputs().eval(), tmp_path / "m.onnx"
    sound, unused, noise, mask = (torch.randn(2, 6, 13) for _ in range(4))
    inputs = {
        "more": {"noise": noise, "mask": mask}, "unused": unused, "scale": 3.0, "sound": sound
    }  # fmt: skip
    export = groupfx.export(model, inputs, path)
    names = [info.name for info in export.inputs]
    assert names == ["sound", "unused", "more_noise", "more_mask"]
    # Nothing says that the one that is not used has as many rows as the others.
    batches = [info.shape[0] for info in export.inputs]
    assert batches == ["batch", "batch_unused", "batch", "batch"]
    with torch.no_grad():
        expected = model.conv(sound) * 3 + noise - 2 * mask
    (found,) = run_onnx(path, sound, unused, noise, mask)
    assert np.abs(found - expected.numpy()).max() < 1e-5
    assert_clean(path)
    verdict = groupfx.validate(model, path, inputs)
    assert verdict.ok, verdict.blame


BAD_INPUTS: dict[str, tuple[Any, str]] = {
    "channels": (torch.randn(2, 5, 13), r"expected input\[2, 5, 13\] to have 6 channels"),
    "too-many": ((torch.randn(2, 6, 13),) * 2, "do not fit Returns.forward: too many positional"),
    "name": ({"y": torch.randn(2, 6, 13)}, "do not fit Returns.forward: missing a required"),
    "nothing": ((), "there is no tensor among the example inputs"),
}


@pytest.mark.parametrize(("inputs", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_inputs_that_do_not_fit(inputs: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(groupfx.GroupfxError, match=message):
        groupfx.export(Returns(lambda x, y: y), inputs, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


class SpecialOperators(nn.Module):
    """Translated with constants in messages (expm1), and in a loop that gives what is outside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, groups=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.conv(x)
        rows = F.embedding_bag(y[:, :, 0].argsort(1), torch.arange(8.0).view(4, 2))
        return torch.expm1(y), rows, torch.nan_to_num(y / (y > 0))


def test_operators_that_are_translated_in_special_ways(tmp_path: Path) -> None:
    model, x = SpecialOperators().eval(), (torch.randn(2, 4, 8),)
    exported = groupfx.export(model, x, tmp_path / "m.onnx")
    assert_clean(exported.path)
    found = groupfx.validate(model, exported.path, x)
    assert found.ok, found.blame
    assert {check.name for check in found.outputs} == {"output_0", "output_1", "output_2"}
