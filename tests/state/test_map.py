"""Checkpoints between an original and its split form, on a model that is split by hand."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import groupfx
from groupfx.errors import InternalError, RewriteError, UsageError
from groupfx.state.map import Rows, StateDictMap


class Original(nn.Module):
    """A grouped convolution and its BatchNorm: 6 -> 10 channels in 2 groups."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.conv = nn.Conv2d(6, 10, 3, groups=2)
        self.bn = nn.BatchNorm2d(10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x)) * self.scale
        return y


class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.0))
        self.conv = nn.ModuleList([nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, 3)])
        self.bn = nn.ModuleList([nn.BatchNorm2d(5), nn.BatchNorm2d(5)])

    def forward(self, x: Tensor) -> Tensor:
        halves = (x[:, :3], x[:, 3:])
        parts = [bn(conv(half)) for half, conv, bn in zip(halves, self.conv, self.bn, strict=True)]
        return torch.cat(parts, dim=1) * self.scale


def entries() -> dict[str, Rows]:
    found = {"scale": Rows("scale")}
    for branch in (0, 1):
        rows = 5 * branch, 5 * branch + 5
        for name in ("conv.weight", "conv.bias", "bn.weight", "bn.bias"):
            found[name.replace(".", f".{branch}.")] = Rows(name, *rows)
        for name in ("running_mean", "running_var"):
            found[f"bn.{branch}.{name}"] = Rows(f"bn.{name}", *rows)
        found[f"bn.{branch}.num_batches_tracked"] = Rows("bn.num_batches_tracked")
    return found


def trained(seed: int = 0) -> Original:
    """An original whose every tensor is random, and whose BatchNorm has seen three batches."""
    torch.manual_seed(seed)
    model = Original().double()
    for tensor in (*model.parameters(), model.bn.running_mean, model.bn.running_var):
        assert tensor is not None
        nn.init.uniform_(tensor, 0.5, 2.0)
    for _ in range(3):
        model(torch.randn(2, 6, 5, 7, dtype=torch.float64))
    return model.eval()


def split_map() -> tuple[StateDictMap, Split]:
    model = Split().double().eval()
    return StateDictMap(entries(), model=model), model


