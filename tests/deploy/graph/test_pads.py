"""Where windows lie, against ONNX Runtime, and onnx's own inference and evaluator where they agree.

The expected values are written here one tap at a time, so that a shifted window is another result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from groupfx.convs.spec import ConvSpec
from groupfx.deploy.graph.pads import Window

Array = npt.NDArray[Any]

SIZES = (3, 5, 8)
KERNELS = (1, 2, 3, 4)


def model_of(op: str, size: int, weight: Array, attributes: Mapping[str, Any]) -> onnx.ModelProto:
    """One operator on one axis, one channel; the shape of its output is for others to tell."""
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight[None, None], "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def by_runtime(model: onnx.ModelProto, x: Array) -> Array:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x[None, None]})
    return np.asarray(found)[0, 0]


def by_evaluator(model: onnx.ModelProto, x: Array) -> Array:
    (found,) = ReferenceEvaluator(model).run(None, {"x": x[None, None]})
    return np.asarray(found)[0, 0]


def inferred_size(model: onnx.ModelProto) -> int:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    return int(inferred.graph.output[0].type.tensor_type.shape.dim[2].dim_value)


def numbers(count: int, seed: int) -> Array:
    """Small whole numbers, none of them zero: sums are exact and no shift goes unseen."""
    return np.random.default_rng(seed).integers(1, 50, count).astype(np.float32)


def slid(x: Array, weight: Array, window: Window) -> Array:
    """The convolution that `window` tells, one tap at a time."""
    (axis,) = window.axes(x.shape, weight.shape)
    begin, end = axis.borders
    padded = np.pad(x, (begin, max(end, 0)))
    starts = range(0, axis.output * axis.stride, axis.stride)
    assert len(padded) + min(end, 0) == starts[-1] + axis.extent
    taps = range(axis.kernel)
    return np.array([sum(padded[s + k * axis.dilation] * weight[k] for k in taps) for s in starts])


def spread(x: Array, weight: Array, stride: int, dilation: int, window: Window) -> Array:
    """The transposed convolution that `window` tells, one tap at a time."""
    whole = np.zeros((len(x) - 1) * stride + (len(weight) - 1) * dilation + 1)
    for (i, value), (k, factor) in product(enumerate(x), enumerate(weight)):
        whole[i * stride + k * dilation] += value * factor
    ((begin, end),) = window.crops(x.shape, weight.shape)
    assert begin >= 0
    return np.pad(whole, (0, max(-end, 0)))[begin : len(whole) - end]


CONVS: dict[str, dict[str, Any]] = {
    **{
        f"{auto}, stride {stride}": {"auto_pad": auto, "strides": [stride]}
        for auto, stride in product(("SAME_UPPER", "SAME_LOWER", "VALID"), (1, 2, 3))
    },
    "plain": {},
    "pads": {"pads": [2, 1]},
    "pads, stride, dilation": {"pads": [1, 4], "strides": [2], "dilations": [2]},
}


@pytest.mark.parametrize("attributes", CONVS.values(), ids=CONVS.keys())
def test_conv(attributes: dict[str, Any]) -> None:
    seen = 0
    for size, kernel in product(SIZES, KERNELS):
        x, weight = numbers(size, 1), numbers(kernel, 2)
        window = Window(**attributes)
        (axis,) = window.axes(x.shape, weight.shape)
        if axis.output < 1:
            continue
        model = model_of("Conv", size, weight, attributes)
        found = slid(x, weight, window)
        np.testing.assert_array_equal(found, by_runtime(model, x), f"{size}, {kernel}")
        assert len(found) == inferred_size(model)
        seen += 1
    assert seen >= 6


TRANSPOSED: dict[str, dict[str, Any]] = {
    **{
        f"{auto}, stride {stride}, output_padding {extra}, dilation {dilation}": {
            **({} if auto == "NOTSET" else {"auto_pad": auto}),
            **({"output_padding": [extra]} if extra else {}),
            "strides": [stride],
            "dilations": [dilation],
        }
        for auto, (stride, extra), dilation in product(
            ("SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"),
            ((1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (4, 2)),
            (1, 2),
        )
    },
    "pads": {"pads": [0, 1], "strides": [3]},
    "pads, output_padding": {"pads": [1, 0], "strides": [3], "output_padding": [2]},
}


@pytest.mark.parametrize("attributes", TRANSPOSED.values(), ids=TRANSPOSED.keys())
def test_conv_transpose(attributes: dict[str, Any]) -> None:
    stride, dilation = attributes["strides"][0], attributes.get("dilations", [1])[0]
    same = attributes.get("auto_pad", "").startswith("SAME")
    for size, kernel in product(SIZES, KERNELS):
        x, weight = numbers(size, 1), numbers(kernel, 2)
        model = model_of("ConvTranspose", size, weight, attributes)
        found = spread(x, weight, stride, dilation, Window(**attributes))
        np.testing.assert_array_equal(found, by_runtime(model, x), f"{size}, {kernel}")
        # What they have different opinions of: with SAME, inference adds the output padding to the
        # size that is sought, and the evaluator pads what is too short for it.
        if not (same and "output_padding" in attributes):
            assert len(found) == inferred_size(model)
        if not (same and stride > (kernel - 1) * dilation + 1):
            np.testing.assert_array_equal(found, by_evaluator(model, x), f"{size}, {kernel}")


@pytest.mark.parametrize("auto", ["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize(("stride", "extra"), [(1, 0), (2, 0), (2, 1), (3, 2)])
def test_an_output_shape_that_is_given(auto: str, stride: int, extra: int) -> None:
    seen = 0
    for size, kernel, lack in product(SIZES, KERNELS, range(-1, 4)):
        whole = (size - 1) * stride + kernel
        wanted = whole - lack
        if wanted < 1 or -lack >= stride:
            continue  # ONNX Runtime refuses it
        attributes = {
            "auto_pad": auto,
            "strides": [stride],
            "output_shape": [wanted],
            "output_padding": [extra],
        }
        x, weight = numbers(size, 1), numbers(kernel, 2)
        model = model_of("ConvTranspose", size, weight, attributes)
        found = spread(x, weight, stride, 1, Window(**attributes))
        np.testing.assert_array_equal(found, by_runtime(model, x), f"{size}, {kernel}, {lack}")
        assert len(found) == wanted
        if wanted >= size:  # inference is silent on what is shorter than x
            assert inferred_size(model) == wanted
        seen += 1
    assert seen >= 42


def test_an_output_shape_with_batch_and_channels_is_that_without() -> None:
    window = Window(strides=[2], output_shape=[4])
    assert window.crops([3], [3]) == [(2, 1)]
    assert Window(strides=[2], output_shape=[7, 5, 4]).crops([3], [3]) == [(2, 1)]


def borders(padding: tuple[int, ...] | str, kernel: Sequence[int]) -> list[tuple[int, int]]:
    spec = ConvSpec(
        2, False, 4, 6, 2, tuple(kernel), (1, 1), padding, (1, 1), (0, 0), "zeros", True
    )
    return [axis.borders for axis in Window.of(spec).axes((7, 11), kernel)]


def test_a_convolution_of_torch_has_an_odd_element_at_the_end() -> None:
    assert borders("same", (4, 3)) == [(1, 2), (1, 1)]
    assert borders("valid", (4, 3)) == [(0, 0), (0, 0)]
    assert borders((2, 1), (4, 3)) == [(2, 2), (1, 1)]
