"""Turn the operators that torch.export leaves into the layers and functions that they came from.

Before:  y = aten.relu.default(aten.batch_norm.default(aten.conv2d.default(x, w, b), ...))
After:   y = F.relu(norm(conv(x)))             conv = nn.Conv2d(...), norm = nn.BatchNorm2d(...)

An exported graph reads each tensor from a plain module at the place of the layer. A layer with the
same tensors, under the same names, takes that place: no checkpoint changes. A toolchain that knows
layers then reads a model that only torch.export could open.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from groupfx.convs.calls import ConvCall, Stored, read_conv
from groupfx.convs.spec import BATCHNORMS, module_from_spec
from groupfx.rewriting import OperationPass, Place, Skip, Spelling, has_node
from groupfx.rewriting.memory_order import is_needed

_ATEN = torch.ops.aten
_NORM = _ATEN.batch_norm.default
_LINEAR = _ATEN.linear.default
_BY_DIMS = {dims: kind for kind, dims in BATCHNORMS.items()}

# The same function of the same arguments, in the same places.
_FUNCTIONS: dict[object, Callable[..., Any]] = {
    _ATEN.relu.default: F.relu,
    _ATEN.relu_.default: F.relu,
    _ATEN.relu6.default: F.relu6,
    _ATEN.sigmoid.default: torch.sigmoid,
    _ATEN.tanh.default: torch.tanh,
    _ATEN.add.Tensor: operator.add,
    _ATEN.add_.Tensor: operator.add,
    _ATEN.sub.Tensor: operator.sub,
    _ATEN.mul.Tensor: torch.multiply,
    _ATEN.mean.dim: torch.mean,
    _ATEN.flatten.using_ints: torch.flatten,
    _ATEN.view.default: torch.reshape,
    _ATEN.reshape.default: torch.reshape,
    _ATEN.squeeze.dim: torch.squeeze,
    _ATEN.unsqueeze.default: torch.unsqueeze,
    _ATEN.transpose.int: torch.transpose,
    _ATEN.permute.default: torch.permute,
    _ATEN.pad.default: F.pad,
    _ATEN.cat.default: torch.cat,
    _ATEN.adaptive_avg_pool1d.default: F.adaptive_avg_pool1d,
    _ATEN.adaptive_avg_pool2d.default: F.adaptive_avg_pool2d,
    _ATEN.avg_pool1d.default: F.avg_pool1d,
    _ATEN.avg_pool2d.default: F.avg_pool2d,
    _ATEN.max_pool1d.default: F.max_pool1d,
    _ATEN.max_pool2d.default: F.max_pool2d,
    _ATEN.silu.default: F.silu,
    _ATEN.silu_.default: F.silu,
    _ATEN.gelu.default: F.gelu,
    _ATEN.hardswish.default: F.hardswish,
    _ATEN.hardswish_.default: F.hardswish,
    _ATEN.hardsigmoid.default: F.hardsigmoid,
    _ATEN.hardtanh.default: F.hardtanh,
    _ATEN.hardtanh_.default: F.hardtanh,
    _ATEN.leaky_relu.default: F.leaky_relu,
}
_SAME = (_ATEN.contiguous.default, _ATEN.clone.default, _ATEN.alias.default, _ATEN.detach_.default)
_RELU6 = (0, 6)


@dataclass(frozen=True)
class LiftOperators(OperationPass):
    """Operators of an exported graph become layers and functions."""

    refuses = (
        "layers whose tensors are computed, shared, or read elsewhere",
        "operators in place whose old value is read again",
    )

    def spell(self, place: Place) -> Spelling | Skip | None:
        node = place.node
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            return None
        if node.target._schema.is_mutable and len(node.all_input_nodes[0].users) > 1:
            return Skip("it writes to a value that others read")
        if _gives_its_input(node):
            (value,) = node.all_input_nodes
            return Spelling("its input", (value,), lambda: value)
        layer = _layer(place)
        if layer is not None:
            return _lifted(place, *layer)
        function = _FUNCTIONS.get(node.target)
        if function is None or not node.args or place.shape is None:
            return None
        return _spelled(place, function)


def _gives_its_input(node: fx.Node) -> bool:
    if node.target in (_ATEN.dropout.default, _ATEN.dropout_.default):
        return node.args[2] is False
    return node.target in _SAME and not is_needed(node)


def _spelled(place: Place, function: Callable[..., Any]) -> Spelling | None:
    node = place.node
    nodes = tuple(n for n in node.all_input_nodes if n.op != "get_attr")
    args: tuple[Any, ...] = node.args
    if function in (operator.add, operator.sub) and node.kwargs:
        return None  # with a factor
    if function is F.hardtanh and tuple(args[1:3]) == _RELU6:
        value = args[0]
        return Spelling("nn.ReLU6", nodes, lambda: place.call_module(nn.ReLU6(), value))
    if function is torch.cat:
        dim = (args[1] if len(args) > 1 else 0) % len(place.shape or (0,))
        return Spelling("torch.cat", nodes, lambda: place.call(torch.cat, list(args[0]), dim=dim))
    if has_node(args[1:]) and function in (torch.reshape, F.pad):
        return None
    room = "F" if getattr(F, function.__name__, None) is function else "torch"
    return Spelling(
        f"{room}.{function.__name__}", nodes, lambda: place.call(function, *args, **node.kwargs)
    )


def _layer(place: Place) -> tuple[str, nn.Module, fx.Node] | None:
    """Where a layer belongs, the layer without its tensors, and what goes in."""
    node = place.node
    if node.target in (_NORM, _LINEAR):
        return _norm(place) if node.target == _NORM else _linear(place)
    call = read_conv(node, place.root)
    if not isinstance(call, ConvCall) or not isinstance(call.weight, Stored):
        return None
    if not (call.bias is None or isinstance(call.bias, Stored)) or call.output_size is not None:
        return None
    path = _home({"weight": call.weight.key, "bias": None if call.bias is None else call.bias.key})
    return None if path is None else (path, module_from_spec(call.spec), call.input)


def _norm(place: Place) -> tuple[str, nn.Module, fx.Node] | None:
    value, weight, bias, mean, var, training, momentum, eps, *_ = place.node.args
    tensors = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
    path = _home({name: _key(each) for name, each in tensors.items()})
    shape = place.shape
    if path is None or training is not False or shape is None or None in (weight, bias, mean, var):
        return None
    kind: Any = _BY_DIMS.get(max(len(shape) - 2, 1))
    assert isinstance(value, fx.Node)
    return path, kind(shape[1], eps=eps, momentum=momentum, device="meta"), value


def _linear(place: Place) -> tuple[str, nn.Module, fx.Node] | None:
    value, weight, *more = place.node.args
    bias = more[0] if more else None
    held = place.parameter(weight) if isinstance(weight, fx.Node) else None
    path = _home({"weight": _key(weight), "bias": _key(bias)})
    if held is None or path is None:
        return None
    assert isinstance(value, fx.Node)
    outputs, inputs = held.shape
    return path, nn.Linear(inputs, outputs, bias is not None, device="meta"), value


def _key(value: object) -> str | None:
    """The name of a stored tensor that a node reads; empty for a node that is none."""
    if value is None:
        return None
    return str(value.target) if isinstance(value, fx.Node) and value.op == "get_attr" else ""


def _home(keys: dict[str, str | None]) -> str | None:
    """The one module whose tensors of these names are read; None where there is none."""
    found = {
        (k.rpartition(".")[0], k.rpartition(".")[2] == n) for n, k in keys.items() if k is not None
    }
    ((path, named),) = found if len(found) == 1 else {("", False)}
    return path if named and path else None


def _lifted(place: Place, path: str, layer: nn.Module, value: fx.Node) -> Spelling | Skip | None:
    if place.is_restructured(path):
        made = place.root.get_submodule(path)
        same = type(made) is type(layer) and made.extra_repr() == layer.extra_repr()
        found = made if same else None
    else:
        found = _filled(place, path, layer)
    if found is None:
        return Skip("its tensors are shared, or read elsewhere")
    names = {name: name for name in found.state_dict()}

    def emit() -> fx.Node:
        if not place.is_restructured(path):
            # Such as a counter of batches, which a graph in eval mode reads for nothing.
            place.drop_unread(path)
        place.restructure(path, found, names)
        return place.call_part(path, value)

    return Spelling(f"nn.{type(layer).__name__}", (value,), emit)


def _filled(place: Place, path: str, layer: nn.Module) -> nn.Module | None:
    """`layer` with the tensors of the plain module at `path`; None where it holds others."""
    held = place.root.get_submodule(path)
    tensors: dict[str, Tensor | None] = {**held._parameters, **held._buffers}
    readers = [
        user
        for node in place.graph.nodes
        if node.op == "get_attr" and str(node.target).rpartition(".")[0] == path
        for user in node.users
    ]
    if held._modules or any(user.target is not place.node.target for user in readers):
        return None
    for store in (layer._parameters, layer._buffers):
        for name in store:
            store[name] = tensors.pop(name, None)  # type: ignore[assignment]
    if any(tensor is not None for tensor in tensors.values()):
        return None
    if isinstance(layer, _BatchNorm) and layer.running_mean is None:
        return None
    layer.train(place.root.training)
    return layer
