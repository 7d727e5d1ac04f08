"""`discover-groups`: masks that parameters make, refusals, thresholds, and wrong rewrites.

The trained layers of DGConv, CondenseNet and CondenseNetV2 are written here from their
descriptions.
"""

import copy
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from groupfx import Pipeline
from groupfx.errors import MismatchError, UsageError
from groupfx.nn import ChannelGather, ChannelShuffle, ChannelTranspose
from groupfx.passes import DiscoverGroups
from groupfx.rewriting import Rewritten, Site
from groupfx.testing import check_pass
from tests.passes.sparse_layers import CONVS, EQUAL, UNEQUAL, keep, oracle


def reasons(model: nn.Module, x: Tensor, **options: Any) -> list[str]:
    report = Pipeline([DiscoverGroups(**options)])(model, (x,)).report
    assert not report.sites
    return [site.reason for site in report.skipped]


# Layers that learn zeros, in their trained form


def dgconv_mask(gates: Tensor, size: int) -> Tensor:
    mask = torch.ones(1, 1)
    for k in range(size):
        mask = torch.kron(mask, gates[k] * torch.ones(2, 2) + (1 - gates[k]) * torch.eye(2))
    return mask


class Binary(torch.autograd.Function):
    """1 where positive, 0 where negative, 0.5 at 0; its gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor) -> Tensor:  # type: ignore[override]
        return (torch.sign(gates) + 1) / 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class DgConv(nn.Module):
    """A convolution under the Kronecker product of binary gates; out = in = 2 ** gates."""

    def __init__(self, gates: Sequence[float], *, straight_through: bool) -> None:
        super().__init__()
        self.size = len(gates)
        self.straight_through = straight_through
        self.conv = nn.Conv2d(2**self.size, 2**self.size, 3, padding=1)
        self.gates = nn.Parameter(torch.tensor(gates))

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gates
        gates = Binary.apply(gates) if self.straight_through else (torch.sign(gates) + 1) / 2
        weight = self.conv.weight * dgconv_mask(gates, self.size)[:, :, None, None]
        return F.conv2d(x, weight, self.conv.bias, padding=1)


DGCONV = {
    "outer": ((-0.3, 0.2, 0.1), 2, ()),
    "inner": ((0.3, 0.2, -0.1), 2, (ChannelShuffle, ChannelShuffle)),
    "middle": ((0.3, -0.2, 0.1), 2, (ChannelShuffle, ChannelShuffle)),
    "one-whole": ((-0.3, 0.2, -0.1), 4, (ChannelShuffle, ChannelShuffle)),
    "alternating": (
        (-0.1, 0.1, -0.1, 0.1, -0.1),
        8,
        (ChannelTranspose, ChannelTranspose),
    ),
    "depthwise": ((-1.0, -1.0, -1.0), 8, ()),
    "fraction": ((0.0, -0.2, 0.1), 2, (ChannelShuffle, ChannelShuffle)),
}


@pytest.mark.parametrize("straight_through", [False, True], ids=["in-the-graph", "leaf"])
@pytest.mark.parametrize(("gates", "groups", "moves"), DGCONV.values(), ids=DGCONV)
def test_dgconv_becomes_a_grouped_convolution_between_transposes(
    gates: Sequence[float], groups: int, moves: tuple[type[nn.Module], ...], straight_through: bool
) -> None:
    layer = DgConv(gates, straight_through=straight_through)
    channels = 2 ** len(gates)
    model = nn.Sequential(layer, nn.BatchNorm2d(channels), nn.ReLU())
    nn.init.uniform_(model[1].weight, 0.5, 2)
    x = torch.randn(2, channels, 5, 3)
    result = check_pass(DiscoverGroups(), model, (x,), sites=1)
    oracle(model, result.model, x.flip(3))
    convs = [m for m in result.model.modules() if isinstance(m, nn.Conv2d)]
    assert [(type(conv), conv.groups) for conv in convs] == [(nn.Conv2d, groups)]
    assert not any(isinstance(m, ChannelGather) for m in result.model.modules())
    shuffles = (ChannelShuffle, ChannelTranspose)
    assert tuple(type(m) for m in result.model.modules() if isinstance(m, shuffles)) == moves
    assert not any("gates" in key for key in result.model.state_dict())


def test_a_checkpoint_with_other_gates_is_refused() -> None:
    model = nn.Sequential(DgConv((-0.3, 0.2), straight_through=False))
    result = Pipeline([DiscoverGroups()])(model, (torch.randn(2, 4, 5, 3),))
    fine_tuned = {key: value + 0.5 * ("conv" in key) for key, value in model.state_dict().items()}
    result.state_dict_map.load_original(fine_tuned)
    model.load_state_dict(fine_tuned)
    oracle(model, result.model, torch.randn(2, 4, 5, 3))
    with pytest.raises(UsageError, match=r"0: its values .* are not those"):
        result.state_dict_map.load_original({**fine_tuned, "0.gates": torch.tensor([0.3, 0.2])})


def test_dgconv_whose_gates_are_all_1_stays() -> None:
    model = nn.Sequential(DgConv((0.3, 0.2), straight_through=True))
    assert reasons(model, torch.randn(2, 4, 5, 3)) == ["its weight holds no zeros"]


def condensed(inputs: int, outputs: int, groups: int, kept: int) -> nn.Conv2d:
    """CondenseNet's learned 1x1 after pruning: the rows i::groups share a set of inputs."""
    conv = nn.Conv2d(inputs, outputs, 1, bias=False)
    with torch.no_grad():
        for group in range(groups):
            chosen = torch.randperm(inputs)[:kept]
            mask = torch.zeros(inputs, dtype=torch.bool)
            mask[chosen] = True
            conv.weight[group::groups, ~mask] = 0
    return conv


