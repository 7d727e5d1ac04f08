"""Split a grouped convolution of an ONNX graph into branches, of one group each or of several.

Before:  y = Conv(x, W, b)                                             group = g
After:   x_0, ..., x_n = Split(x, axis=1)
         y = Concat(Conv(x_0, W_0, b_0), ..., Conv(x_n, W_n, b_n), axis=1)

W_k are the rows of branch k, of the output channels, or of the input channels where the
convolution is transposed; b_k goes by output channels in both. No number is computed anew. A
BatchNormalization that follows acts on each channel alone and may go into the branches.

The work grows with the number of branches and not with its square: each name is looked up in one
set, and the users of the old output are turned to the new one once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir

from ...errors import InternalError
from ...plan.branches import Branches
from ...plan.channels import Slice
from ..graph.batchnorm import norm_behind
from ..graph.conv_nodes import FIRST_IR_WITH_DEFAULTS, ConvNode, constant_of
from ..graph.metadata import mark, mark_of

_FIRST_OPSET_WITH_SIZES_AS_INPUT = 13
_ROWS = "groupfx.rows"
_PARAMETERS = frozenset({"weight", "bias", "running_mean", "running_var"})


class Names:
    """The names of a model that are taken. One for all sites of a model saves a walk for each."""

    def __init__(self, model: ir.Model) -> None:
        self._values: set[str] = set()
        self._nodes: set[str] = set()
        for graph in (model.graph, *model.graph.subgraphs()):
            values = (*graph.inputs, *graph.initializers.values())
            self._values.update(value.name or "" for value in values)
            for node in graph:
                self._nodes.add(node.name or "")
                self._values.update(value.name or "" for value in node.outputs)

    def value(self, wanted: str) -> str:
        """`wanted`, or `wanted#2` and so on where it is taken; taken from now on."""
        return _free(wanted, self._values)

    def node(self, wanted: str) -> str:
        """The same for the name of a node."""
        return _free(wanted, self._nodes)


def split_conv(
    model: ir.Model,
    conv: ConvNode,
    branches: Branches | None = None,
    *,
    norm: ir.Node | None = None,
    names: Names | None = None,
) -> None:
    """Replace a grouped convolution of `model` by its branches; `model` is changed.

    `branches` share out its groups; where they are not given, each group is a branch.

    `norm` is what `norm_behind` found, to go into the branches. The last value keeps its name.
    Raises InternalError where `conv` has one group, or `norm` is not its own.
    """
    if conv.spec.groups < 2:
        raise InternalError(f"{conv.name} has {conv.spec.groups} group: there is nothing to split")
    branches = branches or Branches.one_each(conv.spec.groups)
    if norm is not None and norm_behind(conv.node) is not norm:
        raise InternalError(f"{norm.name} does not belong to {conv.name} alone: it cannot be split")
    work = _Work(model, conv, branches, names or Names(model))
    values = work.conv_branches()
    nodes = [*work.before, *values]
    last = conv.node
    if norm is not None:
        values = work.norm_branches(norm, values)
        nodes += values
        last = norm
    concat = work.concat(values, last.outputs[0])
    model.graph.insert_before(conv.node, (*nodes, concat))
    take_over(last.outputs[0], concat.outputs[0])
    inputs = _inputs(conv.node, norm)
    model.graph.remove([conv.node] if norm is None else [conv.node, norm], safe=True)
    for value in inputs:
        _remove_unused(model.graph, value)


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
        self.before: list[ir.Node] = []

    def conv_branches(self) -> list[ir.Node]:
        """The convolution of each branch; what cuts their inputs stands in `before`."""
        conv = self.conv
        data = conv.node.inputs[0]
        rows = self.inputs if conv.spec.transposed else self.outputs
        parts = [
            self._cut(data, self.inputs, axis=1, name=f"{conv.name}.split"),
            self._parameter(conv.weight, conv.weight_tensor, rows),
        ]
        if conv.bias is not None:
            parts.append(self._parameter(conv.bias, conv.bias_tensor, self.outputs))
        attributes = [a for a in conv.node.attributes.values() if a.name != "group"]
        return [
            self._branch(conv.node, values, [*attributes, ir.AttrInt64("group", groups)], position)
            for position, (groups, *values) in enumerate(zip(self.groups, *parts, strict=True))
        ]

    def norm_branches(self, norm: ir.Node, convs: Sequence[ir.Node]) -> list[ir.Node]:
        """One normalisation behind each of `convs`."""
        parameters = [
            self._parameter(value, _constant(value), self.outputs)
            for value in norm.inputs[1:]
            if value is not None
        ]
        values = zip((node.outputs[0] for node in convs), *parameters, strict=True)
        attributes = list(norm.attributes.values())
        return [
            self._branch(norm, inputs, attributes, position, prefix=norm.name)
            for position, inputs in enumerate(values)
        ]

    def concat(self, branches: Sequence[ir.Node], old: ir.Value) -> ir.Node:
        """The branches in one value, which says all that `old` says but its name."""
        node = ir.Node(
            "",
            "Concat",
            [branch.outputs[0] for branch in branches],
            [ir.AttrInt64("axis", 1)],
            name=self.names.node(f"{self.conv.name}.concat"),
        )
        mark(node, self.site)
        new = node.outputs[0]
        new.shape, new.type, new.doc_string = old.shape, old.type, old.doc_string
        new.metadata_props.update(old.metadata_props)
        new.meta.update(old.meta)
        return node

    def _branch(
        self,
        old: ir.Node,
        inputs: Sequence[ir.Value],
        attributes: Sequence[ir.Attr],
        position: int,
        *,
        prefix: str | None = None,
    ) -> ir.Node:
        """`old` on the channels of one branch."""
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
        self._name_output(node.outputs[0], f"{old.outputs[0].name}.{position}", old.outputs[0])
        return node

    def _parameter(
        self, value: ir.Value, tensor: ir.TensorProtocol | None, rows: Sequence[Slice]
    ) -> Sequence[ir.Value]:
        """The rows of a parameter, for each branch its own."""
        if tensor is None:
            return self._cut(value, rows, axis=0, name=f"{value.name}.split")
        # Convolutions that share a weight go on sharing it. A clone's notes name another graph.
        known: tuple[Sequence[Slice], Sequence[ir.Value]] | None = value.meta.get(_ROWS)
        if known is None or known[0] != rows or known[1][0].graph is not self.graph:
            known = rows, self._copies(value, tensor, rows)
            value.meta[_ROWS] = known
        return known[1]

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
        """`value` cut along an axis by a `Split`, which goes into `before`."""
        sizes = [len(part) for part in parts]
        inputs, attributes = [value], [ir.AttrInt64("axis", axis)]
        if self.opset >= _FIRST_OPSET_WITH_SIZES_AS_INPUT:
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
            self._name_output(output, f"{name}.{position}", value)
        self.before.append(node)
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

    def _name_output(self, value: ir.Value, wanted: str, like: ir.Value | None) -> None:
        value.name = self.names.value(wanted)
        value.type = None if like is None else like.type


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Make `new` what `old` was, for its users, the graph's outputs and by name."""
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = None
    new.name = name


