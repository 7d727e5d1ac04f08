"""Layers that learned their groups, frozen in every form, and discovered groups, in ONNX files."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import groupfx
from groupfx.nn import Flgc2d
from tests.deploy.exported_model import (
    LEVELS,
    assert_clean,
    assert_computes,
    convs_of,
    operators,
    run_onnx,
)
from tests.models.frozen_cases import FORMS, Layer, mask_of, with_batchnorm

# Seven inputs, eleven filters: unequal blocks.
IN = tuple("bacabcb")
OUT = tuple("abbcabcaabc")

LAYERS: dict[str, Layer] = {
    "unequal": Layer(IN, OUT),
    "pointwise-no-bias": Layer(IN, OUT, {"kernel_size": 1, "bias": False}),
    "ties": Layer(("ab", "b", "abc", "c", "a", "d", "a"), ("ab", "abc", *OUT[2:])),
    "unread-inputs": Layer(("d", "e", "a", "b", "d", "a", "b"), tuple("abbab")),
    "unread-at-the-end": Layer(tuple("aabbd"), tuple("aabbb")),
    "bias-only": Layer(IN, ("d", *OUT[1:5], "d", "e", *OUT[7:])),
    "bias-only-no-bias": Layer(IN, ("d", *OUT[1:5], "d", *OUT[6:]), {"bias": False}),
    "all-empty": Layer(tuple("abcab"), tuple("ddede")),
    "one-block": Layer(tuple("bbbbb"), tuple("bbb")),
    "depthwise-permuted": Layer(tuple("abcde"), tuple("cbeda")),
    "shuffled": Layer(tuple("abcabc"), tuple("abcabcabc")),
    "padded-in-order": Layer(tuple("aaabb"), tuple("aabbb")),
    "strided-1d": Layer(IN, OUT, {"stride": 2, "padding": 2, "dilation": 2}, dims=1),
    "replicate-1d": Layer(IN, OUT, {"padding": 1, "padding_mode": "replicate"}, dims=1),
    "3d": Layer(IN, OUT, {"kernel_size": (1, 2, 3), "padding": (0, 1, 2)}, dims=3),
}
QUICK = (
    *(("ties", "bucketed"), ("unread-at-the-end", "split"), ("bias-only", "padded")),
    *(("strided-1d", "auto"), ("all-empty", "dense")),
)
TABLE = [
    pytest.param(
        layer, form, id=f"{name}-{form}", marks=() if (name, form) in QUICK else pytest.mark.long
    )
    for name, layer in LAYERS.items()
    for form in FORMS
]


def magnitudes(case: Layer, module: nn.Module, x: Tensor) -> Tensor:
    """|b| + |W M| * |x|, in float64: what rounding errors are relative to."""
    with torch.no_grad():
        bias = module.conv.bias
        twin = case.build()
        twin.conv.weight.copy_(module.conv.weight.abs())
        if bias is not None:
            twin.conv.bias.copy_(bias.abs())
        return case.expected(twin, x.abs())


def assert_rounding_only(path: Path, case: Layer, module: nn.Module, x: Tensor) -> None:
    """A sum of n products, in whatever order, is off by at most gamma_n times its magnitudes.

    n u / (1 - n u), with a rounding of each weight that a tie doubled, and one of the bias.
    """
    taps = math.prod(module.conv.kernel_size) * len(case.inputs) + 3
    unit = 2.0**-24
    limit = (taps * unit / (1 - taps * unit)) * magnitudes(case, module, x).numpy()
    expected = case.expected(module, x).detach().numpy()
    for level in LEVELS:
        found = run_onnx(path, x, optimised=level)[0]
        assert found.shape == expected.shape
        assert (np.abs(found - expected) <= limit).all()


@pytest.mark.parametrize(("case", "form"), TABLE)
def test_every_structure_in_every_form(case: Layer, form: Any, tmp_path: Path) -> None:
    layer, x, path = case.build().eval(), case.example(), tmp_path / "m.onnx"
    passes = [f"freeze-learned-groups:form={form}"]
    result = groupfx.rewrite(nn.Sequential(layer), x, passes=passes)
    export = groupfx.export(result, None, path)
    (site,) = result.report.sites
    (convs,) = convs_of(path).values()
    assert len(convs) == site.branches
    assert [(entry.name, entry.convs) for entry in export.sites] == [(site.name, site.branches)]
    if form in ("split", "dense"):
        assert {conv.groups for conv in convs} == {1}
    if len(convs) > 1:
        assert [conv.position for conv in convs] == list(range(len(convs)))
    assert_clean(path)
    assert_rounding_only(path, case, layer, torch.cat([x, -x, x[:1] * 3]))
    verdict = groupfx.validate(nn.Sequential(layer), path, x)
    assert verdict.ok, verdict.blame


@pytest.mark.parametrize(
    "form", [pytest.param(f, marks=() if f == "split" else pytest.mark.long) for f in FORMS]
)
@pytest.mark.parametrize("name", ["bias-only", pytest.param("ties", marks=pytest.mark.long)])
def test_a_batchnorm_behind_is_folded(name: str, form: str, tmp_path: Path) -> None:
    case, path = LAYERS[name], tmp_path / "m.onnx"
    model, x = with_batchnorm(case.build(), len(case.outputs)).eval(), case.example()
    result = groupfx.rewrite(model, x, passes=[f"freeze-learned-groups:form={form}"])
    groupfx.export(result, None, path)
    assert "BatchNormalization" not in operators(path)
    assert len(convs_of(path)["0"]) == result.report.sites[0].branches
    assert_clean(path)
    assert_computes(path, model, x)
    verdict = groupfx.validate(model, path, x)
    assert verdict.ok, verdict.blame


def test_the_oracle_sees_a_wrong_group(tmp_path: Path) -> None:
    case, path = LAYERS["unequal"], tmp_path / "m.onnx"
    layer, x = case.build().eval(), case.example()
    groupfx.export(nn.Sequential(layer), x, path)
    assert_rounding_only(path, case, layer, x)
    wrong = Layer(("a", *IN[1:]), OUT)
    with pytest.raises(AssertionError):
        assert_rounding_only(path, wrong, layer, x)


class LearningTwice(nn.Module):
    """One learning layer at two sites."""

    def __init__(self, case: Layer) -> None:
        super().__init__()
        self.layer = case.build()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class LearningTwiceUntraced(LearningTwice):
    """The same with a question that no symbolic trace takes: its modules are swapped."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 7:
            raise ValueError("wants 7 channels")
        return super().forward(x)


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        pytest.param(LearningTwice, "bucketed", id="trace-bucketed"),
        pytest.param(LearningTwice, "split", id="trace-split", marks=pytest.mark.long),
        pytest.param(
            LearningTwiceUntraced, "bucketed", id="modules-bucketed", marks=pytest.mark.long
        ),
        pytest.param(LearningTwiceUntraced, "split", id="modules-split"),
    ],
)
def test_a_layer_that_is_called_twice(kind: type[LearningTwice], form: str, tmp_path: Path) -> None:
    case = Layer(IN, tuple("abbcabc"), {"padding": 1})
    model, x, path = kind(case).eval(), torch.randn(2, 7, 9, 8), tmp_path / "m.onnx"
    result = groupfx.rewrite(model, x, passes=[f"freeze-learned-groups:form={form}"])
    assert result.report.way == ("trace" if kind is LearningTwice else "modules")
    groupfx.export(result, None, path)
    sites = convs_of(path)
    assert list(sites) == ["layer", "layer#2"]
    assert {len(convs) for convs in sites.values()} == {result.report.sites[0].branches}
    assert "Softmax" not in operators(path)
    assert_clean(path)
    assert_computes(path, model, x)
    verdict = groupfx.validate(model, path, x)
    assert verdict.ok, verdict.blame


