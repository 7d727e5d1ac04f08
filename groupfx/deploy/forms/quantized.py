"""Convolutions of quantized files: int8 weights, and what a rewrite costs a runtime there.

A QDQ file keeps int8 weights and a DequantizeLinear in front of each convolution. ONNX Runtime
makes one QLinearConv of the convolution and what stands directly around it; a Split or a
Concat in between keeps it from that (onnxruntime, qdq_transformer: SelectorsAndActions).
"""

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from ..graph.conv_nodes import ConvNode
from ..graph.tensors import nodes

_DEQUANTIZE = "DequantizeLinear"
# Which inputs of an operator are quantized weights or biases, where they are constants.
_QUANTIZED: dict[str, tuple[int, ...]] = {
    _DEQUANTIZE: (0,),
    "ConvInteger": (1,),
    "MatMulInteger": (0, 1),
    "QGemm": (3, 6),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (0, 3),
}


def quantized_weights(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """The integer weights and biases of the whole model, each once."""
    seen: set[int] = set()
    for node in nodes(model):
        for place in _QUANTIZED.get(node.op_type, ()):
            value = node.inputs[place] if place < len(node.inputs) else None
            tensor = None if value is None else value.const_value
            if tensor is not None and id(value) not in seen:
                seen.add(id(value))
                yield tensor


def is_quantized(conv: ConvNode) -> bool:
    """Whether its weight and its input are dequantized right in front of it."""
    return all(_is_dequantized(value) for value in (conv.weight, conv.node.inputs[0]))


def _is_dequantized(value: ir.Value | None) -> bool:
    maker = None if value is None else value.producer()
    return maker is not None and maker.op_type == _DEQUANTIZE


def kernels_lost(convs: Iterable[ConvNode]) -> tuple[str, ...]:
    """A note on what it costs to rewrite `convs`; nothing where none of them is quantized."""
    names = [conv.name for conv in convs if is_quantized(conv)]
    if not names:
        return ()
    first = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return (
        f"{len(names)} of the sites are quantized ({first}): ONNX Runtime ran each with one int8 "
        "kernel (QLinearConv), and runs what stands there now in float32",
    )
