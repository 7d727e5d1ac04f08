"""Options of exporting: opset, dtype, open sizes, and the names of inputs and outputs."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import groupfx
from groupfx.errors import ModelError, UsageError
from groupfx.verify import Fingerprint
from tests.deploy.exported_model import assert_computes, convs_of, run_onnx
from tests.models import zoo
from tests.thinning import one_in


def net(mode: str = "zeros") -> nn.Module:
    """Two grouped convolutions with a BatchNorm between."""
    model = nn.Sequential(
        nn.Conv2d(6, 9, 3, padding=1, groups=3, padding_mode=mode),
        nn.BatchNorm2d(9),
        nn.ReLU(),
        nn.Conv2d(9, 12, (1, 2), groups=3),
    )
    zoo.give_statistics(model)
    return model.eval()


def image(batch: int = 2) -> Tensor:
    return torch.randn(batch, 6, 11, 7)


# Opset


@pytest.mark.parametrize("opset", [10, 99, "18", None])
def test_what_is_no_opset_is_refused(opset: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"opset {opset}: take one from 11 to"):
        groupfx.export(nn.ReLU(), torch.ones(1, 2), tmp_path / "m.onnx", opset=opset)


@pytest.mark.parametrize(
    "opset",
    [pytest.param(k, marks=() if k in (11, 13) else pytest.mark.long) for k in range(11, 25)],
)
def test_the_file_has_the_opset_that_was_asked_for(opset: int, tmp_path: Path) -> None:
    model, x, path = net(), image(), tmp_path / "m.onnx"
    export = groupfx.export(model, x, path, opset=opset, passes=["split-grouped-conv"])
    proto = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", opset)]
    assert export.opset == opset
    onnx.checker.check_model(proto, full_check=True)
    verdict = groupfx.validate(model, path, x)
    assert verdict.ok, verdict.blame
    assert_computes(path, model, x)


OLDER: dict[str, tuple[nn.Module, int, str]] = {
    "an operator that did not exist": (nn.LayerNorm(7), 16, "LayerNormalization .* opset 17"),
    "another meaning": (nn.Softmax(1), 12, "Softmax .* means something else .* opset 13"),
}


@pytest.mark.parametrize(("layer", "opset", "words"), OLDER.values(), ids=OLDER)
def test_an_opset_that_the_model_has_no_form_in_is_refused(
    layer: nn.Module, opset: int, words: str, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Conv2d(6, 4, 1, groups=2), layer).eval()
    with pytest.raises(UsageError, match=f"cannot be written in opset {opset}: {words} or newer"):
        groupfx.export(model, image(), tmp_path / "m.onnx", opset=opset)
    assert not list(tmp_path.iterdir())
    allowed = opset + 1
    groupfx.export(model, image(), tmp_path / "m.onnx", opset=allowed)
    assert groupfx.validate(model, tmp_path / "m.onnx", image()).ok


class Older(nn.Module):
    """Operators whose axes, sizes and parts of a shape were written otherwise before."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 9, 3, groups=3)
        self.head = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        rows = y.view(y.shape[0], 3, -1).transpose(1, 2).reshape(y.shape[0], -1)
        return self.head(y.mean((2, 3)).unsqueeze(1).squeeze(1)), rows.sum(1) + y.amax((1, 2, 3))


@pytest.mark.parametrize("opset", one_in(4, [11, 12, 13, 14, 17]))
def test_older_forms_of_operators(opset: int, tmp_path: Path) -> None:
    model = Older().eval()
    path = tmp_path / "m.onnx"
    groupfx.export(model, image(), path, opset=opset, passes=["split-grouped-conv"])
    proto = onnx.load(path)
    assert proto.opset_import[0].version == opset
    least = onnx.helper.find_min_ir_version_for([proto.opset_import[0]])
    assert proto.ir_version == max(least, 4)
    verdict = groupfx.validate(model, path, image())
    assert verdict.ok, verdict.blame
    for batch in (1, 2, 7):
        assert_computes(path, model, image(batch))


@pytest.mark.parametrize("opset", [10, 25, 99])
def test_an_opset_out_of_range_is_refused(opset: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"opset {opset}: take one from 11 to 24, such as 20"):
        groupfx.export(net(), image(), tmp_path / "m.onnx", opset=opset)
    assert not list(tmp_path.iterdir())


