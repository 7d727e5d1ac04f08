"""What a node is computed from: each node once, in the order that is promised."""

import pytest
from torch import fx

from groupfx.convs.sources import in_running_order, sources


@pytest.fixture
def graph() -> dict[str, fx.Node]:
    """Y = (a + b) * a, and an unused c; the nodes by name."""
    made = fx.Graph()
    a, b, _ = (made.placeholder(name) for name in "abc")
    total = made.call_method("add", (a, b))
    made.output(made.call_method("mul", (total, a)))
    return {node.name: node for node in made.nodes}


def names(nodes: object) -> list[str]:
    return [node.name for node in nodes]  # type: ignore[attr-defined]


def test_the_nearest_come_first(graph: dict[str, fx.Node]) -> None:
    assert names(sources(graph["mul"])) == ["mul", "add", "a", "b"]


def test_each_behind_what_it_reads(graph: dict[str, fx.Node]) -> None:
    assert names(in_running_order(graph["mul"])) == ["a", "b", "add", "mul"]


def test_what_is_given_is_not_looked_behind(graph: dict[str, fx.Node]) -> None:
    given = (graph["add"],)
    assert names(sources(graph["mul"], given=given)) == ["mul", "a"]
    assert names(in_running_order(graph["mul"], given=given)) == ["a", "mul"]
    assert names(sources(graph["add"], given=given)) == []


def test_a_deep_graph_is_no_recursion() -> None:
    made = fx.Graph()
    node = made.placeholder("x")
    for _ in range(5_000):
        node = made.call_method("neg", (node,))
    assert len(list(in_running_order(node))) == len(list(sources(node))) == 5_001
