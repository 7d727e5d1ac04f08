"""Where the numbers of frozen layers come from in the original, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..convs.names import joined
from ..errors import RewriteError
from ..nn.masked_conv import MASKED
from ..rewriting import Result
from ..state.map import Entry, Picked, Rows
from .changes import Change
from .values import table


def picked(changes: Sequence[Change], result: Result) -> str:
    """The tables `PICKED` and `GONE`. Raises RewriteError where no table can say it."""
    if not changes:
        return ""
    rows: dict[str, str] = {}
    sources: set[str] = set()
    for change in changes:
        for place, entries, masked in _layers(change, result):
            (source, *more) = {entry.key.rpartition(".")[0] for entry in entries.values()}
            renamed = any(not entry.key.endswith(f".{name}") for name, entry in entries.items())
            if more or renamed:
                raise RewriteError(f"{place} is put together of tensors of other names")
            chosen = _rows_and_columns(place, [*entries.values()], masked)
            rows[f"{place!r}: ({source!r},"] = f"{chosen}, {tuple(entries)!r})"
            sources.add(source)
    own = result.program.model.state_dict()
    gone = [key for key in own if key.rpartition(".")[0] in sources]
    gone += sorted(result.state_dict_map.dropped & own.keys() - {*gone})
    told = "Layer: its source, rows of that, columns for equal parts of the rows, its tensors."
    return f"{table('PICKED', told, rows)}\nGONE = {gone!r}"


def _layers(change: Change, result: Result) -> Iterator[tuple[str, dict[str, Entry], bool]]:
    """Each layer with tensors: its place, where they come from, and whether it has a mask."""
    fragment = change.fragment
    for path, place in change.pieces.items():
        module = fragment.working.get_submodule(path)
        keys = {name: fragment.working_key(f"{path}.{name}") for name in module.state_dict()}
        entries = {name: result.state_dict_map.entries[key] for name, key in keys.items()}
        if entries:
            yield joined(change.path, place), entries, type(module) in MASKED.values()


def _rows_and_columns(place: str, entries: Sequence[Entry], masked: bool) -> str:
    rows: set[tuple[int | None, ...]] = set()
    columns: tuple[tuple[int | None, ...], ...] = ()
    for entry in entries:
        if isinstance(entry, Rows):
            rows |= set() if entry.stop is None else {tuple(range(entry.start, entry.stop))}
            continue
        rows.add(tuple(row for part in entry.parts for row in part.rows))
        columns = tuple(part.columns for part in entry.parts if part.columns) or columns
        if masked and all(c in (None, k) for own in columns for k, c in enumerate(own)):
            columns = ()  # each is that of the original, or masked
        elif not _is_plain(entry):
            raise RewriteError(f"{place} holds numbers that are not in the original")
    if len(rows) != 1:
        raise RewriteError(f"{place} has tensors of other rows than one another")
    return f"{list(rows.pop())}, {list(map(list, columns))}"


def _is_plain(entry: Picked) -> bool:
    """Whether it is elements of the original as they are, in parts of one size."""
    parts = entry.parts
    plain = all(None not in (*p.rows, *(p.columns or ())) and not p.factors for p in parts)
    return plain and len({len(part.rows) for part in parts}) == 1