def test_circular_padding_needs_a_newer_opset(tmp_path: Path) -> None:
    model, x, path = net("circular"), image(), tmp_path / "m.onnx"
    with pytest.raises(UsageError, match="pads circularly, which opset 18 cannot do: take opset"):
        groupfx.export(model, x, path, opset=18)
    assert not list(tmp_path.iterdir())
    groupfx.export(model, x, path, opset=19)
    assert_computes(path, model, x)


# Dtype


def test_a_model_in_float16(tmp_path: Path) -> None:
    model, x, path = net(), image(), tmp_path / "m.onnx"
    export = groupfx.export(model, x, path, dtype="float16")
    assert (export.inputs[0].dtype, export.outputs[0].dtype) == ("float16", "float16")
    held = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert held == {onnx.TensorProto.FLOAT16}
    verdict = groupfx.validate(model, path, x)
    assert verdict.ok, verdict.blame
    assert verdict.dtype == "float16"
    wide = model(x.half().float()).detach().double().numpy()
    found = run_onnx(path, x.half())[0]
    assert found.dtype == np.float16
    # Half precision has 11 bits: well above what float32 would give, and well below a mistake.
    error = np.abs(found - wide).max() / np.abs(wide).max()
    assert 2**-16 < error < 2**-7


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float64, id="float64", marks=pytest.mark.long),
        pytest.param(torch.bfloat16, id="bfloat16"),
    ],
)
def test_a_dtype_without_kernels_is_refused_by_name(dtype: torch.dtype, tmp_path: Path) -> None:
    model, x, path = net().to(dtype), image().to(dtype), tmp_path / "m.onnx"
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(UsageError, match=f"0.weight is {name}, .*export the model in another"):
        groupfx.export(model, x, path)
    assert not list(tmp_path.iterdir())
    before = Fingerprint.of(model)
    export = groupfx.export(model, x, path, dtype="float32")
    assert export.inputs[0].dtype == "float32"
    assert before.changes(model) == ()
    assert_computes(path, net_like(model), x.float())


def net_like(model: nn.Module) -> nn.Module:
    """`net` in float32, with the values of `model`."""
    own = net()
    own.load_state_dict(model.state_dict())
    return own


def test_an_input_without_kernels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="input 0 is float64"):
        groupfx.export(nn.Sequential(nn.ReLU()), image().double(), tmp_path / "m.onnx")


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="dtype='int8': choose float32 or float16"):
        groupfx.export(net(), image(), tmp_path / "m.onnx", dtype="int8")  # type: ignore[arg-type]


@pytest.mark.long
def test_a_convolution_under_autocast_is_refused(tmp_path: Path) -> None:
    case = zoo.CASES["low-precision-part"]
    for dtype in (None, "float32"):
        with pytest.raises(
            ModelError, match=r"computes node_conv1d in bfloat16, .*take the autocast"
        ):
            groupfx.export(case.build(), case.inputs(), tmp_path / "m.onnx", dtype=dtype)
    assert not list(tmp_path.iterdir())


# Open sizes


OPEN: dict[str, tuple[dict[str, bool], tuple[Any, ...]]] = {
    "batch": ({}, ("batch", 6, 11, 7)),
    "none": ({"dynamic_batch": False}, (3, 6, 11, 7)),
    "all": ({"dynamic_sizes": True}, ("batch", 6, "size_2_input", "size_3_input")),
    "sizes": (
        {"dynamic_batch": False, "dynamic_sizes": True},
        (3, 6, "size_2_input", "size_3_input"),
    ),
}


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        pytest.param(*case, id=name, marks=() if name in ("batch", "all") else pytest.mark.long)
        for name, case in OPEN.items()
    ],
)
def test_sizes_are_open_as_asked(
    options: dict[str, bool], shape: tuple[Any, ...], tmp_path: Path
) -> None:
    model, path = net(), tmp_path / "m.onnx"
    export = groupfx.export(model, image(3), path, **options)
    assert export.inputs[0].shape == shape
    assert export.notes == ()
    assert export.outputs[0].shape[:2] == (shape[0], 12)
    declared = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    assert tuple(size.dim_param or size.dim_value for size in declared) == shape
    batch = 7 if shape[0] == "batch" else 3
    assert_computes(path, model, image(batch))
    other = torch.randn(batch, 6, 5, 13)
    if options.get("dynamic_sizes"):
        assert_computes(path, model, other)
        return
    with pytest.raises(Exception, match="Got invalid dimensions"):
        run_onnx(path, other)


