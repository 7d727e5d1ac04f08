"""Looks at the sites of a candidate one by one, run by run, and remembers the worst of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import torch

from ...errors import kind_and_line
from ...merging.sites import noted_orders
from ...plan.blocks import BlockStructure
from ...plan.channel_order import Order
from ...report.pieces import Piece, conv_label
from ...tracing import CannotTrace
from ..forms.site_drawings import site_pieces
from ..forms.zero_blocks import blocks_of_weight
from .drawn_batches import has_large_rows
from .locating import locate
from .onnx_sites import Region, candidate_regions, some_names
from .ordered_values import value_orders
from .runs import Run
from .sides import OnnxSide, Side, TorchSide
from .site_checks import SiteCheck, check_site
from .site_functions import SiteFunction, Unchecked
from .torch_values import TorchValues
from .verdict import Pieces

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

# Runs on which sites are looked at one by one: the first ordinary ones, and these.
_RUNS = ("large",)
_MOST_RUNS, _MOST_OF_LARGE_ROWS = 4, 1


class SiteWork:
    """Looks at the sites of a candidate, run by run."""

    def __init__(self, reference: Side, candidate: Side, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.notes: tuple[str, ...] = ()
        self.pairs: tuple[tuple[SiteFunction, Region], ...] = ()
        self._checks: dict[str, SiteCheck] = {}
        self._runs = 0
        self._values: Callable[[Feeds], Mapping[str, Array]] | None = None
        functions, left = reference.site_functions()
        self._reference, self._functions = reference, functions
        self._candidate = candidate
        notes = list(_by_reason(left)) if functions else list(map(str, left))
        if functions and isinstance(candidate, OnnxSide):
            notes += self._of_onnx(candidate, functions)
        elif functions and isinstance(candidate, TorchSide):
            notes += self._of_torch(candidate, functions)
        self.notes = tuple(notes)

    def _of_onnx(self, side: OnnxSide, functions: Sequence[SiteFunction]) -> Sequence[str]:
        regions, notes = candidate_regions(side.model, functions)
        by_name = {function.name: function for function in functions}
        self.pairs = tuple((by_name[region.name], region) for region in regions)
        wanted = {value for _, region in self.pairs for value in region.values}
        given = set(side.inputs)
        inner = sorted(wanted - given)
        if wanted:
            session = side.session_of("off", inner)

            def values(feeds: Feeds) -> Mapping[str, Array]:
                own = side.own(feeds)
                return {**own, **session.run(own, inner)}

            self._values = values
        return notes

    def _of_torch(self, side: TorchSide, functions: Sequence[SiteFunction]) -> Sequence[str]:
        try:
            values = TorchValues(side.program, functions, noted_orders(side.model))
        except CannotTrace as error:
            return [f"sites are not checked on their own: {error}"]
        self.pairs = values.pairs
        missing = [f.name for f in functions if f.name not in values.found]

        def taken(feeds: Feeds) -> Mapping[str, Array]:
            with side.playing(feeds):
                return values.of(side.given_in(feeds, side.dtype))

        self._values = taken
        if not missing:
            return []
        names = some_names(missing)
        return [f"not checked on their own, as the candidate has no such site: {names}"]

    def look(self, run: Run, feeds: Feeds) -> None:
        """Check every site on one run, if it is one of those that are for that."""
        most = _MOST_OF_LARGE_ROWS if has_large_rows(run.feeds) else _MOST_RUNS
        wanted = run.name in _RUNS or (run.ordinary and self._runs < most)
        if not wanted or not self.pairs:
            return
        self._runs += run.ordinary
        values: Mapping[str, Array] = {}
        if self._values is not None:
            try:
                values = self._values(feeds)
            except Exception as error:  # torch's interpreter raises anything
                note = f"sites cannot be looked at on {run.name}: {kind_and_line(error)}"
                self.notes = (*self.notes, note)
                return
        for function, region in self.pairs:
            check = check_site(function, region, values, self.dtype, run.name)
            earlier = self._checks.get(region.name)
            self._checks[region.name] = check if earlier is None else earlier.worse(check)

    def place(self, run: Run, feeds: Feeds) -> str:
        """Where in a run the candidate's values leave those of the reference; never raises."""
        regions = [region for _, region in self.pairs]
        try:
            values = {} if self._values is None else self._values(feeds)
        except Exception as error:
            return f"at a place that cannot be told ({kind_and_line(error)})"
        return locate(self._reference, self._functions, regions, values, run, self.dtype)

    def orders(self) -> Mapping[str, Order] | None:
        """The orders of the candidate's values whose channels do not lie as the reference's.

        None where they are not known.
        """
        if all(function.orders == region.orders for function, region in self.pairs):
            return {}
        side = self._candidate
        return value_orders(side.model.graph, self.pairs) if isinstance(side, OnnxSide) else None

    def checks(self) -> tuple[SiteCheck, ...]:
        """What was found, in the order of the graph."""
        return tuple(self._checks.values())

    def pieces(self) -> tuple[Pieces, Pieces]:
        """The operations of the sites of the reference and of the candidate, for a drawing."""
        sides = self._reference, self._candidate
        known = [site_pieces(s.model) if isinstance(s, OnnxSide) else None for s in sides]
        as_layers = {function.name: _layers(function) for function in self._functions}
        return known[0] or as_layers, known[1] or {}

    def blocks(self) -> Mapping[str, BlockStructure]:
        """The blocks of the weight of each site of the reference that has several."""
        found = ((function.name, _blocks(function)) for function in self._functions)
        return {name: blocks for name, blocks in found if blocks is not None}


def _blocks(function: SiteFunction) -> BlockStructure | None:
    spec = function.spec
    if spec.groups > 1:
        return BlockStructure.of_groups(spec.in_channels, spec.out_channels, spec.groups)
    return None if spec.transposed else blocks_of_weight(function.weight.numpy())


def _layers(function: SiteFunction) -> tuple[Piece, ...]:
    """A convolution and the BatchNorms behind it, as the layers of torch."""
    norm = f"BatchNorm{function.spec.dims}d"
    norms = (Piece(norm, (place,)) for place in range(len(function.norms)))
    return Piece(conv_label(function.spec.type_name, function.spec)), *norms


def _by_reason(left: Sequence[Unchecked]) -> Iterator[str]:
    """A line for each reason."""
    names: dict[str, list[str]] = {}
    for site in left:
        names.setdefault(site.reason, []).append(site.name or "all")
    for reason, found in names.items():
        yield f"not checked on its own ({reason}): {some_names(found)}"
