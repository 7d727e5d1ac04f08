"""Branches as other tools and people write them: every spelling is merged, none computes otherwise.

Whole numbers go in, so that a merged graph gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from groupfx.deploy.forms.rewrite_onnx import rewrite_graph
from groupfx.deploy.graph.files import check_onnx, proto_of
from groupfx.passes import MergeParallelConv
from tests.deploy.forms.foreign_onnx import run

Array = np.ndarray
CHANNELS, WIDTH, OUTS = 6, 3, 2


class OnnxParts:
    """Two branches on the halves of `x`, of which a test writes parts in its own way."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, Array] = {}
        self.draw = np.random.default_rng(3)

    def whole(self, *shape: int) -> Array:
        return (self.draw.integers(1, 4, shape) * self.draw.choice([-1, 1], shape)).astype("f4")

    def held(self, name: str, array: Array) -> str:
        self.tensors[name] = array
        return name

    def ints(self, name: str, *values: int) -> str:
        return self.held(name, np.array(values, np.int64))

    def node(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def conv(self, k: int, part: str, bias: bool = False, **options: object) -> str:
        inputs = [part, self.held(f"w.{k}", self.whole(OUTS, WIDTH, 3, 3))]
        if bias:
            inputs.append(self.held(f"b.{k}", self.whole(OUTS)))
        return self.node("Conv", inputs, f"conv.{k}", **options)

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", CHANNELS, 5, 7])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "C", "H", "W"])],
            [numpy_helper.from_array(array, name) for name, array in self.tensors.items()],
        )
        imports = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=8)
        onnx.checker.check_model(model)
        return model


def slices(g: OnnxParts, axis: int = 1, *, negative: bool = False) -> list[str]:
    parts = []
    for k in range(2):
        start, end = WIDTH * k, WIDTH * (k + 1)
        if negative:
            start, end = start - CHANNELS, end - CHANNELS if end < CHANNELS else 2**63 - 1
        bounds = [g.ints(f"p{k}.{n}", v) for n, v in enumerate((start, end, axis))]
        parts.append(g.node("Slice", ["x", *bounds], f"p{k}"))
    return parts


def by_attributes(g: OnnxParts) -> list[str]:
    return [
        g.node("Slice", ["x"], f"p{k}", axes=[1], starts=[WIDTH * k], ends=[WIDTH * (k + 1)])
        for k in range(2)
    ]


def by_constants(g: OnnxParts) -> list[str]:
    """As PyTorch's own exporters write them: each number a node."""
    parts = []
    for k in range(2):
        names = []
        for role, value in (("starts", WIDTH * k), ("ends", WIDTH * (k + 1)), ("axes", 1)):
            tensor = numpy_helper.from_array(np.array([value], np.int64))
            names.append(g.node("Constant", [], f"p{k}.{role}", value=tensor))
        parts.append(g.node("Slice", ["x", *names], f"p{k}"))
    return parts


def on_all_axes(g: OnnxParts) -> list[str]:
    """One Slice with bounds for every axis, as TensorFlow's converter writes a strided slice."""
    parts = []
    for k in range(2):
        bounds = [
            g.ints(f"p{k}.starts", 0, WIDTH * k, 0, 0),
            g.ints(f"p{k}.ends", 2**31 - 1, WIDTH * (k + 1), 2**31 - 1, 2**31 - 1),
            g.ints(f"p{k}.axes", 0, 1, 2, 3),
        ]
        parts.append(g.node("Slice", ["x", *bounds], f"p{k}"))
    return parts


def gathers(g: OnnxParts, *, negative: bool = False) -> list[str]:
    parts = []
    for k in range(2):
        channels = [c - CHANNELS * negative for c in range(WIDTH * k, WIDTH * (k + 1))]
        parts.append(g.node("Gather", ["x", g.ints(f"p{k}.i", *channels)], f"p{k}", axis=1))
    return parts


def split(g: OnnxParts, axis: int = 1, **attributes: object) -> list[str]:
    inputs = ["x"]
    if g.opset >= 13 and "num_outputs" not in attributes:
        inputs.append(g.ints("sizes", WIDTH, WIDTH))
    node = helper.make_node("Split", inputs, ["p0", "p1"], name="cut", axis=axis, **attributes)
    g.nodes.append(node)
    return ["p0", "p1"]


