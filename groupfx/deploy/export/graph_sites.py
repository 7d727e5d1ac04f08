"""Convolutions in the graph of `torch.export`, under the names that sites have everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn

from ...convs.calls import ConvCall, Unreadable, convs
from ...convs.names import call_name, numbered
from ...convs.norms import norm_behind


@dataclass(frozen=True)
class GraphSite:
    """A convolution call, and the BatchNorms behind it, each of which alone takes what it takes.

    `path` is what the graph says that it is, `name` the site's name, with the number of the call.
    """

    name: str
    path: str
    call: ConvCall | Unreadable
    norms: tuple[fx.Node, ...]

    @property
    def end(self) -> fx.Node:
        """The node that gives the site's value."""
        return self.norms[-1] if self.norms else self.call.node


def graph_sites(graph: fx.GraphModule, named: Mapping[str, str]) -> tuple[GraphSite, ...]:
    """Every convolution of a graph that `torch.export` left, in order.

    `named` gives the names of sites for the paths of what stands for them.
    """
    found = list(convs(graph).values())
    paths = [call_name(call) for call in found]
    names = numbered(named.get(path, path) for path in paths)
    return tuple(
        GraphSite(name, path, call, tuple(_norms_behind(call, graph)))
        for name, path, call in zip(names, paths, found, strict=True)
    )


def _norms_behind(call: ConvCall | Unreadable, graph: fx.GraphModule) -> Iterator[fx.Node]:
    value = call.node.meta.get("val")
    # Behind a convolution without a batch, a BatchNorm takes its channels for the batch.
    if isinstance(call, ConvCall) and value is not None and value.dim() < call.spec.dims + 2:
        return
    norm = norm_behind(_passed_on(call.node), graph)
    while norm is not None:
        yield norm
        norm = norm_behind(_passed_on(norm), graph)


def _passed_on(node: fx.Node) -> fx.Node:
    """Where the value of `node`, which nothing else takes, has been passed on unchanged."""
    while len(users := [u for u in node.users if u.target is not _CHECKED]) == 1:
        if not _passes_on(users[0]):
            break
        node = users[0]
    return node


def _passes_on(node: fx.Node) -> bool:
    """Whether it gives what it takes; an export leaves no such node in the file."""
    if node.target in _CONVERTING:
        values = [n.meta.get("val") for n in (node, node.all_input_nodes[0])]
        return len({(str(v.shape), v.dtype) for v in values if v is not None}) == 1
    return node.target in _PASSED and not any(node.args[2:3])


_ATEN = torch.ops.aten
_CHECKED = _ATEN._assert_tensor_metadata.default
_CONVERTING = frozenset(
    {
        _ATEN._to_copy.default, _ATEN.to.dtype, _ATEN.to.dtype_layout, _ATEN.reshape.default,
        _ATEN.view.default,
    }
)  # fmt: skip
_PASSED = frozenset(
    {
        _ATEN.alias.default, _ATEN.alpha_dropout.default, _ATEN.clone.default, _ATEN.detach.default,
        _ATEN.dropout.default, _ATEN.feature_alpha_dropout.default, _ATEN.feature_dropout.default,
    }
)  # fmt: skip


def tensor_at(root: nn.Module, node: fx.Node) -> torch.Tensor:
    """The tensor that a `get_attr` node reads."""
    path, _, name = str(node.target).rpartition(".")
    tensor: torch.Tensor = getattr(root.get_submodule(path), name)
    return tensor
