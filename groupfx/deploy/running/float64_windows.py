"""The ONNX operators that slide a window, in float64, for the reference evaluator of onnx.

The evaluator's own kernels are slow, and lack grouped ConvTranspose. Here every one of them is

    pad or crop x, so that each window that the spec counts is whole   (integers: `Axis`)
    slide the window over it without any padding                       (torch)

so that auto_pad, uneven pads and ceil_mode, which `graph/pads.py` knows, are the same few lines for
all. Formulas are those of the operators' pages on https://onnx.ai/onnx/operators, from opset 11 on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx.reference.op_run import OpRun
from onnx.reference.ops import load_op
from torch import Tensor
from torch.nn import functional as F

from ..graph.pads import Axis, Window

Array = npt.NDArray[Any]

_CONVS: Mapping[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: Mapping[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def as_tensor(array: Array) -> Tensor:
    """A tensor with the values of `array`; memory is shared where torch allows it."""
    contiguous = np.ascontiguousarray(array).reshape(array.shape)
    return torch.from_numpy(contiguous if contiguous.flags.writeable else contiguous.copy())


def pad_or_crop(x: Tensor, borders: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Add `value` around the spatial axes of `x`, or crop them where a border is negative."""
    flat = [amount for before_after in reversed(borders) for amount in before_after]
    return F.pad(x, flat, value=value) if any(flat) else x


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int) -> Tensor:
    """Conv of x [N, C, *sizes], weight [M, C / groups, *kernel], bias [M]."""
    axes = window.axes(x.shape[2:], weight.shape[2:])
    return _CONVS[len(axes)](
        pad_or_crop(x, [axis.borders for axis in axes]),
        weight,
        bias,
        stride=[axis.stride for axis in axes],
        dilation=[axis.dilation for axis in axes],
        groups=groups,
    )


def convolve_transposed(
    x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    """ConvTranspose of x [N, C, *sizes], weight [C, M / groups, *kernel], bias [M]."""
    rank = x.dim() - 2
    strides, dilations = window.strides or [1] * rank, window.dilations or [1] * rank
    whole = _TRANSPOSED[rank](x, weight, None, strides, 0, 0, groups, dilations)
    crops = window.crops(x.shape[2:], weight.shape[2:])
    y = pad_or_crop(whole, [(-begin, -end) for begin, end in crops])
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)


