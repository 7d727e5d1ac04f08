"""Quantised files that do not fit: the node and the numbers are named, and the site is left."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

import groupfx
from groupfx.errors import RewriteError
from groupfx.passes import SplitGroupedConv
from tests.deploy.quantised.kernels_run import results
from tests.deploy.quantised.quantised_files import Array, QuantisedCase, quantised_file
from tests.deploy.quantised.test_splitting import example, split

Edit = Callable[[onnx.ModelProto], None]


def put(name: str, array: Array) -> Edit:
    """Another initialiser."""

    def edit(model: onnx.ModelProto) -> None:
        (held,) = (t for t in model.graph.initializer if t.name == name)
        held.CopyFrom(numpy_helper.from_array(array, name))

    return edit


def say(node: str, **fields: int) -> Edit:
    """Other attributes of a node."""

    def edit(model: onnx.ModelProto) -> None:
        (found,) = (n for n in model.graph.node if n.name == node)
        del found.attribute[:]
        found.attribute.extend(helper.make_attribute(*entry) for entry in fields.items())

    return edit


def in_blocks(model: onnx.ModelProto) -> None:
    """Scales for blocks of 2 along axis 1."""
    say("dqw", axis=1, block_size=2)(model)
    shape = (15, 2, 3, 3)
    put("w_scale", np.full(shape, 0.5, np.float32))(model)
    put("w_zero", np.zeros(shape, np.int8))(model)


FLOATS, BYTES = np.ones(14, np.float32), np.zeros(15, np.uint8)
MISFITS: dict[str, tuple[QuantisedCase, Edit, str]] = {
    "scale": (
        QuantisedCase(),
        put("w_scale", FLOATS),
        "DequantizeLinear 'dqw' has the scale 'w_scale' of 14 numbers, and its weight "
        "[15, 2, 3, 3] takes 15 along axis 0",
    ),
    "scale of the bias": (
        QuantisedCase(),
        put("b_scale", FLOATS),
        "DequantizeLinear 'dqb' has the scale 'b_scale' of 14 numbers, and its bias [15] takes 15 "
        "along axis 0",
    ),
    "scale of all channels, transposed": (
        QuantisedCase(transposed=True),
        put("w_scale", np.ones(15, np.float32)),
        "DequantizeLinear 'dqw' has the scale 'w_scale' of 15 numbers, and its weight "
        "[6, 5, 3, 3] takes 5 along axis 1",
    ),
    "zero points": (
        QuantisedCase(),
        put("w_zero", np.zeros(13, np.int8)),
        "DequantizeLinear 'dqw' has the zero point 'w_zero' of 13 numbers, and its weight "
        "[15, 2, 3, 3] takes 15 along axis 0",
    ),
    "type": (
        QuantisedCase(),
        put("w_zero", BYTES),
        "DequantizeLinear 'dqw' has the zero point 'w_zero' in uint8, and its weight is in int8",
    ),
    "axis": (
        QuantisedCase(),
        say("dqw", axis=4),
        "DequantizeLinear 'dqw' has axis=4, and its weight has 4 dimensions",
    ),
    "blocks": (
        QuantisedCase(opset=21, inputs=3),
        in_blocks,
        "DequantizeLinear 'dqw' scales its weight in blocks of 2 along axis 1: only one scale, or "
        "one a channel, can be cut",
    ),
    "operator": (
        QuantisedCase(layout="QLinearConv"),
        put("w_scale", FLOATS),
        "QLinearConv 'conv' has the scale 'w_scale' of 14 numbers, and its weight [15, 2, 3, 3] "
        "takes 15 along axis 0",
    ),
}


def written(path: Path, case: QuantisedCase, edit: Edit) -> Path:
    """The file of a case after an edit."""
    model = quantised_file(case)
    edit(model)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_left_and_told(name: str, tmp_path: Path) -> None:
    case, edit, reason = MISFITS[name]
    path = written(tmp_path / "m.onnx", case, edit)
    (site,) = groupfx.find_onnx(path)
    assert (site.name, site.reason) == ("conv", reason)
    assert groupfx.rewrite_onnx(path, None).rewrite.sites == ()
    out = tmp_path / "out.onnx"
    with pytest.raises(RewriteError, match="conv"):
        groupfx.rewrite_onnx(path, out, passes=[SplitGroupedConv(only=("conv",))])
    assert not out.exists()


@pytest.mark.parametrize("whole", [False, True])
def test_a_dequantized_weight_of_two_convolutions_is_cut_for_each(whole: bool) -> None:
    # The other one is cut as well, or has the weight as a whole on the inputs of a single group.
    case = QuantisedCase(groups=2, inputs=3, outputs=4, bias=None, opset=18)
    model = quantised_file(case)
    graph, data, fields = model.graph, "xd", {"group": 2}
    if whole:
        graph.node.append(
            helper.make_node("Split", ["xd"], ["half", "rest"], axis=1, num_outputs=2)
        )
        data, fields = "half", {}
    graph.node.append(helper.make_node("Conv", [data, "wd"], ["more"], name="other", **fields))
    graph.output.append(helper.make_tensor_value_info("more", 1, ["N", 8, None, None]))
    made = split(model)
    assert [site.name for site in made.sites] == (["conv"] if whole else ["conv", "other"])
    after = ir.to_proto(made.model)
    for one, other in zip(
        results(model, example(case)), results(after, example(case)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    weights = [t for t in after.graph.initializer if t.name.startswith("w_quantized")]
    assert len(weights) == case.groups + whole
