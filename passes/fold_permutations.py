"""Move every channel permutation through the graph into the weights around it.

Before:  y = conv_2(relu(bn(conv_1(x)))[:, p])
After:   y = conv_2(relu(bn'(conv_1'(x))))          rows p of conv_1, entries p of bn

Each tensor gets an order of its channels, and whatever computes it follows: `conv(x; W[s], b[s])`
is `conv(x; W, b)[:, s]`, and `conv(x[:, s]; W[:, s])` is `conv(x; W)`. All orders are chosen at
once, so that the fewest bytes are moved at run time: both sides of a sum share one, groups of a
convolution stay whole, inputs and outputs of the model stay as they are. Where no order suits, a
gather stays, in its cheapest spelling. `groupfx.folding.algebra` has the rule of each operation.

A channel that nothing reads is left out, back to where it is made: a filter, its BatchNorm, its
depthwise convolution. Weights are reordered or left out and nothing is computed anew, so every sum
has the terms that it had, but for those that were 0.
"""

from dataclasses import dataclass
from typing import Literal

from groupfx.errors import UsageError
from groupfx.folding.fold import Fold, fold, leave, permutations
from groupfx.folding.problem import Problem
from groupfx.rewriting.graph_pass import GraphPass
from groupfx.rewriting.pass_ import require_named, unwanted


@dataclass(frozen=True)
class FoldPermutations(GraphPass):
    """Channel permutations disappear into neighbouring weights; the fewest bytes are gathered."""

    dead: Literal["drop", "keep"] = "drop"
    """channels that nothing reads: left out of whatever makes them, or kept"""

    refuses = (
        "a permutation between two tensors whose order something else decides (a residual sum, "
        "groups, inputs and outputs of the model); the report names each, with its bytes",
        "operations that no rule knows: they get their channels as they were",
        "tensors that are tied or parametrised, where one order does not suit every use",
    )

    align: int = 1
    """blocks that are read of a tensor begin at multiples of this, with channels of zeros between;
    for a model that is not trained any more"""

    only: tuple[str, ...] = ()
    """patterns of names of permutations; the others stay as they are"""

    skip: tuple[str, ...] = ()
    """patterns of names of permutations that stay as they are"""

    def __post_init__(self) -> None:
        if self.align < 1:
            raise UsageError(f"align={self.align}: blocks begin at multiples of 1 or more")

    def plan_graph(self, problem: Problem) -> Fold:
        found = permutations(problem)
        named = [*(link.place.name for link in found), *(left.name for left in problem.untaken)]
        require_named(self, named, ())
        for link in found:
            reason = unwanted((link.place.name,), self.only, self.skip)
            if reason is not None:
                leave(problem, link, f"{link.place.name} is {reason}")
        return fold(problem, drop_dead=self.dead == "drop", align=self.align)