@pytest.mark.long
def test_open_sizes_are_validated_at_other_sizes(tmp_path: Path) -> None:
    model, x, path = net(), image(), tmp_path / "m.onnx"
    groupfx.export(model, x, path, dynamic_sizes=True, passes=["split-grouped-conv"])
    verdict = groupfx.validate(model, path, x)
    assert verdict.ok
    assert [name for name in verdict.runs if "size" in name]


class FixesBatch(nn.Module):
    """It has two rows, whatever comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 9, 3, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).reshape(2, 99)


def test_a_batch_that_the_model_fixes_is_said(tmp_path: Path) -> None:
    model, x, path = FixesBatch().eval(), torch.randn(2, 6, 13), tmp_path / "m.onnx"
    export = groupfx.export(model, x, path)
    assert export.inputs[0].shape == (2, 6, 13)
    (note,) = export.notes
    assert note.startswith("sizes that the model fixes: x: dimension 0 = 2")
    assert_computes(path, model, x)


@pytest.mark.parametrize(
    "dynamic",
    [pytest.param(True, id="open"), pytest.param(False, id="fixed", marks=pytest.mark.long)],
)
def test_inputs_without_a_batch(dynamic: bool, tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Conv1d(6, 9, 3, groups=3), nn.ReLU()).eval(), torch.randn(6, 13)
    path = tmp_path / "m.onnx"
    export = groupfx.export(model, x, path, dynamic_batch=dynamic)
    assert export.inputs[0].shape == (6, 13)
    assert bool(export.notes) == dynamic
    assert_computes(path, model, x)


# Names


class Adds(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 6, 3, padding=1, groups=3)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(left) + right, left - right


PAIR = (torch.ones(2, 6, 13), torch.full((2, 6, 13), 3.0))


def test_given_names_are_used(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    names = {"input_names": ["sound", "noise"], "output_names": ["sum", "0.weight"]}
    export = groupfx.export(Adds(), PAIR, path, **names)
    graph = onnx.load(path).graph
    assert [value.name for value in graph.input] == names["input_names"]
    assert [value.name for value in graph.output] == names["output_names"]
    assert [info.name for info in export.inputs] == names["input_names"]
    assert np.array_equal(run_onnx(path, *PAIR)[1], np.full((2, 6, 13), -2, np.float32))


@pytest.mark.long
def test_a_name_of_a_weight_can_be_given_to_an_output(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    groupfx.export(Adds(), PAIR, path, output_names=["conv.weight", "conv.bias"])
    assert np.array_equal(run_onnx(path, *PAIR)[1], np.full((2, 6, 13), -2, np.float32))
    assert convs_of(path).keys() == {"conv"}


NAMES: dict[str, tuple[dict[str, list[str]], str]] = {
    "too-few": ({"input_names": ["a"]}, r"1 input names are given \(a\), and the model has 2"),
    "too-many": ({"output_names": ["a", "b", "c"]}, "3 output names are given"),
    "none": ({"output_names": []}, r"0 output names are given \(none\)"),
    "twice": ({"input_names": ["a", "a"]}, "the input names a, a are not all different"),
    "empty": ({"output_names": ["a", ""]}, "not all different, or one is ''"),
    "both": (
        {"input_names": ["a", "b"], "output_names": ["b", "c"]},
        "b names an input and an output: choose others",
    ),
    "own-input": ({"output_names": ["left", "c"]}, "left names an input and an output"),
}


@pytest.mark.parametrize(("names", "message"), NAMES.values(), ids=NAMES)
def test_names_that_do_not_fit(names: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        groupfx.export(Adds(), PAIR, tmp_path / "m.onnx", **names)
    assert not list(tmp_path.iterdir())
