"""Sites of a graph whose channels the layers around may bring in order, and those that may not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from groupfx.plan.machine import Machine
from groupfx.tuning.sites import tunable_sites, with_recipes
from groupfx.tuning.variants import site_choices
from tests.deploy.forms.test_absorbing import model_of
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
    assert any(r.startswith("absorbed") for r in site_choices(site, Machine()).recipes) == (
        not gathers
    )
    assert (site.beside(ABSORBED, Machine()) > 0) == (not gathers)
    made = with_recipes(model, {"site": ABSORBED})
    kinds = [node.op_type for node in made.graph]
    assert kinds.count("Gather") == gathers
    for old, new in zip(outputs(model, x), outputs(made, x), strict=True):
        assert np.array_equal(old, new)
    again = with_recipes(model, {"site": ABSORBED})
    assert ir.to_proto(made).SerializeToString() == ir.to_proto(again).SerializeToString()
