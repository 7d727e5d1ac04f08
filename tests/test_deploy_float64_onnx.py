"""Float64Model against torch and scipy in float64: no operator on the way may round to float32."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from scipy import special
from torch import Tensor
from torch.nn import functional as F

from groupfx.deploy.float64_onnx import Float64Model, as_float64
from groupfx.errors import ModelError, UsageError

Array = npt.NDArray[Any]

RTOL = 1e-13  # some hundred roundings of float64; one rounding to float32 is 6e-8


def numbers(*shape: int, seed: int = 0, low: float = -3.0, high: float = 3.0) -> Array:
    """float64 that no float32 can hold."""
    return np.random.default_rng(seed).uniform(low, high, shape)


def weights(*shape: int, seed: int = 1) -> Array:
    """float32, as a model holds it."""
    return numbers(*shape, seed=seed, low=-1, high=1).astype(np.float32)


def one_node(
    op: str,
    inputs: list[Array | None],
    outputs: int = 1,
    opset: int = 23,
    domain: str = "",
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node: x, the first input, is fed; all others are float32 initializers."""
    names = ["x", *(f"i{k}" if each is not None else "" for k, each in enumerate(inputs[1:]))]
    made = [f"y{k}" for k in range(outputs)]
    node = helper.make_node(op, names, made, name="only", domain=domain, **attributes)
    constants = [
        numpy_helper.from_array(value.astype(np.float32) if value.dtype == float else value, name)
        for name, value in zip(names[1:], inputs[1:], strict=True)
        if value is not None
    ]
    return graph_model([node], ["x"], made, constants, opset)


def graph_model(
    nodes: list[onnx.NodeProto],
    inputs: list[str],
    outputs: list[str],
    constants: list[TensorProto] | None = None,
    opset: int = 23,
    functions: list[onnx.FunctionProto] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        constants or [],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions or [])


def close(found: Array, expected: Array | Tensor, rtol: float = RTOL) -> None:
    wanted = np.asarray(expected)
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=rtol, atol=rtol)


