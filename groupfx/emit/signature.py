"""The arguments of `forward` and what it returns, for traced and for exported graphs.

An exported graph takes and gives flat lists of tensors, and says beside it how they were nested.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ..errors import RewriteError
from .imports import Imports
from .text import is_name, item, written
from .values import value


@dataclass(frozen=True)
class Signature:
    """`parameters` as they stand in the definition; the expression of each input.

    `output` is what is returned, with nodes where the graph computes something.
    """

    parameters: tuple[str, ...]
    inputs: Mapping[fx.Node, ast.expr]
    output: Any
    names: tuple[str, ...] = field(default=())
    returns: str = ""

    @property
    def definition(self) -> str:
        """The line that begins `forward`."""
        return f"def forward({', '.join(('self', *self.parameters))}){self.returns}:"


def read_signature(graph: fx.Graph, imports: Imports) -> Signature:
    """The signature of `graph`. Raises RewriteError for arguments that have no plain names."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    last = next(node for node in graph.nodes if node.op == "output")
    info = getattr(graph._codegen, "pytree_info", None)
    if info is not None:
        return _nested(inputs, last.args[0], info, imports)
    names = [_required(str(node.target), imports) for node in inputs]
    texts = []
    for name, node in zip(names, inputs, strict=True):
        text = f"{name}: Tensor" if _is_tensor(node.type) else name
        default = f" = {written(value(node.args[0], imports))}" if node.args else ""
        texts.append(text + default)
    found: dict[fx.Node, ast.expr] = {
        node: ast.Name(name) for node, name in zip(inputs, names, strict=True)
    }
    returns = " -> Tensor" if _is_tensor(last.type) else ""
    return Signature(tuple(texts), found, last.args[0], tuple(names), returns)


def _required(name: str, imports: Imports) -> str:
    if not is_name(name):
        raise RewriteError(
            f"the argument {name!r} of forward has no plain name: give it one in your forward"
        )
    if name in imports.taken:
        raise RewriteError(
            f"the argument {name!r} of forward has the name of something that the file needs: "
            "rename it"
        )
    return name


def _is_tensor(annotation: object) -> bool:
    return annotation is torch.Tensor or annotation in ("Tensor", "torch.Tensor")


# Exported graphs


def _nested(inputs: Sequence[fx.Node], output: Any, info: Any, imports: Imports) -> Signature:
    names = [_required(str(name), imports) for name in info.orig_args]
    positional, named = pytree.tree_unflatten(list(inputs), info.in_spec)
    found: dict[fx.Node, ast.expr] = {}
    for name, given in zip(names, (*positional, *named.values()), strict=True):
        found |= dict(_paths(given, ast.Name(name)))
    if info.out_spec is not None:
        try:
            output = pytree.tree_unflatten(list(output), info.out_spec)
        except Exception as error:
            # A class of the user's own, which takes tensors and no nodes.
            raise RewriteError(
                f"forward returns a {info.out_spec.type.__name__}, which cannot be written as "
                "Python: return tuples, lists and dicts"
            ) from error
    return Signature(tuple(names), found, output, tuple(names))


def _paths(given: Any, path: ast.expr) -> Iterator[tuple[fx.Node, ast.expr]]:
    """Expressions for the inputs in an argument, in order."""
    if isinstance(given, fx.Node):
        yield given, path
        return
    if type(given) not in (list, tuple, dict):
        raise RewriteError(
            f"an argument of forward is a {type(given).__name__}, which is not taken apart here: "
            "give tuples, lists and dicts"
        )
    for key, part in given.items() if isinstance(given, dict) else enumerate(given):
        yield from _paths(part, item(path, ast.Constant(key)))
