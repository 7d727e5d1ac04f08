"""Layers whose groups are of equal size, and what freezing makes of them."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import groupfx
from groupfx.errors import UsageError
from groupfx.learned.groups import groups_of
from groupfx.learned.layers import learned_layers_in
from groupfx.nn import Flgc1d, Flgc2d, Flgc3d
from groupfx.nn.flgc import group_assignment
from groupfx.passes import FreezeLearnedGroups

MAPS = ("in_channels_in_group_assignment_map", "out_channels_in_group_assignment_map")


def frozen(model: nn.Module, x: Tensor) -> groupfx.Result:
    return groupfx.rewrite(model, (x,), passes=[FreezeLearnedGroups()])


def convs(model: nn.Module) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


@pytest.mark.parametrize("layer_type", [Flgc1d, Flgc2d, Flgc3d])
def test_groups_are_equal_whatever_the_scores(layer_type: type[Flgc2d]) -> None:
    torch.manual_seed(0)
    for _ in range(5):
        layer = layer_type(24, 32, 3, group_num=4, balanced=True)
        assert groups_of(layer).sizes == ((6, 8),) * 4
    with torch.no_grad():
        # The same wish of all of them.
        layer.in_channels_in_group_assignment_map[:] = torch.tensor([9.0, 0, 0, 0])
    assert groups_of(layer).sizes == ((6, 8),) * 4


def test_the_output_is_that_of_the_masked_convolution_and_so_are_the_gradients() -> None:
    torch.manual_seed(1)
    layer = Flgc2d(8, 6, 3, padding=1, group_num=2, balanced=True).double()
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    layer(x).square().sum().backward()
    sides = [group_assignment(getattr(layer, name), balanced=True).detach() for name in MAPS]
    chosen = [side.double().requires_grad_() for side in sides]
    weight = layer.conv.weight.detach() * (chosen[1] @ chosen[0].T)[..., None, None]
    y = torch.nn.functional.conv2d(x, weight, layer.conv.bias, padding=1)
    torch.testing.assert_close(layer(x), y)
    y.square().sum().backward()
    for name, side in zip(MAPS, chosen, strict=True):
        # Straight-through: where a channel is in a group, the gradient of the softmax there.
        scores = getattr(layer, name).detach().requires_grad_()
        probabilities = torch.softmax(scores, 1, dtype=torch.float32)
        passed = torch.where(side.detach() == 1, side.grad.float(), 0)  # type: ignore[union-attr]
        (probabilities * passed).sum().backward()
        assert scores.grad is not None
        assert scores.grad.count_nonzero() > 0
        torch.testing.assert_close(layer.get_parameter(name).grad, scores.grad)


def test_a_frozen_one_is_one_grouped_convolution() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(Flgc2d(24, 32, 3, group_num=4, balanced=True), nn.BatchNorm2d(32)).eval()
    result = frozen(model, torch.randn(2, 24, 6, 6))
    assert result.report.ok
    (conv,) = convs(result.model)
    assert (conv.groups, conv.in_channels, conv.out_channels) == (4, 24, 32)
    # Its checkpoints fit, and those of other groups do not.
    state = copy.deepcopy(model.state_dict())
    result.state_dict_map.load_original(state)
    state[f"0.{MAPS[0]}"] = state[f"0.{MAPS[0]}"].flip(0)
    with pytest.raises(UsageError, match="other groups"):
        result.state_dict_map.load_original(state)


def test_filters_in_order_leave_nothing_to_permute_behind() -> None:
    torch.manual_seed(3)
    layer = Flgc2d(24, 32, 1, group_num=4, balanced=True, learn_outputs=False)
    assert groups_of(layer).outputs == tuple(tuple(range(8 * g, 8 * g + 8)) for g in range(4))
    assert [name for name, _ in layer.named_parameters() if name.endswith("map")] == [MAPS[0]]
    assert MAPS[1] in layer.state_dict()
    result = frozen(nn.Sequential(layer), torch.randn(2, 24, 6, 6))
    assert result.report.ok
    assert [name for name, _ in result.model.named_modules() if name.endswith("gather")] == [
        "0.input_gather"
    ]


def test_filters_in_order_without_equal_groups() -> None:
    torch.manual_seed(3)
    layer = Flgc2d(24, 30, 1, group_num=4, learn_outputs=False)
    assert [len(outputs) for outputs in groups_of(layer).outputs] == [8, 7, 8, 7]
    assert frozen(nn.Sequential(layer), torch.randn(2, 24, 6, 6)).report.ok


def test_sizes_are_multiples() -> None:
    torch.manual_seed(4)
    layer = Flgc2d(96, 64, 1, group_num=8, balanced=16)
    assert layer.group_num == 2
    assert groups_of(layer).sizes == ((48, 32),) * 2
    assert "group_num=2, balanced=16" in repr(layer)
    # No two groups of such a size: dense, and says so.
    assert Flgc2d(96, 24, 1, group_num=8, balanced=16).group_num == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"group_num": 5, "balanced": True}, "24 inputs and 32 filters .* group_num=4 would"),
        ({"group_num": 4, "balanced": -2}, "multiples of 1 or more"),
        ({"group_num": 4, "balanced": "yes"}, "balanced='yes'.*: True, or a whole number"),
        ({"group_num": 4, "balanced": 2.5}, "balanced=2.5.*: True, or a whole number"),
        ({"group_num": 2.0}, "group_num=2.0.*: the groups are a whole number"),
    ],
)
def test_what_cannot_be_equal_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Flgc2d(24, 32, 1, **options)


def test_a_map_that_does_not_divide_its_channels_is_named() -> None:
    layer = Flgc2d(24, 32, 1, group_num=4, balanced=True)
    for name in MAPS:
        scores = getattr(layer, name)
        setattr(layer, name, nn.Parameter(torch.cat([scores, scores[:, :1]], 1)))
    with pytest.raises(UsageError, match="5 groups cannot share 24 inputs and 32 filters"):
        groups_of(layer)


def test_a_score_that_is_no_number_shows() -> None:
    layer = Flgc2d(8, 8, 1, group_num=2, balanced=True)
    with torch.no_grad():
        layer.in_channels_in_group_assignment_map[3] = torch.nan
    x = torch.ones(1, 8, 2, 2)
    assert bool(layer(x).isnan().any())
    result = groupfx.rewrite(nn.Sequential(layer).eval(), (x,), passes=["freeze-learned-groups"])
    (skipped,) = result.report.skipped
    assert "1 channel has NaN or infinity among its scores" in skipped.reason


def test_a_checkpoint_alone_says_that_groups_are_equal() -> None:
    torch.manual_seed(5)
    model = nn.Sequential(
        Flgc2d(24, 32, 3, group_num=4, balanced=True), Flgc2d(32, 8, 1, group_num=4)
    )
    state = model.state_dict()
    balanced, plain = learned_layers_in({k: tuple(t.shape) for k, t in state.items()}, state)
    assert balanced.groups == groups_of(model[0])
    assert plain.groups == groups_of(model[1])
    assert set(balanced.groups.sizes) == {(6, 8)}
    assert len(set(plain.groups.sizes)) > 1


def test_a_plain_layer_has_the_state_that_it_had() -> None:
    assert set(Flgc2d(4, 4, 1, group_num=2).state_dict()) == {"conv.weight", "conv.bias", *MAPS}


def test_it_compiles_exports_and_copies() -> None:
    torch.manual_seed(6)
    layer = nn.Sequential(Flgc2d(8, 8, 1, group_num=2, balanced=True)).eval()
    with torch.no_grad():
        layer[0].conv.weight.copy_(torch.randint(-3, 4, layer[0].conv.weight.shape))
        layer[0].conv.bias.zero_()
    x = torch.randint(-3, 4, (2, 8, 3, 3)).float()
    y = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), y)
    assert torch.equal(torch.export.export(layer, (x,)).module()(x), y)
    assert torch.equal(torch.compile(layer, backend="eager", fullgraph=True)(x), y)
