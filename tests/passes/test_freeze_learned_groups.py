"""Freezing: every structure of groups in every form, against a masked convolution written here."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import groupfx
from groupfx.nn import ChannelGather, ChannelShuffle, ChannelTranspose
from groupfx.passes import FreezeLearnedGroups
from groupfx.testing import check_pass
from tests.models.frozen_cases import FORMS, Layer, assert_close, run64, with_batchnorm
from tests.thinning import one_in

# Seven inputs, eleven filters: unequal blocks.
IN = tuple("bacabcb")
OUT = tuple("abbcabcaabc")

CASES: dict[str, Layer] = {
    "unequal": Layer(IN, OUT),
    "no-bias": Layer(IN, OUT, {"bias": False}),
    "pointwise": Layer(IN, OUT, {"kernel_size": 1}),
    "tied-inputs": Layer(("ab", *IN[1:]), OUT),
    "tied-filters": Layer(IN, ("ab", *OUT[1:])),
    "ties-entry-2": Layer(("ab", "b", "abc", "c", "a", "d", "a"), ("ab", "abc", *OUT[2:])),
    "all-tied": Layer(("abcde",) * 5, ("abcde",) * 3),
    "tied-to-an-empty-group": Layer(("ad", *IN[1:]), ("ae", *OUT[1:])),
    "group-without-filters": Layer(("d", "e", "a", "b", "d", "a", "b"), OUT),
    "group-without-inputs": Layer(IN, ("d", *OUT[1:5], "d", "e", *OUT[7:])),
    "group-without-inputs-no-bias": Layer(IN, ("d", *OUT[1:5], "d", *OUT[6:]), {"bias": False}),
    "all-empty": Layer(tuple("abcab"), tuple("ddede")),
    "all-empty-strided": Layer(tuple("abcab"), tuple("dde"), {"stride": 2, "bias": False}),
    "one-block": Layer(tuple("bbbbb"), tuple("bbb")),
    "one-block-and-dead": Layer(tuple("bbcbb"), tuple("bbb")),
    "depthwise": Layer(tuple("abcde"), tuple("abcde")),
    "depthwise-permuted": Layer(tuple("abcde"), tuple("cbeda")),
    "more-groups-than-channels": Layer(tuple("bkg"), tuple("kgbgk"), number=13),
    "nan-input": Layer(("-", *IN[1:]), OUT),
    "nan-filter": Layer(IN, ("-", *OUT[1:])),
    "one-channel": Layer(("a",), ("a",)),
    "equal-gathered": Layer(tuple("bacacb"), tuple("acbbcaabc")),
    "equal-in-order": Layer(tuple("aabbcc"), tuple("aaabbbccc")),
    "equal-shuffled": Layer(tuple("abcabc"), tuple("abcabcabc")),
    "padded-in-order": Layer(tuple("aaabb"), tuple("aabbb")),
}

FIELDS: dict[str, Layer] = {
    "stride": Layer(IN, OUT, {"stride": (2, 3)}),
    "dilation": Layer(IN, OUT, {"dilation": (2, 1)}),
    "asymmetric-padding": Layer(IN, OUT, {"padding": (3, 1), "kernel_size": (4, 3)}),
    "rectangular": Layer(IN, OUT, {"kernel_size": (1, 4)}),
    "same": Layer(IN, OUT, {"kernel_size": (4, 3), "padding": "same"}),
    "valid": Layer(IN, OUT, {"padding": "valid"}),
    "reflect": Layer(IN, OUT, {"padding": (2, 1), "padding_mode": "reflect"}),
    "circular-same": Layer(IN, OUT, {"padding": "same", "padding_mode": "circular"}),
    "1d": Layer(IN, OUT, {"stride": 2, "padding": 2, "dilation": 2}, dims=1),
    "1d-replicate": Layer(IN, OUT, {"padding": 1, "padding_mode": "replicate"}, dims=1),
    "3d": Layer(IN, OUT, {"kernel_size": (1, 2, 3), "padding": (0, 1, 2)}, dims=3),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_structure_in_every_form_is_the_masked_convolution(case: Layer, form: Any) -> None:
    layer = case.build().eval()
    x = case.example()
    result = check_pass(FreezeLearnedGroups(form=form), nn.Sequential(layer), x, sites=1, skipped=0)
    assert_close(run64(result.model, x), case.expected(layer, x))
    for module in result.model.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            assert min(module.in_channels, module.out_channels, module.groups) > 0


@pytest.mark.parametrize("form", ["auto", "padded"])
@pytest.mark.parametrize("case", FIELDS.values(), ids=FIELDS)
def test_every_field_of_the_convolution_is_kept(case: Layer, form: Any) -> None:
    test_every_structure_in_every_form_is_the_masked_convolution(case, form)


@pytest.mark.parametrize("form", one_in(3, FORMS))
@pytest.mark.parametrize(
    "case",
    [
        (CASES | FIELDS)[name]
        for name in ("unequal", "ties-entry-2", "group-without-inputs", "all-empty", "1d", "3d",
                     "equal-gathered", "equal-shuffled", "padded-in-order", "nan-filter")
    ],
)  # fmt: skip
def test_a_batchnorm_goes_along(case: Layer, form: Any) -> None:
    layer = case.build()
    model = with_batchnorm(layer, len(case.outputs), case.dims).eval()
    x = case.example()
    check_pass(FreezeLearnedGroups(form=form), model, x, sites=1)
    result = check_pass(FreezeLearnedGroups(form=form), model.train(), x, sites=1)
    expected = model[1].double().eval()(case.expected(layer, x))
    assert_close(run64(result.model, x), expected.detach())
    norms = [m for m in result.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert sum(norm.num_features for norm in norms) == len(case.outputs)


@pytest.mark.parametrize(
    ("name", "convs"),
    [
        ("unequal", [(2, 4, 1), (3, 4, 1), (2, 3, 1)]),
        ("equal-in-order", [(6, 9, 3)]),
        ("equal-shuffled", [(6, 9, 3)]),
        ("equal-gathered", [(6, 9, 3)]),
        ("depthwise", [(5, 5, 5)]),
        ("depthwise-permuted", [(5, 5, 5)]),
        ("one-block", [(5, 3, 1)]),
        ("one-block-and-dead", [(4, 3, 1)]),
        ("all-empty", [(5, 5, 1)]),
        ("one-channel", [(1, 1, 1)]),
    ],
)
def test_auto_emits_these_convolutions(name: str, convs: list[tuple[int, int, int]]) -> None:
    case = CASES[name]
    result = groupfx.rewrite(
        nn.Sequential(case.build()), (case.example(),), passes=["freeze-learned-groups"]
    )
    found = [
        (m.in_channels, m.out_channels, m.groups)
        for m in result.model.modules()
        if isinstance(m, nn.Conv2d)
    ]
    assert sorted(found) == sorted(convs)


def gathers(model: nn.Module) -> list[str]:
    kinds = (ChannelGather, ChannelShuffle, ChannelTranspose)
    return [type(m).__name__ for m in model.modules() if isinstance(m, kinds)]


GATHERS: dict[str, tuple[str, str, list[str]]] = {
    "in-order": ("aabbcc", "aaabbbccc", []),
    "both-shuffled": ("abcabc", "abcabcabc", ["ChannelShuffle", "ChannelShuffle"]),
    "inputs-shuffled": ("abcabc", "aaabbbccc", ["ChannelShuffle"]),
    "outputs-shuffled": ("aabbcc", "abcabcabc", ["ChannelShuffle"]),
    "blocks-in-another-order": ("ccaabb", "cccaaabbb", []),
    "depthwise": ("bcade", "bcade", []),
    "inputs-irregular": ("abcacb", "aaabbbccc", ["ChannelGather"]),
    "both-irregular": ("abcacb", "abcacbbca", ["ChannelGather", "ChannelGather"]),
    # The group is in bits 2 and 0 of the channel, which no rotation of the bits brings together.
    "bit-permuted": ("ababcdcd" * 2, "ababcdcd" * 2, ["ChannelTranspose", "ChannelTranspose"]),
}


@pytest.mark.parametrize(("inputs", "outputs", "kinds"), GATHERS.values(), ids=GATHERS)
def test_gathers_are_shuffles_or_nothing_where_they_can_be(
    inputs: str, outputs: str, kinds: list[str]
) -> None:
    case = Layer(tuple(inputs), tuple(outputs), number=6)
    layer = case.build().eval()
    x = case.example()
    result = check_pass(FreezeLearnedGroups(), nn.Sequential(layer), x, sites=1)
    assert gathers(result.model) == kinds
    assert_close(run64(result.model, x), case.expected(layer, x))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_other_precisions(dtype: torch.dtype, form: Any) -> None:
    case = CASES["ties-entry-2"]
    layer = case.build().to(dtype).eval()
    x = case.example()
    model = with_batchnorm(layer, len(case.outputs)).to(dtype).eval()
    result = check_pass(FreezeLearnedGroups(form=form), model, x.to(dtype), sites=1)
    expected = model[1].double()(case.expected(layer, x.to(dtype)))
    assert_close(run64(result.model, x.to(dtype)), expected.detach())


def test_scores_that_tie_in_half_precision_alone_are_decided_in_float32() -> None:
    """The two scores differ in half precision, but a half softmax would not tell them apart."""
    case = CASES["unequal"]
    layer = case.build()
    with torch.no_grad():
        scores = layer.in_channels_in_group_assignment_map
        scores[0] = torch.tensor([0.001, 0.0012, -4, -4, -4])
    layer.half().eval()
    probabilities = layer.in_channels_in_group_assignment_map[0].softmax(0)
    assert probabilities[0] == probabilities[1]
    result = check_pass(FreezeLearnedGroups(), nn.Sequential(layer), case.example().half(), sites=1)
    assert "ties" not in " ".join(result.report.sites[0].notes)


def test_two_scores_that_float32_softmax_makes_equal_are_a_tie() -> None:
    case, tied = CASES["unequal"], Layer(("ab", *IN[1:]), OUT)
    layer = case.build()
    with torch.no_grad():
        row = layer.in_channels_in_group_assignment_map.detach()[0]
        row[:] = torch.tensor([0.001, 0.001, -4, -4, -4])
        row[1] = torch.nextafter(row[1], torch.tensor(1.0))
    assert row[0] != row[1]
    assert row.softmax(0)[0] == row.softmax(0)[1]
    x = case.example()
    result = check_pass(FreezeLearnedGroups(), nn.Sequential(layer), x, sites=1)
    assert_close(run64(result.model, x), tied.expected(layer, x))
    assert "some inputs are in several blocks" in result.report.sites[0].notes


@pytest.mark.parametrize("form", ["auto", "padded"])
def test_many_groups_and_prime_channels(form: Any) -> None:
    torch.manual_seed(4)
    layer = groupfx.nn.Flgc2d(263, 211, 1, group_num=300).eval()
    x = torch.randn(2, 263, 3, 2)
    result = check_pass(FreezeLearnedGroups(form=form), nn.Sequential(layer), x, sites=1)
    maps = layer.in_channels_in_group_assignment_map, layer.out_channels_in_group_assignment_map
    inputs, outputs = (table.argmax(1) for table in maps)
    mask = (outputs[:, None] == inputs[None, :]).double()
    weight = layer.conv.weight.detach().double() * mask[:, :, None, None]
    expected = torch.nn.functional.conv2d(x.double(), weight, layer.conv.bias.detach().double())
    assert_close(run64(result.model, x), expected)
    assert result.report.sites[0].macs_after >= int(mask.sum()) * 6


def test_exact_macs_are_the_sum_over_blocks() -> None:
    case = CASES["group-without-inputs"]
    result = check_pass(FreezeLearnedGroups(), nn.Sequential(case.build()), case.example(), sites=1)
    (site,) = result.report.sites
    entries = sum(len(set(i) & set(o)) for i in case.inputs for o in case.outputs)
    assert site.macs_after == entries * 9 * 7 * 6
    assert site.macs == 7 * 11 * 9 * 7 * 6


@pytest.mark.parametrize("form", FORMS)
def test_memory_format_batch_zero_and_another_size(form: Any) -> None:
    case = CASES["group-without-inputs"]
    layer = case.build().to(memory_format=torch.channels_last).eval()
    model = nn.Sequential(layer)
    x = case.example().contiguous(memory_format=torch.channels_last)
    result = check_pass(FreezeLearnedGroups(form=form), model, x, sites=1)
    for shape in ((0, 7, 9, 8), (5, 7, 4, 11)):
        y = torch.randn(shape)
        assert result.model(y).shape == layer(y).shape
    weights = [p for p in result.model.parameters() if p.dim() == 4 and min(p.shape[:2]) > 1]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    with torch.autocast("cpu", torch.bfloat16):
        assert result.model(x).dtype == layer(x).dtype == torch.bfloat16


def test_zeros_inside_a_block_stay_weights() -> None:
    case = CASES["unequal"]
    layer = case.build()
    with torch.no_grad():
        layer.conv.weight[0].zero_()
        layer.conv.weight[:, 2].zero_()
    result = check_pass(FreezeLearnedGroups(), nn.Sequential(layer), case.example(), sites=1)
    convs = [m for m in result.model.modules() if isinstance(m, nn.Conv2d)]
    assert sorted((c.in_channels, c.out_channels) for c in convs) == [(2, 3), (2, 4), (3, 4)]
    assert all(type(conv) is nn.Conv2d for conv in convs)


def test_requires_grad_and_mode_are_kept() -> None:
    case = CASES["group-without-inputs"]
    layer = case.build().train()
    layer.conv.bias.requires_grad_(False)
    result = check_pass(
        FreezeLearnedGroups(form="padded"), nn.Sequential(layer), case.example(), sites=1
    )
    assert all(module.training for module in result.model.modules())
    grads = {
        name.rpartition(".")[2]: p.requires_grad for name, p in result.model.named_parameters()
    }
    assert grads == {"weight": True, "bias": False}


def test_the_original_is_no_part_of_the_result() -> None:
    layer = CASES["one-block"].build()
    before = copy.deepcopy(layer.state_dict())
    result = groupfx.rewrite(nn.Sequential(layer), (CASES["one-block"].example(),))
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())
