"""Let the layers around a convolution bring its channels in order, so that it gathers nothing.

    y = conv(relu(conv_1(x)))        the blocks of conv anywhere among its channels
    y = conv'(relu(conv_1'(x)))      conv' one grouped convolution; rows of conv_1, rows of zeros

Whatever makes the channels has its rows in the order of the groups of `groupfx.plan.absorbed`, with
rows of zeros for padding, through norms, activations, gates and depthwise convolutions. The same
goes for what the convolution gives, unless other convolutions write into it too, as into a residual
stream: that keeps its order and its width, and a gather stays behind.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...folding.edits import edits
from ...folding.fold import Count, Dead, Fold, Totals
from ...folding.orders import Order, identity
from ...folding.problem import Axis, Orders, Problem, Reader
from ...plan.absorbed import Absorbed, Layout
from ...plan.around import Around, Neighbour
from ...plan.blocks import BlockStructure
from ...plan.channel_order import PADDING
from ...plan.cost import Work
from ..graph.conv_nodes import ConvNode, Shapes, conv_nodes
from ..graph.free_names import Names
from ..graph.initializers import constant
from .channel_rules import root_of
from .folding import carry_out, problem_of
from .forming import apply_form, dense_weight
from .static_shapes import static_shapes

WorksOf = Callable[[ConvNode], Sequence[Work]]
AbsorbedSite = tuple[BlockStructure, Absorbed]

_MOST_AROUND = 4
"""Convolutions on a tensor: more have it where it is a residual stream."""


@dataclass(frozen=True)
class _Ends:
    """What a convolution reads and gives, as variables that may have any order and padding.

    `outputs` is None where they may not.
    """

    inputs: int
    outputs: int | None


def surroundings(
    model: ir.Model, sites: Collection[str], shapes: Shapes | None, works_of: WorksOf
) -> Mapping[str, Around]:
    """What is around those of `sites` whose channels the layers there may bring in any order.

    `model` is not changed; `shapes` are those of its values, worked out where they are not given.
    """
    if not sites:
        return {}
    work = _Surroundings(model.clone(), sites, sites, shapes)
    return dict(work.around(works_of))


def absorb(
    model: ir.Model,
    chosen: Mapping[str, AbsorbedSite],
    sites: Collection[str],
    shapes: Shapes | None = None,
) -> frozenset[str]:
    """Execute convolutions so, and the layers around them; the names of those that could be.

    The blocks of other `sites` are left as they are.
    """
    if not chosen:
        return frozenset()
    return _Surroundings(model, chosen, {*sites, *chosen}, shapes).absorb(chosen)


class _Surroundings:
    """What is around the convolutions of a graph.

    Of those `wanted`, which have groups become dense, with zeros for what is not there.
    """

    def __init__(
        self,
        model: ir.Model,
        wanted: Collection[str],
        sites: Collection[str],
        shapes: Shapes | None,
    ) -> None:
        self.model = model
        known = static_shapes(model) if shapes is None else shapes
        names = Names(model)
        for conv in conv_nodes(model, known)[0]:
            if conv.name in wanted and conv.spec.groups > 1:
                _make_dense(model, conv, names)
        self.problem, self.shapes = problem_of(model, known)
        self.convs = {conv.name: conv for conv in conv_nodes(model, known)[0]}
        axes = [bound.axis for bound in self.problem.absorbed.values()]
        axes += [counted.axis for counted in self.problem.counted]
        ragged = (axis for axis in axes if (axis.outer, axis.inner) != (1, 1))
        linked = (axis for link in self.problem.links for axis in (link.target, *link.sources))
        self._held = {self.problem.find(axis.variable) for axis in (*ragged, *linked)}
        self._beside: dict[int, list[ConvNode]] = {}
        for conv in self.convs.values():
            for root in set(self._roots(conv)):
                self._beside.setdefault(root, []).append(conv)
        self._sites = set(sites)
        named = ((name, self._ends_of(self.convs[name])) for name in wanted if name in self.convs)
        self._ends = {name: ends for name, ends in named if ends is not None}

    def around(self, works_of: WorksOf) -> Iterator[tuple[str, Around]]:
        """Each site whose inputs may have any order, and the convolutions that follow."""
        for name, ends in self._ends.items():
            inputs, outputs = (
                None if root is None else self._neighbours(root, name, works_of)
                for root in (ends.inputs, ends.outputs)
            )
            if inputs is not None:
                yield name, Around(inputs, outputs)

    def absorb(self, chosen: Mapping[str, AbsorbedSite]) -> frozenset[str]:
        """Give every site its order; the names of those for which that can be."""
        orders: dict[int, Order] = {}
        layouts: dict[str, Layout] = {}
        for name, (structure, absorbed) in chosen.items():
            ends = self._ends.get(name)
            if ends is None:
                continue
            layout = layouts[name] = absorbed.layout(structure)
            orders[ends.inputs] = np.array(layout.inputs)
            if ends.outputs is not None:
                orders[ends.outputs] = np.array(layout.outputs)
        if not layouts:
            return frozenset()
        carry_out(self.model, _fold(self.problem, orders), self.shapes)
        # The shapes that were known have other channels now.
        names = Names(self.model)
        for conv in conv_nodes(self.model)[0]:
            if conv.name in layouts:
                layout = layouts[conv.name]
                kept = self._ends[conv.name].outputs is None
                plan = layout.in_order(None if kept else layout.outputs)
                apply_form(self.model, conv, plan, names)
        return frozenset(layouts)

    def _roots(self, conv: ConvNode) -> Iterator[int]:
        """The variables of the inputs and the outputs of a convolution, where rules know them."""
        for axis in (self._side(conv, 1), self._side(conv, 0)):
            if axis is not None:
                yield self.problem.find(axis.variable)

    def _side(self, conv: ConvNode, dim: int) -> Axis | None:
        """What dimension `dim` of a weight follows."""
        return None if conv.weight is None else self.problem.bound(root_of(conv.weight), dim)

    def _ends_of(self, conv: ConvNode) -> _Ends | None:
        columns, rows = self._side(conv, 1), self._side(conv, 0)
        if conv.spec.transposed or columns is None or rows is None:
            return None
        inputs, outputs = (self.problem.find(axis.variable) for axis in (columns, rows))
        if inputs == outputs or not self._free(inputs, conv):
            return None
        alone = self._free(outputs, conv) and self._writers(outputs) == 1
        return _Ends(inputs, outputs if alone else None)

    def _free(self, root: int, site: ConvNode) -> bool:
        """Whether a variable may have any order, and no other site has its channels."""
        problem = self.problem
        if problem.whole(root) or problem.unpadded(root) or problem.groups(root):
            return False
        others = [conv.name for conv in self._beside[root] if conv.name != site.name]
        few = len(others) < _MOST_AROUND and self._sites.isdisjoint(others)
        return few and root not in self._held

    def _writers(self, root: int) -> int:
        flows = (flow for flow in self.problem.flows if isinstance(flow, Reader))
        return sum(self.problem.find(flow.outputs.variable) == root for flow in flows)

    def _neighbours(self, root: int, site: str, works_of: WorksOf) -> tuple[Neighbour, ...] | None:
        """The other convolutions on a variable; None where the size of one is not known."""
        found = []
        for conv in self._beside[root]:
            if conv.name == site:
                continue
            works, spec, columns = works_of(conv), conv.spec, self._side(conv, 1)
            if not works:
                return None
            inputs: int | None = None
            outputs: int | None = None
            if columns is not None and self.problem.find(columns.variable) == root:
                outputs = spec.out_channels
            elif columns is not None:
                inputs = spec.in_channels
            found.append(Neighbour(inputs, outputs, works[0]))
        return tuple(found)


def _make_dense(model: ir.Model, conv: ConvNode, names: Names) -> None:
    """Write the zeros between the groups of a convolution into its weight."""
    weight = conv.weight_array()
    assert weight is not None
    name = names.value(f"{conv.name}.weight.dense")
    made = constant(model.graph, name, dense_weight(weight, conv.spec.groups))
    conv.node.replace_input_with(1, made)
    conv.node.attributes["group"] = ir.AttrInt64("group", 1)


def _fold(problem: Problem, changed: Orders) -> Fold:
    """What follows from orders of some variables for the whole graph."""
    orders = {root: identity(problem.units(root)) for root in problem.roots()} | dict(changed)
    counts = tuple(
        Count(counted.node, counted.dim, len(orders[root]))
        for counted in problem.counted
        if (root := problem.find(counted.axis.variable)) in changed
    )
    nothing = Totals(0, 0)
    padding = sum(int((order == PADDING).sum()) for order in changed.values())
    return Fold(
        problem=problem,
        orders=orders,
        links=(),
        edits=tuple(edits(problem, orders)),
        counts=counts,
        dead=Dead(),
        padding=padding,
        before=nothing,
        after=nothing,
        kept=(),
        exact=True,
    )
