"""Learned groups made equal: what is kept, what becomes 0, and what the check compares with."""

import copy

import pytest
import torch
from torch import nn

import groupfx
from groupfx.errors import UsageError
from groupfx.learned.groups import groups_of
from groupfx.nn import Flgc2d, MaskedConv2d
from groupfx.passes import BalanceGroups, FreezeLearnedGroups

X = torch.randn(2, 24, 6, 6, generator=torch.Generator().manual_seed(9))


def network(**options: bool) -> nn.Sequential:
    torch.manual_seed(8)
    layer = Flgc2d(24, 16, 3, padding=1, group_num=4, **options)
    return nn.Sequential(layer, nn.BatchNorm2d(16), nn.ReLU()).eval()


def effective(model: nn.Module) -> torch.Tensor:
    """The dense weight of the first layer, as it acts: read off one tap at a time."""
    layer = copy.deepcopy(model)
    dense = torch.zeros(16, 24, 3, 3)
    for channel in range(24):
        x = torch.zeros(1, 24, 3, 3)
        x[0, channel, 1, 1] = 1
        dense[:, channel] = layer(x)[0].detach().flip(1, 2)
    return dense


def test_the_layer_is_one_grouped_convolution_of_what_is_kept() -> None:
    model = network()[:1]
    model[0].conv.bias.data.zero_()
    result = groupfx.rewrite(model, (X,), passes=[BalanceGroups()])
    assert result.report.ok
    (conv,) = (m for m in result.model.modules() if isinstance(m, nn.Conv2d))
    assert (conv.groups, conv.in_channels, conv.out_channels) == (4, 24, 16)
    before, after = effective(model), effective(result.model)
    kept = after != 0
    assert torch.equal(after[kept], before[kept])
    share = float(after.square().sum() / before.square().sum())
    assert 0.3 < share < 1
    (site,) = result.report.sites
    assert any(f"{share:.1%} of the weight's square kept" in note for note in site.notes)
    assert any("1 weights were changed" in note for note in result.report.notes)


def test_equal_groups_lose_nothing() -> None:
    model = network(balanced=True)
    balanced, frozen = (
        groupfx.rewrite(model, (X,), passes=[one()]) for one in (BalanceGroups, FreezeLearnedGroups)
    )
    assert balanced.report.ok
    assert not any("weights were changed" in note for note in balanced.report.notes)
    torch.testing.assert_close(balanced.model(X), frozen.model(X), rtol=0, atol=1e-6)


def test_what_comes_into_a_group_can_be_trained() -> None:
    model = network()
    result = groupfx.rewrite(model, (X,), passes=[BalanceGroups()])
    assert not any(isinstance(module, MaskedConv2d) for module in result.model.modules())
    (conv,) = (m for m in result.model.modules() if isinstance(m, nn.Conv2d))
    new = (conv.weight == 0).all(dim=(2, 3))
    assert bool(new.any()), "groups of this seed are unequal, so some entries are new"
    result.model.train()
    result.model(X).square().sum().backward()
    assert conv.weight.grad is not None
    assert bool((conv.weight.grad[new] != 0).any())


def test_the_batchnorm_moves_along_and_the_original_stays() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    result = groupfx.rewrite(model, (X,), passes=[BalanceGroups()])
    assert result.report.ok
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert groups_of(model[0]).sizes != ((6, 4),) * 4


@pytest.mark.parametrize(
    ("options", "sizes"), [({"groups": 2}, 2), ({"multiple": 4}, 2), ({"multiple": 8}, 1)]
)
def test_number_and_sizes_of_groups(options: dict[str, int], sizes: int) -> None:
    result = groupfx.rewrite(network(), (X,), passes=[BalanceGroups(**options)])
    if sizes == 1:
        (skipped,) = result.report.skipped
        assert "24 inputs and 16 filters do not make two equal groups" in skipped.reason
        return
    (conv,) = (m for m in result.model.modules() if isinstance(m, nn.Conv2d))
    assert conv.groups == sizes


@pytest.mark.parametrize(
    ("learned", "options", "reason"),
    [
        (1, {}, "it has one group; groups=2 or more"),
        (4, {"groups": 5}, "do not make 5 equal groups; groups=4 would"),
        (4, {"multiple": 16}, "do not make two equal groups of a multiple of 16"),
    ],
)
def test_a_refusal_names_what_is_in_the_way(
    learned: int, options: dict[str, int], reason: str
) -> None:
    model = nn.Sequential(Flgc2d(24, 16, 3, group_num=learned)).eval()
    result = groupfx.rewrite(model, (X,), passes=[BalanceGroups(**options)])
    (skipped,) = result.report.skipped
    assert reason in skipped.reason


def test_no_option_is_recommended_that_it_does_not_have() -> None:
    (site,) = groupfx.rewrite(network(), (X,), passes=[BalanceGroups()]).report.sites
    assert "form=" not in " ".join(map(str, site.notes))


@pytest.mark.parametrize(
    ("options", "words"), [({"groups": 1}, "groups=1"), ({"multiple": 0}, "=0")]
)
def test_options_that_make_no_sense(options: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        BalanceGroups(**options)
