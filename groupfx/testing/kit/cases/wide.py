"""Channels in multiples of 8 and 16, for which runtimes have kernels and layouts of their own.

Each of them next to one that stops being such a multiple: within a group, behind a slice, in a
concat. What is between two blocked convolutions may stay blocked, or must not.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from ..case import Case
from ..sketch import Sketch


def cases() -> Iterator[Case]:
    """All of them."""
    for groups, channels, out in ((2, 32, 32), (4, 32, 64), (2, 16, 48), (2, 24, 40), (4, 16, 32)):
        draw = partial(_one, groups=groups, channels=channels, out=out)
        yield Case("wide", f"{groups}-groups-{channels}-to-{out}", draw)
    yield Case("wide", "depthwise-16", partial(_one, groups=16, channels=16, out=16))
    yield Case("wide", "depthwise-24", partial(_one, groups=24, channels=24, out=24))
    yield Case("wide", "multiplier-16-to-32", partial(_one, groups=16, channels=16, out=32))
    yield Case("wide", "dilated", partial(_one, groups=2, channels=32, out=32, dilations=(2, 2)))
    yield Case("wide", "stride", partial(_one, groups=2, channels=32, out=32, strides=(2, 2)))
    yield Case("wide", "1d", partial(_one, groups=2, channels=32, out=32, sizes=(9,)))
    yield Case("wide", "3d", partial(_one, groups=2, channels=16, out=32, sizes=(3, 4, 4)))
    yield Case("wide", "transposed", _transposed)
    yield Case("wide", "norm-relu-sum", _residual)
    yield Case("wide", "shuffle-between", _shuffled)
    yield Case("wide", "concat-of-blocked", partial(_branches, sizes=(16, 16)))
    yield Case("wide", "concat-of-unblocked", partial(_branches, sizes=(12, 20)))
    yield Case("wide", "max-pool-between", _pooled)
    yield Case("wide", "separable", _separable)
    yield Case("wide", "widths-in-turn", _chain)


def _one(
    sketch: Sketch,
    groups: int,
    channels: int,
    out: int,
    sizes: tuple[int, ...] = (6, 5),
    **window: Any,
) -> None:
    x = sketch.input(channels, *sizes)
    sketch.output(sketch.conv(x, out, (2,) * len(sizes), groups=groups, **window))


def _transposed(sketch: Sketch) -> None:
    x = sketch.input(32, 3, 4)
    sketch.output(sketch.norm(sketch.transposed(x, 32, (2, 2), groups=2, strides=(2, 2))))


def _residual(sketch: Sketch) -> None:
    x = sketch.relu(sketch.conv(sketch.input(16, 5, 6), 32, (1, 1)))
    y = sketch.norm(sketch.conv(x, 32, (3, 3), groups=2, pads=(1, 1, 1, 1)))
    sketch.output(sketch.relu(sketch.add(y, x)))


def _shuffled(sketch: Sketch) -> None:
    x = sketch.relu(sketch.conv(sketch.input(16, 5, 6), 32, (1, 1), groups=2))
    sketch.output(sketch.conv(sketch.shuffle(x, 2), 32, (1, 1), groups=2))


def _branches(sketch: Sketch, sizes: tuple[int, ...]) -> None:
    x = sketch.relu(sketch.conv(sketch.input(16, 5, 6), 32, (1, 1)))
    made = [sketch.conv(part, 16, (3, 3)) for part in sketch.split(x, *sizes)]
    sketch.output(sketch.conv(sketch.concat(*reversed(made)), 16, (1, 1), groups=2))


def _pooled(sketch: Sketch) -> None:
    x = sketch.conv(sketch.input(16, 6, 7), 32, (1, 1), groups=2)
    sketch.output(sketch.conv(sketch.max_pool(x, (2, 2)), 32, (2, 2), groups=2))


def _separable(sketch: Sketch) -> None:
    x = sketch.relu(sketch.norm(sketch.conv(sketch.input(16, 6, 5), 16, (3, 3), groups=16)))
    sketch.output(sketch.act(sketch.conv(x, 32, (1, 1)), "relu6"))


def _chain(sketch: Sketch) -> None:
    x = sketch.input(16, 5, 6)
    for out, groups in ((24, 2), (36, 12), (32, 4)):
        x = sketch.relu(sketch.conv(x, out, (2, 2), groups=groups))
    sketch.output(x)
