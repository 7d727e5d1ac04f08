"""Entries and requirements as plain data: dicts, lists, strings, numbers, None.

    [key, start, stop]                                      Rows
    {"key", "size", "fill", "columns", "factors", "parts"}  Picked
    {"keys", "kind", "value"}                               Fixed
    {"zeros": entry}                                        Zeros

A `Picked` keeps each choice of columns and each row of factors once; a part is
`[rows, which columns, which factors for each row]`. Indices are written as they are, or, where that
is shorter, as runs `[first, count, step]` and `[None, count]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from .picked import Indices, Part, Picked
from .requirements import Fixed, Requirement, Zeros
from .rows import Entry, Rows

# What a file may unfold into: more than the channels of any network, a fraction of the memory.
_MOST = 20_000_000

_T = TypeVar("_T")


def entry_to_plain(entry: Entry) -> Any:
    """An entry as plain data."""
    if isinstance(entry, Rows):
        return [entry.key, entry.start, entry.stop]
    columns = _Table(_folded)
    factors = _Table(_folded)
    parts = [
        [
            _folded(part.rows),
            None if part.columns is None else columns.add(part.columns),
            None if part.factors is None else _folded([factors.add(row) for row in part.factors]),
        ]
        for part in entry.parts
    ]
    return {
        "key": entry.key,
        "size": list(entry.size),
        "fill": entry.fill,
        "columns": columns.plain,
        "factors": factors.plain,
        "parts": parts,
    }


def requirement_to_plain(requirement: Requirement) -> dict[str, Any]:
    """A requirement as plain data."""
    if isinstance(requirement, Zeros):
        return {"zeros": entry_to_plain(requirement.source)}
    value = _listed(requirement.value)
    return {"keys": list(requirement.keys), "kind": requirement.kind, "value": value}


class Reader:
    """Reads what was written, with a bound on what it may unfold into.

    Raises KeyError, TypeError, ValueError or UsageError for anything else.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._left = most

    def entry(self, fields: Any) -> Entry:
        """An entry, of its plain data."""
        if not isinstance(fields, Mapping):
            return _rows_from(fields)
        columns = [self._indices(choice) for choice in fields["columns"]]
        factors = [self._sequence(row, _number) for row in fields["factors"]]
        parts = []
        for rows, chosen, scaled in fields["parts"]:
            which = None if scaled is None else self._sequence(scaled, _integer)
            parts.append(
                Part(
                    self._indices(rows),
                    None if chosen is None else _at(columns, chosen),
                    None if which is None else tuple(_at(factors, place) for place in which),
                )
            )
        size = tuple(_integer(count) for count in fields["size"])
        return Picked(_text(fields["key"]), tuple(parts), size, _number(fields["fill"]))

    def requirement(self, fields: Any) -> Requirement:
        """A requirement, of its plain data."""
        if "zeros" in fields:
            return Zeros(self.entry(fields["zeros"]))
        keys = tuple(_text(key) for key in fields["keys"])
        return Fixed(keys, _text(fields["kind"]), _tupled(fields["value"]))

    def _indices(self, plain: Any) -> Indices:
        return self._sequence(plain, lambda each: None if each is None else _integer(each))

    def _sequence(self, plain: Any, read: Callable[[Any], _T]) -> tuple[_T, ...]:
        runs = bool(plain) and isinstance(plain[0], list | tuple)
        self._left -= sum(_count(run[1]) for run in plain) if runs else len(plain)
        if self._left < 0:
            raise ValueError(f"it unfolds into more than {_MOST} numbers")
        return tuple(read(each) for each in (_unfolded(plain) if runs else plain))


class _Table:
    """Values that are written once, and their places."""

    def __init__(self, write: Callable[[Any], Any]) -> None:
        self.plain: list[Any] = []
        self._write = write
        self._by_value: dict[Any, int] = {}
        self._by_id: dict[int, int] = {}

    def add(self, value: Any) -> int:
        """The place of `value`."""
        if id(value) not in self._by_id:
            if value not in self._by_value:
                self._by_value[value] = len(self.plain)
                self.plain.append(self._write(value))
            self._by_id[id(value)] = self._by_value[value]
        return self._by_id[id(value)]


def _folded(values: Iterable[Any]) -> list[Any]:
    """The values as runs, where that takes fewer numbers; else as they are."""
    given = list(values)
    runs: list[list[Any]] = []
    for value in given:
        if runs and _continues(runs[-1], value):
            runs[-1][1] += 1
            if runs[-1][1] == 2 and value is not None:
                runs[-1][2] = value - runs[-1][0]
        else:
            runs.append([None, 1] if value is None else [value, 1, 0])
    # A list costs about as much as a number.
    cost = sum(len(run) + 1 for run in runs)
    return runs if cost < len(given) else given


def _continues(run: list[Any], value: Any) -> bool:
    if run[0] is None or value is None:
        return run[0] is None and value is None
    first, count, step = run
    step = value - first if count == 1 else step
    return bool(value == first + count * step)


def _unfolded(runs: Iterable[Any]) -> Iterable[Any]:
    for run in runs:
        if run[0] is None:
            yield from (None for _ in range(run[1]))
            continue
        first, count, step = run
        yield from (first + place * step for place in range(count))


def _rows_from(fields: Any) -> Rows:
    key, start, stop = fields
    if not isinstance(key, str) or type(start) is not int or type(stop) not in (int, type(None)):
        raise TypeError(f"{fields!r} is no [key, start, stop]")
    return Rows(key, start, stop)


def _at(table: list[_T], place: Any) -> _T:
    index = _integer(place)
    if not 0 <= index < len(table):
        raise ValueError(f"there is no {index} among {len(table)}")
    return table[index]


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is no integer")
    return value


def _count(value: Any) -> int:
    if _integer(value) < 1:
        raise ValueError(f"{value} is no count")
    return int(value)


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"{value!r} is no number")
    return value  # type: ignore[no-any-return]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no string")
    return value


def _listed(value: Any) -> Any:
    return [_listed(each) for each in value] if isinstance(value, list | tuple) else value


def _tupled(value: Any) -> Any:
    return tuple(_tupled(each) for each in value) if isinstance(value, list | tuple) else value
