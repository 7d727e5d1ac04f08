"""Operators of torch in the pieces that exporters write them in, so that each can be looked at.

A rule is written with torch's own functions and applied to the nodes of a graph; it gives None
where it does not know the case. Operators that work in place become those that do not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

Rule = Callable[..., Any]
_ATEN = torch.ops.aten


def split_operators(graph: fx.GraphModule) -> bool:
    """Apply the rules to a graph of `torch.export`, in place.

    False where values are written through views: the graph is then not to be used.
    """
    if not _functional(graph.graph):
        return False
    for node in list(graph.graph.nodes):
        rule = _RULES.get(node.target) if node.op == "call_function" else None
        value = node.meta.get("val")
        if rule is None or not isinstance(value, Tensor):
            continue
        tracer = fx.proxy.GraphAppendingTracer(graph.graph)
        with graph.graph.inserting_before(node):
            proxies: Any = functools.partial(fx.Proxy, tracer=tracer)
            args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), proxies)
            made = rule(value, *args, **kwargs)
        if made is None:
            continue
        made.node.meta.update(node.meta)
        node.replace_all_uses_with(made.node)
        graph.graph.erase_node(node)
    return True


def _functional(graph: fx.Graph) -> bool:
    """Replace what works in place; False where something else looks at the same memory."""
    for node in list(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable:
            continue
        source = node.args[0] if node.args else None
        plain = _without_place(node.target)
        if plain is None or not isinstance(source, fx.Node) or _has_views(source):
            return False
        node.target = plain
        later = {user for user in source.users if user > node}
        source.replace_all_uses_with(node, lambda user, later=later: user in later)  # type: ignore[misc]
    return True


def _without_place(target: Any) -> Any:
    name = target._schema.name.split("::")[-1]
    packet = getattr(_ATEN, name.removesuffix("_"), None) if name.endswith("_") else None
    return None if packet is None else getattr(packet, target._overloadname, None)


def _has_views(node: fx.Node) -> bool:
    """Whether a value is a view or has views."""
    return _is_view(node) or node.op != "call_function" or any(map(_is_view, node.users))


def _is_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return node.op == "call_function"
    shared = any(result.alias_info is not None for result in schema.returns)
    return shared and not schema.is_mutable


def _linear(value: Tensor, x: Any, weight: Any, bias: Any = None) -> Any:
    product = torch.matmul(x, torch.t(weight))
    return product if bias is None else torch.add(product, bias)


def _silu(value: Tensor, x: Any) -> Any:
    return torch.mul(x, torch.sigmoid(x))


def _gelu(value: Tensor, x: Any, approximate: str = "none") -> Any:
    if approximate != "none":
        return None
    scaled = torch.add(torch.erf(torch.div(x, math.sqrt(2))), 1)
    return torch.mul(torch.mul(x, scaled), 0.5)


def _group_norm(
    value: Tensor,
    x: Any,
    groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    rows = torch.unflatten(torch.flatten(x, 1), 1, (groups, -1))
    rows = torch.sub(rows, torch.mean(rows, 2, True))
    spread = torch.mean(torch.square(rows), 2, True)
    rows = torch.div(rows, torch.sqrt(torch.add(spread, eps)))
    y = torch.reshape(torch.flatten(rows, 1), _size(x))
    shape = (-1, *(1,) * (value.dim() - 2))
    y = y if weight is None else torch.mul(y, torch.reshape(weight, shape))
    return y if bias is None else torch.add(y, torch.reshape(bias, shape))


def _size(x: Any) -> Any:
    return x.size()


def _attention(
    value: Tensor,
    query: Any,
    key: Any,
    values: Any,
    mask: Any = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    size = query.node.meta["val"].shape[-1]
    if enable_gqa or is_causal or not isinstance(size, int):
        return None
    factor = math.sqrt(1 / math.sqrt(size) if scale is None else scale)
    turned = torch.transpose(key, -2, -1)
    scores = torch.matmul(torch.mul(query, factor), torch.mul(turned, factor))
    if mask is not None and mask.node.meta["val"].dtype == torch.bool:
        scores = torch.masked_fill(scores, torch.logical_not(mask), -math.inf)
    elif mask is not None:
        scores = torch.add(scores, mask)
    return torch.matmul(torch.softmax(scores, -1), values)


_RULES: Mapping[Any, Rule] = {
    _ATEN.linear.default: _linear,
    _ATEN.silu.default: _silu,
    _ATEN.gelu.default: _gelu,
    _ATEN.group_norm.default: _group_norm,
    _ATEN.scaled_dot_product_attention.default: _attention,
}
