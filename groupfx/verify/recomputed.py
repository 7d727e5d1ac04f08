"""A weight that a parametrisation makes anew in each forward: one value on both sides.

    original   y = conv(x, P(v))
    rewritten  y = cat([conv(x[:, s], P(v)[t]) for s, t in ...])

P is no polynomial of v (it may hold a norm, or a singular vector), but `conv` and its branches are
polynomials of P(v). So where both sides compute the same P of the same v, once a forward, what is
to be proved is the same for every weight W in place of P(v), and that can be done in whole numbers.
Gradients of v are those of W through P, and what P writes to its buffers in train mode it writes on
either side.

That P is the same is compared as structure: classes, modes, hooks, fields, and tensors to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from ..convs.names import joined
from ..convs.spec import is_plain, original_type
from ..running.unchanged import evaluate, unchanged
from ..state import Entry, Rows
from .region import HeldWeight, RegionState
from .structure import Owned, TreePair

Sides = tuple[RegionState, RegionState, Mapping[str, Entry]]
"""An original, its rewritten form, and the map from the one to the other."""


def with_free_weights(
    original: RegionState, rewritten: RegionState, rows: Mapping[str, Entry]
) -> Sides | None:
    """Both sides with a parameter in place of each weight that they compute alike; None without.

    The parameter holds the value that there is now.
    """
    computing = dict(_computing(rewritten))
    if not computing:
        return None
    before, after, entries = dict(original.parts), dict(rewritten.parts), dict(rows)
    for target, module in original.parts.items():
        if not (isinstance(module, nn.Module) and is_parametrized(module) and _is_known(module)):
            continue
        if [str(node.target) for node in original.nodes].count(target) != 1:
            return None
        free: dict[str, nn.Parameter] = {}
        for name, made in module.get_submodule("parametrizations").named_children():
            twin = next((t for t, other in computing.items() if _alike(made, other)), None)
            if twin is None:
                return None
            del computing[twin]
            free[name] = _value(module, name)
            after[twin] = HeldWeight(free[name]).train(module.training)
            key = rewritten.region.full_name(joined(twin, "weight"))
            entries[key] = Rows(original.region.full_name(joined(target, name)))
        before[target] = _unparametrized(module, free)
    if computing:
        return None
    return original.with_parts(before), rewritten.with_parts(after), entries


def _computing(state: RegionState) -> Iterator[tuple[str, nn.Module]]:
    """The parametrisations that a graph calls, each once."""
    called = [str(node.target) for node in state.nodes if node.op == "call_module"]
    for target, part in state.parts.items():
        if type(part) is ParametrizationList and called.count(target) == 1:
            yield target, part


def _is_known(module: nn.Module) -> bool:
    """Whether its forward reads each of its tensors once, and nobody else looks at it."""
    hooks = (name for name, held in vars(module).items() if "hook" in name and held)
    # Those of a checkpoint, as a weight norm has them, see no forward.
    return is_plain(module) and all("state_dict" in name for name in hooks)


def _alike(before: nn.Module, after: nn.Module) -> bool:
    return next(TreePair(before, after, Owned()).changes(), None) is None


def _value(module: nn.Module, name: str) -> nn.Parameter:
    with unchanged(module), torch.no_grad():
        evaluate(module)
        value: Tensor = getattr(module, name)
    return nn.Parameter(value.detach().clone())


def _unparametrized(module: nn.Module, free: Mapping[str, nn.Parameter]) -> nn.Module:
    """The plain module with `free` parameters under their names, over the other tensors."""
    bare, plain = vars(nn.Module()), object.__new__(original_type(module))
    vars(plain).update({**vars(module), **bare}, training=module.training)
    plain._buffers.update(module._buffers)
    plain._parameters.update(module._parameters)
    plain._parameters.update(free)
    return plain
