"""Frozen layers as containers in the user's model, and whose numbers they hold."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from ..errors import RewriteError
from ..plan.forms import FormPlan
from ..rewriting import Result
from ..state.map import Entry, Rows
from .alike import repeated
from .changes import Change
from .modules import Constructors
from .templates import BLOCKS, PARTS
from .text import call

Columns = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Piece:
    """The tensors `names` of the layer at `place` are `rows` of those of the original's `source`.

    A weight has `columns` too: for each of as many equal parts of its rows, the columns.
    """

    place: str
    source: str
    names: tuple[str, ...]
    rows: tuple[int, ...]
    columns: Columns | None


def blocks(change: Change, constructors: Constructors) -> ast.expr:
    """The container of a frozen layer as a call."""
    form, plan = change.plan.form, change.plan
    assert isinstance(form, FormPlan)
    starts = accumulate((conv.in_channels for conv in form.convs), initial=0)
    in_a_row = all(
        conv.inputs.start == start and conv.source is None and not conv.added
        for conv, start in zip(form.convs, starts, strict=False)
    )
    if not in_a_row or not plan.convs:
        raise RewriteError(f"{change.path} is executed in a way that no container has")
    constructors.own("Parts", PARTS)
    constructors.own("Blocks", BLOCKS)
    root = change.fragment.working

    def made(path: str, place: str) -> ast.expr:
        return constructors.tree(root.get_submodule(path), f"{change.path}.{place}")

    parts = {
        name: made(path, name)
        for name in ("input_gather", "constants", "output_gather")
        if (path := getattr(plan, name)) is not None
    }
    lists = {"convs": plan.convs, "norms": plan.norms}
    for name, paths in lists.items():
        trees = [made(path, f"{name}.{k}") for k, path in enumerate(paths)]
        if trees:
            parts[name] = call("nn.ModuleList", [repeated(trees)])
    return call("Blocks", (), parts)


def pieces(change: Change, result: Result) -> Iterator[Piece]:
    """Where the numbers of the container come from. Raises RewriteError where no table can say."""
    plan, fragment = change.plan, change.fragment
    places = {f"convs.{k}": path for k, path in enumerate(plan.convs)}
    places |= {f"norms.{k}": path for k, path in enumerate(plan.norms)}
    places |= {} if plan.constants is None else {"constants": plan.constants}
    for place, path in places.items():
        held = fragment.working.get_submodule(path).state_dict()
        entries = {
            name: result.state_dict_map.entries[fragment.working_key(f"{path}.{name}")]
            for name in held
        }
        if entries:
            yield _piece(f"{change.path}.{place}", entries)


def _piece(place: str, entries: dict[str, Entry]) -> Piece:
    sources = {entry.key.rpartition(".")[0] for entry in entries.values()}
    renamed = [name for name, entry in entries.items() if not entry.key.endswith(f".{name}")]
    rows: set[tuple[int | None, ...]] = set()
    columns: Columns | None = None
    for entry in entries.values():
        if isinstance(entry, Rows):
            rows |= set() if entry.stop is None else {tuple(range(entry.start, entry.stop))}
            continue
        rows.add(tuple(row for part in entry.parts for row in part.rows))
        plain = all(
            None not in (*p.rows, *(p.columns or ())) and not p.factors for p in entry.parts
        )
        equal = len({len(part.rows) for part in entry.parts}) == 1
        if not plain or not equal:
            raise RewriteError(f"{place} holds numbers that are not in the original")
        if entry.parts[0].columns is not None:
            columns = tuple(part.columns for part in entry.parts)  # type: ignore[misc]
    if len(sources) != 1 or len(rows) != 1 or renamed:
        raise RewriteError(f"{place} is put together of tensors of other names")
    return Piece(place, sources.pop(), tuple(entries), rows.pop(), columns)  # type: ignore[arg-type]
