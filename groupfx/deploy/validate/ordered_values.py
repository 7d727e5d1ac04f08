"""An ONNX file whose channels lie in other orders than the reference's, seen as if they did not.

Joined gathers and folds leave values whose channels lie elsewhere: what stands there is written on
the convolutions around. Operators that take channel by channel keep an order. So each such value is
shown in the reference's order, and put back into the file's in front of every operator, which runs
on what it would read, with its own constants.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...plan.channel_order import AS_THEY_WERE, PADDING, ChannelOrders, Order
from ..forms.channel_operators import keeps_channels
from ..graph.channel_order import arranged
from ..graph.conv_nodes import CONVS
from ..graph.metadata import mark_of
from .folded import constant_values
from .onnx_sites import Region
from .onnx_values import OnnxGraph
from .site_functions import SiteFunction
from .value_graph import Jitter, Operator, Values

Array = npt.NDArray[Any]
Pairs = Iterable[tuple[SiteFunction, Region]]


def value_orders(graph: ir.Graph, pairs: Pairs) -> Mapping[str, Order] | None:
    """The orders of the values of a candidate that do not lie in the reference's, by name.

    None where nobody can tell the order of some value.
    """
    starts: list[tuple[str, Order | None]] = []
    ends: dict[str, Order | None] = {}
    for function, region in pairs:
        orders = _beside(function.orders, region.orders)
        if orders is None or not _whole(orders.output, function.spec.out_channels):
            return None
        starts.append((region.start, orders.input))
        ends.update(dict.fromkeys(region.results, orders.output))
    found = {name: order for name, order in ends.items() if order is not None}
    constants, read_by_sites = constant_values(graph), {name for name, _ in starts}
    for node in graph:
        inputs = [v for v in node.inputs if v is not None and v not in constants]
        (name, *more) = (value.name or "" for value in node.outputs)
        read = {found.get(value.name or "") for value in inputs}
        if name in ends or read <= {None}:
            continue
        if mark_of(node) is not None or node.op_type in CONVS:
            if any(v.name in found and v.name not in read_by_sites for v in inputs):
                return None
        elif more or len(read) > 1 or not keeps_channels(node):
            return None
        else:
            (order,) = read
            assert order is not None
            found[name] = order
    fits = all(found.get(name) == order for name, order in starts)
    return found if fits else None


def _beside(theirs: ChannelOrders, own: ChannelOrders) -> ChannelOrders | None:
    """How the channels of a site lie by those of the reference; None where that is not known."""
    if theirs == own:
        return AS_THEY_WERE
    return own if theirs == AS_THEY_WERE else None


def _whole(order: Order | None, channels: int) -> bool:
    """Whether an order has every channel."""
    return order is None or sorted(c for c in order if c != PADDING) == [*range(channels)]


class OrderedGraph(OnnxGraph):
    """A file, `orders` of whose values are those that `value_orders` gave."""

    def __init__(
        self, model: ir.Model, orders: Mapping[str, Order], *, lowers: bool = False
    ) -> None:
        super().__init__(model, lowers=lowers)
        self._orders = orders

    def lies(self, name: str) -> bool:
        """Whether the file has the channels of a value where they are shown."""
        return name not in self._orders

    def run(self, operator: Operator, values: Mapping[str, Any], jitter: Jitter | None) -> Values:
        """What is padding in the file is 1 in front of an operator: none must look at it."""
        return self._shown(super().run(operator, self._lying(values), jitter))

    def in_runtime(self, operator: Operator, values: Mapping[str, Any]) -> Values:
        """The same in ONNX Runtime."""
        return self._shown(super().in_runtime(operator, self._lying(values)))

    def holds(self, name: str, array: Array) -> Array:
        """As the file has it: its scales lie in its own order."""
        if name not in self._orders or array.ndim < 2:
            return super().holds(name, array)
        held = super().holds(name, self._lying({name: array})[name])
        return np.asarray(self._shown({name: held})[name])

    def _lying(self, values: Mapping[str, Any]) -> Values:
        """Values as they lie in the file."""
        known = {name: self._orders[name] for name in values if name in self._orders}
        lying = {
            n: arranged(values[n], None, o, values[n].shape[1]).array for n, o in known.items()
        }
        return {**values, **lying}

    def _shown(self, values: Values) -> Values:
        """Values of the file as the reference has them."""
        known = {name: self._orders[name] for name in values if name in self._orders}
        shown = {n: arranged(values[n], o, None, _number(o)).array for n, o in known.items()}
        return {**values, **shown}


def _number(order: Order) -> int:
    return sum(channel != PADDING for channel in order)
