"""Whose a node of the runtime's graph is, on graphs and times that were written by hand."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from groupfx.deploy.graph.metadata import mark
from groupfx.tuning.backends import NodeTime, Profile
from groupfx.tuning.profile import owners, site_times


def graph() -> ir.Model:
    """A gather and a convolution (site a), Relu, plain convolution, site b, added to the Relu."""
    x = ir.Value(name="x")
    gather = ir.node("Gather", [x], outputs=[ir.Value(name="a.gather")])
    conv = ir.node("Conv", gather.outputs, outputs=[ir.Value(name="a_out")])
    for node in (gather, conv):
        mark(node, "a")
    relu = ir.node("Relu", conv.outputs, outputs=[ir.Value(name="relu_out")])
    plain = ir.node("Conv", relu.outputs, outputs=[ir.Value(name="plain_out")])
    mark(plain, "plain")
    second = ir.node("Conv", plain.outputs, outputs=[ir.Value(name="b_out")])
    mark(second, "b")
    add = ir.node("Add", [relu.outputs[0], second.outputs[0]], outputs=[ir.Value(name="add_out")])
    nodes = [gather, conv, relu, plain, second, add]
    return ir.Model(ir.Graph([x], add.outputs, nodes=nodes, opset_imports={"": 20}), ir_version=10)


def test_what_follows_a_site_belongs_to_it() -> None:
    found = owners(graph(), ["a", "b"])
    assert found == {
        "a.gather": "a",
        "a_out": "a",
        "relu_out": "a",
        "b_out": "b",
        "add_out": "b",  # the later of its two
    }


def node(
    name: str, op_type: str, inputs: tuple[str, ...], outputs: tuple[str, ...], time: float
) -> NodeTime:
    return NodeTime(name, op_type, inputs, outputs, time)


# As ONNX Runtime would run it: a blocked, its Relu fused; b blocked with the sum fused.
NODES = (
    node("ReorderOutput", "ReorderOutput", ("t0",), ("x",), 100.0),
    node("a.gather", "Gather", ("x", "i"), ("a.gather",), 1.0),
    node("ReorderInput", "ReorderInput", ("a.gather",), ("t1",), 2.0),
    node("relu_out_nchwc", "Conv", ("t1", "w1"), ("t2",), 4.0),
    node("plain_out_nchwc_token_3", "Conv", ("t2", "w2"), ("t3",), 1000.0),
    node("b_out_nchwc", "Conv", ("t3", "w3", "t2"), ("t4",), 8.0),
    node("ReorderOutput_token_1", "ReorderOutput", ("t4",), ("add_out",), 16.0),
)


def test_fused_nodes_and_layout_changes_find_their_site() -> None:
    total = sum(entry.time for entry in NODES)
    found = site_times(Profile(NODES, total), owners(graph(), ["a", "b"]))
    # What brings x into the plain layout is there for the gather of a.
    assert found == {"a": 100 + 1 + 2 + 4, "b": 8 + 16}


def test_what_profiling_adds_is_taken_off_every_node() -> None:
    owned = owners(graph(), ["a", "b"])
    plain = Profile(NODES, sum(entry.time for entry in NODES))
    slower = Profile(
        tuple(NodeTime(n.name, n.op_type, n.inputs, n.outputs, n.time + 0.5) for n in NODES),
        plain.total,
    )
    assert site_times(slower, owned) == pytest.approx(site_times(plain, owned))


def test_a_disturbed_total_is_not_believed() -> None:
    owned = owners(graph(), ["a", "b"])
    found = site_times(Profile(NODES, 1.0), owned)
    assert found["a"] == pytest.approx(100 - 4)
    assert found["b"] == pytest.approx(4 + 12)
    assert site_times(Profile(NODES, 1e6), owned)["b"] == 24


def test_a_layout_that_a_site_left_is_charged_to_it() -> None:
    back = node("ReorderInput_token_2", "ReorderInput", ("relu_out",), ("t9",), 32.0)
    reader = node("plain_out_nchwc", "Conv", ("t9",), ("t10",), 1.0)
    found = site_times(Profile((back, reader), 33.0), owners(graph(), ["a", "b"]))
    assert found == {"a": 32.0}