def identities(g: OnnxParts) -> list[str]:
    return [g.node("Identity", [part], f"{part}.same") for part in slices(g)]


def named(
    array: Callable[[OnnxParts], Array], order: tuple[int, int] = (0, 0)
) -> Callable[[OnnxParts, int, str], str]:
    """A bias as an Add behind, of any shape, as the first or the second operand."""

    def behind(g: OnnxParts, k: int, value: str) -> str:
        operands = [value, g.held(f"bias.{k}", array(g))]
        return g.node("Add", operands[:: -1 if order[k] else 1], f"add.{k}")

    return behind


Behind = Callable[[OnnxParts, int, str], str]
Parts = Callable[[OnnxParts], list[str]]

PARTS: dict[str, tuple[int, Parts]] = {
    "slice": (17, slices),
    "slice-negative-axis": (17, lambda g: slices(g, -3)),
    "slice-negative-bounds": (17, lambda g: slices(g, negative=True)),
    "slice-attributes": (9, by_attributes),
    "slice-constants": (17, by_constants),
    "slice-on-all-axes": (17, on_all_axes),
    "gather": (17, gathers),
    "gather-negative": (17, lambda g: gathers(g, negative=True)),
    "split": (17, split),
    "split-negative-axis": (17, lambda g: split(g, -3)),
    "split-attribute": (11, lambda g: split(g, split=[WIDTH, WIDTH])),
    "split-in-equal-parts": (11, split),
    "split-num-outputs": (18, lambda g: split(g, num_outputs=2)),
    "identities": (17, identities),
}


def merged(g: OnnxParts, parts: list[str], behind: Behind | None, axis: int = 1) -> ir.Model:
    values = [g.conv(k, part, pads=[1, 1, 1, 1]) for k, part in enumerate(parts)]
    if behind is not None:
        values = [behind(g, k, value) for k, value in enumerate(values)]
    g.node("Concat", values, "y", axis=axis)
    before = g.model()
    result = rewrite_graph(ir.from_proto(before), [MergeParallelConv()])
    check_onnx(result.model)
    x = np.random.default_rng(1).integers(-4, 5, (3, CHANNELS, 5, 7)).astype(np.float32)
    for one, other in zip(run(before, x=x), run(proto_of(result.model), x=x), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [site.reason for site in result.sites] == [None], result.skipped
    return result.model


@pytest.mark.parametrize(("opset", "parts"), PARTS.values(), ids=PARTS)
def test_however_the_parts_are_cut(opset: int, parts: Parts) -> None:
    g = OnnxParts(opset)
    model = merged(g, parts(g), None)
    kinds = [node.op_type for node in model.graph if node.op_type != "Identity"]
    assert kinds == ["Conv"]


BEHIND: dict[str, Behind] = {
    "3-d": named(lambda g: g.whole(OUTS, 1, 1)),
    "4-d": named(lambda g: g.whole(1, OUTS, 1, 1)),
    "first": named(lambda g: g.whole(OUTS, 1, 1), (1, 1)),
    "either": named(lambda g: g.whole(OUTS, 1, 1), (0, 1)),
    "either-4-d": named(lambda g: g.whole(1, OUTS, 1, 1), (1, 0)),
    "of-each-place": named(lambda g: g.whole(OUTS, 5, 7)),
}


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
def test_a_bias_behind_in_either_order(behind: Behind) -> None:
    g = OnnxParts(17)
    model = merged(g, slices(g), behind)
    assert [node.op_type for node in model.graph] == ["Conv", "Add"]


def test_biases_of_several_ranks() -> None:
    def behind(g: OnnxParts, k: int, value: str) -> str:
        return named(lambda g: g.whole(*(1,) * k, OUTS, 1, 1), (0, 1))(g, k, value)

    g = OnnxParts(17)
    assert [node.op_type for node in merged(g, slices(g), behind).graph] == ["Conv", "Add"]


def test_a_concatenation_along_a_negative_axis() -> None:
    g = OnnxParts(17)
    assert len(list(merged(g, slices(g), None, axis=-3).graph)) == 1
