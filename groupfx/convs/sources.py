"""What the value of a node of an fx graph is computed from."""

from collections import deque
from collections.abc import Collection, Iterator

from torch import fx


def sources(*nodes: fx.Node, given: Collection[fx.Node] = ()) -> Iterator[fx.Node]:
    """`nodes` and all that they depend on, each once, the nearest first; not beyond `given`."""
    pending = deque(dict.fromkeys(node for node in nodes if node not in given))
    seen = {*pending, *given}
    while pending:
        node = pending.popleft()
        yield node
        fresh = [source for source in node.all_input_nodes if source not in seen]
        seen.update(fresh)
        pending += fresh


def in_running_order(node: fx.Node, given: Collection[fx.Node] = ()) -> Iterator[fx.Node]:
    """`node` and all that it depends on, each behind what it reads; not `given`, nor beyond."""
    seen = set(given)
    # In two visits: first what it reads, then the node itself. No recursion: graphs are deep.
    pending = [(node, False)]
    while pending:
        current, complete = pending.pop()
        if complete:
            yield current
        elif current not in seen:
            seen.add(current)
            pending.append((current, True))
            pending += [(source, False) for source in reversed(current.all_input_nodes)]
