"""Merge parallel convolutions of an ONNX graph into grouped ones, as `groupfx.parallel` plans it.

Before:  Split or Slice or Gather of x -> [Pad] -> Conv -> [BatchNormalization, Add, Relu] -> Concat
After:   [Gather] -> [Pad] -> Conv with the groups of all -> [BatchNormalization, Add, Relu]

Initialisers of the branches are put one after another along their channels; nothing is computed.
Where groups of several sizes are merged, there are several convolutions with slices in front and a
Concat behind, or zeros fill up the smaller groups, and Gathers put the channels in order.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from math import prod
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from ...folding.wiring import Operation, Parameter
from ...parallel.branches import COMMUTATIVE, Stage, channel_dim
from ...parallel.naming import joint_name
from ...parallel.planning import Member, ParallelConvs, Refusal, Unequal, parallel_convs
from ...plan.channels import Slice
from ...plan.forms import ConvPlan
from ...plan.gathers import GatherPlan
from ..graph.conv_nodes import (
    FIRST_IR_WITH_DEFAULTS,
    OPERANDS,
    WHOLE,
    constant_of,
    input_of,
    window_of,
)
from ..graph.free_names import Names
from ..graph.initializers import constant
from ..graph.metadata import mark, mark_of
from ..graph.unused import remove_unused
from ..quantised.convs import SPLIT, bias_of, weight_of
from ..quantised.joining import is_rounded_again, joined_scaling, rounds_again, said_of_scales
from ..quantised.tensors import QuantisedTensor, axis_of, is_stored, scaling, sizes_of
from .channel_rules import OnnxRules, Shapes, root_of
from .splitting import take_over

Array = np.ndarray[Any, np.dtype[Any]]


def find_parallel(
    model: ir.Model, shapes: Shapes, unequal: Unequal = "keep"
) -> Iterator[ParallelConvs | Refusal]:
    """Branches of the main graph that are one convolution, and those that only look like it."""
    return parallel_convs(list(_operations(model, shapes)), _alike, unequal)


def _operations(model: ir.Model, shapes: Shapes) -> Iterator[Operation]:
    rules = OnnxRules(model, shapes, unpacked=True)
    for node in model.graph:
        if not is_stored(node.outputs[0]):
            yield rules.operation(node, branch_name(node))
    # What a subgraph reads must stay, as what the model gives.
    for graph in model.graph.subgraphs():
        for node in graph:
            for value in node.inputs:
                if value is not None and value.graph is model.graph:
                    yield rules.output(value)
    for value in model.graph.outputs:
        yield rules.output(value)


def branch_name(node: ir.Node) -> str:
    """The name of a node: its site's, and its place there where it is one of several."""
    found = mark_of(node)
    if found is None:
        return node.name or node.outputs[0].name or node.op_type
    return found.site if found.group is None else f"{found.site}.{found.group}"


def _alike(op: Operation) -> Hashable:
    """Everything that a node says but its channels."""
    node = cast(ir.Node, op.node)
    if node.op_type in SPLIT:
        return _conv_said(node, op)
    if node.op_type == "Dropout" and len(node.inputs) > _TRAINING_MODE:
        return None
    if len(node.outputs) > 1 and op.rule == "select":
        return None
    dims = _channel_dims(node, op)
    slots: list[Hashable] = [_slot(value, dims) for value in node.inputs]
    if op.rule == "quantize":
        # A scale that is computed is the same one or another; only the first input is the value.
        slots[1:] = [_shared(value, said) for value, said in zip(node.inputs, slots, strict=True)][
            1:
        ]
    if None in slots:
        return None
    if op.numbers["function"] in COMMUTATIVE:
        slots.sort(key=repr)
    attributes = sorted((a.name, _attribute(a)) for a in node.attributes.values())
    return node.domain, node.op_type, tuple(attributes), tuple(slots)


def _conv_said(node: ir.Node, op: Operation) -> Hashable:
    """Everything that a convolution says but its channels."""
    places, weight = OPERANDS[node.op_type], op.parameter("weight")
    held = {place: input_of(node, place) for place in places}
    if weight is None or not all(is_stored(value) for value in held.values() if value is not None):
        return None
    window, kernel = window_of(node), weight.shape[2:]
    placed = None if window.auto_pad != "NOTSET" else window.declared(len(kernel))
    ones = (1,) * len(kernel)
    sides = (window.strides or ones, window.dilations or ones, window.output_padding or ())
    more = (window.output_shape or (), window.auto_pad, placed)
    return node.op_type, kernel, _dtype(weight), *map(tuple, sides), *more, *_numbers_said(node)


