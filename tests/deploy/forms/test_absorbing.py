"""Convolutions whose channels the layers around bring in order: exact, and only where that can be.

What is compared are whole numbers, whose sums are the same in any order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import groupfx
from groupfx.deploy.forms.absorbing import absorb, surroundings
from groupfx.deploy.forms.rewrite_onnx import rewrite_graph
from groupfx.deploy.forms.static_shapes import static_shapes
from groupfx.deploy.graph.channel_order import orders_of
from groupfx.nn import Flgc2d
from groupfx.plan.absorbed import Absorbed
from groupfx.plan.blocks import Block, BlockStructure
from groupfx.plan.cost import Work
from tests.deploy.exported_model import assert_computes, convs_of
from tests.deploy.forms.test_fold_onnx import outputs, whole
from tests.models.zoo import give_statistics

# Inputs 1, 4 and 0 to outputs 2 and 0; the others to output 1.
BLOCKS = BlockStructure(5, 3, (Block((0, 1, 4), (0, 2)), Block((2, 3), (1,))))
BINS = Absorbed(4, ((0,), (1,)))


def blocked(structure: BlockStructure, *taps: int) -> np.ndarray:
    """Whole numbers where blocks are, and zeros."""
    weight = whole(structure.out_channels, structure.in_channels, *taps)
    mask = np.zeros(weight.shape[:2], dtype=bool)
    for block in structure.blocks:
        mask[np.ix_(block.outputs, block.inputs)] = True
    weight[~mask] = 0
    return weight


def model_of(text: str, weights: Mapping[str, np.ndarray]) -> ir.Model:
    graph = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    for name, array in weights.items():
        graph.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(graph)
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def absorbed(
    text: str,
    structure: BlockStructure,
    bins: Absorbed,
    weights: Mapping[str, np.ndarray],
    sites: tuple[str, ...] = ("site",),
) -> dict[str, ir.Node] | None:
    """The nodes by their names, after `site` was absorbed and the model was equal on numbers.

    None where it could not be.
    """
    model = model_of(text, weights)
    feeds = {value.name: whole(*value.shape.numpy()) for value in model.graph.inputs if value.shape}
    before = outputs(model, feeds)
    shapes = static_shapes(model)
    known = surroundings(model, sites, shapes, lambda conv: [Work(1, 20)])
    done = absorb(model, {"site": (structure, bins)}, sites, shapes)
    assert ("site" in known) == bool(done)
    for old, new in zip(before, outputs(model, feeds), strict=True):
        assert np.array_equal(old, new)
    return {node.name or "": node for node in model.graph} if done else None


def shape(nodes: Mapping[str, ir.Node], name: str) -> tuple[int, ...]:
    weight = nodes[name].inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    return tuple(weight.const_value.shape.numpy())


INVERTED = {
    "v": whole(5, 3, 1, 1),
    "b": whole(5),
    "d": whole(5, 1, 3, 3),
    "w": blocked(BLOCKS, 1, 1),
    "e": whole(3),
}


@pytest.mark.parametrize("behind", ["Gather", "Conv"])
def test_an_inverted_bottleneck_keeps_the_width_of_its_residual_stream(behind: str) -> None:
    nodes = absorbed(
        "m (float[2,3,4,5] x) => (float[2,3,4,5] y) { a = Conv(x, v, b) r = Relu(a) "
        "p = Conv<group=5, pads=[1,1,1,1]>(r, d) q = Relu(p) site = Conv(q, w, e) "
        "y = Add(x, site) }",
        BLOCKS,
        replace(BINS, by_product=behind == "Conv"),
        INVERTED,
    )
    assert nodes is not None
    assert [node.op_type for node in nodes.values()] == [
        *("Conv", "Relu", "Conv", "Relu", "Conv", behind, "Add")
    ]
    assert [shape(nodes, name) for name in ("a", "p", "site.0")] == [
        (8, 3, 1, 1),
        (8, 1, 3, 3),
        (8, 4, 1, 1),
    ]
    assert nodes["p"].attributes["group"].as_int() == 8
    assert orders_of(nodes["site.0"]).input == (0, 1, 4, -1, 2, 3, -1, -1)
    assert orders_of(nodes["a"]).output == (0, 1, 4, -1, 2, 3, -1, -1)


def test_outputs_that_one_convolution_writes_stay_in_the_order_of_the_bins() -> None:
    nodes = absorbed(
        "m (float[2,3,4,5] x) => (float[2,7,4,5] y) "
        "{ a = Conv(x, v) site = Conv(a, w) s = Sigmoid(site) z = Floor(s) y = Conv(z, u) }",
        BLOCKS,
        BINS,
        {"v": whole(5, 3, 1, 1), "w": blocked(BLOCKS, 1, 1), "u": whole(7, 3, 1, 1)},
    )
    assert nodes is not None
    assert "Gather" not in {node.op_type for node in nodes.values()}
    assert shape(nodes, "y") == (7, 8, 1, 1)


GATED = (
    "m (float[2,3,4,5] x) => (float[2,4,4,5] y) { a = Conv(x, v) r = Relu(a) "
    "site = Conv<group=3>(r, w) p = GlobalAveragePool(site) f = Floor(p) g = Conv(f, h) "
    "k = Conv(g, j) s = Relu(k) m = Mul(site, s) y = Conv(m, u) }"
)
GATES = {
    "v": whole(6, 3, 1, 1),
    "w": whole(6, 2, 1, 1),
    "h": whole(2, 6, 1, 1),
    "j": whole(6, 2, 1, 1),
    "u": whole(4, 6, 1, 1),
}


def test_three_groups_are_merged_with_one_of_zeros_through_a_gate() -> None:
    groups = BlockStructure.of_groups(6, 6, 3)
    nodes = absorbed(GATED, groups, Absorbed(4, ((0, 1), (2,))), GATES)
    assert nodes is not None
    assert [node.op_type for node in nodes.values()].count("Gather") <= 1
    assert nodes["site.0"].attributes["group"].as_int() == 2
    assert shape(nodes, "site.0") == (8, 4, 1, 1)
    assert shape(nodes, "a") == (8, 3, 1, 1)


REFUSED = {
    "an output of the model": (
        "m (float[2,3,4,5] x) => (float[2,3,4,5] y, float[2,5,4,5] a) "
        "{ a = Conv(x, v) site = Conv(a, w) y = Relu(site) }"
    ),
    "an input of the model": (
        "m (float[2,5,4,5] x) => (float[2,3,4,5] y) { site = Conv(x, w) y = Relu(site) }"
    ),
    "read in another way": (
        "m (float[2,3,4,5] x) => (float[2,3,4,5] y, float[2,5,20] z) <int64[3] n = {0, 0, -1}> "
        "{ a = Conv(x, v) site = Conv(a, w) y = Relu(site) z = Reshape(a, n) }"
    ),
    "infinite where it is zero": (
        "m (float[2,3,4,5] x) => (float[2,3,4,5] y) "
        "{ a = Conv(x, v) r = Reciprocal(a) c = Ceil(r) k = Clip(c, l, t) site = Conv(k, w) "
        "y = Relu(site) }"
    ),
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_channels_that_something_else_sees_stay(text: str) -> None:
    weights = {"w": blocked(BLOCKS, 1, 1)}
    if "Conv(x, v)" in text:
        weights["v"] = whole(5, 3, 1, 1)
    if "Clip" in text:
        weights |= {"l": np.float32(-9.0), "t": np.float32(9.0)}
    assert absorbed(text, BLOCKS, BINS, weights) is None


def test_the_channels_of_another_site_stay() -> None:
    text = (
        "m (float[2,3,4,5] x) => (float[2,3,4,5] y) "
        "{ a = Conv(x, v) site = Conv(a, w) y = Relu(site) }"
    )
    weights = {"v": whole(5, 3, 1, 1), "w": blocked(BLOCKS, 1, 1)}
    assert absorbed(text, BLOCKS, BINS, weights) is not None
    assert absorbed(text, BLOCKS, BINS, weights, ("site", "a")) is None


def test_a_rewrite_for_the_runtime_merges_a_prime_number_of_groups() -> None:
    structure = BlockStructure.of_groups(104, 104, 13)
    shapes = {"v": (104, 8, 1, 1), "w": (104, 8, 3, 3), "u": (8, 104, 1, 1)}
    # Zeros would be blocks.
    weights = {name: whole(*own) * 2 + 1 for name, own in shapes.items()}
    model = model_of(
        "m (float[1,8,28,28] x) => (float[1,8,28,28] y) { a = Conv(x, v) r = Relu(a) "
        "site = Conv<group=13, pads=[1,1,1,1]>(r, w) s = Relu(site) y = Conv(s, u) }",
        weights,
    )
    made = rewrite_graph(model, (), fastest=True)
    nodes = {node.name or "": node for node in made.model.graph}
    assert nodes["site.0"].attributes["group"].as_int() == 7
    assert [site.after for site in made.sites] == [
        "absorbed: 112->112 /7; the layers around bring its channels"
    ]
    assert made.fastest is not None
    assert made.fastest.absorbed["site"][0] == structure
    x = {"x": whole(1, 8, 28, 28)}
    for old, new in zip(outputs(model, x), outputs(made.model, x), strict=True):
        assert np.array_equal(old, new)
    assert made.after.macs == 784 * 112 * (8 + 16 * 9 + 8)


class Inverted(nn.Module):
    """Expansion, depthwise and a projection that learned its groups; the stream keeps its order."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 96, 1)
        self.expand = nn.Sequential(nn.Conv2d(96, 576, 1, bias=False), nn.BatchNorm2d(576))
        self.depthwise = nn.Conv2d(576, 576, 3, padding=1, groups=576, bias=False)
        self.norm = nn.BatchNorm2d(576)
        self.project = Flgc2d(576, 96, 1, group_num=8, balanced=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = nn.functional.relu6(self.norm(self.depthwise(nn.functional.relu6(self.expand(x)))))
        return x + self.project(y)


@pytest.mark.long
def test_an_export_takes_it_and_a_wrong_weight_of_it_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, path = Inverted().eval(), torch.randn(2, 3, 8, 8), tmp_path / "m.onnx"
    give_statistics(model)
    export = groupfx.export(model, x, path, target="onnxruntime")
    assert [conv.groups for conv in convs_of(path)["project"]] == [4]
    assert export.expected is not None
    assert export.expected < 0.95
    kinds = [node.op_type for node in ir.load(path).graph]
    assert kinds.count("Gather") <= 1
    assert_computes(path, model, x)
    check = groupfx.validate(model, path, x)
    assert check.ok, check.blame
    file = ir.load(path)
    weight = next(n for n in file.graph if n.name == "project.0").inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    wrong = np.roll(weight.const_value.numpy(), 1, axis=1)
    weight.const_value = ir.tensor(wrong, name=weight.name)
    ir.save(file, path)
    check = groupfx.validate(model, path, x)
    assert not check.ok
    assert check.worst_site is not None
    assert check.worst_site.name == "project"
