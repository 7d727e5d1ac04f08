"""Sites of a graph whose channels the layers around may bring in order, and those that may not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from groupfx.deploy.forms.fastest import fastest_forms
from groupfx.deploy.forms.static_shapes import static_shapes
from groupfx.deploy.forms.zero_blocks import zero_blocks
from groupfx.plan.machine import Machine
from groupfx.tuning.sites import expected_of, tunable_sites, with_recipes
from groupfx.tuning.subject import GraphSubject
from groupfx.tuning.variants import site_choices
from tests.deploy.forms.test_absorbing import blocked, model_of
from tests.deploy.forms.test_chaining import CHAIN as FOLLOWING
from tests.deploy.forms.test_chaining import FIRST, SECOND
from tests.deploy.forms.test_fold_onnx import outputs, whole

ABSORBED = "absorbed 16: 0+1 2+3 4"
CHAIN = (
    "m (float[1,8,14,14] x) => (float[1,8,14,14] y) { a = Conv(x, v) r = Relu(a) "
    "site = Conv<group=5, pads=[1,1,1,1]>(r, w) s = Relu(site) y = Conv(s, u) }"
)
SEEN = CHAIN.replace("(float[1,8,14,14] y)", "(float[1,8,14,14] y, float[1,40,14,14] r)")


def chain(text: str) -> ir.Model:
    shapes = {"v": (40, 8, 1, 1), "w": (40, 8, 3, 3), "u": (8, 40, 1, 1)}
    # Zeros would be blocks.
    return model_of(text, {name: whole(*own) * 2 + 1 for name, own in shapes.items()})


@pytest.mark.parametrize(("text", "gathers"), [(CHAIN, 0), (SEEN, 2)], ids=["free", "seen"])
def test_a_recipe_changes_the_layers_around_where_it_can(text: str, gathers: int) -> None:
    model, x = chain(text), {"x": whole(1, 8, 14, 14)}
    (site,), unknown = tunable_sites(model, {"x": (1, 8, 14, 14)})
    assert unknown == ()
    assert (site.around is None) == bool(gathers)
    assert site.signature.endswith("any order") == (not gathers)
    tried = site_choices(site, Machine(), site.untouched).recipes
    assert any(recipe.startswith("absorbed") for recipe in tried) == (not gathers)
    assert (site.beside(ABSORBED, Machine()) > 0) == (not gathers)
    made = with_recipes(model, {"site": ABSORBED})
    kinds = [node.op_type for node in made.graph]
    assert kinds.count("Gather") == gathers
    for old, new in zip(outputs(model, x), outputs(made, x), strict=True):
        assert np.array_equal(old, new)
    again = with_recipes(model, {"site": ABSORBED})
    assert ir.to_proto(made).SerializeToString() == ir.to_proto(again).SerializeToString()


def test_sites_that_follow_each_other_are_joined_but_for_a_profile() -> None:
    weights = {"v": blocked(FIRST, 1, 1), "b": whole(5), "w": blocked(SECOND, 1, 1)}
    model, x = model_of(FOLLOWING.format(more=""), weights), {"x": whole(2, 4, 4, 5)}
    recipes = dict.fromkeys(("a", "s"), "bins of 4: merged 0; merged 1")
    made = {alone: with_recipes(model, recipes, alone=alone) for alone in (True, False)}
    kinds = {alone: [node.op_type for node in own.graph] for alone, own in made.items()}
    assert kinds[True].count("Gather") == kinds[False].count("Gather") + 1
    for own in made.values():
        for old, new in zip(outputs(model, x), outputs(own, x), strict=True):
            assert np.array_equal(old, new)


def test_what_is_expected_is_what_an_export_takes() -> None:
    """The sites of a chain are chosen together, and gather for each other."""
    wide = np.kron(np.eye(4, dtype=np.float32), np.ones((60, 60), np.float32))
    drawn = np.random.default_rng(5)
    weights = {
        name: (wide[drawn.permutation(240)] * drawn.uniform(1, 2, (240, 240)))[..., None, None]
        for name in ("v", "w")
    }
    text = (
        "m (float[n,240,14,14] x) => (float[n,240,14,14] y) "
        "{ a = Conv(x, v) r = Relu(a) y = Conv(r, w) }"
    )
    model = model_of(text, {name: w.astype(np.float32) for name, w in weights.items()})
    feeds = {"x": np.ones((3, 240, 14, 14), np.float32)}
    found = expected_of(model, feeds, Machine())
    shapes = static_shapes(model, {"x": (3, 240, 14, 14)})
    exported = fastest_forms(model, zero_blocks, shapes, Machine(), batches=[3])
    assert dict(found) == dict(exported.recipes)
    assert set(found) == {"a", "y"}
    assert all(recipe != "dense" for recipe in found.values())
    subject, _ = GraphSubject.of(model, feeds)
    assert {c.site.name: c.expected for c in subject.choices(Machine)} == dict(found)
