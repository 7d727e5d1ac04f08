"""Permutations folded in ONNX files: the shipped network, and graphs of many kinds."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

import groupfx
from groupfx.api.onnx import rewrite_onnx
from groupfx.deploy.forms.rewrite_onnx import OnnxRewrite, rewrite_graph
from groupfx.deploy.graph.channel_order import arranged, orders_of, write_orders
from groupfx.files.models import read_model
from groupfx.passes import FoldPermutations
from groupfx.plan.channel_order import ChannelOrders

DIGITS = Path(__file__).parents[3] / "examples" / "flgc_digits.pt"


def outputs(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What ONNX Runtime makes of it as it stands."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), options)
    return session.run(None, feeds)  # type: ignore[no-any-return]


def folded(text: str, **weights: np.ndarray) -> OnnxRewrite:
    """A model in onnx's text form, folded, and equal to what it was on whole numbers."""
    graph = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    for name, array in weights.items():
        graph.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(graph)
    made = rewrite_graph(model, [FoldPermutations()])
    rng = np.random.default_rng(7)
    feeds = {
        value.name: rng.integers(-4, 5, value.shape.numpy()).astype(np.float32)
        for value in model.graph.inputs
    }
    for before, after in zip(outputs(model, feeds), outputs(made.model, feeds), strict=True):
        assert np.array_equal(before, after)
    return made


def whole(*shape: int) -> np.ndarray:
    """Small whole numbers, the same for the same shape."""
    rng = np.random.default_rng(sum(shape))
    return rng.integers(-3, 4, shape).astype(np.float32)


ORDER = np.array([3, 0, 5, 1, 4, 2], dtype=np.int64)


def test_a_gather_between_convolutions_is_gone() -> None:
    made = folded(
        "m (float[2,3,4,5] x) => (float[2,4,4,5] y)"
        " { a = Conv(x, v) b = Gather<axis=1>(a, p) c = Relu(b) y = Conv(c, w) }",
        v=whole(6, 3, 1, 1),
        w=whole(4, 6, 1, 1),
        p=ORDER,
    )
    assert [node.op_type for node in made.model.graph] == ["Conv", "Relu", "Conv"]
    assert made.folds[0].describe() == "permutations: 1 -> 0 (0.5 kB -> 0 B a sample)"


def test_a_shuffle_of_reshapes_is_gone() -> None:
    made = folded(
        "m (float[2,3,4,5] x) => (float[2,4,4,5] y) { a = Conv(x, v) s = Reshape(a, i)"
        " t = Transpose<perm=[0,2,1,3,4]>(s) b = Reshape(t, o) y = Conv(b, w) }",
        v=whole(6, 3, 1, 1),
        w=whole(4, 6, 1, 1),
        i=np.array([2, 3, 2, 4, 5], dtype=np.int64),
        o=np.array([2, 6, 4, 5], dtype=np.int64),
    )
    assert [node.op_type for node in made.model.graph] == ["Conv", "Conv"]


def test_between_input_and_output_it_stays() -> None:
    made = folded(
        "m (float[2,6,4,5] x) => (float[2,6,4,5] y) { a = Relu(x) y = Gather<axis=1>(a, p) }",
        p=ORDER,
    )
    (kept,) = made.folds[0].kept
    assert kept.reason == "an input of the model and y takes no other order"
    assert not made.changed


@pytest.mark.parametrize(
    "p",
    [np.array([0, 1, 2, 3, 4, 6]), np.array([0, 1, 2, 3, 4, -7])],
    ids=["beyond the end", "before the start"],
)
def test_indices_out_of_range_are_left_to_the_runtime(p: np.ndarray) -> None:
    graph = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> m (float[2,3,4,5] x) => (float[2,4,4,5] y)'
        " { a = Conv(x, v) b = Gather<axis=1>(a, p) y = Conv(b, w) }"
    )
    for name, array in (("v", whole(6, 3, 1, 1)), ("w", whole(4, 6, 1, 1)), ("p", p)):
        graph.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    made = rewrite_graph(ir.from_proto(graph), [FoldPermutations()])
    assert [node.op_type for node in made.model.graph] == ["Conv", "Gather", "Conv"]


