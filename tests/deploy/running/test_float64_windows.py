"""Convolutions and poolings of Float64Model, with every attribute that places a window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional as F

from groupfx.deploy.running.float64_onnx import Float64Model
from tests.deploy.running.float64_models import Array, close, numbers, one_node, weights

IMAGE = numbers(2, 6, 7, 11)


@dataclass(frozen=True)
class WindowedConv:
    """A convolution by torch's own arguments, and the same by the attributes of ONNX."""

    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    attributes: Mapping[str, Any]
    padding: tuple[int, ...] = ()  # of F.pad: the last axis first
    groups: int = 1
    stride: Any = 1
    dilation: Any = 1


CONVS = {
    "1d": WindowedConv((11,), (3,), {"pads": [1, 1]}, (1, 1)),
    "2d_strides": WindowedConv((11, 13), (3, 5), {"strides": [2, 3]}, stride=(2, 3)),
    "2d_uneven_pads": WindowedConv((7, 11), (3, 2), {"pads": [0, 3, 2, 1]}, (3, 1, 0, 2)),
    "2d_groups": WindowedConv((7, 11), (3, 3), {"group": 3}, groups=3),
    "2d_depthwise": WindowedConv(
        (7, 11), (3, 2), {"group": 6, "pads": [1] * 4}, (1,) * 4, groups=6
    ),
    "2d_dilations": WindowedConv((13, 11), (3, 2), {"dilations": [2, 5]}, dilation=(2, 5)),
    "3d": WindowedConv((5, 7, 11), (2, 3, 1), {"group": 2, "strides": [1, 2, 3]}, (), 2, (1, 2, 3)),
    "valid": WindowedConv((7, 11), (3, 2), {"auto_pad": "VALID"}),
    "same_upper": WindowedConv((7, 11), (2, 4), {"auto_pad": "SAME_UPPER"}, (1, 2, 0, 1)),
    "same_lower": WindowedConv((7, 11), (2, 4), {"auto_pad": "SAME_LOWER"}, (2, 1, 1, 0)),
    "same_strides": WindowedConv(
        (7, 11),
        (2, 4),
        {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
        (1, 1, 0, 1),
        stride=(2, 3),
    ),
    "same_dilations": WindowedConv(
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
def test_conv(case: WindowedConv, bias: bool, opset: int) -> None:
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
    # whole: (5 - 1) * 3 + 2 = 14 of the 15 that are sought, and (7 - 1) * 4 + 3 = 27 of 28
    "same_gaps": Transposed(
        (5, 7), (2, 3), {"strides": [3, 4], "auto_pad": "SAME_UPPER"}, ((0, 0), (0, 0)), 1, (3, 4)
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


@pytest.mark.parametrize(
    ("sizes", "attributes"),
    [
        ((7, 11), {"kernel_shape": [2, 3], "strides": [2, 3]}),
        # The exporter writes this one for the place of the first number of each plane.
        ((7, 11), {"kernel_shape": [1, 1]}),
        ((7, 11), {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "storage_order": 1}),
        (
            (7, 11),
            {"kernel_shape": [3, 2], "strides": [2, 3], "ceil_mode": 1, "pads": [1, 1, 1, 1]},
        ),
        ((11,), {"kernel_shape": [3], "dilations": [2], "pads": [1, 2]}),
        ((3, 5, 4), {"kernel_shape": [2, 2, 2], "strides": [1, 2, 1], "storage_order": 1}),
    ],
    ids=["plain", "ones", "column-major", "ceil", "1d", "3d"],
)
def test_indices_of_max_pool_are_those_of_onnx_runtime(
    sizes: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    """Also of equal values, of which the first one counts."""
    x = np.round(numbers(2, 3, *sizes, low=-5, high=-1))
    model = one_node("MaxPool", [x], outputs=2, **attributes)
    model.ir_version = 10
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.INT64
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values, places = session.run(None, {"x": x.astype(np.float32)})
    found = Float64Model(model).run({"x": x})
    close(found["y0"], values.astype(np.float64))
    np.testing.assert_array_equal(found["y1"], places)


def test_max_pool_of_bytes() -> None:
    small = np.arange(-60, 50, dtype=np.int8).reshape(1, 2, 5, 11)
    found = Float64Model(one_node("MaxPool", [small], kernel_shape=[2, 3])).run({"x": small})
    assert found["y0"].dtype == np.int8
    assert found["y0"].max() == 49
