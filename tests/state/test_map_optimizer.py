"""Optimisers carried between a masked weight and the blocks that a frozen layer keeps of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from groupfx.errors import RewriteError, UsageError
from groupfx.state.map import Entry, Part, Picked, Rows, StateDictMap

ROWS, COLUMNS = 5, 7
# Two blocks, each padded to 3 rows and 4 columns; row 4 reads nothing.
BLOCKS = (Part((3, 0, None), (6, 1, 4, 2)), Part((1, 2, 4), (5, 0, None, None)))
TABLE: dict[str, Entry] = {
    "weight": Picked("weight", BLOCKS, (ROWS, COLUMNS)),
    "bias": Picked("bias", (Part((3, 0, None, 1, 2, 4)),), (ROWS,)),
}
Build = Callable[[Any], optim.Optimizer]
OPTIMIZERS: dict[str, Build] = {
    "sgd-momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: optim.Adam(p, lr=0.01, amsgrad=True, weight_decay=0.1),
    "adamw": lambda p: optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, centered=True, momentum=0.9),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.3),
    "rprop": lambda p: optim.Rprop(p, lr=0.1),
}


class Weights(nn.Module):
    def __init__(self, rows: int, columns: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, columns, 3))
        self.bias = nn.Parameter(torch.randn(channels))


def mask() -> Tensor:
    """1 where a block holds the element; written out, not taken from the map."""
    held = torch.zeros(ROWS, COLUMNS, 1)
    for row, columns in ((3, (6, 1, 4, 2)), (0, (6, 1, 4, 2)), (1, (5, 0)), (2, (5, 0))):
        held[row, list(columns)] = 1
    held[4, [5, 0]] = 1
    return held


def pair(table: dict[str, Entry] = TABLE) -> tuple[Weights, Weights, StateDictMap]:
    """The original, its frozen form with the same values, and the map."""
    original, frozen = Weights(ROWS, COLUMNS, ROWS), Weights(6, 4, 6)
    original.maps = nn.Parameter(torch.randn(COLUMNS, 2))
    mapping = StateDictMap(table, dropped=["maps"], model=frozen)
    mapping.load_original(original.state_dict())
    return original, frozen, mapping


def step(optimizer: optim.Optimizer, model: Weights, number: int) -> None:
    """One step on random gradients, of the original or of what is left of it."""
    generator = torch.Generator().manual_seed(number)
    weight = torch.randn(ROWS, COLUMNS, 3, generator=generator) * mask()
    bias = torch.randn(ROWS, generator=generator)
    if len(model.weight) == ROWS:
        model.weight.grad, model.bias.grad = weight, bias
        model.maps.grad = torch.ones(COLUMNS, 2)
    else:
        model.weight.grad = torch.zeros(6, 4, 3)
        for first, rows, columns in ((0, (3, 0), (6, 1, 4, 2)), (3, (1, 2, 4), (5, 0))):
            for place, row in enumerate(rows):
                kept = weight[row][list(columns)]
                model.weight.grad[first + place, : len(columns)] = kept
        model.bias.grad = torch.stack([*bias[[3, 0]], torch.zeros(()), *bias[[1, 2, 4]]])
    optimizer.step()


def agree(original: Weights, frozen: Weights) -> bool:
    """Whether the frozen form holds the original's values, to the bit, and padding is still 0."""
    expected = StateDictMap(TABLE, dropped=["maps"]).convert(original.state_dict())
    state = frozen.state_dict()
    return all(torch.equal(state[key], expected[key]) for key in state)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_steps_are_the_same_there_and_back(name: str) -> None:
    original, frozen, mapping = pair()
    optimizer = OPTIMIZERS[name](original.parameters())
    for number in range(3):
        step(optimizer, original, number)
    mapping.load_original(original.state_dict())
    converted = mapping.convert_optimizer(optimizer, original)
    assert [id(p) for p in converted.param_groups[0]["params"]] == [
        id(frozen.weight),
        id(frozen.bias),
    ]
    for number in range(3, 6):
        step(optimizer, original, number)
        step(converted, frozen, number)
    assert agree(original, frozen)

    again, _, _ = pair()
    state = original.state_dict()
    again.load_state_dict(mapping.to_original(fill=state))
    assert all(torch.equal(again.state_dict()[key], state[key]) for key in state)
    back = mapping.optimizer_to_original(converted, again)
    hidden = mask().expand(ROWS, COLUMNS, 3) == 0
    for key, value in back.state[again.weight].items():
        before = optimizer.state[original.weight][key]
        if isinstance(value, Tensor) and value.dim():
            assert torch.equal(value[~hidden], before[~hidden]), key
            assert not value[hidden].any(), key
        else:
            assert value == before
    step(back, again, 6)
    step(optimizer, original, 6)
    shown = ~hidden
    assert torch.equal(again.weight[shown], original.weight[shown])
    assert torch.equal(again.bias, original.bias)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_fresh_optimiser_would_be_seen(name: str) -> None:
    original, frozen, mapping = pair()
    optimizer = OPTIMIZERS[name](original.parameters())
    for number in range(3):
        step(optimizer, original, number)
    mapping.load_original(original.state_dict())
    fresh = OPTIMIZERS[name](frozen.parameters())
    step(optimizer, original, 3)
    step(fresh, frozen, 3)
    assert not agree(original, frozen)