def _numbers_said(node: ir.Node) -> Iterator[Hashable]:
    """What a convolution says of the whole numbers that it is made of."""
    operands = {"weight": weight_of(node), "bias": bias_of(node)}
    for part in operands.values():
        yield None if part is None else (said_of_scales(part), _chain(part))
    cut = {*OPERANDS[node.op_type], 0}
    scaled = operands["weight"].parameters if operands["weight"] and node.op_type in WHOLE else ()
    for place, value in enumerate(node.inputs):
        if place not in cut and value is not None and value not in scaled:
            yield place, _shared(value, _slot(value, {}))


def _chain(part: QuantisedTensor) -> Hashable:
    """The nodes that make reals of what is stored, of which each says what it is."""
    if part.node is None:
        return ()
    attributes = {a.name: _attribute(a) for a in part.node.attributes.values() if a.name != "axis"}
    read = part.node.inputs[0]
    maker = None if read is None else read.producer()
    before = None if maker is None else scaling(maker)
    inner = () if before is None else (said_of_scales(before), _chain(before))
    return part.node.domain, part.node.op_type, tuple(sorted(attributes.items())), inner


def _shared(value: ir.Value | None, said: Hashable) -> Hashable:
    """What an input says that branches must have in common; a computed one is itself."""
    return value if said == _COMPUTED else said


_TRAINING_MODE = 2
"""The input of Dropout that may switch it on."""


def _dtype(parameter: Parameter) -> str:
    return str(cast(ir.Value, parameter.key).dtype)


def _attribute(attribute: ir.Attr) -> Hashable:
    value = attribute.value
    if isinstance(value, ir.TensorProtocol):
        return value.numpy().tobytes()
    return tuple(value) if isinstance(value, (list, tuple)) else cast(Hashable, value)


def _channel_dims(node: ir.Node, op: Operation) -> dict[Hashable, int]:
    """The dimension with channels of each parameter that has one."""
    if node.op_type == "BatchNormalization":
        return {root_of(value): 0 for value in node.inputs[1:] if value is not None}
    if op.rule == "quantize":
        scales = (op.parameter("scale"), op.parameter("zero"))
        return {held.key: 0 for held in scales if held is not None and prod(held.shape) > 1}
    if op.rule != "binary":
        return {}
    (value,) = op.values.values()
    dims = {parameter.key: channel_dim(parameter, value) for parameter in op.parameters}
    return {key: dim for key, dim in dims.items() if dim is not None}


_COMPUTED = "the value"


def _slot(value: ir.Value | None, dims: dict[Hashable, int]) -> Hashable:
    """What an input is: left out, numbers for all channels alike, one for each, or computed.

    None where it is computed of a constant, such as one of another dtype.
    """
    if value is None:
        return "nothing"
    tensor = constant_of(value, FIRST_IR_WITH_DEFAULTS)
    if tensor is None:
        return None if root_of(value) in dims else _COMPUTED
    if root_of(value) in dims:
        return str(tensor.dtype), dims[root_of(value)] - len(tensor.shape)
    return str(tensor.dtype), tuple(tensor.shape.numpy()), tensor.numpy().tobytes()


def merge(model: ir.Model, plan: ParallelConvs, names: Names) -> str:
    """Put one convolution in the place of the branches of `plan`; its name."""
    work = _Merging(model, plan, names)
    work.run()
    return work.name


def merged_name(plan: ParallelConvs) -> str:
    """What the merged convolution is called."""
    return joint_name([branch.conv.name for branch in plan.branches])