def same(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_an_original_checkpoint_loads_and_comes_back() -> None:
    original = trained()
    mapping, split = split_map()
    result = mapping.load_original(original.state_dict())
    assert (result.missing, result.unexpected) == ((), ())
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    assert torch.equal(split(x), original(x))
    assert same(mapping.to_original(), original.state_dict())
    assert same(mapping.to_original(split.state_dict()), original.state_dict())
    assert same(mapping.convert(original.state_dict()), split.state_dict())
    fresh = Original().double()
    fresh.load_state_dict(mapping.to_original())
    assert torch.equal(fresh.eval()(x), original(x))


def test_a_map_with_swapped_branches_would_be_seen() -> None:
    swapped = entries()
    swapped["conv.0.weight"], swapped["conv.1.weight"] = (
        swapped["conv.1.weight"],
        swapped["conv.0.weight"],
    )
    original, split = trained(), Split().double().eval()
    mapping = StateDictMap(swapped, model=split)
    mapping.load_original(original.state_dict())
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    assert not torch.equal(split(x), original(x))
    assert not same(StateDictMap(entries(), model=split).to_original(), original.state_dict())


def test_training_goes_on_alike_and_its_checkpoint_comes_back() -> None:
    original = trained()
    mapping, split = split_map()
    mapping.load_original(original.state_dict())
    models = (original.train(), split.train())
    x = torch.randn(3, 6, 5, 7, dtype=torch.float64)
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(x).square().sum().backward()
        optimizer.step()
    # In float64 the gradients are equal to the bit on most CPUs; rounding is allowed for.
    back = mapping.to_original()
    for key, value in original.state_dict().items():
        assert torch.allclose(back[key], value, rtol=1e-12, atol=1e-12), key
    assert back["bn.num_batches_tracked"] == 4


def test_converted_rows_own_their_memory() -> None:
    original = trained()
    converted = split_map()[0].convert(original.state_dict())
    converted["conv.0.weight"].zero_()
    assert same(original.state_dict(), trained().state_dict())
    given = {
        key: value.requires_grad_(value.is_floating_point())
        for key, value in split_map()[1].state_dict().items()
    }
    assert not split_map()[0].to_original(given)["conv.weight"].requires_grad


Change = Callable[[dict[str, Any]], object]
BAD_CHECKPOINTS: dict[str, tuple[Change, list[str]]] = {
    "missing": (lambda s: s.pop("conv.weight"), ["1 missing (conv.weight)", "strict=False"]),
    "unexpected": (lambda s: s.update(fc=torch.ones(1)), ["1 unexpected (fc)", "strict=False"]),
    "rows": (
        lambda s: s.update({"conv.weight": torch.ones(12, 3, 3, 3)}),
        ["1 of the wrong shape", "'conv.weight' is [12, 3, 3, 3]", "10 rows are needed"],
    ),
    "columns": (
        lambda s: s.update({"conv.weight": torch.ones(10, 2, 3, 3)}),
        ["'conv.weight' is [10, 2, 3, 3], and [10, 3, 3, 3] is needed"],
    ),
    "0-d": (
        lambda s: s.update({"conv.bias": torch.tensor(1.0), "scale": torch.ones(2)}),
        ["2 of the wrong shape", "'conv.bias' is []", "'scale' is [2], and [] is needed"],
    ),
    "no-tensor": (lambda s: s.update({"bn.bias": 3}), ["'bn.bias' is a int, not a tensor"]),
    "meta": (
        lambda s: s.update({"bn.bias": torch.ones(10, device="meta")}),
        ["'bn.bias' holds no plain data (device meta"],
    ),
    "everything": (
        lambda s: [s.update({f"{key}.other": s.pop(key)}) for key in list(s)],
        ["7 missing (scale, conv.weight", "and 3 more", "8 unexpected"],
    ),
    "nested": (
        lambda s: [s.update(net=dict(s)), *(s.pop(key) for key in list(s) if key != "net")],
        ["7 missing", "may be inside, such as under 'net'"],
    ),
}


@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
def test_a_wrong_checkpoint_is_refused_and_nothing_is_loaded(case: str) -> None:
    change, words = BAD_CHECKPOINTS[case]
    checkpoint = dict(trained().state_dict())
    change(checkpoint)
    mapping, split = split_map()
    before = copy.deepcopy(split.state_dict())
    for load in (mapping.load_original, mapping.convert):
        with pytest.raises(UsageError) as caught:
            load(checkpoint)
        assert all(word in str(caught.value) for word in words), str(caught.value)
    assert same(split.state_dict(), before)


def test_what_is_no_state_dict_is_refused() -> None:
    with pytest.raises(UsageError, match="this is a list"):
        split_map()[0].load_original([1, 2])  # type: ignore[arg-type]


def test_not_strict_tells_what_did_not_fit_but_wants_the_shapes() -> None:
    original = trained()
    mapping, split = split_map()
    before = copy.deepcopy(split.state_dict())
    checkpoint = dict(original.state_dict())
    del checkpoint["conv.weight"]
    checkpoint["fc"] = torch.ones(1)
    result = mapping.load_original(checkpoint, strict=False)
    assert (result.missing, result.unexpected) == (("conv.weight",), ("fc",))
    assert torch.equal(split.state_dict()["conv.1.weight"], before["conv.1.weight"])
    assert torch.equal(split.state_dict()["conv.1.bias"], checkpoint["conv.bias"][5:])
    checkpoint["conv.bias"] = torch.ones(7)
    with pytest.raises(UsageError, match=r"'conv.bias' is \[7\]"):
        mapping.load_original(checkpoint, strict=False)


def test_checkpoints_older_than_the_batch_counter_load_as_in_torch() -> None:
    original = trained()
    checkpoint = original.state_dict()
    del checkpoint["bn.num_batches_tracked"]
    mapping, split = split_map()
    with pytest.raises(UsageError, match=r"missing \(bn.num_batches_tracked\)"):
        mapping.load_original(checkpoint)
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        Original().double().load_state_dict(checkpoint)
    old = dict(checkpoint)  # no module versions, as torch wrote them then
    Original().double().load_state_dict(old)
    mapping.load_original(old)
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    assert torch.equal(split(x), original(x))


def test_branches_that_disagree_are_refused() -> None:
    mapping, split = split_map()
    mapping.load_original(trained().state_dict())
    split.get_buffer("bn.1.num_batches_tracked").add_(1)
    with pytest.raises(RewriteError, match=r"'bn.1.num_batches_tracked' and 'bn.0.num_batches"):
        mapping.to_original()


def test_not_a_number_agrees_with_itself() -> None:
    mapping, split = split_map()
    split.get_parameter("conv.1.weight").data.fill_(torch.nan)
    assert mapping.to_original()["conv.weight"].isnan().sum() == 5 * 3 * 3 * 3


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda s: s.pop("conv.1.bias"), UsageError, r"1 missing or of the wrong.*conv.1.bias"),
        (lambda s: s.update({"conv.1.bias": torch.ones(4)}), UsageError, "conv.1.bias"),
        (lambda s: s.update({"conv.1.bias": 3}), UsageError, "conv.1.bias"),
        (
            lambda s: s.update({"conv.1.weight": torch.ones(5, 3, 3, 2)}),
            RewriteError,
            r"'conv.weight' cannot be joined: their shapes are \[5, 3, 3, 3\], \[5, 3, 3, 2\]",
        ),
    ],
    ids=["missing", "rows", "no-tensor", "columns"],
)
def test_a_wrong_state_dict_of_the_rewritten_model(
    change: Change, error: type[Exception], words: str
) -> None:
    mapping, split = split_map()
    state = dict(split.state_dict())
    change(state)
    with pytest.raises(error, match=words):
        mapping.to_original(state)


