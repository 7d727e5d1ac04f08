"""Grouped convolutions of ONNX files that we did not write, split and run beside the original.

ONNX Runtime runs both sides; two cases are computed by a dense block-diagonal weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, parser

from groupfx.deploy.forms.rewrite_onnx import OnnxRewrite, rewrite_graph
from groupfx.deploy.forms.splitting import split_conv
from groupfx.deploy.graph.batchnorm import norm_behind
from groupfx.deploy.graph.conv_nodes import conv_nodes
from groupfx.deploy.graph.files import check_onnx, proto_of, read_onnx
from groupfx.deploy.graph.metadata import mark_of
from groupfx.errors import InternalError
from groupfx.passes import SplitGroupedConv
from tests.deploy.forms.foreign_onnx import (
    CASES,
    TAKE_ALL,
    Array,
    ForeignConv,
    difference,
    model_of,
    norm_model,
    numbers,
    run,
    value,
)
from tests.step_counts import steps_of

# Relative to the largest output. The same products are added up, in each branch as in a group;
# only ONNX Runtime's choice of a kernel by the number of groups can change their order.
BOUND = 1e-6


# All of them, on onnxruntime 1.31 on x86-64.
BIT_IDENTICAL = len(CASES)


def split(proto: onnx.ModelProto, sites: int = 1) -> OnnxRewrite:
    """Split all, with what holds of every split: the argument untouched, the result checked."""
    model = ir.from_proto(proto)
    before = proto_of(model).SerializeToString(deterministic=True)
    result = rewrite_graph(model, TAKE_ALL)
    assert proto_of(model).SerializeToString(deterministic=True) == before
    check_onnx(result.model)
    assert len(result.sites) == sites
    assert result.model.producer_name == "groupfx"
    assert [v.name for v in result.model.graph.outputs] == [v.name for v in proto.graph.output]
    again = rewrite_graph(result.model, TAKE_ALL)
    assert again.sites == ()
    return result


def compare(proto: onnx.ModelProto, x: Array, sites: int = 1) -> OnnxRewrite:
    """Split all, and hold both sides together in ONNX Runtime."""
    result = split(proto, sites)
    assert difference(run(proto, x=x), run(proto_of(result.model), x=x)) <= BOUND
    return result


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_split_computes_the_same(case: ForeignConv) -> None:
    result = compare(case.model, numbers(*case.x))
    counts = operators(result.model)
    assert counts == {"Split": 1, case.op: case.groups, "Concat": 1}
    for node in result.model.graph:
        if node.op_type == case.op:
            attributes = ir.to_proto(node).attribute
            kept = {entry.name: helper.get_attribute_value(entry) for entry in attributes}
            assert kept == {**case.encoded, "group": 1}
    assert result.before.parameters == result.after.parameters
    assert result.before.macs == result.after.macs
    assert result.before.macs is not None


def test_how_many_splits_are_identical_to_the_bit() -> None:
    same = [
        difference(
            run(case.model, x=numbers(*case.x)),
            run(proto_of(split(case.model).model), x=numbers(*case.x)),
        )
        == 0.0
        for case in CASES.values()
    ]
    assert sum(same) == BIT_IDENTICAL


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_two_weights_exchanged_are_caught(case: ForeignConv) -> None:
    model = split(case.model).model
    first, second = (model.graph.initializers[f"c.{k}.weight"] for k in (0, 1))
    first.const_value, second.const_value = second.const_value, first.const_value
    x = numbers(*case.x)
    assert difference(run(case.model, x=x), run(proto_of(model), x=x)) > 1000 * BOUND


def test_a_split_equals_a_dense_block_diagonal_convolution() -> None:
    case = CASES["asymmetric pads"]
    x, weight, bias = numbers(*case.x), numbers(*case.w, seed=1), numbers(10, seed=2)
    dense = np.zeros((10, 6, 3, 3), np.float64)
    dense[:5, :3], dense[5:, 3:] = weight[:5], weight[5:]
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (0, 1), (2, 3)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    expected = np.einsum("nchwij,ocij->nohw", windows, dense) + bias[:, None, None]
    (y,) = run(proto_of(split(case.model).model), x=x)
    assert difference([expected], [y.astype(np.float64)]) <= BOUND


def test_a_transposed_split_equals_a_dense_block_diagonal_one() -> None:
    case = CASES["transposed"]
    x, weight, bias = numbers(*case.x), numbers(*case.w, seed=1), numbers(15, seed=2)
    dense = torch.zeros(6, 15, 3, 3, dtype=torch.float64)
    for group in range(3):
        rows = slice(2 * group, 2 * group + 2)
        dense[rows, 5 * group : 5 * group + 5] = torch.from_numpy(weight[rows])
    expected = torch.nn.functional.conv_transpose2d(
        torch.from_numpy(x).double(), dense, torch.from_numpy(bias).double()
    )
    (y,) = run(proto_of(split(case.model).model), x=x)
    assert difference([expected.numpy()], [y.astype(np.float64)]) <= BOUND


@pytest.mark.parametrize("opset", [11, 17])
def test_a_norm_goes_into_the_branches(opset: int) -> None:
    result = compare(norm_model(opset, epsilon=0.01), numbers(2, 6, 7, 5))
    names = [node.name for node in result.model.graph]
    assert names == [
        *("conv1.split", "conv1.0", "conv1.1", "bn1.0", "bn1.1", "conv1.concat", "relu"),
    ]
    assert [mark_of(node) and mark_of(node).group for node in result.model.graph] == [
        *(None, 0, 1, 0, 1, None, None),
    ]
    assert {mark.site for node in result.model.graph if (mark := mark_of(node))} == {"conv1"}
    assert {name for name in result.model.graph.initializers if "running" in name} == {
        *("bn1.0.running_mean", "bn1.1.running_mean", "bn1.0.running_var", "bn1.1.running_var"),
    }
    assert result.sites[0].after == "2 x Conv2d 3->5, kernel 3x3 + BatchNorm"
    assert result.model.graph[5].outputs[0].name == "b"


def test_a_norm_may_stay_behind() -> None:
    proto = norm_model()
    result = rewrite_graph(
        ir.from_proto(proto), [SplitGroupedConv(depthwise="split", batchnorm="after")]
    )
    check_onnx(result.model)
    assert operators(result.model)["BatchNormalization"] == 1
    x = numbers(2, 6, 7, 5)
    assert difference(run(proto, x=x), run(proto_of(result.model), x=x)) <= BOUND


def _second_user(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Sigmoid", ["c"], ["z"]))


def _graph_output(proto: onnx.ModelProto) -> None:
    proto.graph.output.append(value("c", ["N", 10, 5, 3]))


def _computed_parameter(proto: onnx.ModelProto) -> None:
    proto.graph.node.insert(0, helper.make_node("Neg", ["bn1.bias"], ["neg"]))
    proto.graph.node[2].input[2] = "neg"


def _training(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    proto.graph.node[1].output.extend(["mean", "var"])


STAYS: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "a second user": (_second_user, "c has 2 users"),
    "a graph output": (_graph_output, "c is an output of the graph too"),
    "computed": (_computed_parameter, "bn1 has parameters that are no constants"),
    "training": (_training, "bn1 is in training mode"),
}


@pytest.mark.parametrize(("change", "reason"), STAYS.values(), ids=STAYS)
def test_a_norm_that_is_not_the_convolutions_own_stays(
    change: Callable[[onnx.ModelProto], None], reason: str
) -> None:
    proto = norm_model()
    change(proto)
    result = compare(proto, numbers(2, 6, 7, 5))
    assert result.sites[0].notes == (f"BatchNorm stays after the concat: {reason}",)
    assert operators(result.model)["BatchNormalization"] == 1


def test_an_output_that_is_used_twice_and_is_an_output_of_the_graph() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], group=2),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Add", ["c", "r"], ["y"]),
    ]
    proto = model_of(nodes, (2, 6, 7, 5), {"w": numbers(10, 3, 3, 3)}, outputs=["c", "y"])
    proto.graph.output[0].doc_string = "of the user"
    result = compare(proto, numbers(2, 6, 7, 5))
    assert result.sites[0].name == "c"
    assert set(result.model.graph.initializers) == {"w.0", "w.1", "c.split.sizes"}
    assert result.model.graph.outputs[0].doc_string == "of the user"


def test_two_convolutions_that_share_a_weight_go_on_sharing() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "s.weight", "s.bias"], ["a"], name="one", group=2),
        helper.make_node("Conv", ["x", "s.weight"], ["b"], name="two", group=2),
        helper.make_node("Concat", ["a", "b"], ["y"], axis=1),
    ]
    for node in nodes[:2]:
        node.metadata_props.add(key="groupfx.site", value="s")
    tensors = {"s.weight": numbers(10, 3, 3, 3), "s.bias": numbers(10)}
    result = compare(model_of(nodes, (2, 6, 7, 5), tensors), numbers(2, 6, 7, 5), sites=2)
    assert [site.name for site in result.sites] == ["s", "s#2"]
    assert set(result.model.graph.initializers) == {
        *("s.0.weight", "s.1.weight", "s.0.bias", "s.1.bias", "s.split.sizes"),
        "s#2.split.sizes",
    }
    assert result.before.parameters == result.after.parameters


def test_a_weight_that_another_node_uses_stays() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", group=2),
        helper.make_node("ReduceSum", ["w"], ["s"], keepdims=0),
        helper.make_node("Add", ["c", "s"], ["y"]),
    ]
    result = compare(
        model_of(nodes, (2, 6, 7, 5), {"w": numbers(10, 3, 3, 3)}), numbers(2, 6, 7, 5)
    )
    assert "w" in result.model.graph.initializers


def test_constants_and_identities_are_weights() -> None:
    tensor = numpy_helper.from_array(numbers(10, 3, 3, 3))
    nodes = [
        helper.make_node("Constant", [], ["k"], value=tensor, name="constant"),
        helper.make_node("Identity", ["k"], ["w"], name="identity"),
        helper.make_node("Identity", ["bias"], ["b"], name="identity 2"),
        helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", group=2),
    ]
    result = compare(model_of(nodes, (2, 6, 7, 5), {"bias": numbers(10)}), numbers(2, 6, 7, 5))
    # What the weight was made from is gone; its copies are named like the value.
    assert operators(result.model) == {"Split": 1, "Conv": 2, "Concat": 1}
    assert set(result.model.graph.initializers) == {
        *("w.0", "w.1", "b.0", "b.1", "conv.split.sizes"),
    }


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("known", [True, False], ids=["shape given", "shape inferred"])
def test_a_computed_weight_is_cut_in_the_graph(opset: int, known: bool) -> None:
    nodes = [
        helper.make_node("Mul", ["w", "mask"], ["masked"]),
        helper.make_node("Neg", ["b"], ["negative"]),
        helper.make_node("Conv", ["x", "masked", "negative"], ["y"], name="conv", group=2),
    ]
    tensors = {"w": numbers(10, 3, 3, 3), "mask": numbers(10, 3, 1, 1), "b": numbers(10)}
    proto = model_of(nodes, ("N", 6, 7, 5), tensors, opset=opset)
    if known:
        proto.graph.value_info.append(value("masked", [10, 3, 3, 3]))
    result = compare(proto, numbers(2, 6, 7, 5))
    assert operators(result.model)["Split"] == 3
    assert result.sites[0].notes == (
        "masked is computed: it is cut in the graph",
        "negative is computed: it is cut in the graph",
    )


def test_an_initializer_that_the_user_may_replace_is_cut_in_the_graph() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", group=2)]
    proto = model_of(nodes, ("N", 6, 7, 5), {"w": numbers(10, 3, 3, 3)})
    proto.graph.input.append(value("w", [10, 3, 3, 3]))
    x, other = numbers(2, 6, 7, 5), numbers(10, 3, 3, 3, seed=5)
    result = compare(proto, x)
    assert result.sites[0].notes == ("w is an input with a default: it is cut in the graph",)
    replaced = [run(model, x=x, w=other) for model in (proto, proto_of(result.model))]
    assert difference(*replaced) <= BOUND
    assert difference(replaced[0], run(proto, x=x)) > 0.1


def test_a_file_of_ir_version_3_needs_no_inputs_for_new_initializers() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", group=2),
        helper.make_node("Add", ["c", "one"], ["y"]),
    ]
    tensors = {"w": numbers(10, 3, 3, 3), "one": numbers(1)}
    proto = model_of(nodes, ("N", 6, 7, 5), tensors, opset=11, ir_version=3)
    proto.graph.input.extend([value("w", [10, 3, 3, 3]), value("one", [1])])
    result = compare(proto, numbers(2, 6, 7, 5))
    assert result.notes == (
        "IR version 3 became 6: 2 initializers that it listed as inputs are no inputs any more",
    )
    assert result.sites[0].notes == ()
    assert [v.name for v in result.model.graph.inputs] == ["x"]
    assert conv_nodes(ir.from_proto(proto))[0][0].constant


def test_an_if_beside_a_site_keeps_what_it_reads() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    foreign (float[2, 6, 7, 5] x) => (float[2, 10, 5, 3] y)
    <bool flag = {1}>
    {
        [conv] c = Conv <group = 2> (x, w)
        y = If (flag) <
            then_branch = yes () => (float[2, 10, 5, 3] a) { a = Neg (c) },
            else_branch = no () => (float[2, 10, 5, 3] b) { b = Abs (c) }
        >
    }
    """
    proto = parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(numbers(10, 3, 3, 3), "w"))
    compare(proto, numbers(2, 6, 7, 5))


