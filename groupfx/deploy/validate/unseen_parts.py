"""The operators of a candidate that no output sees, and that nobody recomputed.

What is behind a product with 0, or behind nothing at all, changes no output, whatever it computes.
Where the reference has the same part, its values are paired and it is judged there; else it is
only said that it is there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .matching import Piece
from .suspects import reaches
from .value_graph import Operator, ValueGraph

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

# Each is a run of the candidate.
_MOST_RUNS = 12
_SEED = 11


def unseen_operators(
    graph: ValueGraph,
    operators: Iterable[Operator],
    floats: Collection[str],
    judged: Iterable[Piece],
    agreeing: Mapping[Piece, Feeds],
    feeds: Feeds,
) -> Iterator[Operator]:
    """Those of `operators` whose values, of those in `floats`, no piece and no output sees.

    `judged` are the pieces that were run, `agreeing` those of several operators with the values
    that go in. `feeds` are of one run.
    """
    told = {piece.ends[0] for piece in judged} | set(graph.outputs.values())
    for piece, base in agreeing.items():
        inner = [n for op in piece.candidate for n in op.outputs if n in floats and n not in told]
        told.update(name for name in inner if _reaches(graph, piece, name, base))
    runs = 0
    for op in operators:
        values = [name for name in op.outputs if name in floats]
        if not values or any(name in told for name in values) or runs >= _MOST_RUNS:
            continue
        runs += len(values)
        if not any(_moves_output(graph, name, feeds) for name in values):
            yield op


def _reaches(graph: ValueGraph, piece: Piece, value: str, base: Feeds) -> bool:
    try:
        return reaches(graph, piece, value, base)
    except Exception:  # it does not take what it is given: then it looks at it
        return True


def _moves_output(graph: ValueGraph, value: str, feeds: Feeds) -> bool:
    behind = {name for name in graph.outputs.values() if graph.depends(name, value)}
    if not behind:
        return False
    plain = graph.values_at({*behind, value}, feeds)
    held = plain.get(value)
    if held is None:
        return True
    size = float(np.abs(held[np.isfinite(held)]).max(initial=0.0)) or 1.0
    drawn = np.random.default_rng(_SEED).standard_normal(held.shape)
    for _, values in graph.forward(feeds, {value: held + size * drawn}):
        last = values
    return any(_differ(plain.get(name), graph.array(last.get(name))) for name in behind)


def _differ(one: Array | None, other: Array | None) -> bool:
    return one is None or other is None or not np.array_equal(one, other, equal_nan=True)
