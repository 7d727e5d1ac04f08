"""A split of a quantised file is proved, and a wrong one is not: its site is named."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from groupfx.deploy import OnnxSide, Validation, ValidationOptions, validate_sides
from groupfx.deploy.forms.rewrite_onnx import rewrite_graph
from groupfx.deploy.graph.conv_nodes import constant_of
from groupfx.deploy.quantised.convs import QuantisedConv, quantised_convs
from groupfx.passes import MergeParallelConv
from tests.deploy.quantised.quantised_files import QuantisedCase, quantised_file
from tests.deploy.quantised.test_splitting import split

Branches = tuple[QuantisedConv, ...]
QDQ = QuantisedCase(symmetric=False, weight="uint8", activation="Relu")
OPERATOR = QuantisedCase(layout="QLinearConv", symmetric=False, weight="uint8")


def proved(case: QuantisedCase, wrong: Callable[[Branches], None] | None = None) -> Validation:
    """What the validation of a split says, after something was done to its branches."""
    proto = quantised_file(case)
    after = split(proto).model
    if wrong is not None:
        wrong(tuple(quantised_convs(after)))
    sides = OnnxSide("whole", ir.from_proto(proto)), OnnxSide("split", after)
    return validate_sides(*sides, ValidationOptions())


def put(value: ir.Value | None, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Other numbers in a constant."""
    assert value is not None
    tensor = constant_of(value, 4)
    assert tensor is not None
    value.const_value = ir.Tensor(change(tensor.numpy()), dtype=tensor.dtype, name=value.name)


def exchange(one: ir.Value | None, other: ir.Value | None) -> None:
    """The constants of each in the other."""
    assert one is not None
    assert other is not None
    one.const_value, other.const_value = other.const_value, one.const_value


def neighbours_scale(branches: Branches) -> None:
    exchange(branches[0].weight.scale, branches[1].weight.scale)


def one_scale_moved(branches: Branches) -> None:
    # Two rows of one branch.
    put(branches[1].weight.scale, lambda scales: scales[[1, 0, *range(2, len(scales))]])


def zero_point_lost(branches: Branches) -> None:
    put(branches[2].weight.zero_point, np.zeros_like)


def neighbours_bias(branches: Branches) -> None:
    assert branches[0].bias is not None
    assert branches[1].bias is not None
    exchange(branches[0].bias.stored, branches[1].bias.stored)


def another_number(branches: Branches) -> None:
    put(
        branches[0].weight.stored,
        lambda w: np.where(np.arange(w.size).reshape(w.shape) == 7, 9, w).astype(w.dtype),
    )


def parts_exchanged(branches: Branches) -> None:
    split = next(n for n in branches[0].conv.node.graph if n.op_type == "Split")  # type: ignore[union-attr]
    users = [next(iter(value.uses())) for value in split.outputs[:2]]
    for use, value in zip(users, reversed(split.outputs[:2]), strict=True):
        use.node.replace_input_with(use.idx, value)


def joined_in_another_order(branches: Branches) -> None:
    concat = next(n for n in branches[0].conv.node.graph if n.op_type == "Concat")  # type: ignore[union-attr]
    first, second = concat.inputs[1:3]
    concat.replace_input_with(1, second)
    concat.replace_input_with(2, first)


def pair_of_another_scale(branches: Branches) -> None:
    result = branches[1].result
    assert result is not None
    maker = result.node or branches[1].conv.node
    place = 1 if result.node is not None else 6
    (graph, scale) = maker.graph, maker.inputs[place]
    assert graph is not None
    assert scale is not None
    tensor = ir.tensor(np.float32(0.29), name="another")
    other = ir.Value(name="another", const_value=tensor, type=scale.type, shape=tensor.shape)
    graph.register_initializer(other)
    (use,) = result.stored.uses()
    for node, slot in ((maker, place), (use.node, 1)):
        if node.op_type != "Concat":
            node.replace_input_with(slot, other)


WRONG = [
    neighbours_scale,
    one_scale_moved,
    zero_point_lost,
    neighbours_bias,
    another_number,
    parts_exchanged,
    joined_in_another_order,
    pair_of_another_scale,
]


@pytest.mark.parametrize("case", [QDQ, OPERATOR], ids=["qdq", "operator"])
def test_a_right_split_is_the_same(case: QuantisedCase) -> None:
    found = proved(case)
    assert found.verdict == "same"
    (site,) = found.sites
    assert (site.name, site.ok, site.seen) == ("conv", True, True)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("case", [QDQ, OPERATOR], ids=["qdq", "operator"])
def test_a_wrong_split_is_not_and_the_site_is_named(
    case: QuantisedCase, wrong: Callable[[Branches], None]
) -> None:
    found = proved(case, wrong)
    assert found.verdict == "different"
    assert found.first_site is not None
    assert found.first_site.name == "conv"
    assert "conv" in str(found.blame)


@pytest.mark.parametrize("case", [QDQ, OPERATOR], ids=["qdq", "operator"])
@pytest.mark.parametrize("wrong", [None, one_scale_moved, zero_point_lost, another_number])
def test_a_merge_is_proved_as_well(
    case: QuantisedCase, wrong: Callable[[Branches], None] | None
) -> None:
    before = split(quantised_file(case)).model
    after = rewrite_graph(before, [MergeParallelConv()]).model
    if wrong is not None:
        wrong(tuple(quantised_convs(after)) * 3)
    found = validate_sides(
        OnnxSide("split", before), OnnxSide("merged", after), ValidationOptions()
    )
    assert found.verdict == ("same" if wrong is None else "different")
