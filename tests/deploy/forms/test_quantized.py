"""A split of a quantized file: int8 weights count, and what a runtime loses by it is said."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from groupfx.deploy.forms.rewrite_onnx import rewrite_graph
from groupfx.passes import SplitGroupedConv


def quantized(kind: str) -> ir.Model:
    """One convolution of 3 groups, 12 -> 12, kernel 3x3, whose weight is stored as `kind`."""
    weight = np.arange(12 * 4 * 9).reshape(12, 4, 3, 3) % 7 - 3
    tensors = {"s": np.float32(0.5), "z": np.int8(0)}
    nodes = []
    if kind == "float":
        tensors["w"] = weight.astype(np.float32)
    else:
        tensors["wq"] = weight.astype(np.int8)
        nodes.append(helper.make_node("DequantizeLinear", ["wq", "s", "z"], ["w"]))
    if kind == "qdq":
        nodes.append(helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]))
        nodes.append(helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]))
    data = "xd" if kind == "qdq" else "x"
    nodes.append(helper.make_node("Conv", [data, "w"], ["y"], name="conv1", group=3, pads=[1] * 4))
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 12, 9, 9)) for n in "xy")
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], held)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return ir.from_proto(made)


@pytest.mark.parametrize(
    ("kind", "lost"), [("qdq", True), ("weight only", False), ("float", False)]
)
def test_int8_weights_count_and_lost_kernels_are_named(kind: str, lost: bool) -> None:
    made = rewrite_graph(quantized(kind), [SplitGroupedConv()])
    (site,) = made.sites
    assert site.macs == made.before.macs == made.after.macs == 12 * 4 * 9 * 81
    assert made.before.parameters == 12 * 4 * 9 + 1
    assert made.after.parameters >= 12 * 4 * 9
    told = [note for note in made.notes if "int8" in note]
    assert len(told) == lost
    assert all("1 of the sites are quantized (conv1)" in note for note in told)
    nothing = rewrite_graph(quantized(kind), [SplitGroupedConv(skip=("conv1",))])
    assert not nothing.sites
    assert not nothing.notes
