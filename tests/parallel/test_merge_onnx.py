"""`merge-parallel-conv` on ONNX files: branches that are one convolution, and those that are not.

Whole numbers go in, so that a merged graph gives the same bits, whatever the order of its sums.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from groupfx.deploy.forms.rewrite_onnx import OnnxRewrite, find_onnx, rewrite_graph
from groupfx.deploy.graph.files import check_onnx, proto_of
from groupfx.parallel.planning import Unequal
from groupfx.passes import MergeParallelConv, SplitGroupedConv
from tests.deploy.forms.foreign_onnx import CASES, run
from tests.parallel.onnx_branches import Branched, build

MERGE = [MergeParallelConv()]


def merged(case: Branched, unequal: Unequal = "keep") -> tuple[onnx.ModelProto, OnnxRewrite]:
    """The model and its rewrite, which gives the same bits on whole numbers."""
    before = build(case)
    result = rewrite_graph(ir.from_proto(before), [MergeParallelConv(unequal=unequal)])
    check_onnx(result.model)
    after = proto_of(result.model)
    for batch in (1, 3):
        shape = (batch, case.channels, *(9, 7, 5)[: case.dims])
        x = np.random.default_rng(batch).integers(-4, 5, shape).astype(np.float32)
        for one, other in zip(run(before, x=x), run(after, x=x), strict=True):
            np.testing.assert_array_equal(one, other)
    return before, result


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


HONEST: dict[str, Branched] = {
    "slices": Branched(),
    "split": Branched(cut="split"),
    "gathers": Branched(cut="gather"),
    "slices-of-slices": Branched(cut="nested"),
    "one-group-each": Branched(groups=1),
    "depthwise": Branched(channels=6, size=2, starts=(0, 2, 4), groups=2, outs=2),
    "no-bias": Branched(bias=False),
    "1-d": Branched(dims=1),
    "3-d": Branched(dims=3),
    "transposed": Branched(transposed=True),
    "padded-in-front": Branched(pad=True),
    "norm": Branched(behind=("norm",)),
    "bias-as-add": Branched(bias=False, behind=("bias",)),
    "bias-added-first": Branched(bias=False, behind=("bias",), seed=1),
    "norm-relu": Branched(behind=("norm", "relu")),
    "relu-norm-clip": Branched(behind=("relu", "norm", "clip")),
    "pool-behind": Branched(behind=("pool", "relu")),
    "everything": Branched(cut="split", pad=True, behind=("bias", "norm", "clip")),
}


@pytest.mark.parametrize("case", HONEST.values(), ids=HONEST)
def test_branches_become_one_convolution(case: Branched) -> None:
    _, result = merged(case)
    (site,) = result.sites
    assert (site.name, site.groups) == ("convs", 3 * case.groups)
    assert not result.skipped
    counts = operators(result.model)
    kind = "ConvTranspose" if case.transposed else "Conv"
    assert counts[kind] == 1
    assert not {"Concat", "Split", "Slice", "Gather"} & counts.keys()
    assert {"convs.weight"} <= result.model.graph.initializers.keys()


ORDERS: dict[str, tuple[Branched, tuple[int, ...]]] = {
    "parts": (
        Branched(cut="split", change="swapped parts"),
        (4, 5, 6, 7, 0, 1, 2, 3, 8, 9, 10, 11),
    ),
    "starts": (Branched(starts=(8, 0, 4)), (8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7)),
    "some": (Branched(starts=(4, 0)), (4, 5, 6, 7, 0, 1, 2, 3)),
    "middle": (Branched(starts=(4, 8)), (4, 5, 6, 7, 8, 9, 10, 11)),
}


@pytest.mark.parametrize(("case", "order"), ORDERS.values(), ids=ORDERS)
def test_another_order_leaves_a_gather(case: Branched, order: tuple[int, ...]) -> None:
    _, result = merged(case)
    (site,) = result.sites
    (gather,) = [node for node in result.model.graph if node.op_type == "Gather"]
    indices = gather.inputs[1]
    assert indices is not None
    assert indices.const_value is not None
    assert tuple(indices.const_value.numpy().tolist()) == order
    assert "a gather stays" in site.notes[0]


def test_swapped_outputs_put_the_weights_in_their_order() -> None:
    _, result = merged(Branched(change="swapped outputs"))
    assert operators(result.model)["Gather"] == 1


REFUSED: dict[str, tuple[Branched, str]] = {
    "shifted": (Branched(change="shifted"), "channel 8 of x is read by two of them"),
    "shifted-last": (Branched(channels=14, change="shifted", at=2), "8 of x is read by none"),
    "read-twice": (Branched(change="read twice"), "channel 0 of x is read by two of them"),
    "joined-twice": (Branched(change="joined twice"), "is used"),
    "other-join": (Branched(change="something else joined"), "input 1 of y comes from no conv"),
    "part-used": (Branched(change="part used"), "what part1 gives is used elsewhere too"),
    "inside-used": (Branched(change="inside used"), "what convs.1 gives is used elsewhere too"),
    "inside-given": (Branched(change="inside given"), "what convs.1 gives is used elsewhere too"),
    "behind-used": (
        Branched(change="inside used", behind=("norm", "relu")),
        "what relus.1 gives is used elsewhere too",
    ),
    "other-value": (Branched(change="another value", at=2), "they do not all read one value"),
    "other-groups": (Branched(change="other groups"), "a group of convs.0 has 2->3 channels, and"),
    "other-kernel": (Branched(change="other kernel"), "the convolutions differ: convs.0 and"),
    "other-dilation": (Branched(change="other dilation"), "the convolutions differ: convs.0 and"),
    "other-pads": (Branched(pad=True, change="other pads"), "what stands in front of them differ"),
    "no-bias": (Branched(change="no bias"), "some of them have a bias, and some have none"),
    "tied": (Branched(change="tied"), "convs.0.weight is used more than once"),
    "computed": (Branched(change="computed"), "input 1 of y comes from no convolution"),
    "one-more": (Branched(change="one more"), "what stands behind them differ: 0 and 1 operations"),
    "other-epsilon": (
        Branched(behind=("norm",), change="other epsilon"),
        "what stands behind them differ: norms.0 and norms.1",
    ),
    "other-clip": (
        Branched(behind=("clip",), change="other clip"),
        "what stands behind them differ: clips.0 and clips.1",
    ),
    "other-activation": (
        Branched(behind=("relu",), change="other activation"),
        "what stands behind them differ: relus.0 and relus.1",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("case", "reason"), REFUSED.values(), ids=REFUSED)
def test_near_patterns_are_left_with_their_reason(case: Branched, reason: str) -> None:
    before, result = merged(case)
    assert not result.sites
    (skipped,) = result.skipped
    assert reason in skipped.reason
    kinds = Counter(node.op_type for node in before.graph.node)
    assert operators(result.model) == kinds


def test_another_axis_is_something_else() -> None:
    # Of equal sizes on every axis, so that it could be joined either way.
    _, result = merged(Branched(change="another axis"))
    assert "concatenates along axis 2, not channels" in result.skipped[0].reason


def test_channels_between_parts_that_nobody_reads() -> None:
    _, result = merged(Branched(starts=(0, 8)))
    assert "channel 4 of x is read by none of them" in result.skipped[0].reason


def test_whole_reads_are_no_parts() -> None:
    """The branches of an Inception block read all of a value each."""
    _, result = merged(Branched(channels=4, starts=(0, 0, 0)))
    assert not result.sites
    assert not result.skipped


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_split_comes_back(case: object) -> None:
    """Names, weights to the bit and numbers of nodes are those of the file before the split."""
    model = ir.from_proto(case.model)  # type: ignore[attr-defined]
    split = rewrite_graph(model, [SplitGroupedConv(depthwise="split")])
    back = rewrite_graph(split.model, MERGE)
    assert len(back.sites) == len(split.sites)
    kept = [node for node in model.graph if node.op_type not in ("Constant", "Identity")]
    assert [n.op_type for n in back.model.graph] == [n.op_type for n in kept]
    for old, new in zip(kept, back.model.graph, strict=True):
        for one, other in zip(old.inputs[1:], new.inputs[1:], strict=True):
            assert one is not None
            assert other is not None
            if one.is_initializer():
                assert one.const_value is not None
                assert other.const_value is not None
                np.testing.assert_array_equal(one.const_value.numpy(), other.const_value.numpy())


def test_a_merge_is_split_into_what_it_was() -> None:
    before = build(Branched(groups=1, behind=("norm",)))
    there = rewrite_graph(ir.from_proto(before), MERGE)
    back = rewrite_graph(there.model, [SplitGroupedConv()])
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in before.graph.initializer}
    for name, array in held.items():
        if not name.startswith("part"):
            value = back.model.graph.initializers[name].const_value
            assert value is not None
            np.testing.assert_array_equal(value.numpy(), array)


UNEQUAL = ((4, 6, 2), (6, 3, 3), (2, 3, 1))
"""Inputs, outputs and groups of branches, of which the first and the last have like groups."""

WIDE: dict[str, Branched] = {
    "slices": Branched(starts=(0, 4, 10), unequal=UNEQUAL),
    "split": Branched(cut="split", starts=(0, 4, 10), unequal=UNEQUAL),
    "gathers": Branched(cut="gather", starts=(0, 4, 10), unequal=UNEQUAL),
    "in-another-order": Branched(starts=(8, 2, 0), unequal=UNEQUAL),
    "of-more-channels": Branched(channels=15, starts=(1, 5, 11), unequal=UNEQUAL),
    "transposed": Branched(transposed=True, starts=(0, 4, 10), unequal=UNEQUAL),
    "1-d": Branched(dims=1, bias=False, starts=(0, 4, 10), unequal=UNEQUAL),
    "norm-and-pad": Branched(
        starts=(0, 4, 10), unequal=UNEQUAL, pad=True, behind=("norm", "bias", "relu", "clip")
    ),
    "outputs": Branched(starts=(0, 4, 8), unequal=((4, 6, 1), (4, 3, 1), (4, 6, 1))),
    "inputs": Branched(starts=(0, 4, 10), unequal=((4, 2, 1), (6, 2, 1), (2, 2, 1))),
}


@pytest.mark.parametrize("unequal", ["bucketed", "padded"])
@pytest.mark.parametrize("case", WIDE.values(), ids=WIDE)
def test_groups_of_several_sizes(case: Branched, unequal: Unequal) -> None:
    _, result = merged(case, unequal)
    kind = "ConvTranspose" if case.transposed else "Conv"
    buckets = len({(i // g, o // g) for i, o, g in case.unequal})
    if unequal == "bucketed" and buckets == len(case.unequal):
        (left,) = result.skipped
        assert "no two of them have groups of one size" in left.reason
        return
    (site,) = result.sites
    assert operators(result.model)[kind] == (buckets if unequal == "bucketed" else 1)
    assert (site.after or "").startswith(unequal)
    said = "one convolution for each size" if unequal == "bucketed" else "filled up with zeros, "
    assert said in site.notes[0]
    assert all(operators(result.model)[stage] <= 1 for stage in ("Relu", "BatchNormalization"))
    again = rewrite_graph(result.model, [MergeParallelConv(unequal=unequal)])
    assert not again.sites


def test_padding_is_counted() -> None:
    """Groups 2->3 beside 2->1, all padded to 2->3: 6 x 2 x 3 products in place of 18 + 6."""
    _, result = merged(WIDE["slices"], "padded")
    assert "1.50 x multiply-accumulates" in result.sites[0].notes[0]
    (conv,) = [node for node in result.model.graph if node.op_type == "Conv"]
    weight = conv.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    array = weight.const_value.numpy()
    assert array.shape == (18, 2, 3, 3)
    assert np.count_nonzero(array) == (18 + 6) * 9


def test_groups_of_several_sizes_stay_unless_asked_for() -> None:
    _, result = merged(WIDE["slices"])
    (left,) = result.skipped
    assert "a group of convs.0 has 2->3 channels, and one of convs.1 2->1" in left.reason
    assert "unequal=bucketed makes several, unequal=padded fills up with zeros" in left.reason


@pytest.mark.parametrize("kind", ["DequantizeLinear", "Cast"])
@pytest.mark.parametrize("where", ["weight", "bias behind"])
def test_what_is_made_of_a_constant_is_put_together_with_its_scale(kind: str, where: str) -> None:
    """The numbers alone are not the weight: their scale, or their dtype, is in the node.

    A scale of each branch becomes one of each of its channels; anything else is left.
    """
    proto = build(Branched(bias=False, behind=("bias",)))
    graph, held = proto.graph, {"weight": "convs", "bias behind": "biass"}[where]
    role = "weight" if where == "weight" else "added"
    for k in range(3):
        name = f"{held}.{k}.{role}"
        (tensor,) = [t for t in graph.initializer if t.name == name]
        array = onnx.numpy_helper.to_array(tensor)
        stored = array.astype(np.int8 if kind == "DequantizeLinear" else np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(stored, f"{name}.stored"))
        inputs, options = [tensor.name], {"to": onnx.TensorProto.FLOAT} if kind == "Cast" else {}
        if kind == "DequantizeLinear":
            scale = onnx.numpy_helper.from_array(np.float32(k + 1), f"{name}.scale")
            graph.initializer.append(scale)
            inputs.append(scale.name)
        graph.node.insert(0, onnx.helper.make_node(kind, inputs, [name], name=name, **options))
    result = rewrite_graph(ir.from_proto(proto), MERGE)
    check_onnx(result.model)
    x = np.random.default_rng(1).integers(-4, 5, (1, 12, 9, 7)).astype(np.float32)
    for one, other in zip(run(proto, x=x), run(proto_of(result.model), x=x), strict=True):
        np.testing.assert_array_equal(one, other)
    if (kind, where) == ("DequantizeLinear", "weight"):
        held = {t.name: t for t in proto_of(result.model).graph.initializer}
        scales = onnx.numpy_helper.to_array(held["convs.weight.scale"])
        np.testing.assert_array_equal(scales, np.repeat([1, 2, 3], len(scales) // 3))
    else:
        assert "may not be merged" in result.skipped[0].reason


def test_a_part_of_a_split_along_another_axis_is_that_part() -> None:
    """Each branch takes the second half of the rows of its channels: no first output is taken."""
    proto = build(Branched(change=None))
    graph = proto.graph
    halves = onnx.numpy_helper.from_array(np.array([4, 5], np.int64), "halves")
    graph.initializer.append(halves)
    for k in range(3):
        (conv,) = [n for n in graph.node if n.name == f"convs.{k}"]
        place = list(graph.node).index(conv)
        cut = onnx.helper.make_node(
            "Split", [conv.input[0], "halves"], [f"top{k}", f"bottom{k}"], name=f"cut{k}", axis=2
        )
        conv.input[0] = f"bottom{k}"
        graph.node.insert(place, cut)
    result = rewrite_graph(ir.from_proto(proto), MERGE)
    x = np.random.default_rng(1).integers(-4, 5, (1, 12, 9, 7)).astype(np.float32)
    for one, other in zip(run(proto, x=x), run(proto_of(result.model), x=x), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not result.sites


def test_find_tells_what_a_merge_would_do() -> None:
    found = find_onnx(ir.from_proto(build(Branched())), MERGE)
    assert [(site.name, site.kind, site.after) for site in found if site.reason is None] == [
        ("convs", "parallel", "Conv2d 12->18, kernel 3x3, groups 6")
    ]


def test_options_name_branches_or_what_they_become() -> None:
    model = ir.from_proto(build(Branched()))
    assert rewrite_graph(model, [MergeParallelConv(only=("convs.1",))]).sites
    assert rewrite_graph(model, [MergeParallelConv(only=("convs",))]).sites
    (left,) = rewrite_graph(model, [MergeParallelConv(skip=("convs",))]).skipped
    assert left.reason == "named by skip=convs"


CHANGES = (
    None, "shifted", "read twice", "swapped outputs", "swapped parts", "joined twice",
    "something else joined", "part used", "inside used", "inside given", "another value",
    "other groups", "other kernel", "other dilation", "other pads", "no bias", "tied", "computed",
    "one more", "other epsilon", "other clip", "other activation",
)  # fmt: skip


@st.composite
def near_patterns(draw: st.DrawFn) -> Branched:
    """Branches of any kind, with one thing wrong or nothing."""
    groups, size, outs = draw(st.integers(1, 2)), draw(st.sampled_from([2, 4])), 2
    count = draw(st.integers(2, 4))
    starts = [size * k for k in range(count)]
    channels = size * (count + draw(st.integers(0, 1)))
    unequal: tuple[tuple[int, int, int], ...] = ()
    if draw(st.booleans()):
        sides = st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2))
        drawn = [draw(sides) for _ in range(count)]
        unequal = tuple((i * g, o * g, g) for i, o, g in drawn)
        ends = np.cumsum([inputs for inputs, _, _ in unequal]).tolist()
        starts = [end - inputs for end, (inputs, _, _) in zip(ends, unequal, strict=True)]
        channels = ends[-1] + draw(st.integers(0, 1))
    elif draw(st.booleans()):
        starts = draw(st.permutations(starts))
    return Branched(
        channels=channels,
        unequal=unequal,
        size=size,
        starts=tuple(starts),
        groups=groups,
        outs=outs * draw(st.integers(1, 2)),
        dims=draw(st.integers(1, 2)),
        transposed=draw(st.booleans()),
        bias=draw(st.booleans()),
        cut=draw(st.sampled_from(["split", "slice", "gather", "nested"])),
        pad=draw(st.booleans()),
        behind=tuple(
            draw(
                st.lists(st.sampled_from(["norm", "bias", "relu", "clip"]), max_size=3, unique=True)
            )
        ),
        # No weight is that of branches of two sizes.
        change=draw(st.sampled_from([c for c in CHANGES if not (unequal and c == "tied")])),
        at=draw(st.integers(1, count - 1)),
        seed=draw(st.integers(0, 1)),
    )


UNEQUAL_OPTIONS: tuple[Unequal, ...] = ("keep", "bucketed", "padded")


def never_wrong(case: Branched, unequal: Unequal) -> None:
    _, result = merged(case, unequal)
    for site in (*result.sites, *result.skipped):
        assert site.name
    for left in result.skipped:
        assert left.reason


@given(near_patterns(), st.sampled_from(UNEQUAL_OPTIONS))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_near_pattern_is_merged_wrongly(case: Branched, unequal: Unequal) -> None:
    never_wrong(case, unequal)


@pytest.mark.long
@given(near_patterns(), st.sampled_from(UNEQUAL_OPTIONS))
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_thousand_near_patterns(case: Branched, unequal: Unequal) -> None:
    never_wrong(case, unequal)
