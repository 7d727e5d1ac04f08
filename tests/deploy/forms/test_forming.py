"""Every form of a masked convolution, in ONNX Runtime, against the convolution itself.

Weights and inputs are whole numbers whose sums float32 holds exactly, so that the order in which a
kernel adds up does not matter: the outputs must agree to the bit. The site stands between two
convolutions, so that with optimisations on it runs in the blocked layout where its form allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper

from groupfx.deploy.forms.forming import apply_form
from groupfx.deploy.graph.conv_nodes import conv_nodes
from groupfx.deploy.graph.files import check_onnx, proto_of
from groupfx.deploy.graph.free_names import Names
from groupfx.deploy.graph.metadata import mark_of
from groupfx.plan.binned import WAYS
from groupfx.plan.blocks import BlockStructure, find_blocks
from groupfx.plan.cost import OnnxRuntime, Work
from groupfx.plan.forms import FORMS, FormPlan, plan
from groupfx.plan.packing import pack, pack_bins
from tests.deploy.forms.foreign_onnx import Array, model_of
from tests.plan.alone import chosen

LEVELS = (
    ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
)
SIZE = 6


@dataclass(frozen=True)
class Site:
    """A masked convolution; channels whose group is -1 meet no other."""

    inputs: int
    outputs: int
    groups: int
    kernel: int = 3
    attributes: tuple[tuple[str, Any], ...] = ()
    bias: bool = True
    lost: int = 0
    opset: int = 17

    @property
    def mask(self) -> Array:
        draw = np.random.default_rng([self.inputs, self.outputs, self.groups])
        of_inputs = draw.integers(self.groups, size=self.inputs)
        of_outputs = draw.integers(self.groups, size=self.outputs)
        of_inputs[: self.lost], of_outputs[: self.lost] = -1, -2
        return np.equal.outer(of_outputs, of_inputs).astype(np.int64)

    @property
    def structure(self) -> BlockStructure:
        return find_blocks(self.mask, max_blocks=self.outputs, min_saving=0)

    @property
    def model(self) -> onnx.ModelProto:
        """1x1 convolution, the site, Relu, 1x1 convolution."""
        draw = np.random.default_rng(7)
        shape = (self.outputs, self.inputs, self.kernel, self.kernel)
        weight = draw.integers(1, 6, shape) * draw.choice([-1, 1], shape)
        tensors = {
            "before": draw.integers(-2, 3, (self.inputs, 3, 1, 1)),
            "weight": weight * self.mask[:, :, None, None],
            "bias": draw.integers(-99, 99, self.outputs),
            "behind": draw.integers(-2, 3, (5, self.outputs, 1, 1)),
        }
        held = ["weight", "bias"] if self.bias else ["weight"]
        around = {"pads": [self.kernel // 2] * 4, **dict(self.attributes)}
        nodes = [
            helper.make_node("Conv", ["x", "before"], ["a"], name="first"),
            helper.make_node("Conv", ["a", *held], ["b"], name="site", **around),
            helper.make_node("Relu", ["b"], ["c"]),
            helper.make_node("Conv", ["c", "behind"], ["y"], name="last"),
        ]
        if not self.bias:
            del tensors["bias"]
        wide = {name: array.astype(np.float32) for name, array in tensors.items()}
        return model_of(nodes, ("N", 3, SIZE, SIZE), wide, opset=self.opset)


SITES = {
    "3x3 in 8 groups": Site(64, 64, 8),
    "3x3 in 3 groups": Site(70, 90, 3),
    "strided": Site(48, 64, 4, attributes=(("strides", [2, 2]),)),
    "1x1, no bias": Site(96, 40, 5, kernel=1, bias=False),
    "channels in no group": Site(50, 60, 3, lost=7),
    "small": Site(9, 13, 3),
    "sizes of a Split as an attribute": Site(20, 14, 3, opset=12),
}


def packed(*ways: str) -> Callable[[BlockStructure], FormPlan]:
    """The plan by these ways, where one of them applies to each bin."""

    def make(structure: BlockStructure) -> FormPlan:
        found = pack(structure, OnnxRuntime(Work(9, SIZE**2)), ways)
        assert found is not None
        return found

    return make


def at_once(structure: BlockStructure) -> FormPlan:
    """Bins of all ways, whose channels one gather picks."""
    found = pack_bins(structure, OnnxRuntime(Work(9, 4096)))
    assert found is not None
    return replace(found, at_once=True).plan(structure)


FORMED: dict[str, Callable[[BlockStructure], FormPlan]] = {
    **{form: lambda s, form=form: plan(s, form) for form in FORMS if form != "grouped"},
    "merged": packed("merged"),
    "accumulated": packed("merged", "accumulated"),
    "direct": packed("merged", "direct"),
    "odd": packed("merged", "odd"),
    "packed": packed(*WAYS),
    "one gather": at_once,
    "chosen": lambda s: chosen(s, Work(9, 4096)).plan,
}


def formed(site: Site, plan: FormPlan, among: Sequence[str] = ()) -> ir.Model:
    """The site as `plan` says, in a model that has the names `among` already."""
    proto = site.model
    for name in among:
        proto.graph.node.insert(0, helper.make_node("Identity", ["x"], [name], name=name))
    model = ir.from_proto(proto)
    convs, _ = conv_nodes(model)
    (own,) = (conv for conv in convs if conv.name == "site")
    apply_form(model, own, plan, Names(model))
    check_onnx(model)
    return model


def run(proto: onnx.ModelProto, x: Array, level: ort.GraphOptimizationLevel) -> Array:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"x": x})[0])


def example(batch: int = 2) -> Array:
    draw = np.random.default_rng(batch)
    return draw.integers(-4, 5, (batch, 3, SIZE, SIZE)).astype(np.float32)


@pytest.mark.parametrize("form", FORMED)
@pytest.mark.parametrize("site", SITES.values(), ids=SITES)
def test_every_form_is_the_masked_convolution_to_the_bit(site: Site, form: str) -> None:
    x, model = example(), formed(site, FORMED[form](site.structure))
    expected = run(site.model, x, LEVELS[0])
    assert np.abs(expected).max() < 2**24
    assert len(np.unique(expected)) > 50
    for level in LEVELS:
        assert np.array_equal(run(proto_of(model), x, level), expected)


@pytest.mark.parametrize("form", ["split", "padded", "merged", "accumulated", "one gather"])
def test_names_that_a_file_has_already_are_not_given_again(form: str) -> None:
    site, x = SITES["3x3 in 8 groups"], example()
    found = FORMED[form](site.structure)
    graph = formed(site, found).graph
    marked = [node for node in graph if mark_of(node) is not None]
    values = [value.name for node in marked for value in node.outputs if value.name != "b"]
    taken = {*values, *graph.initializers} - {"before", "behind", "weight", "bias"}
    assert len(taken) > 5
    crowded = formed(site, found, [name or "" for name in taken])
    assert np.array_equal(run(proto_of(crowded), x, LEVELS[0]), run(site.model, x, LEVELS[0]))


@pytest.mark.parametrize("wrong", ["row", "column", "bias"])
def test_a_wrong_entry_is_caught(wrong: str) -> None:
    site = SITES["3x3 in 8 groups"]
    model = formed(site, FORMED["packed"](site.structure))
    value = model.graph.initializers["site.0.bias" if wrong == "bias" else "site.0.weight"]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    places = {"row": np.s_[:1], "column": np.s_[:, :1], "bias": np.s_[:1]}
    array[places[wrong]] += 1
    value.const_value = ir.tensor(array, name=value.name)
    x = example()
    assert not np.array_equal(run(proto_of(model), x, LEVELS[1]), run(site.model, x, LEVELS[1]))


def test_what_is_added_has_one_bias_and_the_runtime_fuses_the_sum(tmp_path: Any) -> None:
    site = Site(40, 48, 1)
    structure = BlockStructure(40, 48, site.structure.blocks)
    found = pack(structure, OnnxRuntime(Work(9, SIZE**2)), ("accumulated",))
    assert found is not None
    assert [(conv.in_channels, conv.added) for conv in found.convs] == [(32, False), (8, True)]
    model = formed(site, found)
    marked = [node for node in model.graph if mark_of(node) is not None]
    assert [node.op_type for node in marked] == ["Gather", "Conv", "Gather", "Conv", "Add"]
    assert [len(node.inputs) for node in marked if node.op_type == "Conv"] == [3, 2]
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(proto_of(model).SerializeToString(), options)
    ran = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert "Add" not in ran
    assert ran.count("Conv") == 4


def test_what_one_gather_picks_is_cut_by_one_split() -> None:
    site = SITES["3x3 in 3 groups"]
    found = at_once(site.structure)
    assert len(found.convs) > 1
    assert found.cuts == tuple(conv.in_channels for conv in found.convs)
    marked = [node for node in formed(site, found).graph if mark_of(node) is not None]
    front = [node.op_type for node in marked if node.op_type in {"Gather", "Split", "Slice"}]
    assert front == ["Gather", "Split", "Gather"]


def test_merged_bins_of_one_shape_are_one_grouped_convolution() -> None:
    site = SITES["3x3 in 8 groups"]
    found = FORMED["merged"](site.structure)
    for conv in found.convs:
        assert conv.in_channels // conv.groups % 16 == conv.out_channels // conv.groups % 16 == 0
    assert max(conv.groups for conv in found.convs) > 1
    shapes = [(conv.in_channels // conv.groups, conv.out_channels) for conv in found.convs]
    assert len(set(shapes)) == len(shapes)
