"""What goes into and comes out of each convolution of a torch candidate, in its own dtype."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from ...convs.calls import ConvCall
from ...convs.names import split_number, with_number
from ...plan.channel_order import AS_THEY_WERE, ChannelOrders
from ...running.float64 import Float64, widen
from ...running.inputs import ExampleInputs, in_order
from ...tracing import CannotTrace
from ...tracing.exporting import Axes, all_axes
from ..export.graph_sites import GraphSite, graph_sites
from ..export.io_names import output_names, unique
from ..export.known_outputs import exported_program
from ..export.torch_export import Dynamic
from .onnx_sites import Region
from .site_functions import SiteFunction

Array = npt.NDArray[Any]
Pair = tuple[SiteFunction, Region]


class TorchValues:
    """The graph of a torch model, run node by node.

    A convolution has the region of the site of its name; one called `name.k` is group `k` of a
    split site `name`. `found` are the names of the sites that are there, in whatever form;
    `orders` are those of the channels of convolutions that a fold has moved, by their paths.
    """

    def __init__(
        self,
        program: torch.export.ExportedProgram,
        functions: Sequence[SiteFunction],
        orders: Mapping[str, ChannelOrders],
    ) -> None:
        graph = graph_of(program)
        self._graph = graph
        found = list(_pairs(graph_sites(graph, {}), {f.name: f for f in functions}, orders))
        self.found = frozenset(name for name, _ in found)
        self.pairs = tuple(pair for _, pair in found)
        names = (name for _, region in self.pairs for name in region.values)
        self._wanted = frozenset(names)

    def of(self, given: ExampleInputs, *, wide: bool = False) -> Mapping[str, Array]:
        """Values by the names of nodes, for one run; in float64 if `wide`."""
        recorder = _Recorder(self._graph, self._wanted)
        with torch.no_grad(), Float64() if wide else contextlib.nullcontext():
            recorder.run(*(widen(t) if wide else t for t in given.tensors()))
        return recorder.values


def value_program(
    model: nn.Module, example: ExampleInputs, *, sizes: bool = True
) -> torch.export.ExportedProgram:
    """The model as `torch.export` sees it, with as many open sizes as it takes.

    Without `sizes`, that of the batch at most.

    A model that computes with its sizes (a U-Net) is exported with an open batch alone, else with
    the example's sizes. Raises `CannotTrace`, with the first reason, where nothing helps.
    """
    inputs = in_order(model, example)
    ways: tuple[tuple[Axes, int | None], ...] = (
        (all_axes, 2),
        (lambda tensor: (0,) if tensor.dim() else (), 2),
        (Dynamic().axes(inputs), 2),
        (lambda _: (), None),
    )
    reason: CannotTrace | None = None
    for axes, batch in ways if sizes else ways[1:]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own, of what is in the program
                return exported_program(model, inputs, axes, batch)
        except CannotTrace as error:
            reason = reason or error
    assert reason is not None
    raise reason


def graph_of(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """A graph of its own that can be run, with any sizes that it takes."""
    graph = program.module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    return graph


def fixed_outputs(program: torch.export.ExportedProgram) -> frozenset[str]:
    """Outputs of a model that no value of an input reaches, but its sizes at most."""
    graph = graph_of(program)
    reached: set[fx.Node] = set()
    for node in graph.graph.nodes:
        known = isinstance(node.meta.get("val"), Tensor)
        behind = known and any(before in reached for before in node.all_input_nodes)
        if node.op == "placeholder" or behind:
            reached.add(node)
    (leaves,) = graph.graph.output_node().args
    assert isinstance(leaves, (tuple, list))
    spec = graph.graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]
    structure = torch.utils._pytree.tree_unflatten(list(range(len(leaves))), spec)
    named = [(name, leaves[k]) for name, k in output_names(structure)]
    tensors = [(name, leaf) for name, leaf in named if isinstance(leaf, fx.Node)]
    names = unique([name for name, _ in tensors])
    pairs = zip(names, tensors, strict=True)
    return frozenset(name for name, (_, leaf) in pairs if leaf not in reached)


class _Recorder(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, wanted: frozenset[str]) -> None:
        super().__init__(graph)
        self._wanted = wanted
        self.values: dict[str, Array] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self._wanted and isinstance(value, Tensor):
            # A copy: an activation that works in place would change it later.
            self.values[n.name] = value.detach().cpu().clone().numpy()
        return value


def _pairs(
    sites: Sequence[GraphSite],
    functions: Mapping[str, SiteFunction],
    noted: Mapping[str, ChannelOrders],
) -> Iterator[tuple[str, Pair]]:
    """The name of the site of the reference, and what is compared with it."""
    for site in sites:
        matched = _function_for(site, functions)
        if matched is None or not isinstance(site.call, ConvCall):
            continue
        whole, function = matched
        start, end = site.call.input.name, site.call.node.name
        orders = noted.get(site.path, AS_THEY_WERE)
        if function.norms:
            yield whole, (function, Region(function.name, start, site.end.name, orders=orders))
        else:
            behind = site.end.name if site.norms else None
            yield whole, (function, Region(function.name, start, end, behind, orders=orders))


def _function_for(
    site: GraphSite, functions: Mapping[str, SiteFunction]
) -> tuple[str, SiteFunction] | None:
    if site.name in functions:
        return site.name, functions[site.name]
    home, _, position = site.path.rpartition(".")
    whole = functions.get(with_number(home, split_number(site.name)[1]))
    if whole is None or not position.isdecimal() or int(position) >= whole.spec.groups:
        return None
    return whole.name, replace(whole.group(int(position)), name=site.name)
