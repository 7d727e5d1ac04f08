"""A short file that changes the user's own model: containers in the place of convolutions.

It needs torch and the model, neither this package nor a copy of the model's code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from ..convs.names import joined
from ..errors import RewriteError
from ..rewriting import Result
from . import plain
from .changes import Change, by_module, find_calls
from .code import Classes
from .forwards import Forwards
from .layers import Layers
from .pieces import picked
from .text import finished, one_line, told
from .values import called, counted, listed


def model_file(result: Result) -> str:
    """The file for a result whose model has a class.

    Raises RewriteError where the rewrite did more than to put modules in the place of modules.
    """
    layers = Layers()
    classes = Classes(layers)
    calls = find_calls(result)
    forwards = Forwards(result, layers, classes)
    if result.report.respelled:
        forwards.compare(result.program.whole, calls)
    found = [replace(c, norm=forwards.norm(c.norm)) for c in by_module(calls)]
    split, called_there, frozen = _by_kind(found, result.program.model)
    needed: list[Any] = [plain.in_parts] if split else [plain.cut] if forwards.fused else []
    needed += [plain.in_slices, plain.InSlices, plain.CallsInSlices] if called_there else []
    for code in needed:
        layers.need(code)
    return finished(
        "changes.jinja",
        name=one_line(type(result.program.model).__name__),
        told=told(result),
        frozen=[f"{c.path!r}: (lambda: {_frozen(c, layers)}, {c.norm!r})," for c in frozen],
        sites=[f"{c.path!r}: (Branches, {counted(c.groups)}, {c.norm!r})," for c in split],
        called=[f"{c.path!r}: {counted(c.groups)}," for c in called_there],
        transposed=any(site.spec.transposed for site in result.report.sites),
        read=result.program.way == "modules",
        classes=classes.found,
        layers=layers,
        fused=[f"(lambda: {made}, {paths})," for made, paths in forwards.fused.items()],
        new_layers=[f"(lambda: {made}, {paths})," for made, paths in forwards.layers.items()],
        forwards=[f"({made}, {paths})," for made, paths in forwards.classes.items()],
        picked=picked(frozen, result),
    )


def _frozen(change: Change, layers: Layers) -> str:
    """What makes a frozen layer."""
    parts: dict[str, list[str]] = defaultdict(list)
    for path, place in change.pieces.items():
        module = change.fragment.working.get_submodule(path)
        parts[place.partition(".")[0]].append(layers.call(module, joined(change.path, place)))
    if "" in parts:
        return parts[""][0]
    lists = ("convs", "norms")
    told = {name: listed(made) if name in lists else made[0] for name, made in parts.items()}
    return called(layers.need(plain.Frozen), (), told)


def _by_kind(changes: Sequence[Change], model: nn.Module) -> tuple[list[Change], ...]:
    """Those that are split, called and frozen; a split one for every name of its module.

    Then a BatchNorm behind it stays where it is.
    """
    names: dict[nn.Module, list[str]] = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        names[module].append(path)
    found: dict[str, list[Change]] = {"split": [], "called": [], "frozen": []}
    for change in changes:
        paths = names[model.get_submodule(change.path)]
        if change.kind == "frozen" and len(paths) > 1:
            raise RewriteError(f"{change.path} has several names: {', '.join(paths)}")
        alone = change if len(paths) == 1 else replace(change, norm=None)
        kept = paths if change.kind == "split" else paths[:1]
        found[change.kind] += [replace(alone, path=path) for path in kept]
    return tuple(found.values())
