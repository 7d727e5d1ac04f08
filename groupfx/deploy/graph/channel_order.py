"""The orders of a convolution's channels in the metadata of its node; and arrays put into them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...plan.channel_order import PADDING, ChannelOrders, Order, order_or_none
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
    """What `write_orders` wrote; what makes no sense counts for nothing."""
    return ChannelOrders(*(_read(node.metadata_props.get(key)) for key in (_INPUT, _OUTPUT)))


def _read(text: str | None) -> Order | None:
    parts = (text or "").split(",")
    known = all(part.isdecimal() or part == str(PADDING) for part in parts)
    return order_or_none([int(part) for part in parts]) if known else None


@dataclass(frozen=True)
class Arranged:
    """`[batch, channels, ...]` in another order; numbers without meaning where not `there`."""

    array: Array
    there: npt.NDArray[np.bool_]


def arranged(array: Array, have: Order | None, want: Order | None, channels: int) -> Arranged:
    """An array whose channels are in the order `have`, as one in the order `want`.

    None is the original's order, of so many `channels`. Where the orders do not fit the array, it
    stays as it is.
    """
    held = array.shape[1]
    wanted = range(channels) if want is None else want
    given = range(held) if have is None else have
    if len(given) != held or (have == want and held == len(wanted)):
        return Arranged(array, np.ones(held, dtype=bool))
    place = {channel: position for position, channel in enumerate(given) if channel != PADDING}
    if have is None and held != channels and want is None:
        return Arranged(array, np.ones(held, dtype=bool))
    found = [place.get(channel) for channel in wanted]
    there = np.array([position is not None for position in found])
    # No zeros: a weight that should read nothing there must be one.
    made = np.ones((array.shape[0], len(found), *array.shape[2:]), dtype=array.dtype)
    made[:, there] = array[:, [position for position in found if position is not None]]
    return Arranged(made, there)
