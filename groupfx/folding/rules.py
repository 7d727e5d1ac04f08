"""What a rule is, the table of all, and what rules share; `algebra` and `axes` hold them.

An operation that no rule knows is a barrier: its inputs are put back in order, and its output is
as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .problem import Axis, Untaken
from .wiring import Graph, Natural, Operation, State, Tracked, Value, moved

Apply = Callable[[Graph, Operation], None]


@dataclass(frozen=True)
class Rule:
    """What happens to an order at one kind of operation.

    `operations` says which they are and `text` what the rule is, for the table in the docs. `each`
    says that it does as well with some of the channels alone, and that `apply` tells of those
    that are read; of any other operation all channels stay.
    """

    name: str
    operations: str
    text: str
    apply: Apply
    each: bool = False


RULES: dict[str, Rule] = {}

_NOT_FINITE_AT_ZERO = frozenset(
    {
        *("acosh", "div", "divide", "floor_divide", "fmod", "itruediv", "log", "logit", "mod"),
        *("pow", "reciprocal", "remainder", "rsqrt", "true_divide", "truediv"),
    }
)
"""Functions of one or two tensors, in the spellings of either realm, in small letters."""


def rule(name: str, operations: str, text: str, *, each: bool = False) -> Callable[[Apply], Apply]:
    """Enter a function into the table as the rule of some operations."""

    def add(apply: Apply) -> Apply:
        RULES[name] = Rule(name, operations, text, apply, each)
        return apply

    return add


def apply(graph: Graph, op: Operation) -> None:
    """Add to the problem of `graph` what the rule of `op` says."""
    found = RULES[op.rule]
    found.apply(graph, op)
    if not found.each:
        graph.keep_all(op)
    if op.numbers.get("function") in _NOT_FINITE_AT_ZERO:
        graph.keep_unpadded(op)
    graph.close(op)


def one_input(op: Operation) -> tuple[int, Value]:
    """The only input that is a tensor."""
    ((slot, value),) = op.values.items()
    return slot, value


def give(graph: Graph, op: Operation, state: State) -> None:
    """Every output of `op` is in that state."""
    for value in op.outputs:
        graph.set(value, state)


@rule(
    "barrier",
    "anything else; inputs and outputs of the model",
    "kept: channels as they were",
    each=True,
)
def barrier(graph: Graph, op: Operation) -> None:
    """Channels as they were, on both sides; `numbers["why"]` says why, where there is a reason.

    Where it would be a gather of channels with better numbers, `numbers["untaken"]` says that.
    """
    for slot in op.values:
        graph.pin(op, slot)
    untaken = op.numbers.get("untaken")
    if untaken is not None and op.outputs:
        graph.problem.untaken.append(Untaken(op.name, untaken, moved(op.outputs[0])))
    give(graph, op, Natural(op.numbers.get("why", f"{op.name} gives them so")))


def channels_behind(graph: Graph, op: Operation) -> int | None:
    """How far from the end the axis with channels is, where a tensor has one to be followed."""
    for value in op.values.values():
        state = graph.state(value)
        if isinstance(state, Tracked) and value.shape[state.dim] > 1:
            return len(value.shape) - state.dim
    return None


def common_axis(graph: Graph, axes: list[Axis]) -> Axis:
    """The axis that all sides are to follow: one that nothing constrains, or one of its own."""
    free = [axis for axis in axes if not graph.problem.constrained(axis.variable)]
    if free:
        return free[0]
    if all(graph.same(axes[0], axis) for axis in axes):
        return axes[0]
    return graph.fresh(graph.problem.length(axes[0]))


def as_table() -> str:
    """All rules as a table in Markdown."""
    rows = [f"| {r.name} | {r.operations} | {r.text} |" for r in RULES.values()]
    return "\n".join(["| rule | operations | what it says |", "|---|---|---|", *rows])
