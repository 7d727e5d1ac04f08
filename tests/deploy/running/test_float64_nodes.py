"""A node that the evaluator of onnx has a kernel for, which does not take what the spec allows."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from groupfx.deploy.running.float64_nodes import Float64Node
from groupfx.errors import ModelError
from tests.deploy.validate.small_files import value

X = np.arange(12.0).reshape(3, 4)


def gathering() -> Float64Node:
    node = helper.make_node("GatherElements", ["x", "places"], ["y"], "few", axis=0)
    inputs = [value("x", ["n", 4]), value("places", ["m", "k"], TensorProto.INT64)]
    graph = helper.make_graph([node], "g", inputs, [value("y", ["m", "k"])])
    opsets = [helper.make_opsetid("", 17)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    return Float64Node(model, model.graph.node(0))


def test_what_the_evaluator_does_not_run_is_run_by_onnx_runtime() -> None:
    node = gathering()
    places = np.array([[2, 0]])
    np.testing.assert_array_equal(node.run({"x": X, "places": places})["y"], [[8.0, 1.0]])
    assert node.rounded


def test_what_nobody_runs_is_an_error_and_no_reason_to_round() -> None:
    node = gathering()
    with pytest.raises(ModelError, match="GatherElements few does not run"):
        node.run({"x": X, "places": np.array([[7, 0]])})
    assert not node.rounded
