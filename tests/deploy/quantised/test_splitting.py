"""A split of quantised convolutions: not a bit of difference, and each branch an int8 kernel."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from groupfx.deploy.forms.rewrite_onnx import OnnxRewrite, rewrite_graph
from groupfx.deploy.quantised.convs import quantised_convs
from groupfx.passes import SplitGroupedConv
from tests.deploy.quantised.drawn_cases import drawn_case
from tests.deploy.quantised.kernels_run import results, whole_kernels
from tests.deploy.quantised.quantised_files import Array, QuantisedCase, quantised_file

CASES = {
    "per channel": QuantisedCase(),
    "per tensor": QuantisedCase(per_channel=False),
    "int8 data": QuantisedCase(data="int8", symmetric=False, weight="uint8"),
    "relu": QuantisedCase(activation="Relu"),
    "float bias": QuantisedCase(bias="float"),
    "no bias": QuantisedCase(bias=None, constants=True, opset=13),
    "1-d": QuantisedCase(kernel=(3,)),
    "3-d": QuantisedCase(kernel=(3, 2, 1), size=5),
    "depthwise": QuantisedCase(inputs=1, outputs=1),
    "operator": QuantisedCase(layout="QLinearConv"),
    "operator per tensor": QuantisedCase(layout="QLinearConv", per_channel=False, bias=None),
    "integer": QuantisedCase(layout="ConvInteger", bias=None, per_channel=False),
}
# ONNX Runtime has no kernel on whole numbers for these, before or after.
IN_FLOATS = {
    "transposed": QuantisedCase(transposed=True),
    "transposed along its inputs": QuantisedCase(transposed=True, axis=0, bias="float"),
    "int4": QuantisedCase(weight="int4", opset=21),
    "int16": QuantisedCase(weight="int16", opset=21),
    "weight only": QuantisedCase(layout="weight only", bias=None),
    "output in floats": QuantisedCase(quantised_output=False),
}


def split(proto: onnx.ModelProto, **options: object) -> OnnxRewrite:
    """Split, depthwise ones too, and checked by onnx."""
    passes = [SplitGroupedConv(depthwise="split", **options)]  # type: ignore[arg-type]
    made = rewrite_graph(ir.from_proto(proto), passes)
    onnx.checker.check_model(ir.to_proto(made.model), full_check=True)
    return made


def example(case: QuantisedCase) -> Array:
    """An input whose ends leave the range of 8 bits."""
    shape = (2, case.channels[0], *[case.size] * len(case.kernel))
    values = np.random.default_rng(case.seed).normal(scale=2.5, size=shape)
    return values.astype(np.float32)


def require_same(
    case: QuantisedCase, before: onnx.ModelProto, after: onnx.ModelProto, levels: int = 2
) -> None:
    """Not a bit of difference in ONNX Runtime, and something to differ in."""
    x = example(case)
    pairs = list(zip(results(before, x), results(after, x), strict=True))
    for one, other in pairs[:levels]:
        assert len(np.unique(one)) > 1
        np.testing.assert_array_equal(one, other)


def require_near(case: QuantisedCase, before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """The same where nothing is optimised; else floats may round a tie to the other side."""
    pairs = zip(results(before, example(case)), results(after, example(case)), strict=True)
    plain, optimised = pairs
    np.testing.assert_array_equal(*plain)
    step = 0 if case.layout in ("ConvInteger", "QLinearConv") else 0.311
    np.testing.assert_allclose(*optimised, rtol=1e-6, atol=step)


@pytest.mark.parametrize("name", CASES)
def test_each_branch_is_an_int8_kernel_and_nothing_differs(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    proto = quantised_file(case)
    made = split(proto)
    after = ir.to_proto(made.model)
    require_same(case, proto, after)
    assert whole_kernels(proto, tmp_path) == 1
    assert whole_kernels(after, tmp_path) == case.groups == made.sites[0].branches
    assert not made.notes


@pytest.mark.parametrize("name", IN_FLOATS)
def test_where_there_is_no_int8_kernel_nothing_differs_either(name: str, tmp_path: Path) -> None:
    case = IN_FLOATS[name]
    proto = quantised_file(case)
    made = split(proto)
    after = ir.to_proto(made.model)
    require_same(case, proto, after)
    assert whole_kernels(proto, tmp_path) == whole_kernels(after, tmp_path) == 0
    assert made.sites[0].branches == case.groups
    assert not made.notes


@pytest.mark.parametrize(
    ("options", "groups"),
    [
        ({"branches": 2}, (3, 2)),
        ({"groups_per_branch": 4}, (4, 1)),
        ({"max_channels": 10}, (2, 2, 1)),
    ],
)
def test_branches_of_several_groups_are_int8_kernels(
    options: dict[str, int], groups: tuple[int, ...], tmp_path: Path
) -> None:
    case = QuantisedCase(groups=5, outputs=5, activation="Relu")
    proto = quantised_file(case)
    after = ir.to_proto(split(proto, **options).model)
    require_same(case, proto, after)
    found = tuple(quantised_convs(ir.from_proto(after)))
    assert tuple(conv.conv.spec.groups for conv in found) == groups
    assert whole_kernels(after, tmp_path) == len(groups)


@pytest.mark.parametrize("activation", [None, "Relu"])
def test_one_pair_around_all_branches(activation: str | None, tmp_path: Path) -> None:
    case = QuantisedCase(activation=activation)
    proto = quantised_file(case)
    made = split(proto, qdq="outside")
    after = ir.to_proto(made.model)
    require_near(case, proto, after)
    kinds = [node.op_type for node in after.graph.node]
    assert (kinds.count("QuantizeLinear"), kinds.count("Concat")) == (2, 1)
    assert whole_kernels(after, tmp_path) == 0
    (note,) = made.notes
    assert "1 of the sites are quantized (conv)" in note


def test_the_numbers_of_the_branches_are_those_of_the_convolution() -> None:
    for case in (QuantisedCase(symmetric=False, weight="uint8"), QuantisedCase(transposed=True)):
        proto = quantised_file(case)
        (whole,) = quantised_convs(ir.from_proto(proto))
        branches = tuple(quantised_convs(split(proto).model))
        joined = np.concatenate([b.weight.reals for b in branches])
        np.testing.assert_array_equal(joined, whole.weight.reals)
        assert {b.weight.kind for b in branches} == {whole.weight.kind}
        biases = np.concatenate([b.bias_reals for b in branches])
        np.testing.assert_array_equal(biases, whole.bias_reals)


def prove(seeds: range, folder: Path) -> None:
    kept = 0
    for seed in seeds:
        case = drawn_case(seed)
        proto = quantised_file(case)
        outside = ir.to_proto(split(proto, qdq="outside").model)
        after = ir.to_proto(split(proto, **({} if seed % 3 else {"branches": 2})).model)
        require_same(case, proto, after)
        require_near(case, proto, outside)
        before, branches = whole_kernels(proto, folder), 2 if seed % 3 == 0 else case.groups
        assert whole_kernels(after, folder) == before * branches, case
        kept += before
    assert kept > len(seeds) // 4


def test_random_ones_differ_in_no_bit(tmp_path: Path) -> None:
    prove(range(40), tmp_path)


@pytest.mark.long
def test_five_hundred_random_ones_differ_in_no_bit(tmp_path: Path) -> None:
    prove(range(40, 540), tmp_path)
