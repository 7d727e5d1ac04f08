"""The body of `forward`: statements in the order of the graph, with short names and little nesting.

A value that is used once, by what comes next, is written where it is used, as long as the line
stays readable. A value takes over the name of the one that it is computed from where that one is
not needed any more, as in `x = self.conv(x)`: this reads well, and it frees memory when the graph
would. The branches of a concatenation that follow one another stand in it, as one loop where they
are alike.
"""

from __future__ import annotations

import ast
import builtins
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from .alike import listed
from .calls import INPLACE, Calls, is_silent
from .imports import Imports
from .signature import Signature
from .text import call, written
from .values import value

_DEPTH = 3
_LONG = 76
_BRANCH = 6
_NAMES = ("x", "y", "z", "u", "v", "w")
_SIZES = ("n", "m", "h", "d", "s", "t")
_CATS = (torch.cat, torch.ops.aten.cat.default)


@dataclass(frozen=True)
class _Waiting:
    """An expression that is not written yet: its node, the nodes inside it, how deep it is."""

    node: fx.Node
    tree: ast.expr
    nodes: tuple[fx.Node, ...]
    depth: int


class Body:
    """Writes one graph.

    `source` gives what a get_attr or a call_module node names.
    """

    def __init__(
        self,
        graph: fx.Graph,
        signature: Signature,
        imports: Imports,
        source: Callable[[fx.Node], ast.expr],
    ) -> None:
        self._graph = graph
        self._signature = signature
        self._imports = imports
        self._calls = Calls(imports)
        self._source = source
        self._inside = _branches(graph)
        self._left = self._reads()
        self._names: dict[fx.Node, str] = {}
        self._holders: dict[str, fx.Node] = {}
        for node, tree in signature.inputs.items():
            if isinstance(tree, ast.Name):
                self._take(node, tree.id)
        self._waiting: list[_Waiting] = []
        self._lines: list[str] = []

    def _reads(self) -> Counter[fx.Node]:
        """How often each value is read in statements; finds those that need none of their own."""
        left: Counter[fx.Node] = Counter()
        self._looks = {node for node in self._graph.nodes if _is_look(node)}
        self._hidden = {node for nodes in self._inside.values() for node in nodes} | self._looks
        for node in reversed(self._graph.nodes):
            if node.op not in ("placeholder", "output") and is_silent(node) and not node.users:
                self._hidden.add(node)
            elif node not in self._hidden:
                left.update(self._operands(node))
        return left

    def _operands(self, node: fx.Node) -> list[fx.Node]:
        """Values that `node` reads, in the order in which they are evaluated."""
        if node.op == "output":
            given: Any = self._signature.output
        else:
            given = (node.args, node.kwargs)
        found: list[fx.Node] = []
        pending = _nodes_of(given)
        while pending:
            operand = pending.pop(0)
            if operand in self._hidden and operand.op != "get_attr":
                pending = [*_nodes_of((operand.args, operand.kwargs)), *pending]
            else:
                found.append(operand)
        return [operand for operand in found if operand.op != "get_attr"]

    # Statements

    def lines(self) -> list[str]:
        """The body, not indented."""
        for node in self._graph.nodes:
            if node in self._hidden or node.op in ("placeholder", "get_attr"):
                continue
            if node.op == "output":
                waiting = self._expression(node)
                self._flush()
                self._lines.append(written(ast.Return(waiting.tree)))
            elif not self._changed(node):
                waiting = self._expression(node)
                if self._left[node] == 1 and (node not in self._inside or _is_returned(node)):
                    self._waiting.append(waiting)
                    continue
                self._flush()
                self._write(waiting)
        return self._lines

    def _expression(self, node: fx.Node) -> _Waiting:
        """The expression for `node`, with what waits for it inside where that reads well."""
        inner = self._ready(node)
        made = self._with(node, inner)
        long = len(written(made.tree)) > _LONG and node.op != "output"
        if inner and (long or made.depth > _DEPTH):
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
        tree = self._tree(node, {entry.node: entry.tree for entry in inner})
        slight = is_silent(node) or node.op == "output" or isinstance(tree, ast.BinOp)
        depth = (not slight) + max((entry.depth for entry in inner), default=0)
        nodes = (node, *(part for entry in inner for part in entry.nodes))
        return _Waiting(node, tree, nodes, depth)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for entry in waiting:
            self._write(entry)

    def _write(self, waiting: _Waiting) -> None:
        """Write a statement."""
        node = waiting.node
        dying = self._read(waiting.nodes)
        statement: ast.stmt = ast.Expr(waiting.tree)
        if node.target is torch._assert and isinstance(waiting.tree, ast.Call):
            statement = ast.Assert(*waiting.tree.args)
        elif self._left[node]:
            statement = ast.Assign([ast.Name(self._name(node, dying))], waiting.tree)
        self._lines.append(written(statement))

    def _changed(self, node: fx.Node) -> bool:
        """Write `a += b`, where it is the same as the call in the graph."""
        if node.target not in INPLACE:
            return False
        self._flush()
        owner, other = node.args
        if not isinstance(owner, fx.Node) or owner not in self._names:
            return False
        if self._left[owner] != 1 or not self._left[node]:
            return False
        name = self._names[owner]
        changed = ast.AugAssign(ast.Name(name), INPLACE[node.target](), self._argument(other, {}))
        self._read((node,))
        self._take(node, name)
        self._lines.append(written(changed))
        return True

    # Names

    def _read(self, nodes: Sequence[fx.Node]) -> list[fx.Node]:
        """Count the reads of a statement; returns the values that nothing needs after it."""
        read = [operand for node in reversed(nodes) for operand in self._operands(node)]
        self._left.subtract(read)
        return [node for node in dict.fromkeys(read) if self._left[node] == 0]

    def _name(self, node: fx.Node, dying: Sequence[fx.Node]) -> str:
        """A variable for `node`: one that is free, best that of a value that it is made of."""
        pool = _SIZES if _is_scalar(node) else _NAMES
        free = [self._names[source] for source in dying if source in self._names]
        arguments = self._signature.names
        names = [
            *(name for name in free if name in pool),
            *(name for name in pool if name not in arguments),
            *(f"{pool[0]}{count}" for count in range(2, len(self._holders) + 3)),
        ]
        return self._take(node, next(name for name in names if self._is_free(name)))

    def _is_free(self, name: str) -> bool:
        holder = self._holders.get(name)
        return name not in self._imports.taken and (holder is None or self._left[holder] <= 0)

    def _take(self, node: fx.Node, name: str) -> str:
        self._names[node] = name
        self._holders[name] = node
        return name

    # Expressions

    def _argument(self, given: Any, inner: Mapping[fx.Node, ast.expr]) -> ast.expr:
        def other(part: Any) -> ast.expr | None:
            if not isinstance(part, fx.Node):
                return None
            if part in self._looks:
                return self._tree(part, inner)
            return inner[part] if part in inner else self._value(part)

        return value(given, self._imports, other)

    def _value(self, node: fx.Node) -> ast.expr:
        if node.op == "get_attr":
            return self._source(node)
        if node in self._names:
            return ast.Name(self._names[node])
        return self._signature.inputs[node]

    def _tree(self, node: fx.Node, inner: Mapping[fx.Node, ast.expr]) -> ast.expr:
        def write(given: Any) -> ast.expr:
            return self._argument(given, inner)

        if node.op == "output":
            return write(self._signature.output)
        if node in self._inside:
            return self._cat(node, inner)
        if node.op == "call_module":
            return self._calls.called(self._source(node), node.args, node.kwargs, write)
        if node.op == "call_method":
            return self._calls.method(str(node.target), node.args, node.kwargs, write)
        return self._calls.function(node.target, node.args, node.kwargs, write)

    def _cat(self, node: fx.Node, inner: Mapping[fx.Node, ast.expr]) -> ast.expr:
        """`torch.cat([... for k in range(32)], dim=1)`."""
        known = dict(inner)
        for part in self._inside[node]:
            known[part] = self._tree(part, known)
        parts = [self._argument(part, known) for part in _nodes_of(node.args[0])]
        options = {"dim": node.args[1]} if len(node.args) > 1 else node.kwargs
        named = {name: self._argument(given, {}) for name, given in options.items()}
        return call("torch.cat", [listed(parts, self._signature.names)], named)