def test_factors_are_refused_in_both_directions() -> None:
    doubled = Part(BLOCKS[0].rows, BLOCKS[0].columns, ((1, 1, 2, 1), (1,) * 4, (1,) * 4))
    weight = Picked("weight", (doubled, BLOCKS[1]), (ROWS, COLUMNS))
    original, frozen, mapping = pair({**TABLE, "weight": weight})
    words = r"elements of 'weight' times a factor, .* steps are scaled"
    with pytest.raises(RewriteError, match=words):
        mapping.convert_optimizer(optim.SGD(original.parameters()), original)
    with pytest.raises(RewriteError, match=words):
        mapping.optimizer_to_original(optim.SGD(frozen.parameters()), original)
    ones = Part(BLOCKS[0].rows, BLOCKS[0].columns, ((1,) * 4,) * 3)
    weight = Picked("weight", (ones, BLOCKS[1]), (ROWS, COLUMNS))
    original, frozen, mapping = pair({**TABLE, "weight": weight})
    converted = mapping.convert_optimizer(optim.SGD(original.parameters()), original)
    assert type(converted) is optim.SGD


def test_an_element_that_is_there_twice_is_refused() -> None:
    twice = Part((1, 2, 4), (5, 0, 5, None))
    weight = Picked("weight", (BLOCKS[0], twice), (ROWS, COLUMNS))
    original, _, mapping = pair({**TABLE, "weight": weight})
    with pytest.raises(RewriteError, match=r"'weight' .* not tied, or several times in one"):
        mapping.convert_optimizer(optim.SGD(original.parameters()), original)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("weight", (4, COLUMNS, 3)), ("weight", (ROWS, 6, 3)), ("weight", (ROWS, COLUMNS, 2))],
    ids=["rows", "columns", "kernel"],
)
def test_another_model_is_refused(name: str, shape: tuple[int, ...]) -> None:
    original, _, mapping = pair()
    setattr(original, name, nn.Parameter(torch.ones(shape)))
    with pytest.raises(UsageError, match=f"'{name}' of the model given is"):
        mapping.convert_optimizer(optim.SGD(original.parameters()), original)


def test_rows_and_picks_of_one_parameter_go_together() -> None:
    frozen = nn.Module()
    frozen.a = nn.Parameter(torch.zeros(2, COLUMNS, 3))
    frozen.b = nn.Parameter(torch.zeros(2, 3, 3))
    columns = (6, 0, 3)
    table: dict[str, Entry] = {
        "a": Rows("weight", 0, 2),
        "b": Picked("weight", (Part((4, 2), columns),), (ROWS, COLUMNS)),
    }
    mapping = StateDictMap(table, dropped=["bias", "maps"], model=frozen)
    original, _, _ = pair()
    optimizer = optim.Adam([original.weight])
    original.weight.grad = torch.randn(ROWS, COLUMNS, 3)
    optimizer.step()
    converted = mapping.convert_optimizer(optimizer, original)
    moments = optimizer.state[original.weight]["exp_avg"]
    assert torch.equal(converted.state[frozen.a]["exp_avg"], moments[:2])
    assert torch.equal(converted.state[frozen.b]["exp_avg"], moments[[4, 2]][:, list(columns)])
    back = mapping.optimizer_to_original(converted, original)
    expected = torch.zeros_like(moments)
    expected[:2] = moments[:2]
    for row in (2, 4):
        expected[row, list(columns)] = moments[row, list(columns)]
    assert torch.equal(back.state[original.weight]["exp_avg"], expected)


def test_state_of_padding_is_0_whatever_padding_is() -> None:
    frozen = nn.Module()
    frozen.bias = nn.Parameter(torch.ones(3))
    scale = Picked("bias", (Part((4, None, 1)),), (ROWS,), 1.0)
    mapping = StateDictMap({"bias": scale}, dropped=["weight", "maps"], model=frozen)
    original, _, _ = pair()
    optimizer = optim.Adam([original.bias])
    original.bias.grad = torch.ones(ROWS)
    optimizer.step()
    moments = optimizer.state[original.bias]["exp_avg"]
    found = mapping.convert_optimizer(optimizer, original).state[frozen.bias]["exp_avg"]
    assert found.tolist() == [moments[4], 0, moments[1]]


def test_rows_that_went_away_are_no_masked_elements() -> None:
    frozen = nn.Module()
    frozen.bias = nn.Parameter(torch.ones(3))
    entry: dict[str, Entry] = {"bias": Rows("bias", 0, 3)}
    mapping = StateDictMap(entry, dropped=["weight", "maps"], model=frozen)
    original, _, _ = pair()
    optimizer = optim.Adam(frozen.parameters())
    with pytest.raises(RewriteError, match=r"'bias' .* has 5 rows, .* holds 3 of them"):
        mapping.optimizer_to_original(optimizer, original)


def test_an_optimiser_over_a_compiled_model_is_one_over_the_model() -> None:
    original, frozen, state = pair()
    compiled = torch.compile(original, backend="eager")
    optimizer = OPTIMIZERS["sgd-momentum"](compiled.parameters())
    converted = state.convert_optimizer(optimizer, compiled)
    held = {id(p) for group in converted.param_groups for p in group["params"]}
    assert held == {id(p) for p in frozen.parameters()}
    back = state.optimizer_to_original(converted, compiled)
    assert back.param_groups[0]["params"][0] is original.weight
