"""Every rewritten site of a model in one piece again, in a copy; the model stays as it is.

Exporters take tens of milliseconds for each node of a graph, so a convolution with 1,024 branches
is exported as the one convolution that it was, and split in the ONNX graph:

    cat([norm_k(conv_k(x[:, k*n : (k+1)*n])) for k in range(g)], dim=1)
    becomes  norm(conv(x)),  groups = g,  every tensor put together from those of the branches

What was done at a site is remembered on the graph (`groupfx.plan.site_plan`). Only a graph that was
traced anew carries no plan: there a site is recognised by its form, and a note says so. Where the
graph is no longer what its plan says, it stays as it is, and a note says so too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from ..convs.names import joined, unnumbered
from ..convs.swapped_calls import SwappedCalls, swapped_calls
from ..errors import UsageError
from ..nn.marks import fold_of
from ..nn.swapped import SwappedConv
from ..plan.channel_order import ChannelOrders, FoldNote
from ..plan.forms import FormPlan
from ..plan.site_plan import plan_of, site_of
from ..running.copies import copied
from ..running.inputs import ExampleInputs
from .graph import WHOLE, Call, Gathered, PlannedSite, place_of, rewritten
from .nested import nested
from .recognised import Shapes, has_candidates, recognised
from .regions import Region, UnfitError, read_region, spatial_axes
from .shapes import known_shapes
from .whole import ComputedConv, whole_conv, whole_norm

FOLDED = "folded"
"""Ends the name of a site that a fold left another function than the original's site was."""

_SHOWN = 3


@dataclass(frozen=True)
class Merged:
    """A model with its sites in one piece, how each was executed, and what the user should know.

    `orders` are those of the channels of convolutions that a fold has changed, by their paths in
    `model`.
    """

    model: nn.Module
    planned: tuple[PlannedSite, ...] = ()
    notes: tuple[str, ...] = ()
    orders: Mapping[str, ChannelOrders] = field(default_factory=dict)


def merge_sites(model: nn.Module, inputs: ExampleInputs) -> Merged:
    """A copy of `model` that shares its tensors and has each rewritten site in one piece.

    Raises `ModelError` where sites must be recognised and the model does not run on `inputs`.
    """
    model = nested(model)
    graphs = {p: m for p, m in model.named_modules() if isinstance(m, fx.GraphModule)}
    if "" in graphs:
        graphs = {"": graphs[""]}
    unknown = [graph for graph in graphs.values() if has_candidates(graph)]
    shapes = known_shapes(model, unknown, inputs) if unknown else {}
    readings = [_Reading.of(path, graph, shapes) for path, graph in graphs.items()]
    made = {r.root: rewritten(r.root, r.found) for r in readings if r.found.calls}
    orders = {path: found for reading in readings for path, found in reading.orders()}
    own = dict(_own_calls(model))
    if not made and not own:
        return Merged(model, notes=tuple(_notes(readings)), orders=orders)
    planned = tuple(site for reading in readings for site in reading.found.planned)
    whole = _with(model, made)
    for path in own:
        SwappedCalls.of(whole.get_submodule(path)).graphs.clear()
    return Merged(whole, (*planned, *own.values()), tuple(_notes(readings)), orders)


def _own_calls(model: nn.Module) -> Iterator[tuple[str, PlannedSite]]:
    """Layers that call their own convolution, a graph in its place: without it, it is whole.

    Only a layer of a convolution's class is sure to be called what its path is in an export.
    """
    for path, module in model.named_modules():
        graphs = swapped_calls(module)
        if not isinstance(module, _ConvNd) or len(graphs) != 1:
            continue
        (graph,) = graphs.values()
        reading = _Reading.of(path, graph, {})
        if len(reading.found.planned) == 1 and not reading.unfit:
            yield path, PlannedSite(path, path, reading.found.planned[0].form)


def noted_orders(model: nn.Module) -> dict[str, ChannelOrders]:
    """What folds have written on the graphs of `model`: orders by the paths of convolutions."""
    graphs = [p for p, m in model.named_modules() if isinstance(m, fx.GraphModule)]
    notes = {p: fold_of(model.get_submodule(p)) for p in graphs or [""]}
    held = {path: note.orders for path, note in notes.items() if note is not None}
    return {joined(p, path): found for p, own in held.items() for path, found in own.items()}


def _with(model: nn.Module, made: Mapping[fx.GraphModule, fx.GraphModule]) -> nn.Module:
    """A copy of `model` over the same tensors with other graphs in it."""
    if isinstance(model, fx.GraphModule):
        return made[model]
    swapped: dict[nn.Module, nn.Module] = {
        old: SwappedConv.of(new, old) for old, new in made.items()
    }
    return copied(model, share=True, instead=swapped)


def _notes(readings: Sequence[_Reading]) -> Iterator[str]:
    for reading in readings:
        for site, reason in reading.unfit.items():
            yield (
                f"{site} is exported as the graph stands, which is not what the plan of its "
                f"rewrite says: {reason}"
            )
    names = [name for reading in readings for name in reading.recognised]
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        were = "was recognised by its" if len(names) == 1 else "were recognised by their"
        yield f"{', '.join(names[:_SHOWN])}{more} {were} form: the graph carries no plan"