def test_rows_that_went_away_cannot_come_back() -> None:
    lost = {key: rows for key, rows in entries().items() if not key.startswith("conv.0.")}
    split = Split().double()
    with pytest.raises(
        RewriteError, match=r"'conv.weight' .* of its 10 rows, .* lacks those from 0 on"
    ):
        StateDictMap(lost, model=split).to_original()


def test_a_map_of_another_model_is_our_own_bug() -> None:
    mapping = StateDictMap({**entries(), "conv.2.bias": Rows("conv.bias")}, model=Split())
    with pytest.raises(InternalError, match=r"conv.2.bias"):
        mapping.load_original(Original().state_dict())


def test_dropped_keys_are_ignored_and_filled_in() -> None:
    split = Split().double()
    checkpoint = {**trained().state_dict(), "aux.weight": torch.ones(3)}
    mapping = StateDictMap(entries(), dropped=["aux.weight", "scale"], model=split)
    assert mapping.dropped == {"aux.weight"}
    mapping.load_original(checkpoint)
    assert "aux.weight" not in mapping.to_original()
    assert same(mapping.to_original(fill=checkpoint), checkpoint)
    with pytest.raises(UsageError, match=r"`fill` has no 'aux.weight'"):
        mapping.to_original(fill={})


def test_without_a_model_only_dicts_are_converted() -> None:
    original = trained().state_dict()
    mapping = StateDictMap(entries())
    converted = mapping.convert(original)
    assert same(converted, split_map()[0].convert(original))
    assert same(mapping.to_original(converted), original)
    with pytest.raises(UsageError, match="does not know its model"):
        mapping.load_original(original)
    with pytest.raises(UsageError, match="does not know its model"):
        mapping.to_original()


def test_tied_weights_and_a_mix_of_whole_and_rows() -> None:
    table = {
        "a.0.weight": Rows("a.weight", 0, 2),
        "a.1.weight": Rows("a.weight", 2, 5),
        "b.0.weight": Rows("a.weight", 0, 2),
        "b.1.weight": Rows("a.weight", 2, 5),
        "c.weight": Rows("a.weight"),
    }
    mapping = StateDictMap(table)
    weight = torch.randn(5, 3)
    converted = mapping.convert({"a.weight": weight})
    assert [len(converted[key]) for key in table] == [2, 3, 2, 3, 5]
    assert torch.equal(mapping.to_original(converted)["a.weight"], weight)
    converted["b.1.weight"][1, 1] += 1
    with pytest.raises(RewriteError, match=r"'b.1.weight' and 'c.weight' should hold the same"):
        mapping.to_original(converted)
    with pytest.raises(UsageError, match="5 rows are needed"):
        mapping.convert({"a.weight": torch.randn(6, 3)})


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_any_cut_into_rows_comes_back(sizes: list[int], random: Any) -> None:
    cuts = [sum(sizes[:place]) for place in range(len(sizes) + 1)]
    table = [(f"w.{n}", Rows("w", cuts[n], cuts[n + 1])) for n in range(len(sizes))]
    random.shuffle(table)
    mapping = StateDictMap(dict(table))
    weight = torch.arange(3.0 * cuts[-1]).reshape(cuts[-1], 3)
    converted = mapping.convert({"w": weight})
    parts = torch.split(weight, sizes)
    assert all(torch.equal(converted[f"w.{n}"], part) for n, part in enumerate(parts))
    assert torch.equal(mapping.to_original(converted)["w"], weight)


