"""The body of `forward`: statements in the order of the graph, with short names and little nesting.

A value that is used once is written where it is used, as long as nothing changes its place in the
order of evaluation and the line stays readable. A value takes over the name of the one that it is
computed from where that one is not needed any more, as in `x = self.conv(x)`: this reads well, and
it frees memory when the graph would.
"""

from __future__ import annotations

import builtins
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ..errors import RewriteError
from .branches import Alike, find_alike
from .comprehension import Comprehension
from .imports import Imports
from .layout import ATOM, WIDTH, Doc, bracket, call, render, within
from .literals import literal, one_line, subscript
from .naming import Naming, find_unpacked
from .operations import INPLACE, Operations, condition, is_arithmetic, is_assertion, is_silent
from .signature import Built, Signature
from .tree import Tree

_DEPTH = 3
_LOOKS = (operator.getitem, builtins.getattr, torch.ops.aten.sym_size.int)
_SIZES = ("size", "dim", "numel", "stride")


@dataclass(frozen=True)
class _Waiting:
    """An expression that is not written yet: its node, the nodes inside it, how deep it is."""

    node: fx.Node
    doc: Doc
    nodes: tuple[fx.Node, ...]
    depth: int


@dataclass(frozen=True)
class Remark:
    """A comment on the statements that compute what lies between two nodes, both included."""

    first: fx.Node
    last: fx.Node
    text: str


