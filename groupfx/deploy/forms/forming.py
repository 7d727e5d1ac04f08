"""Execute a convolution of an ONNX graph in another form: a plan of integers becomes nodes.

    y = conv(x, W)   becomes   y = output_gather(concat(conv_k(input_gather(x)[:, part_k]), ...))

A convolution with a gather of its own reads x itself, and one that is added is summed with the one
before it. The weight of each convolution holds rows and columns of `W`, as `groupfx.plan.forms`
says, and zeros where the plan has padding. Nothing is computed anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...plan.forms import ConvPlan, FormPlan
from ...plan.gathers import GatherPlan
from ..graph.conv_nodes import ConvNode
from ..graph.free_names import Names
from ..graph.initializers import constant
from ..graph.metadata import mark
from ..graph.opsets import SPLIT_SIZES_MOVED

Array = np.ndarray[Any, np.dtype[Any]]


def apply_form(model: ir.Model, conv: ConvNode, plan: FormPlan, names: Names) -> None:
    """Replace `conv`, whose weights are constants, by its execution as `plan` says.

    Where it has groups, the plan is one of the dense convolution that computes the same.

    The output keeps its name, and new values get `names` that are free. The new nodes carry the
    mark of the site, and each convolution its position in the plan.
    """
    if conv.spec.groups == 1 and _is_plain(plan):
        mark(conv.node, conv.name)
        return
    _Emission(model, conv, plan, names).run()


def _is_plain(plan: FormPlan) -> bool:
    """Whether the plan is the convolution as it stands."""
    gathers = (plan.input_gather.kind, plan.output_gather.kind)
    if len(plan.convs) != 1 or plan.constants or plan.convs[0].source is not None:
        return False
    one = plan.convs[0].groups == 1
    return one and gathers == ("identity", "identity")


class _Emission:
    def __init__(self, model: ir.Model, conv: ConvNode, plan: FormPlan, names: Names) -> None:
        self.graph = model.graph
        self.names = names
        self.conv = conv
        self.plan = plan
        self.old = conv.node
        weight, bias = conv.weight_array(), conv.bias_array()
        assert weight is not None
        self.weight = dense_weight(weight, conv.spec.groups)
        self.bias = bias
        self.nodes: list[ir.Node] = []

    def run(self) -> None:
        plan, result = self.plan, self.old.outputs[0]
        source = self.old.inputs[0]
        assert source is not None
        gathered = self._gather(source, plan.input_gather, "input_gather")
        values: list[ir.Value] = []
        parts = self._cut(gathered)
        for position, conv in enumerate(plan.convs):
            read = parts[position] if parts else self._part(source, gathered, conv, position)
            own = self._conv(read, conv, position)
            if conv.added:
                values[-1] = self._node("Add", [values[-1], own], f"{position}.sum")
            else:
                values.append(own)
        if plan.constants:
            values.append(self._constants(values[0]))
        joined = values[0]
        if len(values) > 1:
            joined = self._node("Concat", values, "concat", {"axis": 1})
        output = self._behind(joined)
        self._replace(result, output)

    def _replace(self, result: ir.Value, output: ir.Value) -> None:
        name, shape, type_ = result.name, result.shape, result.type
        self.graph.insert_before(self.old, self.nodes)
        ir.convenience.replace_all_uses_with(result, output, replace_graph_outputs=True)
        held = [value for value in (self.conv.weight, self.conv.bias) if value is not None]
        self.graph.remove(self.old, safe=True)
        result.name = f"{name}.replaced"
        output.name, output.shape, output.type = name, shape, type_
        for value in held:
            if not value.uses():
                self.graph.initializers.pop(value.name or "", None)

    def _cut(self, gathered: ir.Value) -> Sequence[ir.Value]:
        """What each convolution reads, where one Split gives it; else nothing."""
        sizes = self.plan.cuts
        if not sizes:
            return ()
        inputs, attributes = [gathered], [ir.AttrInt64("axis", 1)]
        if self.graph.opset_imports.get("", 1) >= SPLIT_SIZES_MOVED:
            inputs.append(self._constant(np.array(sizes, np.int64), "split.sizes"))
        else:
            attributes.append(ir.AttrInt64s("split", sizes))
        name = f"{self.conv.name}.split"
        node = ir.Node("", "Split", inputs, attributes, num_outputs=len(sizes), name=name)
        self._added(node, None)
        for position, value in enumerate(node.outputs):
            value.name = self.names.value(f"{name}.{position}")
        return node.outputs

    def _part(
        self, source: ir.Value, gathered: ir.Value, conv: ConvPlan, position: int
    ) -> ir.Value:
        if conv.source is not None:
            return self._gather(source, conv.source, f"{position}.gather", group=position)
        width = len(self.plan.input_gather.indices)
        if len(conv.inputs) == width:
            return gathered
        bounds = [conv.inputs.start, conv.inputs.stop, 1]
        arguments = [
            self._constant(np.array([bound], np.int64), f"slice.{position}.{name}")
            for bound, name in zip(bounds, ("start", "end", "axis"), strict=True)
        ]
        return self._node("Slice", [gathered, *arguments], f"slice.{position}", group=position)

    def _conv(self, value: ir.Value, plan: ConvPlan, position: int) -> ir.Value:
        inputs = [value, self._constant(self._weight_of(plan), f"{position}.weight")]
        if self.bias is not None and not plan.added:
            inputs.append(self._constant(_picked(self.bias, plan.rows), f"{position}.bias"))
        attributes = {
            name: attribute for name, attribute in self.old.attributes.items() if name != "group"
        }
        node = ir.Node(
            "",
            self.old.op_type,
            inputs,
            [*attributes.values(), ir.AttrInt64("group", plan.groups)],
            name=f"{self.conv.name}.{position}",
            metadata_props=dict(self.old.metadata_props),
        )
        return self._added(node, position)

    def _weight_of(self, plan: ConvPlan) -> Array:
        """`[rows, columns a group, *kernel]` out of `[out, in, *kernel]`."""
        height = plan.out_channels // plan.groups
        size = plan.in_channels // plan.groups
        shape = (plan.out_channels, size, *self.weight.shape[2:])
        made: Array = np.zeros(shape, self.weight.dtype)
        for group, columns in enumerate(plan.columns):
            kept = [place for place, column in enumerate(columns) if column is not None]
            read = [column for column in columns if column is not None]
            places = range(group * height, (group + 1) * height)
            rows = [(place, row) for place in places if (row := plan.rows[place]) is not None]
            if not rows or not kept:
                continue
            picked = self.weight[np.ix_([row for _, row in rows], read)]
            made[np.ix_([place for place, _ in rows], kept)] = picked
        return made

    def _constants(self, like: ir.Value) -> ir.Value:
        """Channels that are their bias everywhere, in the batch and the size of `like`."""
        chosen, taps = self.plan.constants, (1,) * self.conv.spec.dims
        bias = np.zeros(len(chosen), self.weight.dtype)
        if self.bias is not None:
            bias = self.bias[list(chosen)]
        shape = self._node("Shape", [like], "constants.shape")
        ends = [self._slice(shape, 0, 1, "batch"), self._slice(shape, 2, 2 + len(taps), "size")]
        channels = self._constant(np.array([len(chosen)], np.int64), "constants.channels")
        wanted = self._node("Concat", [ends[0], channels, ends[1]], "constants.to", {"axis": 0})
        value = self._constant(bias.reshape(1, -1, *taps), "constants.bias")
        return self._node("Expand", [value, wanted], "constants")

    def _slice(self, value: ir.Value, start: int, end: int, name: str) -> ir.Value:
        arguments = [
            self._constant(np.array([bound], np.int64), f"constants.{name}.{which}")
            for bound, which in ((start, "start"), (end, "end"))
        ]
        return self._node("Slice", [value, *arguments], f"constants.{name}")

    def _behind(self, value: ir.Value) -> ir.Value:
        """What brings the result into order."""
        picked, name = self.plan.output_gather, "output_gather"
        if not self.plan.by_product:
            return self._gather(value, picked, name)
        size = (len(picked.indices), self.plan.result_channels)
        weight: Array = np.zeros(size, self.weight.dtype)
        weight[np.arange(size[0]), picked.indices] = 1
        weight = weight.reshape(*size, *[1] * self.conv.spec.dims)
        return self._node("Conv", [value, self._constant(weight, f"{name}.weight")], name)

    def _gather(
        self, value: ir.Value, gather: GatherPlan, name: str, *, group: int | None = None
    ) -> ir.Value:
        if gather.kind == "identity":
            return value
        if gather.kind == "gather":
            indices = self._constant(np.array(gather.indices, np.int64), f"{name}.indices")
            return self._node("Gather", [value, indices], name, {"axis": 1}, group=group)
        shape: Sequence[int] = gather.shape
        axes: Sequence[int] = gather.axes
        if gather.kind == "shuffle":
            assert gather.groups is not None
            shape, axes = (gather.groups, len(gather.indices) // gather.groups), (1, 0)
        return self._transpose(value, shape, axes, name)

    def _transpose(
        self, value: ir.Value, shape: Sequence[int], axes: Sequence[int], name: str
    ) -> ir.Value:
        """See the channels as `shape`, reorder its axes, and see them as one axis again."""
        size = self._node("Shape", [value], f"{name}.shape")
        laid_out = self._constant(np.array([0, *shape, -1], np.int64), f"{name}.layout")
        apart = self._node("Reshape", [value, laid_out], f"{name}.apart")
        order = [0, *(1 + axis for axis in axes), 1 + len(shape)]
        moved = self._node("Transpose", [apart], f"{name}.transpose", {"perm": order})
        return self._node("Reshape", [moved, size], name)

    def _node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        name: str,
        attributes: dict[str, Any] | None = None,
        *,
        group: int | None = None,
    ) -> ir.Value:
        node = ir.node(op_type, list(inputs), attributes, name=f"{self.conv.name}.{name}")
        return self._added(node, group)

    def _added(self, node: ir.Node, group: int | None) -> ir.Value:
        mark(node, self.conv.name, group)
        wanted = node.name or ""
        node.name = self.names.node(wanted)
        node.outputs[0].name = self.names.value(wanted)
        self.nodes.append(node)
        return node.outputs[0]

    def _constant(self, array: Array, name: str) -> ir.Value:
        return constant(self.graph, self.names.value(f"{self.conv.name}.{name}"), array)


def dense_weight(weight: Array, groups: int) -> Array:
    """The weight of the convolution without groups that computes the same: zeros outside them."""
    if groups == 1:
        return weight
    height, width = weight.shape[0] // groups, weight.shape[1]
    dense: Array = np.zeros((weight.shape[0], width * groups, *weight.shape[2:]), weight.dtype)
    for group in range(groups):
        rows, columns = (slice(group * size, (group + 1) * size) for size in (height, width))
        dense[rows, columns] = weight[rows]
    return dense


def _picked(values: Array, rows: Sequence[int | None]) -> Array:
    """`values[rows]`, 0 for padding."""
    made: Array = np.zeros(len(rows), values.dtype)
    for place, row in enumerate(rows):
        if row is not None:
            made[place] = values[row]
    return made
