"""A program as a torch model: a `GraphModule` of layers of torch.nn and of functions.

A convolution or norm whose tensors are constants becomes a layer, as an author writes one; anything
else a function of what it reads. Raises `NotInTorch` for what torch has no such thing for.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import singledispatchmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from . import operations as op
from . import windows as win
from .program import Operation, Program, Step

_CONVS: dict[bool, Sequence[type[nn.Module]]] = {
    False: (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    True: (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
}
_FUNCTIONS = {
    False: (F.conv1d, F.conv2d, F.conv3d),
    True: (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_MAX_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVERAGE_POOLS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_BINARIES = {"Add": operator.add, "Sub": operator.sub, "Mul": operator.mul}


class NotInTorch(Exception):
    """An operation is one of ONNX alone, or a model is of no dtype that is trained in."""


def torch_model(program: Program) -> fx.GraphModule:
    """The model in eval mode; inputs in the order of the program, outputs as a tuple."""
    if any(each.dtype != "float32" for each in program.inputs):
        raise NotInTorch("inputs that are not float32")
    if any(isinstance(size, str) for each in program.inputs for size in each.sizes):
        raise NotInTorch("open sizes")
    writer = _Writer(program)
    for step in program.steps:
        writer.write(step.operation, step)
    outputs = tuple(writer.nodes[name] for name in program.outputs)
    writer.graph.output(outputs)
    return fx.GraphModule(writer.root, writer.graph).eval()


class _Writer:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.known = program.values(program.feeds[0])
        self.root, self.graph = nn.Module(), fx.Graph()
        self.nodes: dict[str, fx.Node] = {
            each.name: self.graph.placeholder(each.name) for each in program.inputs
        }

    @singledispatchmethod
    def write(self, operation: Operation, step: Step) -> None:
        """Append the nodes of a step."""
        raise NotInTorch(type(operation).__name__)

    def _read(self, name: str) -> fx.Node:
        """The node of a value; a constant is a buffer."""
        if name not in self.nodes:
            self.root.register_buffer(name, self._tensor(name))
            self.nodes[name] = self.graph.get_attr(name)
        return self.nodes[name]

    def _tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.program.constants[name].copy())

    def _call(self, step: Step, function: Any, *rest: Any, **given: Any) -> None:
        reads = [self._read(name) for name in step.reads]
        self.nodes[step.gives[0]] = self.graph.call_function(function, (*reads, *rest), given)

    def _layer(self, step: Step, layer: nn.Module, x: fx.Node) -> None:
        name = f"layer{len(list(self.root.children()))}"
        self.root.add_module(name, layer)
        self.nodes[step.gives[0]] = self.graph.call_module(name, (x,))

    def _fixed(self, names: Sequence[str]) -> bool:
        """Whether these are constants that no other step reads."""
        return all(
            name in self.program.constants and len(self.program.readers(name)) == 1
            for name in names
        )

    @write.register
    def _(self, operation: win.Conv, step: Step) -> None:
        weight = self.known[step.reads[1]].shape
        sizes = self.known[step.reads[0]].shape[2:]
        strides, _, dilations = operation.of_rank(len(sizes))
        pads = operation.placed(sizes, weight[2:]).pads or (0,) * 2 * len(sizes)
        rank = len(sizes)
        x, padding = self._read(step.reads[0]), pads[:rank]
        given: dict[str, Any] = {"stride": strides, "dilation": dilations}
        given["groups"] = operation.groups
        if pads[:rank] != pads[rank:]:
            x, padding = self.graph.call_function(F.pad, (x, _flat(pads))), (0,) * rank
        if self._fixed(step.reads[1:]):
            channels = (weight[1] * operation.groups, weight[0])
            self._conv(step, x, channels, weight[2:], {**given, "padding": padding}, False)
            return
        rest = [self._read(name) for name in step.reads[1:]]
        function: Any = _FUNCTIONS[False][rank - 1]
        node = self.graph.call_function(function, (x, *rest), {**given, "padding": padding})
        self.nodes[step.gives[0]] = node

    @write.register
    def _(self, operation: win.ConvTranspose, step: Step) -> None:
        if operation.auto_pad != "NOTSET" or operation.output_shape:
            raise NotInTorch("a transposed convolution that says the size of its output")
        shape = self.known[step.reads[0]].shape
        weight, rank = self.known[step.reads[1]].shape, len(shape) - 2
        strides, pads, dilations = operation.of_rank(rank)
        if pads[:rank] != pads[rank:]:
            raise NotInTorch("uneven pads of a transposed convolution")
        given = {
            "stride": strides,
            "padding": pads[:rank],
            "output_padding": operation.output_padding or (0,) * rank,
            "groups": operation.groups,
            "dilation": dilations,
        }
        if self._fixed(step.reads[1:]):
            channels = (weight[0], weight[1] * operation.groups)
            self._conv(step, self._read(step.reads[0]), channels, weight[2:], given, True)
            return
        self._call(step, _FUNCTIONS[True][rank - 1], **given)

    def _conv(
        self,
        step: Step,
        x: fx.Node,
        channels: tuple[int, int],
        kernel: tuple[int, ...],
        given: dict[str, Any],
        transposed: bool,
    ) -> None:
        kind = _CONVS[transposed][len(kernel) - 1]
        layer = kind(*channels, kernel, bias=len(step.reads) > 2, **given)
        for name, value in zip(("weight", "bias"), step.reads[1:], strict=False):
            setattr(layer, name, nn.Parameter(self._tensor(value)))
        self._layer(step, layer, x)

    @write.register
    def _(self, operation: op.Norm, step: Step) -> None:
        if not self._fixed(step.reads[1:]):
            raise NotInTorch("a norm whose tensors something else reads")
        rows = [self._tensor(name) for name in step.reads[1:]]
        rank = self.known[step.reads[0]].value.ndim - 2
        layer = _NORMS[rank](len(rows[0]), eps=operation.epsilon)
        layer.weight, layer.bias = nn.Parameter(rows[0]), nn.Parameter(rows[1])
        layer.running_mean, layer.running_var = rows[2], rows[3]
        self._layer(step, layer, self._read(step.reads[0]))

    @write.register
    def _(self, operation: op.Activation, step: Step) -> None:
        layers = {"relu": nn.ReLU(), "relu6": nn.ReLU6(), "leaky_relu": nn.LeakyReLU(0.125)}
        self._layer(step, layers[operation.kind], self._read(step.reads[0]))

    @write.register
    def _(self, operation: op.PRelu, step: Step) -> None:
        slope = self._tensor(step.reads[1]).flatten()
        layer = nn.PReLU(len(slope))
        layer.weight = nn.Parameter(slope)
        self._layer(step, layer, self._read(step.reads[0]))

    @write.register
    def _(self, operation: op.DepthToSpace, step: Step) -> None:
        if operation.mode != "CRD":
            raise NotInTorch("channels to squares in DCR order")
        self._layer(step, nn.PixelShuffle(operation.block), self._read(step.reads[0]))

    @write.register
    def _(self, operation: op.Binary, step: Step) -> None:
        self._call(step, _BINARIES[operation.kind])

    @write.register
    def _(self, operation: op.Concat, step: Step) -> None:
        parts = [self._read(name) for name in step.reads]
        node = self.graph.call_function(torch.cat, (parts, operation.axis))
        self.nodes[step.gives[0]] = node

    @write.register
    def _(self, operation: op.Split, step: Step) -> None:
        x = self._read(step.reads[0])
        parts = self.graph.call_function(torch.split, (x, list(operation.sizes), operation.axis))
        for position, name in enumerate(step.gives):
            self.nodes[name] = self.graph.call_function(operator.getitem, (parts, position))

    @write.register
    def _(self, operation: op.Slice, step: Step) -> None:
        if operation.step < 0:
            raise NotInTorch("a slice that goes backwards")
        part = (
            *[slice(None)] * operation.axis,
            slice(operation.start, operation.stop, operation.step),
        )
        self._call(step, operator.getitem, part)

    @write.register
    def _(self, operation: op.Gather, step: Step) -> None:
        part = (*[slice(None)] * operation.axis, list(operation.indices))
        self._call(step, operator.getitem, part)

    @write.register
    def _(self, operation: op.Transpose, step: Step) -> None:
        self._call(step, torch.permute, operation.axes)

    @write.register
    def _(self, operation: op.Reshape, step: Step) -> None:
        self._call(step, torch.reshape, operation.of(self.known[step.reads[0]].shape))

    @write.register
    def _(self, operation: op.Mean, step: Step) -> None:
        axes = tuple(range(2, self.known[step.reads[0]].value.ndim))
        self._call(step, torch.mean, axes, keepdim=True)

    @write.register
    def _(self, operation: op.MatMul, step: Step) -> None:
        self._call(step, torch.matmul)

    @write.register
    def _(self, operation: op.SameGroup, step: Step) -> None:
        self._call(step, torch.eq)
        same = self.nodes[step.gives[0]]
        self.nodes[step.gives[0]] = self.graph.call_method("float", (same,))

    @write.register
    def _(self, operation: op.Identity, step: Step) -> None:
        layer = nn.Identity() if operation.kind == "Identity" else nn.Dropout()
        self._layer(step, layer, self._read(step.reads[0]))

    @write.register
    def _(self, operation: win.Pad, step: Step) -> None:
        self._call(step, F.pad, _flat(operation.pads), value=operation.value)

    @write.register
    def _(self, operation: win.MaxPool, step: Step) -> None:
        rank = len(operation.kernel)
        strides, pads, dilations = operation.of_rank(rank)
        if pads[:rank] != pads[rank:]:
            raise NotInTorch("uneven pads of a pooling")
        window = (operation.kernel, strides, pads[:rank], dilations)
        self._call(step, _MAX_POOLS[rank - 1], *window)

    @write.register
    def _(self, operation: win.AveragePool, step: Step) -> None:
        rank = len(operation.kernel)
        strides, pads, _ = operation.of_rank(rank)
        if pads[:rank] != pads[rank:]:
            raise NotInTorch("uneven pads of a pooling")
        self._call(step, _AVERAGE_POOLS[rank - 1], operation.kernel, strides, pads[:rank])


def _flat(pads: tuple[int, ...]) -> list[int]:
    """Pads as torch takes them: the last axis first, begin and end of each."""
    rank = len(pads) // 2
    return [pads[i + side * rank] for i in reversed(range(rank)) for side in (0, 1)]