def test_maps_compose() -> None:
    first = StateDictMap(
        {"m.0": Rows("w", 0, 6), "m.1": Rows("w", 6, 10), "n": Rows("w"), "s": Rows("t")},
        dropped=["gone"],
    )
    second = StateDictMap(
        {"x": Rows("m.0", 1, 6), "y": Rows("m.1"), "z": Rows("n", 2, 10), "m0": Rows("m.0", 0, 1)},
        dropped=["s"],
        model=nn.Identity(),
    )
    both = first.then(second)
    assert both.entries == {
        "x": Rows("w", 1, 6),
        "y": Rows("w", 6, 10),
        "z": Rows("w", 2, 10),
        "m0": Rows("w", 0, 1),
    }
    assert both.dropped == {"gone", "t"}
    assert both.model is second.model
    state = {"w": torch.randn(10, 3), "t": torch.randn(2), "gone": torch.randn(1)}
    in_two = StateDictMap(second.entries, dropped=second.dropped).convert(first.convert(state))
    assert same(StateDictMap(both.entries, dropped=both.dropped).convert(state), in_two)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"x": Rows("m"), "y": Rows("k")}, "makes no 'k'"),
        ({"x": Rows("m", 2, 5)}, r"m\[2:5\] is beyond the end of w\[3:7\]"),
        ({}, r"1 not named in the second \(m\)"),
    ],
    ids=["unknown", "too-long", "silent"],
)
def test_maps_that_do_not_compose(table: dict[str, Rows], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        StateDictMap({"m": Rows("w", 3, 7)}).then(StateDictMap(table))


def test_a_map_is_plain_data() -> None:
    mapping = StateDictMap(entries(), dropped=["aux"])
    data = json.loads(json.dumps(mapping.to_dict()))
    again = StateDictMap.from_dict(data)
    assert (again.entries, again.dropped) == (mapping.entries, mapping.dropped)
    assert repr(again) == "StateDictMap(15 tensors from 8 of the original, 1 dropped)"


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        {"format": 2, "entries": {}, "dropped": []},
        {"format": 1, "entries": [], "dropped": []},
        {"format": 1, "entries": {"a": ["b", 0]}, "dropped": []},
        {"format": 1, "entries": {"a": ["b", 0, 1.5]}, "dropped": []},
        {"format": 1, "entries": {"a": [None, 0, 1]}, "dropped": []},
        {"format": 1, "entries": {"a": ["b", 3, 1]}, "dropped": []},
        {"format": 1, "entries": {}, "dropped": None},
    ],
    ids=str,
)
def test_other_data_is_no_map(data: Any) -> None:
    with pytest.raises(UsageError):
        StateDictMap.from_dict(data)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (3, 1), (1, None)])
def test_impossible_rows(start: int, stop: int | None) -> None:
    with pytest.raises(UsageError, match="0 <= start < stop"):
        Rows("w", start, stop)


def test_a_tensor_that_no_checkpoint_holds_is_none_of_the_map() -> None:
    class Blur(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 1, groups=2)
            self.kernel = torch.rand(6, 1, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(self.conv(x), self.kernel.to(x), groups=6)

    model, x = Blur(), torch.randn(2, 6, 5, 5)
    result = groupfx.rewrite(model, (x,))
    assert result.report.way == "trace"
    assert result.state_dict_map.to_original().keys() == model.state_dict().keys()
    model.conv.reset_parameters()
    result.state_dict_map.load_original(model.state_dict())
    torch.testing.assert_close(result.model(x), model(x))