@dataclass(frozen=True)
class Case:
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
    y = t(F.batch_norm, training=False, eps=EPS)(x, mean, variance, scale, bias)
    return y


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
    "relu": Case("Relu", [X], t(F.relu)),
    "clip": Case(
        "Clip",
        [X, np.float32(-0.3), np.float32(0.7)],
        lambda x, low, high: np.clip(x, float(low), float(high)),
    ),
    "sigmoid": Case("Sigmoid", [X], special.expit),
    "hard_sigmoid": Case(
        "HardSigmoid",
        [X],
        lambda x: np.clip(float(np.float32(0.2)) * x + 0.5, 0, 1),
    ),
    "hard_swish": Case("HardSwish", [X], t(F.hardswish)),
    "gelu": Case("Gelu", [X], lambda x: x * special.ndtr(x)),
    "gelu_tail": Case("Gelu", [X - 12], lambda x: x * special.ndtr(x)),
    "gelu_tanh": Case("Gelu", [X], t(F.gelu, approximate="tanh"), {"approximate": "tanh"}),
    "erf": Case("Erf", [X], special.erf),
    "softmax": Case("Softmax", [X], t(F.softmax, dim=1), {"axis": 1}),
    "softmax_11": Case("Softmax", [X], flat_softmax, opset=11),
    "softmax_11_last": Case("Softmax", [X], t(F.softmax, dim=2), {"axis": -1}, opset=11),
    "log_softmax": Case("LogSoftmax", [X], t(F.log_softmax, dim=-1)),
    "layer_norm": Case("LayerNormalization", [X, weights(7), weights(7, seed=2)], layer_norm),
    "layer_norm_half_stash": Case(
        "LayerNormalization",
        [X, weights(7), weights(7, seed=2)],
        layer_norm,
        {"stash_type": TensorProto.BFLOAT16},
    ),
    "rms_norm": Case(
        "RMSNormalization",
        [X, weights(7)],
        lambda x, w: t(F.rms_norm, normalized_shape=(7,), eps=EPS)(x) * w,
    ),
    "group_norm": Case("GroupNormalization", six(*C6[:2]), group_norm, {"num_groups": 3}),
    "group_norm_18": Case(
        "GroupNormalization",
        six(weights(3), weights(3, seed=2)),
        lambda x, w, b: group_norm(x, np.repeat(w, 2), np.repeat(b, 2)),
        {"num_groups": 3},
        opset=18,
    ),
    "instance_norm": Case(
        "InstanceNormalization",
        six(*C6[:2]),
        lambda x, w, b: t(F.instance_norm, eps=EPS)(x) * w[:, None, None] + b[:, None, None],
    ),
    "batch_norm": Case("BatchNormalization", six(*C6, VARIANCE), batch_norm),
    "batch_norm_11": Case("BatchNormalization", six(*C6, VARIANCE), batch_norm, opset=11),
    "lrn": Case("LRN", [IMAGE], lrn, {"size": 3, "alpha": EPS * 10}),
    "reduce_mean": Case(
        "ReduceMean", [X, np.array([1, 2])], lambda x, _: x.mean((1, 2), keepdims=True)
    ),
    "reduce_mean_11": Case(
        "ReduceMean", [X], lambda x: x.mean(1), {"axes": [1], "keepdims": 0}, opset=11
    ),
    "reduce_l2": Case(
        "ReduceL2", [X, np.array([2])], lambda x, _: np.linalg.norm(x, axis=2, keepdims=True)
    ),
    "global_average_pool": Case(
        "GlobalAveragePool", [IMAGE], lambda x: x.mean((2, 3), keepdims=True)
    ),
    "pow": Case("Pow", [POSITIVE, np.float32(0.3)], lambda x, _: x**SMALL),
    "sqrt": Case("Sqrt", [POSITIVE], np.sqrt),
    "div": Case("Div", [X, weights(7)], np.divide),
    "where": Case(
        "Where",
        [X > 0, weights(2, 5, 7), weights(7, seed=2)],
        np.where,
    ),
    "gather": Case("Gather", [X, INTS], lambda x, i: x[:, i], {"axis": 1}),
    "slice": Case(
        "Slice",
        [X, np.array([1]), np.array([7]), np.array([2]), np.array([2])],
        lambda x, *_: x[:, :, 1:7:2],
    ),
    "concat": Case("Concat", [X, weights(2, 3, 7)], lambda *a: np.concatenate(a, 1), {"axis": 1}),
    "pad": Case(
        "Pad",
        [IMAGE, PADS, np.float32(0.3)],
        lambda x, *_: np.pad(x, ((0, 0), (0, 0), (1, 3), (2, 1)), constant_values=SMALL),
    ),
    **{
        f"pad_{mode}": Case(
            "Pad",
            [IMAGE, PADS],
            lambda x, _, kind=kind: t(F.pad, pad=(2, 1, 1, 3), mode=kind)(x),
            {"mode": mode},
        )
        for mode, kind in {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}.items()
    },
    "pad_axes": Case(
        "Pad",
        [X, PAD_ONLY, None, np.array([-2])],
        lambda x, *_: np.pad(x, ((0, 0), (2, 1), (0, 0))),
    ),
    "pad_negative": Case(
        "Pad", [X, np.array([0, -2, 1, 0, 1, -3])], lambda x, _: t(F.pad, pad=(1, -3, -2, 1))(x)
    ),
    "resize_nearest": Case(
        "Resize",
        [IMAGE, None, None, SIZES],
        resized("nearest"),
        {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ),
    "resize_linear": Case(
        "Resize",
        [IMAGE, None, None, SIZES],
        resized("bilinear", align_corners=False),
        {"mode": "linear"},
    ),
    "resize_linear_corners": Case(
        "Resize",
        [IMAGE, None, None, SIZES],
        resized("bilinear", align_corners=True),
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    "resize_cubic": Case(
        "Resize",
        [IMAGE, None, None, SIZES],
        resized("bicubic", align_corners=False),
        {"mode": "cubic", "cubic_coeff_a": -0.75},
    ),
    "resize_scales_11": Case(
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
    "transpose": Case("Transpose", [X], lambda x: x.transpose(2, 0, 1), {"perm": [2, 0, 1]}),
    "reshape": Case("Reshape", [X, np.array([0, -1])], lambda x, _: x.reshape(2, 35)),
    "expand": Case(
        "Expand", [X, np.array([3, 2, 5, 7])], lambda x, _: np.broadcast_to(x, (3, *x.shape))
    ),
    "gemm": Case(
        "Gemm",
        [X[0], weights(3, 7), weights(3)],
        lambda a, b, c: SMALL * (a @ b.T) + c,
        {"alpha": 0.3, "transB": 1},
    ),
    "matmul": Case("MatMul", [X, weights(7, 3)], np.matmul),
    "einsum": Case(
        "Einsum",
        [X, weights(3, 7)],
        lambda a, b: np.einsum("bij,kj->bki", a, b),
        {"equation": "bij,kj->bki"},
    ),
    "leaky_relu": Case("LeakyRelu", [X], t(F.leaky_relu, negative_slope=SMALL), {"alpha": SMALL}),
    "prelu": Case("PRelu", [X, weights(5, 1)], lambda x, s: np.where(x > 0, x, x * s)),
    "elu": Case("Elu", [X], t(F.elu)),
    "celu": Case("Celu", [X], t(F.celu)),
    "selu": Case(
        "Selu",
        [X],
        lambda x: (
            float(np.float32(1.0507009873554805))
            * np.where(x > 0, x, float(np.float32(1.6732632423543772)) * np.expm1(x))
        ),
    ),
    "tanh": Case("Tanh", [X], np.tanh),
    "exp": Case("Exp", [X], np.exp),
    "log": Case("Log", [POSITIVE], np.log),
    "softplus": Case("Softplus", [X], lambda x: np.log1p(np.exp(x))),
    "mish": Case("Mish", [X], lambda x: x * np.tanh(np.log1p(np.exp(x)))),
    "mean_variance": Case(
        "MeanVarianceNormalization",
        [IMAGE],
        mean_variance,
    ),
    "attention": Case(
        "Attention",
        [numbers(2, 3, 5, 7), weights(2, 3, 11, 7), weights(2, 3, 11, 7, seed=2)],
        attention,
        {"scale": 0.3, "softmax_precision": TensorProto.FLOAT},
    ),
    "cumsum": Case("CumSum", [X, np.array(1)], lambda x, _: x.cumsum(1)),
    "topk": Case("TopK", [X, np.array([3])], lambda x, _: -np.sort(-x)[..., :3]),
    "affine_grid": Case(
        "AffineGrid",
        [numbers(2, 2, 3), np.array([2, 3, 5, 7])],
        lambda x, _: F.affine_grid(torch.from_numpy(x), [2, 3, 5, 7], False).numpy(),
    ),
    "grid_sample": Case(
        "GridSample",
        [IMAGE, weights(2, 5, 3, 2)],
        t(F.grid_sample, mode="bilinear", align_corners=False),
    ),
    "cast": Case("Cast", [X], lambda x: x, {"to": TensorProto.FLOAT16}),
    "cast_int": Case("Cast", [X], lambda x: x.astype(np.int32), {"to": TensorProto.INT32}),
    "constant_of_shape": Case("ConstantOfShape", [INTS], np.zeros),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_operator_keeps_float64(case: Case) -> None:
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


@dataclass(frozen=True)
class Conv:
    """A convolution by torch's own arguments, and the same by the attributes of ONNX."""

    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    attributes: Mapping[str, Any]
    padding: tuple[int, ...] = ()  # of F.pad: the last axis first
    groups: int = 1
    stride: Any = 1
    dilation: Any = 1


CONVS = {
    "1d": Conv((11,), (3,), {"pads": [1, 1]}, (1, 1)),
    "2d_strides": Conv((11, 13), (3, 5), {"strides": [2, 3]}, stride=(2, 3)),
    "2d_uneven_pads": Conv((7, 11), (3, 2), {"pads": [0, 3, 2, 1]}, (3, 1, 0, 2)),
    "2d_groups": Conv((7, 11), (3, 3), {"group": 3}, groups=3),
    "2d_depthwise": Conv((7, 11), (3, 2), {"group": 6, "pads": [1] * 4}, (1,) * 4, groups=6),
    "2d_dilations": Conv((13, 11), (3, 2), {"dilations": [2, 5]}, dilation=(2, 5)),
    "3d": Conv((5, 7, 11), (2, 3, 1), {"group": 2, "strides": [1, 2, 3]}, (), 2, (1, 2, 3)),
    "valid": Conv((7, 11), (3, 2), {"auto_pad": "VALID"}),
    "same_upper": Conv((7, 11), (2, 4), {"auto_pad": "SAME_UPPER"}, (1, 2, 0, 1)),
    "same_lower": Conv((7, 11), (2, 4), {"auto_pad": "SAME_LOWER"}, (2, 1, 1, 0)),
    "same_strides": Conv(
        (7, 11),
        (2, 4),
        {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
        (1, 1, 0, 1),
        stride=(2, 3),
    ),
    "same_dilations": Conv(
        (7, 11),
        (2, 4),
        {"auto_pad": "SAME_LOWER", "dilations": [3, 2]},
        (3, 3, 2, 1),
        dilation=(3, 2),
    ),
}
BY_RANK: Mapping[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@pytest.mark.parametrize("case", CONVS.values(), ids=CONVS.keys())
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("opset", [11, 22])
def test_conv(case: Conv, bias: bool, opset: int) -> None:
    x, weight = numbers(2, 6, *case.sizes), weights(12, 6 // case.groups, *case.kernel)
    rest = [weight, weights(12, seed=3)] if bias else [weight]
    model = one_node("Conv", [x, *rest], opset=opset, **case.attributes)
    padded = F.pad(torch.from_numpy(x), case.padding)
    arrays = [torch.from_numpy(each).double() for each in rest]
    expected = BY_RANK[len(case.sizes)](
        padded, *arrays, stride=case.stride, dilation=case.dilation, groups=case.groups
    )
    close(Float64Model(model).run({"x": x})["y0"], expected)


@dataclass(frozen=True)
class Transposed:
    """A transposed convolution of 6 to 12 channels, and what to cut off torch's, unpadded, whole.

    `cut` has a pair for each axis: negative at the end is a row of the bias alone.
    """

    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    attributes: Mapping[str, Any]
    cut: tuple[tuple[int, int], ...]
    groups: int = 1
    stride: Any = 1
    dilation: Any = 1


TRANSPOSED = {
    "1d": Transposed((11,), (3,), {"strides": [2]}, ((0, 0),), stride=2),
    "2d_uneven_pads": Transposed(
        (5, 7), (3, 4), {"pads": [0, 2, 1, 1]}, ((0, 1), (2, 1)), stride=1
    ),
    "2d_groups": Transposed(
        (5, 7), (3, 2), {"group": 3, "strides": [2, 3]}, ((0, 0), (0, 0)), 3, (2, 3)
    ),
    "2d_output_padding": Transposed(
        (5, 7),
        (3, 2),
        {"group": 2, "strides": [2, 3], "pads": [1] * 4, "output_padding": [1, 2]},
        ((1, 0), (1, -1)),
        2,
        (2, 3),
    ),
    "2d_dilations": Transposed(
        (5, 7), (3, 2), {"dilations": [2, 3]}, ((0, 0), (0, 0)), dilation=(2, 3)
    ),
    "3d": Transposed(
        (3, 5, 2), (2, 3, 1), {"group": 6, "strides": [2, 1, 3]}, ((0, 0),) * 3, 6, (2, 1, 3)
    ),
    # whole: (5 - 1) * 2 + 3 = 11 and (7 - 1) * 3 + 5 = 23
    "output_shape": Transposed(
        (5, 7), (3, 5), {"strides": [2, 3], "output_shape": [10, 20]}, ((1, 0), (2, 1)), 1, (2, 3)
    ),
    "output_shape_upper": Transposed(
        (5, 7),
        (3, 5),
        {"strides": [2, 3], "output_shape": [10, 20], "auto_pad": "SAME_UPPER"},
        ((0, 1), (1, 2)),
        1,
        (2, 3),
    ),
    "output_shape_larger": Transposed(
        (5, 7), (3, 5), {"strides": [2, 3], "output_shape": [12, 23]}, ((0, -1), (0, 0)), 1, (2, 3)
    ),
    "same_upper": Transposed(
        (5, 7), (3, 5), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}, ((0, 1), (1, 2)), 1, (2, 2)
    ),
    "same_lower": Transposed(
        (5, 7), (3, 5), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}, ((1, 0), (2, 1)), 1, (2, 2)
    ),
    "valid": Transposed((5, 7), (3, 5), {"auto_pad": "VALID"}, ((0, 0), (0, 0))),
}
TRANSPOSED_BY_RANK: Mapping[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


@pytest.mark.parametrize("case", TRANSPOSED.values(), ids=TRANSPOSED.keys())
@pytest.mark.parametrize("opset", [11, 22])
def test_conv_transpose(case: Transposed, opset: int) -> None:
    x, weight = numbers(2, 6, *case.sizes), weights(6, 12 // case.groups, *case.kernel)
    bias = weights(12, seed=3)
    model = one_node("ConvTranspose", [x, weight, bias], opset=opset, **case.attributes)
    whole = TRANSPOSED_BY_RANK[len(case.sizes)](
        torch.from_numpy(x),
        torch.from_numpy(weight).double(),
        stride=case.stride,
        groups=case.groups,
        dilation=case.dilation,
    )
    flat = [-amount for pair in reversed(case.cut) for amount in pair]
    column = torch.from_numpy(bias).double().reshape(-1, *[1] * len(case.sizes))
    close(Float64Model(model).run({"x": x})["y0"], F.pad(whole, flat) + column)


def naive_pool(
    x: Array, kind: str, kernel: int, stride: int, dilation: int, pads: tuple[int, int], count: int
) -> Array:
    """`count` windows over the last axis of `x`, one number at a time, as the spec has it."""
    size = x.shape[-1]
    found = []
    for start in range(-pads[0], -pads[0] + count * stride, stride):
        taps = [start + dilation * k for k in range(kernel)]
        inside = [x[..., tap] for tap in taps if 0 <= tap < size]
        declared = [tap for tap in taps if -pads[0] <= tap < size + pads[1]]
        number = len(declared) if kind == "include" else len(inside)
        found.append(max_of(inside) if kind == "max" else sum(inside) / number)
    return np.stack(found, -1)


def max_of(arrays: list[Array]) -> Array:
    return np.max(np.stack(arrays), axis=0)


# attributes, opset, then what they mean: kernel, stride, dilation, pads, windows over 11 elements
POOLS: dict[str, tuple[dict[str, Any], int, tuple[Any, ...]]] = {
    "plain": ({"kernel_shape": [3]}, 11, (3, 1, 1, (0, 0), 9)),
    "strides": ({"kernel_shape": [3], "strides": [3]}, 11, (3, 3, 1, (0, 0), 3)),
    "uneven": ({"kernel_shape": [4], "pads": [1, 3]}, 11, (4, 1, 1, (1, 3), 12)),
    "ceil": (
        {"kernel_shape": [3], "strides": [3], "ceil_mode": 1},
        11,
        (3, 3, 1, (0, 0), 4),
    ),
    "ceil_pads": (
        {"kernel_shape": [3], "strides": [4], "pads": [1, 2], "ceil_mode": 1},
        22,
        (3, 4, 1, (1, 2), 3),
    ),
    "ceil_last_in_padding": (
        {"kernel_shape": [2], "strides": [3], "pads": [1, 1], "ceil_mode": 1},
        22,
        (2, 3, 1, (1, 1), 4),
    ),
    "dilations": (
        {"kernel_shape": [3], "dilations": [2], "pads": [1, 2]},
        19,
        (3, 1, 2, (1, 2), 10),
    ),
    "same_upper": (
        {"kernel_shape": [4], "auto_pad": "SAME_UPPER"},
        11,
        (4, 1, 1, (1, 2), 11),
    ),
    "same_lower": (
        {"kernel_shape": [3], "strides": [2], "auto_pad": "SAME_LOWER"},
        11,
        (3, 2, 1, (1, 1), 6),
    ),
    "valid": (
        {"kernel_shape": [2], "strides": [2], "auto_pad": "VALID", "ceil_mode": 0},
        11,
        (2, 2, 1, (0, 0), 5),
    ),
}
KINDS = {"max": ("MaxPool", {}), "exclude": ("AveragePool", {})}
KINDS["include"] = ("AveragePool", {"count_include_pad": 1})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("attributes", "opset", "plan"), POOLS.values(), ids=POOLS.keys())
def test_pool(kind: str, attributes: dict[str, Any], opset: int, plan: tuple[Any, ...]) -> None:
    x = numbers(2, 3, 11, low=-5, high=-1)  # a zero of padding would be a maximum
    op, more = KINDS[kind]
    model = one_node(op, [x], opset=opset, **attributes, **more)
    close(Float64Model(model).run({"x": x})["y0"], naive_pool(x, kind, *plan))


@pytest.mark.parametrize("ceil", [False, True])
def test_pools_of_images_are_those_of_torch(ceil: bool) -> None:
    x = torch.from_numpy(IMAGE)
    attributes = {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 1, 0]}
    attributes["ceil_mode"] = int(ceil)
    window = {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 0), "ceil_mode": ceil}
    found = Float64Model(one_node("MaxPool", [IMAGE], **attributes)).run({"x": IMAGE})
    close(found["y0"], F.max_pool2d(x, **window))
    model = one_node("AveragePool", [IMAGE], **attributes, count_include_pad=1)
    close(Float64Model(model).run({"x": IMAGE})["y0"], F.avg_pool2d(x, **window))


def test_max_pool_with_indices_and_of_bytes() -> None:
    model = one_node("MaxPool", [IMAGE], outputs=2, kernel_shape=[2, 3], strides=[2, 3])
    found = Float64Model(model).run({"x": IMAGE})
    values, _ = F.max_pool2d(torch.from_numpy(IMAGE), (2, 3), (2, 3), return_indices=True)
    close(found["y0"], values)
    np.testing.assert_array_equal(IMAGE.ravel()[found["y1"]], values)
    small = np.arange(-60, 50, dtype=np.int8).reshape(1, 2, 5, 11)
    found = Float64Model(one_node("MaxPool", [small], kernel_shape=[2, 3])).run({"x": small})
    assert found["y0"].dtype == np.int8
    assert found["y0"].max() == 49
