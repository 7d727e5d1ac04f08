"""Negative controls: wrong freezes, each of which the check must catch, at its site."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import groupfx
from groupfx.errors import MismatchError
from groupfx.nn import ChannelGather
from groupfx.nn.marks import FROZEN_MARK
from groupfx.passes import FreezeLearnedGroups, SplitGroupedConv
from groupfx.rewriting import Rewritten, Site
from tests.models.frozen_cases import Layer, with_batchnorm

# Blocks 5->1 (the tied filter), twice 3->3, 2->2; and a filter that reads nothing.
IN = ("ab", *"acabcb")
OUT = ("ab", *"bbcdbcaaac")
CASE = Layer(IN, OUT, {"padding": 1})
Spoil = Callable[[nn.Module], None]


class SpoiledFreeze(FreezeLearnedGroups):
    """A freeze with a mistake: `spoil` gets the module that took the layer's place."""

    spoil: Spoil

    def rewrite(self, site: Site, description: Any) -> Rewritten:
        made = super().rewrite(site, description)
        with torch.no_grad():
            type(self).spoil(site.root)
        return made


def wrong(spoil: Spoil, form: str = "auto") -> FreezeLearnedGroups:
    kind = dataclasses.dataclass(frozen=True)(
        type("WrongFreeze", (SpoiledFreeze,), {"spoil": staticmethod(spoil), "__doc__": "Wrong."})
    )
    made: FreezeLearnedGroups = kind(form=form)
    return made


def convs(root: nn.Module) -> list[nn.Conv2d]:
    """The convolutions that the freeze made."""
    return [module for module in root.modules() if hasattr(module, FROZEN_MARK)]


def gather(root: nn.Module, name: str) -> ChannelGather:
    found = [m for path, m in root.named_modules() if path.endswith(name)]
    assert isinstance(found[0], ChannelGather)
    return found[0]


def swap(module: ChannelGather, first: int, second: int) -> None:
    channels = list(module.channels)
    channels[first], channels[second] = channels[second], channels[first]
    module.channels = tuple(channels)
    module.indices = torch.tensor(channels)


def swapped_inputs(root: nn.Module) -> None:
    swap(gather(root, "input_gather"), 0, -1)


def swapped_outputs(root: nn.Module) -> None:
    swap(gather(root, "output_gather"), 0, 1)


