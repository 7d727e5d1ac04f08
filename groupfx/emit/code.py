"""The code of a graph: one statement a call, with the names that a person would give.

A value takes over the name of one that dies with it, as in `x = self.conv(x)`: this reads well, and
it frees memory where `torch.fx` would.
"""

from __future__ import annotations

import builtins
import inspect
import operator
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload
from torch.fx.graph import inplace_methods, magic_methods
from torch.fx.node import map_arg
from torch.nn import functional
from torch.utils import _pytree as pytree

from ..errors import RewriteError
from ..files.archive.operators import function_name
from . import plain
from .layers import Layers
from .text import RESERVED, attribute, free, is_name, one_line
from .values import Expression, called, source

Reach = Callable[[fx.Node], str]

_NAMES = ("x", "y", "z", "u", "v", "w")
# How torch.fx writes operators.
_INPLACE = {getattr(operator, name): form for name, form in inplace_methods.items()}
_OPERATORS: dict[Any, str] = {
    operator.setitem: _INPLACE.pop(operator.setitem),
    **{getattr(operator, name, None): form for name, form in magic_methods.items()},
}
# Those that compute nothing, and are left out where nobody reads them. The assertion says of a
# tensor what is written nowhere else (its device among it).
_SILENT = (
    *(operator.getitem, builtins.getattr, "size", "dim"),
    torch.ops.aten.sym_size.int,
    torch.ops.aten._assert_tensor_metadata.default,
)


@dataclass(frozen=True)
class Class:
    """A class as text: its name, what it is made of, what it says of itself."""

    name: str
    wish: str
    base: str
    told: str
    forward: str


class Classes:
    """The classes of one file, in the order in which they have to stand."""

    def __init__(self, layers: Layers) -> None:
        self.found: list[Class] = []
        self._layers = layers

    def add(self, wish: str, base: Any, told: str, graph: fx.Graph, reach: Reach) -> str:
        """The name of the class of `base`, or by that name, that does what `graph` does."""
        own = base if isinstance(base, str) else self._layers.need(base)
        forward = code_of(graph, reach, self._layers)
        for known in self.found:
            if (known.wish, known.base, known.forward) == (wish, own, forward):
                return known.name
        name = free(wish, [known.name for known in self.found])
        self.found.append(Class(name, wish, own, one_line(told), forward))
        return name


def code_of(graph: fx.Graph, reach: Reach, layers: Layers) -> str:
    """The `forward` of `graph`, which is tidied up; what it needs is added to `layers`.

    `reach` gives what a node calls or reads of the modules. Raises RewriteError for what cannot be
    written.
    """
    writer = _Writer(reach, layers)
    arguments = list(writer.arguments(graph))
    graph.eliminate_dead_code(lambda node: node.op != "get_attr" and node.target not in _SILENT)
    nodes = [node for node in graph.nodes if node.op != "placeholder"]
    last = {read: node for node in nodes for read in node.all_input_nodes}
    for node in nodes:
        writer.write(node, [read for read in node.all_input_nodes if last[read] is node])
    for name in (argument.partition("=")[0] for argument in arguments):
        if not is_name(name) or name in RESERVED or name in layers.names:
            raise RewriteError(
                f"the argument {name!r} of forward has no plain name, or that of something that "
                "the file needs: rename it"
            )
    head = f"def forward({', '.join(['self', *arguments])}):"
    return "\n    ".join([head, *writer.lines])