def test_float16_and_bfloat16_keep_their_type() -> None:
    case = CASES["asymmetric pads"]
    for dtype, kind in ((np.float16, TensorProto.FLOAT16), (ml_dtypes.bfloat16, 16)):
        tensors = {"w": numbers(*case.w, dtype=dtype), "b": numbers(10, dtype=dtype)}
        node = helper.make_node(
            "Conv", ["x", "w", "b"], ["y"], name="c", group=2, pads=[0, 2, 1, 3]
        )
        result = split(model_of([node], case.x, tensors, kind=kind, opset=22, ir_version=10))
        rows = [result.model.graph.initializers[f"w.{k}"].const_value for k in (0, 1)]
        assert {tensor.dtype.value for tensor in rows} == {kind}
        assert b"".join(t.tobytes() for t in rows) == tensors["w"].tobytes()
    # ONNX Runtime has no bfloat16 convolution on the CPU.
    half = model_of(
        [helper.make_node("Conv", ["x", "w"], ["y"], group=2)],
        case.x,
        {"w": numbers(*case.w, dtype=np.float16)},
        kind=TensorProto.FLOAT16,
    )
    x = numbers(*case.x, dtype=np.float16)
    # It computes in float32 and rounds once: half an ulp of float16 is left.
    assert difference(run(half, x=x), run(proto_of(split(half).model), x=x)) <= 2.0**-11


