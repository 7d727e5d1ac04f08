"""Float64Model against torch and scipy in float64: no operator on the way may round to float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from scipy import special
from torch import Tensor
from torch.nn import functional as F

from groupfx.deploy.running.float64_onnx import Float64Model, as_float64
from groupfx.errors import ModelError, UsageError
from tests.deploy.running.float64_models import (
    Array,
    close,
    graph_model,
    numbers,
    one_node,
    weights,
)
from tests.step_counts import steps_of


@dataclass(frozen=True)
class OneNode:
    """One node, and what torch, numpy or scipy makes of its inputs in float64."""

    op: str
    inputs: list[Array | None]
    expected: Callable[..., Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 23


def t(function: Callable[..., Tensor], **options: Any) -> Callable[..., Array]:
    """`function` of torch on numpy arrays."""

    def call(*arrays: Array) -> Array:
        return function(*map(torch.from_numpy, arrays), **options).numpy()

    return call


X = numbers(2, 5, 7)
IMAGE = numbers(2, 6, 7, 11)
POSITIVE = numbers(2, 5, 7, low=0.1, high=4.0)
INTS = np.array([4, 0, 3])
SMALL = float(np.float32(0.3))
EPS = float(np.float32(1e-5))
ROWS = np.array([-1, 3], np.int64)


def six(*rows: Array) -> list[Array | None]:
    return [IMAGE, *rows]


def layer_norm(x: Array, scale: Array, bias: Array) -> Array:
    return t(F.layer_norm, normalized_shape=(7,), eps=EPS)(x)[...] * scale + bias


def group_norm(x: Array, scale: Array, bias: Array) -> Array:
    y = t(F.group_norm, num_groups=3, eps=EPS)(x)
    return y * scale.reshape(-1, 1, 1) + bias.reshape(-1, 1, 1)


def batch_norm(x: Array, scale: Array, bias: Array, mean: Array, variance: Array) -> Array:
    return t(F.batch_norm, training=False, eps=EPS)(x, mean, variance, scale, bias)


def resized(mode: str, **options: Any) -> Callable[..., Array]:
    def call(x: Array, *_: Array) -> Array:
        return t(F.interpolate, size=(14, 17), mode=mode, **options)(x)

    return call


def lrn(x: Array) -> Array:
    return t(F.local_response_norm, size=3, alpha=EPS * 10, beta=0.75, k=1.0)(x)


def flat_softmax(x: Array) -> Array:
    return special.softmax(x.reshape(2, -1), axis=1).reshape(x.shape)


def mean_variance(x: Array) -> Array:
    axes = (0, 2, 3)
    variance = (x**2).mean(axes, keepdims=True) - x.mean(axes, keepdims=True) ** 2
    return (x - x.mean(axes, keepdims=True)) / (np.sqrt(variance) + float(np.float32(1e-9)))


def attention(q: Array, k: Array, v: Array) -> Array:
    return t(F.scaled_dot_product_attention, scale=SMALL)(q, k, v)


PADS = np.array([0, 0, 1, 2, 0, 0, 3, 1])
PAD_ONLY = np.array([2, 1])
SIZES = np.array([2, 6, 14, 17])
C6 = [weights(6, seed=s) for s in range(3)]
VARIANCE = np.abs(weights(6, seed=9)) + np.float32(0.1)

CASES = {
    "relu": OneNode("Relu", [X], t(F.relu)),
    "clip": OneNode(
        "Clip",
        [X, np.float32(-0.3), np.float32(0.7)],
        lambda x, low, high: np.clip(x, float(low), float(high)),
    ),
    "sigmoid": OneNode("Sigmoid", [X], special.expit),
    "hard_sigmoid": OneNode(
        "HardSigmoid",
        [X],
        lambda x: np.clip(float(np.float32(0.2)) * x + 0.5, 0, 1),
    ),
    "hard_swish": OneNode("HardSwish", [X], t(F.hardswish)),
    "gelu": OneNode("Gelu", [X], lambda x: x * special.ndtr(x)),
    "gelu_tail": OneNode("Gelu", [X - 12], lambda x: x * special.ndtr(x)),
    "gelu_tanh": OneNode("Gelu", [X], t(F.gelu, approximate="tanh"), {"approximate": "tanh"}),
    "erf": OneNode("Erf", [X], special.erf),
    "softmax": OneNode("Softmax", [X], t(F.softmax, dim=1), {"axis": 1}),
    "softmax_11": OneNode("Softmax", [X], flat_softmax, opset=11),
    "softmax_11_last": OneNode("Softmax", [X], t(F.softmax, dim=2), {"axis": -1}, opset=11),
    "log_softmax": OneNode("LogSoftmax", [X], t(F.log_softmax, dim=-1)),
    "layer_norm": OneNode("LayerNormalization", [X, weights(7), weights(7, seed=2)], layer_norm),
    "layer_norm_half_stash": OneNode(
        "LayerNormalization",
        [X, weights(7), weights(7, seed=2)],
        layer_norm,
        {"stash_type": TensorProto.BFLOAT16},
    ),
    "rms_norm": OneNode(
        "RMSNormalization",
        [X, weights(7)],
        lambda x, w: t(F.rms_norm, normalized_shape=(7,), eps=EPS)(x) * w,
    ),
    "group_norm": OneNode("GroupNormalization", six(*C6[:2]), group_norm, {"num_groups": 3}),
    "group_norm_18": OneNode(
        "GroupNormalization",
        six(weights(3), weights(3, seed=2)),
        lambda x, w, b: group_norm(x, np.repeat(w, 2), np.repeat(b, 2)),
        {"num_groups": 3},
        opset=18,
    ),
    "instance_norm": OneNode(
        "InstanceNormalization",
        six(*C6[:2]),
        lambda x, w, b: t(F.instance_norm, eps=EPS)(x) * w[:, None, None] + b[:, None, None],
    ),
    "batch_norm": OneNode("BatchNormalization", six(*C6, VARIANCE), batch_norm),
    "batch_norm_11": OneNode("BatchNormalization", six(*C6, VARIANCE), batch_norm, opset=11),
    "lrn": OneNode("LRN", [IMAGE], lrn, {"size": 3, "alpha": EPS * 10}),
    "reduce_mean": OneNode(
        "ReduceMean", [X, np.array([1, 2])], lambda x, _: x.mean((1, 2), keepdims=True)
    ),
    "reduce_mean_11": OneNode(
        "ReduceMean", [X], lambda x: x.mean(1), {"axes": [1], "keepdims": 0}, opset=11
    ),
    "reduce_l2": OneNode(
        "ReduceL2", [X, np.array([2])], lambda x, _: np.linalg.norm(x, axis=2, keepdims=True)
    ),
    "global_average_pool": OneNode(
        "GlobalAveragePool", [IMAGE], lambda x: x.mean((2, 3), keepdims=True)
    ),
    "pow": OneNode("Pow", [POSITIVE, np.float32(0.3)], lambda x, _: x**SMALL),
    "sqrt": OneNode("Sqrt", [POSITIVE], np.sqrt),
    "div": OneNode("Div", [X, weights(7)], np.divide),
    "where": OneNode(
        "Where",
        [X > 0, weights(2, 5, 7), weights(7, seed=2)],
        np.where,
    ),
    "gather": OneNode("Gather", [X, INTS], lambda x, i: x[:, i], {"axis": 1}),
    "slice": OneNode(
        "Slice",
        [X, np.array([1]), np.array([7]), np.array([2]), np.array([2])],
        lambda x, *_: x[:, :, 1:7:2],
    ),
    "concat": OneNode(
        "Concat", [X, weights(2, 3, 7)], lambda *a: np.concatenate(a, 1), {"axis": 1}
    ),
    "pad": OneNode(
        "Pad",
        [IMAGE, PADS, np.float32(0.3)],
        lambda x, *_: np.pad(x, ((0, 0), (0, 0), (1, 3), (2, 1)), constant_values=SMALL),
    ),
    **{
        f"pad_{mode}": OneNode(
            "Pad",
            [IMAGE, PADS],
            lambda x, _, kind=kind: t(F.pad, pad=(2, 1, 1, 3), mode=kind)(x),
            {"mode": mode},
        )
        for mode, kind in {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}.items()
    },
    "pad_axes": OneNode(
        "Pad",
        [X, PAD_ONLY, None, np.array([-2])],
        lambda x, *_: np.pad(x, ((0, 0), (2, 1), (0, 0))),
    ),
    "pad_negative": OneNode(
        "Pad", [X, np.array([0, -2, 1, 0, 1, -3])], lambda x, _: t(F.pad, pad=(1, -3, -2, 1))(x)
    ),
    "resize_nearest": OneNode(
        "Resize",
        [IMAGE, None, None, SIZES],
        resized("nearest"),
        {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ),
    "resize_linear": OneNode(
        "Resize",
        [IMAGE, None, None, SIZES],
        resized("bilinear", align_corners=False),
        {"mode": "linear"},
    ),
    "resize_linear_corners": OneNode(
        "Resize",
        [IMAGE, None, None, SIZES],
        resized("bilinear", align_corners=True),
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    "resize_cubic": OneNode(
        "Resize",
        [IMAGE, None, None, SIZES],
        resized("bicubic", align_corners=False),
        {"mode": "cubic", "cubic_coeff_a": -0.75},
    ),
    "resize_scales_11": OneNode(
        "Resize",
        [IMAGE, np.zeros(0, np.float32), np.array([1, 1, 2, 1.5], np.float32)],
        t(
            lambda x, *_: F.interpolate(
                x, scale_factor=(2, 1.5), mode="bilinear", recompute_scale_factor=False
            )
        ),
        {"mode": "linear"},
        opset=11,
    ),
    "transpose": OneNode("Transpose", [X], lambda x: x.transpose(2, 0, 1), {"perm": [2, 0, 1]}),
    "reshape": OneNode("Reshape", [X, np.array([0, -1])], lambda x, _: x.reshape(2, 35)),
    "expand": OneNode(
        "Expand", [X, np.array([3, 2, 5, 7])], lambda x, _: np.broadcast_to(x, (3, *x.shape))
    ),
    "gemm": OneNode(
        "Gemm",
        [X[0], weights(3, 7), weights(3)],
        lambda a, b, c: SMALL * (a @ b.T) + c,
        {"alpha": 0.3, "transB": 1},
    ),
    "matmul": OneNode("MatMul", [X, weights(7, 3)], np.matmul),
    "einsum": OneNode(
        "Einsum",
        [X, weights(3, 7)],
        lambda a, b: np.einsum("bij,kj->bki", a, b),
        {"equation": "bij,kj->bki"},
    ),
    "leaky_relu": OneNode(
        "LeakyRelu", [X], t(F.leaky_relu, negative_slope=SMALL), {"alpha": SMALL}
    ),
    "prelu": OneNode("PRelu", [X, weights(5, 1)], lambda x, s: np.where(x > 0, x, x * s)),
    "elu": OneNode("Elu", [X], t(F.elu)),
    "celu": OneNode("Celu", [X], t(F.celu)),
    "selu": OneNode(
        "Selu",
        [X],
        lambda x: (
            float(np.float32(1.0507009873554805))
            * np.where(x > 0, x, float(np.float32(1.6732632423543772)) * np.expm1(x))
        ),
    ),
    "tanh": OneNode("Tanh", [X], np.tanh),
    "exp": OneNode("Exp", [X], np.exp),
    "log": OneNode("Log", [POSITIVE], np.log),
    "softplus": OneNode("Softplus", [X], lambda x: np.log1p(np.exp(x))),
    "mish": OneNode("Mish", [X], lambda x: x * np.tanh(np.log1p(np.exp(x)))),
    "mean_variance": OneNode(
        "MeanVarianceNormalization",
        [IMAGE],
        mean_variance,
    ),
    "attention": OneNode(
        "Attention",
        [numbers(2, 3, 5, 7), weights(2, 3, 11, 7), weights(2, 3, 11, 7, seed=2)],
        attention,
        {"scale": 0.3, "softmax_precision": TensorProto.FLOAT},
    ),
    "cumsum": OneNode("CumSum", [X, np.array(1)], lambda x, _: x.cumsum(1)),
    "topk": OneNode("TopK", [X, np.array([3])], lambda x, _: -np.sort(-x)[..., :3]),
    "affine_grid": OneNode(
        "AffineGrid",
        [numbers(2, 2, 3), np.array([2, 3, 5, 7])],
        lambda x, _: F.affine_grid(torch.from_numpy(x), [2, 3, 5, 7], False).numpy(),
    ),
    "grid_sample": OneNode(
        "GridSample",
        [IMAGE, weights(2, 5, 3, 2)],
        t(F.grid_sample, mode="bilinear", align_corners=False),
    ),
    "cast": OneNode("Cast", [X], lambda x: x, {"to": TensorProto.FLOAT16}),
    "cast_int": OneNode("Cast", [X], lambda x: x.astype(np.int32), {"to": TensorProto.INT32}),
    "constant_of_shape": OneNode("ConstantOfShape", [INTS], np.zeros),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_operator_keeps_float64(case: OneNode) -> None:
    outputs = 2 if case.op == "TopK" else 1
    model = one_node(case.op, case.inputs, outputs, case.opset, **case.attributes)
    first, *rest = case.inputs
    assert first is not None
    arrays = [first, *(_as_model_holds(each) for each in rest if each is not None)]
    expected = np.asarray(case.expected(*arrays))
    close(Float64Model(model).run({"x": first})["y0"], expected)


def _as_model_holds(array: Array) -> Array:
    """A float as the initializer of `one_node` holds it, and then wide."""
    return array if array.dtype.kind in "iub" else array.astype(np.float32).astype(np.float64)


def test_the_table_can_fail() -> None:
    rounded = CASES["tanh"].expected(X).astype(np.float32).astype(np.float64)
    with pytest.raises(AssertionError):
        close(rounded, np.tanh(X))


def test_split_has_every_output() -> None:
    model = one_node("Split", [X, np.array([2, 5])], outputs=2, axis=2)
    found = Float64Model(model).run({"x": X})
    close(found["y0"], X[..., :2])
    close(found["y1"], X[..., 2:])


def branch(op: str, name: str) -> onnx.GraphProto:
    """A subgraph with a constant of its own, on x of the graph around it."""
    constant = helper.make_node("Constant", [], [f"{name}_c"], value_float=0.3)
    value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    return helper.make_graph(
        [constant, helper.make_node(op, ["x", f"{name}_c"], [name])], name, [], [value]
    )


def if_model() -> onnx.ModelProto:
    chosen = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch("Add", "a"), else_branch=branch("Mul", "m")
    )
    model = graph_model([chosen], ["x"], ["y"])
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    return model


@pytest.mark.parametrize("condition", [True, False], ids=["then", "else"])
def test_subgraphs_are_float64(condition: bool) -> None:
    found = Float64Model(if_model()).run({"x": X, "c": np.array(condition)})
    close(found["y"], X + SMALL if condition else X * SMALL)


def test_functions_are_float64() -> None:
    body = [
        helper.make_node("Constant", [], ["f32"]),
        helper.make_node("Cast", ["a"], ["low"], to=TensorProto.FLOAT),
        helper.make_node("Erf", ["low"], ["e"]),
        helper.make_node("Mul", ["e", "f32"], ["b"]),
    ]
    body[0].attribute.append(
        onnx.AttributeProto(
            name="value_float", ref_attr_name="factor", type=onnx.AttributeProto.FLOAT
        )
    )
    opsets = [helper.make_opsetid("", 23)]
    function = helper.make_function("own", "Scaled", ["a"], ["b"], body, opsets, ["factor"])
    call = helper.make_node("Scaled", ["x"], ["y"], domain="own", factor=0.3)
    model = graph_model([call], ["x"], ["y"], functions=[function])
    close(Float64Model(model).run({"x": X})["y"], special.erf(X) * SMALL)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16], ids=["f16", "bf16"])
def test_half_weights_are_widened(kind: int) -> None:
    weight = helper.make_tensor("w", kind, [3], [0.5, -2.0, 7.0])
    model = graph_model([helper.make_node("Mul", ["x", "w"], ["y"])], ["x"], ["y"], [weight])
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = kind
    x = numbers(2, 3).astype(np.float32)
    found = Float64Model(model).run({"x": x})["y"]
    close(found, x.astype(np.float64) * [0.5, -2.0, 7.0])
    wide = as_float64(model).graph
    types = {value.type.tensor_type.elem_type for value in (*wide.input, *wide.output)}
    assert types == {TensorProto.DOUBLE}


def test_as_float64_leaves_the_model_alone() -> None:
    scale = one_node("Mul", [X, weights(7)])
    for model in (if_model(), scale, one_node("ConstantOfShape", [INTS])):
        before = model.SerializeToString(deterministic=True)
        copy = as_float64(model)
        Float64Model(model)
        assert model.SerializeToString(deterministic=True) == before
        assert copy.SerializeToString(deterministic=True) != before
    (index,) = as_float64(one_node("Gather", [X, INTS])).graph.initializer
    assert index.data_type == TensorProto.INT64


def test_the_main_domain_may_be_written_out() -> None:
    model = one_node("Erf", [X])
    model.graph.node[0].domain = model.opset_import[0].domain = "ai.onnx"
    close(Float64Model(model).run({"x": X})["y0"], special.erf(X))


@pytest.mark.parametrize(
    ("op", "domain", "named"),
    [
        ("FusedConv", "com.microsoft", "operator FusedConv (domain 'com.microsoft', node 'only')"),
        ("Scaler", "ai.onnx.ml", "operator Scaler (domain 'ai.onnx.ml', node 'only')"),
        ("NoSuchOp", "", "operator NoSuchOp (domain 'ai.onnx', node 'only')"),
        ("LinearAttention", "", "operator LinearAttention (domain 'ai.onnx', node 'only')"),
    ],
)
def test_an_operator_without_float64_is_refused(op: str, domain: str, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        Float64Model(one_node(op, [X], domain=domain))
    assert named in str(caught.value)
    assert "compare with ONNX Runtime in float32 instead" in str(caught.value)


def test_tensors_in_other_files_are_refused() -> None:
    model = one_node("MatMul", [X, weights(7, 3)])
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(UsageError, match=r"'i0' .* lies in another file: load .* with onnx.load"):
        as_float64(model)


def test_a_node_that_fails_is_named() -> None:
    model = Float64Model(one_node("Conv", [numbers(1, 6, 5, 5), weights(4, 3, 3, 3)]))
    with pytest.raises(ModelError, match=r"^operator Conv \(.*, node 'only'\) failed .*channels"):
        model.run({"x": numbers(1, 6, 5, 5)})


def test_names_that_do_not_fit_are_refused() -> None:
    model = Float64Model(one_node("Relu", [X]))
    with pytest.raises(UsageError, match=r"no value for the inputs \['x'\]"):
        model.run({})
    with pytest.raises(UsageError, match="no input 'z'; its inputs are x"):
        model.run({"x": X, "z": X})
    with pytest.raises(UsageError, match="no output 'z'; its outputs are y0"):
        model.run({"x": X}, ["z"])


def test_infinities_are_results() -> None:
    found = Float64Model(one_node("Log", [X])).run({"x": np.array([0.0, -1.0])})["y0"]
    np.testing.assert_array_equal(found, [-np.inf, np.nan])


def convolutions_in_a_row(groups: int, size: int) -> Callable[[], object]:
    """A run of three convolutions, each with a Relu, on two images of 64 channels."""
    nodes, constants = [], []
    for k in range(3):
        weight = weights(64, 64 // groups, 3, 3, seed=k)
        constants.append(numpy_helper.from_array(weight, f"w{k}"))
        conv = helper.make_node("Conv", [f"x{k}", f"w{k}"], [f"c{k}"], group=groups, pads=[1] * 4)
        nodes += [conv, helper.make_node("Relu", [f"c{k}"], [f"x{k + 1}"])]
    model = Float64Model(graph_model(nodes, ["x0"], ["x3"], constants))
    feeds = {"x0": numbers(2, 64, size, size)}
    return lambda: model.run(feeds)


def test_grouped_convolutions_are_not_run_by_loops_in_python() -> None:
    few, many = convolutions_in_a_row(1, 4), convolutions_in_a_row(32, 16)
    few(), many()
    assert steps_of(few) == steps_of(many)
