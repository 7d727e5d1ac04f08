"""Scales and zero points of parallel convolutions, one after another along their rows.

Parts of one scale each keep it where it is the same in all; else each of its rows gets it, which
stands for the same reals. Scales along another dimension are those of every row, and must be equal.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .tensors import Array, QuantisedTensor, dequantised, is_quantize, quantised, scaling


@dataclass(frozen=True)
class Scaling:
    """The scale and the zero point of a joined tensor; without an `axis`, those of the first part.

    Either is None where there is none.
    """

    scale: Array | None
    zero_point: Array | None
    axis: int | None


def joined_scaling(parts: Sequence[QuantisedTensor], rows: Sequence[int]) -> Scaling:
    """The scales of parts with so many `rows`, which say the same by `said_of_scales`."""
    scales, zeros = [part.scales for part in parts], [part.zero_points for part in parts]
    axis = next((part.axis for part in parts if part.axis is not None), None)
    if axis not in (None, 0):
        return Scaling(scales[0], zeros[0], axis)
    same = all(len({_said(a) for a in each}) == 1 for each in (scales, zeros))
    if axis is None and same and not _of_single_rows(parts, rows):
        return Scaling(scales[0], zeros[0], None)
    return Scaling(_by_row(scales, rows), _by_row(zeros, rows), 0)


def _of_single_rows(parts: Sequence[QuantisedTensor], rows: Sequence[int]) -> bool:
    """Whether each part has a scale of its own that is one of each of its rows, which is one."""
    own = {part.scale or part.zero_point for part in parts}
    vectors = all(v.ndim == 1 for part in parts for v in (part.scales, part.zeros) if v is not None)
    return len(own) == len(parts) and set(rows) == {1} and vectors


def said_of_scales(part: QuantisedTensor) -> Hashable:
    """What must be the same in all parts, for their scales to go one after another."""
    along = part.axis if part.axis not in (None, 0) else 0
    numbers = tuple(map(_said, (part.scales, part.zero_points))) if along else ()
    kinds = tuple(None if a is None else a.dtype.name for a in (part.scales, part.zero_points))
    return along, part.block, kinds, part.kind, numbers


def same_scaling(one: QuantisedTensor, other: QuantisedTensor) -> bool:
    """Whether two that have one scale each stand for reals alike."""
    if one.kind is None or one.kind is not other.kind or (one.axis, other.axis) != (None, None):
        return False
    return all(
        _number(mine) is not None and _number(mine) == _number(theirs)
        for mine, theirs in ((one.scales, other.scales), (one.zeros, other.zeros))
    )


def rounds_again(source: ir.Value, nodes: Sequence[ir.Node]) -> bool:
    """Whether `nodes` are a QuantizeLinear and a DequantizeLinear that change nothing of `source`.

    What was rounded to the numbers of a scale is not changed by rounding it to the same again.
    """
    before = dequantised(source)
    return before is not None and _is_pair(nodes, before)


def is_rounded_again(nodes: Sequence[ir.Node], value: ir.Value) -> bool:
    """Whether `nodes` are such a pair, and all that read `value` behind them round the same."""
    readers = [quantised(use.node) for use in value.uses() if use.idx == 0]
    alone = len(readers) == len(value.uses()) > 0 and not value.is_graph_output()
    return alone and all(held is not None and _is_pair(nodes, held) for held in readers)


def _is_pair(nodes: Sequence[ir.Node], other: QuantisedTensor) -> bool:
    made = [scaling(node) for node in nodes]
    first, *rest = made or [None]
    if len(rest) != 1 or first is None or first.node is None or not is_quantize(first.node):
        return False
    return all(held is not None and same_scaling(held, other) for held in made)


def _number(array: Array | None) -> float | None:
    return None if array is None else float(array.reshape(-1)[0])


def _by_row(arrays: Sequence[Array | None], rows: Sequence[int]) -> Array | None:
    parts = [
        np.broadcast_to(array.reshape(-1), (count,))
        for array, count in zip(arrays, rows, strict=True)
        if array is not None
    ]
    return np.concatenate(parts) if parts else None


def _said(array: Array | None) -> Hashable:
    return None if array is None else (array.reshape(-1).shape, array.tobytes())