def test_external_data_is_split(tmp_path: Path) -> None:
    proto = CASES["asymmetric pads"].model
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    result = rewrite_graph(read_onnx(tmp_path / "m.onnx"), TAKE_ALL)
    x = numbers(2, 6, 7, 5)
    original = CASES["asymmetric pads"].model
    assert difference(run(original, x=x), run(proto_of(result.model), x=x)) <= BOUND


def test_metadata_and_unknown_attributes_are_kept() -> None:
    proto = norm_model()
    node = proto.graph.node[0]
    node.doc_string = "of the user"
    node.metadata_props.add(key="theirs", value="7")
    node.attribute.append(helper.make_attribute("made_up", [2, 3]))
    proto.metadata_props.add(key="author", value="somebody")
    result = rewrite_graph(ir.from_proto(proto), TAKE_ALL)
    convs = [n for n in result.model.graph if n.op_type == "Conv"]
    assert [n.metadata_props["theirs"] for n in convs] == ["7", "7"]
    assert [n.attributes["made_up"].as_ints() for n in convs] == [(2, 3), (2, 3)]
    assert {n.doc_string for n in convs} == {"of the user"}
    assert result.model.metadata_props == {"author": "somebody"}


def test_names_that_are_taken_get_a_number() -> None:
    nodes = [
        helper.make_node("Neg", ["x"], ["conv.split.0"], name="conv.0"),
        helper.make_node("Conv", ["conv.split.0", "w"], ["y"], name="conv", group=2),
    ]
    tensors = {"w": numbers(10, 3, 3, 3), "w.1": numbers(1)}
    result = compare(model_of(nodes, (2, 6, 7, 5), tensors), numbers(2, 6, 7, 5))
    names = [node.name for node in result.model.graph]
    assert names == ["conv.0", "conv.split", "conv.0#2", "conv.1", "conv.concat"]
    assert "w.1#2" in result.model.graph.initializers


