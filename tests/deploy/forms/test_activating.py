"""Activations go into the branches of a site, and a file in which one of them is wrong is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import groupfx
from groupfx.deploy.graph.conv_nodes import conv_nodes
from groupfx.deploy.graph.metadata import mark
from groupfx.plan.blocks import Block, BlockStructure
from groupfx.tuning.sites import with_recipes
from tests.deploy.forms.test_absorbing import blocked, model_of
from tests.deploy.forms.test_fold_onnx import outputs, whole

FIRST = BlockStructure(4, 5, (Block((0, 2), (1, 4)), Block((1, 3), (0, 2, 3))))
SECOND = BlockStructure(5, 3, (Block((0, 1, 4), (0, 2)), Block((2, 3), (1,))))
# What is joined lies in order.
IN_ORDER = BlockStructure(4, 5, (Block((0, 2), (0, 1)), Block((1, 3), (2, 3, 4))))
TEXT = (
    "m (float[2,4,4,5] x) => (float[2,3,4,5] y{more}) "
    "{{ a = Conv(x, v, b) r = {kind} s = Conv(r, w) y = Floor(s) }}"
)
BINS = "bins of 4: merged 0; merged 1"


def original(kind: str = "Relu(a)", more: str = "", first: BlockStructure = FIRST) -> ir.Model:
    """Two sites, an activation between them."""
    weights = {"v": blocked(first, 1, 1), "b": whole(5), "w": blocked(SECOND, 1, 1)}
    weights |= {"low": np.float32(-2), "high": np.float32(5)}
    model = model_of(TEXT.format(kind=kind, more=more), weights)
    for conv in conv_nodes(model)[0]:
        mark(conv.node, conv.name)
    return model


def made(model: ir.Model, recipe: str = BINS) -> dict[str, ir.Node]:
    """The nodes with the sites in bins; the outputs are equal on whole numbers."""
    found = with_recipes(model, {"a": recipe, "s": BINS})
    feeds = {"x": whole(2, 4, 4, 5)}
    for old, new in zip(outputs(model, feeds), outputs(found, feeds), strict=True):
        assert np.array_equal(old, new)
    return {node.name or "": node for node in found.graph}


@pytest.mark.parametrize("kind", ["Relu(a)", "Clip(a, low, high)", "LeakyRelu<alpha=0.5>(a)"])
def test_each_branch_has_the_activation_behind_the_site(kind: str) -> None:
    nodes = made(original(kind))
    op_type, _, _ = kind.partition("(")
    for place in ("0", "1"):
        activation = nodes[f"r.{place}"]
        assert activation.op_type == op_type.partition("<")[0]
        assert activation.inputs[0] is nodes[f"a.{place}"].outputs[0]
    joined = nodes["a.concat"].outputs[0]
    assert (joined.name, len(joined.uses())) == ("r", 2)


def test_what_else_is_read_stays_behind_the_site() -> None:
    for more in (", float[2,5,4,5] a", ", float[2,5,4,5] r"):
        assert "r" in made(original(more=more))
    # Of one convolution, it follows that; of branches that lie in order, it may be an output.
    assert "r" in made(original(), "dense")
    nodes = made(original(more=", float[2,5,4,5] r", first=IN_ORDER), "split")
    assert nodes["a.concat"].outputs[0].is_graph_output()
    assert {"r.0", "r.1"} < set(nodes)


def _without(model: ir.Model) -> None:
    node = next(node for node in model.graph if node.name == "r.1")
    assert node.inputs[0] is not None
    ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
    model.graph.remove(node, safe=True)


def _leaking(model: ir.Model) -> None:
    node = next(node for node in model.graph if node.name == "r.1")
    node.op_type = "LeakyRelu"


def _weighed(model: ir.Model) -> None:
    value = next(node for node in model.graph if node.name == "a.1").inputs[1]
    assert value is not None
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.01), name=value.name)


@pytest.mark.parametrize("wrong", [_without, _leaking, _weighed])
def test_a_wrong_branch_is_found(wrong: Callable[[ir.Model], None], tmp_path: Path) -> None:
    # Nothing is rounded behind, so that what goes wrong is seen.
    model = original()
    last = next(node for node in model.graph if node.op_type == "Floor")
    last.op_type = "Relu"
    found = with_recipes(model, {"a": BINS, "s": BINS})
    paths = [tmp_path / name for name in ("a.onnx", "b.onnx")]
    ir.save(model, paths[0])
    ir.save(found, paths[1])
    check = groupfx.validate(*paths)
    assert check.ok
    assert {site.name for site in check.sites if site.ok} == {"a", "s"}
    wrong(found)
    ir.save(found, paths[1])
    assert not groupfx.validate(*paths).ok
