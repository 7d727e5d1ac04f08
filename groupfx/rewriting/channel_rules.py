"""Nodes of a torch graph in the words of the folding rules, in each dialect that a graph may have.

Modules are known by their exact class, everything else by name. What is not here is a barrier.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
from torch import Tensor, fx, nn

from ..convs.names import module_path
from ..convs.spec import BATCHNORMS
from ..folding.wiring import Operation, Parameter, Value
from ..nn import ChannelGather, ChannelShuffle, ChannelTranspose, ConstantChannels
from ..plan.channels import shuffle_permutation
from .channel_calls import Call, Found, Numbers, call_of, first_argument
from .channel_operators import DERIVED, convolution, rule_of
from .channel_parts import is_several

_FIRST_AXES = 2
"""The map of a state_dict speaks of rows and columns."""


_MODULES: Mapping[type[nn.Module], str] = {
    **dict.fromkeys(
        (
            nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU,
            nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh,
            nn.Softplus, nn.Softsign, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
            nn.AlphaDropout, nn.LogSigmoid, nn.Softshrink, nn.Hardshrink, nn.Tanhshrink,
            nn.Threshold, nn.RReLU,
        ),
        "relu",
    ),
    **{
        kind: f"avg_pool{kind.__name__[-2:]}"
        for kind in (
            nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
            nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d,
            nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.LPPool1d, nn.LPPool2d,
            nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d,
            nn.ConstantPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d,
            nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d,
        )
    },
    **dict.fromkeys((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), "interpolate"),
    nn.Flatten: "flatten", nn.Unflatten: "unflatten",
}  # fmt: skip

_SOFTMAXES = (nn.Softmax, nn.LogSoftmax, nn.Softmin)

_CHANNEL_MODULES = (
    ChannelGather, ChannelShuffle, ChannelTranspose, ConstantChannels,
    nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle,
)  # fmt: skip

_INSTANCE_NORMS = nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d
_PER_CHANNEL = (*BATCHNORMS, nn.SyncBatchNorm, *_INSTANCE_NORMS)


def tensor_keys(module: nn.Module) -> dict[int, str]:
    """The first name of each stored tensor, by its identity: the key of its parameter."""
    named = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    return {id(tensor): name for name, tensor in reversed(named)}


_OF_ALL_INPUTS = frozenset({"attention", "attention layer", "binary", "concat", "product"})
# Of the others, the first input is the tensor.


class TorchRules:
    """The operations of a graph whose nodes know their shapes."""

    def __init__(
        self,
        module: fx.GraphModule,
        shapes: Mapping[fx.Node, tuple[int, ...]],
        fixed: Callable[[Tensor], str | None],
        hooks: Callable[[nn.Module], list[str]],
    ) -> None:
        self.module = module
        self._shapes = shapes
        self._fixed = fixed
        self._hooks = hooks
        self._keys = tensor_keys(module)

    def operation(self, node: fx.Node) -> Operation | None:
        """`node` as the rules see it; None for what is no operation."""
        if node.op in ("placeholder", "get_attr") or is_several(node, self) or self.stored(node):
            return None
        if self._of_attention(node):
            return self._first_of_attention(node)
        found = self._found(node)
        inputs = self._inputs(node)
        if found is not None and found[0] == "barrier":
            outputs = (self._value(node),) if node in self._shapes else ()
            return Operation("barrier", node, self._name(node), inputs, outputs, found[1])
        if found is not None and found[0] == "size":
            return Operation("size", node, self._name(node), inputs, (), found[1])
        shown = _shown(node) if found is not None and found[0] == "attention layer" else node
        outputs = (Value(node, self.shape(shown), 4),) if shown in self._shapes else ()
        if found is None or not outputs or not any(isinstance(v, Value) for v in inputs.values()):
            return self._barrier(node, inputs, outputs)
        rule, numbers = found[0], dict(found[1])
        source = numbers.pop("source", first_argument(node))
        numbers.setdefault("function", "" if node.op == "call_module" else call_of(node, self).name)
        if rule == "elementwise" and len(inputs) > 1:
            rule = "binary"
        taken = self._taken(node, rule, source, numbers.pop("order", ()), inputs)
        if taken is None:
            return self._barrier(node, inputs, outputs)
        return Operation(rule, node, self._name(node), taken, outputs, numbers)

    def _taken(
        self,
        node: fx.Node,
        rule: str,
        source: fx.Node,
        order: Sequence[fx.Node],
        inputs: dict[int, Value | Parameter],
    ) -> dict[int, Value | Parameter] | None:
        """The inputs that a rule is about, in the order that it takes; None where it takes none."""
        if rule not in _OF_ALL_INPUTS:
            known = source in self._shapes and source.op != "get_attr"
            return {0: self._value(source)} if known else None
        if any(isinstance(v, Value) and not v.shape for v in inputs.values()):
            return None
        place = {n: k for k, n in enumerate(node.all_input_nodes)}
        first = [place[n] for n in order]
        return {k: inputs[k] for k in (*first, *(k for k in inputs if k not in first))}

    def _first_of_attention(self, node: fx.Node) -> Operation | None:
        """What a layer of attention gives first; its weights, behind that, have no channels."""
        if node.args[1] != 0:
            return None
        (source,) = node.all_input_nodes
        held = Value(source, self.shape(node), 4)
        return Operation("elementwise", node, node.name, {0: held}, (self._value(node),))

    def _barrier(
        self, node: fx.Node, inputs: dict[int, Value | Parameter], outputs: tuple[Value, ...]
    ) -> Operation:
        held: Numbers = {}
        if node.op == "call_module":
            module = self.module.get_submodule(str(node.target))
            tensors = (*module.parameters(), *module.buffers())
            held = {f"held {k}": self.parameter(t) for k, t in enumerate(tensors)}
            why = self._why_not(module)
            held |= {} if why is None else {"why": f"{self._name(node)} {why}"}
        return Operation("barrier", node, self._name(node), inputs, outputs, held)

    def _why_not(self, module: nn.Module) -> str | None:
        """Why a module must stay what it is, although its class has a rule; in words."""
        hooks = self._hooks(module)
        if hooks:
            return f"has a {hooks[0]}"
        return "is parametrised" if nn.utils.parametrize.is_parametrized(module) else None

    def _name(self, node: fx.Node) -> str:
        """The path of a module, or a call with the path of the module that makes it."""
        if node.op == "call_module":
            return str(node.target)
        path = module_path(node)
        if node.op == "output" or not path:
            return node.name
        return path if self._is_layer(path) else f"{path}.{call_of(node, self).name}"

    def _is_layer(self, path: str) -> bool:
        """Whether a module is one of torch's own that holds no others: its call is its own."""
        try:
            module = self.module.get_submodule(path)
        except AttributeError:
            return False
        return type(module).__module__.startswith("torch.nn.") and not module._modules

    def _inputs(self, node: fx.Node) -> dict[int, Value | Parameter]:
        return {k: self.stored(n) or self._value(n) for k, n in enumerate(node.all_input_nodes)}

    def _value(self, node: fx.Node) -> Value:
        return Value(node, self.shape(node), 4, len(node.users))

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of what a node gives; nothing where it gives no tensor."""
        return self._shapes.get(node, ())

    def stored(self, node: fx.Node) -> Parameter | None:
        """The stored tensor that a node reads, a transpose of it, or what it is dequantized."""
        if node.op != "get_attr":
            return self._derived(node)
        path, _, name = str(node.target).rpartition(".")
        tensor = getattr(self.module.get_submodule(path), name)
        return self.parameter(tensor) if isinstance(tensor, Tensor) else None

    def _derived(self, node: fx.Node) -> Parameter | None:
        if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
            return None
        call = call_of(node, self)
        if call.name not in DERIVED:
            return None
        source = self.stored(first_argument(node))
        found = None if source is None else rule_of(call)
        if source is None or found is None:
            return None
        rule, numbers = found
        if rule == "transpose":
            dims = tuple(numbers["dims"])
            return replace(
                source,
                shape=tuple(source.shape[k] for k in dims),
                dims=tuple(k if source.dims is None else source.dims[k] for k in dims),
                along=tuple((other, dims.index(dim)) for other, dim in source.along),
            )
        scales = [numbers[role] for role in ("scale", "zero") if math.prod(numbers[role].shape) > 1]
        if source.along or source.dims is not None:
            return None
        along = tuple((scale, numbers["dim"]) for scale in scales)
        return replace(source, along=along, nonzero=None)

    def parameter(self, tensor: Tensor) -> Parameter:
        """A stored tensor, by the first of its names."""
        key = self._keys.get(id(tensor))
        if key is None:
            return Parameter(id(tensor), tuple(tensor.shape), "a tensor that no module holds")
        shape, fixed = tuple(tensor.shape), self._fixed(tensor)
        return Parameter(key, shape, fixed, _FIRST_AXES, nonzero=partial(_nonzero, tensor))

    def _attention(self, node: fx.Node, module: nn.MultiheadAttention) -> Found | None:
        """A layer of attention: which weights read which input, and what its output follows."""
        names = ("query", "key", "value")
        given = [*node.args, *(node.kwargs[name] for name in names if name in node.kwargs)][:3]
        reads = all(n.target is operator.getitem and isinstance(n.args[1], int) for n in node.users)
        if len(given) < 3 or not reads:
            return None
        apart = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        weights = apart if module.in_proj_weight is None else (module.in_proj_weight,) * 3
        numbers: Numbers = {
            f"held {k}": self.parameter(t) for k, t in enumerate(module.parameters())
        }
        for place, (source, weight) in enumerate(zip(given, weights, strict=True)):
            if not isinstance(source, fx.Node):
                return None
            slot = node.all_input_nodes.index(source)
            numbers[f"input {slot} {place}"] = self.parameter(weight)
        last = module.out_proj
        numbers["weight"] = self.parameter(last.weight)
        numbers["bias"] = None if last.bias is None else self.parameter(last.bias)
        return "attention layer", numbers

    def _of_attention(self, node: fx.Node) -> bool:
        """Whether a node takes one of the tensors that a layer of attention gives."""
        source = node.args[0] if node.target is operator.getitem else None
        if not isinstance(source, fx.Node) or source.op != "call_module":
            return False
        found = self._found(source)
        return found is not None and found[0] == "attention layer"

    def _found(self, node: fx.Node) -> Found | None:
        if node.op == "output":
            return None
        if node.op == "call_module":
            module = self.module.get_submodule(str(node.target))
            if self._why_not(module) is not None:
                return None
            return self._of_module(node, module)
        return rule_of(call_of(node, self))

    def _of_module(self, node: fx.Node, module: nn.Module) -> Found | None:
        kind = type(module)
        if kind in _SOFTMAXES:
            dim = getattr(module, "dim", None)
            rank = len(self.shape(node))
            return "normalise", {} if dim is None or not rank else {"dims": [dim % rank]}
        if kind in _INSTANCE_NORMS and len(self.shape(node)) != int(kind.__name__[-2]) + 2:
            return None  # without a batch axis, channels lie in dimension 0
        if kind is nn.Softmax2d and self.shape(node):
            return "normalise", {"dims": [len(self.shape(node)) - 3]}
        if kind is nn.MultiheadAttention and isinstance(module, nn.MultiheadAttention):
            return self._attention(node, module)
        if kind in _MODULES:
            if getattr(module, "return_indices", False) or len(node.all_input_nodes) != 1:
                return None
            return rule_of(Call(node, _MODULES[kind], self))
        read = convolution(node, self) or _module_channels(self, module, node)
        if read is not None:
            return read
        given = {name: None if t is None else self.parameter(t) for name, t in _tensors(module)}
        return _of_parametrised(module, given)


def _nonzero(tensor: Tensor) -> npt.NDArray[np.bool_]:
    """Which rows and columns of a weight hold anything but zeros."""
    if tensor.is_meta:
        return np.ones(tuple(tensor.shape[:_FIRST_AXES]), dtype=bool)
    entries = (
        (tensor.detach() != 0).flatten(_FIRST_AXES).any(-1) if tensor.dim() > 2 else tensor != 0
    )
    found: npt.NDArray[np.bool_] = entries.cpu().numpy()
    return found


def _shown(node: fx.Node) -> fx.Node:
    """Of a node with several values, whoever reads the first one: it has its shape."""
    firsts = [n for n in node.users if n.target is operator.getitem and n.args[1] == 0]
    return firsts[0] if firsts else node


def _tensors(module: nn.Module) -> list[tuple[str, Tensor | None]]:
    return [*module._parameters.items(), *module._buffers.items()]


def _of_parametrised(module: nn.Module, given: Mapping[str, Parameter | None]) -> Found | None:
    """A module of torch's own with tensors, of exactly that class."""
    weight, bias = given.get("weight"), given.get("bias")
    if type(module) in _PER_CHANNEL:
        mean, variance = given.get("running_mean"), given.get("running_var")
        return "per channel", {"weight": weight, "bias": bias, "mean": mean, "variance": variance}
    if type(module) is nn.Linear:
        return "linear", {"weight": weight, "bias": bias}
    if type(module) is nn.GroupNorm:
        return "group norm", {"weight": weight, "bias": bias, "groups": module.num_groups}
    if type(module) is nn.PReLU:
        return "prelu", {"weight": weight}
    layers = nn.LayerNorm, nn.RMSNorm
    if type(module) in layers and isinstance(module, layers):
        return "layer norm", {"weight": weight, "bias": bias, "last": len(module.normalized_shape)}
    return None


def _module_channels(rules: TorchRules, module: nn.Module, node: fx.Node) -> Found | None:
    """A module that moves channels and has no tensors that are trained."""
    kind, shape = type(module), rules.shape(node)
    if kind not in _CHANNEL_MODULES:
        # Another class's forward is its own.
        return None
    if isinstance(module, ChannelGather):
        order: Sequence[int] = module.channels
    elif isinstance(module, (ChannelShuffle, nn.ChannelShuffle)) and shape:
        order = shuffle_permutation(shape[1], module.groups)
    elif isinstance(module, ChannelTranspose):
        channels = np.arange(math.prod(module.shape)).reshape(module.shape)
        order = channels.transpose(module.axes).ravel().tolist()
    elif isinstance(module, ConstantChannels):
        return "constant", {"weight": rules.parameter(module.bias)}
    elif isinstance(module, nn.PixelShuffle) and len(shape) == 4:
        return "pixel shuffle", {"block": module.upscale_factor**2, "up": True}
    elif isinstance(module, nn.PixelUnshuffle) and len(shape) == 4:
        return "pixel shuffle", {"block": module.downscale_factor**2, "up": False}
    else:
        return None
    return "select", {"dim": 1, "reads": [np.array(order)]}
