"""What a validation saves, and that nothing is missed by it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper
from torch import nn

import groupfx
from groupfx.deploy.validate import value_graph
from groupfx.deploy.validate.drawn_batches import batches
from groupfx.deploy.validate.matching import Piece
from groupfx.deploy.validate.narrowing import value_sketches
from groupfx.deploy.validate.node_stress import Inputs, sampled, side_function
from groupfx.deploy.validate.onnx_values import OnnxGraph
from groupfx.deploy.validate.value_graph import Operator
from tests.deploy.validate.small_files import numbers, value, write

LARGE = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(3))
"""One row of it is a large one."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A model of large rows, and an honest file of it."""
    torch.manual_seed(1)
    convs = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3, stride=2, groups=2)
    end = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    model = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), *end).eval()
    path = tmp_path_factory.mktemp("large") / "model.onnx"
    groupfx.export(model, (LARGE,), path)
    return model, path


def test_large_rows_are_few(tmp_path: Path) -> None:
    example = {"x": LARGE.numpy()}
    assert batches(example, None) == (1, 2)
    assert batches({"x": LARGE.numpy()[..., :80, :80]}, None)[:3] == (1, 2, 7)
    nodes = [helper.make_node("Equal", ["x", "three"], ["y"])]
    ends = [value("x", None, onnx.TensorProto.INT64)], [value("y", None, onnx.TensorProto.BOOL)]
    write(tmp_path / "told.onnx", nodes, *ends, {"three": np.array(3)})
    assert batches(example, ir.load(tmp_path / "told.onnx")) == (1, 2, 3), "what a file tells of"


def test_a_model_is_exported_once(
    large: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    export = torch.export.export

    def counted(*given: Any, **named: Any) -> Any:
        made.append(export(*given, **named))
        return made[-1]

    monkeypatch.setattr(torch.export, "export", counted)
    verdict = groupfx.validate(*large, (LARGE,))
    assert verdict.ok, verdict.blame
    assert len(made) == 1
    assert len(made[0].range_constraints) == 1, "the file leaves the batch open alone"
    assert len(verdict.runs) == 8, "one row each, but for a batch of 2"


def _leaky(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type = "LeakyRelu"
    node.attribute.append(helper.make_attribute("alpha", 1e-5))


def _clipped(model: onnx.ModelProto) -> None:
    node = [node for node in model.graph.node if node.op_type == "Relu"][1]
    node.op_type = "Clip"
    node.input.extend(["zero", "thirty"])
    for name, number in (("zero", 0), ("thirty", 30)):
        tensor = helper.make_tensor(name, onnx.TensorProto.FLOAT, (), [number])
        model.graph.initializer.append(tensor)


@pytest.mark.parametrize("change", [_leaky, _clipped])
def test_a_wrong_operator_of_large_rows_is_named(
    change: Callable[[onnx.ModelProto], None], large: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    proto = onnx.load(large[1])
    change(proto)
    path = tmp_path / "wrong.onnx"
    onnx.save(proto, path)
    verdict = groupfx.validate(large[0], path, (LARGE,))
    assert verdict.verdict == "different"
    kinds = [check.kind for check in verdict.operators if not check.ok]
    assert kinds == ["LeakyRelu" if change is _leaky else "Clip"]


def _graph(path: Path, kind: str, constant: tuple[int, ...] | None = None) -> OnnxGraph:
    """One operator of `x`, and a constant where it takes one."""
    read = ["x"] if constant is None else ["x", "c"]
    node = helper.make_node(kind, read, ["y"], "op")
    held: Mapping[str, Any] = {} if constant is None else {"c": numbers(*constant)}
    sizes = (1, 2, 40, 50)
    write(path, [node], [value("x", sizes)], [value("y", None)], held)
    return OnnxGraph(ir.load(path))


def _sampled(graph: OnnxGraph, x: np.ndarray) -> Inputs:
    piece = Piece(("y", "y"), graph.operators, graph.operators, (("x", "x"),))
    sides = side_function(graph, piece, 0), side_function(graph, piece, 1)
    return sampled(piece, {"x": x}, sides)


@pytest.mark.parametrize(
    ("kind", "constant", "few"),
    [
        ("Relu", None, True),
        ("Mul", (2, 1, 1), True),
        ("Mul", (40, 50), False),
        ("Mul", (1, 50), False),
        ("Softmax", None, False),
        ("GlobalAveragePool", None, False),
    ],
)
def test_elementwise_operators_are_looked_at_in_some_places(
    kind: str, constant: tuple[int, ...] | None, few: bool, tmp_path: Path
) -> None:
    x = numbers(1, 2, 40, 50).astype(np.float64)
    x[0, 1, 13, 29], x[0, 0, 31, 17] = 1e3, -1e3
    found = _sampled(_graph(tmp_path / "one.onnx", kind, constant), x)["x"]
    assert (found.size < x.size / 10) == few
    assert found.max() == 1e3
    assert found.min() == -1e3


@pytest.mark.parametrize("room", [1 << 20, 0])
def test_values_are_computed_once_where_there_is_room(
    room: int, large: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(value_graph, "_MOST_KEPT", room)
    graph = OnnxGraph(ir.load(large[1]))
    ran: list[Operator] = []
    run = graph.run

    def counted(operator: Operator, values: Any, jitter: Any) -> Any:
        ran.append(operator)
        return run(operator, values, jitter)

    monkeypatch.setattr(graph, "run", counted)
    (name,) = graph.inputs
    feeds = {name: LARGE.numpy()}
    value_sketches(graph, [feeds])
    assert len(ran) == len(graph.operators)
    names = [n for op in graph.operators for n in op.outputs]
    first = graph.values_at(names, feeds)
    again = len(ran) - len(graph.operators)
    assert (again == 0) == bool(room)
    monkeypatch.setattr(value_graph, "_MOST_KEPT", 0)
    fresh = OnnxGraph(ir.load(large[1])).values_at(names, feeds)
    for each in names:
        np.testing.assert_array_equal(first[each], fresh[each])


def test_what_is_put_in_place_is_seen_behind_it(large: tuple[nn.Module, Path]) -> None:
    graph = OnnxGraph(ir.load(large[1]))
    (name,) = graph.inputs
    feeds = {name: LARGE.numpy()}
    value_sketches(graph, [feeds])
    relu = next(op for op in graph.operators if op.kind == "Relu")
    end = graph.operators[-1].outputs[0]
    plain, zeros = graph.values_at([relu.outputs[0], end], feeds), {}
    inside = plain[relu.outputs[0]]
    assert inside is not None
    for op, values in graph.forward(feeds, {relu.outputs[0]: np.zeros_like(inside)}):
        zeros = {each: values[each] for each in op.outputs}
    assert not np.array_equal(zeros[end], plain[end])
    np.testing.assert_array_equal(graph.values_at([end], feeds)[end], plain[end])
