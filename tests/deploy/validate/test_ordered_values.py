"""Operators between sites whose channels lie elsewhere are judged one by one all the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import groupfx.deploy.forms.rewrite_onnx as rewriting
from groupfx.deploy import OnnxSide, Validation, ValidationOptions, validate_sides
from groupfx.deploy.forms.fastest import Fastest
from groupfx.deploy.graph.channel_order import orders_of, write_orders
from groupfx.plan.channel_order import ChannelOrders
from groupfx.plan.recipes import recipe_plan
from groupfx.tuning.sites import with_recipes
from tests.deploy.forms.test_absorbing import blocked, model_of
from tests.deploy.forms.test_chaining import FIRST, SECOND

RECIPES = dict.fromkeys(("a", "s"), "bins of 4: merged 0; merged 1")


def chain(between: str = "r = Relu(a)") -> ir.Model:
    """Two sites and what is between them, as written, with random weights."""
    text = (
        f"m (float[n,4,6,5] x) => (float[n,3,6,5] y) "
        f"{{ a = Conv(x, v, b) {between} s = Conv(r, w) y = LeakyRelu<alpha=0.1>(s) }}"
    )
    drawn = np.random.default_rng(3)

    def filled(mask: np.ndarray) -> np.ndarray:
        return np.where(mask != 0, drawn.standard_normal(mask.shape), 0).astype(np.float32)

    biases = drawn.standard_normal(5).astype(np.float32)
    weights = {"v": filled(blocked(FIRST, 1, 1)), "w": filled(blocked(SECOND, 1, 1))}
    return model_of(text, {**weights, "b": biases})


def judged(original: ir.Model, made: ir.Model) -> Validation:
    sides = OnnxSide("the file", original), OnnxSide("the other", made)
    return validate_sides(*sides, ValidationOptions(shapes={"x": (2, 4, 6, 5)}))


def changed(name: str, change: Callable[[ir.Node], None], between: str) -> Validation:
    original = chain(between)
    made = with_recipes(original, RECIPES)
    (node,) = (node for node in made.graph if node.name == name)
    change(node)
    return judged(original, made)


def test_what_stands_between_joined_gathers_is_judged() -> None:
    original = chain("q = Elu(a) r = Relu(q)")
    made = with_recipes(original, RECIPES)
    assert any(orders_of(node) != ChannelOrders() for node in made.graph)
    found = judged(original, made)
    assert found.ok, found.blame
    assert {check.name for check in found.operators} == {"q", "r", "y"}
    assert found.notes == ()


def slightly_leaky(node: ir.Node) -> None:
    node.op_type = "LeakyRelu"
    node.attributes["alpha"] = ir.AttrFloat32("alpha", 1e-5)


def test_a_wrong_operator_between_them_is_named() -> None:
    found = changed("r", slightly_leaky, "q = Elu(a) r = Relu(q)")
    assert not found.ok
    assert found.blame is not None
    assert "the operator LeakyRelu r" in found.blame
    assert [check.ok for check in found.sites] == [True, True]


def test_a_wrong_activation_of_a_branch_is_located() -> None:
    for name in ("r.0", "r.1"):
        found = changed(name, slightly_leaky, "r = Relu(a)")
        assert not found.ok
        assert found.blame is not None
        assert "in front of s and behind a" in found.blame
        assert [check.ok for check in found.sites] == [True, True]


def test_orders_that_are_not_so_are_no_excuse() -> None:
    original = chain()
    made = with_recipes(original, RECIPES)
    for node in made.graph:
        order = orders_of(node).input
        if order is not None:
            swapped = (order[1], order[0], *order[2:])
            write_orders(node, ChannelOrders(swapped, None))
    found = judged(original, made)
    assert not found.ok
    assert any("a fold has moved channels" in note for note in found.notes)


@pytest.mark.parametrize("between", ["r = Softmax<axis=1>(a)", "r = Relu(a) z = Neg(r)"])
def test_gathers_are_joined_through_nothing_else(between: str) -> None:
    original = chain(between)
    made = with_recipes(original, RECIPES)
    assert all(orders_of(node) == ChannelOrders() for node in made.graph)
    assert judged(original, made).ok


def test_a_rewritten_file_has_them_joined_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shapes are still those that onnx infers."""
    plans = {"a": recipe_plan(RECIPES["a"], FIRST), "s": recipe_plan(RECIPES["s"], SECOND)}
    monkeypatch.setattr(rewriting, "fastest_forms", lambda *given: Fastest(plans, {}, 0, 0.5))
    original = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(chain())))
    made = rewriting.rewrite_graph(original, (), fastest=True)
    kinds = [node.op_type for node in made.model.graph]
    # Each convolution reads by one gather, and only the last site gives by one.
    assert kinds.count("Gather") == 5
    assert judged(original, made.model).ok
