"""Values that are the same to the bit, and those that only look so."""

import copy
import functools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from groupfx.verify.alike import Alike, same_bits


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


class Contrary:
    """Says that it is equal to nothing, itself included."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 0


class Word(str):
    """A string of a class of its own, which has attributes of its own too."""


def plus(a: int, b: int = 0) -> int:
    return a + b


def looped(value: object) -> list[object]:
    found: list[object] = [value]
    found.append(found)
    return found


PAIRS: dict[str, tuple[Any, Any]] = {
    "bool-int": (True, 1),
    "int-float": (1, 1.0),
    "sign-of-zero": (0.0, -0.0),
    "nan": (math.nan, 0.0),
    "strings": ("a", "b"),
    "own-strings": (Word("a"), Word("b")),
    "none": (None, 0),
    "dtypes": (torch.float16, torch.bfloat16),
    "tuple-list": ((1, 2), [1, 2]),
    "longer": ([1], [1, 2]),
    "keys": ({"a": 1}, {"b": 1}),
    "values": ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}),
    "order-of-keys": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "sets": ({1, 2}, {1, 3}),
    "slices": (slice(0, 2), slice(0, 3)),
    "functions": (plus, len),
    "classes": (int, float),
    "partial": (functools.partial(plus, 1), functools.partial(plus, 2)),
    "partial-keywords": (functools.partial(plus, b=1), functools.partial(plus, b=2)),
    "methods": (Contrary(1).__eq__, Contrary(2).__eq__),
    "attributes": (SimpleNamespace(a=1), SimpleNamespace(a=2)),
    "slots": (Slotted(1), Slotted(2)),
    "an-eq-of-its-own": (Contrary(1), Contrary(2)),
    "loops": (looped(1), looped(2)),
    "arrays": (np.arange(3), np.arange(3) + 1),
    "array-dtypes": (np.zeros(2, np.float32), np.zeros(2, np.float64)),
    "array-signs": (np.zeros(2), -np.zeros(2)),
    "generators": (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)),
    "modules": (nn.Conv2d(2, 2, 1, stride=1), nn.Conv2d(2, 2, 1, stride=2)),
    "tensors": (torch.zeros(3), torch.tensor([0.0, 0.0, 1e-30])),
    "tensor-signs": (torch.zeros(3), -torch.zeros(3)),
    "requires-grad": (torch.zeros(3), torch.zeros(3).requires_grad_()),
    "strides": (torch.zeros(2, 2), torch.zeros(2, 2).T),
}


@pytest.mark.parametrize(("value", "other"), PAIRS.values(), ids=PAIRS)
def test_a_difference_is_seen_and_a_copy_is_the_same(value: Any, other: Any) -> None:
    for left, right in ((value, other), (other, value)):
        assert not Alike()(left, right)
        assert Alike()(left, left)
        assert Alike()(left, copy.deepcopy(left))


def test_what_cannot_be_looked_into_is_taken_for_the_same() -> None:
    class Broken:
        def __getstate__(self) -> object:
            raise RuntimeError("no")

    assert Alike()(Broken(), Broken())
    assert not Alike()(Broken(), object())


def test_a_module_is_the_one_that_stands_for_it() -> None:
    first, twin, other = nn.ReLU(), nn.ReLU(), nn.ReLU()
    alike = Alike(modules={id(first): [twin]})
    assert alike([first], [twin])
    assert not alike([first], [other])
    assert alike(nn.ReLU(), other), "in neither model: by its value"


def bits(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-100, 100, (2, 4, 3, 5), generator=generator)
    return values.to(dtype)


DTYPES = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
    torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn,
)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["plain", "channels_last", "expanded", "empty"])
def test_bits_of_each_dtype(dtype: torch.dtype, layout: str) -> None:
    value = bits(dtype)
    if layout == "channels_last":
        value = value.to(memory_format=torch.channels_last)
    if layout == "expanded":
        value = value[:, :1].expand(2, 4, 3, 5)
    if layout == "empty":
        value = value[:0]
    other = value.clone()
    assert same_bits(value, other)
    if layout != "empty":
        other[1, 2, 1, 3] = 7 if dtype is not torch.bool else ~other[1, 2, 1, 3]
        value[0].fill_(1)
        assert not same_bits(value, other)


def test_bits_of_nan_and_of_other_kinds_of_tensors() -> None:
    nan = torch.tensor([math.nan, 1.0])
    assert same_bits(nan, nan.clone())
    assert same_bits(torch.empty(3, device="meta"), torch.empty(3, device="meta"))
    sparse = torch.eye(3).to_sparse()
    assert same_bits(sparse, sparse.clone())
    assert not same_bits(sparse, (2 * torch.eye(3)).to_sparse())
    conjugate = torch.tensor([1 + 2j]).conj()
    assert same_bits(conjugate, torch.tensor([1 - 2j]))
