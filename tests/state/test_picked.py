"""`Picked` on its own: what it takes, puts back, counts and writes down, against an oracle."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groupfx.errors import UsageError
from groupfx.state import Reader, compose, coverage, entry_to_plain
from groupfx.state.map import Part, Picked, Rows, StateDictMap
from tests.state.picked_oracle import made, origins, picked

ROWS, COLUMNS = 5, 7
KERNELS = {"linear": (), "1d": (3,), "2d": (3, 2)}
sizes = st.sampled_from([(ROWS,), (ROWS, COLUMNS)])


def whole(*rest: int) -> torch.Tensor:
    """Distinct integers: a swapped pair cannot hide, and factors are exact."""
    count = ROWS * COLUMNS * int(np.prod(rest))
    return torch.arange(1.0, count + 1).reshape(ROWS, COLUMNS, *rest)


def entry() -> Picked:
    """Rows of two groups, with padding of both kinds and a factor."""
    return Picked(
        "w",
        (
            Part((4, 0, None), (6, 1, None)),
            Part((2, 1), (0, 3, 5), ((2, 1, 1), (1, 1, 3))),
        ),
        (ROWS, COLUMNS),
    )


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_elements_are_where_the_parts_say(kernel: tuple[int, ...]) -> None:
    w = whole(*kernel)
    new = entry().of(w)
    assert new.shape == (5, 3, *kernel)
    assert torch.equal(new[0, 0], w[4, 6])
    assert torch.equal(new[1, 1], w[0, 1])
    assert torch.equal(new[3, 0], 2 * w[2, 0])
    assert torch.equal(new[4, 2], 3 * w[1, 5])
    assert not new[2].any()
    assert not new[0, 2].any()
    assert np.array_equal(new.numpy(), made(entry(), w.numpy()))
    variance = Picked("v", (Part((2, None, 0)),), (ROWS,), 1.0).of(w)
    assert torch.equal(variance, torch.stack([w[2], torch.ones_like(w[0]), w[0]]))


@given(st.data(), sizes)
def test_any_choice_is_what_the_oracle_says(data: Any, size: tuple[int, ...]) -> None:
    choice = data.draw(picked(size))
    w = whole(2)
    assert np.array_equal(choice.of(w).numpy(), made(choice, w.numpy()))
    assert choice.of(w).shape[: len(size)] == choice.shape
    held = np.zeros((ROWS, COLUMNS) if len(size) == 2 else (ROWS,), dtype=int)
    for origin in origins(choice):
        held[origin] += 1
    assert np.array_equal(coverage([choice], w.shape).numpy(), held)
    padding = choice.of(torch.ones_like(w), fill=0.0).numpy() == 0
    assert np.array_equal(choice.held().numpy(), ~padding.reshape(*choice.shape, -1)[..., 0])
    assert choice.is_padded or not padding.any()
    assert choice.is_scaled == bool((choice.of(torch.ones_like(w), fill=1.0) != 1).any())


@given(st.data(), sizes)
def test_what_is_put_back_is_what_was_taken(data: Any, size: tuple[int, ...]) -> None:
    choice = data.draw(picked(size))
    w = whole(2)
    back = torch.zeros_like(w)
    choice.put_back(choice.of(w), back)
    held = coverage([choice], w.shape) > 0
    assert torch.equal(back[held], w[held])
    assert not back[~held].any()


@pytest.mark.parametrize("size", [(ROWS,), (ROWS, COLUMNS)], ids=["rows", "columns"])
def test_the_gradient_is_that_of_autograd(size: tuple[int, ...]) -> None:
    choice = entry() if len(size) == 2 else Picked("w", (Part((3, None, 0)),), size)
    ones = choice.of(torch.ones(ROWS, COLUMNS, dtype=torch.float64), fill=0.0)
    cotangent = torch.arange(1.0, ones.numel() + 1, dtype=torch.float64).reshape(ones.shape)
    w = whole().double().requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    # The original computes with factor * w, the rewritten model with a parameter that is that.
    for origin, place in zip(origins(choice), np.argwhere(choice.held().numpy()), strict=True):
        loss = loss + (cotangent[tuple(place)] * ones[tuple(place)] * w[origin]).sum()
    loss.backward()
    assert w.grad is not None
    gradient = choice.gradient_of(w.grad)
    assert torch.equal(gradient, torch.where(ones != 0, cotangent, 0))


@given(st.data(), sizes)
def test_some_rows_of_a_choice(data: Any, size: tuple[int, ...]) -> None:
    choice = data.draw(picked(size))
    count = choice.shape[0]
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))
    assert torch.equal(choice.part(start, stop).of(whole()), choice.of(whole())[start:stop])
    with pytest.raises(UsageError, match=f"it has the rows 0 ... {count - 1}"):
        choice.part(start, count + 1)


def test_some_rows_of_rows() -> None:
    assert Rows("w", 2, 7).part(1, 3) == Rows("w", 3, 5)
    assert Rows("w").part(1, 3) == Rows("w", 1, 3)
    for start, stop in ((0, 6), (-1, 2), (2, 2)):
        with pytest.raises(UsageError, match=rf"rows {start}:{stop} of w\[2:7\]: it has 5"):
            Rows("w", 2, 7).part(start, stop)


@given(st.data(), sizes)
def test_plain_data_and_back(data: Any, size: tuple[int, ...]) -> None:
    choice = data.draw(picked(size))
    again = Reader().entry(json.loads(json.dumps(entry_to_plain(choice))))
    assert again == choice


def any_entry(data: Any, size: tuple[int, ...]) -> Rows | Picked:
    if data.draw(st.booleans()):
        start = data.draw(st.integers(0, size[0] - 1))
        cut = data.draw(st.booleans())
        return Rows("w", start, data.draw(st.integers(start + 1, size[0]))) if cut else Rows("w")
    axes = data.draw(st.integers(1, len(size)))
    return data.draw(picked(size[:axes], fills=[0.0]))


@given(st.data())
def test_two_in_a_row_are_one(data: Any) -> None:
    first = any_entry(data, (ROWS, COLUMNS))
    middle = first.of(whole(2))
    second = any_entry(data, tuple(middle.shape[:2]))
    both = compose(first, second)
    assert torch.equal(both.of(whole(2)), second.of(middle))
    assert both.key == first.key
    third = any_entry(data, tuple(both.of(whole()).shape[:2]))
    left, right = compose(both, third), compose(first, compose(second, third))
    assert torch.equal(left.of(whole()), right.of(whole()))


@given(st.data())
def test_two_choices_of_columns_are_one(data: Any) -> None:
    first = data.draw(picked((ROWS, COLUMNS)))
    rows, columns = first.shape
    second = data.draw(picked((rows, columns)))
    both = compose(first, second)
    assert torch.equal(both.of(whole(2)), second.of(first.of(whole(2))))


def test_factors_multiply_and_parts_stay_apart() -> None:
    second = Picked(
        "m", (Part((0, 3, 4, 1), (2, 0, 1), ((5,) * 3, (7, 1, 1), (1,) * 3, (2,) * 3)),), (5, 3)
    )
    both = compose(entry(), second)
    assert both == Picked(
        "w",
        (
            Part((4,), (None, 6, 1), ((5, 5, 5),)),
            Part((2, 1), (5, 0, 3), ((7, 2, 1), (3, 1, 1))),
            Part((0,), (None, 6, 1), ((2, 2, 2),)),
        ),
        (ROWS, COLUMNS),
    )


def test_padding_keeps_its_value() -> None:
    variance = Picked("v", (Part((3, None, 1)),), (ROWS,), 1.0)
    turned = Picked("m", (Part((2, 1, 0)),), (3,))
    assert compose(variance, turned) == Picked("v", (Part((1, None, 3)),), (ROWS,), 1.0)
    unpadded = Picked("v", (Part((3, 1)),), (ROWS,))
    padded = Picked("m", (Part((None, 0)),), (2,), 1.0)
    assert compose(unpadded, padded) == Picked("v", (Part((None, 3)),), (ROWS,), 1.0)


def test_rows_that_share_columns_go_on_sharing_them() -> None:
    columns = tuple(range(COLUMNS))
    first = Picked("w", tuple(Part((row,), columns) for row in range(ROWS)), (ROWS, COLUMNS))
    second = Picked("m", (Part(tuple(range(ROWS)), (3, 1)),), (ROWS, COLUMNS))
    both = compose(first, second)
    assert isinstance(both, Picked)
    assert both.parts == (Part((0, 1, 2, 3, 4), (3, 1)),)


IMPOSSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"parts": ()}, "there must be a part"),
    "no-rows": ({"parts": (Part((), (0,)),)}, "every part needs rows"),
    "no-columns": ({"parts": (Part((0,), ()),)}, "at least 1"),
    "uneven": ({"parts": (Part((0,), (0,)), Part((1,), (0, 1)))}, "they have 1, 2"),
    "mixed": ({"parts": (Part((0,), (0,)), Part((1,)))}, "they have 1, None"),
    "row": ({"parts": (Part((0, 5), (0,)),)}, "there is no row 5; count from 0 to 4"),
    "negative": ({"parts": (Part((-1,), (0,)),)}, "there is no row -1"),
    "column": ({"parts": (Part((0,), (7,)),)}, "there is no column 7; count from 0 to 6"),
    "size": ({"size": (5,)}, r"\(rows, columns\) for parts with them"),
    "size-vector": ({"parts": (Part((0,)),)}, r"give \(rows,\) for parts without"),
    "fill": ({"fill": 1.0}, "a tensor with columns is padded with 0, not with 1.0"),
    "factors-shape": ({"parts": (Part((0,), (0, 1), ((1,),)),)}, r"have its shape, \[1, 2\]"),
    "factors-rows": ({"parts": (Part((0, 1), (0,), ((1,),)),)}, r"have its shape, \[2, 1\]"),
    "factors-zero": ({"parts": (Part((0,), (0,), ((0,),)),)}, "a factor is 0; .* give column None"),
    "factors-nan": ({"parts": (Part((0,), (0,), ((float("nan"),),)),)}, "a factor is nan"),
    "factors-vector": ({"parts": (Part((0,), None, ((1,),)),), "size": (5,)}, "need columns"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_choices(case: str) -> None:
    fields, words = IMPOSSIBLE[case]
    with pytest.raises(UsageError, match=words):
        Picked(**{"key": "w", "parts": (Part((0,), (0,)),), "size": (ROWS, COLUMNS), **fields})


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (entry(), Rows("m", 3, 6), r"m\[3:6\] is beyond the end of w \(picked \[5, 3\] of"),
        (entry(), Picked("m", (Part((0,), (0,)),), (5, 4)), r"picked of \[5, 4\], .* \[5, 3\]"),
        (Rows("w", 1, 4), Picked("m", (Part((0,)),), (4,)), r"picked of \[4\], .* has \[3\]"),
        (entry(), Picked("m", (Part((None,)),), (5,), 1.0), r"padded with 1.0, .* with 0.0"),
    ],
    ids=["rows", "columns", "cut", "fill"],
)
def test_choices_that_do_not_compose(first: Any, second: Any, words: str) -> None:
    with pytest.raises(UsageError, match=f"cannot compose: .*{words}"):
        compose(first, second)


def wrong_plain() -> dict[str, Any]:
    def changed(**fields: Any) -> dict[str, Any]:
        return {**entry_to_plain(entry()), **fields}

    return {
        "no-key": changed(key=None),
        "no-size": changed(size=[5, None]),
        "size-string": changed(size="57"),
        "fill": changed(fill="0"),
        "index": changed(columns=[[0, 1, 2.0], [0, 3, 5]]),
        "boolean": changed(columns=[[0, 1, True], [0, 3, 5]]),
        "factor": changed(factors=[[2, 1, None], [1, 1, 3]]),
        "place": changed(parts=[[[0], 2, None]]),
        "negative-place": changed(parts=[[[0], -1, None]]),
        "short-part": changed(parts=[[[0], 0]]),
        "empty-run": changed(parts=[[[[0, 1, 1], []], 0, None]]),
        "short-run": changed(parts=[[[[0, 1]], 0, None]]),
        "no-count": changed(parts=[[[[0, -1, 1], [0, 2, 1]], 0, None]]),
        "enormous": changed(parts=[[[[None, 10**15]], 0, None]]),
        "beyond": changed(parts=[[[5], 0, None]]),
        "no-parts": changed(parts=[]),
    }


@pytest.mark.parametrize("case", wrong_plain())
def test_other_data_is_no_choice(case: str) -> None:
    data = {"format": 1, "entries": {"new": wrong_plain()[case]}, "dropped": []}
    with pytest.raises(UsageError):
        StateDictMap.from_dict(data)


def test_plain_data_is_short_where_the_choice_is_regular() -> None:
    count, groups = 4096, 64
    size = count // groups
    columns = [tuple(range(g, count, groups)) for g in range(groups)]
    rows = [(*range(g * size, g * size + size - 1), None) for g in range(groups)]
    parts = tuple(Part(r, c) for r, c in zip(rows, columns, strict=True))
    grouped = Picked("w", parts, (count, count))
    plain = entry_to_plain(grouped)
    assert Reader().entry(plain) == grouped
    assert len(json.dumps(plain)) < 100 * groups
    masked = Picked("w", tuple(Part((r,), columns[r % groups]) for r in range(count)), grouped.size)
    assert len(entry_to_plain(masked)["columns"]) == groups


def test_an_entry_of_half_precision_and_of_integers_keeps_its_dtype() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int64):
        new = entry().of(whole().to(dtype))
        assert new.dtype == dtype
        assert torch.equal(new, entry().of(whole()).to(dtype))
