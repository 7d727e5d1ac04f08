"""The catalogue of passes. Import it as `groupfx.passes`."""

import difflib
from collections.abc import Mapping
from dataclasses import is_dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from groupfx.errors import UsageError, kind_and_line, no_exit

if TYPE_CHECKING:
    from groupfx.rewriting import Pass

    from .balance_groups import BalanceGroups
    from .discover_groups import DiscoverGroups
    from .drop_asserts import DropAsserts
    from .fix_sizes import FixSizes
    from .flatten_views import FlattenViews
    from .fold_permutations import FoldPermutations
    from .freeze_learned_groups import FreezeLearnedGroups
    from .index_channels import IndexChannels
    from .keep_outputs import KeepOutputs
    from .lift_functions import LiftFunctions
    from .lift_operators import LiftOperators
    from .merge_concats import MergeConcats
    from .merge_parallel_conv import MergeParallelConv
    from .part_norms import PartNorms
    from .part_operations import PartOperations
    from .pool_means import PoolMeans
    from .spell_calls import SpellCalls
    from .split_grouped_conv import SplitGroupedConv
    from .unfuse_norm_activations import UnfuseNormActivations
    from .widen_groups import WidenGroups

# Name on the command line -> where the class is. Nothing is imported until it is asked for.
PASSES: Mapping[str, str] = {
    "split-grouped-conv": "groupfx.passes.split_grouped_conv:SplitGroupedConv",
    "freeze-learned-groups": "groupfx.passes.freeze_learned_groups:FreezeLearnedGroups",
    "discover-groups": "groupfx.passes.discover_groups:DiscoverGroups",
    "fold-permutations": "groupfx.passes.fold_permutations:FoldPermutations",
    "balance-groups": "groupfx.passes.balance_groups:BalanceGroups",
    "widen-groups": "groupfx.passes.widen_groups:WidenGroups",
    "merge-parallel-conv": "groupfx.passes.merge_parallel_conv:MergeParallelConv",
    "unfuse-norm-activations": "groupfx.passes.unfuse_norm_activations:UnfuseNormActivations",
    "drop-asserts": "groupfx.passes.drop_asserts:DropAsserts",
    "spell-calls": "groupfx.passes.spell_calls:SpellCalls",
    "flatten-views": "groupfx.passes.flatten_views:FlattenViews",
    "part-norms": "groupfx.passes.part_norms:PartNorms",
    "pool-means": "groupfx.passes.pool_means:PoolMeans",
    "lift-operators": "groupfx.passes.lift_operators:LiftOperators",
    "part-operations": "groupfx.passes.part_operations:PartOperations",
    "fix-sizes": "groupfx.passes.fix_sizes:FixSizes",
    "lift-functions": "groupfx.passes.lift_functions:LiftFunctions",
    "index-channels": "groupfx.passes.index_channels:IndexChannels",
    "merge-concats": "groupfx.passes.merge_concats:MergeConcats",
    "keep-outputs": "groupfx.passes.keep_outputs:KeepOutputs",
}

__all__ = [
    "PASSES",
    "BalanceGroups",
    "DiscoverGroups",
    "DropAsserts",
    "FixSizes",
    "FlattenViews",
    "FoldPermutations",
    "FreezeLearnedGroups",
    "IndexChannels",
    "KeepOutputs",
    "LiftFunctions",
    "LiftOperators",
    "MergeConcats",
    "MergeParallelConv",
    "PartNorms",
    "PartOperations",
    "PoolMeans",
    "SpellCalls",
    "SplitGroupedConv",
    "UnfuseNormActivations",
    "WidenGroups",
    "make_pass",
    "name_and_options",
    "pass_class",
    "pass_names",
]

_CLASSES = {target.rpartition(":")[2]: target for target in PASSES.values()}


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        raise AttributeError(f"module 'groupfx.passes' has no attribute {name!r}")
    return _load(_CLASSES[name])


def _load(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def pass_names() -> tuple[str, ...]:
    """Names of the passes: ours, and those of other packages (entry points `groupfx.passes`)."""
    return (*PASSES, *(name for name in _others() if name not in PASSES))


def _others() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=_GROUP)}


def pass_class(name: str) -> "type[Pass[Any]]":
    """The class of the pass called `name`; UsageError with the nearest name if there is none.

    `file.py:Class` and `package.module:Class` name one that is not installed, whose code runs.
    """
    if name in PASSES:
        found: type[Pass[Any]] = _load(PASSES[name])
        return found
    others = _others()
    if name in others or ":" in name:
        return _foreign(name, others.get(name))
    names = pass_names()
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(f"there is no pass {name!r}: {hint}the passes are {', '.join(names)}")


def _foreign(name: str, entry: EntryPoint | None) -> "type[Pass[Any]]":
    # torch is not needed to say what is wrong with the name of a pass of ours.
    from groupfx.files.models.factories import named
    from groupfx.rewriting import Pass

    with no_exit(f"-p {name}", UsageError):
        try:
            found = named(name, "-p") if entry is None else entry.load()
        except (ImportError, AttributeError) as error:
            raise UsageError(f"-p {name} cannot be loaded: {kind_and_line(error)}") from error
    is_pass = isinstance(found, type) and issubclass(found, Pass) and is_dataclass(found)
    if not is_pass:
        raise UsageError(
            f"-p {name}: this is no pass: derive a frozen dataclass from groupfx.rewriting.Pass"
        )
    made: type[Pass[Any]] = found
    return made


_GROUP = "groupfx.passes"


def name_and_options(text: str) -> tuple[str, str]:
    """`name:options` in two; a `name` that says where its class is holds a colon itself."""
    name, _, rest = text.partition(":")
    kind, _, options = rest.partition(":")
    a_place = name.endswith(".py") or all(part.isidentifier() for part in name.split("."))
    a_class = all(part.isidentifier() for part in kind.split("."))
    return (f"{name}:{kind}", options) if a_place and a_class else (name, rest)


def make_pass(text: str) -> "Pass[Any]":
    """A pass from `name` or `name:option=value,option=value`.

    The name may also be `file.py:Class` or `package.module:Class`. An option that takes several
    values is given several times: `only=stem,only=layer1.*`.
    """
    name, rest = name_and_options(text)
    values: dict[str, list[str]] = {}
    for part in rest.split(",") if rest else ():
        option, equals, value = part.partition("=")
        if not equals or not option:
            raise UsageError(f"{text!r}: {part!r} is not option=value")
        values.setdefault(option.strip(), []).append(value.strip())
    return pass_class(name).from_options(values)
