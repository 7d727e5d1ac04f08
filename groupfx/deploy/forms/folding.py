"""Fold the channel permutations of an ONNX graph into its weights.

Every operator is read as one of the rules of `groupfx.folding`; the orders that move the fewest
bytes are chosen for the whole graph at once. Then each parameter gets a new initialiser, with its
rows and columns reordered, and each gather that is left its cheapest spelling. A value whose
channels lie in another order than before says so in its metadata, so that a site can be compared
with the original's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import onnx_ir as ir

from ...folding.algebra import apply
from ...folding.fold import Count, Fold, FoldedLink
from ...folding.problem import Problem
from ...folding.spelling import Piece
from ...folding.wiring import Graph
from ...plan.channel_order import AS_THEY_WERE
from ...plan.gathers import GatherPlan
from ..graph.channel_order import orders_of, write_orders
from ..graph.conv_nodes import CONVS, FIRST_IR_WITH_DEFAULTS, constant_of
from ..graph.free_names import Names
from ..graph.initializers import constant
from ..graph.metadata import mark_of, unmark
from ..graph.node_names import site_name, told_name
from ..graph.unused import remove_unused
from .channel_rules import OnnxRules, Shapes, root_of
from .static_shapes import two_sizes


def problem_of(model: ir.Model, shapes: Shapes) -> tuple[Problem, Shapes]:
    """The problem of the main graph of `model`, and the shapes that it was read from.

    `shapes` are those that are numbers. Sizes that are open are given twice: what would be read in
    two ways depends on them, and is a barrier. The model is not changed.
    """
    both = two_sizes(model)
    if both is not None and both[0].keys() >= shapes.keys():
        problem = _open_problem(model, *both)
        if problem is not None:
            return problem, both[0]
    return _read(model, shapes, ())[0].finish(), shapes


def _open_problem(model: ir.Model, shapes: Shapes, others: Shapes) -> Problem | None:
    """What is the same on inputs of two sizes; None where too many nodes depend on them."""
    open_: frozenset[ir.Node] = frozenset()
    while len(open_) < _MOST_OPEN:
        graph, steps = _read(model, shapes, open_)
        again, other_steps = _read(model, others, open_)
        found = next((n for n, step in steps.items() if step != other_steps[n]), None)
        if found is None:
            problem = graph.finish()
            return problem if problem.alike(again.finish()) else None
        open_ |= {found}
    return None


def _read(
    model: ir.Model, shapes: Shapes, open_: Collection[ir.Node]
) -> tuple[Graph, dict[ir.Node, Hashable]]:
    """The graph of a model read with its shapes, and what each node added to the problem."""
    rules, graph = OnnxRules(model, shapes), Graph()
    steps: dict[ir.Node, Hashable] = {}
    for node in model.graph:
        if rules.stored(node.outputs[0]) is None:
            op = rules.operation(node, _name(node))
            if node in open_:
                op = replace(op, rule="barrier")
            apply(graph, op)
            steps[node] = graph.step(op)
    for value in model.graph.outputs:
        apply(graph, rules.output(value))
    return graph, steps


def carry_out(model: ir.Model, plan: Fold, shapes: Shapes) -> None:
    """Do to `model` what `plan` says of it."""
    _tell(model.graph, plan)
    for edit in plan.edits:
        value = cast(ir.Value, edit.key)
        tensor = constant_of(value, FIRST_IR_WITH_DEFAULTS)
        assert tensor is not None
        made = constant(model.graph, f"{value.name}.folded", edit.of(tensor.numpy()))
        ir.convenience.replace_all_uses_with(value, made)
    for count in plan.counts:
        _write_count(model.graph, count)
    if plan.counts or any(edit.leaves_out for edit in plan.edits):
        _forget_shapes(model.graph)
    work = _Links(model, shapes)
    for folded in plan.links:
        if not folded.untouched:
            work.place(folded)
    remove_unused(model.graph)


def _write_count(graph: ir.Graph, count: Count) -> None:
    """Let a node say how many channels or groups there are now; an open size stays open."""
    node = cast(ir.Node, count.node)
    if count.dim is None:
        node.attributes["group"] = ir.AttrInt64("group", count.value)
        return
    slot = 3 if node.op_type == "Resize" else 1
    value = node.inputs[slot]
    tensor = constant_of(value, FIRST_IR_WITH_DEFAULTS)
    assert tensor is not None
    assert value is not None
    sizes = np.array(tensor.numpy())
    if sizes[count.dim] > 0:
        sizes[count.dim] = count.value
        node.replace_input_with(slot, constant(graph, f"{value.name}.folded", sizes))


def _forget_shapes(graph: ir.Graph) -> None:
    """Take off what is said of shapes between the inputs and outputs, which have other channels."""
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None


def _tell(graph: ir.Graph, plan: Fold) -> None:
    """Write the new orders on each convolution, and take the marks off what is no site any more."""
    sites: dict[str, list[ir.Node]] = defaultdict(list)
    for node in graph:
        found = mark_of(node)
        if found is not None:
            sites[found.site].append(node)
    pieces = {node for nodes in sites.values() if len(nodes) > 1 for node in nodes}
    for node in graph:
        if node.op_type in CONVS and node.inputs[1] is not None and node not in pieces:
            orders = plan.sides(root_of(node.inputs[1]), node.op_type == "ConvTranspose")
            if orders is not None:
                write_orders(node, orders_of(node).then(*orders))
    moved = {folded.link.place.node for folded in plan.links if not folded.untouched}
    for nodes in sites.values():
        if len(nodes) > 1 and any(node in moved for node in nodes):
            for node in nodes:
                unmark(node)
                write_orders(node, AS_THEY_WERE)


def _name(node: ir.Node) -> str:
    is_site = mark_of(node) is not None or node.op_type in CONVS
    return site_name(node) if is_site else told_name(node)


_MOST_OPEN = 16
"""Nodes that depend on open sizes: the graph is read anew for each."""


class _Links:
    """Puts what is left of links where they stand; `now` is what a value has become."""

    def __init__(self, model: ir.Model, shapes: Shapes) -> None:
        self.graph = model.graph
        self.opset = model.opset_imports.get("", 1)
        self.shapes = shapes
        self.now: dict[Hashable, ir.Value] = {}
        self.names = Names(model)

    def place(self, folded: FoldedLink) -> None:
        """Emit one link in front of its node, and give it to whoever reads it."""
        place = folded.link.place
        if isinstance(place.node, ir.Value):
            self._output(place.node, folded)
            return
        node = cast(ir.Node, place.node)
        if place.slot is None:
            old = node.outputs[place.output]
            made = self._emit(folded, node, [self._current(v) for v in folded.link.values], old)
            for use in old.uses():
                use.node.replace_input_with(use.idx, made)
            self.now[old] = self._as_output(old, made) if old.is_graph_output() else made
            return
        (source,) = folded.link.values
        held = node.inputs[place.slot] if place.through is None else self._current(source)
        assert held is not None
        node.replace_input_with(place.slot, self._emit(folded, node, [held], held))

    def _output(self, value: ir.Value, folded: FoldedLink) -> None:
        """A gather in front of an output of the graph, which keeps its name."""
        source = self._current(value)
        made = self._emit(folded, self.graph[-1], [source], value, behind=True)
        self.now[value] = self._as_output(source, made)

    def _as_output(self, old: ir.Value, made: ir.Value) -> ir.Value:
        """`made` as what the graph gives in place of `old`, under its name."""
        if made.is_graph_input() or made.is_graph_output() or made.is_initializer():
            node = ir.Node("", "Identity", [made], name=self.names.node(f"{old.name}.output"))
            self.graph.append(node)
            (made,) = node.outputs
        name, made.type, made.shape = old.name, old.type, old.shape
        for position, output in enumerate(self.graph.outputs):
            if output is old:
                self.graph.outputs[position] = made
        old.name = self.names.value(f"{name}.permuted")
        made.name = name
        return made

    def _current(self, value: Hashable) -> ir.Value:
        found = cast(ir.Value, value)
        return self.now.get(found, found)

    def _emit(
        self,
        folded: FoldedLink,
        node: ir.Node,
        sources: Sequence[ir.Value],
        like: ir.Value,
        *,
        behind: bool = False,
    ) -> ir.Value:
        shape = self.shapes.get(like.name or "", ())
        work = _Emission(self.graph, node, folded, self.names, shape, self.opset)
        result = work.run(sources)
        if behind:
            self.graph.insert_after(node, work.nodes)
        else:
            self.graph.insert_before(node, work.nodes)
        if work.nodes:
            result.type, result.shape = like.type, like.shape
        return result


class _Emission:
    """The nodes of one link."""

    def __init__(
        self,
        graph: ir.Graph,
        node: ir.Node,
        folded: FoldedLink,
        names: Names,
        shape: tuple[int, ...],
        opset: int,
    ) -> None:
        self.graph = graph
        self.opset = opset
        self.folded = folded
        self.names = names
        self.shape = shape
        self.stem = f"{folded.link.place.name}.{_SIDES[folded.link.place.slot is None]}"
        self.dim = folded.link.dim
        self.nodes: list[ir.Node] = []

    def run(self, sources: Sequence[ir.Value]) -> ir.Value:
        """The value that the link gives."""
        spelling = self.folded.spelling
        values = [self._piece(sources, piece) for piece in spelling.pieces]
        joined = values[0] if len(values) == 1 else self._node("Concat", values, {"axis": self.dim})
        return joined if spelling.gather is None else self._gather(joined, spelling.gather)

    def _piece(self, sources: Sequence[ir.Value], piece: Piece) -> ir.Value:
        source = sources[piece.source]
        if piece.part is None:
            return source
        bounds = [piece.part.start, piece.part.stop, self.dim]
        if self.opset < _FIRST_SLICE_BY_INPUTS:
            starts, ends, axes = ([n] for n in bounds)
            return self._node("Slice", [source], {"axes": axes, "starts": starts, "ends": ends})
        names = ("start", "end", "axis")
        given = [self._numbers(name, [n]) for name, n in zip(names, bounds, strict=True)]
        return self._node("Slice", [source, *given])

    def _gather(self, value: ir.Value, plan: GatherPlan) -> ir.Value:
        if plan.kind == "gather" or self.dim != 1:
            return self._node(
                "Gather", [value, self._numbers("indices", plan.indices)], {"axis": self.dim}
            )
        shape, axes = plan.shape, plan.axes
        if plan.kind == "shuffle":
            assert plan.groups is not None
            shape, axes = (plan.groups, len(plan.indices) // plan.groups), (1, 0)
        rank, count = len(self.shape), len(shape)
        if rank > 2 and any(n is None for n in self.shape[2:]):
            return self._node(
                "Gather", [value, self._numbers("indices", plan.indices)], {"axis": self.dim}
            )
        return self._transposed(value, shape, axes, rank, count)

    def _transposed(
        self, value: ir.Value, shape: Sequence[int], axes: Sequence[int], rank: int, count: int
    ) -> ir.Value:
        """Reshape, Transpose, Reshape. The batch is copied; other sizes are one open axis."""
        inside = self._node("Reshape", [value, self._numbers("inside", [0, *shape, -1])])
        order = [0, *(1 + axis for axis in axes), count + 1]
        turned = self._node("Transpose", [inside], {"perm": order})
        sizes = self._sizes(value, rank, int(np.prod(shape)))
        return self._node("Reshape", [turned, sizes])

    def _sizes(self, value: ir.Value, rank: int, channels: int) -> ir.Value:
        """The shape of `value`, which is the shape of the result."""
        del rank, channels
        return self._node("Shape", [value])

    def _node(
        self,
        kind: str,
        inputs: Sequence[ir.Value],
        attributes: dict[str, int | list[int]] | None = None,
    ) -> ir.Value:
        held = [
            ir.AttrInt64(name, value) if isinstance(value, int) else ir.AttrInt64s(name, value)
            for name, value in (attributes or {}).items()
        ]
        wanted = f"{self.stem}.{kind.lower()}"
        node = ir.Node("", kind, inputs, held, name=self.names.node(wanted))
        node.outputs[0].name = self.names.value(wanted)
        self.nodes.append(node)
        return node.outputs[0]

    def _numbers(self, name: str, numbers: Sequence[int]) -> ir.Value:
        return constant(self.graph, f"{self.stem}.{name}", np.array(numbers, dtype=np.int64))


_FIRST_SLICE_BY_INPUTS = 10
_SIDES = {True: "output", False: "input"}
