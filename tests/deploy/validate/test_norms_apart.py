"""A BatchNorm that an export folds, though it looks otherwise in the model.

It stands behind what passes a value on, which is left out, or its statistics are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

import groupfx

PASSED: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda y: F.dropout(y, 0.5, False),
    "dropout of maps": lambda y: F.feature_alpha_dropout(y, 0.5, False),
    "clone": torch.clone,
    "the dtype that it has": lambda y: y.to(torch.float32),
    "the shape that it has": lambda y: y.reshape(y.shape),
    "two of them": lambda y: F.dropout(y.clone(), 0.5, False),
}


class NormsApart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 1, groups=2) for _ in PASSED)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in PASSED)
        for norm in self.norms:
            assert isinstance(norm, nn.BatchNorm2d)
            nn.init.uniform_(norm.weight, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        for conv, passed, norm in zip(self.convs, PASSED.values(), self.norms, strict=True):
            x = norm(passed(conv(x)))
        return x


def scaled(path: Path, name: str) -> None:
    """One weight of the file, changed."""
    model = onnx.load(path)
    held = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(held) * np.float32(1.001)
    held.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, path)


def test_a_norm_that_was_folded_is_compared_with_the_norm(tmp_path: Path) -> None:
    model, x, place = NormsApart().eval(), torch.randn(2, 4, 3, 5), tmp_path / "m.onnx"
    groupfx.export(model, x, place)
    convs = [node for node in onnx.load(place).graph.node if node.op_type == "Conv"]
    assert len(convs) == len(onnx.load(place).graph.node) == len(PASSED)
    check = groupfx.validate(model, place, x)
    assert check.ok
    assert len(check.sites) == len(PASSED)
    scaled(place, convs[2].input[1])
    wrong = groupfx.validate(model, place, x)
    assert wrong.worst_site is not None
    assert (wrong.ok, wrong.worst_site.name) == (False, "convs.2")


class NormsOfComputed(nn.Module):
    """Statistics that no input bears on: made anew, and computed of what is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 1, groups=2) for _ in range(3))
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("log_variance", torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.convs
        x = F.batch_norm(first(x), torch.zeros(4), torch.ones(4), eps=0.5)
        x = F.batch_norm(second(x), torch.zeros_like(self.mean), self.log_variance.exp())
        return F.batch_norm(third(x), self.mean, self.mean.abs(), weight=self.log_variance + 1)


def test_statistics_that_are_computed_are_those_of_the_norm(tmp_path: Path) -> None:
    model, x, place = NormsOfComputed().eval(), torch.randn(2, 4, 3, 5), tmp_path / "m.onnx"
    groupfx.export(model, x, place)
    convs = [node for node in onnx.load(place).graph.node if node.op_type == "Conv"]
    check = groupfx.validate(model, place, x)
    assert check.ok, check.blame
    assert [site.ok for site in check.sites] == [True] * 3
    scaled(place, convs[1].input[1])
    wrong = groupfx.validate(model, place, x)
    assert wrong.worst_site is not None
    assert (wrong.ok, wrong.worst_site.name) == (False, "convs.1")


_FILE = """
    <ir_version: 9, opset_import: ["" : 18]>
    g (float[2,2,3,3] x) => (float[2,2,3,3] y)
    <float[2,1,1,1] w = {{3, 5}}, float[2] one = {{1, 1}}, float[2] none = {{0, 0}},
     float[2] twice = {{2, 2}}, float[2] b = {{0, 0}}>
    {{ {body} }}
"""
_NORM = "y = BatchNormalization <epsilon: float = 0.0> ({}, twice, none, none, one)"
IN_FILES = ["Identity (c)", "Dropout (c)", "Cast <to: int = 1> (c)"]


@pytest.mark.parametrize("passed", IN_FILES)
def test_a_file_with_the_norm_apart_is_one_with_it_folded(tmp_path: Path, passed: str) -> None:
    conv = "c = Conv <group: int = 2> (x, w, b)"
    apart = onnx.parser.parse_model(_FILE.format(body=f"{conv} d = {passed} {_NORM.format('d')}"))
    apart = onnx.shape_inference.infer_shapes(apart)
    folded = onnx.parser.parse_model(_FILE.format(body=conv.replace("c =", "y =")))
    onnx.save(apart, tmp_path / "apart.onnx")
    for factor, same in ((2, True), (2.001, False)):
        held = folded.graph.initializer[0]
        values = np.array([3, 5], np.float32).reshape(2, 1, 1, 1) * np.float32(factor)
        held.CopyFrom(numpy_helper.from_array(values, "w"))
        onnx.save(folded, tmp_path / "folded.onnx")
        check = groupfx.validate(tmp_path / "apart.onnx", tmp_path / "folded.onnx")
        assert check.ok == same
        assert [site.ok for site in check.sites] == [same]