def test_computed_indices_are_a_barrier() -> None:
    made = folded(
        "m (float[2,3,4,5] x) => (float[2,4,4,5] y) { a = Conv(x, v) q = Add(p, z)"
        " b = Gather<axis=1>(a, q) c = Gather<axis=1>(b, p) y = Conv(c, w) }",
        v=whole(6, 3, 1, 1),
        w=whole(4, 6, 1, 1),
        p=ORDER,
        z=np.zeros(6, dtype=np.int64),
    )
    (kept,) = made.folds[0].kept
    assert (kept.name, kept.reason) == ("b", "its indices are computed")
    assert (made.folds[0].before.count, made.folds[0].after.count) == (2, 1)
    assert [n.op_type for n in made.model.graph] == ["Conv", "Add", "Gather", "Conv"]


def test_a_weight_of_two_convolutions_follows_both() -> None:
    made = folded(
        "m (float[2,6,4,5] x) => (float[2,6,4,5] y)"
        " { a = Conv(x, w) b = Gather<axis=1>(a, p) y = Conv(b, w) }",
        w=whole(6, 6, 1, 1),
        p=ORDER,
    )
    assert made.folds[0].after.count == 1


def test_a_weight_that_is_an_output_stays() -> None:
    made = folded(
        "m (float[2,3,4,5] x) => (float[2,4,4,5] y, float[6,3,1,1] v)"
        " { a = Conv(x, v) b = Gather<axis=1>(a, p) y = Conv(b, w) }",
        v=whole(6, 3, 1, 1),
        w=whole(4, 6, 1, 1),
        p=ORDER,
    )
    assert [node.op_type for node in made.model.graph] == ["Conv", "Conv"]


def test_orders_compose_and_what_is_no_permutation_counts_for_nothing() -> None:
    node = ir.Node("", "Conv", [])
    for inputs, outputs in (([2, 0, 1], [0, 1]), ([1, 0, 2], [1, 0])):
        write_orders(node, orders_of(node).then(inputs, outputs))
    assert orders_of(node) == ChannelOrders((0, 2, 1), (1, 0))
    write_orders(node, orders_of(node).then([0, 2, 1], [1, 0]))
    assert orders_of(node) == ChannelOrders()
    node.metadata_props["groupfx.input-channels"] = "0,0,1"
    assert orders_of(node) == ChannelOrders()
    x = whole(1, 3, 2)
    assert np.array_equal(arranged(x[:, [2, 0, 1]], (2, 0, 1), None, 3).array, x)
    assert np.array_equal(arranged(x, None, (2, 0, 1), 3).array, x[:, [2, 0, 1]])
    fewer = arranged(x[:, [2, 0]], (2, 0), None, 3)
    assert np.array_equal(fewer.array[:, [0, 2]], x[:, [0, 2]])
    assert fewer.there.tolist() == [True, False, True]
    assert fewer.array[:, 1].all()


@pytest.mark.long
def test_the_shipped_network(tmp_path: Path) -> None:
    """Prediction: 10 of the permutations write into a residual stream and stay."""
    read = read_model(DIGITS)
    x = torch.zeros(2, 1, 8, 8)
    result = groupfx.rewrite(read.model, x, passes=["freeze-learned-groups"])
    plain = tmp_path / "plain.onnx"
    groupfx.export(result, x, plain)
    made = rewrite_onnx(plain, tmp_path / "folded.onnx", passes=["fold-permutations"])
    (fold,) = made.rewrite.folds
    assert fold.exact
    assert fold.before.count >= 33
    assert fold.after.count <= 10
    assert (fold.before.moved, fold.after.moved) == (40096, 5504)
    assert made.validation is not None
    assert made.validation.ok
    again = rewrite_onnx(tmp_path / "folded.onnx", None, passes=["fold-permutations"])
    assert not again.rewrite.changed
