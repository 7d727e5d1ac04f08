"""The ONNX operators that slide a window, in float64, for the reference evaluator of onnx.

The evaluator's own kernels are slow, and lack grouped ConvTranspose. Here every one of them is

    pad or crop x, so that each window that the spec counts is whole   (integers: `Axis`)
    slide the window over it without any padding                       (torch)

so that auto_pad, uneven pads and ceil_mode are the same few lines for all. Formulas are those of
the operators' pages on https://onnx.ai/onnx/operators, from opset 11 on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx.reference.op_run import OpRun
from onnx.reference.ops import load_op
from torch import Tensor
from torch.nn import functional as F

Array = npt.NDArray[Any]

_CONVS: Mapping[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: Mapping[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


@dataclass(frozen=True)
class Axis:
    """A window along one spatial axis of `size` elements, and where it may start.

    `begin` and `end` are the padding that the node declares; `output` is the number of windows.
    """

    size: int
    kernel: int
    stride: int
    dilation: int
    begin: int
    end: int
    output: int = 0

    @property
    def extent(self) -> int:
        """Elements from the first tap of the window to its last."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def borders(self) -> tuple[int, int]:
        """What to add before and after the axis so that the windows fit; negative is cropped."""
        return self.begin, (self.output - 1) * self.stride + self.extent - self.size - self.begin

    def taps(self, *, include_pad: bool) -> Tensor:
        """How many taps of each window an average counts; [output]."""
        low, high = self.begin, self.begin + self.size
        if include_pad:  # the padding that is declared, and not what ceil_mode adds to it
            low, high = 0, high + self.end
        starts = torch.arange(self.output)[:, None] * self.stride
        positions = starts + torch.arange(self.kernel) * self.dilation
        return ((positions >= low) & (positions < high)).sum(1)


