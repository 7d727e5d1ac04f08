"""What a layer is, is what its forward reads: its tensors and `groups`, not what it says of itself.

A model is pruned here as people do it: smaller tensors are put into modules that keep their
fields. The expected value is the same model built with the right numbers.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import groupfx
from groupfx.convs.spec import CONV_TYPES, fields_of, norm_channels, shape_of_weight
from groupfx.emit import emit_python
from groupfx.nn import Flgc2d
from groupfx.passes import FreezeLearnedGroups, SplitGroupedConv
from groupfx.running.guess import infer_inputs
from groupfx.testing import check_pass

SAID = ("in_channels", "out_channels", "kernel_size", "in_features", "out_features", "num_features")


def stale(module: nn.Module) -> nn.Module:
    """`module`, whose layers now tell of larger tensors than they have."""
    for layer in module.modules():
        for name in SAID:
            said = getattr(layer, name, None)
            if isinstance(said, tuple):
                setattr(layer, name, tuple(size + 2 for size in said))
            elif said is not None:
                setattr(layer, name, said * 2 + 3)
    return module


CONVS: dict[str, Callable[[], nn.Module]] = {
    "1d": lambda: nn.Conv1d(6, 9, 3, stride=2, groups=3),
    "2d": lambda: nn.Conv2d(6, 4, (3, 1), padding=1, groups=2, bias=False),
    "same": lambda: nn.Conv2d(6, 4, (3, 5), padding="same", groups=2),
    "3d": lambda: nn.Conv3d(4, 6, (1, 2, 3), dilation=2, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(6, 4, 3, 2, output_padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(5, 5, 3, groups=5),
    "weight norm": lambda: parametrizations.weight_norm(nn.Conv2d(6, 4, 3, groups=2)),
    "old weight norm": lambda: old_weight_norm(nn.Conv2d(6, 4, 3, groups=2)),
}


def old_weight_norm(conv: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(conv)


def spec_of(conv: nn.Module) -> object:
    kind = type(conv) if type(conv) in CONV_TYPES else type(conv).__bases__[0]
    return fields_of(conv, *CONV_TYPES[kind])


@pytest.mark.parametrize("make", CONVS.values(), ids=CONVS.keys())
def test_fields_are_those_of_the_weight(make: Callable[[], nn.Module]) -> None:
    conv = make()
    expected = spec_of(conv)
    assert spec_of(stale(conv)) == expected


def test_one_number_counts_for_every_dimension() -> None:
    conv = nn.Conv2d(4, 6, 3, groups=2)
    expected = spec_of(nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=3, groups=2))
    conv.stride, conv.padding, conv.dilation, conv.output_padding = 2, 1, (3,), 0  # type: ignore[assignment]
    assert spec_of(conv) == expected


def test_the_shape_of_a_weight_that_keeps_count_is_read_without_a_count() -> None:
    conv = parametrizations.spectral_norm(nn.Linear(3, 5))
    before = copy.deepcopy(conv.state_dict())
    assert shape_of_weight(stale(conv)) == (5, 3)
    assert all(torch.equal(before[key], value) for key, value in conv.state_dict().items())


@pytest.mark.parametrize("affine", [True, False])
def test_channels_of_a_norm_are_those_of_its_tensors(affine: bool) -> None:
    assert norm_channels(stale(nn.BatchNorm2d(3, affine=affine))) == 3
    assert norm_channels(nn.BatchNorm2d(3, affine=False, track_running_stats=False)) == 3


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.Conv2d(12, 20, 3, padding=1, groups=4),
        nn.BatchNorm2d(20),
        nn.ReLU(),
        nn.Conv2d(20, 20, 3, groups=20),
        nn.ConvTranspose2d(20, 8, 2, 2, groups=4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )


X = torch.randn(2, 3, 9, 9)


@pytest.mark.parametrize("way", ["trace", "modules", "export"])
def test_a_pruned_model_is_split_like_the_model_of_its_size(way: str) -> None:
    right = network()
    model = stale(copy.deepcopy(right))
    sites, expected = groupfx.find(model, (X,)), groupfx.find(right, (X,))
    assert sites == expected
    result = check_pass(SplitGroupedConv(depthwise="split"), model, (X,), sites=3, way=way)
    told = check_pass(SplitGroupedConv(depthwise="split"), right, (X,), sites=3, way=way).report
    assert [(s.before, s.after, s.macs) for s in result.report.sites] == [
        (s.before, s.after, s.macs) for s in told.sites
    ]


def test_python_of_a_pruned_model_has_the_sizes_of_its_tensors() -> None:
    model = stale(network())
    result = groupfx.rewrite(model, (X,))
    space: dict[str, Any] = {}
    exec(emit_python(result), space)
    assert torch.equal(space["rewrite"](model).eval()(X), result.model.eval()(X))


def test_a_pruned_layer_with_learned_groups_is_frozen() -> None:
    layer = Flgc2d(6, 8, 3, group_num=2)
    check_pass(
        FreezeLearnedGroups(), nn.Sequential(stale(layer)), (torch.randn(2, 6, 7, 7),), sites=1
    )


def test_the_guessed_shape_is_one_that_the_weight_takes() -> None:
    assert infer_inputs(stale(network())).inputs.args[0].shape[1] == 3
    linear = nn.Sequential(nn.Linear(5, 2))
    assert infer_inputs(stale(linear)).inputs.args[0].shape == (2, 5)
