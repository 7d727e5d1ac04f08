"""Each rule is proved twice: by its identity, and by the pass on a model that has it."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from groupfx.folding import fold as folds
from groupfx.folding.algebra import RULES
from groupfx.folding.rules import Rule, as_table
from tests.folding.onnx_graphs import folded, model
from tests.folding.onnx_rows import rows
from tests.folding.proofs import PROOFS, orders
from tests.folding.unproved import applied, unproved


def test_no_rule_is_without_its_proofs() -> None:
    assert set(PROOFS) == set(RULES)
    assert unproved(RULES, applied()) == []


def test_a_rule_without_proofs_is_listed() -> None:
    assert unproved(["mixing", "concat"], ["concat"]) == [
        "mixing: no identity in tests/folding/proofs.py",
        "mixing: no row of tests/folding has it",
    ]


def test_the_table_in_the_docs_is_that_of_the_code() -> None:
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    assert text.partition("<!-- rules -->\n")[2].partition("\n<!-- /rules -->")[0] == as_table()


@pytest.mark.parametrize("name", PROOFS)
def test_the_identity_of_a_rule(name: str) -> None:
    for s, t in orders():
        found, expected = PROOFS[name](s, t)
        assert torch.equal(found, expected), (s, t)


@pytest.mark.parametrize("name", ["depthwise", "concat", "select", "per channel"])
def test_a_swapped_inverse_is_no_identity(name: str) -> None:
    """The check itself: with one side in another order it must fail."""
    s, t = [1, 2, 0, 3], [2, 0, 3, 1]
    found, _ = PROOFS[name](s, t)
    _, expected = PROOFS[name]([s.index(c) for c in range(4)], [t.index(c) for c in range(4)])
    assert not torch.equal(found, expected)


def test_the_identities_hold_for_any_number_of_channels() -> None:
    symbolic = pytest.importorskip("tests.folding.symbolic", reason="z3-solver is not installed")
    assert set(symbolic.CLAIMS) == set(RULES) - {"size"}
    for claim in set(symbolic.CLAIMS.values()):
        assert symbolic.proved(claim), claim.__name__


def test_a_wrong_identity_is_not_proved() -> None:
    """With an inverse in place of the order, or another offset."""
    symbolic = pytest.importorskip("tests.folding.symbolic", reason="z3-solver is not installed")
    for claim in set(symbolic.CLAIMS.values()):
        assert not symbolic.proved(claim, wrong=True), claim.__name__


WRONG = ("BatchNormalization", "depthwise", "Conv", "MatMul", "Concat", "Gather negative")


@pytest.mark.parametrize("name", ["swapped inverse", "transposed axis"])
@pytest.mark.parametrize("row", WRONG)
def test_the_pass_itself_catches_a_wrong_rule(
    name: str, row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every parameter is put in the inverse of its order, or in that of its other axis."""
    right = folds.edits

    def wrong(problem, orders):  # type: ignore[no-untyped-def]
        found = right(problem, orders)
        for edit in found:
            if name == "swapped inverse":
                edit.axes.update({dim: np.argsort(order) for dim, order in edit.axes.items()})
            elif len(edit.axes) == 1:
                (dim,) = edit.axes
                edit.axes[1 - dim] = edit.axes.pop(dim)
        return found

    monkeypatch.setattr(folds, "edits", wrong)
    with pytest.raises((AssertionError, IndexError, ValueError)):
        folded(model(rows()[row], "between"), exact=rows()[row].exact)


def test_a_rule_that_says_too_much_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group norm and a running sum that let any order through."""
    free = RULES["elementwise"]
    for name, row in (("group norm", "GroupNormalization"), ("elementwise", "CumSum")):

        def through(graph, op):  # type: ignore[no-untyped-def]
            numbers = {k: v for k, v in op.numbers.items() if k not in ("dims", "groups")}
            free.apply(graph, type(op)(op.rule, op.node, op.name, op.inputs, op.outputs, numbers))

        with monkeypatch.context() as patch:
            patch.setitem(RULES, name, Rule(name, "", "", through, free.each))
            with pytest.raises(AssertionError):
                folded(model(rows()[row], "down"), exact=rows()[row].exact)


def test_orders_are_all_of_four_channels() -> None:
    assert [s for s, _ in orders()] == [list(p) for p in permutations(range(4))]
