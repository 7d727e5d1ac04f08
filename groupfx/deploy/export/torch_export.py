"""From a torch model to a graph of `torch.export` that is ready to become ONNX.

The model is exported in eval mode, on a copy: split and frozen sites as one convolution each, what
is computed from parameters alone computed once, arguments and results flat lists of tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...convs.calls import ConvCall
from ...errors import ModelError, UsageError
from ...merging.graph import PlannedSite
from ...merging.sites import Merged, merge_sites
from ...plan.channel_order import AS_THEY_WERE, ChannelOrders
from ...running.inputs import ExampleInputs, in_order
from ...running.weightless import is_weightless
from ...tracing import CannotTrace
from .constant_folding import constants_of, with_constants
from .graph_sites import GraphSite, graph_sites
from .io_names import output_names, unique
from .known_outputs import exported_program


@dataclass(frozen=True)
class ConvName:
    """A convolution of the exported graph: its site, the form it gets, and whether it has a bias.

    `same` says that it pads by itself to the size of its input, for which the exporter may put a
    node of its own in front. `orders` are those of its channels, where a fold has changed them.
    """

    name: str
    form: Any
    bias: bool
    groups: int | None
    same: bool = False
    orders: ChannelOrders = AS_THEY_WERE


Sizes = Mapping[tuple[int, int], int]
"""Sizes of inputs, by the position of the input and the axis."""


@dataclass(frozen=True)
class TracedModel:
    """A model as `torch.export` left it. Inputs and outputs are tensors, in the order of ONNX.

    `sizes` were to stay open, and the model fixes them; `fixed` says so in words. `notes` say how
    sites were found that are executed in pieces. `orders` are those of convolutions' channels, by
    path.
    """

    program: torch.export.ExportedProgram
    convs: tuple[ConvName, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    fixed: tuple[str, ...]
    planned: tuple[PlannedSite, ...] = ()
    sizes: Sizes = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    orders: Mapping[str, ChannelOrders] = field(default_factory=dict)


@dataclass(frozen=True)
class Dynamic:
    """Which sizes of the inputs stay open: that of the batch, and the spatial ones."""

    batch: bool = True
    sizes: bool = False

    def axes(self, inputs: ExampleInputs) -> Any:
        """The dimensions of a tensor of `inputs` that stay open."""
        batch, spatial = inputs.batch, inputs.spatial

        def of(tensor: Tensor) -> Collection[int]:
            found = set()
            if self.batch and batch and tensor.dim() and tensor.shape[0] == batch:
                found.add(0)
            first = tensor.dim() - len(spatial)
            if self.sizes and spatial and tuple(tensor.shape[first:]) == spatial and first > 0:
                found.update(range(first, tensor.dim()))
            return found

        return of


def trace_model(model: nn.Module, inputs: ExampleInputs, dynamic: Dynamic) -> TracedModel:
    """Export `model`, which is not changed, on a batch of 2.

    Raises `ModelError` where `torch.export` does not take it, with the reason.
    """
    if is_weightless(model):
        raise ModelError(
            f"{type(model).__name__} has no values (its tensors lie on the device meta), and an "
            "ONNX file holds them: load them first"
        )
    merged = merge_sites(model, inputs)
    with warnings.catch_warnings():
        # An old `weight_norm` or a pruning assigns its weight in each call; nothing is lost.
        warnings.filterwarnings("ignore", "The tensor attributes? .* assigned during export")
        traced = _traced_open(merged, inputs, dynamic)
    return replace(traced, notes=merged.notes)


def _traced_open(merged: Merged, inputs: ExampleInputs, dynamic: Dynamic) -> TracedModel:
    """With open sizes where that can be, else with those of the inputs."""
    try:
        return _traced(merged, inputs, dynamic)
    except CannotTrace as error:
        reason = error
    try:
        # A model whose first dimension is no batch, or that computes with its sizes.
        found = _traced(merged, inputs, Dynamic(batch=False))
    except CannotTrace as error:
        why = "; a forward that depends on values of tensors cannot be exported"
        more = why if "data-dependent" in str(error) else ""
        raise ModelError(
            f"torch.export does not take {type(merged.model).__name__}: {error}{more}"
        ) from error
    return replace(found, fixed=(f"all, since with open ones torch.export says: {reason}",))


def site_names(planned: Iterable[PlannedSite]) -> Mapping[str, str]:
    """Names of sites by the paths of what stands for them in the exported model."""
    return {plan.path: plan.name for plan in planned}


def _traced(merged: Merged, inputs: ExampleInputs, dynamic: Dynamic) -> TracedModel:
    model, planned = merged.model, merged.planned
    pair = in_order(model, inputs.with_batch(2) if dynamic.batch else inputs)
    axes = dynamic.axes(pair)
    program = exported_program(model, pair, axes, batch=None)
    graph = _graph_of(program)
    sites = graph_sites(graph, site_names(planned))
    names = _output_names(program, graph)
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    tensors = [node for node in placeholders if _is_tensor(node)]
    convs = tuple(_conv_name(site, merged) for site in sites)
    constants = constants_of(graph, sites)
    if constants:
        program = with_constants(program, constants)
        graph = _graph_of(program)
    if len(tensors) != len(placeholders) or not _plain_outputs(graph):
        flat = _flattened(graph)
        program = exported_program(flat, ExampleInputs(tuple(pair.tensors())), axes, batch=None)
    sizes = _fixed_sizes(tensors, axes, list(pair.tensors()))
    return TracedModel(
        program,
        convs,
        unique([str(node.target) for node in tensors]),
        unique(names),
        tuple(f"{tensors[k].target}: dimension {axis} = {n}" for (k, axis), n in sizes.items()),
        tuple(planned),
        sizes,
        orders=merged.orders,
    )


def _graph_of(program: torch.export.ExportedProgram) -> fx.GraphModule:
    graph = program.module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    return graph


def _conv_name(site: GraphSite, merged: Merged) -> ConvName:
    plan = next((entry for entry in merged.planned if entry.path == site.path), None)
    spec = site.call.spec if isinstance(site.call, ConvCall) else None
    return ConvName(
        name=site.name,
        form=None if plan is None else plan.form,
        bias=spec is None or spec.bias,
        groups=site.call.groups if spec is None else spec.groups,  # type: ignore[union-attr]
        same=spec is not None and spec.padding == "same",
        orders=merged.orders.get(site.path, AS_THEY_WERE),
    )


def _output_names(program: torch.export.ExportedProgram, graph: fx.GraphModule) -> list[str]:
    """A name for each output that is a tensor."""
    spec = program.call_spec.out_spec
    assert spec is not None
    leaves = _outputs(graph)
    structure = torch.utils._pytree.tree_unflatten(list(range(len(leaves))), spec)
    named = {position: name for name, position in output_names(structure)}
    return [named.get(k, f"output_{k}") for k, leaf in enumerate(leaves) if _is_value(leaf)]


def _outputs(graph: fx.GraphModule) -> list[Any]:
    found = graph.graph.output_node().args[0]
    return list(found) if isinstance(found, (tuple, list)) else [found]


def _is_value(leaf: Any) -> bool:
    return isinstance(leaf, fx.Node) and _is_tensor(leaf)


def _is_tensor(node: fx.Node) -> bool:
    return node.op == "get_attr" or isinstance(node.meta.get("val"), Tensor)


def _plain_outputs(graph: fx.GraphModule) -> bool:
    """Whether every output is a tensor, each of its own, that some operator computes."""
    leaves = _outputs(graph)
    computed = all(_is_value(leaf) and leaf.op == "call_function" for leaf in leaves)
    return computed and len({leaf.name for leaf in leaves}) == len(leaves)


def _flattened(graph: fx.GraphModule) -> fx.GraphModule:
    """The same graph with tensors alone that come in and go out, positional and as a tuple."""
    output = graph.graph.output_node()
    leaves = [leaf for leaf in _outputs(graph) if _is_value(leaf)]
    if not leaves:
        raise UsageError("the model returns no tensor: there is nothing to export")
    with graph.graph.inserting_before(output):
        # A copy of each: an output that is an input, or one that comes twice, gets its own name.
        copies = tuple(
            graph.graph.call_function(torch.ops.aten.clone.default, (leaf,))
            if leaf.op != "call_function" or leaves.count(leaf) > 1
            else leaf
            for leaf in leaves
        )
    output.args = (copies,)
    for node in list(graph.graph.nodes):
        if node.op == "placeholder" and not _is_tensor(node):
            node.replace_all_uses_with(None)
            graph.graph.erase_node(node)
    graph.graph._codegen = fx.graph.CodeGen()
    graph.graph.lint()
    # A new module, without the hooks that look at how the old one's arguments are nested.
    return fx.GraphModule(graph, graph.graph)


def _fixed_sizes(placeholders: Sequence[fx.Node], axes: Any, tensors: Sequence[Tensor]) -> Sizes:
    """Sizes that were to stay open, and that the exporter took for constants."""
    found = {}
    for position, (node, tensor) in enumerate(zip(placeholders, tensors, strict=False)):
        for axis in sorted(axes(tensor)):
            size = node.meta["val"].shape[axis]
            known = size if isinstance(size, int) else size.node.maybe_as_int()
            if known is not None:
                found[position, axis] = known
    return found
