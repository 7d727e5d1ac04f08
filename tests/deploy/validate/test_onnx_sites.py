"""Which BatchNormalizations a site of an ONNX file is said to compute, and up to which value."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from groupfx.deploy.graph.metadata import mark
from groupfx.deploy.validate.onnx_sites import candidate_regions, onnx_site_functions

STATISTICS = ("gamma", "beta", "mean", "var")


def norm(x: str, y: str, *more: str, **attributes: Any) -> NodeProto:
    """A BatchNormalization of `x`."""
    return helper.make_node("BatchNormalization", [x, *STATISTICS], [y, *more], y, **attributes)


def model_of(*behind: NodeProto, inputs: tuple[str, ...] = ()) -> ir.Model:
    """A convolution that gives `c`, and the nodes behind it; `inputs` have defaults."""
    shapes = {"w": (3, 2, 1), **dict.fromkeys(STATISTICS, (3,))}
    held = [
        numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in shapes.items()
    ]
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", (1, 2, 5)), *((name, shapes[name]) for name in inputs))
    ]
    last = helper.make_tensor_value_info(behind[-1].output[0], TensorProto.FLOAT, (1, 3, 5))
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), *behind]
    graph = helper.make_graph(nodes, "g", infos, [last], held)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))


# How many norms belong to the convolution, and the value behind them.
CASES: dict[str, tuple[ir.Model, int, str]] = {
    "one": (model_of(norm("c", "n")), 1, "n"),
    "two": (model_of(norm("c", "n"), norm("n", "m")), 2, "m"),
    "later": (model_of(helper.make_node("Relu", ["c"], ["r"]), norm("r", "n")), 0, "c"),
    "another user": (
        model_of(norm("c", "n"), helper.make_node("Add", ["n", "c"], ["s"])),
        *(0, "c"),
    ),
    "in training mode": (model_of(norm("c", "n", "a", "b", training_mode=1)), 0, "c"),
    "of another domain": (model_of(norm("c", "n", domain="own")), 0, "c"),
    # A user may replace it; a validation does not.
    "a default": (model_of(norm("c", "n"), inputs=("var",)), 1, "n"),
}


@pytest.mark.parametrize(("model", "number", "end"), CASES.values(), ids=CASES.keys())
def test_norms_that_belong_to_a_convolution(model: ir.Model, number: int, end: str) -> None:
    (function,), left = onnx_site_functions(model)
    assert left == ()
    assert len(function.norms) == number
    (region,), _ = candidate_regions(model, [function])
    assert (region.start, region.end) == ("x", end)
    assert region.behind_norm is None


def test_a_site_that_the_file_calls_more_often_is_not_paired_by_its_name() -> None:
    """The pieces of one that stand there as convolutions of their own are none of them that one."""
    (function,), _ = onnx_site_functions(model_of(norm("c", "n")))
    file = model_of(helper.make_node("Conv", ["c", "w2"], ["d"], name="second"))
    for node, name in zip(file.graph, ("conv", "conv#2"), strict=True):
        mark(node, name)
    regions, notes = candidate_regions(file, [function])
    assert regions == ()
    assert notes == (
        "not checked on their own, as the file has no such site: conv",
        "not checked on their own, as the reference has no such site: conv, conv#2",
    )
    mark(file.graph[1], "other")
    (region,), _ = candidate_regions(file, [function])
    assert region.name == "conv"
