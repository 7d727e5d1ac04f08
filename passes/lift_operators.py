"""Turn the operators that torch.export leaves into the layers and functions that they came from.

Before:  y = aten.relu.default(aten.batch_norm.default(aten.conv2d.default(x, w, b), ...))
After:   y = F.relu(norm(conv(x)))             conv = nn.Conv2d(...), norm = nn.BatchNorm2d(...)

An exported graph reads each tensor from a plain module at the place of the layer. A layer with the
same tensors, under the same names, takes that place: no checkpoint changes. A toolchain that knows
layers then reads a model that only torch.export could open.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from groupfx.convs.calls import CONV_FUNCTIONS, ConvCall, Stored, read_conv
from groupfx.convs.names import joined
from groupfx.convs.norms import COUNTER, counted_norm, counters, read_norm_function
from groupfx.convs.spec import BATCHNORMS, module_from_spec
from groupfx.nn import TrainingMode
from groupfx.rewriting import OperationPass, Place, Skip, Spelling, has_node, shape_of
from groupfx.rewriting.memory_order import is_needed
from groupfx.rewriting.writes import is_stored, is_written, writes
from groupfx.tracing.exporting import ExportedModule

_ATEN = torch.ops.aten
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
    _ATEN.div.Tensor: torch.div,
    _ATEN.neg.default: torch.neg,
    _ATEN.pow.Tensor_Scalar: torch.pow,
    _ATEN.clamp.default: torch.clamp,
}
_SAME = (_ATEN.contiguous.default, _ATEN.clone.default, _ATEN.alias.default, _ATEN.detach_.default)
_RELU6 = (0, 6)
_PART = "bn"
"""Where a norm lies in a module that holds more, such as a dropout."""
_TO_THE_END = 2**63 - 1
_DROPOUTS: dict[object, type[nn.Module]] = {
    _ATEN.dropout.default: nn.Dropout,
    _ATEN.dropout_.default: nn.Dropout,
    _ATEN.feature_dropout.default: nn.Dropout2d,
    _ATEN.feature_dropout_.default: nn.Dropout2d,
    _ATEN.alpha_dropout.default: nn.AlphaDropout,
    _ATEN.alpha_dropout_.default: nn.AlphaDropout,
    _ATEN.feature_alpha_dropout.default: nn.FeatureAlphaDropout,
    _ATEN.feature_alpha_dropout_.default: nn.FeatureAlphaDropout,
}
# The class says nothing of the number of axes, but its check of the input does.
_DROPPED_MAPS = {3: nn.Dropout1d, 4: nn.Dropout2d, 5: nn.Dropout3d}
_FROZEN = (
    "it normalises with its stored statistics in train mode too (training=False), and nn.BatchNorm "
    "does not; give it training=self.training, or fold it into the layer in front of it"
)


@dataclass(frozen=True)
class LiftOperators(OperationPass):
    """Operators of an exported graph, and functions with tensors of a layer, become layers."""

    refuses = (
        "layers whose tensors are computed, shared, or read elsewhere",
        "operators in place whose old value is read again",
    )

    def spell(self, place: Place) -> Spelling | Skip | None:
        node = place.node
        if node.op != "call_function":
            return None
        if not isinstance(node.target, torch._ops.OpOverload):
            return _lifted(place, _called_as_function(place))
        if counted_norm(node) is not None:
            # The layer counts: where it is lifted, nobody else does.
            return Spelling("its norm counts", (), place.drop_modes) if _is_counted(place) else None
        written = _why_written(place) if writes(node, place.root) else None
        if written is not None:
            return Skip(written)
        if _gives_its_input(node, place.root):
            (value,) = node.all_input_nodes
            return Spelling("its input", (value,), lambda: value)
        if node.target in _DROPOUTS:
            return _dropout(place)
        return _lifted(place, _layer(place)) or _respelled(place)


def _why_written(place: Place) -> str | None:
    """Why an operator that writes must stay; None if nobody reads what it writes to."""
    (value, *_) = place.node.all_input_nodes
    if is_stored(value, place.root):
        return "it writes to a tensor of the model, which the next run reads"
    return "it writes to a value that others read" if len(value.users) > 1 else None


def _respelled(place: Place) -> Spelling | None:
    """The function that an operator came from."""
    node = place.node
    if node.target is _ATEN.slice.Tensor:
        return _sliced(place)
    function = _FUNCTIONS.get(node.target)
    if function is None or not node.args or place.shape is None:
        return None
    return _spelled(place, function)


def _gives_its_input(node: fx.Node, root: fx.GraphModule) -> bool:
    if node.target in _DROPOUTS:
        return node.args[2] is False
    if node.target not in _SAME or is_needed(node):
        return False
    return not any(is_written(each, root) for each in (node, *node.all_input_nodes))


def _spelled(place: Place, function: Callable[..., Any]) -> Spelling | None:
    node = place.node
    nodes = tuple(n for n in node.all_input_nodes if n.op != "get_attr" and shape_of(n) is not None)
    args: tuple[Any, ...] = node.args
    if function in (operator.add, operator.sub) and node.kwargs:
        return None  # with a factor
    if function is F.hardtanh and tuple(args[1:3]) == _RELU6:
        value = args[0]
        return Spelling("nn.ReLU6", nodes, lambda: place.call_module(nn.ReLU6(), value))
    if function is torch.cat:
        dim = (args[1] if len(args) > 1 else 0) % len(place.shape or (0,))
        return Spelling("torch.cat", nodes, lambda: place.call(torch.cat, list(args[0]), dim=dim))
    if has_node(args[1:]) and function is torch.reshape:
        return None
    room = "F" if getattr(F, function.__name__, None) is function else "torch"
    return Spelling(
        f"{room}.{function.__name__}", nodes, lambda: place.call(function, *args, **node.kwargs)
    )


def _sliced(place: Place) -> Spelling | None:
    """`x[:, :, a:b]`: a part of one axis."""
    given = place.arguments("input", "dim", "start", "end", "step")
    value, bounds = given["input"], [given.get(name) for name in ("start", "end", "step")]
    if has_node(bounds) or place.shape is None:
        return None
    start, end, step = bounds
    part = slice(start or None, None if end == _TO_THE_END else end, None if step == 1 else step)
    index = (*(slice(None),) * (given.get("dim", 0) % len(place.shape)), part)
    return Spelling("getitem", (value,), lambda: place.call(operator.getitem, value, index))


def _dropout(place: Place) -> Spelling | None:
    """A dropout that drops in train mode alone: with the share or the flag that the mode gives."""
    value, share, training = place.node.args[:3]
    dropped = place.dropped(share, training)
    if dropped is None or not isinstance(value, fx.Node):
        return None
    kind = _DROPOUTS[place.node.target]
    if kind is nn.Dropout2d:
        kind = _DROPPED_MAPS.get(len(place.shape or ()), kind)
    module = kind(dropped)
    return Spelling(f"nn.{kind.__name__}", (value,), lambda: place.call_module(module, value))


_Layer = tuple[str, nn.Module, fx.Node]
"""Where a layer belongs, the layer without its tensors, and what goes in."""


def _called_as_function(place: Place) -> _Layer | Skip | None:
    """As `_layer`, of a norm, `F.linear` or a dense convolution with the tensors of a layer."""
    if read_norm_function(place.node) is not None:
        return _norm(place)
    if place.node.target in (F.linear, torch._C._nn.linear):
        return _linear(place)
    dense = place.node.target in CONV_FUNCTIONS and place.arguments().get("groups", 1) == 1
    return _convolution(place) if dense else None


def _layer(place: Place) -> _Layer | Skip | None:
    """The layer that an operator came from."""
    if read_norm_function(place.node) is not None:
        return _norm(place)
    return _linear(place) if place.node.target == _LINEAR else _convolution(place)


def _convolution(place: Place) -> _Layer | None:
    call = read_conv(place.node, place.root)
    if not isinstance(call, ConvCall) or not isinstance(call.weight, Stored):
        return None
    if not (call.bias is None or isinstance(call.bias, Stored)) or call.output_size is not None:
        return None
    path = _home({"weight": call.weight.key, "bias": None if call.bias is None else call.bias.key})
    return None if path is None else (path, module_from_spec(call.spec), call.input)


def _norm(place: Place) -> _Layer | Skip | None:
    call = read_norm_function(place.node)
    assert call is not None
    path = _home({name: _key(each) for name, each in call.tensors.items()})
    value, shape = call.input, place.shape
    if path is None or shape is None or not isinstance(value, fx.Node):
        return None
    absent = [name for name, each in call.tensors.items() if each is None]
    fields = {"affine": "weight" not in absent, "track_running_stats": "running_mean" not in absent}
    paired = ("weight" in absent) == ("bias" in absent)
    if not paired or has_node((call.momentum, call.eps)):
        return None
    if not fields["track_running_stats"]:
        if call.training is not True:
            return None
    elif not place.asks_for_the_mode(call.training):
        if call.training is not False:
            return None
        if not isinstance(place.root, ExportedModule):
            return Skip(_FROZEN)
    kind: Any = _BY_DIMS.get(max(len(shape) - 2, 1))
    norm = kind(shape[1], eps=call.eps, momentum=call.momentum, device="meta", **fields)
    known = place.fragment.reference.graph
    counted = len(counters(known, path))
    if counted not in (0, sum(_normalises(node, path) for node in known.nodes)):
        return Skip("it does not count each of its batches, and nn.BatchNorm does")
    if not counted and not isinstance(place.root, ExportedModule):
        norm.num_batches_tracked = None
    return path, norm, value


def _normalises(node: fx.Node, path: str) -> bool:
    """Whether a node normalises with the tensors at `path`."""
    call = read_norm_function(node)
    held = () if call is None else map(_key, call.tensors.values())
    return any(key and key.rpartition(".")[0] == path for key in held)


def _is_counted(place: Place) -> bool:
    """Whether the norm whose batches a node counts becomes a layer, which counts them itself."""
    path = counted_norm(place.node)
    assert path is not None
    norms = [node for node in place.graph.nodes if _normalises(node, path)]
    spelled = [LiftOperators().spell(replace(place, node=node)) for node in norms]
    return bool(norms) and all(isinstance(each, Spelling) for each in spelled)


def _linear(place: Place) -> _Layer | None:
    given = place.arguments("input", "weight", "bias")
    value, weight, bias = given["input"], given.get("weight"), given.get("bias")
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


def _lifted(place: Place, meant: _Layer | Skip | None) -> Spelling | Skip | None:
    if meant is None or isinstance(meant, Skip):
        return meant
    path, layer, value = meant
    home = f"{path}.{_PART}" if place.is_restructured(path) and _inside(place, path) else path
    made = place.root.get_submodule(home)
    known = type(made) is type(layer) and _counts(made) == _counts(layer)
    if known:
        found = made if made.extra_repr() == layer.extra_repr() else None
    else:
        found = _filled(place, path, layer)
    if found is None:
        return Skip("its tensors are shared, or read elsewhere")
    inside = {} if known else _inside(place, path)
    names = {name: f"{_PART}.{name}" if inside else name for name in found.state_dict()}

    def emit() -> fx.Node:
        place.drop_modes()
        if known:
            return place.call_part(home, value)
        if not place.is_restructured(path):
            # Such as a counter of batches, which a graph in eval mode reads for nothing.
            place.drop_unread(path)
        if not inside:
            place.restructure(path, found, names)
            return place.call_part(path, value)
        holder = nn.Module()
        holder.training = found.training
        for name, child in {_PART: found, **inside}.items():
            holder.add_module(name, child)
        place.restructure(path, holder, names)
        return place.call_part(f"{path}.{_PART}", value)

    lost = not known and _counts(made) and not _counts(layer)
    unread = (joined(path, COUNTER),) if isinstance(layer, _BatchNorm) and lost else ()
    return Spelling(f"nn.{type(layer).__name__}", (value,), emit, unread=unread)


def _inside(place: Place, path: str) -> dict[str, nn.Module]:
    """What lies in the module at `path` besides its tensors, and is not asked by its norm alone."""
    found = dict(place.root.get_submodule(path).named_children())
    found.pop(_PART, None)
    for name, child in [*found.items()]:
        calls = place.graph.find_nodes(op="call_module", target=joined(path, name))
        users = {user for node in calls for user in node.users}
        own = all(_normalises(user, path) or counted_norm(user) == path for user in users)
        if isinstance(child, TrainingMode) and own:
            del found[name]
    return found


def _counts(layer: nn.Module) -> bool:
    """Whether a norm counts its batches."""
    return getattr(layer, COUNTER, None) is not None


def _filled(place: Place, path: str, layer: nn.Module) -> nn.Module | None:
    """`layer` with the tensors of the module at `path`; None where it holds others."""
    held = place.root.get_submodule(path)
    tensors: dict[str, Tensor | None] = {**held._parameters, **held._buffers}
    readers = [
        user
        for node in place.graph.nodes
        if node.op == "get_attr" and str(node.target).rpartition(".")[0] == path
        for user in node.users
        if counted_norm(user) is None
    ]
    if _PART in held._modules or (type(held) is not nn.Module and _inside(place, path)):
        return None
    if any(user.target is not place.node.target for user in readers):
        return None
    if isinstance(layer, _BatchNorm) and not _counts(layer):
        tensors.pop(COUNTER, None)
    for store in (layer._parameters, layer._buffers):
        for name in store:
            store[name] = tensors.pop(name, None)  # type: ignore[assignment]
    if any(tensor is not None for tensor in tensors.values()):
        return None
    if isinstance(layer, _BatchNorm) and (layer.running_mean is None) is layer.track_running_stats:
        return None
    layer.train(place.training)
    return layer
