"""Leave out asserts, and values that nothing uses.

Before:  torch._assert(x.ndim == 4, "...");  y = f(x)
After:   y = f(x)

An assert gives no value: what is asserted held for the example, and an input for which it does not
hold is no longer refused. Toolchains read every node of a graph, used or not.
"""

from dataclasses import dataclass

import torch

from groupfx.rewriting import OperationPass, Place, Spelling
from groupfx.rewriting.writes import writes


@dataclass(frozen=True)
class DropAsserts(OperationPass):
    """Asserts go, and values that nothing uses, unless they change something."""

    backwards = True

    def spell(self, place: Place) -> Spelling | None:
        node = place.node
        if place.calls(torch._assert):
            return Spelling("nothing", tuple(node.all_input_nodes[:0]), lambda: None)
        if node.users or node.op == "get_attr" or node.is_impure():
            return None
        if writes(node, place.root):
            return None
        if place.module is not None and place.module.state_dict():
            return None  # it may count, or remember what it sees
        return Spelling("nothing", (), lambda: None)
