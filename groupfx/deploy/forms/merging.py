"""Merge parallel convolutions of an ONNX graph into grouped ones, as `groupfx.parallel` plans it.

Before:  Split or Slice or Gather of x -> [Pad] -> Conv -> [BatchNormalization, Add, Relu] -> Concat
After:   [Gather] -> [Pad] -> Conv with the groups of all -> [BatchNormalization, Add, Relu]

Initialisers of the branches are put one after another along their channels; nothing is computed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from ...folding.wiring import Operation, Parameter
from ...parallel.branches import Stage
from ...parallel.naming import joint_name
from ...parallel.planning import ParallelConvs, Refusal, parallel_convs
from ..graph.conv_nodes import CONVS, FIRST_IR_WITH_DEFAULTS, constant_of, window_of
from ..graph.initializers import constant
from ..graph.metadata import mark, mark_of
from ..graph.unused import remove_unused
from .channel_rules import OnnxRules, Shapes, root_of
from .splitting import Names, take_over

Array = np.ndarray[Any, np.dtype[Any]]


def find_parallel(model: ir.Model, shapes: Shapes) -> Iterator[ParallelConvs | Refusal]:
    """Branches of the main graph that are one convolution, and those that only look like it."""
    return parallel_convs(list(_operations(model, shapes)), _alike)


def _operations(model: ir.Model, shapes: Shapes) -> Iterator[Operation]:
    rules = OnnxRules(model, shapes)
    for node in model.graph:
        if constant_of(node.outputs[0], FIRST_IR_WITH_DEFAULTS) is None:
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
    if node.op_type in CONVS:
        weight = op.parameter("weight")
        assert weight is not None
        window = window_of(node)
        kernel = weight.shape[2:]
        placed = None if window.auto_pad != "NOTSET" else window.declared(len(kernel))
        ones = (1,) * len(kernel)
        sides = (window.strides or ones, window.dilations or ones, window.output_padding or ())
        more = (window.output_shape or (), window.auto_pad, placed)
        return node.op_type, kernel, _dtype(weight), *map(tuple, sides), *more
    if node.op_type == "Dropout" and len(node.inputs) > _TRAINING_MODE:
        return None
    dims = _channel_dims(node, op)
    slots = [_slot(value, dims) for value in node.inputs]
    attributes = sorted((a.name, _attribute(a)) for a in node.attributes.values())
    return node.domain, node.op_type, tuple(attributes), tuple(slots)


_TRAINING_MODE = 2
"""The input of Dropout that may switch it on."""


def _dtype(parameter: Parameter) -> str:
    return str(cast(ir.Value, parameter.key).dtype)


def _attribute(attribute: ir.Attr) -> Hashable:
    value = attribute.value
    if isinstance(value, ir.TensorProtocol):
        return value.numpy().tobytes()
    return tuple(value) if isinstance(value, (list, tuple)) else cast(Hashable, value)


def _channel_dims(node: ir.Node, op: Operation) -> dict[Hashable, int | None]:
    """The dimension with channels of each parameter that has one."""
    if node.op_type == "BatchNormalization":
        return {root_of(value): 0 for value in node.inputs[1:] if value is not None}
    if op.rule != "binary":
        return {}
    (value,) = op.values.values()
    found = {p.key: len(p.shape) - len(value.shape) + 1 for p in op.parameters}
    sizes = {p.key: p.shape for p in op.parameters}
    return {key: d for key, d in found.items() if d >= 0 and sizes[key][d] > 1}


def _slot(value: ir.Value | None, dims: dict[Hashable, int | None]) -> Hashable:
    """What an input is: nothing, numbers for all channels alike, one for each, or computed."""
    tensor = None if value is None else constant_of(value, FIRST_IR_WITH_DEFAULTS)
    if value is None or tensor is None:
        return value is None
    if root_of(value) in dims:
        return str(tensor.dtype), dims[root_of(value)]
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
        self.nodes: list[ir.Node] = []

    def run(self) -> None:
        """Make the nodes, put them in, and let the last one take the place of the concatenation."""
        plan, concat = self.plan, cast(ir.Node, self.plan.concat.node)
        value = self._gathered(cast(ir.Value, plan.source.key))
        for op in plan.front:
            node = cast(ir.Node, op.node)
            value = self._like(node, [value, *node.inputs[1:]], node.name or "front")
        value = self._conv(value)
        for stages in zip(*(branch.behind for branch in plan.branches), strict=True):
            value = self._behind(value, stages)
        old = concat.outputs[0]
        value.shape, value.type = old.shape, old.type
        self.graph.insert_before(concat, self.nodes)
        take_over(old, value)
        remove_unused(self.graph)

    def _gathered(self, source: ir.Value) -> ir.Value:
        gather = self.plan.gather
        if gather.kind == "identity":
            return source
        wanted = f"{self.name}.input_gather"
        indices = constant(self.graph, self.names.value(wanted), np.array(gather.indices))
        node = ir.Node(
            "",
            "Gather",
            [source, indices],
            [ir.AttrInt64("axis", 1)],
            name=self.names.node(wanted),
        )
        mark(node, self.name)
        return self._add(node, f"{wanted}.output")

    def _conv(self, value: ir.Value) -> ir.Value:
        branches = self.plan.branches
        first = cast(ir.Node, branches[0].conv.node)
        inputs: list[ir.Value | None] = [value, self._joined([b.weight for b in branches], 0)]
        biases = [branch.bias for branch in branches]
        if None not in biases:
            inputs.append(self._joined(cast(list[Parameter], biases), 0))
        attributes = [a for a in first.attributes.values() if a.name != "group"]
        attributes.append(ir.AttrInt64("group", self.plan.groups))
        node = ir.Node(
            first.domain,
            first.op_type,
            inputs,
            attributes,
            version=first.version,
            name=self.names.node(self.name),
        )
        mark(node, self.name)
        return self._add(node, f"{self.name}.output")

    def _behind(self, value: ir.Value, stages: Sequence[Stage]) -> ir.Value:
        nodes = [cast(ir.Node, stage.op.node) for stage in stages]
        dims = _channel_dims(nodes[0], stages[0].op)
        inputs: list[ir.Value | None] = []
        for slot, held in enumerate(nodes[0].inputs):
            if held is not None and constant_of(held, FIRST_IR_WITH_DEFAULTS) is None:
                inputs.append(value)
            elif held is None or root_of(held) not in dims:
                inputs.append(held)
            else:
                keys = [root_of(cast(ir.Value, node.inputs[slot])) for node in nodes]
                dim = dims[root_of(held)]
                assert dim is not None
                inputs.append(self._joined([Parameter(key, ()) for key in keys], dim))
        return self._like(nodes[0], inputs, joint_name([branch_name(node) for node in nodes]))

    def _joined(self, parameters: Sequence[Parameter], dim: int) -> ir.Value:
        """An initialiser with those of the branches one after another."""
        values = [cast(ir.Value, parameter.key) for parameter in parameters]
        tensors = [constant_of(value, FIRST_IR_WITH_DEFAULTS) for value in values]
        arrays = [tensor.numpy() for tensor in tensors if tensor is not None]
        wanted = joint_name([value.name or self.name for value in values])
        return constant(self.graph, self.names.value(wanted), np.concatenate(arrays, axis=dim))

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
