"""ONNX Runtime's own operators on whole numbers, as operators of onnx that give the same shapes.

What onnx infers of a graph ends at the first operator that it does not know; a quantiser that
writes operators on whole numbers (QOperator) puts these between the convolutions.
"""

from __future__ import annotations

import onnx_ir as ir

_DOMAIN = "com.microsoft"
# Of each: an operator with its shapes, which inputs are tensors, and the attributes that it takes.
_POOL = frozenset({"auto_pad", "ceil_mode", "kernel_shape", "pads", "strides"})
_NONE = frozenset[str]()
_LIKE: dict[str, tuple[str, slice, frozenset[str]]] = {
    "DequantizeLinear": ("Identity", slice(1), _NONE),
    "QGemm": ("Gemm", slice(0, 4, 3), frozenset({"transA", "transB"})),
    "QLinearAdd": ("Add", slice(0, 4, 3), _NONE),
    "QLinearAveragePool": ("AveragePool", slice(1), _POOL),
    "QLinearConcat": ("Concat", slice(2, None, 3), frozenset({"axis"})),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", slice(1), _NONE),
    "QLinearLeakyRelu": ("Identity", slice(1), _NONE),
    "QLinearMul": ("Mul", slice(0, 4, 3), _NONE),
    "QLinearSigmoid": ("Identity", slice(1), _NONE),
    "QLinearSoftmax": ("Identity", slice(1), _NONE),
    "QuantizeLinear": ("Identity", slice(1), _NONE),
}


def stand_in(node: ir.Node) -> None:
    """Make of a node of ONNX Runtime's one that onnx infers shapes of, where there is such a one.

    The node then computes something else: this is for a copy that nobody runs.
    """
    found = _LIKE.get(node.op_type) if node.domain == _DOMAIN else None
    if found is None or node.attributes.get_int("channels_last", 0) == 1:
        return
    kind, tensors, attributes = found
    inputs = node.inputs[tensors]
    node.resize_inputs(len(inputs))
    for place, value in enumerate(inputs):
        node.replace_input_with(place, value)
    for name in [name for name in node.attributes if name not in attributes]:
        del node.attributes[name]
    node.op_type, node.domain = kind, ""
