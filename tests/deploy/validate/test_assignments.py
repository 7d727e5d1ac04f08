"""Values that are written into others: honest files pass, and a wrong one of the kind is named.

`torch.export` takes the slice that is written to once for each use, and a file takes it once; that
it is written is ScatterND between Transposes, whose values the reference has nowhere.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

import groupfx
from groupfx.deploy import Validation

Written = Callable[["_Writing", Tensor], Tensor]


class _Writing(nn.Module):
    """A grouped convolution of what `written` makes of x [N, 6, 8, 8]."""

    def __init__(self, written: Written) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 3, 3, padding=1)
        self.last = nn.Conv2d(6, 6, 3, padding=1, groups=3)
        self.written = written

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.written(self, x))
        return y


def _convolved(model: _Writing, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :3] = model.inner(y[:, :3])
    return y


def _of_another(model: _Writing, x: Tensor) -> Tensor:
    """What is written comes from the value of which this is a copy."""
    x = x.relu()
    y = x.clone()
    y[:, :3] = model.inner(x[:, :3])
    return y + x


def _shifted(model: _Writing, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:-1, :2], y[1:, 2:4], y[:, 4:] = x[1:, :2], x[:-1, 2:4], x[:, 4:]
    return y


def _one(model: _Writing, x: Tensor) -> Tensor:
    y = x.relu()
    y[:, 0] = x[:, 1]
    return y


def _inside(model: _Writing, x: Tensor) -> Tensor:
    y = x.relu()
    y[:, :3, 2:5, 1:4] = model.inner(x[:, :3, 2:5, 1:4])
    return y


def _unpooled(model: _Writing, x: Tensor) -> Tensor:
    """To the places that a pool has found: the file says them of all planes, torch of each."""
    y, places = F.max_pool2d(model.inner(x[:, :3]), 2, return_indices=True)
    return torch.cat([F.max_unpool2d(y, places, [2, 2]), x[:, 3:]], 1)


def exported(written: Written, path: Path) -> tuple[_Writing, tuple[Tensor]]:
    torch.manual_seed(0)
    model, inputs = _Writing(written).eval(), (torch.randn(2, 6, 8, 8),)
    groupfx.export(model, inputs, path)
    return model, inputs


def said(written: Written, path: Path, spoil: Callable[[onnx.GraphProto], None]) -> Validation:
    """Of a file that was spoilt."""
    model, inputs = exported(written, path)
    proto = onnx.load(path)
    spoil(proto.graph)
    onnx.save(proto, path)
    return groupfx.validate(model, path, inputs)


@pytest.mark.parametrize(
    "written",
    [
        _convolved,
        _unpooled,
        pytest.param(_of_another, marks=pytest.mark.long),
        pytest.param(_shifted, marks=pytest.mark.long),
        pytest.param(_one, marks=pytest.mark.long),
        pytest.param(_inside, marks=pytest.mark.long),
    ],
)
def test_a_written_slice_is_the_same(written: Written, tmp_path: Path) -> None:
    model, inputs = exported(written, tmp_path / "model.onnx")
    verdict = groupfx.validate(model, tmp_path / "model.onnx", inputs)
    assert verdict.ok, verdict.blame
    assert verdict.operators


def _adds(graph: onnx.GraphProto) -> None:
    """Writes what is to be written on top of what is there."""
    inner = next(node for node in graph.node if node.op_type == "ScatterND")
    del inner.attribute[:]
    inner.attribute.append(onnx.helper.make_attribute("reduction", "add"))


def _elsewhere(graph: onnx.GraphProto) -> None:
    """Writes to the next channels: their numbers are 1 larger."""
    inner = next(node for node in graph.node if node.op_type == "ScatterND")
    place = list(graph.node).index(inner)
    graph.initializer.append(numpy_helper.from_array(np.array(1), "one"))
    graph.node.insert(place, onnx.helper.make_node("Add", [inner.input[1], "one"], ["next"], "off"))
    inner.input[1] = "next"


def _first_place(graph: onnx.GraphProto) -> None:
    """The places of a pool are those of the pool of the opposite numbers."""
    pool = next(node for node in graph.node if len(node.output) == 2)
    place = list(graph.node).index(pool)
    graph.node.insert(place, onnx.helper.make_node("Neg", [pool.input[0]], ["opposite"], "off"))
    graph.node.insert(place + 1, pool)
    graph.node[place + 1].input[0], graph.node[place + 1].output[0] = "opposite", "unused"
    graph.node[place + 1].name = "opposite"
    pool = graph.node[place + 2]
    del pool.output[1]


def test_places_of_a_pool_that_are_others_are_seen(tmp_path: Path) -> None:
    verdict = said(_unpooled, tmp_path / "model.onnx", _first_place)
    assert verdict.verdict == "different"
    assert "the operator Neg off" in str(verdict.blame)
    assert all(site.ok for site in verdict.sites)


@pytest.mark.parametrize("spoil", [_adds, pytest.param(_elsewhere, marks=pytest.mark.long)])
def test_what_is_written_wrongly_is_named(
    spoil: Callable[[onnx.GraphProto], None], tmp_path: Path
) -> None:
    verdict = said(_convolved, tmp_path / "model.onnx", spoil)
    assert verdict.verdict == "different"
    assert [str(check) for check in verdict.operators if not check.ok]
    assert "the operator ScatterND" in str(verdict.blame)
    assert all(site.ok for site in verdict.sites)
