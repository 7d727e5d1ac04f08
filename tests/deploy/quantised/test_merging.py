"""Merging quantised branches: the numbers, names and kernels of the whole come back."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from groupfx.deploy.forms.merging import find_parallel
from groupfx.deploy.forms.rewrite_onnx import OnnxRewrite, rewrite_graph
from groupfx.deploy.forms.static_shapes import static_shapes
from groupfx.deploy.quantised.convs import quantised_convs
from groupfx.passes import MergeParallelConv
from tests.deploy.quantised.drawn_cases import drawn_case
from tests.deploy.quantised.kernels_run import whole_kernels
from tests.deploy.quantised.quantised_files import QuantisedCase, quantised_file
from tests.deploy.quantised.test_splitting import CASES, IN_FLOATS, require_same, split
from tests.step_counts import steps_of


def merge(proto: onnx.ModelProto) -> OnnxRewrite:
    """Merged, and checked by onnx."""
    made = rewrite_graph(ir.from_proto(proto), [MergeParallelConv()])
    onnx.checker.check_model(ir.to_proto(made.model), full_check=True)
    return made


def held(model: onnx.ModelProto) -> dict[str, tuple[object, ...]]:
    """Every stored tensor by its name: what it is, to the bit."""
    tensors = {t.name: t for t in model.graph.initializer}
    tensors |= {n.output[0]: n.attribute[0].t for n in model.graph.node if n.op_type == "Constant"}
    arrays = {name: numpy_helper.to_array(t) for name, t in tensors.items()}
    return {n: (a.shape, a.dtype.name, a.tobytes()) for n, a in arrays.items()}


def nodes(model: onnx.ModelProto) -> dict[str, tuple[object, ...]]:
    """Every node by its name: its operator and its attributes."""
    return {
        node.name: (node.op_type, sorted(str(a) for a in node.attribute))
        for node in model.graph.node
        if node.op_type != "Constant"
    }


def require_came_back(case: QuantisedCase, proto: onnx.ModelProto, **options: object) -> None:
    """Merging a split gives the file, and splitting that gives the split."""
    after = ir.to_proto(split(proto, **options).model)
    made = merge(after)
    assert [site.reason for site in made.skipped] == []
    back = ir.to_proto(made.model)
    assert held(back) == held(proto)
    assert nodes(back) == nodes(proto)
    require_same(case, proto, back)
    again = ir.to_proto(split(back, **options).model)
    assert (held(again), nodes(again)) == (held(after), nodes(after))


@pytest.mark.parametrize("name", [*CASES, *IN_FLOATS])
@pytest.mark.parametrize("qdq", ["inside", "outside"])
def test_the_whole_comes_back(name: str, qdq: str) -> None:
    case = (CASES | IN_FLOATS)[name]
    require_came_back(case, quantised_file(case), qdq=qdq)


def test_random_ones_come_back() -> None:
    for seed in range(30):
        case = drawn_case(seed)
        require_came_back(case, quantised_file(case), **({} if seed % 2 else {"branches": 2}))


@pytest.mark.long
def test_five_hundred_random_ones_come_back() -> None:
    for seed in range(30, 530):
        case = drawn_case(seed)
        require_came_back(case, quantised_file(case), **({} if seed % 2 else {"branches": 2}))


Edit = Callable[[onnx.ModelProto], object]


def changed(name: str, change: Callable[[np.ndarray], np.ndarray], new: str | None = None) -> Edit:
    """Another initialiser, or a `new` one instead of it at the nodes of branch 1."""

    def edit(model: onnx.ModelProto) -> None:
        (tensor,) = (t for t in model.graph.initializer if t.name == name)
        made = numpy_helper.from_array(
            np.asarray(change(numpy_helper.to_array(tensor))), new or name
        )
        if new is None:
            tensor.CopyFrom(made)
            return
        model.graph.initializer.append(made)
        for node in model.graph.node:
            if ".1." in f"{node.name}.":
                node.input[:] = [new if value == name else value for value in node.input]

    return edit


ONE_SCALE = QuantisedCase(per_channel=False, bias=None)
OWN = {
    "scales of the branches": (ONE_SCALE, changed("w_scale", lambda s: s * np.float32(1.5), "own")),
    "zero points too": (
        replace(ONE_SCALE, symmetric=False),
        changed("w_zero", lambda z: z + np.int8(3), "own"),
    ),
    "of an operator": (
        replace(ONE_SCALE, layout="QLinearConv"),
        changed("w_scale", lambda s: s * np.float32(1.5), "own"),
    ),
    "of a transposed one": (
        replace(ONE_SCALE, transposed=True),
        changed("w_scale", lambda s: s * np.float32(0.75), "own"),
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_a_scale_of_each_branch_becomes_one_of_each_row(name: str, tmp_path: Path) -> None:
    case, edit = OWN[name]
    after = ir.to_proto(split(quantised_file(case)).model)
    edit(after)
    branches = tuple(quantised_convs(ir.from_proto(after)))
    made = merge(after)
    (whole,) = quantised_convs(made.model)
    assert whole.weight.axis == 0
    wanted = np.concatenate([branch.weight.reals for branch in branches])
    np.testing.assert_array_equal(whole.weight.reals, wanted)
    back = ir.to_proto(made.model)
    require_same(case, after, back)
    assert whole_kernels(back, tmp_path) == int(not case.transposed)


LEFT = {
    "scales along another axis": (
        QuantisedCase(transposed=True, bias=None),
        changed("w_scale", lambda s: s[::-1].copy(), "own"),
        "the convolutions differ: conv.0 and conv.1",
    ),
    "another scale of the input": (
        QuantisedCase(),
        changed("x_scale", lambda s: s * np.float32(2), "own"),
        "what stands in front of them differ",
    ),
    "another zero point of the output": (
        QuantisedCase(),
        changed("y_zero", lambda z: z + np.uint8(1), "own"),
        "what stands behind them differ",
    ),
    "another output of an operator": (
        QuantisedCase(layout="QLinearConv"),
        changed("y_scale", lambda s: s * np.float32(2), "own"),
        "the convolutions differ: conv.0 and conv.1",
    ),
    "another type of weight": (
        QuantisedCase(layout="weight only", bias=None, per_channel=False),
        lambda model: [
            changed("w_quantized.1", lambda w: w.astype(np.uint8))(model),
            changed("w_zero", lambda z: z.astype(np.uint8), "own")(model),
        ],
        "the convolutions differ: conv.0 and conv.1",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_branches_that_differ_are_left_with_the_reason(name: str) -> None:
    case, edit, reason = LEFT[name]
    after = ir.to_proto(split(quantised_file(case)).model)
    edit(after)
    del after.graph.value_info[:]
    made = rewrite_graph(ir.from_proto(after), [MergeParallelConv()])
    (left,) = made.skipped
    assert reason in (left.reason or "")
    assert not made.sites


def test_a_pair_that_rounds_to_another_scale_stays() -> None:
    # What stands behind the concatenation is not what stands in the branches.
    after = ir.to_proto(split(quantised_file(QuantisedCase())).model)
    scale = numpy_helper.from_array(np.float32(0.5), "coarse")
    after.graph.initializer.append(scale)
    for node in after.graph.node:
        if node.name in ("qy", "dqy"):
            node.input[1] = "coarse"
    made = merge(after)
    kinds = [node.op_type for node in made.model.graph]
    assert kinds.count("QuantizeLinear") == 3
    # Optimised, ONNX Runtime makes one rounding of two with other scales, which is another one.
    require_same(QuantisedCase(), after, ir.to_proto(made.model), levels=1)


def test_scales_that_the_graph_computes_are_shared_or_left() -> None:
    value = helper.make_tensor_value_info
    w = np.random.default_rng(0).integers(-9, 9, (6, 2, 3, 3)).astype(np.int8)
    made = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "s", "z"], name="dynamic"),
        helper.make_node("ConvInteger", ["xq", "w", "z"], ["y"], name="conv", group=2),
    ]
    graph = helper.make_graph(
        made, "dynamic", [value("x", 1, ["N", 4, 9, 9])], [value("y", 6, ["N", 6, 7, 7])],
        [numpy_helper.from_array(w, "w")],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    case = QuantisedCase(layout="ConvInteger", groups=2, inputs=2, outputs=3, size=9)
    require_came_back(case, proto)


def steps_to_find(branches: int) -> int:
    """What it takes to find so many branches, all of which read the scale of one input."""
    case = QuantisedCase(groups=branches, inputs=1, outputs=1, kernel=(1,), bias=None, size=3)
    model = split(quantised_file(case)).model
    shapes = static_shapes(model)
    return steps_of(lambda: len(list(find_parallel(model, shapes))))


def test_a_scale_of_thousands_of_branches_costs_no_more_a_branch() -> None:
    steps_to_find(2)
    assert steps_to_find(64) <= 4.4 * steps_to_find(16)


def unequal_branches() -> onnx.ModelProto:
    """Three branches on parts of a value, of 4->6, 6->3 and 4->6 channels, with weights in int8."""
    sizes, generator = ((4, 6), (6, 3), (4, 6)), np.random.default_rng(0)
    parts = [f"x{k}" for k in range(3)]
    held = {"cuts": np.array([size for size, _ in sizes])}
    made = [helper.make_node("Split", ["x", "cuts"], parts, axis=1, name="cut")]
    for k, (inputs, outputs) in enumerate(sizes):
        held[f"w.{k}"] = generator.integers(-9, 9, (outputs, inputs, 3, 3)).astype(np.int8)
        held[f"s.{k}"] = generator.uniform(0.1, 1, outputs).astype(np.float32)
        names = [f"w.{k}", f"s.{k}"]
        made += [
            helper.make_node("DequantizeLinear", names, [f"d.{k}"], name=f"dq.{k}", axis=0),
            helper.make_node("Conv", [f"x{k}", f"d.{k}"], [f"y.{k}"], name=f"conv.{k}"),
        ]
    made.append(helper.make_node("Concat", [f"y.{k}" for k in range(3)], ["y"], axis=1, name="cat"))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        made, "unequal", [value("x", 1, ["N", 14, 5, 5])], [value("y", 1, ["N", 15, 3, 3])],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_branches_of_two_sizes_become_two_convolutions_and_are_not_padded() -> None:
    proto = unequal_branches()
    made = rewrite_graph(ir.from_proto(proto), [MergeParallelConv(unequal="bucketed")])
    found = list(quantised_convs(made.model))
    assert [conv.conv.spec.groups for conv in found] == [2, 1]
    case = QuantisedCase(groups=7, size=5)
    require_same(case, proto, ir.to_proto(made.model))
    padded = rewrite_graph(ir.from_proto(proto), [MergeParallelConv(unequal="padded")])
    (left,) = padded.skipped
    assert "are not filled up with zeros: unequal=bucketed" in (left.reason or "")


def test_scales_that_do_not_fit_are_not_put_together() -> None:
    after = ir.to_proto(split(quantised_file(QuantisedCase(bias=None))).model)
    changed("w_scale.1", lambda scales: scales[:4])(after)
    del after.graph.value_info[:]
    made = rewrite_graph(ir.from_proto(after), [MergeParallelConv()])
    (left,) = made.skipped
    wanted = "DequantizeLinear 'dqw.1' has the scale 'w_scale.1' of 4 numbers, and its weight "
    assert left.reason == f"{wanted}[5, 2, 3, 3] takes 5 along axis 0"


def test_scales_of_blocks_are_not_put_together() -> None:
    case = QuantisedCase(opset=21, bias=None, quantised_output=False)
    after = ir.to_proto(split(quantised_file(case)).model)
    for entry in after.graph.node:
        if entry.name.startswith("dqw."):
            del entry.attribute[:]
            fields = {"axis": 1, "block_size": 2}
            entry.attribute.extend(helper.make_attribute(*field) for field in fields.items())
    for k in range(3):
        changed(f"w_scale.{k}", lambda s: np.full((5, 1, 3, 3), 0.5, np.float32))(after)
        changed(f"w_zero.{k}", lambda z: np.zeros((5, 1, 3, 3), np.int8))(after)
    del after.graph.value_info[:]
    assert not rewrite_graph(ir.from_proto(after), [MergeParallelConv()]).sites
