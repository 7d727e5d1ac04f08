"""Convolution calls in an fx graph, in whatever dialect they arrive, read into one description.

A convolution may be a `call_module` of a plain `torch.nn` convolution (parametrised, or under a
legacy hook that recomputes its weight), a call of `torch.nn.functional.conv*`, or an `aten`
operator that `torch.export` left. `read_conv` reads all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ..nn import is_weight_hook
from ..nn.masked_conv import MASKED
from .spec import ConvSpec, sizes, spec_of_module

_MODULE = ("input", "output_size")
CONV_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
TRANSPOSED_ARGUMENTS = (
    "input",
    "weight",
    "bias",
    "stride",
    "padding",
    "output_padding",
    "groups",
    "dilation",
)
_CONVOLUTION = (
    "input",
    "weight",
    "bias",
    "stride",
    "padding",
    "dilation",
    "transposed",
    "output_padding",
    "groups",
)
_DEFAULTS = {
    "bias": None,
    "stride": 1,
    "padding": 0,
    "dilation": 1,
    "groups": 1,
    "output_padding": 0,
}
_ATEN = torch.ops.aten


def _functions() -> dict[Any, tuple[int | None, bool | None, tuple[str, ...]]]:
    """Target -> (dims, transposed, argument names); None where the call itself says it."""
    table: dict[Any, tuple[int | None, bool | None, tuple[str, ...]]] = {
        torch.convolution: (None, None, _CONVOLUTION),
        torch._convolution: (None, None, _CONVOLUTION),
        torch._convolution_mode: (None, False, CONV_ARGUMENTS),
    }
    for name, row in (
        ("convolution", (None, None, _CONVOLUTION)),
        ("_convolution", (None, None, _CONVOLUTION)),
        ("_convolution_mode", (None, False, CONV_ARGUMENTS)),
    ):
        packet = getattr(_ATEN, name)
        table[packet] = row
        # A call with `out=` writes into a tensor that somebody else may look at.
        overloads = [each for each in packet.overloads() if "out" not in each]
        table.update({getattr(packet, each): row for each in overloads})
    for dims in (1, 2, 3):
        conv = getattr(_ATEN, f"conv{dims}d")
        transposed = getattr(_ATEN, f"conv_transpose{dims}d")
        table[getattr(torch, f"conv{dims}d")] = (dims, False, CONV_ARGUMENTS)
        table[getattr(torch, f"conv_transpose{dims}d")] = (dims, True, TRANSPOSED_ARGUMENTS)
        table[conv] = (dims, False, CONV_ARGUMENTS)
        table[transposed] = (dims, True, TRANSPOSED_ARGUMENTS)
        table[conv.default] = (dims, False, CONV_ARGUMENTS)
        table[conv.padding] = (dims, False, CONV_ARGUMENTS)
        table[transposed.default if dims == 1 else transposed.input] = (
            dims,
            True,
            TRANSPOSED_ARGUMENTS,
        )
    return table


_FUNCTIONS = _functions()
CONV_FUNCTIONS = _FUNCTIONS.keys()
"""Every function that is a convolution."""

PLACE = "place"
"""Key of a node's `meta`: where in the user's source it was called, `file:line`."""

OPERAND = "operand"
"""Key of the `meta` of an input of a graph inside another: the tensor of the model that it is."""


@dataclass(frozen=True)
class Stored:
    """A tensor that the graph module holds under `key` (a parameter or a buffer)."""

    key: str


@dataclass(frozen=True)
class Computed:
    """A tensor that a node of the graph computes: argument `name` of the function call `user`."""

    user: fx.Node
    name: str

    @property
    def node(self) -> fx.Node:
        """The node, read anew each time: a rewrite upstream may have replaced it."""
        return _node_argument(self.user, self.name)


@dataclass(frozen=True)
class Recomputed:
    """A tensor that a parametrisation or a legacy hook on the module at `path` recomputes."""

    path: str
    name: str


Source = Stored | Computed | Recomputed


@dataclass(frozen=True)
class ConvCall:
    """One convolution call: what it computes, on what, and where its tensors come from.

    `path` is the module's path, None for a function. `output_size` is the second argument of a
    transposed convolution's call, if any. `learned`: the call is of a layer that learns its groups,
    around a dense convolution.
    """

    spec: ConvSpec
    node: fx.Node
    weight: Source
    bias: Source | None
    path: str | None = None
    output_size: Any = None
    learned: bool = False

    @property
    def input(self) -> fx.Node:
        """Node of the input, read anew each time: a rewrite upstream may have replaced it."""
        return _node_argument(self.node, "input")

    @property
    def computed(self) -> bool:
        """Whether the weight or the bias is computed in each forward."""
        return not all(isinstance(s, Stored) for s in (self.weight, self.bias) if s is not None)


_PADDED = (
    "made by freezing, and padded with zeros that its pieces would not keep; "
    "freeze with form=split to have one convolution a block"
)


_PLAIN_TENSOR = (
    "its weight or bias is a plain tensor, neither a parameter nor a buffer of the layer: "
    "register it, or compute it in forward"
)


# The proof of a site trains it, in floating numbers.
_WHOLE = (
    "its weight holds whole numbers ({}), which cannot be trained, so that no proof takes them: "
    "hold it as float64, cast the input to that and the output back, which is exact below 2**53"
)


@dataclass(frozen=True)
class Unreadable:
    """A convolution whose numbers are not constants of the graph, and why."""

    node: fx.Node
    reason: str
    groups: int | None = None


def read_conv(node: fx.Node, root: fx.GraphModule) -> ConvCall | Unreadable | None:
    """The convolution that `node` calls; None if it calls something else."""
    call: ConvCall | Unreadable | None = None
    if node.op == "call_module":
        call = _read_module(node, root)
    elif node.op == "call_function" and node.target in _FUNCTIONS:
        call = _read_function(node, root)
    if isinstance(call, ConvCall) and call.spec.groups > 1:
        dtype = _dtype(call, root)
        if dtype is not None and not (dtype.is_floating_point or dtype.is_complex):
            return Unreadable(node, _WHOLE.format(dtype), call.spec.groups)
    return call


def _dtype(call: ConvCall, root: fx.GraphModule) -> torch.dtype | None:
    """What a weight holds; None where that is not known without running the model."""
    if isinstance(call.weight, Stored):
        return attribute(root, call.weight.key).dtype
    known: torch.dtype | None = call.node.meta.get("dtype")
    return known


def _read_module(node: fx.Node, root: fx.GraphModule) -> ConvCall | Unreadable | None:
    path = str(node.target)
    module = root.get_submodule(path)
    groups: int = getattr(module, "groups", 1)
    if type(module) in MASKED.values() and groups > 1:
        return Unreadable(node, _PADDED, groups)
    spec = spec_of_module(module)
    if spec is None:
        return None
    arguments = _arguments(node)
    if not isinstance(arguments.get("input"), fx.Node):
        return Unreadable(node, "its input is not a value of the graph")
    if not all(_is_held(module, name) for name in ("weight", *(["bias"] if spec.bias else []))):
        return Unreadable(node, _PLAIN_TENSOR, groups)
    bias = _module_source(module, path, "bias") if spec.bias else None
    return ConvCall(
        spec=spec,
        node=node,
        weight=_module_source(module, path, "weight"),
        bias=bias,
        path=path,
        output_size=arguments.get("output_size"),
    )


def _is_held(module: nn.Module, name: str) -> bool:
    """Whether a tensor is registered, or made anew in each forward."""
    held = name in module._parameters or name in module._buffers
    return held or isinstance(_module_source(module, "", name), Recomputed)


def _module_source(module: nn.Module, path: str, name: str) -> Source:
    return Recomputed(path, name) if recomputed(module, name) else Stored(f"{path}.{name}")


def recomputed(module: nn.Module, name: str) -> bool:
    """Whether a parametrisation or a legacy hook makes a tensor of `module` anew in each call."""
    hooks = module._forward_pre_hooks.values()
    parametrized = nn.utils.parametrize.is_parametrized(module, name)
    return parametrized or any(is_weight_hook(hook, name) for hook in hooks)


def _read_function(node: fx.Node, root: fx.GraphModule) -> ConvCall | Unreadable:
    arguments = _DEFAULTS | _arguments(node)
    if _has_node(arguments["groups"]):
        return Unreadable(node, _computed("groups", node))
    groups = int(arguments["groups"])
    for name in ("stride", "padding", "output_padding", "dilation"):
        if _has_node(arguments[name]):
            return Unreadable(node, _computed(name, node), groups)
    data, weight, bias = arguments["input"], arguments["weight"], arguments["bias"]
    if not isinstance(data, fx.Node) or not isinstance(weight, fx.Node):
        return Unreadable(node, "its input or its weight is not a value of the graph", groups)
    shape = shape_of(weight, root)
    if shape is None:
        return Unreadable(node, "the shape of its weight depends on the input", groups)
    spec = _spec(node.target, arguments, shape)
    return ConvCall(
        spec=spec,
        node=node,
        weight=_node_source(node, "weight"),
        bias=_node_source(node, "bias") if isinstance(bias, fx.Node) else None,
    )


def function_of(spec: ConvSpec) -> tuple[Callable[..., torch.Tensor], dict[str, Any]]:
    """The function of torch with such numbers, and its options but `groups`."""
    name = f"conv{'_transpose' if spec.transposed else ''}{spec.dims}d"
    options: dict[str, Any] = {
        "stride": spec.stride,
        "padding": spec.padding,
        "dilation": spec.dilation,
    }
    if spec.transposed:
        options["output_padding"] = spec.output_padding
    return getattr(torch, name), options


def spec_of_call(function: Any, args: Any, kwargs: dict[str, Any]) -> ConvSpec | None:
    """The numbers of a call of one of `CONV_FUNCTIONS` on tensors; None where they make none."""
    named = dict(zip(_FUNCTIONS[function][2], args, strict=False))
    arguments = _DEFAULTS | named | kwargs
    weight = arguments.get("weight")
    return _spec(function, arguments, tuple(weight.shape)) if torch.is_tensor(weight) else None


def arguments_of_call(function: Any, args: Any, kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """Input, weight and, where there is one, bias of a call of one of `CONV_FUNCTIONS`."""
    named = dict(zip(_FUNCTIONS[function][2], args, strict=False)) | kwargs
    tensors = (named["input"], named["weight"], named.get("bias"))
    return [tensor for tensor in tensors if tensor is not None]


def _spec(function: Any, arguments: Mapping[str, Any], weight: tuple[int, ...]) -> ConvSpec:
    dims, transposed, _ = _FUNCTIONS[function]
    groups = int(arguments["groups"])
    dims = len(weight) - 2 if dims is None else dims
    transposed = bool(arguments["transposed"]) if transposed is None else transposed
    rows, columns, *kernel = weight
    padding = arguments["padding"]
    return ConvSpec(
        dims=dims,
        transposed=transposed,
        in_channels=rows if transposed else columns * groups,
        out_channels=columns * groups if transposed else rows,
        groups=groups,
        kernel_size=tuple(kernel),
        stride=sizes(arguments["stride"], dims),
        padding=padding if isinstance(padding, str) else sizes(padding, dims),
        dilation=sizes(arguments["dilation"], dims),
        output_padding=sizes(arguments["output_padding"], dims),
        padding_mode="zeros",
        bias=arguments["bias"] is not None,
    )


def _computed(name: str, node: fx.Node) -> str:
    return no_constant(name, node.meta.get(PLACE))


def no_constant(name: str, place: str | None) -> str:
    """Why a convolution has no plan, of which the number `name` is computed at `place`."""
    where = f" ({place})" if place else ""
    return (
        f"its {name}: computed in forward{where}, and another for other inputs, so that no plan "
        "made once would hold"
    )


def _node_source(user: fx.Node, name: str) -> Source:
    source = _node_argument(user, name)
    return Stored(str(source.target)) if source.op == "get_attr" else Computed(user, name)


def _arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments of a convolution call by name, without defaults."""
    names = _MODULE if node.op == "call_module" else _FUNCTIONS[node.target][2]
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def _node_argument(node: fx.Node, name: str) -> fx.Node:
    value = _arguments(node)[name]
    assert isinstance(value, fx.Node)
    return value


def _has_node(value: Any) -> bool:
    found: list[fx.Node] = []
    fx.node.map_arg(value, found.append)
    return bool(found)


def shape_of(node: fx.Node, root: fx.GraphModule) -> tuple[int, ...] | None:
    """Shape of the tensor that `node` gives, if it is known without running the model."""
    if node.op == "get_attr":
        return tuple(attribute(root, str(node.target)).shape)
    shape = node.meta.get("shape")
    if shape is not None:
        return tuple(shape)
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor) and all(isinstance(n, int) for n in value.shape):
        return tuple(value.shape)
    return None


def attribute(root: nn.Module, key: str) -> torch.Tensor:
    """The tensor at the dotted path `key`."""
    path, _, name = key.rpartition(".")
    tensor: torch.Tensor = getattr(root.get_submodule(path), name)
    return tensor


def convs(root: fx.GraphModule) -> Mapping[fx.Node, ConvCall | Unreadable]:
    """Every convolution call in the graph of `root`, in order."""
    found = ((node, read_conv(node, root)) for node in root.graph.nodes)
    return {node: call for node, call in found if call is not None}
