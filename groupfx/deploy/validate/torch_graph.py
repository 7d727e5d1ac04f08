"""A torch model as a graph of values: the operators that `torch.export` finds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.dialect.common.cse_pass import CSEPass

from ...convs.names import module_path
from ...learned.groups import deciding_tensors
from ...running.alone import beside
from ...running.float64 import Float64, named_state
from ...tracing import CannotTrace
from ..export.graph_sites import tensor_at
from ..export.io_names import output_names, unique
from .torch_operators import split_operators
from .torch_values import graph_of
from .value_graph import Jitter, Operator, ValueGraph, Values

Array = npt.NDArray[Any]

# Larger constants are computed again each time: a second copy of the weights is not held.
_KEPT_ELEMENTS = 1 << 16
_CALLS = ("call_function", "call_method")


class TorchGraph(ValueGraph):
    """A torch model in eval mode, of which `torch.export` made `program`."""

    def __init__(
        self, model: nn.Module, program: torch.export.ExportedProgram, inputs: tuple[str, ...]
    ) -> None:
        """Raises CannotTrace where the program has other inputs than the model."""
        graph = _graph(program)
        state = named_state(model)
        self._native = [state[name] for name in deciding_tensors(model)]
        self.graph = graph
        self._constants: dict[str, Any] = {}
        self._nodes: dict[str, fx.Node] = {node.name: node for node in graph.graph.nodes}
        placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
        taken = [node for node in placeholders if isinstance(node.meta.get("val"), Tensor)]
        if len(taken) != len(inputs):
            raise CannotTrace(f"{len(taken)} inputs are left of {len(inputs)}")
        self._given: dict[str, str] = dict(zip((node.name for node in taken), inputs, strict=True))
        self.inputs = inputs
        self.operators = tuple(self._operators(graph.graph))
        self.outputs = dict(_outputs(program, graph, self._named))

    @cached_property
    def lowers(self) -> bool:
        """Whether the model itself rounds to half precision on its way."""
        half = (torch.float16, torch.bfloat16)
        held = (node.meta.get("val") for node in self._nodes.values())
        return any(isinstance(value, Tensor) and value.dtype in half for value in held)

    def node_of(self, value: str) -> str:
        """The name of the node that gives a value: that of an input is its placeholder's."""
        return next((node for node, name in self._given.items() if name == value), value)

    def _named(self, node: fx.Node) -> str:
        name: str = node.name
        return self._given.get(name, name)

    def _operators(self, graph: fx.Graph) -> Iterator[Operator]:
        known = set(self.inputs)
        index = 0
        for node in graph.nodes:
            inputs = tuple(n for n in map(self._named, node.all_input_nodes) if n in known)
            drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
            if node.op not in _CALLS or not (inputs or drawn):
                continue
            known.add(node.name)
            yield Operator(index, _name(node), _kind(node), inputs, (node.name,))
            index += 1

    def run(self, operator: Operator, values: Mapping[str, Any], jitter: Jitter | None) -> Values:
        """Floats come in float64."""
        (name,) = operator.outputs
        with torch.no_grad(), Float64(None, self._native):
            return {name: self._call(self._nodes[name], values, jitter)}

    def _call(self, node: fx.Node, values: Mapping[str, Any], jitter: Jitter | None) -> Any:
        def operand(each: fx.Node) -> Any:
            name = self._named(each)
            if name in values:
                return values[name]
            held = self._held(each)
            if jitter is None or not isinstance(held, Tensor) or not held.is_floating_point():
                return held
            return torch.from_numpy(jitter(held.detach().double().numpy()))

        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), operand)
        if node.op == "call_method":
            first, *others = args
            return getattr(first, str(node.target))(*others, **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _held(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return tensor_at(self.graph, node).detach()
        if node.op == "placeholder":
            return None
        if node.name not in self._constants:
            made = self._call(node, {}, None)
            if isinstance(made, Tensor) and made.numel() > _KEPT_ELEMENTS:
                return made
            self._constants[node.name] = made
        return self._constants[node.name]

    def array(self, value: Any) -> Array | None:
        """Numbers and tuples are no arrays."""
        return value.detach().numpy() if isinstance(value, Tensor) else None

    def value(self, array: Array) -> Any:
        """A tensor, floats in float64."""
        wide = array.astype(np.float64, copy=False) if array.dtype.kind == "f" else array
        return torch.from_numpy(np.array(wide, order="C", copy=None))


# The exporter has no translation of these, and writes what torch's own decomposition says.
_BY_TORCH = ("upsample_linear1d", "upsample_trilinear3d")


def _graph(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """The operators of a program, none of them in place, in the pieces that files have them in."""
    graph = graph_of(program)
    names = {
        str(node.target).split(".")[1] for node in graph.graph.nodes if "." in str(node.target)
    }
    if names.isdisjoint(_BY_TORCH) and split_operators(graph):
        return _each_once(graph)
    with beside(program.graph_module):
        functional = graph_of(program.run_decompositions(dict(_by_torch())))
    split_operators(functional)
    return _each_once(functional)


def _each_once(graph: fx.GraphModule) -> fx.GraphModule:
    """Of the operators that compute the same, one: a written slice is taken once for each use.

    Files have one of them, and its pair must not be a copy that nothing but a shape is read from.
    """
    targets = {node.target for node in graph.graph.nodes if hasattr(node.target, "overloadpacket")}
    drawing = {t.overloadpacket for t in targets if torch.Tag.nondeterministic_seeded in t.tags}
    once = CSEPass(drawing)(graph)
    assert once is not None
    found: fx.GraphModule = once.graph_module
    return found


@cache
def _by_torch() -> Mapping[Any, Any]:
    table = torch.export.default_decompositions()
    return {op: made for op, made in table.items() if op._schema.name[6:] in _BY_TORCH}


def _outputs(
    program: torch.export.ExportedProgram, graph: fx.GraphModule, named: Any
) -> Iterator[tuple[str, str]]:
    """Each output that is a tensor, and its value."""
    spec = program.call_spec.out_spec
    assert spec is not None
    found = graph.graph.output_node().args[0]
    leaves = list(found) if isinstance(found, (tuple, list)) else [found]
    structure = torch.utils._pytree.tree_unflatten(list(range(len(leaves))), spec)
    pairs = [(name, leaves[position]) for name, position in output_names(structure)]
    tensors = [(name, leaf) for name, leaf in pairs if isinstance(leaf, fx.Node)]
    names = unique([name for name, _ in tensors])
    yield from zip(names, (named(leaf) for _, leaf in tensors), strict=True)


def _kind(node: fx.Node) -> str:
    name = getattr(node.target, "_schema", None)
    if name is None:
        return str(getattr(node.target, "__name__", node.target))
    return str(name.name.split("::")[-1]).strip("_")


def _name(node: fx.Node) -> str:
    path = module_path(node)
    return f"{node.name} of {path}" if path else node.name