class _Writer:
    """Writes the statements of one graph into `lines`."""

    def __init__(self, reach: Reach, layers: Layers) -> None:
        self.lines: list[str] = []
        self._reach = reach
        self._layers = layers
        self._shown: dict[fx.Node, Expression] = {}
        self._held: dict[str, fx.Node] = {}

    def arguments(self, graph: fx.Graph) -> Iterator[str]:
        """The arguments of `forward`; an exported graph has a flat list of what is in them."""
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        info = getattr(graph._codegen, "pytree_info", None)
        names = [str(node.target) for node in inputs] if info is None else info.orig_args
        given: Sequence[Any] = inputs
        if info is not None:
            positional, named = pytree.tree_unflatten(inputs, info.in_spec)
            given = (*positional, *named.values())
        for name, value in zip(names, given, strict=True):
            for path, node in pytree.tree_leaves_with_path(value):
                self._shown[node] = Expression(f"{name}{pytree.keystr(path)}")
            self._held[name] = value
            defaults = value.args if isinstance(value, fx.Node) else ()
            yield "=".join([name, *map(source, defaults)])

    def write(self, node: fx.Node, dying: Collection[fx.Node]) -> None:
        """Write the statement of `node`, the last that reads the values in `dying`."""
        if node.op == "get_attr":  # its text stands where it is read
            self._shown[node] = Expression(self._reach(node))
            return
        if node.op == "output":
            self._return(self._text(_nested(node)))
            return
        text = self._expression(node)
        freed = [name for read in dying if (name := self._shown[read]) in self._held]
        for name in freed:
            del self._held[name]
        if not node.users or node.target is operator.setitem:
            self.lines.append(text)
            return
        own = self._free(freed)
        parts = [self._text(part) for part in node.args]
        if node.target in _INPLACE and parts[0] == own:
            self.lines.append(_INPLACE[node.target].format(*parts))
        else:
            self.lines.append(f"{own} = {text}")
        self._shown[node], self._held[own] = Expression(own), node

    def _return(self, text: str) -> None:
        *_, last = ["", *self.lines]
        if is_name(text) and last.startswith(f"{text} = "):
            self.lines[-1] = f"return {last.removeprefix(f'{text} = ')}"
        else:
            self.lines.append(f"return {text}")

    def _free(self, freed: Sequence[str]) -> str:
        """A name that holds nothing, one that was freed if possible."""
        numbered = (f"{_NAMES[0]}{count}" for count in range(2, len(self._held) + 3))
        usual = [name for name in freed if name in _NAMES]
        return next(n for names in (usual, _NAMES, numbered) for n in names if n not in self._held)

    def _text(self, value: Any) -> str:
        return source(map_arg(value, self._shown.__getitem__))

    def _expression(self, node: fx.Node) -> str:
        target: Any = node.target
        args = [self._text(part) for part in node.args]
        form = _OPERATORS.get(target)
        if form is not None:
            if "[" in form:
                args[1] = _index(map_arg(node.args[1], self._shown.__getitem__))
            else:
                args = [f"({text})" if text.startswith("-") else text for text in args]
            return str(form.format(*args))
        if target is builtins.getattr and len(args) == 2:
            return attribute(args[0], str(node.args[1]))
        if node.op == "call_module":
            head = self._reach(node)
        elif node.op == "call_method":
            head = attribute(args.pop(0), target)
        else:
            head = self._function(target)
        return called(head, args, {name: self._text(part) for name, part in _told(node)})

    def _function(self, function: Any) -> str:
        """What a function is called. Raises RewriteError for one that cannot be imported."""
        if isinstance(function, OpOverload) and function.namespace in ("aten", "prims"):
            return f"torch.ops.{function}"
        if isinstance(function, OpOverload | HigherOrderOperator):
            raise RewriteError(
                f"{function} is not torch's own, or runs a graph inside the graph (under "
                "autocast, in another grad mode, on a condition): it cannot be written as Python"
            )
        module, own = (str(getattr(function, f"__{part}__", "?")) for part in ("module", "name"))
        if module == plain.__name__:
            return self._layers.need(function)
        known = function_name(function)
        if known is not None:
            return known.removeprefix("builtins.").replace(f"{functional.__name__}.", "F.")
        top = module.partition(".")[0]
        held = sys.modules.get(module) if PathFinder.find_spec(top) is not None else None
        foreign = top not in ("groupfx", "__main__") and own not in RESERVED
        if not foreign or getattr(held, own, None) is not function:
            raise RewriteError(
                f"{module}.{own} cannot be imported by that name where a file runs, so one that "
                "calls it cannot be written: put it into a module on the Python path"
            )
        self._layers.imports[f"from {module} import {own}"] = own
        return own


def _told(node: fx.Node) -> Iterator[tuple[str, Any]]:
    """The keyword arguments without the defaults, which a trace of a torch function records too."""
    target = node.target
    own = inspect.isfunction(target) and target.__module__ == functional.__name__
    known = inspect.signature(target).parameters if own else {}  # type: ignore[arg-type]
    for name, value in node.kwargs.items():
        if name not in known or repr(value) != repr(known[name].default):
            yield name, value


def _index(index: Any) -> str:
    """What stands in the brackets: `a:b` for `slice(a, b)`."""
    if isinstance(index, slice):
        ends = (index.start, index.stop, index.step)
        start, stop, step = ("" if end is None else source(end) for end in ends)
        return f"{start}:{stop}:{step}" if step else f"{start}:{stop}"
    if isinstance(index, tuple) and index:
        return ", ".join(map(_index, index)) + ("," if len(index) == 1 else "")
    return "..." if index is ... else source(index)


def _nested(end: fx.Node) -> Any:
    """What is returned; an exported graph has a flat list of what is in it."""
    info = getattr(end.graph._codegen, "pytree_info", None)
    if info is None or info.out_spec is None:
        return end.args[0]
    try:
        return pytree.tree_unflatten(list(end.args[0]), info.out_spec)  # type: ignore[arg-type]
    except Exception as error:  # a class of the user's own, which takes tensors and no nodes
        raise RewriteError(
            f"forward returns a {info.out_spec.type.__name__}, which cannot be written as "
            "Python: return tuples, lists and dicts"
        ) from error
