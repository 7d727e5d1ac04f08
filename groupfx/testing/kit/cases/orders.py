"""Channel orders between convolutions: shuffles in each spelling, gathers, weights that are masked.

Learned groups arrive as a dense weight with zeros, as a weight times a mask, or as a mask that the
model computes from two maps.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from ..case import Case
from ..operations import Binary, DepthToSpace, SameGroup
from ..sketch import Sketch
from ..windows import Conv, ConvTranspose


def cases() -> Iterator[Case]:
    """All of them."""
    for spelling in _SPELLINGS:
        yield Case("shuffle", f"{spelling}-between", partial(_between, spelling=spelling))
        yield Case("shuffle", f"{spelling}-first", partial(_first, spelling=spelling))
    yield Case("shuffle", "view-3d", partial(_between, spelling="view", sizes=(3, 4, 5)))
    yield Case("shuffle", "view-1d", partial(_between, spelling="view", sizes=(9,)))
    yield Case("shuffle", "there-and-back", _there_and_back)
    yield Case("shuffle", "twice", _twice)
    yield Case("shuffle", "unit-of-shufflenet", _unit)
    for where in ("before", "behind", "around"):
        for groups in (1, 3):
            draw = partial(_permuted, where=where, groups=groups)
            yield Case("permutation", f"{where}-groups{groups}", draw)
    yield Case("permutation", "with-repeats", _with_repeats)
    yield Case("permutation", "left-out", _left_out)
    for mode in ("DCR", "CRD"):
        name = f"depth-to-space-{mode.lower()}"
        yield Case("permutation", f"{name}-behind", partial(_to_space, mode=mode))
        yield Case("permutation", f"{name}-gathered", partial(_to_space, mode=mode, gathered=True))
    yield Case("permutation", "of-a-transposed", _of_a_transposed)
    yield Case("permutation", "of-a-depthwise", _of_a_depthwise)
    yield Case("permutation", "over-a-sum", _over_a_sum)
    for how in ("zeros", "times-a-mask", "from-maps"):
        for kernel in (1, 3):
            yield Case(
                "learned-mask", f"{how}-{kernel}x{kernel}", partial(_masked, how=how, kernel=kernel)
            )
    yield Case("learned-mask", "from-maps-depthwise-behind", _masked_then_depthwise)
    yield Case("learned-mask", "transposed", _masked_transposed)


def _spelled(sketch: Sketch, x: str, groups: int, spelling: str) -> str:
    """A channel shuffle of `groups`."""
    _, channels, *sizes = sketch.shape(x)
    depth = channels // groups
    order: list[int] = np.arange(channels).reshape(groups, depth).T.ravel().tolist()
    if spelling == "view":
        return sketch.shuffle(x, groups)
    if spelling == "view-flat":
        flat = sketch.reshape(x, -1, groups, depth, int(np.prod(sizes)))
        return sketch.reshape(sketch.transpose(flat, 0, 2, 1, 3), -1, channels, *sizes)
    if spelling == "gather":
        return sketch.gather(x, order)
    if spelling == "strided":
        return sketch.concat(*(sketch.slice(x, i, channels, depth) for i in range(depth)))
    if spelling == "split":
        parts = sketch.split(x, *[1] * channels)
        return sketch.concat(*(parts[i] for i in order))
    # Channels last, and back.
    last = sketch.transpose(x, 0, *range(2, len(sizes) + 2), 1)
    apart = sketch.reshape(last, 0, *sizes, groups, depth)
    rank = len(sizes)
    swapped = sketch.transpose(apart, *range(rank + 1), rank + 2, rank + 1)
    joined = sketch.reshape(swapped, 0, *sizes, channels)
    return sketch.transpose(joined, 0, rank + 1, *range(1, rank + 1))


_SPELLINGS = ("view", "view-flat", "gather", "strided", "split", "channels-last")


def _between(sketch: Sketch, spelling: str, sizes: tuple[int, ...] = (5, 7)) -> None:
    x = sketch.input(4, *sizes)
    first = sketch.relu(sketch.conv(x, 12, (1,) * len(sizes), groups=2))
    y = _spelled(sketch, first, 3, spelling)
    sketch.output(sketch.conv(y, 8, (2,) * len(sizes), groups=4))


def _first(sketch: Sketch, spelling: str) -> None:
    y = _spelled(sketch, sketch.input(6, 5, 7), 2, spelling)
    sketch.output(sketch.conv(y, 9, (3, 3), groups=3))


def _there_and_back(sketch: Sketch) -> None:
    y = sketch.shuffle(sketch.conv(sketch.input(4, 5, 7), 6, (1, 1), groups=2), 2)
    sketch.output(sketch.shuffle(y, 3))


def _twice(sketch: Sketch) -> None:
    y = sketch.shuffle(sketch.conv(sketch.input(4, 5, 7), 12, (1, 1), groups=2), 2)
    sketch.output(sketch.shuffle(y, 2))


def _unit(sketch: Sketch) -> None:
    x = sketch.input(12, 5, 7)
    y = sketch.relu(sketch.norm(sketch.conv(x, 6, (1, 1), groups=3, bias=False)))
    y = sketch.shuffle(y, 3)
    y = sketch.norm(sketch.conv(y, 6, (3, 3), groups=6, bias=False, pads=(1, 1, 1, 1)))
    y = sketch.norm(sketch.conv(y, 12, (1, 1), groups=3, bias=False))
    sketch.output(sketch.relu(sketch.add(x, y)))


def _permuted(sketch: Sketch, where: str, groups: int) -> None:
    x = sketch.input(6, 5, 7)
    if where != "behind":
        x = sketch.gather(x, sketch.permutation(6))
    y = sketch.norm(sketch.conv(x, 9, (3, 3), groups=groups))
    if where != "before":
        y = sketch.gather(y, sketch.permutation(9))
    sketch.output(y)


def _with_repeats(sketch: Sketch) -> None:
    x = sketch.gather(sketch.input(4, 5, 7), (3, 0, 0, 2, 3, 1))
    y = sketch.conv(x, 6, (3, 3), groups=3)
    sketch.output(sketch.gather(y, (5, 1, 1, 4)))


def _left_out(sketch: Sketch) -> None:
    y = sketch.norm(sketch.conv(sketch.input(4, 5, 7), 8, (3, 3), groups=2))
    sketch.output(sketch.conv(sketch.gather(y, (7, 2, 5, 0)), 6, (1, 1), groups=2))


def _to_space(sketch: Sketch, mode: Any, gathered: bool = False) -> None:
    y = sketch.conv(sketch.input(4, 3, 5), 12, (1, 1), groups=2)
    if gathered:
        y = sketch.gather(y, sketch.permutation(12))
    sketch.output(sketch.conv(sketch.one(DepthToSpace(2, mode), y), 6, (2, 2), groups=3))


def _of_a_transposed(sketch: Sketch) -> None:
    x = sketch.gather(sketch.input(6, 3, 5), sketch.permutation(6))
    y = sketch.norm(sketch.transposed(x, 9, (2, 2), groups=3, strides=(2, 2)))
    sketch.output(sketch.gather(y, sketch.permutation(9)))


def _of_a_depthwise(sketch: Sketch) -> None:
    x = sketch.gather(sketch.conv(sketch.input(4, 5, 7), 6, (1, 1)), sketch.permutation(6))
    y = sketch.gather(sketch.conv(x, 6, (3, 3), groups=6), sketch.permutation(6))
    sketch.output(sketch.conv(y, 4, (1, 1), groups=2))


def _over_a_sum(sketch: Sketch) -> None:
    x = sketch.input(6, 5, 7)
    left = sketch.gather(sketch.conv(x, 6, (1, 1), groups=2), sketch.permutation(6))
    right = sketch.gather(sketch.conv(x, 6, (1, 1), groups=3), sketch.permutation(6))
    sketch.output(sketch.conv(sketch.add(left, right), 4, (1, 1), groups=2))


def _weight(sketch: Sketch, how: str, rows: int, columns: int, kernel: int) -> str:
    """A weight of which each row has three groups' zeros."""
    random = sketch.random
    mine, theirs = random.integers(0, 3, (rows, 1)), random.integers(0, 3, (1, columns))
    if how == "from-maps":
        maps = [sketch.constant(each) for each in (mine[..., None, None], theirs[..., None, None])]
        mask = sketch.one(SameGroup(sketch.dtype), *maps)
        return sketch.one(Binary("Mul"), sketch.weight(rows, columns, kernel, kernel), mask)
    same = (mine == theirs)[..., None, None].astype(sketch.dtype)
    drawn = sketch.drawn(rows, columns, kernel, kernel)
    if how == "zeros":
        return sketch.constant(drawn * same)
    return sketch.one(Binary("Mul"), sketch.constant(drawn), sketch.constant(same))


def _masked(sketch: Sketch, how: str, kernel: int) -> None:
    x = sketch.input(7, 5, 6)
    y = sketch.one(Conv(), x, _weight(sketch, how, 8, 7, kernel), sketch.weight(8))
    sketch.output(sketch.relu(sketch.norm(y)))


def _masked_then_depthwise(sketch: Sketch) -> None:
    y = sketch.one(Conv(), sketch.input(7, 5, 6), _weight(sketch, "from-maps", 8, 7, 1))
    y = sketch.relu(sketch.norm(y))
    sketch.output(sketch.conv(y, 8, (3, 3), groups=8))


def _masked_transposed(sketch: Sketch) -> None:
    x = sketch.input(7, 3, 4)
    weight = _weight(sketch, "times-a-mask", 7, 8, 3)
    sketch.output(sketch.one(ConvTranspose(strides=(2, 2)), x, weight, sketch.weight(8)))
