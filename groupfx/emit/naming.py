"""Names of variables in an emitted `forward`.

Tensors are called x, y, z, ... as in hand-written code, and a name is free again when its value is
not needed any more. Sizes, tuples and values that are needed much later keep the name that the
graph gave them.
"""

from __future__ import annotations

import builtins
import operator
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import fx

from .imports import LOOP_NAMES, RESERVED, Imports
from .literals import is_name
from .operations import is_arithmetic

_SHORT = ("x", "y", "z", "u", "v", "w")
_FAR = 20
_SCALAR_METHODS = frozenset({"size", "dim", "numel", "stride", "item", "tolist", "ndimension"})
_SCALAR_FIELDS = frozenset({"shape", "ndim", "dtype", "device"})


class Naming:
    """Gives variables to the values of one graph, which stand in the given order."""

    def __init__(
        self,
        order: Mapping[fx.Node, int],
        imports: Imports,
        uses: Counter[fx.Node],
        arguments: Mapping[fx.Node, str],
    ) -> None:
        self._imports = imports
        self._uses = uses
        self._names: dict[fx.Node, str] = dict(arguments)
        self._holders = {name: node for node, name in arguments.items()}
        self._arguments = frozenset(arguments.values())
        self._order = order

    def of(self, node: fx.Node) -> str:
        """The variable that holds the value of `node`."""
        return self._names[node]

    def take(self, node: fx.Node, name: str) -> str:
        """Let the variable `name` hold the value of `node`."""
        self._names[node] = name
        self._holders[name] = node
        return name

    def name(self, node: fx.Node, sources: Sequence[fx.Node], left: Counter[fx.Node]) -> str:
        """A variable for `node`: that of one of `sources`, which nothing else needs, or another.

        `left` counts the reads to come of each value.
        """
        if not self._keeps_its_name(node):
            free = [self._names[source] for source in sources if self._is_running(source)]
            if free:
                return self.take(node, min(free, key=_rank))
        return self.fresh(node, left)

    def _is_running(self, node: fx.Node) -> bool:
        """Whether its variable may go on to hold another value: not one that says what it is."""
        name = self._names[node]
        if self._holders[name] is not node:
            return False
        return name == "x" or (name not in self._arguments and not self._keeps_its_name(node))

    def fresh(self, node: fx.Node, left: Counter[fx.Node]) -> str:
        """A variable that holds nothing that is still needed."""
        if not self._keeps_its_name(node) and node.op != "placeholder":
            for name in _SHORT:
                holder = self._holders.get(name)
                if holder is None or left[holder] <= 0:
                    return self.take(node, name)
        return self.take(node, self._own_name(node, left))

    def _own_name(self, node: fx.Node, left: Counter[fx.Node]) -> str:
        base = re.sub(r"\W", "_", _base(node), flags=re.ASCII)
        if not is_name(base) or base in _SHORT:
            base = f"value_{base.strip('_')}"
        living = {name for name, holder in self._holders.items() if left[holder] > 0}
        taken = RESERVED | LOOP_NAMES | self._imports.names | self._arguments | living
        if base not in taken:
            return base
        count = 2
        while f"{base}_{count}" in taken:
            count += 1
        return f"{base}_{count}"

    def _keeps_its_name(self, node: fx.Node) -> bool:
        if is_scalar(node) or any(_takes_apart(user, node) for user in node.users):
            return True
        last = max((self._order[user] for user in node.users), default=0)
        return self._uses[node] > 1 and last - self._order[node] > _FAR


def _rank(name: str) -> tuple[int, str]:
    """Short names first, in their order."""
    return (_SHORT.index(name) if name in _SHORT else len(_SHORT)), name


def _base(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target).replace(".", "_")
    if node.target is torch.ops.aten.sym_size.int:
        return f"size{node.args[1]}"
    if node.target is operator.getitem and _is_front(node.args[0]):
        return f"size{node.args[1]}" if isinstance(node.args[1], int) else "sizes"
    return node.name if node.op == "placeholder" else re.sub(r"_\d+$", "", node.name)


def find_unpacked(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Shapes that are taken apart into all of their sizes, and the sizes in order."""
    found = {}
    for node in graph.nodes:
        if not _is_size(node):
            continue
        shape = node.args[0].meta.get("shape", ())
        parts = {user.args[1]: user for user in node.users if _takes_apart(user, node)}
        all_read = all(part.users for part in parts.values())
        alone = len(node.users) == len(parts) > 1
        if alone and all_read and sorted(parts) == list(range(len(shape))):
            found[node] = [parts[k] for k in range(len(shape))]
    return found


def _is_front(node: object) -> bool:
    """Whether the value of `node` is a shape, or the first sizes of one."""
    if isinstance(node, fx.Node) and node.target is operator.getitem:
        part = node.args[1]
        return isinstance(part, slice) and not part.start and _is_size(node.args[0])
    return _is_size(node)


def _is_size(node: object) -> bool:
    """Whether the value of `node` is the shape of a tensor."""
    if not isinstance(node, fx.Node):
        return False
    if node.target == "size":
        return len(node.args) == 1
    return node.target is builtins.getattr and node.args[1] == "shape"


def _takes_apart(user: fx.Node, node: fx.Node) -> bool:
    """Whether `user` takes one entry out of the tuple `node`."""
    index = user.args[1] if user.target is operator.getitem else None
    return isinstance(index, int) and user.args[0] is node


def is_scalar(node: fx.Node) -> bool:
    """Whether the value of `node` is a size or the like, not a tensor."""
    value = node.meta.get("val")
    if value is not None:
        return not isinstance(value, torch.Tensor | list | tuple)
    if node.op == "call_method":
        return node.target in _SCALAR_METHODS
    if node.op != "call_function":
        return False
    if node.target is builtins.getattr:
        return node.args[1] in _SCALAR_FIELDS
    if node.target in (builtins.len, builtins.int, builtins.float):
        return True
    if node.target is operator.getitem or is_arithmetic(node):
        sources = node.all_input_nodes
        return bool(sources) and all(is_scalar(source) for source in sources)
    return False
