"""What other tools write of the same convolution: split, merged, and not a bit of difference."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from groupfx.deploy.quantised.convs import quantised_convs
from tests.deploy.quantised.kernels_run import whole_kernels
from tests.deploy.quantised.quantised_files import QuantisedCase, floats, quantised_file
from tests.deploy.quantised.test_merging import require_came_back
from tests.deploy.quantised.test_splitting import split

Edit = Callable[[onnx.ModelProto], None]
PLAIN = QuantisedCase()


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """A node by its name."""
    return next(entry for entry in model.graph.node if entry.name == name)


def drop(model: onnx.ModelProto, *names: str) -> None:
    """Take initialisers out."""
    for tensor in [t for t in model.graph.initializer if t.name in names]:
        model.graph.initializer.remove(tensor)


def put_before(model: onnx.ModelProto, name: str, new: onnx.NodeProto) -> None:
    """A node in front of another."""
    place = next(k for k, entry in enumerate(model.graph.node) if entry.name == name)
    model.graph.node.insert(place, new)


def negative_axis(model: onnx.ModelProto) -> None:
    node(model, "dqw").attribute[0].i = -4


def weights_not_folded(model: onnx.ModelProto) -> None:
    """As a network is exported that was trained to be quantised."""
    weight = floats(PLAIN)["w"].astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    names = ["w", "w_scale", "w_zero"]
    put_before(model, "dqw", helper.make_node("QuantizeLinear", names, ["wq"], name="qw", axis=0))
    node(model, "dqw").input[0] = "wq"
    drop(model, "w_quantized")


def no_zero_points(model: onnx.ModelProto) -> None:
    for entry in model.graph.node:
        if entry.op_type in ("QuantizeLinear", "DequantizeLinear"):
            del entry.input[2]
    drop(model, "x_zero", "y_zero", "w_zero", "b_zero")


def one_scale_for_all(model: onnx.ModelProto) -> None:
    for name in ("qy", "dqy"):
        node(model, name).input[1:] = ["x_scale", "x_zero"]
    drop(model, "y_scale", "y_zero")


def scales_of_one_element(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if not tensor.dims:
            tensor.dims[:] = [1]


def also_read_elsewhere(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["xd"], ["r"], name="r"))
    model.graph.output.append(helper.make_tensor_value_info("r", 1, ["N", 6, 7, 7]))


def whole_numbers_come_out(model: onnx.ModelProto) -> None:
    model.graph.node.remove(node(model, "dqy"))
    del model.graph.output[:]
    sizes = ["N", 15, None, None]
    model.graph.output.append(helper.make_tensor_value_info("yq", onnx.TensorProto.UINT8, sizes))


def operators_of_the_runtime(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    for entry in model.graph.node:
        if entry.op_type in ("QuantizeLinear", "DequantizeLinear"):
            entry.domain = "com.microsoft"


def padded_by_itself(model: onnx.ModelProto) -> None:
    node(model, "conv").attribute.append(helper.make_attribute("auto_pad", "SAME_UPPER"))


LAYOUTS: dict[str, tuple[QuantisedCase, Edit]] = {
    each.__name__: (case, each)
    for case, each in (
        (PLAIN, negative_axis),
        (PLAIN, weights_not_folded),
        (PLAIN, no_zero_points),
        (PLAIN, one_scale_for_all),
        (QuantisedCase(per_channel=False), scales_of_one_element),
        (PLAIN, also_read_elsewhere),
        (PLAIN, whole_numbers_come_out),
        (PLAIN, operators_of_the_runtime),
        (PLAIN, padded_by_itself),
    )
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_branch_is_an_int8_kernel_and_the_whole_comes_back(name: str, tmp_path: Path) -> None:
    case, edit = LAYOUTS[name]
    proto = quantised_file(case)
    edit(proto)
    require_came_back(case, proto)
    after = ir.to_proto(split(proto).model)
    assert (whole_kernels(proto, tmp_path), whole_kernels(after, tmp_path)) == (1, case.groups)


def test_a_norm_between_convolution_and_rounding_goes_into_the_branches() -> None:
    case = QuantisedCase(activation="Relu")
    proto = quantised_file(case)
    generator = np.random.default_rng(3)
    names = ("gamma", "beta", "mean", "variance")
    for name in names:
        array = generator.uniform(0.5, 1.5, 15).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    norm = helper.make_node("BatchNormalization", ["c", *names], ["n"], name="bn")
    put_before(proto, "act", norm)
    node(proto, "act").input[0] = "n"
    require_came_back(case, proto)
    kinds = [entry.op_type for entry in split(proto).model.graph]
    assert (kinds.count("BatchNormalization"), kinds.count("QuantizeLinear")) == (3, 8)


def test_a_branch_of_several_groups_is_split_again(tmp_path: Path) -> None:
    case = QuantisedCase(groups=5)
    once = ir.to_proto(split(quantised_file(case), branches=2).model)
    again = split(once).model
    assert [conv.conv.spec.groups for conv in quantised_convs(again)] == [1] * 5
    assert whole_kernels(ir.to_proto(again), tmp_path) == 5
