"""Operations that slide a window, by their definition: a sum over the taps of the kernel.

    Conv           y[n, m, o] = b[m] + sum of w[m, c, t] x[n, c', o * stride + t * dilation]
    ConvTranspose  y[n, m, i * stride + t * dilation] += w[c, m, t] x[n, c', i], then cropped

where group g of the outputs reads group g of the inputs. Sizes and pads are those of
https://onnx.ai/onnx/operators; nothing is shared with `deploy/`, which this is to be held against.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from .known import Array, Known

Sizes = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Window:
    """Where windows lie; `pads` are the begins of all axes, then the ends. Empty: 1, or 0."""

    strides: Sizes = ()
    pads: Sizes = ()
    dilations: Sizes = ()

    def of_rank(self, rank: int) -> tuple[Sizes, Sizes, Sizes]:
        """Strides, pads and dilations of `rank` axes, none of them empty."""
        ones = (1,) * rank
        return self.strides or ones, self.pads or (0,) * 2 * rank, self.dilations or ones


@dataclass(frozen=True, kw_only=True)
class Conv(Window):
    """x [N, C, *sizes], weight [M, C / groups, *kernel], perhaps bias [M]."""

    groups: int = 1
    auto_pad: str = "NOTSET"

    def define(self, x: Known, weight: Known, bias: Known | None = None) -> tuple[Known]:
        def run(values: Array, weights: Array, biases: Array | None) -> Array:
            return _convolve(
                self.placed(values.shape[2:], weights.shape[2:]), values, weights, biases
            )

        return (_summed(run, x, weight, bias, math.prod(weight.shape[1:])),)

    def placed(self, sizes: Sizes, kernel: Sizes) -> Conv:
        """The same with the pads that auto_pad stands for."""
        strides, pads, dilations = self.of_rank(len(sizes))
        if self.auto_pad.startswith("SAME"):
            rows = zip(sizes, kernel, strides, dilations, strict=True)
            extra = [max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0) for n, k, s, d in rows]
            pads = _halved(extra, more_at_end=self.auto_pad == "SAME_UPPER")
        return Conv(strides=strides, pads=pads, dilations=dilations, groups=self.groups)


@dataclass(frozen=True, kw_only=True)
class ConvTranspose(Window):
    """x [N, C, *sizes], weight [C, M / groups, *kernel], perhaps bias [M]."""

    groups: int = 1
    output_padding: Sizes = ()
    output_shape: Sizes = ()
    auto_pad: str = "NOTSET"

    def define(self, x: Known, weight: Known, bias: Known | None = None) -> tuple[Known]:
        def run(values: Array, weights: Array, biases: Array | None) -> Array:
            return _convolve_transposed(self, values, weights, biases)

        return (
            _summed(run, x, weight, bias, math.prod(weight.shape[2:]) * x.shape[1] // self.groups),
        )

    def crops(self, sizes: Sizes, kernel: Sizes) -> tuple[Sizes, Sizes]:
        """What is cut off the begin and the end of the whole result; negative ends are added to."""
        rank = len(sizes)
        strides, pads, dilations = self.of_rank(rank)
        extra = self.output_padding or (0,) * rank
        rows = zip(sizes, kernel, strides, dilations, extra, strict=True)
        whole = [(n - 1) * s + (k - 1) * d + 1 + e for n, k, s, d, e in rows]
        wanted = self.output_shape
        if self.auto_pad.startswith("SAME"):
            wanted = tuple(n * s for n, s in zip(sizes, strides, strict=True))
        if wanted:
            totals = [full - size for full, size in zip(whole, wanted, strict=True)]
            pads = _halved(totals, more_at_end=self.auto_pad == "SAME_UPPER")
        return pads[:rank], tuple(e - more for e, more in zip(pads[rank:], extra, strict=True))


@dataclass(frozen=True, kw_only=True)
class MaxPool(Window):
    """The largest of each window; what is padded never is."""

    kernel: Sizes

    def define(self, x: Known) -> tuple[Known]:
        return (x.moved(lambda values: np.max([*self._taps(values, -np.inf)], axis=0)),)

    def _taps(self, values: Array, fill: float) -> Iterator[Array]:
        window = self.of_rank(len(self.kernel))
        return (part for _, part in _windows(values, self.kernel, window, fill))


@dataclass(frozen=True, kw_only=True)
class AveragePool(Window):
    """The mean of each window, zeros of the padding included."""

    kernel: Sizes

    def define(self, x: Known) -> tuple[Known]:
        window, taps = self.of_rank(len(self.kernel)), math.prod(self.kernel)
        found = [
            sum(part for _, part in _windows(values, self.kernel, window, 0.0)) / taps
            for values in (x.value, x.magnitude)
        ]
        return (x.rounded(np.asarray(found[0]), np.asarray(found[1]), taps + 1),)


@dataclass(frozen=True)
class Pad:
    """Zeros, or `value`, around the spatial axes: the begins of all, then the ends."""

    pads: Sizes
    value: float = 0.0

    def define(self, x: Known) -> tuple[Known]:
        return (x.moved(lambda values: _padded(values, self.pads, self.value)),)


def _summed(
    run: Callable[[Array, Array, Array | None], Array],
    x: Known,
    weight: Known,
    bias: Known | None,
    products: int,
) -> Known:
    """A sum of so many products of x and weight, and a bias."""
    value = run(x.value, weight.value, None if bias is None else bias.value)
    magnitude = run(x.magnitude, weight.magnitude, None if bias is None else bias.magnitude)
    return x.rounded(value, magnitude, products + 1 + weight.terms)


def _halved(totals: list[int], *, more_at_end: bool) -> Sizes:
    small = [total // 2 for total in totals]
    large = [total - half for total, half in zip(totals, small, strict=True)]
    return (*small, *large) if more_at_end else (*large, *small)


def _padded(values: Array, pads: Sizes, fill: float) -> Array:
    rank = len(pads) // 2
    ends = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
    inner = values[
        tuple(
            slice(max(-a, 0), n + min(b, 0)) for n, (a, b) in zip(values.shape, ends, strict=True)
        )
    ]
    return np.pad(inner, [(max(a, 0), max(b, 0)) for a, b in ends], constant_values=fill)


def _windows(
    values: Array, kernel: Sizes, window: tuple[Sizes, Sizes, Sizes], fill: float
) -> Iterator[tuple[Sizes, Array]]:
    """For each tap of the kernel, what all windows see there: [N, C, *outputs]."""
    strides, pads, dilations = window
    padded = _padded(values, pads, fill)
    rows = zip(padded.shape[2:], kernel, strides, dilations, strict=True)
    counts = [(n - (k - 1) * d - 1) // s + 1 for n, k, s, d in rows]
    for tap in product(*map(range, kernel)):
        starts = [t * d for t, d in zip(tap, dilations, strict=True)]
        ends = [a + (n - 1) * s + 1 for a, n, s in zip(starts, counts, strides, strict=True)]
        spans = (slice(*each) for each in zip(starts, ends, strides, strict=True))
        yield tap, padded[_part(spans)]


def _part(last: Iterable[int | slice]) -> Any:
    """An index of the last axes alone."""
    return (..., *last)


def _convolve(conv: Conv, x: Array, weight: Array, bias: Array | None) -> Array:
    batch, groups = len(x), conv.groups
    filters = weight.reshape(groups, -1, *weight.shape[1:])
    window = conv.of_rank(x.ndim - 2)
    total = np.float64(0)
    for tap, part in _windows(x, weight.shape[2:], window, 0.0):
        inputs = part.reshape(batch, groups, -1, *part.shape[2:])
        total = total + np.einsum("ngc...,gmc->ngm...", inputs, filters[_part(tap)])
    y = np.asarray(total).reshape(batch, len(weight), *np.shape(total)[3:])
    return y if bias is None else y + bias.reshape(-1, *[1] * (x.ndim - 2))


def _convolve_transposed(conv: ConvTranspose, x: Array, weight: Array, bias: Array | None) -> Array:
    batch, groups, rank = len(x), conv.groups, x.ndim - 2
    sizes, kernel = x.shape[2:], weight.shape[2:]
    strides, _, dilations = conv.of_rank(rank)
    begins, ends = conv.crops(sizes, kernel)
    rows = [*zip(sizes, kernel, strides, dilations, strict=True)]
    whole = np.zeros(
        (batch, groups, weight.shape[1], *((n - 1) * s + (k - 1) * d + 1 for n, k, s, d in rows))
    )
    inputs = x.reshape(batch, groups, -1, *sizes)
    filters = weight.reshape(groups, -1, *weight.shape[1:])
    for tap in product(*map(range, kernel)):
        starts = [t * d for t, d in zip(tap, dilations, strict=True)]
        spans = (
            slice(a, a + (n - 1) * s + 1, s) for a, (n, _, s, _) in zip(starts, rows, strict=True)
        )
        whole[_part(spans)] += np.einsum("ngc...,gcm->ngm...", inputs, filters[_part(tap)])
    y = whole.reshape(batch, -1, *whole.shape[3:])
    y = _padded(y, tuple(-cut for cut in (*begins, *ends)), 0.0)
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)
