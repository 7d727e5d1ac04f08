"""One entry for two in a row: elements of elements of a tensor."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..errors import UsageError
from .picked import Factors, Indices, Part, Picked
from .rows import Entry, Rows


def compose(before: Entry, after: Entry) -> Entry:
    """What `after` takes of the tensor that `before` makes, as an entry of the original.

    The key of `after` has no meaning here. Raises UsageError where it reaches beyond that tensor,
    and where both are padded, with different values.
    """
    if isinstance(after, Rows):
        return before if after.stop is None else _rows(before, after)
    if isinstance(before, Rows):
        return _picked_of_rows(before, after)
    return _picked_of_picked(before, after)


def _rows(before: Entry, after: Rows) -> Entry:
    assert after.stop is not None
    count = before.shape[0] if isinstance(before, Picked) else _length(before)
    if count is not None and after.stop > count:
        raise UsageError(f"cannot compose: {after} is beyond the end of {before}")
    return before.part(after.start, after.stop)


def _picked_of_rows(before: Rows, after: Picked) -> Picked:
    if before.stop is None:
        return replace(after, key=before.key)
    _require_size(before, after, (before.stop - before.start,))
    parts = tuple(
        replace(part, rows=tuple(None if row is None else row + before.start for row in part.rows))
        for part in after.parts
    )
    return Picked(before.key, parts, (before.stop, *after.size[1:]), after.fill)


def _picked_of_picked(before: Picked, after: Picked) -> Picked:
    _require_size(before, after, before.shape)
    if before.is_padded and after.is_padded and before.fill != after.fill:
        raise UsageError(
            f"cannot compose: {after} is padded with {after.fill}, and {before} with {before.fill}"
        )
    through = _Through(before)
    parts = tuple(part for following in after.parts for part in through.parts(following))
    fill = before.fill if before.is_padded else after.fill
    return Picked(before.key, parts, (*before.size, *after.size[len(before.size) :]), fill)


def _require_size(before: Entry, after: Picked, size: tuple[int, ...]) -> None:
    axes = min(len(size), len(after.size))
    if after.size[:axes] != size[:axes]:
        raise UsageError(
            f"cannot compose: {after} is picked of {list(after.size)}, and {before} has "
            f"{list(size)}"
        )


def _length(rows: Rows) -> int | None:
    return None if rows.stop is None else rows.stop - rows.start


@dataclass
class _Run:
    """Rows that are to have the same columns, of the original; `factors` has one a row."""

    columns: Indices | None
    rows: list[int | None] = field(default_factory=list)
    factors: list[tuple[float, ...] | None] = field(default_factory=list)

    def part(self) -> Part:
        """The run as a part."""
        rows = tuple(self.rows)
        if self.columns is None or all(row is None for row in self.factors):
            return Part(rows, self.columns)
        ones = (1,) * len(self.columns)
        factors: Factors = tuple(ones if row is None else row for row in self.factors)
        return Part(rows, self.columns, factors)


class _Through:
    """Parts that pick of a picked tensor, as parts that pick of the original."""

    def __init__(self, before: Picked) -> None:
        self._rows = [
            (row, part, None if part.factors is None else part.factors[place])
            for part in before.parts
            for place, row in enumerate(part.rows)
        ]
        self._first = before.parts[0]
        # One tuple for each pair that is met: rows that shared their columns go on sharing them.
        self._columns: dict[tuple[int, int], Indices | None] = {}
        self._kept: list[object] = []

    def parts(self, following: Part) -> list[Part]:
        """`following`, cut where the columns of its rows change."""
        runs: list[_Run] = []
        for place, middle in enumerate(following.rows):
            row, source, factors = (None, None, None) if middle is None else self._rows[middle]
            if row is None or source is None:
                # Padding has no columns of its own: it stays with the rows around it.
                if not runs:
                    runs.append(_Run(self._composed(self._first, following)))
                runs[-1].rows.append(None)
                runs[-1].factors.append(None)
                continue
            columns = self._composed(source, following)
            if not runs or columns is not runs[-1].columns:
                runs.append(_Run(columns))
            own = None if following.factors is None else following.factors[place]
            runs[-1].rows.append(row)
            runs[-1].factors.append(_product(factors, following.columns, own))
        return [run.part() for run in runs]

    def _composed(self, source: Part, following: Part) -> Indices | None:
        before, after = source.columns, following.columns
        if after is None or before is None:
            return before if after is None else after
        key = (id(before), id(after))
        if key not in self._columns:
            # The key is made of addresses: what has them must not be freed.
            self._kept += [before, after]
            self._columns[key] = tuple(None if c is None else before[c] for c in after)
        return self._columns[key]


def _product(
    before: tuple[float, ...] | None, columns: Indices | None, after: tuple[float, ...] | None
) -> tuple[float, ...] | None:
    """The factors of one row: first those of `before`, of which `columns` are picked."""
    if before is not None and columns is not None:
        before = tuple(1 if column is None else before[column] for column in columns)
    if before is None or after is None:
        return after if before is None else before
    return tuple(first * second for first, second in zip(before, after, strict=True))