class Conv(OpRun):
    """x [N, C, *sizes], weight [M, C / group, *kernel], bias [M]."""

    def _run(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        auto_pad: str = "NOTSET",
        dilations: Sequence[int] | None = None,
        group: int = 1,
        kernel_shape: Sequence[int] | None = None,  # the weight says it too
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        window = Window(strides, dilations, pads, auto_pad)
        held = None if bias is None else as_tensor(bias)
        return (convolve(as_tensor(x), as_tensor(weight), held, window, group).numpy(),)


class ConvTranspose(OpRun):
    """x [N, C, *sizes], weight [C, M / group, *kernel], bias [M]."""

    def _run(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        auto_pad: str = "NOTSET",
        dilations: Sequence[int] | None = None,
        group: int = 1,
        kernel_shape: Sequence[int] | None = None,  # the weight says it too
        output_padding: Sequence[int] | None = None,
        output_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        window = Window(
            strides,
            dilations,
            pads,
            auto_pad,
            output_padding=output_padding,
            output_shape=output_shape,
        )
        held = None if bias is None else as_tensor(bias)
        return (convolve_transposed(as_tensor(x), as_tensor(weight), held, window, group).numpy(),)


class MaxPool(OpRun):
    """x [N, C, *sizes]; Indices are those of x as one row, the first of equal values.

    With `storage_order` 1 the spatial axes run the other way in them, as in Fortran.
    """

    def _run(
        self,
        x: Array,
        auto_pad: str = "NOTSET",
        ceil_mode: int = 0,
        dilations: Sequence[int] | None = None,
        kernel_shape: Sequence[int] = (),
        pads: Sequence[int] | None = None,
        storage_order: int = 0,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array, ...]:
        window = Window(strides, dilations, pads, auto_pad, ceil_mode)
        axes = window.axes(x.shape[2:], kernel_shape)
        wide = as_tensor(x.astype(np.float64, copy=False))  # int8 and uint8 are allowed, and exact
        borders = [axis.borders for axis in axes]
        padded = pad_or_crop(wide, borders, -float("inf"))
        if len(self.onnx_node.output) == 1:
            largest = _slide(padded, axes, lambda windows: windows.amax(-1))
            return (largest.numpy().astype(x.dtype, copy=False),)
        places = pad_or_crop(_places(x.shape, storage_order), borders, -1.0)
        windows, held = (_windows(each, axes) for each in (padded, places))
        # What is padding is no place, also where all that is beside it is minus infinity.
        first = torch.where(held < 0, -float("inf"), windows).argmax(-1, keepdim=True)
        y, found = (each.gather(-1, first)[..., 0].numpy() for each in (windows, held))
        return y.astype(x.dtype, copy=False), found.astype(np.int64)


def _places(shape: Sequence[int], storage_order: int) -> Tensor:
    """Where each number lies in a row of all of them, as a float; a plane after another."""
    count = int(np.prod(shape[2:]))
    order: Literal["C", "F"] = "F" if storage_order else "C"
    plane = np.arange(count).reshape(shape[2:], order=order)
    planes = np.arange(shape[0] * shape[1]).reshape(*shape[:2], *[1] * len(shape[2:]))
    return torch.from_numpy((planes * count + plane).astype(np.float64))


def _windows(x: Tensor, axes: Sequence[Axis]) -> Tensor:
    """Each window of `x` as a row, [N, C, *outputs, taps]."""
    for position, axis in enumerate(axes):
        x = x.unfold(2 + position, axis.extent, axis.stride)[..., :: axis.dilation]
    return x.flatten(2 + len(axes))


class AveragePool(OpRun):
    """x [N, C, *sizes]."""

    def _run(
        self,
        x: Array,
        auto_pad: str = "NOTSET",
        ceil_mode: int = 0,
        count_include_pad: int = 0,
        dilations: Sequence[int] | None = None,
        kernel_shape: Sequence[int] = (),
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        window = Window(strides, dilations, pads, auto_pad, ceil_mode)
        axes = window.axes(x.shape[2:], kernel_shape)
        padded = pad_or_crop(as_tensor(x), [axis.borders for axis in axes])
        y = _slide(padded, axes, lambda windows: windows.sum(-1))
        for position, axis in enumerate(axes):
            taps = _taps(axis, include_pad=bool(count_include_pad))
            y = y / taps.reshape(-1, *[1] * (len(axes) - 1 - position))
        return (y.numpy(),)


def _slide(x: Tensor, axes: Sequence[Axis], reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Reduce every window of `x`, one axis after another, as a sum and a maximum allow."""
    for position, axis in enumerate(axes):
        windows = x.unfold(2 + position, axis.extent, axis.stride)
        x = reduce(windows[..., :: axis.dilation])
    return x


def _taps(axis: Axis, *, include_pad: bool) -> Tensor:
    """How many taps of each window an average counts; [output]."""
    low, high = axis.begin, axis.begin + axis.size
    if include_pad:  # the padding that is declared, and not what ceil_mode adds to it
        low, high = 0, high + axis.end
    starts = torch.arange(axis.output)[:, None] * axis.stride
    positions = starts + torch.arange(axis.kernel) * axis.dilation
    return ((positions >= low) & (positions < high)).sum(1)


def own(kernel: OpRun, *inputs: Array, **attributes: int) -> tuple[Array, ...]:
    """Run the node of `kernel` by the evaluator's own implementation, with `attributes` set."""
    node, run_params = onnx.NodeProto(), kernel.run_params
    node.CopyFrom(kernel.onnx_node)
    kept = [each for each in node.attribute if each.name not in attributes]
    set_now = [onnx.helper.make_attribute(name, value) for name, value in attributes.items()]
    del node.attribute[:]
    node.attribute.extend([*kept, *set_now])
    implementation = load_op(node.domain, node.op_type, run_params["opsets"][node.domain])
    found: tuple[Array, ...] = implementation(node, run_params).run(*inputs)
    return found
