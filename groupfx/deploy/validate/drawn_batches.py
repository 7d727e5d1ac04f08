"""Which numbers of rows a validation tries: some that are always tried, some drawn, some told.

A file that treats one batch in another way than the rest holds that number, or one beside it, as a
constant. So small integers in a file tell which batches to try.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]

ALWAYS, OF_LARGE_ROWS = (1, 2, 7), (1, 2)
_DRAWN, _LEAST, _MOST = 1, 3, 16
_MOST_TOLD = 6
# Of a constant that may be a number of rows.
_MOST_NUMBERS = 8
# Elements of all inputs together, in the runs that come to those that are always there.
_MOST_ELEMENTS = 1 << 19
# Elements of one row of all inputs together, above which a row is large.
_LARGE_ROW = 1 << 16
_SEED = 29


def batches(example: Mapping[str, Array], model: ir.Model | None) -> tuple[int, ...]:
    """Numbers of rows, those that are always tried first; `model` is a file that may tell some."""
    drawn = np.random.default_rng(_SEED).integers(_LEAST, _MOST, _DRAWN)
    told = list(dict.fromkeys(_told(model)))[:_MOST_TOLD] if model is not None else []
    row = _row(example)
    left = _MOST_ELEMENTS
    found = list(OF_LARGE_ROWS if has_large_rows(example) else ALWAYS)
    for batch in (*told, *map(int, drawn)):
        if batch in found or batch * row > left:
            continue
        left -= batch * row
        found.append(batch)
    return tuple(found)


def has_large_rows(feeds: Mapping[str, Array]) -> bool:
    """Whether a model does so much for each row of its inputs that fewer of them have to do."""
    return _row(feeds) > _LARGE_ROW


def _row(feeds: Mapping[str, Array]) -> int:
    return sum(math.prod(array.shape[1:]) for array in feeds.values())


def _told(model: ir.Model) -> Iterator[int]:
    """Small integers of a file, and those behind them."""
    for tensor in _constants(model):
        if tensor.dtype.is_integer() and 0 < math.prod(tensor.shape.numpy()) <= _MOST_NUMBERS:
            for number in tensor.numpy().reshape(-1).tolist():
                yield from (n for n in (number, number + 1) if _LEAST <= n < _MOST)


def _constants(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Tensors that are compared or calculated with, and not those that name axes or shapes."""
    for node in model.graph:
        if node.op_type not in _COMPARING:
            continue
        for value in node.inputs:
            tensor = None if value is None else ir.convenience.get_const_tensor(value)
            if tensor is not None:
                yield tensor


_COMPARING = frozenset(
    ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Sub", "Mod", "Slice", "Min",
     "Max", "Clip", "Range", "Where", "Div")
)  # fmt: skip
