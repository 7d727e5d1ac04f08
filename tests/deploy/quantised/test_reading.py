"""The reader of quantised convolutions: each operand in whole numbers, and what they stand for."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from groupfx.deploy.quantised.convs import QuantisedConv, quantised_convs
from tests.deploy.quantised.quantised_files import QuantisedCase, floats, quantised_file

CASES = {
    "per channel": QuantisedCase(),
    "per tensor": QuantisedCase(per_channel=False),
    "not symmetric": QuantisedCase(symmetric=False, weight="uint8", data="int8"),
    "transposed": QuantisedCase(transposed=True),
    "transposed along its inputs": QuantisedCase(transposed=True, axis=0, bias="float"),
    "constants": QuantisedCase(constants=True, opset=13),
    "int4": QuantisedCase(weight="int4", opset=21),
    "weight only": QuantisedCase(layout="weight only", bias=None),
    "operator": QuantisedCase(layout="QLinearConv"),
    "operator per tensor": QuantisedCase(layout="QLinearConv", per_channel=False),
    "integer": QuantisedCase(layout="ConvInteger", bias=None, per_channel=False),
}


def read(case: QuantisedCase) -> QuantisedConv:
    (found,) = quantised_convs(ir.from_proto(quantised_file(case)))
    return found


@pytest.mark.parametrize("name", CASES)
def test_every_layout_is_read(name: str) -> None:
    case = CASES[name]
    found = read(case)
    assert (found.name, found.layout, found.conv.spec.groups) == ("conv", case.layout, case.groups)
    numbers = found.weight.numbers
    assert numbers is not None
    assert (numbers.dtype.name, numbers.shape) == (case.weight, case.weight_shape)
    assert found.weight.axis == (case.scaled_axis if case.per_channel else None)
    assert (found.data is None) == (case.layout == "weight only")
    assert (found.bias is not None) == (case.bias == "int32")
    assert (found.result is None) == (case.layout == "ConvInteger")


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.layout != "ConvInteger"])
def test_the_reals_are_those_that_were_quantised(name: str) -> None:
    case, found = CASES[name], read(CASES[name])
    wanted, reals, scales = floats(case), found.weight.reals, found.weight.scales
    assert reals is not None
    assert scales is not None
    spread = (
        scales
        if found.weight.axis is None
        else scales.reshape(-1, *(1,) * (reals.ndim - 1 - found.weight.axis))
    )
    # Rounded to the nearest whole number, and a zero point to another.
    assert np.all(np.abs(reals - wanted["w"]) <= 1.01 * spread)
    if found.bias is not None:
        steps = np.max(scales) * 0.037
        assert found.bias_reals is not None
        assert np.all(np.abs(found.bias_reals - wanted["b"]) <= 0.51 * steps)


@pytest.mark.parametrize("activation", [None, "Relu", "Clip"])
def test_activations_lie_between_a_convolution_and_its_result(activation: str | None) -> None:
    found = read(QuantisedCase(activation=activation))
    assert [node.op_type for node in found.behind] == ([activation] if activation else [])
    assert found.result is not None
    assert found.result.node is not None
    assert (found.result.node.name, found.result.stored.name) == ("qy", "yq")
    left = read(QuantisedCase(activation=activation, quantised_output=False))
    assert (left.behind, left.result) == ((), None)


def test_a_value_that_is_read_twice_ends_in_no_result() -> None:
    proto = quantised_file(QuantisedCase(activation="Relu"))
    proto.graph.node.append(helper.make_node("Neg", ["c"], ["more"]))
    (found,) = quantised_convs(ir.from_proto(proto))
    assert (found.behind, found.result) == ((), None)


def test_blocks_of_scales_are_spread() -> None:
    proto = quantised_file(replace(QuantisedCase(opset=21), inputs=3, bias=None))
    (node,) = (n for n in proto.graph.node if n.name == "dqw")
    del node.attribute[:]
    node.attribute.extend(
        [helper.make_attribute("axis", 1), helper.make_attribute("block_size", 2)]
    )
    for tensor in proto.graph.initializer:
        if tensor.name in ("w_scale", "w_zero"):
            one = np.float32 if tensor.name == "w_scale" else np.int8
            shape = (15, 2, 3, 3)
            made = np.arange(1, np.prod(shape) + 1).reshape(shape) % 100
            tensor.CopyFrom(numpy_helper.from_array(made.astype(one), tensor.name))
    (found,) = quantised_convs(ir.from_proto(proto))
    numbers, scales, zeros = found.weight.numbers, found.weight.scales, found.weight.zero_points
    assert numbers is not None
    assert scales is not None
    assert zeros is not None
    for channel in range(3):
        block = channel // 2
        wanted = (numbers[:, channel].astype(int) - zeros[:, block]) * scales[:, block]
        assert found.weight.reals is not None
        np.testing.assert_array_equal(found.weight.reals[:, channel], wanted)
