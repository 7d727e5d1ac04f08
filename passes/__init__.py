"""The catalogue of passes. Import it as `groupfx.passes`."""

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from groupfx.errors import UsageError

if TYPE_CHECKING:
    from groupfx.rewriting import Pass

    from .balance_groups import BalanceGroups
    from .discover_groups import DiscoverGroups
    from .fold_permutations import FoldPermutations
    from .freeze_learned_groups import FreezeLearnedGroups
    from .split_grouped_conv import SplitGroupedConv

# Name on the command line -> where the class is. Nothing is imported until it is asked for.
PASSES: Mapping[str, str] = {
    "split-grouped-conv": "groupfx.passes.split_grouped_conv:SplitGroupedConv",
    "freeze-learned-groups": "groupfx.passes.freeze_learned_groups:FreezeLearnedGroups",
    "discover-groups": "groupfx.passes.discover_groups:DiscoverGroups",
    "fold-permutations": "groupfx.passes.fold_permutations:FoldPermutations",
    "balance-groups": "groupfx.passes.balance_groups:BalanceGroups",
}

__all__ = [
    "PASSES",
    "BalanceGroups",
    "DiscoverGroups",
    "FoldPermutations",
    "FreezeLearnedGroups",
    "SplitGroupedConv",
    "make_pass",
    "pass_class",
]

_CLASSES = {target.rpartition(":")[2]: target for target in PASSES.values()}


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        raise AttributeError(f"module 'groupfx.passes' has no attribute {name!r}")
    return _load(_CLASSES[name])


def _load(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def pass_class(name: str) -> "type[Pass[Any]]":
    """The class of the pass called `name`; UsageError with the nearest name if there is none."""
    if name in PASSES:
        found: type[Pass[Any]] = _load(PASSES[name])
        return found
    near = difflib.get_close_matches(name, PASSES, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(f"there is no pass {name!r}: {hint}the passes are {', '.join(PASSES)}")


def make_pass(text: str) -> "Pass[Any]":
    """A pass from `name` or `name:option=value,option=value`.

    An option that takes several values is given several times: `only=stem,only=layer1.*`.
    """
    name, _, rest = text.partition(":")
    values: dict[str, list[str]] = {}
    for part in rest.split(",") if rest else ():
        option, equals, value = part.partition("=")
        if not equals or not option:
            raise UsageError(f"{text!r}: {part!r} is not option=value")
        values.setdefault(option.strip(), []).append(value.strip())
    return pass_class(name).from_options(values)
