"""Calls of a torch graph, by the name of what they call, and what is known of their tensors.

They are known by name, the same for `torch`, `torch.nn.functional`, methods and `aten`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from ..folding.wiring import Parameter

Numbers = dict[str, Any]
Found = tuple[str, Numbers]


@dataclass(frozen=True)
class Call:
    """A node of a graph, by the name of what it calls."""

    node: fx.Node
    name: str
    tensors: Tensors

    def argument(self, place: int, *names: str, default: Any = None) -> Any:
        """An argument by its place or one of its names."""
        if place < len(self.node.args):
            return self.node.args[place]
        return next((self.node.kwargs[n] for n in names if n in self.node.kwargs), default)

    def parameter(self, place: int, *names: str) -> Parameter | None:
        """An argument that is a stored tensor."""
        held = self.argument(place, *names)
        return self.tensors.stored(held) if isinstance(held, fx.Node) else None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first input."""
        first = self.argument(0, "input", "self", "x")
        return self.tensors.shape(first) if isinstance(first, fx.Node) else ()

    @property
    def result(self) -> tuple[int, ...]:
        """The shape of the output."""
        return self.tensors.shape(self.node)

    def dim(self, value: Any) -> int | None:
        """A dimension of the first input, counted from the front."""
        return value % len(self.shape) if isinstance(value, int) and self.shape else None

    @property
    def resized(self) -> list[int]:
        """The dimensions whose size the output does not have; all where their number differs."""
        if len(self.shape) != len(self.result):
            return list(range(len(self.shape)))
        return [k for k, n in enumerate(self.shape) if n != self.result[k]]


class Tensors(Protocol):
    """What is known of the tensors of a graph."""

    module: fx.GraphModule

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of what a node gives; nothing where it gives no tensor."""

    def stored(self, node: fx.Node) -> Parameter | None:
        """The stored tensor that a node reads."""

    def parameter(self, tensor: Tensor) -> Parameter:
        """A stored tensor, by the first of its names."""


def first_argument(node: fx.Node) -> fx.Node:
    """The first argument, as most operations have their tensor there."""
    named = (node.kwargs.get(name) for name in ("input", "self", "x"))
    first = node.args[0] if node.args else next((n for n in named if n is not None), None)
    return first if isinstance(first, fx.Node) else node.all_input_nodes[0]


def name_of(node: fx.Node) -> str:
    """The name of a function, a method or an aten operator, in place or not."""
    target: Any = node.target
    if node.op == "call_method":
        name = str(target)
    elif isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.rpartition("::")[2]
    else:
        name = getattr(target, "__name__", str(target))
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def call_of(node: fx.Node, tensors: Tensors) -> Call:
    """A node by the name of what it calls."""
    return Call(node, name_of(node), tensors)
