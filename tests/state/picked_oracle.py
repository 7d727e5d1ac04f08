"""What `Picked` means, element by element in Python, and arbitrary ones for hypothesis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from groupfx.state.map import Part, Picked, Rows

Array = np.ndarray[Any, Any]


def made(entry: Rows | Picked, whole: Array) -> Array:
    """The new tensor."""
    if isinstance(entry, Rows):
        return whole if entry.stop is None else whole[entry.start : entry.stop]
    rows = []
    for part in entry.parts:
        for place, row in enumerate(part.rows):
            if part.columns is None:
                rows.append(np.full_like(whole[0], entry.fill) if row is None else whole[row])
                continue
            cells = []
            for across, column in enumerate(part.columns):
                if row is None or column is None:
                    cells.append(np.full_like(whole[0, 0], entry.fill))
                    continue
                factor = 1 if part.factors is None else part.factors[place][across]
                cells.append(whole[row, column] * factor)
            rows.append(np.stack(cells))
    return np.stack(rows)


def origins(entry: Picked) -> list[tuple[int, ...]]:
    """The elements of the original that are taken, as often as they are."""
    return [
        (row,) if column == () else (row, column)
        for part in entry.parts
        for row in part.rows
        for column in ([()] if part.columns is None else part.columns)
        if row is not None and column is not None
    ]


def indices(size: int, length: int) -> st.SearchStrategy[tuple[int | None, ...]]:
    each = st.one_of(st.none(), st.integers(0, size - 1), st.integers(0, size - 1))
    return st.lists(each, min_size=length, max_size=length).map(tuple)


@st.composite
def picked(draw: Any, size: tuple[int, ...], fills: Sequence[float] = (0.0, 1.0)) -> Picked:
    """Any choice of a tensor of this size; vectors are padded with one of `fills`."""
    fill = draw(st.sampled_from(fills)) if len(size) == 1 else 0.0
    columns = [None]
    if len(size) == 2:
        width = draw(st.integers(1, 5))
        columns = draw(st.lists(indices(size[1], width), min_size=1, max_size=3))
    parts = []
    for _ in range(draw(st.integers(1, 4))):
        choice = draw(st.sampled_from(columns))
        rows = draw(indices(size[0], draw(st.integers(1, 4))))
        factors = None
        if choice is not None and draw(st.booleans()):
            row = st.lists(st.sampled_from([1, 2, 3]), min_size=len(choice), max_size=len(choice))
            factors = tuple(tuple(draw(row)) for _ in rows)
        parts.append(Part(rows, choice, factors))
    return Picked("w", tuple(parts), size, fill)
