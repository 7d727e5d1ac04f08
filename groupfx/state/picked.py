"""Rows and columns of a tensor in any order, with padding and factors: what freezing makes.

    new[r, c] = factor[r, c] * original[rows[r], columns[c]]        and `fill` where there is none

The rows come in parts; each part has one choice of columns for all its rows, as the rows of one
group of a grouped convolution have. A vector (bias, statistics of a BatchNorm) has no columns.
Axes behind those that are indexed (a kernel's) are taken whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError

# Whatever the default device is.
_TABLE: Any = {"dtype": torch.float64, "device": "cpu"}

Indices = tuple[int | None, ...]
Factors = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Part:
    """Consecutive rows of the new tensor that have the same columns.

    Args:
        rows: for each, its row in the original; None for a row of padding.
        columns: for each column of the new tensor, its column in the original; None for padding.
            Without columns, rows are taken whole.
        factors: by what each element is multiplied, `[len(rows)][len(columns)]`, never 0 (that is
            padding); what stands at a padded row or column has no meaning. Without factors, 1.

    Rows of different parts that share their columns are best given the same tuple object.
    """

    rows: Indices
    columns: Indices | None = None
    factors: Factors | None = None

    def cut(self, start: int, stop: int) -> Part:
        """The rows `[start, stop)` of this part."""
        factors = None if self.factors is None else self.factors[start:stop]
        return Part(self.rows[start:stop], self.columns, factors)


@dataclass(frozen=True)
class Picked:
    """Elements of the original's tensor `key`, in the arrangement that `parts` say.

    Args:
        key: the original's tensor.
        parts: one below the other, they make the new tensor.
        size: of the original: `(rows, columns)` where the parts have columns, else `(rows,)`.
        fill: what padding holds, such as 1 in the variance of a BatchNorm; 0 where there are
            columns, because a weight is padded with what adds nothing.

    Raises UsageError for an index beyond `size`, columns of different lengths, and factors of
    another shape or of 0.
    """

    key: str
    parts: tuple[Part, ...]
    size: tuple[int, ...]
    fill: float = 0.0

    def __post_init__(self) -> None:
        problem = _problem(self.parts, self.size, self.fill)
        if problem is not None:
            raise UsageError(f"Picked('{self.key}', size={self.size}): {problem}")

    def __str__(self) -> str:
        return f"{self.key} (picked {list(self.shape)} of {list(self.size)})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, and columns where there are any, of the new tensor."""
        rows = sum(len(part.rows) for part in self.parts)
        columns = self.parts[0].columns
        return (rows,) if columns is None else (rows, len(columns))

    @cached_property
    def is_padded(self) -> bool:
        """Whether the new tensor has elements that come from nowhere."""
        return any(None in part.rows or None in (part.columns or ()) for part in self.parts)

    @cached_property
    def is_scaled(self) -> bool:
        """Whether some element is the original's times something other than 1."""
        return any(
            block.factors is not None and bool((block.factors != 1).any()) for block in self._blocks
        )

    def of(self, whole: Tensor, *, fill: float | None = None) -> Tensor:
        """The new tensor, made of the original's; `fill` in place of this entry's own."""
        rest = whole.shape[len(self.size) :]
        made = whole.new_full((*self.shape, *rest), self.fill if fill is None else fill)
        for block in self._blocks:
            value = whole.detach()[block.origin]
            made[block.place] = value if block.factors is None else value * block.like(value)
        return made

    def gradient_of(self, whole: Tensor) -> Tensor:
        """What the new tensor's gradient is, given the original's; 0 for padding."""
        made = whole.new_zeros((*self.shape, *whole.shape[len(self.size) :]))
        for block in self._blocks:
            value = whole.detach()[block.origin]
            made[block.place] = value if block.factors is None else value / block.like(value)
        return made

    def put_back(self, part: Tensor, whole: Tensor) -> None:
        """Write the elements of the new tensor `part` to where they come from, factors undone."""
        for block in self._blocks:
            value = part.detach()[block.place].to(whole.device)
            whole[block.origin] = value if block.factors is None else value / block.like(value)

    def count(self, table: Tensor) -> None:
        """Add 1 to each element of `table`, rows or rows by columns, as often as it is taken."""
        one = table.new_ones(())
        for block in self._blocks:
            table.index_put_(block.origin, one, accumulate=True)

    def held(self) -> Tensor:
        """Bool, `shape`: which elements of the new tensor come from the original."""
        table = torch.zeros(self.shape, dtype=torch.bool, device="cpu")
        for block in self._blocks:
            table[block.place] = True
        return table

    def part(self, start: int, stop: int) -> Picked:
        """What the rows `[start, stop)` of the new tensor are."""
        if not 0 <= start < stop <= self.shape[0]:
            raise UsageError(
                f"rows {start}:{stop} of {self}: it has the rows 0 ... {self.shape[0] - 1}"
            )
        parts, first = [], 0
        for part in self.parts:
            low, high = max(start - first, 0), min(stop - first, len(part.rows))
            if low < high:
                parts.append(part.cut(low, high))
            first += len(part.rows)
        return Picked(self.key, tuple(parts), self.size, self.fill)

    @cached_property
    def _blocks(self) -> tuple[_Block, ...]:
        """The parts as index tensors, those that share their columns as one."""
        pieces: dict[int, list[tuple[int, Part]]] = {}
        known: dict[int, int] = {}
        equal: dict[Indices | None, int] = {}
        first = 0
        for part in self.parts:
            # The hash of a long tuple is slow: once for each object.
            if id(part.columns) not in known:
                known[id(part.columns)] = equal.setdefault(part.columns, len(equal))
            pieces.setdefault(known[id(part.columns)], []).append((first, part))
            first += len(part.rows)
        blocks = (_block(found) for found in pieces.values())
        return tuple(block for block in blocks if block is not None)


