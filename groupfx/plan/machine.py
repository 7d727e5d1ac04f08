"""What a CPU does in a microsecond: the rates that the cost model reckons with.

The defaults are measured: ONNX Runtime 1.31.1 and torch 2.13.0, float32, one thread of a Zen 5 with
AVX-512, each kernel in a graph of sixty others, so that no weight was in the first two caches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

Table = tuple[tuple[float, ...], ...]
"""A row a size of the map (4, 8, 16, 32), a column for 1 to 4 blocks of filters at a time."""

_SIZES = (4, 8, 16, 32)


@dataclass(frozen=True)
class Machine:
    """A CPU as ONNX Runtime uses it. Rates are GMAC/s, bandwidths GB/s, times microseconds.

    `block` is the width of the blocked layout: 16 with AVX-512, 8 with AVX2, 0 where there is none
    (or graph optimisations are off). Kernels of it compute up to four blocks of filters at a time,
    and a row of the map at a time, a 1x1 kernel the whole map: the rates depend on both.
    `wide` is the share of these rates for kernels larger than 3x3, more of whose positions are at
    an edge and computed one by one. `direct` is the share with fewer inputs than a block,
    `direct_pointwise` the rate of 1x1 kernels there, which have no kernel of their own, `depthwise`
    that of depthwise ones.
    `plain` and `plain_pointwise` are those of matrix products, the latter half as much with
    `plain_half` filters; `unfold` is what im2col takes for a value: nanoseconds, and as much again
    by the width of the map.

    A node costs `node`. In nanoseconds a value, `move` is a copy of it; `reorder` brings it into or
    out of the blocked layout, and takes it out in `reorder_aliased` where the maps of all channels
    begin at one place of the first cache; `far` is what each of them takes, and what a product
    takes to read a value, out of a tensor of `far_bytes` or more, nothing of the kind up to
    `near_bytes`; `stream` is what a depthwise convolution of such tensors waits for each value
    where those of the model do not fit into `cache` bytes; `pick` (microseconds) finds one channel
    of a gather; `interpolate` is what a value that is interpolated between others takes longer in
    the plain layout than in the blocked one. Weights stream in at `cold` from memory, at `warm`
    where all fit into `cache`.
    """

    block: int = 16
    blocked: Table = (
        (41, 59, 80, 110),
        (66, 96, 110, 126),
        (79, 111, 122, 131),
        (92, 125, 129, 132),
    )
    pointwise: Table = (
        (70, 100, 102, 115),
        (85, 118, 118, 124),
        (88, 118, 118, 125),
        (92, 118, 118, 125),
    )
    wide: float = 0.6
    direct: float = 0.87
    direct_pointwise: float = 32
    depthwise: float = 35
    plain: float = 115
    plain_pointwise: float = 105
    plain_half: float = 9
    unfold: tuple[float, float] = (0.12, 2.4)
    node: float = 1.0
    move: float = 0.06
    reorder: float = 0.08
    reorder_aliased: float = 0.15
    interpolate: float = 0.9
    stream: float = 0.3
    far: float = 0.25
    near_bytes: int = 1 << 20
    far_bytes: int = 8 << 20
    pick: float = 0.003
    cold: float = 36
    warm: float = 200
    cache: int = 16 << 20

    @classmethod
    def with_blocks(cls, width: int) -> Machine:
        """The machine whose runtime has blocks of `width` channels, 0 for none."""
        return cls.avx2() if width == cls.avx2().block else cls(block=width)

    @classmethod
    def avx2(cls) -> Machine:
        """Registers of half the width: blocks of 8, and half the rates."""
        default = cls()
        return replace(
            default,
            block=8,
            blocked=_scaled(default.blocked, 0.5),
            pointwise=_scaled(default.pointwise, 0.5),
            direct_pointwise=default.direct_pointwise / 2,
            depthwise=default.depthwise / 2,
            plain=default.plain / 2,
            plain_pointwise=default.plain_pointwise / 2,
        )


def rate(table: Table, size: float, blocks: int) -> float:
    """The rate for `blocks` blocks of filters (1 to 4) and maps of `size` a side."""
    column = [row[blocks - 1] for row in table]
    return _between(column, math.log2(max(size, 1)) - math.log2(_SIZES[0]))


def _between(values: Sequence[float], place: float) -> float:
    """`values` at a place between two of them; the first below, the last above."""
    place = min(max(place, 0.0), len(values) - 1.0)
    low = min(int(place), len(values) - 2)
    return values[low] + (values[low + 1] - values[low]) * (place - low)


def _scaled(table: Table, factor: float) -> Table:
    return tuple(tuple(value * factor for value in row) for row in table)