def _branches(graph: fx.Graph) -> dict[fx.Node, tuple[fx.Node, ...]]:
    """Concatenations, and the calls of their branches, which stand right in front of them."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    nodes = list(order)
    found: dict[fx.Node, tuple[fx.Node, ...]] = {}
    for cat in nodes:
        if cat.op != "call_function" or cat.target not in _CATS or not cat.args:
            continue
        inside: set[fx.Node] = set()
        parts = _nodes_of(cat.args[0])
        for part in parts:
            branch = _chain(part)
            # A long branch reads better as statements.
            inside |= branch if len(branch) <= _BRANCH else set()
        first = min((order[node] for node in inside), default=order[cat])
        between = [node for node in nodes[first : order[cat]] if node.op != "get_attr"]
        if inside and set(between) == inside and not inside & found.keys():
            found[cat] = tuple(between)
    return found


def _is_returned(node: fx.Node) -> bool:
    return all(user.op == "output" for user in node.users)


def _chain(end: fx.Node) -> set[fx.Node]:
    """`end` and the calls that serve it alone."""
    found: set[fx.Node] = set()
    pending = [end]
    while pending:
        node = pending.pop()
        if not node.op.startswith("call_") or len(node.users) != 1 or node.target in INPLACE:
            continue
        found.add(node)
        pending += node.all_input_nodes
    return found


def _nodes_of(given: Any) -> list[fx.Node]:
    """The nodes in a value, in their order."""
    if isinstance(given, fx.Node):
        return [given]
    parts: Iterable[Any] = ()
    if isinstance(given, dict):
        parts = given.values()
    elif isinstance(given, list | tuple):
        parts = given
    elif isinstance(given, slice):
        parts = (given.start, given.stop, given.step)
    return [node for part in parts for node in _nodes_of(part)]


def _is_look(node: fx.Node) -> bool:
    """Whether a call only reads a size, so that it may stand wherever its value is needed."""
    if node.target == "size" or node.target is torch.ops.aten.sym_size.int:
        return len(node.args) == 2
    if node.target is operator.getitem:
        return isinstance(node.args[1], int) and _is_scalar(node)
    return node.target is builtins.getattr and _is_scalar(node)


def _is_scalar(node: fx.Node) -> bool:
    """Whether the value of `node` is a size or the like, not a tensor."""
    example = node.meta.get("val")
    if example is not None:
        return not isinstance(example, torch.Tensor | list | tuple)
    if node.target in ("size", "dim", "numel"):
        return True
    if node.target is builtins.getattr:
        return node.args[1] in ("shape", "ndim", "dtype", "device")
    if node.target in (operator.getitem, operator.add, operator.mul, operator.floordiv):
        sources = node.all_input_nodes
        return bool(sources) and all(map(_is_scalar, sources))
    return False