@dataclass(frozen=True)
class _Block:
    """`new[place] = factors * original[origin]`, each a rectangle of rows and columns."""

    place: tuple[Tensor, ...]
    origin: tuple[Tensor, ...]
    factors: Tensor | None

    def like(self, value: Tensor) -> Tensor:
        """The factors in the dtype and the number of dimensions of `value`."""
        assert self.factors is not None
        shape = (*self.factors.shape, *(1,) * (value.dim() - 2))
        return self.factors.to(value.device, value.dtype).reshape(shape)


def _block(pieces: list[tuple[int, Part]]) -> _Block | None:
    """One block of parts with the same columns, each with its first row; None if all padding."""
    rows = [
        (first + place, row)
        for first, part in pieces
        for place, row in enumerate(part.rows)
        if row is not None
    ]
    if not rows:
        return None
    at, origin = torch.tensor(rows, device="cpu").unbind(1)
    columns = pieces[0][1].columns
    if columns is None:
        return _Block((at,), (origin,), None)
    held = [(place, column) for place, column in enumerate(columns) if column is not None]
    if not held:
        return None
    across, there = torch.tensor(held, device="cpu").unbind(1)
    return _Block((at[:, None], across), (origin[:, None], there), _factors(pieces, across))


def _factors(pieces: list[tuple[int, Part]], held: Tensor) -> Tensor | None:
    if all(part.factors is None for _, part in pieces):
        return None
    tables = []
    for _, part in pieces:
        kept = [place for place, row in enumerate(part.rows) if row is not None]
        if part.factors is None:
            tables.append(torch.ones(len(kept), len(held), **_TABLE))
        elif kept:
            chosen = [part.factors[place] for place in kept]
            tables.append(torch.tensor(chosen, **_TABLE)[:, held])
    return torch.cat(tables)


def _problem(parts: tuple[Part, ...], size: tuple[int, ...], fill: float) -> str | None:
    """What is wrong with the parts of a tensor of this size, or None."""
    if not parts or not all(part.rows for part in parts):
        return "every part needs rows, and there must be a part"
    columns = {id(part.columns): part.columns for part in parts}
    widths = {None if choice is None else len(choice) for choice in columns.values()}
    if len(widths) > 1 or 0 in widths:
        found = ", ".join(sorted(str(width) for width in widths))
        return f"all parts need the same number of columns, at least 1; they have {found}"
    if len(size) != (1 if None in widths else 2):
        return "give (rows,) for parts without columns, and (rows, columns) for parts with them"
    if len(size) == 2 and fill != 0:
        return f"a tensor with columns is padded with 0, not with {fill}"
    axes = [("row", size[0], part.rows) for part in parts]
    axes += [("column", size[1], choice) for choice in columns.values() if choice is not None]
    for axis, count, indices in axes:
        beyond = [index for index in indices if index is not None and not 0 <= index < count]
        if beyond:
            return f"there is no {axis} {beyond[0]}; count from 0 to {count - 1}"
    return next(_factor_problems(parts), None)


def _factor_problems(parts: tuple[Part, ...]) -> Iterator[str]:
    for part in parts:
        if part.factors is None:
            continue
        if part.columns is None:
            yield "factors need columns"
            return
        lengths = {len(row) for row in part.factors}
        if len(part.factors) != len(part.rows) or lengths != {len(part.columns)}:
            shape = f"[{len(part.rows)}, {len(part.columns)}]"
            yield f"the factors of a part must have its shape, {shape}"
            return
        distinct = {id(row): row for row in part.factors}.values()
        wrong = [f for row in distinct for f in row if f == 0 or not math.isfinite(f)]
        if wrong:
            yield f"a factor is {wrong[0]}; for an element without origin, give column None"
