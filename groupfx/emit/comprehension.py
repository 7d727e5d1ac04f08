"""Branches that are alike, written as `element for i, (conv, bn) in enumerate(zip(...))`."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

from torch import fx, nn

from ..convs.names import joined
from .branches import Alike, Branch, Child, Step
from .imports import Imports
from .layout import Doc, call, loop
from .literals import attribute, literal
from .operations import Operations
from .tree import Tree


class Comprehension:
    """The comprehension over branches that are alike; `plain` writes values from outside.

    No variable of it has a name that is `taken`.
    """

    def __init__(
        self,
        alike: Alike,
        tree: Tree,
        operations: Operations,
        imports: Imports,
        plain: Callable[[Any], Doc],
        taken: Container[str],
    ) -> None:
        self._alike = alike
        self._counted = False
        self._loops: dict[str, str] = {}
        self._tree = tree
        self._operations = operations
        self._imports = imports
        self._plain = plain
        self._taken = taken
        self._index = next(name for name in (*"ikjn", "index") if name not in taken)

    def doc(self) -> Doc:
        """`element for target in values`."""
        self._list_loops(self._alike.branch)
        element = self._call(self._alike.branch)
        if not self._loops:
            return loop(element, self._index, call("range", [Doc(str(self._alike.count))]))
        sources = [self._tree.source(path) for path in self._loops]
        names = ", ".join(self._loops.values())
        values = Doc(sources[0]) if len(sources) == 1 else call("zip", [Doc(s) for s in sources])
        if not self._counted:
            return loop(element, names, values)
        names = names if len(sources) == 1 else f"({names})"
        return loop(element, f"{self._index}, {names}", call("enumerate", [values]))

    def _list_loops(self, value: Any) -> None:
        """Find the lists that are walked, in the order in which their modules are called."""
        if isinstance(value, Branch):
            self._list_loops([*value.args, *value.kwargs.values()])
            if value.op == "call_module":
                self._head(value.target)
        elif isinstance(value, list | tuple):
            for part in value:
                self._list_loops(part)

    def _call(self, branch: Branch) -> Doc:
        operations = self._operations
        if branch.op == "call_module":
            head = self._head(branch.target)
            return operations.module(head, branch.args, branch.kwargs, self._argument)
        if branch.op == "call_method":
            return operations.method(branch.target, branch.args, branch.kwargs, self._argument)
        return operations.function(branch.target, branch.args, branch.kwargs, self._argument)

    def _head(self, target: Any) -> str:
        if not isinstance(target, Child):
            return self._tree.source(str(target))
        holder = self._tree.root.get_submodule(target.path)
        if len(holder._modules) > self._alike.count:
            self._counted = True
            return _below(f"{self._tree.source(target.path)}[{self._index}]", target.rest)
        if target.path not in self._loops:
            first = self._tree.root.get_submodule(joined(target.path, "0", target.rest))
            self._loops[target.path] = self._free(_kind(first))
        return _below(self._loops[target.path], target.rest)

    def _free(self, base: str) -> str:
        names = [base, *(f"{base}{count}" for count in range(2, 100))]
        used = self._loops.values()
        return next(name for name in names if name not in self._taken and name not in used)

    def _argument(self, value: Any) -> Doc:
        def other(item: Any) -> Doc | None:
            if isinstance(item, Step):
                self._counted = True
                return item.doc(self._index)
            if isinstance(item, Branch):
                return self._call(item)
            if isinstance(item, fx.Node):
                return self._plain(item)
            return None

        return literal(value, self._imports, other)


def _below(owner: str, rest: str) -> str:
    for name in rest.split(".") if rest else ():
        owner = attribute(owner, name)
    return owner


def _kind(module: nn.Module) -> str:
    """What a branch's module is called in a loop."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return "conv"
    return "bn" if isinstance(module, nn.modules.batchnorm._BatchNorm) else "branch"