def test_the_name_of_a_site_is_its_mark() -> None:
    proto = norm_model()
    proto.graph.node[0].metadata_props.add(key="groupfx.site", value="layer1.0.conv2")
    assert split(proto).sites[0].name == "layer1.0.conv2"


def test_what_cannot_be_split_is_a_bug_of_the_caller() -> None:
    model = split(norm_model()).model
    conv = conv_nodes(model)[0][0]
    with pytest.raises(InternalError, match="conv1 has 1 group: there is nothing to split"):
        split_conv(model, conv)
    model = ir.from_proto(norm_model())
    with pytest.raises(InternalError, match="relu does not belong to conv1 alone"):
        split_conv(model, conv_nodes(model)[0][0], along=[model.graph[2]])


def steps_of_split(branches: int) -> int:
    """What it takes to split a convolution of as many groups."""
    weight = numbers(3 * branches, 2, 1, 1)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", group=branches)
    model = ir.from_proto(model_of([node], (1, 2 * branches, 2, 3), {"w": weight}))
    conv = conv_nodes(model)[0][0]
    steps = steps_of(lambda: split_conv(model, conv))
    assert norm_behind(conv.node) is None
    assert len(model.graph) == branches + 2
    return steps


def test_a_branch_costs_no_more_among_thousands() -> None:
    steps_of_split(2)
    assert steps_of_split(4096) <= 4 * steps_of_split(1024)
