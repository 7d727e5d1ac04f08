"""Names in a checkpoint that was saved from around a network, read as those of the network itself.

`torch.compile` puts `_orig_mod.` in front of the names of what it wraps, DataParallel `module.`,
each of them anywhere in a model; a training framework holds the network under a name of its own
(`model.`), next to others. One rule reads them all:

1. a module whose only child is called `module` or `_orig_mod`, and that holds no tensors, is a
   wrapper, and is left out, in the checkpoint and in the model alike;
2. then the network is where its names are found behind one prefix; what is elsewhere is not of it.

What a profiler counted (`total_ops`) is no part of a network either, and the counter of a
BatchNorm (`num_batches_tracked`), which old checkpoints lack, may be missing.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

_WRAPPERS = frozenset({"module", "_orig_mod"})
_PROFILED = frozenset({"total_ops", "total_params"})
_COUNTER = "num_batches_tracked"
# Where frameworks hold the network itself, where there are copies of it as well.
_PREFIXES = ("", "model.", "net.", "network.", "module.")
# Names by which prefixes are looked for: one may be at home in other networks too.
_TRIED = 20


@dataclass(frozen=True)
class Unwrapped:
    """For each name of the network its name in the checkpoint, and what was read otherwise."""

    names: Mapping[str, str]
    notes: tuple[str, ...]


def is_counter(name: str) -> bool:
    """Whether a tensor only counts batches, which no output depends on in eval mode."""
    return name.rpartition(".")[2] == _COUNTER


def unwrapped(given: Collection[str], expected: Collection[str]) -> Unwrapped:
    """How the names `given` by a checkpoint are read for a network that has those `expected`."""
    needed = [name for name in expected if not is_counter(name)]
    names: dict[str, str] = {name: name for name in given}
    notes: list[str] = []
    if not names.keys() >= set(needed):
        inner, wanted = without_wrappers(given), without_wrappers(expected)
        prefix = _prefix(inner, [name for name in wanted if not is_counter(name)])
        under = {name: old for name, old in inner.items() if name.startswith(prefix)}
        names = {
            wanted.get(name.removeprefix(prefix), name.removeprefix(prefix)): old
            for name, old in under.items()
        }
        notes += _renamed(names, prefix, len(inner) - len(under))
    profiled = [name for name in names if name.rpartition(".")[2] in _PROFILED]
    profiled = [name for name in profiled if name not in expected]
    if profiled:
        notes.append(f"{len(profiled)} tensors of a profiler were left out, such as {profiled[0]}")
    kept = {name: old for name, old in names.items() if name not in profiled}
    absent = [name for name in expected if is_counter(name) and name not in kept]
    if absent:
        notes.append(f"{len(absent)} counters of batches are missing, such as {absent[0]}")
    return Unwrapped(kept, tuple(notes))


def without_wrappers(names: Iterable[str]) -> dict[str, str]:
    """The names without the wrappers on their paths -> the names as they are."""
    parts = {name: name.split(".") for name in names}
    children: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for path in parts.values():
        for depth, part in enumerate(path):
            # A tensor of the module itself is a child of another kind.
            children[tuple(path[:depth])].add(part if depth < len(path) - 1 else f".{part}")
    alone = {path for path, found in children.items() if len(found) == 1 and found <= _WRAPPERS}
    return {
        ".".join(
            part
            for depth, part in enumerate(path)
            if depth == len(path) - 1 or tuple(path[:depth]) not in alone
        ): name
        for name, path in parts.items()
    }


def _prefix(inner: Collection[str], needed: Collection[str]) -> str:
    """The prefix behind which most of what is `needed` is found; of several, a usual one."""
    found: Counter[str] = Counter({"": 0})
    for name in list(needed)[:_TRIED]:
        found.update(
            other.removesuffix(name)
            for other in inner
            if other == name or other.endswith(f".{name}")
        )
    whole = Counter({prefix: sum(prefix + name in inner for name in needed) for prefix in found})
    most = max(whole.values())
    best = [prefix for prefix, count in whole.items() if count == most]
    usual = [prefix for prefix in _PREFIXES if prefix in best]
    if usual:
        return usual[0]
    return best[0] if len(best) == 1 else ""


def _renamed(names: Mapping[str, str], prefix: str, left: int) -> Iterable[str]:
    changed = [(name, old) for name, old in names.items() if name != old]
    if changed:
        name, old = changed[0]
        yield f"its names were read without what wraps the network: {old} as {name}"
    if left:
        yield f"{left} tensors that are not under {prefix} were left out"
