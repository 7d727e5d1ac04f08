"""A split of thousands of groups: what grows with its square is left out, and said."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import groupfx
from groupfx.deploy.validate import matching, opinions


def grouped_file(path: Path, groups: int) -> Path:
    weight = np.random.default_rng(0).standard_normal((2 * groups, 2, 1, 1)).astype(np.float32)
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2 * groups, 2, 2])
        for name in "xy"
    ]
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="c", group=groups)
    tensors = [numpy_helper.from_array(weight, "w")]
    graph = helper.make_graph([node], "g", values[:1], values[1:], tensors)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_a_file_that_takes_minutes_to_optimise_is_run_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = grouped_file(tmp_path / "net.onnx", 7)
    usual = groupfx.rewrite_onnx(path, None).validation
    assert usual is not None
    assert opinions.ON in usual.runtimes
    monkeypatch.setattr(opinions, "_MOST_OPTIMISED", 6)
    many = groupfx.rewrite_onnx(path, None).validation
    assert many is not None
    assert many.ok
    assert opinions.ON not in many.runtimes
    assert any("a file of 7 convolutions: it was run without them" in n for n in many.notes)


def test_more_branches_than_a_walk_may_take_end_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    expand = matching._Walk._expand

    def counting(walk: matching._Walk, side: int, name: str) -> bool:
        steps.append(name)
        return expand(walk, side, name)

    monkeypatch.setattr(matching._Walk, "_expand", counting)
    monkeypatch.setattr(matching, "_MOST_OPERATORS", 20)
    found = groupfx.rewrite_onnx(grouped_file(tmp_path / "net.onnx", 64), None).validation
    assert found is not None
    assert found.ok
    assert 0 < len(steps) < 20
