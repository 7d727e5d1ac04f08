"""A part of a file that no output sees is judged by the reference's own, or said to be there."""

import copy

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from groupfx.deploy import Validation
from tests.deploy.validate.corruption_models import TINY
from tests.deploy.validate.operator_draws import OperatorDraws


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> OperatorDraws:
    return OperatorDraws(TINY, tmp_path_factory.mktemp("tiny"))


def with_branch(tiny: OperatorDraws, factor: float | None) -> onnx.ModelProto:
    """A branch that nothing reads (None), or that is added to the output, times a factor."""
    proto = copy.deepcopy(tiny.honest)
    graph = proto.graph
    source = next(node for node in graph.node if node.op_type == "Relu").output[0]
    nodes = [helper.make_node("Sin", [source], ["hidden.sin"], name="hidden.sin")]
    if factor is not None:
        end = graph.output[0].name
        last = next(node for node in graph.node if end in node.output)
        last.output[list(last.output).index(end)] = "hidden.plain"
        value = np.array(factor, np.float32)
        graph.initializer.append(numpy_helper.from_array(value, "hidden.factor"))
        axes = numpy_helper.from_array(np.array([1]), "hidden.axes")
        graph.initializer.append(axes)
        nodes += [
            helper.make_node(
                "ReduceMean", ["hidden.sin", "hidden.axes"], ["hidden.mean"], name="hidden.mean"
            ),
            helper.make_node(
                "Mul", ["hidden.mean", "hidden.factor"], ["hidden.none"], name="hidden.mul"
            ),
            helper.make_node("Add", ["hidden.plain", "hidden.none"], [end], name="hidden.add"),
        ]
    graph.node.extend(nodes)
    return proto


def said(verdict: Validation) -> list[str]:
    return [text for text in verdict.unseen if "no output sees" in text]


@pytest.mark.parametrize("factor", [None, 0.0], ids=["read by nobody", "times 0"])
def test_a_part_that_no_output_sees_is_said(tiny: OperatorDraws, factor: float | None) -> None:
    verdict = tiny.verdict(with_branch(tiny, factor))
    assert verdict.verdict == "same", verdict.blame
    assert len(said(verdict)) == 1
    assert "Sin hidden.sin" in said(verdict)[0]


def test_what_an_output_sees_is_not(tiny: OperatorDraws) -> None:
    assert said(tiny.verdict(tiny.honest)) == []
    verdict = tiny.verdict(with_branch(tiny, 1.0))
    assert verdict.verdict == "different"
    assert said(verdict) == []
