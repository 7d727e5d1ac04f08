"""Checkpoints between learned-group layers and their frozen forms, frozen by hand."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupfx.errors import RewriteError, UsageError
from groupfx.learned.groups import LearnedGroups, groups_of
from groupfx.nn import ChannelGather, Flgc2d
from groupfx.state.map import Entry, Fixed, Part, Picked, Requirement, Rows, StateDictMap

IN, OUT, GROUPS = 7, 11, 3
# Group 2 has filters and no inputs; input 3 and filter 5 are in two groups of the tied layer.
INPUTS = ((1, 4, 6), (0, 2, 3, 5), ())
OUTPUTS = ((0, 3, 7, 9), (1, 2, 4, 8, 10), (5, 6))
TIED_INPUTS = ((1, 3, 4, 6), (0, 2, 3, 5), ())
TIED_OUTPUTS = ((0, 3, 5, 7, 9), (1, 2, 4, 5, 8, 10), (6,))
MAPS = ("in_channels_in_group_assignment_map", "out_channels_in_group_assignment_map")
Members = tuple[tuple[int, ...], ...]


class LearnedOriginal(nn.Module):
    """A learned-group layer and its BatchNorm."""

    def __init__(self, inputs: Members = INPUTS, outputs: Members = OUTPUTS) -> None:
        super().__init__()
        self.flgc = Flgc2d(IN, OUT, (3, 2), group_num=GROUPS)
        self.bn = nn.BatchNorm2d(OUT)
        for name, members in zip(MAPS, (inputs, outputs), strict=True):
            with torch.no_grad():
                getattr(self.flgc, name).copy_(scores(name, members))
        assert (groups_of(self.flgc).inputs, groups_of(self.flgc).outputs) == (inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.flgc(x))
        return y


def scores(name: str, members: Members) -> Tensor:
    """A map that puts the channels into these groups."""
    table = torch.full((IN if name.startswith("in") else OUT, GROUPS), -1.0)
    for group, channels in enumerate(members):
        table[list(channels), group] = 1.0
    return table


def trained(inputs: Members = INPUTS, outputs: Members = OUTPUTS) -> LearnedOriginal:
    """An original whose every tensor is random, and whose BatchNorm has seen three batches."""
    model = LearnedOriginal(inputs, outputs)
    for name, tensor in model.named_parameters():
        if not name.endswith("_map"):
            nn.init.uniform_(tensor, 0.5, 2.0)
    model.double()
    for _ in range(3):
        model(image())
    return model.eval()


def image() -> Tensor:
    return torch.randn(2, IN, 5, 7, dtype=torch.float64)


class FrozenByHand(nn.Module):
    """`conv` between two gathers; its last `extra` channels are padding, which the gather drops."""

    def __init__(self, conv: nn.Conv2d, read: list[int], order: list[int]) -> None:
        super().__init__()
        self.read, self.conv = ChannelGather(read), conv
        self.bn = nn.BatchNorm2d(conv.out_channels)
        self.order = ChannelGather(order)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.order(self.bn(self.conv(self.read(x))))
        return y


Table = dict[str, Entry | Requirement]


def of_channels(rows: tuple[int | None, ...]) -> Table:
    """The entries of the vectors of bias and BatchNorm."""
    table: Table = {"conv.bias": Picked("flgc.conv.bias", (Part(rows),), (OUT,))}
    for name, fill in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
        table[f"bn.{name}"] = Picked(f"bn.{name}", (Part(rows),), (OUT,), fill)
    table["bn.num_batches_tracked"] = Rows("bn.num_batches_tracked")
    return table


def fixed(inputs: Members = INPUTS, outputs: Members = OUTPUTS) -> Fixed:
    groups = LearnedGroups(IN, OUT, inputs, outputs)
    return Fixed.of_groups(*(f"flgc.{name}" for name in MAPS), groups)


def padded(size: tuple[int, ...] = (OUT, IN)) -> tuple[StateDictMap, FrozenByHand]:
    """One grouped conv of 3 blocks, each padded to 4 inputs and 5 filters."""

    def to(count: int, channels: tuple[int, ...]) -> tuple[int | None, ...]:
        return channels + (None,) * (count - len(channels))

    rows = [to(5, channels) for channels in OUTPUTS]
    columns = [to(4, channels) for channels in INPUTS]
    everything = tuple(row for block in rows for row in block)
    parts = tuple(Part(r, c) for r, c in zip(rows, columns, strict=True))
    table: Table = {
        "conv.weight": Picked("flgc.conv.weight", parts, size),
        **of_channels(everything),
        "flgc.groups": fixed(),
    }
    # Padding reads some channel; its weights are 0.
    read = [channel or 0 for block in columns for channel in block]
    order = [everything.index(row) for row in range(OUT)]
    model = FrozenByHand(nn.Conv2d(12, 15, (3, 2), groups=3), read, order).double().eval()
    return StateDictMap(table, model=model), model


def dense() -> tuple[StateDictMap, FrozenByHand]:
    """One dense conv with the mask folded in, for the layer with ties, its filters reversed."""
    mask = LearnedGroups(IN, OUT, TIED_INPUTS, TIED_OUTPUTS).mask()
    parts = []
    for row in reversed(range(OUT)):
        columns = tuple(c if mask[row, c] else None for c in range(IN))
        factors = tuple(max(int(mask[row, c]), 1) for c in range(IN))
        parts.append(Part((row,), columns, (factors,)))
    table: Table = {
        "conv.weight": Picked("flgc.conv.weight", tuple(parts), (OUT, IN)),
        **of_channels(tuple(reversed(range(OUT)))),
        "flgc.groups": fixed(TIED_INPUTS, TIED_OUTPUTS),
    }
    order = list(reversed(range(OUT)))
    model = FrozenByHand(nn.Conv2d(IN, OUT, (3, 2)), list(range(IN)), order).double().eval()
    return StateDictMap(table, model=model), model


FORMS: dict[
    str, tuple[Callable[[], LearnedOriginal], Callable[[], tuple[StateDictMap, FrozenByHand]]]
] = {
    "padded": (trained, padded),
    "dense-tied": (lambda: trained(TIED_INPUTS, TIED_OUTPUTS), dense),
}


def same(left: Any, right: Any) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def close(left: Tensor, right: Tensor) -> bool:
    return bool((left - right).abs().max() <= 1e-12 * right.abs().max())


@pytest.mark.parametrize("form", FORMS)
def test_an_original_checkpoint_loads_and_comes_back(form: str) -> None:
    build, freeze = FORMS[form]
    original = build()
    mapping, frozen = freeze()
    mapping.load_original(original.state_dict())
    x = image()
    assert close(frozen(x), original(x))
    state = original.state_dict()
    assert same(mapping.to_original(fill=state), state)
    assert same(mapping.convert(state), frozen.state_dict())
    again = StateDictMap.from_dict(json.loads(json.dumps(mapping.to_dict())), model=frozen)
    assert (again.entries, again.requires) == (mapping.entries, mapping.requires)
    assert again.dropped == mapping.dropped == {f"flgc.{name}" for name in MAPS}
    assert "1 required" in repr(again)


def test_weights_come_from_where_the_parts_say() -> None:
    mapping, _ = padded()
    state = trained().state_dict()
    new = mapping.convert(state)
    weight = state["flgc.conv.weight"]
    expected = torch.zeros(15, 4, 3, 2, dtype=torch.float64)
    for block, (rows, columns) in enumerate(zip(OUTPUTS, INPUTS, strict=True)):
        for r, row in enumerate(rows):
            for c, column in enumerate(columns):
                expected[5 * block + r, c] = weight[row, column]
    assert torch.equal(new["conv.weight"], expected)
    assert new["bn.running_var"][4] == 1
    assert new["bn.running_mean"][4] == 0


def test_two_swapped_channels_would_be_seen() -> None:
    original = trained()
    mapping, frozen = padded()
    entry = mapping.entries["conv.weight"]
    assert isinstance(entry, Picked)
    first = Part(entry.parts[0].rows, (4, 1, 6, None))
    wrong = Picked(entry.key, (first, *entry.parts[1:]), entry.size)
    everything = {**mapping.entries, **mapping.requires, "conv.weight": wrong}
    swapped = StateDictMap(everything, model=frozen)
    swapped.load_original(original.state_dict())
    x = image()
    assert not close(frozen(x), original(x))
    assert not same(mapping.to_original(fill=original.state_dict()), original.state_dict())


def test_fine_tuned_weights_come_back_beside_those_that_the_mask_hid() -> None:
    original = trained()
    mapping, frozen = padded()
    mapping.load_original(original.state_dict())
    before = copy.deepcopy(original.state_dict())
    with torch.no_grad():
        frozen.conv.weight.mul_(3)
        frozen.bn.running_var.mul_(0.5)  # of padding as well, as training does
    fill = {key: value.float() for key, value in before.items()}
    back = mapping.to_original(fill=fill)
    mask = groups_of(original.flgc).mask()[:, :, None, None] > 0
    weight = before["flgc.conv.weight"]
    assert back["flgc.conv.weight"].dtype == torch.float64
    assert torch.equal(back["flgc.conv.weight"], torch.where(mask, 3 * weight, weight.float()))
    assert torch.equal(back["bn.running_var"], before["bn.running_var"] * 0.5)
    assert same(original.state_dict(), before)
    fresh = LearnedOriginal().double().eval()
    fresh.load_state_dict(back)
    x = image()
    assert close(fresh(x), frozen(x))


def test_what_the_mask_hid_must_come_from_somewhere() -> None:
    original = trained()
    mapping, _ = padded()
    mapping.load_original(original.state_dict())
    hidden = 6 * int((groups_of(original.flgc).mask() == 0).sum())
    words = rf"{hidden} of the {6 * OUT * IN} elements of 'flgc.conv.weight' .* give `fill`"
    with pytest.raises(UsageError, match=words):
        mapping.to_original()
    state = original.state_dict()
    with pytest.raises(UsageError, match=r"`fill` is \[7, 11\], and \[11, 7, 3, 2\] is needed"):
        mapping.to_original(fill={**state, "flgc.conv.weight": torch.ones(7, 11)})
    with pytest.raises(UsageError, match=f"`fill` has no 'flgc.{MAPS[0]}'"):
        mapping.to_original(fill={"flgc.conv.weight": state["flgc.conv.weight"]})


def test_padding_that_was_trained_is_refused() -> None:
    mapping, frozen = padded()
    state = trained().state_dict()
    mapping.load_original(state)
    with torch.no_grad():
        frozen.conv.weight[0, 3] += 0.1
    with pytest.raises(RewriteError, match=r"6 elements of padding in 'conv.weight' .* longer 0"):
        mapping.to_original(fill=state)


def test_copies_that_went_apart_are_refused() -> None:
    twice = Picked("w", (Part((1, 0), (0, 1)), Part((1,), (1, 0))), (2, 2))
    mapping = StateDictMap({"n": twice})
    w = torch.tensor([[2.0, 3.0], [5.0, 7.0]])
    new = mapping.convert({"w": w})
    assert torch.equal(mapping.to_original(new)["w"], w)
    new["n"][2, 0] += 1
    with pytest.raises(RewriteError, match=r"'w' of the original .* 'n' holds .* a second time"):
        mapping.to_original(new)


def test_weights_trained_behind_a_factor_come_back_within_a_rounding() -> None:
    part = Part((0,), tuple(range(999)), ((11,) * 999,))
    mapping = StateDictMap({"n": Picked("w", (part,), (1, 999))})
    new = torch.rand(1, 999)
    assert not torch.equal(new / 11 * 11, new)
    assert torch.equal(mapping.to_original({"n": new})["w"], new / 11)


CHANGES: dict[str, tuple[Members, Members, str]] = {
    "input": (((1, 4), (0, 2, 3, 5, 6), ()), OUTPUTS, "1 of 7 input channels are in other"),
    "filters": (
        INPUTS,
        ((0, 3, 7), (1, 2, 4, 8), (5, 6, 9, 10)),
        "2 of 11 filters are in other groups",
    ),
    "tie": (((1, 3, 4, 6), *INPUTS[1:]), OUTPUTS, "1 of 7 input channels are in other"),
    "both": (
        ((), (0, 1, 2, 3, 4, 5, 6), ()),
        ((), (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10), ()),
        "3 of 7 input channels and 6 of 11 filters",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
def test_a_checkpoint_with_other_groups_is_refused(change: str, strict: bool) -> None:
    inputs, outputs, words = CHANGES[change]
    mapping, frozen = padded()
    before = copy.deepcopy(frozen.state_dict())
    other = trained(inputs, outputs).state_dict()
    with pytest.raises(UsageError, match=f"frozen: flgc: {words}.*rewrite that"):
        mapping.load_original(other, strict=strict)
    with pytest.raises(UsageError, match=words):
        mapping.convert(other)
    assert same(frozen.state_dict(), before)


def test_the_same_groups_in_another_order_are_the_same() -> None:
    original = trained((INPUTS[2], *INPUTS[:2]), (OUTPUTS[2], *OUTPUTS[:2]))
    mapping, frozen = padded()
    mapping.load_original(original.state_dict())
    x = image()
    assert close(frozen(x), original(x))


BAD: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no-map": (lambda s: s.pop(f"flgc.{MAPS[0]}"), rf"1 missing \(flgc.{MAPS[0]}\)"),
    "map-rows": (
        lambda s: s.update({f"flgc.{MAPS[1]}": torch.ones(7, 3)}),
        r"flgc: a map is \[7, 3\], and 11 filters are needed",
    ),
    "map-no-tensor": (
        lambda s: s.update({f"flgc.{MAPS[0]}": 3}),
        f"'flgc.{MAPS[0]}' is a int, not a tensor",
    ),
    "rows": (
        lambda s: s.update({"flgc.conv.weight": torch.ones(12, 7, 3, 2)}),
        r"is \[12, 7, 3, 2\], and 11 rows are needed",
    ),
    "columns": (
        lambda s: s.update({"flgc.conv.weight": torch.ones(11, 4, 3, 2)}),
        r"is \[11, 4, 3, 2\], and 7 columns are needed",
    ),
    "kernel": (
        lambda s: s.update({"flgc.conv.weight": torch.ones(11, 7, 3, 3)}),
        r"is \[11, 7, 3, 3\], and \[11, 7, 3, 2\] is needed",
    ),
    "vector": (
        lambda s: s.update({"bn.running_var": torch.ones(15)}),
        r"'bn.running_var' is \[15\], and 11 rows are needed",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_checkpoint_is_refused_and_nothing_is_loaded(case: str) -> None:
    change, words = BAD[case]
    mapping, frozen = padded()
    before = copy.deepcopy(frozen.state_dict())
    state = dict(trained().state_dict())
    change(state)
    with pytest.raises(UsageError, match=words):
        mapping.load_original(state)
    assert same(frozen.state_dict(), before)


def test_without_its_maps_a_checkpoint_loads_only_if_asked_to() -> None:
    mapping, _ = padded()
    state = {key: value for key, value in trained().state_dict().items() if "_map" not in key}
    result = mapping.load_original(state, strict=False)
    assert result.missing == tuple(f"flgc.{name}" for name in MAPS)


def test_a_state_dict_of_another_form_is_refused() -> None:
    mapping, _ = padded()
    _, other = dense()
    with pytest.raises(UsageError, match=r"missing or of the wrong shape \(conv.weight, conv.bias"):
        mapping.to_original(other.state_dict())


def test_frozen_and_then_split() -> None:
    mapping, _ = padded()
    halves = {name: Rows("conv.weight", *rows) for name, rows in (("a", (0, 5)), ("b", (5, 15)))}
    rest = {key: Rows(key) for key in mapping.entries if key != "conv.weight"}
    both = mapping.then(StateDictMap({**halves, **rest}))
    state = trained().state_dict()
    converted = both.convert(state)
    assert torch.equal(converted["a"], mapping.convert(state)["conv.weight"][:5])
    assert same(both.to_original(converted, fill=state), state)
    assert both.requires == mapping.requires
    assert both.dropped == mapping.dropped
    with pytest.raises(UsageError, match="1 of 7 input channels"):
        both.convert(trained(*CHANGES["input"][:2]).state_dict())


def test_renamed_and_then_frozen() -> None:
    second, _ = padded()
    first = StateDictMap({key: Rows(f"net.{key}") for key in LearnedOriginal().state_dict()})
    both = first.then(StateDictMap({**second.entries, **second.requires}))
    state = {f"net.{key}": value for key, value in trained().state_dict().items()}
    assert same(both.to_original(both.convert(state), fill=state), state)
    assert both.dropped == {f"net.flgc.{name}" for name in MAPS}
    moved = {f"net.{k}": v for k, v in trained(*CHANGES["input"][:2]).state_dict().items()}
    with pytest.raises(UsageError, match=r"net\.flgc: 1 of 7 input channels"):
        both.convert(moved)
    cut = {**first.entries, f"flgc.{MAPS[0]}": Rows(f"net.flgc.{MAPS[0]}", 0, 7)}
    with pytest.raises(UsageError, match=f"requires something of 'flgc.{MAPS[0]}', .* a part"):
        StateDictMap(cut).then(StateDictMap({**second.entries, **second.requires}))


def test_the_dense_form_is_the_layer_itself() -> None:
    """The oracle of the tests above: what the layer computes is the masked convolution."""
    original = trained(TIED_INPUTS, TIED_OUTPUTS)
    mapping, _ = dense()
    weight = mapping.convert(original.state_dict())["conv.weight"].flip(0)
    x = image()
    assert close(F.conv2d(x, weight, original.flgc.conv.bias), original.flgc(x))
    assert sorted(set(groups_of(original.flgc).mask().flatten().tolist())) == [0, 1, 2]