def _inputs(conv: ir.Node, norm: ir.Node | None) -> list[ir.Value]:
    """The parameters of the nodes that go, each once."""
    values = [*conv.inputs[1:], *(norm.inputs[1:] if norm is not None else ())]
    return list(dict.fromkeys(value for value in values if value is not None))


def _remove_unused(graph: ir.Graph, value: ir.Value | None) -> None:
    """Remove a constant that nobody uses any more, and what it was made from."""
    while value is not None and not (value.uses() or value.is_graph_output()):
        if value.is_initializer():
            if not value.is_graph_input():
                del graph.initializers[value.name or ""]
            return
        node = value.producer()
        if node is None or constant_of(value, FIRST_IR_WITH_DEFAULTS) is None:
            return
        value = node.inputs[0] if node.inputs else None
        graph.remove(node, safe=True)


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    return constant_of(value, FIRST_IR_WITH_DEFAULTS)


def _parameter_name(name: str, position: int) -> str:
    """`layer.weight` -> `layer.3.weight`, as torch names the branches; else `name.3`."""
    layer, dot, last = name.rpartition(".")
    return f"{layer}.{position}.{last}" if dot and last in _PARAMETERS else f"{name}.{position}"


def _free(wanted: str, taken: set[str]) -> str:
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}#{number}"
    taken.add(name)
    return name
