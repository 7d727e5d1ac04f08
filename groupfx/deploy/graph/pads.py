"""Where ONNX puts the windows of a convolution or a pooling: `pads`, `auto_pad`, `output_shape`.

Integers alone. A window that slides over x is told by what to add around x so that each window is
whole (`Axis.borders`); a transposed convolution by what to cut off its whole result (`crops`). The
rules are those of https://onnx.ai/onnx/operators from opset 11 on, and ONNX Runtime's where the
text is silent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...convs.spec import ConvSpec

_OF_TORCH = {"same": "SAME_UPPER", "valid": "VALID"}


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


@dataclass(frozen=True)
class Window:
    """The attributes that place a window, as they are on the node; None where not set.

    The last two are those of ConvTranspose; `output_shape` may hold batch and channels as well.
    """

    strides: Sequence[int] | None = None
    dilations: Sequence[int] | None = None
    pads: Sequence[int] | None = None
    auto_pad: str = "NOTSET"
    ceil_mode: int = 0
    output_padding: Sequence[int] | None = None
    output_shape: Sequence[int] | None = None

    @classmethod
    def of(cls, spec: ConvSpec) -> Window:
        """The window of a convolution of torch, where "same" adds an odd element at the end."""
        return cls(
            strides=spec.stride,
            dilations=spec.dilation,
            pads=None if isinstance(spec.padding, str) else spec.padding * 2,
            auto_pad=_OF_TORCH[spec.padding] if isinstance(spec.padding, str) else "NOTSET",
            output_padding=spec.output_padding,
        )

    @property
    def same(self) -> bool:
        """Whether the sizes are to stay, or to grow by the strides, whatever padding it takes."""
        return self.auto_pad.startswith("SAME")

    def declared(self, rank: int) -> tuple[int, ...]:
        """The begins, then the ends, that the node says itself; auto_pad overrules them."""
        return tuple(self.pads) if self.pads and self.auto_pad == "NOTSET" else (0,) * 2 * rank

    def axes(self, sizes: Sequence[int], kernel: Sequence[int]) -> list[Axis]:
        """The windows along all spatial axes of x."""
        return [self._placed(axis) for axis in self._axes(sizes, kernel)]

    def crops(self, sizes: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
        """What ConvTranspose cuts off both ends of its whole result; negative is added.

        The whole result is that of x `sizes` without padding and output padding.
        """
        rank = len(sizes)
        wanted = [None] * rank if self.output_shape is None else self.output_shape[-rank:]
        extra = self.output_padding or (0,) * rank
        axes = self._axes(sizes, kernel)
        return [self._cut(*each) for each in zip(axes, wanted, extra, strict=True)]

    def _axes(self, sizes: Sequence[int], kernel: Sequence[int]) -> list[Axis]:
        rank = len(sizes)
        ones, pads = (1,) * rank, self.declared(rank)
        strides, dilations = self.strides or ones, self.dilations or ones
        numbers = zip(sizes, kernel, strides, dilations, pads[:rank], pads[rank:], strict=True)
        return [Axis(*each) for each in numbers]

    def _placed(self, axis: Axis) -> Axis:
        """`axis` with its number of windows, and with its padding where auto_pad decides it."""
        if self.same:
            output = -(-axis.size // axis.stride)
            total = (output - 1) * axis.stride + axis.extent - axis.size
            begin, end = self._halves(max(total, 0))
            return replace(axis, begin=begin, end=end, output=output)
        room = axis.begin + axis.size + axis.end - axis.extent
        output = (room + (axis.stride - 1 if self.ceil_mode else 0)) // axis.stride + 1
        if self.ceil_mode and (output - 1) * axis.stride >= axis.begin + axis.size:
            output -= 1  # "sliding windows that would start in the right padded region are ignored"
        return replace(axis, output=output)

    def _cut(self, axis: Axis, wanted: int | None, extra: int) -> tuple[int, int]:
        """What to cut off both ends for `wanted` elements; `extra` is the output padding."""
        full = (axis.size - 1) * axis.stride + axis.extent + extra
        if wanted is None and self.same:
            # What is too short for "same", where strides leave gaps, stays so: auto_pad only pads.
            wanted = min(axis.size * axis.stride, full)
        if wanted is None:
            return axis.begin, axis.end - extra
        if wanted > full:  # all of what is missing is added at the end
            return 0, full - extra - wanted
        begin, end = self._halves(full - wanted)
        return begin, end - extra

    def _halves(self, total: int) -> tuple[int, int]:
        """SAME_UPPER puts an odd element at the end, all else at the start."""
        small = total // 2
        return (small, total - small) if self.auto_pad == "SAME_UPPER" else (total - small, small)
