"""Each kind of reference against each kind of candidate: right ones pass, wrong ones are named."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import groupfx
from groupfx.deploy import OnnxSide
from groupfx.errors import FileError
from tests.thinning import one_in

SHAPE = (2, 6, 9, 7)


class TwoConvs(nn.Module):
    """A BatchNorm behind each convolution and activations that work in place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.one = nn.Conv2d(6, 10, 3, padding=1)
        self.norm_one = nn.BatchNorm2d(10)
        self.two = nn.Conv2d(10, 15, 3, groups=5)
        self.norm_two = nn.BatchNorm2d(15)
        for norm in (self.norm_one, self.norm_two):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_one(self.one(x)).relu_()
        return self.norm_two(self.two(y)).relu_()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in every kind of file, and each with a wrong sign in the second convolution."""
    made = tmp_path_factory.mktemp("sides")
    x = torch.randn(SHAPE)
    for name, model in (("right", TwoConvs().eval()), ("wrong", _wrong())):
        result = groupfx.rewrite(model, (x,), verify=False)
        result.save(made / f"{name}.pt")
        result.save_exported(made / f"{name}.pt2")
        groupfx.export(model, (x,), made / f"{name}.onnx")
        groupfx.export(result, (x,), made / f"{name}.split.onnx")
        _unmarked(made / f"{name}.onnx", made / f"{name}.foreign.onnx")
    return made


def _wrong() -> nn.Module:
    model = TwoConvs().eval()
    with torch.no_grad():
        model.two.weight[4, 1] *= -1
    return model


def _unmarked(path: Path, out: Path) -> None:
    model = onnx.load(path)
    for node in model.graph.node:
        del node.metadata_props[:]
    onnx.save(model, out)


# What is reference and what is candidate, and the name that the wrong site then has.
PAIRS = {
    "model, onnx": ("model", ".onnx", "two"),
    "model, split onnx": ("model", ".split.onnx", "two"),
    "model, foreign onnx": ("model", ".foreign.onnx", "two"),
    "model, our file": ("model", ".pt", "two.1"),
    "model, pt2": ("model", ".pt2", "two.1"),
    "model, model": ("model", "model", "two"),
    "our file, onnx": (".pt", ".onnx", "two"),
    "our file, split onnx": (".pt", ".split.onnx", "two"),
    "pt2, onnx": (".pt2", ".onnx", "one"),
    "onnx, onnx": (".onnx", ".onnx", "two"),
    "onnx, split onnx": (".onnx", ".split.onnx", "two"),
    "onnx, foreign onnx": (".onnx", ".foreign.onnx", "two"),
    "foreign onnx, onnx": (".foreign.onnx", ".onnx", "two"),
    # The BatchNorm is folded on one side and not on the other.
    "onnx, our file": (".onnx", ".pt", "two.1"),
    "onnx, model": (".onnx", "model", "two"),
}
# A site that a `.pt2` split is known there by its branches alone.
OUTPUTS_TELL = {"pt2, onnx"}


def _side(folder: Path, kind: str, which: str) -> nn.Module | Path:
    if kind != "model":
        return folder / f"{which}{kind}"
    return TwoConvs().eval() if which == "right" else _wrong()


@pytest.mark.parametrize("pair", one_in(3, list(PAIRS)))
def test_right_and_wrong(folder: Path, pair: str) -> None:
    reference, candidate, site = PAIRS[pair]
    given = _side(folder, reference, "right")
    x = (torch.randn(SHAPE),)
    right = groupfx.validate(given, _side(folder, candidate, "right"), x, trust_pickle=True)
    assert right.ok, right.blame
    assert right.sites
    assert all(0 < check.ratio < 1 for check in right.sites)
    wrong = groupfx.validate(given, _side(folder, candidate, "wrong"), x, trust_pickle=True)
    assert not wrong.ok
    if pair in OUTPUTS_TELL:
        assert not all(check.ok for check in wrong.outputs)
        return
    assert wrong.first_site is not None
    assert wrong.first_site.name == site
    assert [check.name for check in wrong.sites if not check.ok] == [site]


def test_a_pt2_is_not_read_without_trust(folder: Path) -> None:
    with pytest.raises(FileError, match="trust-pickle"):
        groupfx.validate(folder / "right.pt2", folder / "right.onnx", (torch.randn(SHAPE),))


def test_half_precision_is_held_to_its_own_rounding(tmp_path: Path) -> None:
    model, x = TwoConvs().eval(), torch.randn(SHAPE)
    groupfx.export(model, (x,), tmp_path / "half.onnx", dtype="float16")
    found = groupfx.validate(model, tmp_path / "half.onnx", (x,))
    assert found.ok, found.blame
    assert found.dtype == "float16"
    wide = onnx.load(tmp_path / "half.onnx")
    (held,) = [t for t in wide.graph.initializer if t.name == "two.weight"]
    array = numpy_helper.to_array(held).copy()
    array[4] *= 1.05
    held.CopyFrom(numpy_helper.from_array(array, held.name))
    onnx.save(wide, tmp_path / "wrong.onnx")
    wrong = groupfx.validate(model, tmp_path / "wrong.onnx", (x,))
    assert wrong.first_site is not None
    assert wrong.first_site.name == "two"


def test_a_bfloat16_model_exported_as_float32(tmp_path: Path) -> None:
    model, x = TwoConvs().eval().bfloat16(), torch.randn(SHAPE).bfloat16()
    groupfx.export(model, (x,), tmp_path / "net.onnx", dtype="float32")
    found = groupfx.validate(model, tmp_path / "net.onnx", (x,))
    assert found.ok, found.blame
    assert found.dtype == "float32"
    assert model.one.weight.dtype == torch.bfloat16


def test_an_operator_without_a_float64_form(tmp_path: Path) -> None:
    """ONNX Runtime's own Gelu: the reference's two runs tell what rounding is there."""
    generator = np.random.default_rng(0)
    weights = {"w": (9, 2, 3, 3), "v": (40, 9, 3, 3)}
    inits = [
        numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)
        for name, shape in weights.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", group=3, pads=[1, 1, 1, 1]),
        helper.make_node("Gelu", ["c"], ["d"], domain="com.microsoft", name="gelu"),
        helper.make_node("Conv", ["d", "v"], ["y"], name="last"),
    ]
    sizes = {"x": ["n", 6, 12, 12], "y": ["n", 40, 10, 10]}
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in sizes.items())
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "g", [x], [y], inits)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    result = groupfx.rewrite_onnx(tmp_path / "m.onnx", tmp_path / "split.onnx")
    assert result.validation is not None
    assert any("not in float64" in note for note in result.validation.notes)
    # Measured, and not the floor: a run compared with itself has no error at all.
    judged = [check for check in result.validation.outputs if "optimisations on" in check.runtime]
    assert judged
    assert all(check.original_rms > 0 and check.ratio < 0.5 for check in judged)
    wrong = onnx.load(tmp_path / "split.onnx")
    (held,) = [t for t in wrong.graph.initializer if t.name == "w.1"]
    held.CopyFrom(numpy_helper.from_array(1.01 * numpy_helper.to_array(held), held.name))
    onnx.save(wrong, tmp_path / "wrong.onnx")
    found = groupfx.validate(tmp_path / "m.onnx", tmp_path / "wrong.onnx")
    assert found.first_site is not None
    assert found.first_site.name == "conv"
    assert not all(check.ok for check in found.outputs)


def test_bytes_that_are_there_already_give_inner_values_too() -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 18]>
        two (float[2] x) => (float[2] y) { inner = Neg(x) y = Relu(inner) }
    """
    proto = onnx.parser.parse_model(text)
    side = OnnxSide("two", ir.from_proto(proto), data=proto.SerializeToString())
    feeds = {"x": np.array([1.0, -2.0], np.float32)}
    # Names that are inputs or outputs already are not given twice.
    found = side.session_of("off", ("inner", "x", "y")).run(feeds, ("inner", "y"))
    assert {name: array.tolist() for name, array in found.items()} == {
        "inner": [-1.0, 2.0],
        "y": [0.0, 2.0],
    }
    assert list(side.session_of("on").run(feeds)) == ["y"]


def test_what_is_compared_is_not_made_in_float64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(OnnxSide, "_wide_model", property(lambda side: made.append(side.source)))
    model, x = nn.Conv2d(2, 2, 1).eval(), torch.randn(1, 2, 3, 3)
    groupfx.export(model, (x,), tmp_path / "m.onnx")
    assert groupfx.validate(model, tmp_path / "m.onnx", (x,)).ok
    assert made == []