class Forward:
    """Writes one graph, with remarks."""

    def __init__(
        self,
        graph: fx.Graph,
        tree: Tree,
        imports: Imports,
        signature: Signature,
        remarks: Sequence[Remark] = (),
    ) -> None:
        self._graph = graph
        self._tree = tree
        self._imports = imports
        self._operations = Operations(imports)
        self._signature = signature
        self._alike = find_alike(graph, self._is_list)
        self._hidden = {node for alike in self._alike.values() for node in alike.inside}
        self._unpacked = find_unpacked(graph)
        self._hidden.update(part for parts in self._unpacked.values() for part in parts)
        inside = {node: cat for cat, alike in self._alike.items() for node in alike.inside}
        self._remarks = {
            # One loop says it all; what comes before it computes its weights.
            entry.last if entry.last in self._alike else inside.get(entry.first, entry.first): entry
            for entry in remarks
        }
        self._waiting: list[_Waiting] = []
        self._lines: list[str] = []
        self._indent = 8
        self._uses = self._count()
        self._left = Counter(self._uses)
        self._names = Naming(self._order(), imports, self._uses, signature.variables)

    def _is_list(self, path: str, count: int) -> bool:
        module = self._tree.root.get_submodule(path)
        written = not self._tree.is_leaf(path) and self._tree.is_list(module)
        return written and len(module._modules) >= count

    def _count(self) -> Counter[fx.Node]:
        """How often each value is read; what only looks and is read by nobody is left out."""
        uses: Counter[fx.Node] = Counter()
        for node in reversed(self._graph.nodes):
            if node in self._hidden:
                continue
            fixed = node.op in ("placeholder", "output") or node in self._unpacked
            if not fixed and not uses[node] and _only_looks(node):
                self._hidden.add(node)
                continue
            uses.update(self._operands(node))
        return uses

    def _order(self) -> dict[fx.Node, int]:
        """Where each value is computed, in statements; a branch stands with its concatenation."""
        order, position = {}, 0
        for node in self._graph.nodes:
            order[node] = position
            position += node not in self._hidden
        return order

    def _operands(self, node: fx.Node) -> list[fx.Node]:
        """Values that `node` reads, in the order in which they are evaluated."""
        found: list[fx.Node] = []
        if node in self._alike:
            found += self._alike[node].sources
        elif node.op == "output":
            _collect(self._signature.output, found)
        else:
            fx.node.map_arg((node.args, node.kwargs), found.append)
        return [operand for operand in found if operand.op != "get_attr"]

    # Statements

    def lines(self) -> list[str]:
        """The body, indented for a method."""
        for node, part in self._signature.parts.items():
            if self._uses[node]:
                name = self._names.fresh(node, self._left)
                self._lines += render(part, self._indent, f"{name} = ")
        for node in self._graph.nodes:
            if node in self._hidden or node.op in ("placeholder", "get_attr"):
                continue
            if node.op == "output":
                self._return(node)
            else:
                self._visit(node)
        return self._lines

    def _visit(self, node: fx.Node) -> None:
        special = node.target is operator.setitem or node.target in INPLACE
        if node in self._alike or special:
            self._flush()
        if special and self._changed(node):
            return
        waiting = self._expression(node)
        if self._may_wait(node):
            self._waiting.append(waiting)
            return
        self._flush()
        self._write(waiting)

    def _expression(self, node: fx.Node) -> _Waiting:
        """The expression for `node`, with what waits for it inside where that reads well."""
        inner = self._ready(node)
        made = self._with(node, inner)
        too_long = self._indent + len(made.doc.flat) + 8 > WIDTH and node.op != "output"
        if inner and (too_long or made.depth > _DEPTH):
            self._waiting += inner
            self._flush()
            made = self._with(node, [])
        return made

    def _ready(self, node: fx.Node) -> list[_Waiting]:
        """Takes what `node` reads off the end of the waiting ones; all else is written first."""
        waiting = {entry.node for entry in self._waiting}
        wanted = [operand for operand in self._operands(node) if operand in waiting]
        count = len(wanted)
        if wanted and [entry.node for entry in self._waiting[-count:]] == wanted:
            inner = self._waiting[-count:]
            del self._waiting[-count:]
            return inner
        if wanted:
            self._flush()
        return []

    def _with(self, node: fx.Node, inner: list[_Waiting]) -> _Waiting:
        docs = {entry.node: entry.doc for entry in inner}
        doc = self._doc(node, docs)
        calls = 0 if _is_slight(node) else 1
        depth = calls + max((entry.depth for entry in inner), default=0)
        nodes = (node, *(part for entry in inner for part in entry.nodes))
        return _Waiting(node, doc, nodes, depth)

    def _may_wait(self, node: fx.Node) -> bool:
        if self._uses[node] != 1:
            return False
        return node not in self._alike or any(user.op == "output" for user in node.users)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for entry in waiting:
            self._write(entry)

    def _write(self, waiting: _Waiting) -> None:
        """Write a statement."""
        node = waiting.node
        self._remark(waiting)
        if is_assertion(node.target):
            self._assert(waiting)
            return
        dying = self._read(waiting)
        before = ""
        if node in self._unpacked:
            parts = [self._names.fresh(part, self._left) for part in self._unpacked[node]]
            before = f"{', '.join(parts)} = "
        elif self._uses[node]:
            before = f"{self._names.name(node, self._going_on(waiting, dying), self._left)} = "
        self._lines += render(waiting.doc, self._indent, before)

    def _assert(self, waiting: _Waiting) -> None:
        message = str(waiting.node.args[1])
        self._read(waiting)
        text = literal(message, self._imports)
        line = f"{' ' * self._indent}assert {waiting.doc.flat}, {text.flat}"
        if len(line) <= WIDTH:
            self._lines.append(line)
            return
        inside = " " * (self._indent + 4) + text.flat
        last = " " * self._indent + ")"
        self._lines += [f"{' ' * self._indent}assert {waiting.doc.flat}, (", inside, last]

    def _changed(self, node: fx.Node) -> bool:
        """Write `a += b` or `a[k] = b`, where it is the same as the call in the graph."""
        if node.target is operator.setitem:
            owner, index, value = node.args
            place = subscript(within(self._plain(owner), ATOM), index, self._plain)
            self._read(_Waiting(node, place, (node,), 1))
            self._lines += render(self._plain(value), self._indent, f"{place.flat} = ")
            return True
        owner, value = node.args
        if not isinstance(owner, fx.Node) or owner.op == "get_attr" or self._left[owner] != 1:
            return False
        if not self._uses[node]:
            return False
        name, doc = self._names.of(owner), self._plain(value)
        self._read(_Waiting(node, doc, (node,), 1))
        self._names.take(node, name)
        self._lines += render(doc, self._indent, f"{name} {INPLACE[node.target]} ")
        return True

    def _return(self, node: fx.Node) -> None:
        waiting = self._expression(node)
        self._flush()
        self._remark(waiting)
        output = self._signature.output
        flat = waiting.doc.flat
        if isinstance(output, tuple) and len(output) > 1 and len(flat) < WIDTH - self._indent - 8:
            self._lines.append(f"{' ' * self._indent}return {flat[1:-1]}")
            return
        self._lines += render(waiting.doc, self._indent, "return ")

    def _remark(self, waiting: _Waiting) -> None:
        for node in reversed(waiting.nodes):
            if node in self._remarks:
                self._lines.append(f"{' ' * self._indent}# {one_line(self._remarks[node].text)}")

    # Names

    def _read(self, waiting: _Waiting) -> set[fx.Node]:
        """Count the reads of a statement; returns the values that nothing needs after it."""
        read = {operand for node in waiting.nodes for operand in self._operands(node)}
        for node in waiting.nodes:
            self._left.subtract(self._operands(node))
        return {node for node in read if self._left[node] == 0}

    def _going_on(self, waiting: _Waiting, dying: set[fx.Node]) -> list[fx.Node]:
        """Values whose variable may hold the result: what it starts with, or sums up."""
        node: fx.Node | None = waiting.node
        while node is not None and node in waiting.nodes:
            node = next(iter(self._operands(node)), None)
        sums = any(is_arithmetic(part) for part in waiting.nodes)
        outside = [source for source in dying if source not in waiting.nodes]
        return [source for source in outside if sums or source is node]

    # Expressions

    def _value(self, node: fx.Node, inner: Mapping[fx.Node, Doc]) -> Doc:
        if node in inner:
            return inner[node]
        if node.op == "get_attr":
            return self._attribute(node)
        return Doc(self._names.of(node))

    def _attribute(self, node: fx.Node) -> Doc:
        path, _, name = str(node.target).rpartition(".")
        value = getattr(self._tree.root.get_submodule(path), name)
        if isinstance(value, nn.Module):
            raise RewriteError(
                f"{node.name} is a graph inside the graph ({type(value).__name__}), which cannot "
                "be written as Python"
            )
        if not isinstance(value, torch.Tensor):
            return literal(value, self._imports)
        return Doc(self._tree.source(str(node.target)))

    def _plain(self, value: Any) -> Doc:
        return self._argument(value, {})

    def _argument(self, value: Any, inner: Mapping[fx.Node, Doc]) -> Doc:
        def other(item: Any) -> Doc | None:
            if isinstance(item, fx.Node):
                return self._value(item, inner)
            if isinstance(item, Built):
                return item.doc(self._imports, lambda part: self._argument(part, inner))
            return None

        return literal(value, self._imports, other)

    def _doc(self, node: fx.Node, inner: Mapping[fx.Node, Doc]) -> Doc:
        def write(value: Any) -> Doc:
            return self._argument(value, inner)

        if node in self._alike:
            return self._loop(self._alike[node])
        if node.op == "output":
            return write(self._signature.output)
        if is_assertion(node.target):
            return condition(node.target, write(node.args[0]))
        if node.op == "call_module":
            head = self._tree.source(str(node.target))
            return self._operations.module(head, node.args, node.kwargs, write)
        if node.op == "call_method":
            return self._operations.method(str(node.target), node.args, node.kwargs, write)
        return self._operations.function(node.target, node.args, node.kwargs, write)

    def _loop(self, alike: Alike) -> Doc:
        """`torch.cat([... for i, (conv, bn) in enumerate(zip(...))], dim=1)`."""
        taken = frozenset(self._signature.variables.values())
        branches = Comprehension(
            alike, self._tree, self._operations, self._imports, self._plain, taken
        )
        inside = bracket("", [branches.doc()], "[")
        rest = [self._plain(value) for value in alike.cat.args[1:]]
        named = {name: self._plain(value) for name, value in alike.cat.kwargs.items()}
        return call(self._imports.callable(torch.cat), [inside, *rest], **named)


def _collect(value: Any, found: list[fx.Node]) -> None:
    if isinstance(value, Built):
        for part in value.named.values():
            _collect(part, found)
    elif isinstance(value, dict):
        for part in value.values():
            _collect(part, found)
    elif isinstance(value, list | tuple):
        for part in value:
            _collect(part, found)
    elif isinstance(value, fx.Node | slice):
        fx.node.map_arg(value, found.append)


def _is_slight(node: fx.Node) -> bool:
    """Whether an expression is no harder to read with `node` in it."""
    looks = node.target in _LOOKS or node.target in _SIZES
    return looks or node.op == "output" or is_arithmetic(node)


def _only_looks(node: fx.Node) -> bool:
    """Whether a call changes nothing, so that it may be left out where nobody reads its value."""
    if node.op == "call_method":
        return node.target in _SIZES
    return node.op == "get_attr" or node.target in _LOOKS or is_silent(node.target)