@pytest.mark.long
def test_a_frozen_file_gives_the_same_bytes(tmp_path: Path) -> None:
    case = LAYERS["bias-only"]
    model, x = with_batchnorm(case.build(), len(case.outputs)).eval(), case.example()
    result = groupfx.rewrite(model, x, passes=["freeze-learned-groups:form=bucketed"])
    result.save(tmp_path / "saved.pt")
    texts = []
    for number, source in enumerate((result, result.model, groupfx.load(tmp_path / "saved.pt"))):
        path = tmp_path / f"{number}.onnx"
        groupfx.export(source, x, path)
        texts.append(path.read_bytes())
    assert texts[0] == texts[1]
    assert texts[0] == texts[2]


@pytest.mark.parametrize("passes", [None, ["freeze-learned-groups"]], ids=["learning", "frozen"])
def test_scores_that_tie_in_float16_do_not_change_the_groups(
    passes: list[str] | None, tmp_path: Path
) -> None:
    case = Layer(tuple("abab"), tuple("aabba"), number=2)
    layer, path = case.build().eval(), tmp_path / "m.onnx"
    assert isinstance(layer, Flgc2d)
    with torch.no_grad():
        for name, table in layer.named_parameters():
            if name.endswith("_map"):
                table.copy_(torch.where(table == table.max(1, True).values, 1 + 2**-13, 1.0))
                assert (table.half() == 1).all()
    x = torch.randn(2, 4, 9, 8).half()
    groupfx.export(nn.Sequential(layer), x.float(), path, dtype="float16", passes=passes)
    expected = case.expected(layer, x).detach().numpy()
    found = run_onnx(path, x)[0]
    assert found.dtype == np.float16
    assert np.abs(found - expected).max() < 2**-7 * np.abs(expected).max()
    tied = Layer(("ab",) * 4, ("ab",) * 5, number=2).expected(layer, x).detach().numpy()
    assert np.abs(tied - expected).max() > 0.1 * np.abs(expected).max()


# Discovered groups


@pytest.mark.parametrize("form", ["bucketed", pytest.param("split", marks=pytest.mark.long)])
def test_discovered_groups_are_exported_as_planned(form: str, tmp_path: Path) -> None:
    conv = nn.Conv2d(7, 11, 3)
    with torch.no_grad():
        conv.weight.mul_((mask_of(IN, OUT) != 0)[:, :, None, None])
    model = nn.Sequential(conv, nn.BatchNorm2d(11), nn.ReLU()).eval()
    x, path = torch.randn(2, 7, 9, 8), tmp_path / "m.onnx"
    result = groupfx.rewrite(model, x, passes=[f"discover-groups:form={form}"])
    export = groupfx.export(result, None, path)
    (site,) = result.report.sites
    convs = convs_of(path)[site.name]
    assert site.branches > 1
    assert [conv.position for conv in convs] == list(range(site.branches))
    assert export.sites[0].convs == site.branches
    weights = 9 * (2 * 4 + 3 * 4 + 2 * 3)
    held = sum(math.prod(shape) for shape in weight_shapes(path))
    assert held == weights
    assert_clean(path)
    assert_computes(path, model, x)
    verdict = groupfx.validate(model, path, x)
    assert verdict.ok, verdict.blame


def weight_shapes(path: Path) -> list[tuple[int, ...]]:
    """The shapes of the weights of the convolutions of a file."""
    graph = onnx.load(path).graph
    held = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    return [held[node.input[1]] for node in graph.node if node.op_type == "Conv"]