def swapped_blocks(root: nn.Module) -> None:
    """The weights of two blocks of one shape: halves of one grouped convolution."""
    weight = next(conv for conv in convs(root) if conv.groups == 2).weight
    weight.copy_(weight.roll(weight.shape[0] // 2, 0))


def lost_factor(root: nn.Module) -> None:
    """The entry of 2, back to 1: filter 0 reads input 0 in the groups a and b."""
    for conv in convs(root):
        if conv.out_channels == 1:
            conv.weight[:, 0] /= 2
            return
    raise AssertionError("there should be a conv of filter 0 alone")


def permuted_batchnorm(root: nn.Module) -> None:
    norm = next(m for m in root.modules() if isinstance(m, nn.BatchNorm2d) and m.num_features > 1)
    norm.weight.copy_(norm.weight.flip(0))


def wrong_statistics(root: nn.Module) -> None:
    norm = next(m for m in root.modules() if isinstance(m, nn.BatchNorm2d))
    norm.running_var.mul_(1 + 1e-6)


def dropped_bias(root: nn.Module) -> None:
    (constants,) = (m for m in root.modules() if type(m).__name__ == "ConstantChannels")
    constants.bias.zero_()


def off_by_1e9(root: nn.Module) -> None:
    convs(root)[0].weight[0, 0, 1, 1] += 1e-9


def padding_is_not_zero(root: nn.Module) -> None:
    (conv,) = convs(root)
    conv.weight[~conv.mask] = 1e-9


WRONG: dict[str, tuple[Spoil, str]] = {
    "swapped-inputs": (swapped_inputs, "auto"),
    "swapped-outputs": (swapped_outputs, "auto"),
    "swapped-blocks": (swapped_blocks, "auto"),
    "lost-factor": (lost_factor, "auto"),
    "permuted-batchnorm": (permuted_batchnorm, "auto"),
    "wrong-statistics": (wrong_statistics, "auto"),
    "dropped-bias-only-filter": (dropped_bias, "auto"),
    "weight-off-by-1e-9": (off_by_1e9, "auto"),
    "weight-off-by-1e-9-dense": (off_by_1e9, "dense"),
    "padding-not-zero": (padding_is_not_zero, "padded"),
}


class Blind(nn.Module):
    """A residual branch whose last norm is zero, as in a freshly built network: nothing is seen."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(7, 11, 3, padding=1)
        self.block = layer
        self.last = nn.BatchNorm2d(11)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x) + self.last(self.block(x).relu())


def build() -> nn.Sequential:
    torch.manual_seed(5)
    return with_batchnorm(CASE.build(), len(OUT)).double().eval()


X = torch.randn(2, 7, 9, 8, dtype=torch.float64)


@pytest.mark.parametrize("form", sorted({form for _, form in WRONG.values()}))
def test_the_right_freeze_passes(form: str) -> None:
    """The control of the controls: the same class with a spoil that does nothing."""
    for model in (build(), Blind(build()).double().eval()):
        assert groupfx.rewrite(model, (X,), passes=[wrong(lambda _: None, form)]).report.ok


@pytest.mark.parametrize(("spoil", "form"), WRONG.values(), ids=WRONG)
def test_a_wrong_freeze_is_caught_and_its_site_named(spoil: Spoil, form: str) -> None:
    with pytest.raises(MismatchError, match=r"^0 does not compute what it did: ") as caught:
        groupfx.rewrite(build(), (X,), passes=[wrong(spoil, form)])
    (site,) = caught.value.report.sites
    assert site.verdict is not None
    assert not site.verdict.ok


@pytest.mark.parametrize(("spoil", "form"), WRONG.values(), ids=WRONG)
def test_a_wrong_freeze_is_caught_in_a_network_that_is_blind(spoil: Spoil, form: str) -> None:
    with pytest.raises(MismatchError, match=r"^block\.0 does not compute what it did") as caught:
        groupfx.rewrite(Blind(build()).double().eval(), (X,), passes=[wrong(spoil, form)])
    report = caught.value.report
    assert report.model.ok, "the network was meant to hide the mistake"
    assert [site.observable for site in report.sites] == [False]


def opened_zeros(root: nn.Module) -> None:
    """A plain convolution in place of one that keeps its zeros: right until it is trained."""
    for path, module in list(root.named_modules()):
        if hasattr(module, "mask"):
            plain = nn.Conv2d(
                module.in_channels, module.out_channels, 3, padding=1, groups=module.groups
            )
            plain.weight, plain.bias = module.weight, module.bias
            root.set_submodule(path, plain.double().eval())


def test_padding_that_training_would_change_is_seen_by_the_gradients() -> None:
    """The zeros of a dense form get a gradient where the original's masked weights get none."""
    model = build()
    right = groupfx.rewrite(model, (X,), passes=[wrong(lambda _: None, "dense")]).model
    spoiled = groupfx.rewrite(
        model, (X,), passes=[wrong(opened_zeros, "dense")], verify=False
    ).model
    for twin, expected in ((right, True), (spoiled, False)):
        twin(X).sum().backward()
        weight = twin.get_parameter("0.conv.weight")
        assert bool((weight.grad[weight == 0] == 0).all()) is expected


def test_a_map_that_does_not_say_what_the_tensors_hold_is_caught() -> None:
    """The function is right, and a checkpoint of the original would load into other filters."""

    class WrongMap(FreezeLearnedGroups):
        def rewrite(self, site: Site, description: Any) -> Rewritten:
            made = super().rewrite(site, description)
            entry = site.store.entries["0.convs.1.weight"]
            (part,) = entry.parts
            flipped = dataclasses.replace(part, rows=part.rows[::-1])
            site.store.entries["0.convs.1.weight"] = dataclasses.replace(entry, parts=(flipped,))
            return made

    with pytest.raises(MismatchError, match=r"0\.convs\.1\.weight does not hold the values of"):
        groupfx.rewrite(build(), (X,), passes=[WrongMap(form="split")])


def test_a_wrong_split_of_a_frozen_conv_is_caught() -> None:
    """Nothing in the original stands for what freezing made: the whole of it is compared."""

    class WrongSplit(SplitGroupedConv):
        def rewrite(self, site: Site, description: Any) -> Rewritten:
            made = super().rewrite(site, description)
            (parts,) = made.output.args
            made.output.args = ([*parts[1:], parts[0]],)
            return made

    for split, ok in ((SplitGroupedConv(), True), (WrongSplit(), False)):
        passes = [FreezeLearnedGroups(), split]
        if ok:
            assert len(groupfx.rewrite(build(), (X,), passes=passes).report.sites) == 2
            continue
        with pytest.raises(MismatchError, match=r"^0 does not compute what it did") as caught:
            groupfx.rewrite(build(), (X,), passes=passes)
        assert not any(site.verdict.ok for site in caught.value.report.sites)
