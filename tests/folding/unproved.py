"""Rules of folding without a proof: `python -m tests.folding.unproved` lists them, one a line.

A rule is proved by its identity, for every permutation of a few channels (`proofs`) and where it
has one for any number of channels (`symbolic`), and by the pass itself on a model that has it, in
torch (`rows`) or as a file (`onnx_rows`).
"""

import sys
from collections.abc import Collection

import torch

from groupfx.deploy.forms.folding import problem_of
from groupfx.deploy.forms.static_shapes import static_shapes
from groupfx.folding.rules import RULES, Rule
from groupfx.passes import FoldPermutations
from groupfx.rewriting import Pipeline
from tests.folding.onnx_graphs import model
from tests.folding.onnx_rows import rows as onnx_rows
from tests.folding.proofs import PROOFS
from tests.folding.rows import rows

_ONLY_IN_TORCH = ("prelu each", "attention, layers", "attention, module", "constant")
"""Rows whose rules no ONNX operator has, or none that files spell as such."""


def applied() -> set[str]:
    """The rules that the pass comes upon in the rows."""
    found: set[str] = set()
    known = dict(RULES)
    try:
        for name, rule in known.items():
            RULES[name] = _noted(rule, found)
        for row in onnx_rows().values():
            graph = model(row)
            problem_of(graph, static_shapes(graph))
        for name in _ONLY_IN_TORCH:
            network, shape, _ = rows()[name]
            x = torch.randn(shape, dtype=torch.float64)
            Pipeline([FoldPermutations()])(network.double().eval(), x, verify=False)
    finally:
        RULES.update(known)
    return found


def _noted(rule: Rule, found: set[str]) -> Rule:
    def apply(graph, op):  # type: ignore[no-untyped-def]
        found.add(rule.name)
        rule.apply(graph, op)

    return Rule(rule.name, rule.operations, rule.text, apply, rule.each)


def unproved(rules: Collection[str], met: Collection[str]) -> list[str]:
    """What each of these rules is without, in words; `met` are those that the pass came upon."""
    identities = [
        f"{name}: no identity in tests/folding/proofs.py" for name in rules if name not in PROOFS
    ]
    return identities + [
        f"{name}: no row of tests/folding has it" for name in rules if name not in met
    ]


if __name__ == "__main__":
    missing = unproved(RULES, applied())
    said = "\n".join(missing) or f"every one of {len(RULES)} rules is proved twice"
    sys.stdout.write(f"{said}\n")
    sys.exit(bool(missing))
