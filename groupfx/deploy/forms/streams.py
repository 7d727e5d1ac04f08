"""The streams of an ONNX graph: tensors that sums, products, norms and activations connect, between
convolutions.

What ONNX Runtime does in its blocked layout was read from the models that its optimiser writes
(1.31.1): it makes a convolution of a norm, and one node of `x * sigmoid(x)` and of the erf of a
GELU.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import onnx_ir as ir

from ...plan.cost import OnnxRuntime, Work
from ...plan.machine import Machine
from ...plan.streams import End, Step, Stream
from ..graph.conv_nodes import ConvNode, Shapes

# What ONNX Runtime does in its blocked layout also where no convolution takes it along.
_STAY = frozenset({"LeakyRelu", "Relu", "Sigmoid", "Tanh"})
# Of which a matrix product takes none along; elsewhere two nodes are made of it.
_IN_TWO = "HardSwish"
# What a convolution takes along, and is done in the plain layout elsewhere.
_ACTIVATIONS = _STAY | {"Clip", "HardSigmoid", _IN_TWO}
_NORM = "BatchNormalization"
# Nodes of their own, in either layout.
_ALONE = frozenset({"Erf", "Gelu"})
# Of one tensor and of a number, as in a GELU; of two tensors the first two.
_OF_TWO = frozenset({"Add", "Mul"})
_BY_NUMBER = _OF_TWO | {"Div"}
_RESIZES = frozenset({"Resize", "Upsample"})
_BLOCKED = _RESIZES | {"AveragePool", "Concat", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"}
# Of a tensor: batch, channels, and two sizes.
_BLOCKED_RANK = 4


def streams_of(
    model: ir.Model,
    convs: Sequence[ConvNode],
    sites: Collection[str],
    shapes: Shapes | None,
    machine: Machine,
) -> Iterator[Stream]:
    """Each stream that one of the `sites` among the convolutions gives or reads.

    Those whose size is not known are left out.
    """
    yield from _Streams(convs, sites, shapes or {}, machine).of(model.graph)


class _Streams:
    def __init__(
        self,
        convs: Sequence[ConvNode],
        sites: Collection[str],
        shapes: Shapes,
        machine: Machine,
    ) -> None:
        self.convs = {conv.node: conv for conv in convs}
        self.sites = sites
        self.shapes = shapes
        self.machine = machine

    def of(self, graph: ir.Graph) -> Iterator[Stream]:
        steps = {node: reads for node in graph if (reads := self._step(node))}
        members: dict[ir.Value, list[ir.Value]] = {}
        for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
            members[value] = [value]
        for node, reads in steps.items():
            for value in reads:
                own, other = members[node.outputs[0]], members[value]
                if own is not other:
                    own += other
                    members |= dict.fromkeys(other, own)
        for values in {id(own): own for own in members.values()}.values():
            stream = self._stream(values, steps)
            if stream is not None and stream.sites:
                yield stream

    def _step(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """What an operation channel by channel reads; nothing for every other node."""
        first = node.inputs[0] if node.inputs else None
        if node.op_type in _ALONE | _ACTIVATIONS | {_NORM} and first is not None:
            return (first,)
        if node.op_type not in _BY_NUMBER:
            return ()
        given = [value for value in node.inputs if value is not None]
        read = tuple(value for value in given if value.const_value is None)
        if len(read) < len(given):
            numbers = (value.const_value for value in given if value.const_value is not None)
            return read if all(tensor.size == 1 for tensor in numbers) else ()
        sizes = {self._size(value) for value in (*read, *node.outputs)}
        of_two = node.op_type in _OF_TWO and len(sizes) == 1 and None not in sizes
        return read if of_two else ()

    def _stream(
        self, values: list[ir.Value], steps: Mapping[ir.Node, tuple[ir.Value, ...]]
    ) -> Stream | None:
        size = self._size(values[0])
        if size is None:
            return None
        # A file need not say what lies between.
        of_floats = values[0].dtype in (None, ir.DataType.FLOAT)
        blocked = of_floats and len(self._sizes(values[0])) == _BLOCKED_RANK
        number = {value: at for at, value in enumerate(values)}
        writers, readers = list[End](), list[End]()
        for value, at in number.items():
            made = value.producer()
            if made not in steps:
                writers.append(self._end(made, at, size[0], gives=True))
            for use in value.uses():
                if use.node not in steps:
                    readers.append(self._end(use.node, at, size[0], gives=False))
            if value.is_graph_output():
                readers.append(End(at))
        own = [node for node in steps if node.outputs[0] in number]
        done = tuple(
            _step_of(node, tuple(number[value] for value in steps[node]), number[node.outputs[0]])
            for node in own
        )
        return Stream(*size, blocked, done, tuple(writers), tuple(readers))

    def _end(self, node: ir.Node | None, tensor: int, channels: int, *, gives: bool) -> End:
        """What a node that is no step makes of a tensor that it gives, or else reads."""
        if node is None:
            return End(tensor)
        conv, block = self.convs.get(node), self.machine.block
        if conv is None:
            aligned = block > 0 and channels % block == 0
            blocked = aligned and node.op_type in _BLOCKED
            return End(tensor, blocked=blocked, interpolates=0 if gives else self._between(node))
        if conv.name in self.sites:
            return End(tensor, conv.name)
        spec = conv.spec
        work = Work(1, 1, blocked=spec.dims == _BLOCKED_RANK - 2)
        layout = OnnxRuntime(work, self.machine).layout(
            spec.in_channels, spec.out_channels, spec.groups
        )
        # Few inputs are read as they are.
        blocked = layout == "blocked" or (gives and layout == "direct")
        return End(tensor, blocked=blocked, fuses=True)

    def _between(self, node: ir.Node) -> int:
        """How many values of a sample a node interpolates linearly."""
        if (
            node.op_type not in _RESIZES
            or node.attributes.get_string("mode", "nearest") != "linear"
        ):
            return 0
        return math.prod(self._size(node.outputs[0]) or (0,))

    def _size(self, value: ir.Value) -> tuple[int, int] | None:
        """Channels and positions."""
        sizes = self._sizes(value)[1:]
        known = [size for size in sizes if isinstance(size, int)]
        if not known or len(known) < len(sizes) or not all(known):
            return None
        return known[0], math.prod(known[1:])

    def _sizes(self, value: ir.Value) -> Sequence[int | ir.SymbolicDim]:
        # What a file declares may be but a name where inference knows the number.
        return tuple(self.shapes.get(value.name or "") or value.shape or ())


def _step_of(node: ir.Node, reads: tuple[int, ...], gives: int) -> Step:
    """The step of a node between tensors of these numbers."""
    kind = node.op_type
    if kind == _IN_TWO:
        return Step(reads, gives, stays=False, along="blocked", passes=2)
    if kind in _ACTIVATIONS:
        return Step(reads, gives, kind in _STAY)
    if kind == _NORM:
        return Step(reads, gives, along="one", convolves=True)
    return Step(reads, gives, along="one" if kind == "Add" and len(reads) > 1 else "none")
