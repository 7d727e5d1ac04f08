"""The convolutions of an ONNX graph: what each computes, and the grouped ones that are left alone.

ONNX says more than a `ConvSpec` holds: pads that differ at the two ends, pads that the runtime
works out (`auto_pad`), and the size of a transposed convolution's output. A `Window` holds those.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ...convs.names import numbered
from ...convs.spec import ConvSpec
from .metadata import mark_of
from .node_names import site_name
from .pads import Window

CONVS = ("Conv", "ConvTranspose")
"""Those of numbers in floating point, or dequantised."""

WHOLE = ("ConvInteger", "QLinearConv")
"""Those that work on whole numbers themselves."""

OPERANDS: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(CONVS, (1, 2)),
    "ConvInteger": (1, 4),
    "QLinearConv": (3, 8),
}
"""Where a convolution has its weight and its bias; ConvInteger has none."""

# From this version on, an initialiser that is a graph input too is only a default (IR.md).
FIRST_IR_WITH_DEFAULTS = 4

_Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class ConvNode:
    """One convolution of the main graph, of `CONVS` or `WHOLE`.

    `window` has what the node says of its windows. `spec.padding` holds the begins of its pads;
    under `auto_pad` SAME_UPPER or SAME_LOWER it is "same". `weight_tensor` and `bias_tensor` are
    None where the graph computes them, or a user may replace them.
    """

    node: ir.Node
    spec: ConvSpec
    window: Window
    weight: ir.Value
    bias: ir.Value | None
    name: str
    weight_tensor: ir.TensorProtocol | None
    bias_tensor: ir.TensorProtocol | None

    @property
    def frozen(self) -> bool:
        """No file says that freezing made a convolution."""
        return False

    @property
    def branch_of(self) -> str | None:
        """The site that was rewritten into this convolution and others."""
        found = mark_of(self.node)
        return None if found is None or found.group is None else found.site

    @property
    def constant(self) -> bool:
        """Whether weight and bias are constants."""
        return self.weight_tensor is not None and (
            self.bias is None or self.bias_tensor is not None
        )

    def weight_array(self) -> _Array | None:
        """The weight, `[out, in / groups, ...]` or transposed; None if it is computed."""
        return None if self.weight_tensor is None else self.weight_tensor.numpy()

    def bias_array(self) -> _Array | None:
        """The bias, `[out]`; None if there is none, or it is computed."""
        return None if self.bias_tensor is None else self.bias_tensor.numpy()


@dataclass(frozen=True)
class LeftNode:
    """A grouped convolution that is left alone, and why. `groups` is None where nobody knows."""

    name: str
    kind: str
    groups: int | None
    reason: str


Shapes = Mapping[str, tuple[int, ...]]


def conv_nodes(
    model: ir.Model, shapes: Shapes | None = None, kinds: Collection[str] = CONVS
) -> tuple[tuple[ConvNode, ...], tuple[LeftNode, ...]]:
    """All convolutions of the main graph that can be read, and the grouped ones left alone.

    `shapes` are those that shape inference found, by the names of values: it tells what a computed
    weight looks like where the file does not. Operators other than `kinds` are left alone.
    """
    convs: list[ConvNode] = []
    left: list[LeftNode] = []
    for node, name in conv_names(model.graph).items():
        found = _read(model, node, name, shapes or {}, kinds)
        if isinstance(found, ConvNode):
            convs.append(found)
        elif found.groups != 1:
            left.append(found)
    return tuple(convs), (*left, *_out_of_reach(model))


def conv_names(graph: ir.Graph) -> Mapping[ir.Node, str]:
    """What each convolution of a graph is called, whatever its kind; the second `a` is `a#2`."""
    nodes = [node for node in graph if is_convolution(node)]
    return dict(zip(nodes, numbered(map(site_name, nodes)), strict=True))


def sites_in(model: ir.Model) -> Iterator[str]:
    """The site of each convolution of the main graph that is marked with one."""
    for node in model.graph:
        found = mark_of(node)
        if found is not None and node.op_type in CONVS:
            yield found.site


def constant_of(value: ir.Value | None, ir_version: int) -> ir.TensorProtocol | None:
    """The tensor that a value always is: an initialiser, a Constant, or an Identity of one."""
    while value is not None:
        if value.is_initializer():
            overridable = value.is_graph_input() and ir_version >= FIRST_IR_WITH_DEFAULTS
            return None if overridable else value.const_value
        node = value.producer()
        if node is None or node.domain:
            return None
        if node.op_type != "Identity":
            tensor = node.attributes.get_tensor("value") if node.op_type == "Constant" else None
            return tensor if isinstance(tensor, ir.TensorProtocol) else None
        value = node.inputs[0]
    return None


def is_convolution(node: ir.Node) -> bool:
    """Whether the name of the operator says that it is a convolution, of whatever kind."""
    # FusedConv, QLinearConv and others too: they are not split, and that is to be said.
    return "Conv" in node.op_type


def _read(
    model: ir.Model, node: ir.Node, name: str, shapes: Shapes, kinds: Collection[str]
) -> ConvNode | LeftNode:
    groups = _groups(node)
    if node.domain or node.op_type not in kinds:
        kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        *most, last = kinds
        named = f"{', '.join(most)} and {last}" if most else last
        return LeftNode(name, node.op_type, groups, f"{kind} is not split; only {named} are")
    weight, bias = (input_of(node, place) for place in OPERANDS[node.op_type])
    if weight is None or groups is None:
        return LeftNode(name, node.op_type, groups, "it has no weight, or no number of groups")
    tensor = constant_of(weight, model.ir_version)
    shape = _shape(weight, tensor, shapes)
    if shape is None:
        reason = f"the shape of its weight {weight.name!r} is not known; infer shapes first"
        return LeftNode(name, node.op_type, groups, reason)
    if len(shape) < 3 or 0 in shape or shape[0] % groups:
        reason = f"its weight has the shape {list(shape)}, which does not fit {groups} groups"
        return LeftNode(name, node.op_type, groups, reason)
    window = window_of(node)
    spec = _spec(node, window, shape, groups, bias is not None)
    misfit = _misfit(node, bias, spec, shape, shapes)
    if misfit is not None:
        return LeftNode(name, node.op_type, groups, misfit)
    return ConvNode(
        node=node,
        spec=spec,
        window=window,
        weight=weight,
        bias=bias,
        name=name,
        weight_tensor=tensor,
        bias_tensor=constant_of(bias, model.ir_version),
    )


def _misfit(
    node: ir.Node, bias: ir.Value | None, spec: ConvSpec, shape: tuple[int, ...], shapes: Shapes
) -> str | None:
    """What does not fit the weight of a node, which onnx's checker mostly passes over."""
    value = input_of(node, 0)
    kernel, pads = _ints(node, "kernel_shape"), _ints(node, "pads")
    given = None if value is None else _channels(value, shapes)
    if given not in (None, spec.in_channels):
        return (
            f"its input has {given} channels, and its weight {list(shape)} with {spec.groups} "
            f"groups takes {spec.in_channels}"
        )
    if kernel not in (None, shape[2:]):
        return f"its kernel_shape is {list(kernel)}, and its weight has the shape {list(shape)}"
    if pads is not None and len(pads) != 2 * spec.dims:
        return f"it has {len(pads)} pads, and its weight {list(shape)} needs {2 * spec.dims}"
    held = None if bias is None else _shape(bias, bias.const_value, shapes)
    if held not in (None, (spec.out_channels,)):
        return f"its bias has the shape {list(held)}, and {spec.out_channels} channels come out"
    return None


