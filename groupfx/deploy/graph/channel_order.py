"""The orders of a convolution's channels in the metadata of its node; and arrays put into them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...plan.channel_order import ChannelOrders, Order, permutation_or_none
from .metadata import PREFIX

_INPUT, _OUTPUT = f"{PREFIX}input-channels", f"{PREFIX}output-channels"

Array = npt.NDArray[Any]


def write_orders(node: ir.Node, orders: ChannelOrders) -> None:
    """Write down that the channels of a site lie in these orders, on each convolution of it."""
    for key, order in ((_INPUT, orders.input), (_OUTPUT, orders.output)):
        if order is None:
            node.metadata_props.pop(key, None)
        else:
            node.metadata_props[key] = ",".join(map(str, order))


def orders_of(node: ir.Node) -> ChannelOrders:
    """What `write_orders` wrote; what is no permutation counts for nothing."""
    return ChannelOrders(*(_read(node.metadata_props.get(key)) for key in (_INPUT, _OUTPUT)))


def _read(text: str | None) -> Order | None:
    parts = (text or "").split(",")
    return permutation_or_none([int(p) for p in parts]) if all(map(str.isdecimal, parts)) else None


def arranged(array: Array, have: Order | None, want: Order | None) -> Array:
    """`[batch, channels, ...]` whose channels are in the order `have`, in the order `want`."""
    orders = [order for order in (have, want) if order is not None]
    if have == want or any(len(order) != array.shape[1] for order in orders):
        return array
    if have is not None:
        array = array[:, np.argsort(have)]
    return array if want is None else array[:, list(want)]