@dataclass
class _Reading:
    """What is read of one graph: the calls to put in, names of sites, and what does not fit."""

    path: str
    root: fx.GraphModule
    found: Gathered = field(default_factory=Gathered)
    unfit: dict[str, str] = field(default_factory=dict)
    recognised: list[str] = field(default_factory=list)
    alone: dict[str, str] = field(default_factory=dict)
    """the places of sites that are one convolution, and its path"""

    @classmethod
    def of(cls, path: str, root: fx.GraphModule, shapes: Shapes) -> _Reading:
        """Read the graph of `root`, which lies at `path` in its model."""
        reading = cls(path, root)
        remembered = list(reading._remembered())
        guessed = list(reading._guessed(shapes))
        calls = Counter(str(node.target) for node in root.graph.nodes if node.op == "call_module")
        used = Counter(
            module
            for region in (*remembered, *guessed)
            for module in (*region.plan.convs, *region.plan.norms)
        )
        for regions, known in ((remembered, True), (guessed, False)):
            for group in _by_pieces(regions):
                try:
                    reading._merge(group, {m: calls[m] - used[m] for m in used})
                except UnfitError as error:
                    if known:
                        reading.unfit[reading._name(group[0])] = str(error)
                    continue
                if not known:
                    reading.recognised.append(reading._name(group[0]))
        return reading

    def _remembered(self) -> Iterator[Region]:
        """The regions that fit their plan."""
        marked = dict.fromkeys(site_of(node.meta) for node in self.root.graph.nodes)
        missing = {
            site: "the node that held the plan is gone" for site in marked if site is not None
        }
        for node in self.root.graph.nodes:
            site = site_of(node.meta)
            try:
                plan = plan_of(node.meta)
                if site is None or plan is None:
                    continue
                missing.pop(site, None)
                yield read_region(plan, node, self.root)
            except (UnfitError, UsageError) as error:
                missing[str(site)] = str(error)
        self.unfit |= {joined(self.path, site): reason for site, reason in missing.items()}

    def _guessed(self, shapes: Shapes) -> Iterator[Region]:
        seen: set[fx.Node] = set()
        for plan, end in recognised(self.root, shapes):
            try:
                region = read_region(plan, end, self.root)
            except UnfitError:
                continue
            marked = any(site_of(node.meta) is not None for node in region.inner)
            if end not in seen and not marked and _reads_all(region, shapes, self.root):
                seen |= region.inner
                yield region

    def _name(self, region: Region) -> str:
        """The site's name in the whole model.

        One that is recognised in a folded graph is not what it was: its gathers are gone.
        """
        # A convolution that is the whole model has no path: its weight's name stands for it.
        name = joined(self.path, unnumbered(region.plan.site)) or "weight"
        moved = self.fold is not None and plan_of(region.end.meta) is None
        return joined(name, FOLDED) if moved else name

    def orders(self) -> Iterator[tuple[str, ChannelOrders]]:
        """The orders of the channels of convolutions, by their paths in the whole model."""
        known = {} if self.fold is None else dict(self.fold.orders)
        for place, piece in self.alone.items():
            if piece in known:
                known[place] = known[piece]
        for path, found in known.items():
            yield joined(self.path, path), found

    @property
    def fold(self) -> FoldNote | None:
        """What a fold of the graph has written on it."""
        return fold_of(self.root)

    def _merge(self, regions: Sequence[Region], others: Mapping[str, int]) -> None:
        """Put the calls of one site in. Raises `UnfitError` where they are not all there is."""
        first = regions[0].plan
        if any((r.plan.form, r.plan.convs) != (first.form, first.convs) for r in regions):
            raise UnfitError("its calls differ in their form")
        apart = [m for r in regions for m in (*r.plan.convs, *r.plan.norms) if others[m]]
        if apart:
            raise UnfitError(f"{apart[0]} is called elsewhere too")
        if first.convs:
            place = place_of(_home(first.convs, frozen=isinstance(first.form, FormPlan)))
            conv = whole_conv(first, self.root)
            if len(first.convs) == 1:
                self.alone[place] = first.convs[0]
        else:
            place = f"{WHOLE}_{len(self.found.planned)}"
            conv = ComputedConv(regions[0])
        plans = [region.plan for region in regions if region.plan.norms]
        norms = {_home(plan.norms): whole_norm(plan, self.root) for plan in plans}
        self.found.modules |= {place: conv, **norms}
        for r in regions:
            more = r.extra if r.rows is None else (r.rows.weight, r.rows.bias)
            norm = _home(r.plan.norms) if r.plan.norms else None
            self.found.calls.append(Call(r.end, place, (r.source, *more), norm))
        name = self._name(regions[0])
        self.found.planned.append(PlannedSite(joined(self.path, place), name, first.form))


def _by_pieces(regions: Sequence[Region]) -> Sequence[Sequence[Region]]:
    """The calls of each site: those that share their convolutions."""
    groups: dict[object, list[Region]] = defaultdict(list)
    for region in regions:
        groups[region.plan.convs[0] if region.plan.convs else region.end].append(region)
    return list(groups.values())


def _home(paths: Sequence[str], *, frozen: bool = False) -> str:
    """Under which path the pieces lie; a single BatchNorm is its own home."""
    parts = paths[0].split(".")
    if len(paths) == 1 and not frozen:
        return paths[0]
    while frozen and parts[-1].isdecimal():
        parts.pop()
    return ".".join(parts[:-1])


def _reads_all(region: Region, shapes: Shapes, root: nn.Module) -> bool:
    """Whether a site that was recognised reads all channels, and all rows of a computed weight.

    Without a batch, axis 1 are no channels.
    """
    plan, rows = region.plan, region.rows
    if isinstance(plan.form, FormPlan):
        return True
    heights = {region.source: (1, plan.in_channels)}
    if rows is not None:
        heights[rows.weight] = (0, plan.in_channels if rows.transposed else plan.out_channels)
    if rows is not None and rows.bias is not None:
        heights[rows.bias] = (0, plan.out_channels)
    axes = spatial_axes(region.end, root)
    if axes is None or len(shapes.get(region.source, ())) != 2 + axes:
        return False
    return all(
        tuple(shapes.get(node, ()))[axis : axis + 1] == (size,)
        for node, (axis, size) in heights.items()
    )