def test_condensenet_becomes_a_gather_with_repeats_and_a_grouped_convolution() -> None:
    conv = condensed(12, 20, 4, 5)
    model = nn.Sequential(nn.BatchNorm2d(12), nn.ReLU(), conv)
    x = torch.randn(2, 12, 5, 3)
    result = check_pass(DiscoverGroups(), model, (x,), sites=1)
    oracle(model, result.model, x)
    made = result.model.get_submodule("2.conv")
    assert (made.in_channels, made.groups) == (20, 4)
    gather = result.model.get_submodule("2.input_gather")
    assert isinstance(gather, ChannelGather)
    assert len(gather.channels) == 20 > len(set(gather.channels))
    # Rows i::4 are put back in their places by a shuffle.
    assert isinstance(result.model.get_submodule("2.output_gather"), ChannelShuffle)
    assert any("several blocks" in note for note in result.report.sites[0].notes)


def test_condensenet_with_its_index_layer() -> None:
    """The mask as a buffer that is multiplied in each forward, as while it is trained."""

    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(12, 20, 1, bias=False)
            mask = (condensed(12, 20, 4, 5).weight != 0).float().detach()
            self.register_buffer("_mask", mask)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.conv.weight * self._mask)

    model = nn.Sequential(Learned())
    x = torch.randn(2, 12, 5, 3)
    result = check_pass(DiscoverGroups(), model, (x,), sites=1)
    oracle(model, result.model, x)
    assert list(result.model.state_dict()) == ["0.conv.conv.weight"]


@pytest.mark.parametrize("overlap", [False, True], ids=["apart", "overlapping"])
def test_condensenetv2_column_classes(overlap: bool) -> None:
    """Sparse feature reactivation: the inputs i::groups write to a set of outputs."""
    conv = nn.Conv2d(12, 15, 1, bias=False)
    order = torch.randperm(15)
    with torch.no_grad():
        for group in range(3):
            chosen = order[5 * group : 5 * group + 5 + 2 * overlap]
            mask = torch.zeros(15, dtype=torch.bool)
            mask[chosen] = True
            conv.weight[~mask, group::3] = 0
    model = nn.Sequential(conv)
    x = torch.randn(2, 12, 5, 3)
    result = check_pass(DiscoverGroups(), model, (x,), sites=1)
    oracle(model, result.model, x)
    (site,) = result.report.sites
    entries = int((conv.weight != 0).sum())
    assert site.macs_after == entries * 5 * 3


# Masks that are kept beside the weight


def blocks_mask(*shape: int) -> Tensor:
    mask = torch.zeros(shape)
    mask[:2, :4] = 1
    mask[2:, 4:] = 1
    return mask


class Masked(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def pruned(layer: nn.Module, mask: Tensor) -> nn.Module:
    prune.custom_from_mask(layer, "weight", mask)
    return layer


def parametrized(layer: nn.Module, mask: Tensor) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Masked(mask))
    return layer


