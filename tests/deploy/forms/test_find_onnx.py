"""Convolutions of ONNX files: what is read from them, and which are left alone, with the reason."""

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, parser

from groupfx.deploy.forms.rewrite_onnx import find_onnx, rewrite_graph
from groupfx.deploy.graph.conv_nodes import conv_nodes
from groupfx.passes import SplitGroupedConv
from groupfx.rewriting import Convolution, Skip
from groupfx.running.totals import Totals
from tests.deploy.forms.foreign_onnx import CASES, TAKE_ALL, model_of, norm_model, numbers, value


def test_convolutions_out_of_reach_are_named_with_the_reason() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1, "own" : 1]>
    foreign (float[N, 6, 7, 5] x, bool flag, float[10, 3, 3, 3] w, float[6, 3, 3, 3] v)
        => (float[N, a, b, c] y, float[N, d, e, f] z)
    {
        h = If (flag) <
            then_branch = yes () => (float[N, 6, 5, 3] a) { [inner] a = Conv <group = 2> (x, v) },
            else_branch = no () => (float[N, 6, 5, 3] b) { b = Conv <group = 2> (x, v) }
        >
        [fused] f = com.microsoft.FusedConv <group = 2, activation = "Relu"> (x, w)
        [called] g = own.Block (x, v)
        y = Concat <axis = 1> (h, f)
        z = Neg (g)
    }
    <domain: "own", opset_import: ["" : 17]>
    Block (p, q) => (r) { [body] r = Conv <group = 2> (p, q) }
    """
    model = ir.from_proto(parser.parse_model(text))
    result = rewrite_graph(model, TAKE_ALL)
    assert result.sites == ()
    assert {site.name: site.reason for site in result.skipped} == {
        "fused": "com.microsoft.FusedConv is not split; only Conv, ConvTranspose, ConvInteger and "
        "QLinearConv are",
        "inner": "it is inside a branch or the body of a loop (If, Loop, Scan)",
        "b": "it is inside a branch or the body of a loop (If, Loop, Scan)",
        "body": "it is inside the function Block; inline it first",
    }
    assert result.before == result.after == Totals(4, 4, 0, None)


def test_a_weight_of_unknown_shape_is_left() -> None:
    nodes = [
        helper.make_node("Reshape", ["x2", "shape"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["y"], name="conv", group=2),
    ]
    proto = model_of(nodes, (2, 6, 7, 5), {})
    proto.graph.input.extend([value("x2", [270]), value("shape", [4], TensorProto.INT64)])
    result = rewrite_graph(ir.from_proto(proto), TAKE_ALL)
    assert [site.reason for site in result.skipped] == [
        "the shape of its weight 'w' is not known; infer shapes first"
    ]


def test_what_is_declined_is_left_with_the_reason() -> None:
    asked: list[tuple[str, str, bool]] = []

    class NotToday(SplitGroupedConv):
        def plan(self, conv: Convolution) -> Skip:
            asked.append((conv.name, conv.spec.describe(), conv.frozen))
            return Skip("not today")

    model = ir.from_proto(norm_model())
    result = rewrite_graph(model, [NotToday()])
    assert asked == [("conv1", "Conv2d 6->10, kernel 3x3, groups 2", False)]
    assert [(site.name, site.kind, site.reason) for site in result.skipped] == [
        ("conv1", "grouped", "not today")
    ]
    assert [n.op_type for n in result.model.graph] == ["Conv", "BatchNormalization", "Relu"]
    assert result.before == result.after == Totals(1, 1, 310, 4050)


def test_finding_says_what_splitting_does() -> None:
    model = ir.from_proto(norm_model())
    (found,) = find_onnx(model, TAKE_ALL)
    assert found == rewrite_graph(model, TAKE_ALL).sites[0]
    assert (found.before, found.branches, found.macs) == (
        *("Conv2d 6->10, kernel 3x3, groups 2", 2, 10 * 3 * 9 * 15),
    )


def test_the_fields_that_a_spec_cannot_hold() -> None:
    def only(case: str) -> Any:
        return conv_nodes(ir.from_proto(CASES[case].model))[0][0]

    assert (only("asymmetric pads").window.pads, only("asymmetric pads").spec.padding) == (
        *((0, 2, 1, 3), (0, 2)),
    )
    assert (only("strides").window.pads, only("strides").spec.padding) == ((1,) * 4, (1, 1))
    assert only("SAME_UPPER").window.auto_pad == "SAME_UPPER"
    assert only("SAME_UPPER").spec.padding == "same"
    assert (only("VALID").window.auto_pad, only("VALID").spec.padding) == ("VALID", (0, 0))
    assert only("transposed, output_shape").window.output_shape == (11, 14)
    assert only("transposed, output_padding").spec.output_padding == (1, 2)
    np.testing.assert_array_equal(only("1-d").weight_array(), numbers(10, 3, 5, seed=1))
    np.testing.assert_array_equal(only("1-d").bias_array(), numbers(10, seed=2))
