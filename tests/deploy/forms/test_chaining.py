"""Gathers of sites that follow each other become one, and only where nothing else reads between."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from groupfx.deploy.forms.chaining import join_gathers
from groupfx.deploy.forms.forming import apply_form
from groupfx.deploy.graph.channel_order import orders_of
from groupfx.deploy.graph.conv_nodes import conv_nodes
from groupfx.deploy.graph.free_names import Names
from groupfx.plan.blocks import Block, BlockStructure
from groupfx.plan.recipes import recipe_plan
from tests.deploy.forms.test_absorbing import blocked, model_of
from tests.deploy.forms.test_fold_onnx import outputs, whole

FIRST = BlockStructure(4, 5, (Block((0, 2), (1, 4)), Block((1, 3), (0, 2, 3))))
SECOND = BlockStructure(5, 3, (Block((0, 1, 4), (0, 2)), Block((2, 3), (1,))))
CHAIN = (
    "m (float[2,4,4,5] x) => (float[2,3,4,5] y{more}) "
    "{{ a = Conv(x, v, b) r = Relu(a) s = Conv(r, w) y = Floor(s) }}"
)


def joined(text: str, recipe: str) -> tuple[int, dict[str, ir.Node]]:
    """How many gathers fewer there are, and the nodes; the outputs are equal on whole numbers."""
    weights = {"v": blocked(FIRST, 1, 1), "b": whole(5), "w": blocked(SECOND, 1, 1)}
    weights |= {"half": np.array(0.5, np.float32), "b5": whole(5, 1, 1)}
    model = model_of(text, weights)
    feeds = {"x": whole(2, 4, 4, 5)}
    expected = outputs(model, feeds)
    structures = {"a": FIRST, "s": SECOND}
    names = Names(model)
    for conv in conv_nodes(model)[0]:
        apply_form(model, conv, recipe_plan(recipe, structures[conv.name]), names)
    before = sum(node.op_type == "Gather" for node in model.graph)
    join_gathers(model)
    for old, new in zip(expected, outputs(model, feeds), strict=True):
        assert np.array_equal(old, new)
    after = sum(node.op_type == "Gather" for node in model.graph)
    return before - after, {node.name or "": node for node in model.graph}


def test_the_gather_behind_goes_into_all_that_read_it_and_orders_say_so() -> None:
    for recipe in ("bins of 4: merged 0; merged 1", "bins of 4, one gather: merged 0; merged 1"):
        fewer, nodes = joined(CHAIN.format(more=""), recipe)
        assert fewer == 1
        order = (1, 4, -1, -1, 0, 2, 3, -1)
        for name in ("a.0", "a.1"):
            assert orders_of(nodes[name]).output == order
            assert orders_of(nodes[name]).input is None
        assert {orders_of(nodes[name]).input for name in ("s.0", "s.1")} == {order}


@pytest.mark.parametrize(
    ("between", "fewer"),
    [
        ("r = Tanh(a)", 1),
        ("r = Mul(half, a)", 1),
        ("c = Div(a, half) r = Relu(c)", 1),
        # These have a number for each channel, or need one channel for another.
        ("r = Mul(a, b5)", 0),
        ("r = PRelu(a, b5)", 0),
        ("r = Softmax <axis = 1> (a)", 0),
        ("c = Relu(a) r = Add(c, a)", 0),
    ],
)
def test_a_gather_passes_what_is_the_same_in_each_channel(between: str, fewer: int) -> None:
    text = CHAIN.format(more="").replace("r = Relu(a)", between)
    assert joined(text, "padded")[0] == fewer


def test_one_convolution_is_followed_by_its_activation() -> None:
    fewer, nodes = joined(CHAIN.format(more=""), "padded")
    assert fewer == 1
    (activation,) = (node for node in nodes.values() if node.op_type == "Relu")
    made = activation.inputs[0]
    assert made is not None
    producer = made.producer()
    assert producer is not None
    assert producer.name == "a.0"


def test_what_something_else_reads_keeps_its_order() -> None:
    seen = CHAIN.format(more=", float[2,5,4,5] r")
    assert joined(seen, "padded")[0] == 0
    beside = CHAIN.format(more=", float[2,5,4,5] z").replace("y = Floor", "z = Neg(r) y = Floor")
    assert joined(beside, "padded")[0] == 0