@pytest.mark.parametrize("hold", [pruned, parametrized], ids=["pruned", "parametrized"])
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_masks_that_hooks_and_parametrisations_multiply(
    hold: Callable[[nn.Module, Tensor], nn.Module], kind: str
) -> None:
    if kind == "conv":
        layer = hold(nn.Conv2d(7, 5, 3, padding_mode="reflect", padding=1), blocks_mask(5, 7, 3, 3))
        x = torch.randn(2, 7, 5, 4)
    else:
        layer, x = hold(nn.Linear(7, 5), blocks_mask(5, 7)), torch.randn(2, 7)
    model = nn.Sequential(layer, nn.ReLU())
    result = check_pass(DiscoverGroups(), model, (x,), sites=1)
    oracle(model, result.model, x)
    keys = list(result.model.state_dict())
    assert not any("mask" in key or "orig" in key for key in keys)
    with pytest.raises(UsageError, match="fill"):
        result.state_dict_map.to_original()


# Refusals

Refused = tuple[Callable[[], nn.Module], Tensor, str]


class TiedToDense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = keep(nn.Conv2d(9, 9, 1), EQUAL)
        self.two = nn.Conv2d(9, 9, 1)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.two(x)


class MaskPerSample(nn.Module):
    """Dynamic groups: each sample has a mask of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        mask = (x.mean((0, 2, 3)) > 0).float()
        return F.conv2d(x, self.conv.weight * mask[None, :, None, None])


class ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(9, 6, 1)
        keep(self.conv, EQUAL)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.conv2d(x, self.conv.weight), self.conv.weight.square().sum()


def hooked() -> nn.Module:
    conv = keep(nn.Conv2d(9, 6, 1), EQUAL)
    conv.weight.register_hook(lambda gradient: 2 * gradient)
    return nn.Sequential(conv)


IMAGE = torch.randn(2, 9, 5, 3)
REFUSED: dict[str, Refused] = {
    "no-zeros": (lambda: nn.Sequential(nn.Conv2d(9, 6, 1)), IMAGE, "holds no zeros"),
    "all-zero": (lambda: nn.Sequential(keep(nn.Conv2d(9, 6, 1), [])), IMAGE, "all its weights"),
    "one-block": (
        lambda: nn.Sequential(keep(nn.Conv2d(9, 6, 1), [(range(9), range(6)), ([0], [0])])),
        IMAGE,
        "holds no zeros",
    ),
    "scattered": (
        lambda: nn.Sequential(
            prune.remove(prune.random_unstructured(nn.Conv2d(9, 6, 3), "weight", 0.3), "weight")
        ),
        IMAGE,
        "no channel can be left out",
    ),
    "too-little": (
        lambda: nn.Sequential(keep(nn.Conv2d(9, 12, 1), [(range(9), range(1, 12)), ([8], [0])])),
        IMAGE,
        "no channel can be left out",
    ),
    "one-dead-input": (
        lambda: nn.Sequential(keep(nn.Conv2d(9, 6, 1), [(range(1, 9), range(6))])),
        IMAGE,
        r"zeros \(11% of the weight\) save 11\.1% of its MACs, less than min_saving=0\.2",
    ),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(9, 6, 1)), IMAGE, "transposed"),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(9, 18, 1, groups=9)), IMAGE, "depthwise"),
    "tied": (TiedToDense, IMAGE, "its weight is shared with another module"),
    "hooked": (hooked, IMAGE, "it has hooks .*remove them"),
    "per-sample": (MaskPerSample, IMAGE[:, :6], "its weight depends on the input"),
    "read-twice": (ReadTwice, IMAGE, "its weight is used elsewhere too"),
    "unbatched": (
        lambda: nn.Sequential(keep(nn.Conv2d(9, 6, 1), EQUAL)),
        IMAGE[0],
        r"no batch axis; add one with unsqueeze\(0\)",
    ),
    "weight-norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(9, 6, 1))),
        IMAGE,
        "no stored tensor times a fixed mask",
    ),
    "mask-by-tap": (
        lambda: nn.Sequential(pruned(nn.Conv2d(9, 6, 3), (torch.rand(6, 9, 3, 3) > 0.5).float())),
        IMAGE,
        r"differs from tap to tap .*prune\.remove",
    ),
    "linear-mask-inside-blocks": (
        lambda: nn.Sequential(
            pruned(
                nn.Linear(7, 5),
                blocks_mask(5, 7) - F.one_hot(torch.tensor([9, 9, 5, 9, 9]), 10)[:, :7],
            )
        ),
        torch.randn(2, 7),
        "which a Linear cannot keep",
    ),
}


@pytest.mark.parametrize(("make", "x", "words"), REFUSED.values(), ids=REFUSED)
def test_sites_that_are_left_say_why(make: Callable[[], nn.Module], x: Tensor, words: str) -> None:
    found = reasons(make(), x, min_saving=0.2)
    assert found
    assert all(re.search(words, reason) for reason in found), found


# A threshold


def nearly(noise: float) -> tuple[nn.Module, Tensor]:
    conv, x = CONVS["2d"](UNEQUAL)
    with torch.no_grad():
        small = (2 * torch.rand_like(conv.weight) - 1) * noise
        conv.weight.copy_(torch.where(conv.weight == 0, small, conv.weight))
    return nn.Sequential(conv, nn.ReLU()), x


def test_small_weights_are_kept_by_default() -> None:
    model, x = nearly(1e-6)
    assert reasons(model, x) == ["its weight holds no zeros"]


def test_a_threshold_reports_the_error_that_it_introduces() -> None:
    model, x = nearly(1e-4)
    result = Pipeline([DiscoverGroups(threshold=1e-4)])(model, (x,))
    (site,) = result.report.sites
    assert site.notes[0] == "3 blocks: 2->3, 3->4, 5->5"
    # The same, computed here.
    zeroed = copy.deepcopy(model)
    keep(zeroed[0], UNEQUAL)
    oracle(zeroed, result.model, x)
    weight = model[0].weight.detach().double()
    lost = weight - zeroed[0].weight.detach().double()
    share = float(lost.norm() / weight.norm())
    worst = float(lost.abs().flatten(1).sum(1).max())
    count = int((lost != 0).sum())
    note = site.notes[-1]
    assert note.startswith(f"threshold=0.0001: {count} entries of up to ")
    assert f" are set to 0, {share:.3g} of the weight's norm" in note
    assert f"by more than {worst:.3g} times" in note
    with torch.no_grad():
        before, after = model(x).double(), zeroed(x).double()
    error = float((after - before).abs().max() / before.abs().max())
    assert 0 < error < 1e-2
    assert f"by at most {error:.3g} of their largest value" in result.report.notes[-1]
    assert float((after - before).abs().max()) <= worst * float(x.abs().max()) * (1 + 1e-6)
    # The original itself is no checkpoint of the rewritten model any more.
    with pytest.raises(UsageError, match=f"{count} elements are not 0"):
        result.state_dict_map.load_original(model.state_dict())
    result.state_dict_map.load_original(zeroed.state_dict())
    assert not torch.equal(model[0].weight, zeroed[0].weight), "the model given is not changed"


def test_a_threshold_changes_nothing_where_there_are_only_zeros() -> None:
    conv, x = CONVS["2d"](UNEQUAL)
    result = check_pass(DiscoverGroups(threshold=1e-9), nn.Sequential(conv), (x,), sites=1)
    assert result.report.notes == ()
    assert not any("threshold" in note for note in result.report.sites[0].notes)


# Negative controls: the check must see these


@dataclasses.dataclass(frozen=True)
class Sloppy(DiscoverGroups):
    """Takes small weights for zeros and does not say so."""

    def rewrite(self, site: Site, description: Any) -> Rewritten:
        return super().rewrite(site, dataclasses.replace(description, zeroed={}))


@dataclasses.dataclass(frozen=True)
class Excuse(DiscoverGroups):
    """Says that it set everything to 0, which would excuse anything."""

    def rewrite(self, site: Site, description: Any) -> Rewritten:
        zeroed = {key: torch.ones_like(mask) for key, mask in description.zeroed.items()}
        return super().rewrite(site, dataclasses.replace(description, zeroed=zeroed))


@dataclasses.dataclass(frozen=True)
class Shifted(DiscoverGroups):
    """Reads the neighbours of the channels that it should read."""

    def rewrite(self, site: Site, description: Any) -> Rewritten:
        form = description.form
        gather = form.input_gather
        moved = tuple((channel + 1) % site.spec.in_channels for channel in gather.indices)
        form = dataclasses.replace(form, input_gather=dataclasses.replace(gather, indices=moved))
        return super().rewrite(site, dataclasses.replace(description, form=form))


@pytest.mark.parametrize("wrong", [Sloppy, Excuse, Shifted])
def test_wrong_rewrites_are_caught(wrong: type[DiscoverGroups]) -> None:
    model, x = nearly(1e-6)
    with pytest.raises(MismatchError, match="0 does not compute what it did"):
        Pipeline([wrong(threshold=1e-4)])(model, (x,))
