"""The kernels that replace those of onnx's reference evaluator, so that a model runs in float64.

A kernel is here because the evaluator's own one

    is slow, or lacks a part of the spec:   Conv, ConvTranspose, MaxPool, AveragePool, GridSample
    rounds, or has rounded constants:       Erf, Gelu, HardSwish, GroupNormalization, AffineGrid
    refuses a float64 stash_type:           LayerNormalization, RMSNormalization
    is wrong in an opset that is in use:    BatchNormalization (9 to 13), Softmax and LogSoftmax
                                            (up to 12), LRN (all but the first channels)
    fails where the spec has an answer:     Pad (negative pads)

Numbers among the attributes have the value that they have in the file, which is a float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import torch
from onnx.reference.op_run import OpRun
from torch.nn import functional as F

from .float64_windows import Array, AveragePool, Conv, ConvTranspose, MaxPool, as_tensor, own

FLOAT_TYPES = frozenset(
    (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
)
DOUBLE: int = onnx.TensorProto.DOUBLE

# The evaluator computes these in float32, whatever their inputs are.
ROUNDED = frozenset(("CausalConvWithState", "LinearAttention", "TfIdfVectorizer"))


class BatchNormalization(OpRun):
    """x [N, C, ...], the four others [C]; inference alone."""

    def _run(
        self,
        x: Array,
        scale: Array,
        bias: Array,
        mean: Array,
        variance: Array,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        training_mode: int = 0,
    ) -> tuple[Array]:
        if training_mode or len([name for name in self.onnx_node.output if name]) > 1:
            raise NotImplementedError("BatchNormalization in training mode; export in eval mode")
        shape = (-1, *[1] * (x.ndim - 2))
        y = x - mean.reshape(shape)
        y *= (scale / np.sqrt(variance + epsilon)).reshape(shape)
        y += bias.reshape(shape)
        return (y,)


class LayerNormalization(OpRun):
    """x, of which the axes from `axis` on are normalised; outputs Y, Mean, InvStdDev."""

    def _run(
        self,
        x: Array,
        scale: Array,
        bias: Array | None = None,
        axis: int = -1,
        epsilon: float = 1e-5,
        stash_type: int = 1,
    ) -> tuple[Array, ...]:
        axes = tuple(range(axis % x.ndim, x.ndim))
        mean = x.mean(axes, keepdims=True)
        inverse = 1 / np.sqrt(np.square(x - mean).mean(axes, keepdims=True) + epsilon)
        y = (x - mean) * inverse * scale
        found = (y if bias is None else y + bias, mean, inverse)
        return found[: len(self.onnx_node.output)]


class RMSNormalization(OpRun):
    """x, of which the axes from `axis` on are divided by their root mean square."""

    def _run(
        self,
        x: Array,
        scale: Array,
        axis: int = -1,
        epsilon: float = 1e-5,
        stash_type: int = 1,
    ) -> tuple[Array]:
        axes = tuple(range(axis % x.ndim, x.ndim))
        return (x / np.sqrt(np.square(x).mean(axes, keepdims=True) + epsilon) * scale,)


class GroupNormalization(OpRun):
    """x [N, C, ...]; scale and bias [num_groups] up to opset 20, [C] from 21 on."""

    def _run(
        self,
        x: Array,
        scale: Array,
        bias: Array,
        epsilon: float = 1e-5,
        num_groups: int = 1,
        stash_type: int = 1,
    ) -> tuple[Array]:
        channels = x.shape[1]
        grouped = x.reshape(x.shape[0], num_groups, -1)
        grouped = grouped - grouped.mean(2, keepdims=True)
        grouped /= np.sqrt(np.square(grouped).mean(2, keepdims=True) + epsilon)
        shape = (channels, *[1] * (x.ndim - 2))
        rows = [np.repeat(row, channels // row.size).reshape(shape) for row in (scale, bias)]
        return (grouped.reshape(x.shape) * rows[0] + rows[1],)


class LRN(OpRun):
    """x [N, C, ...]; a sum of squares over `size` channels around each."""

    def _run(
        self,
        x: Array,
        alpha: float = 1e-4,
        beta: float = 0.75,
        bias: float = 1.0,
        size: int = 1,
    ) -> tuple[Array]:
        before = (size - 1) // 2
        around = [(0, 0), (before, size - 1 - before), *[(0, 0)] * (x.ndim - 2)]
        squares = np.pad(np.square(x), around)
        total = sum(squares[:, first : first + x.shape[1]] for first in range(size))
        return (x / (bias + alpha / size * total) ** beta,)


class Softmax(OpRun):
    """Along `axis`; up to opset 12 over all axes from `axis` on, which is then 1 by default."""

    logarithm = False

    def _run(self, x: Array, axis: int = -1) -> tuple[Array]:
        function = torch.log_softmax if self.logarithm else torch.softmax
        if self.run_params["opsets"][""] >= 13:
            return (function(as_tensor(x), axis).numpy(),)
        given = any(attribute.name == "axis" for attribute in self.onnx_node.attribute)
        first = axis % x.ndim if given else 1
        rows = x.reshape(int(np.prod(x.shape[:first])), -1)
        return (function(as_tensor(rows), 1).numpy().reshape(x.shape),)


class LogSoftmax(Softmax):
    """The logarithm of Softmax."""

    logarithm = True


class Erf(OpRun):
    """The error function."""

    def _run(self, x: Array) -> tuple[Array]:
        return (torch.special.erf(as_tensor(x)).numpy(),)


class Gelu(OpRun):
    """x * Phi(x), Phi by erfc, which keeps its digits where Phi is small."""

    def _run(self, x: Array, approximate: str = "none") -> tuple[Array]:
        if approximate == "tanh":
            inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
            return (0.5 * x * (1 + np.tanh(inner)),)
        return (0.5 * x * torch.special.erfc(as_tensor(x / -np.sqrt(2))).numpy(),)


class HardSwish(OpRun):
    """x * clip(x / 6 + 1 / 2, 0, 1)."""

    def _run(self, x: Array) -> tuple[Array]:
        return (x * np.clip(x / 6 + 0.5, 0, 1),)


class Mish(OpRun):
    """x * tanh(softplus(x))."""

    def _run(self, x: Array) -> tuple[Array]:
        return (x * np.tanh(np.logaddexp(0, x)),)


class Pad(OpRun):
    """Pads on the axes that are named, all of them otherwise; negative ones crop, and first."""

    def _run(
        self,
        x: Array,
        pads: Array,
        constant_value: Array | None = None,
        axes: Array | None = None,
        mode: str = "constant",
    ) -> tuple[Array]:
        named = range(x.ndim) if axes is None else [int(axis) % x.ndim for axis in axes]
        widths = [(0, 0)] * x.ndim
        for axis, before, after in zip(named, *np.reshape(pads, (2, -1)).tolist(), strict=True):
            widths[axis] = (before, after)
        ends = zip(x.shape, widths, strict=True)
        inner = x[tuple(slice(max(-a, 0), size + min(b, 0)) for size, (a, b) in ends)]
        added = [(max(a, 0), max(b, 0)) for a, b in widths]
        if mode != "constant":
            return (np.pad(inner, added, mode=mode),)  # type: ignore[call-overload]
        value = 0 if constant_value is None else np.asarray(constant_value).item()
        return (np.pad(inner, added, constant_values=value),)


class AffineGrid(OpRun):
    """theta [N, 2, 3] or [N, 3, 4], size [4] or [5]."""

    def _run(self, theta: Array, size: Array, align_corners: int = 0) -> tuple[Array]:
        grid = F.affine_grid(as_tensor(theta), size.tolist(), align_corners=bool(align_corners))
        return (grid.numpy(),)


class GridSample(OpRun):
    """x [N, C, *sizes], grid [N, *outputs, rank], of two or three spatial axes."""

    _modes: Mapping[str, str] = {"linear": "bilinear", "cubic": "bicubic"}

    def _run(
        self,
        x: Array,
        grid: Array,
        align_corners: int = 0,
        mode: str = "linear",
        padding_mode: str = "zeros",
    ) -> tuple[Array]:
        y = F.grid_sample(
            as_tensor(x),
            as_tensor(grid),
            self._modes.get(mode, mode),
            padding_mode,
            bool(align_corners),
        )
        return (y.numpy(),)


class Cast(OpRun):
    """To the type that is asked for, and to float64 in place of any smaller float.

    Types that are written in the node are double already; one that a function gets as an attribute
    arrives here.
    """

    def _run(
        self, x: Array, to: int = DOUBLE, saturate: int = 1, round_mode: str = "up"
    ) -> tuple[Array, ...]:
        if to in FLOAT_TYPES or to == DOUBLE:
            return (x.astype(np.float64),)
        return own(self, x, to=to)


KERNELS: tuple[type[OpRun], ...] = (
    AffineGrid,
    AveragePool,
    BatchNormalization,
    Cast,
    Conv,
    ConvTranspose,
    Erf,
    Gelu,
    GridSample,
    GroupNormalization,
    HardSwish,
    LRN,
    LayerNormalization,
    LogSoftmax,
    MaxPool,
    Mish,
    Pad,
    RMSNormalization,
    Softmax,
)
