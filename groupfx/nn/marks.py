"""What a rewrite writes on a module, for whoever comes after it."""

from collections.abc import Mapping

from torch import fx, nn

from ..plan.channel_order import AS_THEY_WERE, ChannelOrders, FoldNote, fold_note, order_or_none

# On a convolution that freezing made: the default pipeline does not split it.
FROZEN_MARK = "frozen_groups"

# On a convolution whose channels a fold has moved: where they lie, for a graph that is traced anew.
ORDER_MARK = "channel_orders"


def mark_orders(module: nn.Module, orders: ChannelOrders) -> None:
    """Write on a convolution how its channels lie."""
    if orders != AS_THEY_WERE:
        setattr(module, ORDER_MARK, (orders.input, orders.output))
    elif hasattr(module, ORDER_MARK):
        delattr(module, ORDER_MARK)


def fold_of(module: nn.Module) -> FoldNote | None:
    """What a fold has written on a graph, or on its convolutions where the graph was made anew."""
    known = fold_note(getattr(module, "meta", {})) if isinstance(module, fx.GraphModule) else None
    if known is not None:
        return known
    marked = _marked(module)
    return FoldNote(marked) if marked else None


def _marked(root: nn.Module) -> Mapping[str, ChannelOrders]:
    found = {}
    for path, module in root.named_modules(remove_duplicate=False):
        sides = module.__dict__.get(ORDER_MARK)
        if isinstance(sides, tuple) and len(sides) == len(("input", "output")):
            orders = (None if side is None else order_or_none(side) for side in sides)
            found[path] = ChannelOrders(*orders)
    return found
