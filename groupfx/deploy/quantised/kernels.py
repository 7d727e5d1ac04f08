"""What a runtime makes of quantised convolutions, and what a rewrite costs there.

A QDQ file keeps int8 weights and a DequantizeLinear in front of each convolution. ONNX Runtime
makes one QLinearConv of the convolution and what stands directly around it; a Split or a
Concat in between keeps it from that (onnxruntime, qdq_transformer: SelectorsAndActions).
"""

from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir

from ..graph.conv_nodes import ConvNode
from ..graph.tensors import nodes
from .convs import pairs_around
from .tensors import QUANTIZE, QuantisedTensor, dequantised

_BYTES = frozenset({ir.DataType.INT8, ir.DataType.UINT8})
# Which inputs of an operator are quantised weights or biases, where they are constants.
_QUANTISED: dict[str, tuple[int, ...]] = {
    "DequantizeLinear": (0,),
    "ConvInteger": (1,),
    "MatMulInteger": (0, 1),
    "QGemm": (3, 6),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (0, 3),
}


def quantised_weights(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """The integer weights and biases of the whole model, each once."""
    seen: set[int] = set()
    for node in nodes(model):
        for place in _QUANTISED.get(node.op_type, ()):
            value = node.inputs[place] if place < len(node.inputs) else None
            tensor = None if value is None else value.const_value
            if tensor is not None and id(value) not in seen:
                seen.add(id(value))
                yield tensor


def quantises(model: ir.Model) -> bool:
    """Whether a model rounds to whole numbers on its way, so that a tie may go to either side."""
    return any(
        node.op_type in (QUANTIZE, "DynamicQuantizeLinear") or node.op_type.startswith("QLinear")
        for node in nodes(model)
    )


def has_kernel(conv: ConvNode) -> bool:
    """Whether ONNX Runtime's CPU makes one QLinearConv of a qdq convolution and its pairs.

    It has none for transposed ones, nor for numbers of other sizes than a byte, and an activation
    must be one that the range of the result does already.
    """
    pairs = pairs_around(conv, conv.node)
    weight = dequantised(conv.weight)
    if pairs is None or weight is None or conv.spec.transposed:
        return False
    kinds = pairs.data.kind, pairs.result.kind
    if kinds[0] is not kinds[1] or not {*kinds, weight.kind} <= _BYTES:
        return False
    return not pairs.between or _is_lowest(pairs.result)


def _is_lowest(result: QuantisedTensor) -> bool:
    """Whether the zero point is the least number, so that nothing below 0 is left."""
    zeros = result.zero_points
    if zeros is None:
        return result.kind is ir.DataType.UINT8
    return bool((zeros == np.iinfo(zeros.dtype).min).all())


def bias_rounded_in_branches(conv: ConvNode) -> bool:
    """Whether ONNX Runtime's optimiser quantises a float bias of branches, and not of the whole.

    It does where the weight has as many scales as there are outputs (WeightBiasQuantization); a
    transposed one has as many as a group has outputs.
    """
    weight = dequantised(conv.weight)
    if weight is None or conv.bias is None or dequantised(conv.bias) is not None:
        return False
    return conv.spec.transposed and weight.axis == 1


def kernels_lost(convs: Iterable[ConvNode]) -> tuple[str, ...]:
    """A note on what it costs to take the quantisation around `convs` out; nothing for none."""
    names = [conv.name for conv in convs if has_kernel(conv)]
    if not names:
        return ()
    first = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return (
        f"{len(names)} of the sites are quantized ({first}): ONNX Runtime ran each with one int8 "
        "kernel (QLinearConv), and runs what stands there now in float32",
    )