class _Merging:
    """What one merge makes."""

    def __init__(self, model: ir.Model, plan: ParallelConvs, names: Names) -> None:
        self.graph, self.plan, self.names = model.graph, plan, names
        self.name = merged_name(plan)
        self.opset = model.opset_imports.get("", 1)
        self.nodes: list[ir.Node] = []
        self.scales: dict[tuple[ir.Value, ...], ir.Value] = {}

    def run(self) -> None:
        """Make the nodes, put them in, and let the last one take the place of the concatenation."""
        plan, concat = self.plan, cast(ir.Node, self.plan.concat.node)
        source = cast(ir.Value, plan.source.key)
        value = self._gathered("input_gather", plan.form.input_gather, source)
        front = [cast(ir.Node, op.node) for op in plan.front]
        for node in front[2:] if rounds_again(source, front[:2]) else front:
            value = self._like(node, [value, *node.inputs[1:]], node.name or "front")
        values = [self._conv(conv, value) for conv in plan.form.convs]
        value = values[0]
        if len(values) > 1:
            value = self._marked("Concat", values, "concat", ir.AttrInt64("axis", 1))
        value = self._gathered("output_gather", plan.form.output_gather, value)
        old = concat.outputs[0]
        behind = list(zip(*(branch.behind for branch in plan.branches), strict=True))
        last = [cast(ir.Node, stages[0].op.node) for stages in behind[-2:]]
        for stages in behind[:-2] if is_rounded_again(last, old) else behind:
            value = self._behind(value, stages)
        value.shape, value.type = old.shape, old.type
        self.graph.insert_before(concat, self.nodes)
        take_over(old, value)
        remove_unused(self.graph)

    def _gathered(self, suffix: str, gather: GatherPlan, source: ir.Value) -> ir.Value:
        if gather.kind == "identity":
            return source
        indices = self._numbers(f"{suffix}.indices", gather.indices)
        return self._marked("Gather", [source, indices], suffix, ir.AttrInt64("axis", 1))

    def _part(self, value: ir.Value, part: Slice, name: str) -> ir.Value:
        given = {"starts": part.start, "ends": part.stop, "axes": 1}
        if self.opset < _FIRST_WITH_BOUNDS_AS_INPUTS:
            attributes = [ir.AttrInt64s(role, [number]) for role, number in given.items()]
            return self._marked("Slice", [value], name, *attributes)
        bounds = [self._numbers(f"{name}.{role}", [number]) for role, number in given.items()]
        return self._marked("Slice", [value, *bounds], name)

    def _conv(self, plan: ConvPlan, value: ir.Value) -> ir.Value:
        """A convolution of the form."""
        members = self.plan.members(plan)
        branches = [self.plan.branches[member.branch] for member in members]
        name = self.name
        if len(members) < len(self.plan.branches):
            name = joint_name([branch.conv.name for branch in branches])
        if len(plan.inputs) < len(self.plan.form.input_gather.indices):
            value = self._part(value, plan.inputs, f"{name}.slice")
        first = cast(ir.Node, branches[0].conv.node)
        inputs: list[ir.Value | None] = [value, *first.inputs[1:]]
        for place in OPERANDS[first.op_type]:
            if input_of(first, place) is not None:
                inputs[place] = self._held(plan, members, place)
        if first.op_type in WHOLE:
            self._rescaled(inputs, [cast(ir.Node, branch.conv.node) for branch in branches])
        attributes = [a for a in first.attributes.values() if a.name != "group"]
        attributes.append(ir.AttrInt64("group", plan.groups))
        node = ir.Node(
            first.domain,
            first.op_type,
            inputs,
            attributes,
            version=first.version,
            name=self.names.node(name),
        )
        mark(node, self.name)
        return self._add(node, f"{name}.output")

    def _held(self, plan: ConvPlan, members: Sequence[Member], place: int) -> ir.Value:
        """The weights or the biases of the members in one value."""
        branches = [self.plan.branches[member.branch] for member in members]
        values = [cast(ir.Node, branch.conv.node).inputs[place] for branch in branches]
        held = [value for value in values if value is not None]
        if not plan.padded:
            return self._stored(held)
        parameters = [Parameter(root_of(value), ()) for value in held]
        arrays = [_array(parameter) for parameter in parameters]
        transposed = cast(ir.Node, branches[0].conv.node).op_type == "ConvTranspose"
        rows, others = (plan.out_channels, plan.in_channels)[:: -1 if transposed else 1]
        vector = arrays[0].ndim == 1
        shape = (plan.out_channels,) if vector else (rows, others // plan.groups)
        made: Array = np.zeros((*shape, *arrays[0].shape[2:]), arrays[0].dtype)
        for member, array in zip(members, arrays, strict=True):
            if vector:
                made[list(member.outputs)] = array
            else:
                taken = member.inputs if transposed else member.outputs
                made[list(taken), : array.shape[1]] = array
        return self._initializer(parameters, made)

    def _stored(self, values: Sequence[ir.Value]) -> ir.Value:
        """Stored tensors one after another, quantised or dequantised as they are."""
        makers = [value.producer() for value in values]
        parts = [None if maker is None else scaling(maker) for maker in makers]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts) or constant_of(values[0], FIRST_IR_WITH_DEFAULTS) is not None:
            parameters = [Parameter(root_of(value), ()) for value in values]
            return self._joined(parameters, [0] * len(parameters))
        nodes = [cast(ir.Node, maker) for maker in makers]
        inner = self._stored([cast(ir.Value, node.inputs[0]) for node in nodes])
        scales, axis = self._scales(found)
        attributes = dict(nodes[0].attributes)
        rank = len(sizes_of(root_of(found[0].stored)) or (1,))
        if axis is not None and axis_of(nodes[0]) % rank != axis:
            attributes["axis"] = ir.AttrInt64("axis", axis)
        wanted = joint_name([node.name or "" for node in nodes])
        node = ir.Node(
            nodes[0].domain, nodes[0].op_type, [inner, *scales], attributes.values(),
            name=self.names.node(wanted),
        )  # fmt: skip
        return self._add(node, joint_name([value.name or "" for value in values]))

    def _scales(self, parts: Sequence[QuantisedTensor]) -> tuple[list[ir.Value], int | None]:
        """The scale and the zero point of joined parts, and the dimension that they go along."""
        rows = [(sizes_of(root_of(part.stored)) or (1,))[0] for part in parts]
        made = joined_scaling(parts, [count if isinstance(count, int) else 1 for count in rows])
        values = []
        for role, array in (("scale", made.scale), ("zero_point", made.zero_point)):
            own = [cast(ir.Value, getattr(part, role)) for part in parts]
            if array is not None and made.axis == 0:
                # What is quantised and dequantised by one scale goes on sharing it.
                if tuple(own) not in self.scales:
                    name = self.names.value(joint_name([held.name or self.name for held in own]))
                    self.scales[tuple(own)] = constant(self.graph, name, array)
                values.append(self.scales[tuple(own)])
            elif own[0] is not None:
                values.append(own[0])
        return values, made.axis

    def _rescaled(self, inputs: list[ir.Value | None], nodes: Sequence[ir.Node]) -> None:
        """Put the joined scales of the weight among the inputs of an operator on whole numbers."""
        parts = [part for node in nodes if (part := weight_of(node)) is not None]
        scales, _ = self._scales(parts)
        for old, new in zip(parts[0].parameters, scales, strict=True):
            inputs[inputs.index(old, OPERANDS[nodes[0].op_type][0])] = new

    def _behind(self, value: ir.Value, stages: Sequence[Stage]) -> ir.Value:
        nodes = [cast(ir.Node, stage.op.node) for stage in stages]
        dims = [_channel_dims(node, s.op) for node, s in zip(nodes, stages, strict=True)]
        held = [
            [root for slot in node.inputs if slot is not None and (root := root_of(slot)) in own]
            for node, own in zip(nodes, dims, strict=True)
        ]
        inputs: list[ir.Value | None] = []
        number = 0
        data = stages[0].op.values
        for place, slot in enumerate(nodes[0].inputs):
            if place in data:
                inputs.append(value)
            elif slot is None or root_of(slot) not in dims[0]:
                inputs.append(slot)
            else:
                keys = [roots[number] for roots in held]
                along = [own[key] for own, key in zip(dims, keys, strict=True)]
                inputs.append(self._joined([Parameter(key, ()) for key in keys], along))
                number += 1
        return self._like(
            nodes[0], inputs, joint_name([node.name or branch_name(node) for node in nodes])
        )

    def _joined(self, parameters: Sequence[Parameter], dims: Sequence[int]) -> ir.Value:
        """An initialiser with those of the branches one after another, each along its dimension."""
        arrays = [_array(parameter) for parameter in parameters]
        dim, rank = max(dims), max(array.ndim for array in arrays)
        alike = [array.reshape((1,) * (rank - array.ndim) + array.shape) for array in arrays]
        return self._initializer(parameters, np.concatenate(alike, axis=dim))

    def _initializer(self, parameters: Sequence[Parameter], array: Array) -> ir.Value:
        names = [cast(ir.Value, parameter.key).name or self.name for parameter in parameters]
        return constant(self.graph, self.names.value(joint_name(names)), array)

    def _numbers(self, name: str, numbers: Sequence[int]) -> ir.Value:
        wanted = self.names.value(f"{self.name}.{name}")
        return constant(self.graph, wanted, np.array(numbers, np.int64))

    def _marked(
        self, kind: str, inputs: Sequence[ir.Value], name: str, *attributes: ir.Attr
    ) -> ir.Value:
        wanted = f"{self.name}.{name}"
        node = ir.Node("", kind, inputs, attributes, name=self.names.node(wanted))
        mark(node, self.name)
        return self._add(node, f"{wanted}.output")

    def _like(self, old: ir.Node, inputs: Sequence[ir.Value | None], wanted: str) -> ir.Value:
        node = ir.Node(
            old.domain,
            old.op_type,
            inputs,
            list(old.attributes.values()),
            version=old.version,
            name=self.names.node(wanted),
        )
        return self._add(node, f"{wanted}.output")

    def _add(self, node: ir.Node, wanted: str) -> ir.Value:
        self.nodes.append(node)
        node.outputs[0].name = self.names.value(wanted)
        return node.outputs[0]


_FIRST_WITH_BOUNDS_AS_INPUTS = 10
"""Before, a Slice had them as attributes."""


def _array(parameter: Parameter) -> Array:
    tensor = constant_of(cast(ir.Value, parameter.key), FIRST_IR_WITH_DEFAULTS)
    assert tensor is not None
    return tensor.numpy()