def _channels(value: ir.Value, shapes: Shapes) -> int | None:
    """How many channels a value has, where the file tells."""
    sizes = shapes.get(value.name or "") if value.shape is None else value.shape
    if sizes is None or len(sizes) < 2:
        return None
    return sizes[1] if isinstance(sizes[1], int) else None


def input_of(node: ir.Node, place: int) -> ir.Value | None:
    """An input of a node; None where it has none at that place."""
    return node.inputs[place] if place < len(node.inputs) else None


def window_of(node: ir.Node) -> Window:
    """What a node says of its windows."""
    return Window(
        strides=_ints(node, "strides"),
        dilations=_ints(node, "dilations"),
        pads=_ints(node, "pads"),
        auto_pad=node.attributes.get_string("auto_pad", "NOTSET"),
        output_padding=_ints(node, "output_padding"),
        output_shape=_ints(node, "output_shape"),
    )


def _spec(
    node: ir.Node, window: Window, shape: tuple[int, ...], groups: int, bias: bool
) -> ConvSpec:
    dims, transposed = len(shape) - 2, node.op_type == "ConvTranspose"
    rows, columns = shape[0], shape[1] * groups
    return ConvSpec(
        dims=dims,
        transposed=transposed,
        in_channels=rows if transposed else columns,
        out_channels=columns if transposed else rows,
        groups=groups,
        # What the node says of the kernel, the weight says too.
        kernel_size=shape[2:],
        stride=tuple(window.strides or (1,) * dims),
        padding="same" if window.same else window.declared(dims)[:dims],
        dilation=tuple(window.dilations or (1,) * dims),
        output_padding=tuple(window.output_padding or (0,) * dims),
        padding_mode="zeros",
        bias=bias,
    )


def _ints(node: ir.Node, name: str) -> tuple[int, ...] | None:
    found = node.attributes.get_ints(name)
    return tuple(found) if found else None


def _groups(node: ir.Node) -> int | None:
    """None where the number is an argument of the function that the node is in."""
    attribute = node.attributes.get("group")
    if attribute is None:
        return 1
    if attribute.is_ref() or attribute.type != ir.AttributeType.INT or attribute.as_int() < 1:
        return None
    return attribute.as_int()


def _shape(
    value: ir.Value, tensor: ir.TensorProtocol | None, shapes: Shapes
) -> tuple[int, ...] | None:
    if tensor is not None:
        return tuple(tensor.shape.numpy())
    shape = value.shape
    if shape is not None and shape.is_static():
        return tuple(shape.numpy())
    node = value.producer()
    if node is not None and node.op_type == "DequantizeLinear" and node.inputs[0] is not None:
        stored = node.inputs[0]
        return _shape(stored, constant_of(stored, FIRST_IR_WITH_DEFAULTS), shapes)
    return shapes.get(value.name or "")


def _out_of_reach(model: ir.Model) -> Iterator[LeftNode]:
    """Grouped convolutions inside subgraphs and functions."""
    for graph in model.graph.subgraphs():
        yield from _inside(graph, "inside a branch or the body of a loop (If, Loop, Scan)")
    for function in model.functions.values():
        where = f"inside the function {function.name}; inline it first"
        for graph in (function.graph, *function.subgraphs()):
            yield from _inside(graph, where)


def _inside(graph: ir.Graph, where: str) -> Iterator[LeftNode]:
    for node in graph:
        if is_convolution(node) and _groups(node) != 1:
            yield LeftNode(site_name(node), node.op_type, _groups(node), f"it is {where}")
