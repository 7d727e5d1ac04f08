"""Looks at the operators of a candidate, on the smallest of the runs of a validation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...errors import kind_and_line
from ...plan.channel_order import Order
from ...tracing import CannotTrace
from .drawn_batches import has_large_rows
from .narrowing import value_sketches
from .operator_checks import OperatorCheck
from .operators import OperatorWork
from .ordered_values import OrderedGraph
from .runs import Run
from .sides import OnnxSide, Side
from .torch_graph import TorchGraph
from .value_graph import ValueGraph, names_of

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

# How far the graph of a torch model may be from the model itself, in float64.
_SAME = 1e-9


@dataclass(frozen=True)
class OperatorReport:
    """What was found at each operator that was looked at, and notes on what was not.

    `unseen` says in words what no output sees and nobody recomputed.
    """

    checks: tuple[OperatorCheck, ...] = ()
    notes: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()

    @property
    def first(self) -> OperatorCheck | None:
        """The first wrong one in the order of the candidate."""
        return next((check for check in self.checks if not check.ok), None)


def look_at_operators(
    reference: Side,
    candidate: Side,
    pairs: tuple[Mapping[str, str], Mapping[str, str]],
    runs: Sequence[tuple[Feeds, Feeds]],
    dtype: torch.dtype,
    judged: Collection[str],
    orders: Mapping[str, Order] | None,
) -> OperatorReport:
    """Judge the operators of `candidate`; `pairs` are inputs and outputs, the reference's first.

    `runs` are inputs of the reference and what it gives in float64. `judged` are sites that were
    looked at already. `orders` are those of values of the candidate whose channels lie elsewhere,
    None where they are not known. Does not raise: a note says why not.
    """
    if orders is None:
        return _none("a fold has moved channels between them")
    try:
        graph = reference.values
        graph.known([feeds for feeds, _ in runs], value_sketches)
        chosen = [feeds for feeds, wide in runs if _is_true(graph, feeds, wide)]
        if not chosen:
            return _none("torch.export gives a graph that computes something else")
        own: ValueGraph
        if isinstance(candidate, OnnxSide):
            own = OrderedGraph(candidate.model, orders, lowers=graph.lowers)
        else:
            own = candidate.values
        known = graph.known(chosen, value_sketches)
        work = OperatorWork(own, graph, *pairs, chosen, known, dtype, judged)
        checks = work.checks()
        hidden = work.unseen()
        said = f"no output sees {names_of(hidden)}, and nobody recomputed it" if hidden else None
        return OperatorReport(checks, unseen=() if said is None else (said,))
    except CannotTrace as error:
        return _none(str(error))
    except Exception as error:
        # A graph may hold what nobody thought of; the rest of the verdict stands without this.
        return _none(f"{kind_and_line(error)}, which is a bug of ours")


def _none(why: str) -> OperatorReport:
    return OperatorReport(notes=(f"the operators are not looked at one by one: {why}",))


def chosen_runs(runs: Sequence[Run], broken: Collection[str]) -> list[Run]:
    """The smallest run of several rows, and one of other shapes: a `broken` one before all.

    Each value is looked at in both, so that what is wrong in a single size is seen. Where a row is
    large, it is the smallest run alone, and a broken one.
    """
    if not runs:
        return []
    ordered = sorted(runs, key=_size)
    telling = [run for run in ordered if run.name in broken]
    several = [run for run in ordered if all(_rows(each) != 1 for each in run.feeds.values())]
    large = has_large_rows((several or ordered)[0].feeds)
    first = (ordered if large else several or ordered)[0]
    others = telling if large else [*telling, *several, *ordered]
    different = [run for run in others if _shapes(run) != _shapes(first)]
    return [first, *different[:1]]


def _size(run: Run) -> int:
    return sum(array.size for array in run.feeds.values())


def _shapes(run: Run) -> list[tuple[int, ...]]:
    return [array.shape for array in run.feeds.values()]


def _rows(array: Array) -> int:
    return array.shape[0] if array.ndim else 0


def _is_true(graph: ValueGraph, feeds: Feeds, wanted: Feeds) -> bool:
    """Whether the graph computes what the reference does."""
    if not isinstance(graph, TorchGraph):
        return True
    found = graph.values_at(set(graph.outputs.values()), feeds)
    for name, value in graph.outputs.items():
        array = found.get(value)
        if array is None or array.shape != wanted[name].shape:
            return False
        if array.dtype.kind != "f":
            continue
        with np.errstate(all="ignore"):
            apart = np.abs(array - wanted[name])
        size = float(np.abs(wanted[name][np.isfinite(wanted[name])]).max(initial=0.0))
        if float(apart[np.isfinite(apart)].max(initial=0.0)) > _SAME * size:
            return False
    return True
