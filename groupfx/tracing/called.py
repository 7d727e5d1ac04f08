"""Which convolutions of a model its graph calls, which not, and which it does not show."""

from __future__ import annotations

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from ..convs.calls import attribute
from ..convs.spec import is_plain
from ..learned.groups import has_learned_groups
from ..nn.masked_conv import MASKED
from .counting import site_modules
from .program import Unreachable


def uncalled(model: nn.Module, graph: fx.GraphModule) -> tuple[str, ...]:
    """Grouped convolution modules that the graph neither calls nor reads a tensor of."""
    tensors, modules = _used(graph)
    return tuple(
        path
        for path, module in site_modules(model).items()
        if path and id(module) not in modules and not _reads(tensors, module)
    )


def taken_apart(model: nn.Module, graph: fx.GraphModule) -> dict[str, Unreachable]:
    """Layers with learned groups with whose tensors the graph computes, and which it never calls.

    What is left of them is a dense convolution of a masked weight, which no pass takes for a site.
    """
    tensors, modules = _used(graph)
    reason = (
        "forward computes with its tensors and does not call it, so that its learned groups cannot "
        "be frozen: call the layer, as self.layer(x)"
    )
    return {
        path: Unreachable(reason, 1)
        for path, module in site_modules(model).items()
        if path
        and has_learned_groups(module)
        and id(module) not in modules
        and _reads(tensors, module)
    }


def _used(graph: fx.GraphModule) -> tuple[set[int], set[int]]:
    """The ids of the tensors that a graph reads, and of the modules that it calls."""
    used = {
        str(node.target)
        for node in graph.graph.nodes
        if node.op == "call_module" or (node.op == "get_attr" and node.users)
    }
    tensors = {id(attribute(graph, key)) for key in used if _is_tensor(graph, key)}
    return tensors, {id(graph.get_submodule(key)) for key in used if not _is_tensor(graph, key)}


def _reads(tensors: set[int], module: nn.Module) -> bool:
    return any(id(parameter) in tensors for parameter in module.parameters())


def _is_tensor(graph: fx.GraphModule, key: str) -> bool:
    path, _, name = key.rpartition(".")
    # An export leaves constants as plain attributes.
    return isinstance(getattr(graph.get_submodule(path), name), torch.Tensor)


def hidden_convs(module: fx.GraphModule) -> str | None:
    """Path of a called leaf inside which a grouped convolution module lies, if any."""
    called = {str(node.target) for node in module.graph.nodes if node.op == "call_module"}
    for path in called:
        leaf = module.get_submodule(path)
        # What freezing padded is a leaf that everything else can be seen around.
        if is_plain(leaf) or isinstance(leaf, tuple(MASKED.values())):
            continue
        if any(isinstance(m, _ConvNd) and m.groups > 1 for m in leaf.modules()):
            return path
    return None
