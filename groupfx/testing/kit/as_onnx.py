"""A program as an ONNX model: each operation in the spelling of the program's opset."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatchmethod
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from . import integers as q
from . import operations as op
from . import windows as win
from .known import Array
from .program import Operation, Program

PRODUCER = "groupfx.testing"


def onnx_model(program: Program) -> onnx.ModelProto:
    """The model, checked by onnx itself."""
    writer = _Writer(program.opset)
    for step in program.steps:
        writer.write(step.operation, step.reads, step.gives)
    constants = {**program.constants, **writer.constants}
    known = program.values(program.feeds[0])
    declared = [
        helper.make_tensor_value_info(each.name, _type(each.dtype), each.sizes)
        for each in program.inputs
    ]
    # Sizes of the outputs are left to be inferred where an input leaves them open.
    is_open = any(isinstance(size, str) for each in program.inputs for size in each.sizes)
    given = [
        helper.make_tensor_value_info(
            name,
            _type(known[name].dtype),
            [f"{name}_{axis}" for axis in range(known[name].value.ndim)]
            if is_open
            else known[name].shape,
        )
        for name in program.outputs
    ]
    graph = helper.make_graph(
        writer.nodes,
        "case",
        declared,
        given,
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = helper.make_opsetid("", program.opset)
    model = helper.make_model_gen_version(graph, opset_imports=[opset], producer_name=PRODUCER)
    onnx.checker.check_model(model, full_check=True)
    return model


def _type(dtype: str) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


class _Writer:
    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def _node(self, kind: str, reads: Sequence[str], gives: Sequence[str], **given: Any) -> None:
        kept = {key: value for key, value in given.items() if value not in ((), None)}
        node = helper.make_node(kind, reads, gives, name=f"n{len(self.nodes)}_{kind}", **kept)
        self.nodes.append(node)

    def _constant(self, values: Any, dtype: str = "int64") -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = np.asarray(values, dtype)
        return name

    @singledispatchmethod
    def write(self, operation: Operation, reads: Sequence[str], gives: Sequence[str]) -> None:
        """Append the nodes of an operation."""
        raise NotImplementedError(f"{type(operation).__name__} has no ONNX form")

    @write.register
    def _(self, operation: win.Conv, reads: Any, gives: Any) -> None:
        self._node("Conv", reads, gives, **_window(operation), **_placing(operation))

    @write.register
    def _(self, operation: win.ConvTranspose, reads: Any, gives: Any) -> None:
        sizes = {"output_padding": operation.output_padding, "output_shape": operation.output_shape}
        self._node(
            "ConvTranspose", reads, gives, **_window(operation), **_placing(operation), **sizes
        )

    @write.register
    def _(self, operation: win.MaxPool, reads: Any, gives: Any) -> None:
        self._node("MaxPool", reads, gives, kernel_shape=operation.kernel, **_window(operation))

    @write.register
    def _(self, operation: win.AveragePool, reads: Any, gives: Any) -> None:
        window = _window(operation)
        del window["dilations"]  # from opset 19 on only
        kernel = {"kernel_shape": operation.kernel, "count_include_pad": 1}
        self._node("AveragePool", reads, gives, **kernel, **window)

    @write.register
    def _(self, operation: win.Pad, reads: Any, gives: Any) -> None:
        rank = len(operation.pads) // 2
        pads = [0, 0, *operation.pads[:rank], 0, 0, *operation.pads[rank:]]
        given = [*reads, self._constant(pads)]
        if operation.value:
            given.append(self._constant(operation.value, "float32"))
        self._node("Pad", given, gives)

    @write.register
    def _(self, operation: op.Norm, reads: Any, gives: Any) -> None:
        self._node("BatchNormalization", reads, gives, epsilon=operation.epsilon)

    @write.register
    def _(self, operation: op.Activation, reads: Any, gives: Any) -> None:
        if operation.kind == "relu":
            self._node("Relu", reads, gives)
        elif operation.kind == "leaky_relu":
            self._node("LeakyRelu", reads, gives, alpha=0.125)
        else:
            bounds = [self._constant(bound, "float32") for bound in (0, 6)]
            self._node("Clip", [*reads, *bounds], gives)

    @write.register
    def _(self, operation: op.PRelu, reads: Any, gives: Any) -> None:
        self._node("PRelu", reads, gives)

    @write.register
    def _(self, operation: op.DepthToSpace, reads: Any, gives: Any) -> None:
        shape = {"blocksize": operation.block, "mode": operation.mode}
        self._node("DepthToSpace", reads, gives, **shape)

    @write.register
    def _(self, operation: op.Binary, reads: Any, gives: Any) -> None:
        self._node(operation.kind, reads, gives)

    @write.register
    def _(self, operation: op.Concat, reads: Any, gives: Any) -> None:
        self._node("Concat", reads, gives, axis=operation.axis)

    @write.register
    def _(self, operation: op.Split, reads: Any, gives: Any) -> None:
        if self.opset < 13:
            self._node("Split", reads, gives, split=operation.sizes, axis=operation.axis)
        else:
            sizes = self._constant(operation.sizes)
            self._node("Split", [*reads, sizes], gives, axis=operation.axis)

    @write.register
    def _(self, operation: op.Slice, reads: Any, gives: Any) -> None:
        numbers = (operation.start, operation.stop, operation.axis, operation.step)
        self._node("Slice", [*reads, *(self._constant([n]) for n in numbers)], gives)

    @write.register
    def _(self, operation: op.Gather, reads: Any, gives: Any) -> None:
        indices = self._constant(operation.indices)
        self._node("Gather", [*reads, indices], gives, axis=operation.axis)

    @write.register
    def _(self, operation: op.Transpose, reads: Any, gives: Any) -> None:
        self._node("Transpose", reads, gives, perm=operation.axes)

    @write.register
    def _(self, operation: op.Reshape, reads: Any, gives: Any) -> None:
        self._node("Reshape", [*reads, self._constant(operation.sizes)], gives)

    @write.register
    def _(self, operation: op.Mean, reads: Any, gives: Any) -> None:
        self._node("GlobalAveragePool", reads, gives)

    @write.register
    def _(self, operation: op.MatMul, reads: Any, gives: Any) -> None:
        self._node("MatMul", reads, gives)

    @write.register
    def _(self, operation: op.SameGroup, reads: Any, gives: Any) -> None:
        same = f"{gives[0]}_same"
        self._node("Equal", reads, [same])
        self._node("Cast", [same], gives, to=_type(operation.dtype))

    @write.register
    def _(self, operation: op.Identity, reads: Any, gives: Any) -> None:
        self._node(operation.kind, reads, gives)

    @write.register
    def _(self, operation: q.Quantize, reads: Any, gives: Any) -> None:
        axis = operation.axis if self.opset >= 13 else None
        self._node("QuantizeLinear", reads, gives, axis=axis)

    @write.register
    def _(self, operation: q.Dequantize, reads: Any, gives: Any) -> None:
        axis = operation.axis if self.opset >= 13 else None
        self._node("DequantizeLinear", reads, gives, axis=axis)

    @write.register
    def _(self, operation: q.QLinearConv, reads: Any, gives: Any) -> None:
        conv = operation.conv
        self._node("QLinearConv", reads, gives, **_window(conv), **_placing(conv))

    @write.register
    def _(self, operation: q.ConvInteger, reads: Any, gives: Any) -> None:
        conv = operation.conv
        self._node("ConvInteger", reads, gives, **_window(conv), **_placing(conv))

    @write.register
    def _(self, operation: q.ToFloat, reads: Any, gives: Any) -> None:
        self._node("Cast", reads, gives, to=_type(operation.dtype))


def _window(window: win.Window) -> dict[str, Any]:
    return {"strides": window.strides, "pads": window.pads, "dilations": window.dilations}


def _placing(conv: win.Conv | win.ConvTranspose) -> dict[str, Any]:
    auto = None if conv.auto_pad == "NOTSET" else conv.auto_pad
    return {"group": conv.groups, "auto_pad": auto}
