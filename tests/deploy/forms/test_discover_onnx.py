"""discover-groups on ONNX files: the plan of the pass, carried out on nodes."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

import groupfx
from groupfx.deploy.forms.rewrite_onnx import find_onnx, rewrite_graph
from groupfx.errors import RewriteError, UsageError
from groupfx.passes import DiscoverGroups, SplitGroupedConv
from tests.deploy.forms.foreign_onnx import model_of, numbers, run

Array = np.ndarray[Any, np.dtype[Any]]
# 7 inputs and 11 filters; input 5 is dead, filter 8 reads nothing.
BLOCKS = (((0, 3, 6), (1, 2, 9, 10)), ((1, 4), (0, 3, 7)), ((2,), (4, 5, 6)))
IN, OUT = 7, 11


def planted(groups: int = 1, seed: int = 0) -> Array:
    """Whole numbers, so that sums are exact in any order; never 0 inside a block."""
    rng = np.random.default_rng(seed)
    weight = np.zeros((groups * OUT, IN, 3, 2), np.float32)
    for group in range(groups):
        for inputs, outputs in BLOCKS:
            size = (len(outputs), len(inputs), 3, 2)
            whole = rng.integers(1, 9, size) * rng.choice([-1, 1], size)
            weight[np.ix_([group * OUT + o for o in outputs], inputs)] = whole
    return weight


def network(weight: Array, groups: int = 1, **attributes: Any) -> onnx.ModelProto:
    bias = np.arange(1, len(weight) + 1, dtype=np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", group=groups, **attributes),
        helper.make_node("Relu", ["c"], ["y"], name="relu"),
    ]
    tensors = {"w": weight, "b": bias}
    return model_of(nodes, ("N", groups * IN, 6, 5), tensors)


def whole_numbers(*shape: int) -> Array:
    return np.random.default_rng(3).integers(-8, 9, shape).astype(np.float32)


@pytest.mark.parametrize("form", ["auto", "bucketed", "padded", "split"])
@pytest.mark.parametrize("groups", [1, 2])
def test_planted_blocks_are_found_and_computed_alone(groups: int, form: Any) -> None:
    proto = network(planted(groups), groups, strides=[2, 1], pads=[1, 0, 2, 1])
    result = rewrite_graph(ir.from_proto(proto), [DiscoverGroups(form=form)])
    made = ir.to_proto(result.model)
    onnx.checker.check_model(made, full_check=True)
    x = whole_numbers(2, groups * IN, 6, 5)
    np.testing.assert_array_equal(run(made, x=x)[0], run(proto, x=x)[0])
    held = sum(tensor.numpy().size for tensor in weights(result.model))
    if form != "padded":
        # What is left is what is not 0, and nothing else.
        assert held == np.count_nonzero(planted(groups))
    (site,) = result.sites
    assert (site.name, site.pass_name, site.groups) == ("conv", "discover-groups", groups)
    assert "w" not in result.model.graph.initializers


def weights(model: ir.Model) -> list[Any]:
    convs = [node for node in model.graph if node.op_type == "Conv"]
    return [node.inputs[1].const_value for node in convs if node.inputs[1] is not None]


def test_a_wrong_plan_would_be_seen() -> None:
    proto = network(planted())
    x = whole_numbers(2, IN, 6, 5)
    result = rewrite_graph(ir.from_proto(proto), [DiscoverGroups()])
    tensor = weights(result.model)[0].numpy()
    swapped = np.ascontiguousarray(tensor[::-1])
    conv = next(node for node in result.model.graph if node.op_type == "Conv")
    value = conv.inputs[1]
    assert value is not None
    value.const_value = ir.tensor(swapped, name=value.name)
    assert not np.array_equal(run(ir.to_proto(result.model), x=x)[0], run(proto, x=x)[0])


def test_passes_run_one_after_another(tmp_path: Path) -> None:
    weight = planted()
    dense = helper.make_node("Conv", ["x", "w"], ["c"], name="dense")
    grouped = helper.make_node("Conv", ["c", "v"], ["y"], name="grouped", group=11)
    proto = model_of([dense, grouped], ("N", IN, 6, 5), {"w": weight, "v": numbers(22, 1, 1, 1)})
    onnx.save(proto, tmp_path / "m.onnx")
    passes = ["discover-groups:form=split", "split-grouped-conv"]
    done = groupfx.rewrite_onnx(tmp_path / "m.onnx", tmp_path / "o.onnx", passes=passes)
    assert [(s.name, s.pass_name, s.branches) for s in done.rewrite.sites] == [
        ("dense", "discover-groups", 3),
        ("grouped", "split-grouped-conv", 11),
    ]
    assert done.validation is not None
    assert done.validation.ok
    assert (tmp_path / "o.onnx").exists()
    found = groupfx.find_onnx(tmp_path / "m.onnx", passes=passes)
    assert [(site.name, site.reason) for site in found] == [("dense", None), ("grouped", None)]


SKIPPED = {
    "no zeros": ({"weight": np.ones((4, 3, 1, 1), np.float32)}, {}, "its weight holds no zeros"),
    "all zeros": (
        {"weight": np.zeros((4, 3, 1, 1), np.float32)},
        {},
        "all its weights are 0: it puts out its bias alone, and can be removed",
    ),
    "threshold": (
        {"weight": planted()},
        {"threshold": 0.5},
        "a threshold changes the function: it takes a torch model, to measure how",
    ),
    "skip": ({"weight": planted()}, {"skip": ("co*",)}, "named by skip=co*"),
}


@pytest.mark.parametrize(("made", "options", "reason"), SKIPPED.values(), ids=SKIPPED)
def test_what_is_left_and_why(made: Any, options: Any, reason: str) -> None:
    weight = made["weight"]
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
    proto = model_of(nodes, ("N", weight.shape[1], 6, 5), {"w": weight})
    result = rewrite_graph(ir.from_proto(proto), [DiscoverGroups(**options)])
    assert [(site.name, site.pass_name, site.reason) for site in result.skipped] == [
        ("conv", "discover-groups", reason)
    ]
    assert [node.op_type for node in result.model.graph] == ["Conv"]
    assert find_onnx(ir.from_proto(proto), [DiscoverGroups(**options)]) == ()


def test_a_weight_that_is_an_input_is_left() -> None:
    proto = network(planted())
    proto.graph.input.append(helper.make_tensor_value_info("b", 1, [OUT]))
    result = rewrite_graph(ir.from_proto(proto), [DiscoverGroups()])
    assert [site.reason for site in result.skipped] == [
        "its weight or its bias is computed, or an input of the graph"
    ]


def test_a_site_that_is_named_and_refused_writes_nothing(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
    weight = np.ones((4, 3, 1, 1), np.float32)
    onnx.save(model_of(nodes, ("N", 3, 6, 5), {"w": weight}), tmp_path / "m.onnx")
    with pytest.raises(RewriteError, match="conv cannot be rewritten: its weight holds no zeros"):
        groupfx.rewrite_onnx(
            tmp_path / "m.onnx", tmp_path / "o.onnx", passes=[DiscoverGroups(only=("conv",))]
        )
    assert not (tmp_path / "o.onnx").exists()


def test_a_pass_that_needs_torch_is_refused_by_name(tmp_path: Path) -> None:
    onnx.save(network(planted()), tmp_path / "m.onnx")
    with pytest.raises(
        UsageError,
        match="split-grouped-conv, discover-groups, fold-permutations, widen-groups and merge-",
    ):
        groupfx.find_onnx(tmp_path / "m.onnx", passes=["freeze-learned-groups"])
    assert SplitGroupedConv.works_on_onnx()