@dataclass(frozen=True)
class WindowAttributes:
    """Attributes that Conv and the poolings share, as they are on the node; None where not set."""

    strides: Sequence[int] | None
    dilations: Sequence[int] | None
    pads: Sequence[int] | None
    auto_pad: str = "NOTSET"
    ceil_mode: int = 0

    def axes(self, sizes: Sequence[int], kernel: Sequence[int]) -> list[Axis]:
        """The windows along all spatial axes."""
        rank = len(sizes)
        strides, dilations = self.strides or [1] * rank, self.dilations or [1] * rank
        pads = self.pads if self.pads and self.auto_pad == "NOTSET" else [0] * 2 * rank
        numbers = zip(sizes, kernel, strides, dilations, pads[:rank], pads[rank:], strict=True)
        return [self._placed(Axis(*each)) for each in numbers]

    def _placed(self, axis: Axis) -> Axis:
        """`axis` with its number of windows, and with its padding where auto_pad decides it."""
        if self.auto_pad.startswith("SAME"):
            output = -(-axis.size // axis.stride)
            total = (output - 1) * axis.stride + axis.extent - axis.size
            begin, end = halves(max(total, 0), self.auto_pad)
            return replace(axis, begin=begin, end=end, output=output)
        room = axis.begin + axis.size + axis.end - axis.extent
        output = (room + (axis.stride - 1 if self.ceil_mode else 0)) // axis.stride + 1
        if self.ceil_mode and (output - 1) * axis.stride >= axis.begin + axis.size:
            output -= 1  # "sliding windows that would start in the right padded region are ignored"
        return replace(axis, output=output)


def halves(total: int, auto_pad: str) -> tuple[int, int]:
    """Split a padding in two: SAME_UPPER puts an odd element at the end, all else at the start."""
    small = total // 2
    return (small, total - small) if auto_pad == "SAME_UPPER" else (total - small, small)


def as_tensor(array: Array) -> Tensor:
    """A tensor with the values of `array`; memory is shared where torch allows it."""
    contiguous = np.ascontiguousarray(array).reshape(array.shape)
    return torch.from_numpy(contiguous if contiguous.flags.writeable else contiguous.copy())


def pad_or_crop(x: Tensor, borders: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Add `value` around the spatial axes of `x`, or crop them where a border is negative."""
    flat = [amount for before_after in reversed(borders) for amount in before_after]
    return F.pad(x, flat, value=value) if any(flat) else x


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
        kernel_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        window = WindowAttributes(strides, dilations, pads, auto_pad)
        axes = window.axes(x.shape[2:], kernel_shape or weight.shape[2:])
        padded = pad_or_crop(as_tensor(x), [axis.borders for axis in axes])
        y = _CONVS[len(axes)](
            padded,
            as_tensor(weight),
            None if bias is None else as_tensor(bias),
            stride=[axis.stride for axis in axes],
            dilation=[axis.dilation for axis in axes],
            groups=group,
        )
        return (y.numpy(),)


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
        kernel_shape: Sequence[int] | None = None,
        output_padding: Sequence[int] | None = None,
        output_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        rank = x.ndim - 2
        strides, dilations = strides or [1] * rank, dilations or [1] * rank
        whole = _TRANSPOSED[rank](
            as_tensor(x), as_tensor(weight), None, strides, 0, 0, group, dilations
        )
        extra = output_padding or [0] * rank
        sizes = [size + more for size, more in zip(whole.shape[2:], extra, strict=True)]
        if auto_pad.startswith("SAME") and not output_shape:
            output_shape = [
                size * stride for size, stride in zip(x.shape[2:], strides, strict=True)
            ]
        if output_shape:
            crops = _crops_to(output_shape[-rank:], sizes, auto_pad)
        else:
            crops = _declared(pads if auto_pad == "NOTSET" else None, rank)
        borders = [(-a, more - b) for (a, b), more in zip(crops, extra, strict=True)]
        y = pad_or_crop(whole, borders)
        if bias is not None:
            y = y + as_tensor(bias).reshape(-1, *[1] * rank)
        return (y.numpy(),)


def _crops_to(wanted: Sequence[int], sizes: Sequence[int], auto_pad: str) -> list[tuple[int, int]]:
    """What to crop on both sides of `sizes`; all of what is missing is added at the end."""
    totals = [size - want for size, want in zip(sizes, wanted, strict=True)]
    return [halves(total, auto_pad) if total > 0 else (0, total) for total in totals]


def _declared(pads: Sequence[int] | None, rank: int) -> list[tuple[int, int]]:
    pads = pads or [0] * 2 * rank
    return list(zip(pads[:rank], pads[rank:], strict=True))


class MaxPool(OpRun):
    """x [N, C, *sizes]; with the output Indices, the evaluator's own kernel."""

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
        if len([name for name in self.onnx_node.output if name]) > 1:
            return own(self, x)
        window = WindowAttributes(strides, dilations, pads, auto_pad, ceil_mode)
        axes = window.axes(x.shape[2:], kernel_shape)
        wide = as_tensor(x.astype(np.float64, copy=False))  # int8 and uint8 are allowed, and exact
        padded = pad_or_crop(wide, [axis.borders for axis in axes], -float("inf"))
        y = _slide(padded, axes, lambda windows: windows.amax(-1))
        return (y.numpy().astype(x.dtype, copy=False),)


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
        window = WindowAttributes(strides, dilations, pads, auto_pad, ceil_mode)
        axes = window.axes(x.shape[2:], kernel_shape)
        padded = pad_or_crop(as_tensor(x), [axis.borders for axis in axes])
        y = _slide(padded, axes, lambda windows: windows.sum(-1))
        for position, axis in enumerate(axes):
            taps = axis.taps(include_pad=bool(count_include_pad))
            y = y / taps.reshape(-1, *[1] * (len(axes) - 1 - position))
        return (y.numpy(),)


def _slide(x: Tensor, axes: Sequence[Axis], reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Reduce every window of `x`, one axis after another, as a sum and a maximum allow."""
    for position, axis in enumerate(axes):
        windows = x.unfold(2 + position, axis.extent, axis.stride)
        x = reduce(windows[..., :: axis.dilation])
    return x


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
