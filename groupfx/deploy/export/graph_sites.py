"""Convolutions in the graph of `torch.export`, under the names that sites have everywhere.

A convolution is named by its module (`layer1.0.conv2`); a function call by what holds its weight,
or, where forward computes the weight, by the innermost module that was being called. A second call
of the same module is `layer1.0.conv2#2`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ...convs.calls import ConvCall, Stored, Unreadable, convs
from ...convs.sources import sources

_ATEN = torch.ops.aten
_NORM = _ATEN.batch_norm.default
_WEIGHT = "weight"
# The second is `unsplit_computed.ComputedConv`, which stands for a site.
_CONV_CLASS = re.compile(r"(Conv(Transpose)?[123]d|ComputedConv)$")


@dataclass(frozen=True)
class GraphSite:
    """A convolution call, and the BatchNorms behind it, each of which alone takes what it takes."""

    name: str
    call: ConvCall | Unreadable
    norms: tuple[fx.Node, ...]

    @property
    def end(self) -> fx.Node:
        """The node that gives the site's value."""
        return self.norms[-1] if self.norms else self.call.node


def graph_sites(graph: fx.GraphModule) -> tuple[GraphSite, ...]:
    """Every convolution of a graph that `torch.export` left, in order."""
    found = convs(graph)
    names = numbered(_base_name(node, call) for node, call in found.items())
    return tuple(
        GraphSite(name, call, tuple(_norms_behind(node)))
        for name, (node, call) in zip(names, found.items(), strict=True)
    )


def numbered(names: Iterable[str]) -> Iterator[str]:
    """`a`, `b`, `a` as `a`, `b`, `a#2`."""
    seen: Counter[str] = Counter()
    for name in names:
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name}#{seen[name]}"


def renamed(name: str, change: Callable[[str], str]) -> str:
    """`change` applied to the name, not to the number of the call behind it."""
    base, mark, number = name.partition("#")
    return f"{change(base)}{mark}{number}"


def module_path(node: fx.Node) -> str:
    """Path of the innermost module that was being called when `node` was recorded."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def _is_conv_module(node: fx.Node) -> bool:
    """Whether the innermost module that was being called is a convolution."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    # Its class, by name: a parametrised one is called `ParametrizedConv2d`.
    kind = str(stack[-1][1]).rpartition(".")[2] if stack else ""
    return bool(_CONV_CLASS.search(kind)) and module_path(node) != ""


def weight_keys(weight: fx.Node) -> list[str]:
    """Names of the tensors that a weight is made of, the nearest first."""
    return [str(node.target) for node in sources(weight) if node.op == "get_attr"]


def _base_name(node: fx.Node, call: ConvCall | Unreadable) -> str:
    if _is_conv_module(node):
        return module_path(node)
    if isinstance(call, ConvCall) and isinstance(call.weight, Stored):
        path, _, name = call.weight.key.rpartition(".")
        return path if path and name == _WEIGHT else call.weight.key
    inner = module_path(node)
    if inner:
        return inner
    weight = node.args[1] if len(node.args) > 1 else node.kwargs.get(_WEIGHT)
    keys = weight_keys(weight) if isinstance(weight, fx.Node) else []
    return (keys[0].rpartition(".")[0] or keys[0]) if keys else node.name


def _norms_behind(node: fx.Node) -> Iterator[fx.Node]:
    norm = _norm_behind(node)
    while norm is not None:
        yield norm
        norm = _norm_behind(norm)


def _norm_behind(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    if len(users) != 1 or users[0].target is not _NORM or users[0].args[0] is not node:
        return None
    arguments: tuple[Any, ...] = users[0].args
    constant = all(a is None or _is_stored(a) for a in arguments[1:5])
    return users[0] if constant and not arguments[5] and arguments[3] is not None else None


def _is_stored(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


def tensor_at(root: nn.Module, node: fx.Node) -> torch.Tensor:
    """The tensor that a `get_attr` node reads."""
    path, _, name = str(node.target).rpartition(".")
    tensor: torch.Tensor = getattr(root.get_submodule(path), name)
    return tensor
