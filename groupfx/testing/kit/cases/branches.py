"""Convolutions side by side, as a split writes them, and concats whose parts are in another order.

A tool that fuses branches into one grouped convolution, or runs them in parallel, must keep which
part is whose.
"""

from collections.abc import Iterator, Sequence
from functools import partial

from ..case import Case
from ..sketch import Sketch


def cases() -> Iterator[Case]:
    """All of them."""
    for way in ("split", "slice", "gather"):
        for count in (2, 3):
            yield Case("branches", f"{way}-{count}", partial(_even, way=way, count=count))
        yield Case("branches", f"{way}-uneven", partial(_uneven, way=way))
    yield Case("branches", "norms-and-relu", partial(_even, way="split", count=3, norms=True))
    yield Case("branches", "transposed", _transposed)
    yield Case("branches", "grouped-inside", _grouped_inside)
    yield Case("branches", "one-left-alone", _one_left_alone)
    yield Case("branches", "shared-weight", _shared_weight)
    yield Case("branches", "other-kernels", _other_kernels)
    yield Case("branches", "one-input-one-kernel", partial(_one_input, groups=1))
    yield Case("branches", "one-input-one-kernel-groups", partial(_one_input, groups=2))
    yield Case("branches", "1d", partial(_even, way="split", count=2, sizes=(11,)))
    yield Case("branches", "3d", partial(_even, way="slice", count=2, sizes=(3, 4, 5)))
    for way in ("split", "slice"):
        yield Case(
            "permuted-concat", f"{way}-reversed", partial(_even, way=way, count=3, order=(2, 1, 0))
        )
        yield Case(
            "permuted-concat", f"{way}-rotated", partial(_even, way=way, count=3, order=(1, 2, 0))
        )
    yield Case("permuted-concat", "parts-crossed", _crossed)
    yield Case("permuted-concat", "a-part-twice", _part_twice)
    yield Case("permuted-concat", "overlapping-parts", _overlapping)
    yield Case("permuted-concat", "backwards", _backwards)
    yield Case("permuted-concat", "along-height", _along_height)
    yield Case("permuted-concat", "along-batch", _along_batch)


def _parts(sketch: Sketch, x: str, sizes: Sequence[int], way: str) -> Sequence[str]:
    if way == "split":
        return sketch.split(x, *sizes)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    spans = [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    if way == "slice":
        return [sketch.slice(x, span.start, span.stop) for span in spans]
    return [sketch.gather(x, span) for span in spans]


def _even(
    sketch: Sketch,
    way: str,
    count: int,
    *,
    norms: bool = False,
    order: Sequence[int] = (),
    sizes: tuple[int, ...] = (5, 7),
) -> None:
    x = sketch.input(2 * count, *sizes)
    kernel = (3,) * len(sizes)
    made = [sketch.conv(part, 3, kernel) for part in _parts(sketch, x, (2,) * count, way)]
    if norms:
        made = [sketch.relu(sketch.norm(branch)) for branch in made]
    sketch.output(sketch.concat(*(made[i] for i in order or range(count))))


def _uneven(sketch: Sketch, way: str) -> None:
    x = sketch.input(6, 5, 7)
    widths = (4, 2, 3)
    parts = _parts(sketch, x, (1, 3, 2), way)
    made = [sketch.conv(part, out, (3, 3)) for part, out in zip(parts, widths, strict=True)]
    sketch.output(sketch.concat(*made))


def _transposed(sketch: Sketch) -> None:
    parts = sketch.split(sketch.input(6, 3, 5), 2, 4)
    sketch.output(sketch.concat(*(sketch.transposed(p, 3, (2, 2), strides=(2, 2)) for p in parts)))


def _grouped_inside(sketch: Sketch) -> None:
    parts = sketch.split(sketch.input(8, 5, 7), 4, 4)
    sketch.output(sketch.concat(*(sketch.conv(part, 6, (3, 3), groups=2) for part in parts)))


def _one_left_alone(sketch: Sketch) -> None:
    first, second = sketch.split(sketch.input(5, 5, 7), 2, 3)
    sketch.output(sketch.concat(first, sketch.conv(second, 3, (1, 1))))


def _shared_weight(sketch: Sketch) -> None:
    from ..windows import Conv

    weight, bias = sketch.weight(3, 2, 3, 3), sketch.weight(3)
    parts = sketch.split(sketch.input(4, 5, 7), 2, 2)
    sketch.output(sketch.concat(*(sketch.one(Conv(), part, weight, bias) for part in parts)))


def _other_kernels(sketch: Sketch) -> None:
    x = sketch.input(4, 5, 7)
    first = sketch.conv(x, 4, (3, 3), groups=2, pads=(1, 1, 1, 1))
    second = sketch.conv(x, 4, (1, 1), groups=2)
    third = sketch.conv(x, 4, (3, 3), groups=4, pads=(2, 2, 2, 2), dilations=(2, 2))
    sketch.output(sketch.concat(first, second, third))


def _one_input(sketch: Sketch, groups: int) -> None:
    # Side by side these are one wider convolution; with groups, one with its filters in turn.
    x = sketch.input(4, 5, 7)
    made = [sketch.relu(sketch.conv(x, out, (3, 3), groups=groups)) for out in (4, 2, 6)]
    sketch.output(sketch.concat(*made))


def _crossed(sketch: Sketch) -> None:
    first, second, third = sketch.split(sketch.input(6, 5, 7), 2, 2, 2)
    made = [sketch.conv(part, 3, (3, 3)) for part in (third, first, second)]
    sketch.output(sketch.concat(made[1], made[0], made[2]))


def _part_twice(sketch: Sketch) -> None:
    first, second = sketch.split(sketch.input(6, 5, 7), 3, 3)
    made = [sketch.conv(part, 2, (3, 3)) for part in (second, first)]
    sketch.output(sketch.concat(made[0], made[1], made[0]))


def _overlapping(sketch: Sketch) -> None:
    x = sketch.input(6, 5, 7)
    parts = (sketch.slice(x, 0, 4), sketch.slice(x, 2, 6))
    sketch.output(sketch.concat(*(sketch.conv(part, 3, (3, 3)) for part in parts)))


def _backwards(sketch: Sketch) -> None:
    x = sketch.slice(sketch.input(6, 5, 7), 5, -7, -1)
    sketch.output(sketch.conv(x, 6, (3, 3), groups=3))


def _along_height(sketch: Sketch) -> None:
    first, second = sketch.split(sketch.input(4, 6, 7), 2, 4, axis=2)
    made = [sketch.conv(part, 4, (1, 3), groups=2) for part in (second, first)]
    sketch.output(sketch.concat(*made, axis=2))


def _along_batch(sketch: Sketch) -> None:
    first, second = sketch.split(sketch.input(4, 6, 7), 1, 1, axis=0)
    made = [sketch.conv(part, 4, (3, 3), groups=2) for part in (second, first)]
    sketch.output(sketch.concat(*made, axis=0))
