"""A BatchNorm that a fold of permutations has brought behind a convolution is not the site's."""

from pathlib import Path

import onnx_ir as ir
import torch
from torch import nn

import groupfx
from groupfx.deploy.graph.metadata import mark_of
from groupfx.passes import FoldPermutations
from tests.models.zoo import give_statistics


def test_a_norm_behind_a_shuffle_that_is_gone_is_judged_apart(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 12, 3),
        nn.ChannelShuffle(3),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 5, 1),
    ).eval()
    give_statistics(model)
    x, path = torch.randn(2, 4, 9, 7), tmp_path / "m.onnx"
    result = groupfx.rewrite(model, (x,), passes=[FoldPermutations()])
    groupfx.export(result, (x,), path)
    kinds = [node.op_type for node in ir.load(path).graph]
    assert "BatchNormalization" in kinds
    check = groupfx.validate(model, path, (x,))
    assert check.ok, check.blame
    assert {site.name for site in check.sites} == {"0", "4"}


def test_a_wrong_weight_of_it_is_named(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(4, 12, 3), nn.ChannelShuffle(3), nn.BatchNorm2d(12)).eval()
    model.append(nn.Conv2d(12, 5, 1))
    x, path = torch.randn(2, 4, 9, 7), tmp_path / "m.onnx"
    groupfx.export(groupfx.rewrite(model, (x,), passes=[FoldPermutations()]), (x,), path)
    file = ir.load(path)
    conv = next(n for n in file.graph if (mark := mark_of(n)) is not None and mark.site == "0")
    weight = conv.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy()[::-1].copy(), name=weight.name)
    ir.save(file, path)
    check = groupfx.validate(model, path, (x,))
    assert not check.ok
    assert check.worst_site is not None
    assert check.worst_site.name == "0"


def test_the_report_as_text_tells_of_the_fold() -> None:
    model = nn.Sequential(nn.Conv2d(4, 12, 3), nn.ChannelShuffle(3), nn.Conv2d(12, 5, 1)).eval()
    result = groupfx.rewrite(model, torch.randn(2, 4, 9, 7), passes=[FoldPermutations()])
    assert str(result.report).startswith("No site to rewrite.\npermutations: 1 -> 0")
