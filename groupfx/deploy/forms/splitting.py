"""Split a grouped convolution of an ONNX graph into branches, of one group each or of several.

Before:  y = Conv(x, W, b)                                             group = g
After:   x_0, ..., x_n = Split(x, axis=1)
         y = Concat(Conv(x_0, W_0, b_0), ..., Conv(x_n, W_n, b_n), axis=1)

W_k are the rows of branch k, of the output channels, or of the input channels where the
convolution is transposed; b_k goes by output channels in both. No number is computed anew. A
BatchNormalization that follows acts on each channel alone and may go into the branches.

A weight in whole numbers is cut as it is stored, and its scales and zero points with it where they
go along its rows. Where x comes from a DequantizeLinear and y goes into a QuantizeLinear, copies of
both may stand in each branch, so that a runtime sees a convolution on whole numbers there:

         y = Concat(q(Conv(q(x_0), W_0, b_0)), ...)     q(v) = DequantizeLinear(QuantizeLinear(v))

What was quantised once is not changed by the same a second time.

The work grows with the number of branches and not with its square: each name is looked up in one
set, and the users of the old output are turned to the new one once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from ...errors import InternalError
from ...plan.branches import Branches
from ...plan.channels import Slice
from ..graph.conv_nodes import FIRST_IR_WITH_DEFAULTS, ConvNode, constant_of
from ..graph.free_names import Names
from ..graph.metadata import mark, mark_of
from ..graph.opsets import SPLIT_SIZES_MOVED
from ..quantised.convs import Pairs, quantised_conv
from ..quantised.tensors import (
    DEQUANTIZE,
    QUANTIZE,
    QuantisedTensor,
    is_stored,
    scaling,
)

CHANNELS = 1
"""The dimension of the channels of a value."""
_ROWS = "groupfx.rows"
Values = Sequence[ir.Value | None]
"""One a branch."""

_PARAMETERS = frozenset({"weight", "bias", "running_mean", "running_var"})


def split_conv(
    model: ir.Model,
    conv: ConvNode,
    branches: Branches | None = None,
    *,
    along: Sequence[ir.Node] = (),
    pairs: Pairs | None = None,
    names: Names | None = None,
) -> None:
    """Replace a grouped convolution of `model` by its branches; `model` is changed.

    `branches` share out its groups; where they are not given, each group is a branch.

    `along` are nodes behind it that go into the branches, one behind the other: what `norm_behind`
    found, activations. `pairs` is what is quantised in each branch, in front and behind. The last
    value keeps its name. Raises InternalError where `conv` has one group, or a node of `along` is
    not its own.
    """
    if conv.spec.groups < 2:
        raise InternalError(f"{conv.name} has {conv.spec.groups} group: there is nothing to split")
    branches = branches or Branches.one_each(conv.spec.groups)
    old = [conv.node, *along]
    _require_own(conv.name, old)
    work = _Work(model, conv, branches, names or Names(model))
    parts = work.parts(None if pairs is None else pairs.data)
    values = work.conv_branches(parts)
    for node in along:
        values = work.branches_behind(node, values)
    if pairs is not None:
        values = work.paired(pairs.result, values, work.outputs)
    concat = work.concat(values, old[-1].outputs[0])
    # The scale of what it gives may be a Constant that stands behind the convolution.
    end = None if pairs is None else pairs.result.node
    model.graph.insert_before(end or conv.node, work.nodes)
    take_over(old[-1].outputs[0], concat)
    inputs = dict.fromkeys(value for node in old for value in node.inputs)
    model.graph.remove(old, safe=True)
    for value in inputs:
        _remove_unused(model.graph, value)


def _require_own(name: str, nodes: Sequence[ir.Node]) -> None:
    """Raise InternalError where something but the next of `nodes` sees what one of them gives."""
    for before, node in pairwise(nodes):
        value = before.outputs[0]
        if len(value.uses()) > 1 or value.is_graph_output() or node.inputs[0] is not value:
            raise InternalError(f"{node.name} does not belong to {name} alone: it cannot be split")


def number_branches(model: ir.Model, sites: Collection[str]) -> None:
    """Number the branches of `sites` anew, in their order, after some were split again."""
    counts: Counter[tuple[str, str]] = Counter()
    for node in model.graph:
        found = mark_of(node)
        if found is not None and found.group is not None and found.site in sites:
            kind = (found.site, node.op_type)
            mark(node, found.site, counts[kind])
            counts[kind] += 1


class _Work:
    """What one split makes: names, new values and nodes; nothing that was there is changed."""

    def __init__(self, model: ir.Model, conv: ConvNode, branches: Branches, names: Names) -> None:
        self.graph = model.graph
        versions = model.opset_imports
        self.opset = versions.get("", versions.get("ai.onnx", 1))
        self.conv = conv
        # A branch of a site stays a part of it, however often it is split again.
        self.site = conv.branch_of or conv.name
        self.names = names
        self.groups = branches.groups
        self.inputs = branches.slices(conv.spec.in_channels)
        self.outputs = branches.slices(conv.spec.out_channels)
        self.nodes: list[ir.Node] = []

    def parts(self, pair: QuantisedTensor | None) -> Values:
        """The channels of the input that each branch reads."""
        source = self.conv.node.inputs[0]
        values = self._cut(source, self.inputs, axis=CHANNELS, name=f"{self.conv.name}.split")
        return values if pair is None else self.paired(pair, values, self.inputs)

    def conv_branches(self, data: Values) -> Values:
        """What the convolution of each branch gives."""
        conv = self.conv
        rows = self.inputs if conv.spec.transposed else self.outputs
        scaled = quantised_conv(conv)
        with_rows = {conv.weight, *(scaled.weight.by_row if scaled is not None else ())}
        inputs = [data]
        for value in conv.node.inputs[1:]:
            cut = value in with_rows or value is conv.bias
            inputs += self._along([value], rows if value in with_rows else self.outputs, cut=cut)
        attributes = [a for a in conv.node.attributes.values() if a.name != "group"]
        return [
            self._branch(conv.node, values, [*attributes, ir.AttrInt64("group", groups)], position)
            for position, (groups, *values) in enumerate(zip(self.groups, *inputs, strict=True))
        ]

    def branches_behind(self, old: ir.Node, values: Values) -> Values:
        """`old` behind each of `values`."""
        cut = old.op_type == "BatchNormalization"
        return self._copies_of(old, values, *self._along(old.inputs[1:], self.outputs, cut=cut))

    def paired(self, found: QuantisedTensor, values: Values, parts: Sequence[Slice]) -> Values:
        """Each of `values`, which are `parts` of all channels, quantised and dequantised."""
        assert found.node is not None
        held = [found.scale, found.zero_point or self._zero_point(found)]
        scales = self._along(held, parts, cut=found.axis == CHANNELS)
        attributes = [] if found.axis is None else [ir.AttrInt64("axis", found.axis)]
        names = [value.name for value in values if value is not None]
        for operator, ending in ((QUANTIZE, "quantized"), (DEQUANTIZE, "dequantized")):
            made = [
                ir.Node(found.node.domain, operator, inputs, attributes)
                for inputs in zip(values, *scales, strict=True)
            ]
            values = [
                self._add(node, f"{name}.{ending}") for name, node in zip(names, made, strict=True)
            ]
        return values

    def concat(self, branches: Values, old: ir.Value) -> ir.Value:
        """The branches in one value, which says all that `old` says but its name."""
        node = ir.Node("", "Concat", branches, [ir.AttrInt64("axis", CHANNELS)])
        new = self._add(node, f"{self.conv.name}.concat")
        new.shape, new.type, new.doc_string = old.shape, old.type, old.doc_string
        new.metadata_props.update(old.metadata_props)
        new.meta.update(old.meta)
        return new

    def _branch(
        self,
        old: ir.Node,
        inputs: Sequence[ir.Value | None],
        attributes: Sequence[ir.Attr],
        position: int,
        *,
        prefix: str | None = None,
    ) -> ir.Value:
        """What `old` on the channels of one branch gives."""
        name = f"{prefix or self.conv.name}.{position}"
        node = ir.Node(
            old.domain,
            old.op_type,
            inputs,
            attributes,
            version=old.version,
            name=self.names.node(name),
            doc_string=old.doc_string,
            metadata_props=dict(old.metadata_props),
        )
        mark(node, self.site, position)
        self.nodes.append(node)
        result = node.outputs[0]
        result.name = self.names.value(f"{old.outputs[0].name}.{position}")
        result.type = old.outputs[0].type
        return result

    def _add(self, node: ir.Node, name: str) -> ir.Value:
        """What a new node of the site gives; both are called `name`, where that is free."""
        node.name = self.names.node(name)
        mark(node, self.site)
        self.nodes.append(node)
        node.outputs[0].name = self.names.value(name)
        return node.outputs[0]

    def _along(
        self, held: Sequence[ir.Value | None], parts: Sequence[Slice], *, cut: bool
    ) -> list[Values]:
        """For each parameter what every branch has of it: its own part, or all of it."""
        return [
            [value] * len(parts) if value is None or not cut else self._parameter(value, parts)
            for value in held
        ]

    def _parameter(self, value: ir.Value, rows: Sequence[Slice]) -> Sequence[ir.Value]:
        """The rows of a parameter, for each branch its own."""
        # Convolutions that share a weight go on sharing it. A clone's notes name another graph.
        known: tuple[Sequence[Slice], Sequence[ir.Value]] | None = value.meta.get(_ROWS)
        if known is None or known[0] != rows or known[1][0].graph is not self.graph:
            known = rows, self._rows(value, rows)
            value.meta[_ROWS] = known
        return known[1]

    def _rows(self, value: ir.Value, rows: Sequence[Slice]) -> Sequence[ir.Value]:
        tensor = constant_of(value, FIRST_IR_WITH_DEFAULTS)
        if tensor is not None:
            return self._copies(value, tensor, rows)
        node = value.producer()
        if node is None or not is_stored(value):
            return self._cut(value, rows, axis=0, name=f"{value.name}.split")
        found, stored = scaling(node), node.inputs[0]
        assert found is not None
        assert stored is not None
        scales = self._along(node.inputs[1:], rows, cut=found.axis == 0)
        return self._copies_of(node, self._parameter(stored, rows), *scales)

    def _copies_of(self, old: ir.Node, *inputs: Values) -> list[ir.Value]:
        """`old` once a branch; `inputs` has, for each of its inputs, that of every branch."""
        attributes = list(old.attributes.values())
        return [
            self._branch(old, values, attributes, position, prefix=old.name)
            for position, values in enumerate(zip(*inputs, strict=True))
        ]

    def _zero_point(self, found: QuantisedTensor) -> ir.Value:
        """A zero point that says the type of the numbers, where there is none."""
        assert found.scale is not None
        shape = found.scale.shape or ir.Shape(())
        name = self.names.value(f"{found.scale.name}.zero_point")
        zeros = np.zeros(shape.numpy(), (found.kind or ir.DataType.UINT8).numpy())
        return self._initializer(name, ir.Tensor(zeros, dtype=found.kind, name=name), shape)

    def _copies(
        self, value: ir.Value, tensor: ir.TensorProtocol, rows: Sequence[Slice]
    ) -> Sequence[ir.Value]:
        array = tensor.numpy()
        # One object for all of a height: thousands of shapes would cost more than the copies.
        shapes = {n: ir.Shape((n, *array.shape[1:]), frozen=True) for n in set(map(len, rows))}
        result = []
        for position, part in enumerate(rows):
            name = self.names.value(_parameter_name(value.name or self.conv.name, position))
            # A copy: a view would keep the whole of the original in memory.
            numbers = array[part.start : part.stop].copy()
            shape = shapes[len(part)]
            copy = ir.Tensor(numbers, dtype=tensor.dtype, shape=shape, name=name)
            result.append(self._initializer(name, copy, shape))
        return tuple(result)

    def _cut(
        self, value: ir.Value | None, parts: Sequence[Slice], *, axis: int, name: str
    ) -> Sequence[ir.Value]:
        """`value` cut along an axis by a `Split`, which is one of the new nodes."""
        sizes = [len(part) for part in parts]
        inputs, attributes = [value], [ir.AttrInt64("axis", axis)]
        if self.opset >= SPLIT_SIZES_MOVED:
            sizes_name = self.names.value(f"{name}.sizes")
            tensor = ir.Tensor(np.array(sizes, dtype=np.int64), name=sizes_name)
            inputs.append(self._initializer(sizes_name, tensor, tensor.shape))
        else:
            attributes.append(ir.AttrInt64s("split", sizes))
        node = ir.Node(
            "",
            "Split",
            inputs,
            attributes,
            num_outputs=len(parts),
            name=self.names.node(name),
        )
        mark(node, self.site)
        for position, output in enumerate(node.outputs):
            output.name = self.names.value(f"{name}.{position}")
            output.type = None if value is None else value.type
        self.nodes.append(node)
        return node.outputs

    def _initializer(self, name: str, tensor: ir.TensorProtocol, shape: ir.Shape) -> ir.Value:
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=shape,
            const_value=tensor,
        )
        self.graph.initializers.add(value)
        return value


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Make `new` what `old` was, for its users, the graph's outputs and by name."""
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = None
    new.name = name


def _remove_unused(graph: ir.Graph, value: ir.Value | None) -> None:
    """Remove a constant that nobody uses any more, and what it was made from."""
    if value is None or value.uses() or value.is_graph_output():
        return
    if value.is_initializer():
        if not value.is_graph_input():
            graph.initializers.pop(value.name or "", None)
        return
    node = value.producer()
    if node is None or node.graph is not graph or not is_stored(value):
        return
    inputs = list(node.inputs)
    graph.remove(node, safe=True)
    for held in inputs:
        _remove_unused(graph, held)


def _parameter_name(name: str, position: int) -> str:
    """`layer.weight` -> `layer.3.weight`, as torch names the branches; else `name.3`."""
    layer, dot, last = name.rpartition(".")
    return f"{layer}.{position}.{last}" if dot and last in _PARAMETERS else f"{name}.{position}"
