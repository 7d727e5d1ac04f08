"""Branches of a concatenation that are alike but for a number, found and written as one loop.

The branches of a split convolution are the same calls, on the next slice of the input and with the
next module of a list. Walked side by side, their arguments either agree, or grow by one step from
branch to branch, or are the k-th child of one list. Where that holds for all of them, and nothing
else happens in between, one expression says it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from .layout import ADD, MULTIPLY, Doc, within

_CONCATENATIONS = (torch.cat, torch.ops.aten.cat.default)


@dataclass(frozen=True)
class Step:
    """The integer `step * k + start` in branch k."""

    step: int
    start: int

    def doc(self, name: str) -> Doc:
        """The integer, where `name` is k."""
        product = Doc(name) if self.step == 1 else Doc(f"{self.step} * {name}", MULTIPLY)
        if self.start == 0:
            return product
        sign = "+" if self.start > 0 else "-"
        return Doc(f"{within(product, ADD)} {sign} {abs(self.start)}", ADD)


@dataclass(frozen=True)
class Branch:
    """One call in every branch. `target` is a function, a method's name, or a module's place."""

    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class Child:
    """The module at `path.k.rest` in branch k."""

    path: str
    rest: str


@dataclass(frozen=True)
class Alike:
    """A concatenation of `count` branches that are all like `branch`."""

    cat: fx.Node
    count: int
    branch: Branch
    inside: frozenset[fx.Node] = field(repr=False)
    sources: tuple[fx.Node, ...] = ()
    """Values from outside that the branches read, in the order in which they do."""


class _Irregular(Exception):
    """The branches are not alike."""


def find_alike(graph: fx.Graph, is_list: Callable[[str, int], bool]) -> dict[fx.Node, Alike]:
    """The concatenations whose branches are alike.

    `is_list(path, count)` says whether the module at `path` is a list of at least `count`.
    """
    order = {node: position for position, node in enumerate(graph.nodes)}
    nodes = list(order)
    found = {}
    for cat in nodes:
        parts = _parts(cat)
        if parts is None:
            continue
        try:
            alike = _Walk(is_list).alike(cat, parts)
        except _Irregular:
            continue
        first = min(order[node] for node in alike.inside)
        between = nodes[first : order[cat]]
        if all(node in alike.inside or node.op == "get_attr" for node in between):
            found[cat] = alike
    return found


def _parts(node: fx.Node) -> Sequence[fx.Node] | None:
    if node.op != "call_function" or node.target not in _CONCATENATIONS or not node.args:
        return None
    parts = node.args[0]
    if not isinstance(parts, list | tuple) or len(parts) < 2:
        return None
    nodes = [part for part in parts if isinstance(part, fx.Node)]
    return nodes if len(nodes) == len(parts) else None


class _Walk:
    """Walks the branches of one concatenation side by side."""

    def __init__(self, is_list: Callable[[str, int], bool]) -> None:
        self._is_list = is_list
        self._inside: set[fx.Node] = set()
        self._sources: dict[fx.Node, None] = {}
        self._differs = False

    def alike(self, cat: fx.Node, parts: Sequence[fx.Node]) -> Alike:
        branch = self._merged(list(parts))
        if not isinstance(branch, Branch) or not self._differs:
            raise _Irregular
        sources = tuple(self._sources)
        return Alike(cat, len(parts), branch, frozenset(self._inside), sources)

    def _merged(self, values: list[Any]) -> Any:
        first = values[0]
        if isinstance(first, fx.Node):
            return self._node(values)
        if any(type(value) is not type(first) for value in values):
            raise _Irregular
        if isinstance(first, slice):
            parts = [[value.start, value.stop, value.step] for value in values]
            return slice(*self._each(parts))
        if isinstance(first, list | tuple):
            merged = self._each(values)
            return tuple(merged) if isinstance(first, tuple) else merged
        if isinstance(first, dict):
            return self._dict(values)
        return self._constant(values)

    def _each(self, values: list[Any]) -> list[Any]:
        if len({len(value) for value in values}) > 1:
            raise _Irregular
        return [self._merged(list(column)) for column in zip(*values, strict=True)]

    def _dict(self, values: list[dict[str, Any]]) -> dict[str, Any]:
        if any(list(value) != list(values[0]) for value in values):
            raise _Irregular
        return {key: self._merged([value[key] for value in values]) for key in values[0]}

    def _constant(self, values: list[Any]) -> Any:
        first = values[0]
        if all(value == first for value in values):
            return first
        if type(first) is not int:
            raise _Irregular
        step = values[1] - first
        if any(value != first + step * k for k, value in enumerate(values)):
            raise _Irregular
        self._differs = True
        return Step(step, first)

    def _node(self, nodes: list[Any]) -> Any:
        first = nodes[0]
        if all(node is first for node in nodes):
            self._sources[first] = None
            return first
        if any(not isinstance(node, fx.Node) or len(node.users) != 1 for node in nodes):
            raise _Irregular
        if any(node.op != first.op for node in nodes) or len(set(nodes)) < len(nodes):
            raise _Irregular
        if not first.op.startswith("call_"):
            raise _Irregular
        target = self._target(nodes)
        args = tuple(self._each([node.args for node in nodes]))
        kwargs = self._dict([dict(node.kwargs) for node in nodes])
        self._inside.update(nodes)
        return Branch(first.op, target, args, kwargs)

    def _target(self, nodes: list[fx.Node]) -> Any:
        targets = [node.target for node in nodes]
        if all(target == targets[0] for target in targets):
            return targets[0]
        if nodes[0].op != "call_module":
            raise _Irregular
        self._differs = True
        paths = [str(target).split(".") for target in targets]
        if len({len(path) for path in paths}) > 1:
            raise _Irregular
        places = [k for k, parts in enumerate(zip(*paths, strict=True)) if len(set(parts)) > 1]
        if len(places) != 1 or [path[places[0]] for path in paths] != _numbers(len(paths)):
            raise _Irregular
        place = places[0]
        child = Child(".".join(paths[0][:place]), ".".join(paths[0][place + 1 :]))
        if not self._is_list(child.path, len(paths)):
            raise _Irregular
        return child


def _numbers(count: int) -> list[str]:
    return [str(k) for k in range(count)]
