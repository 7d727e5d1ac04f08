"""What differs between files and not functions: open sizes, opsets, types, where weights are."""

from collections.abc import Iterator
from functools import partial

from ..case import Case
from ..sketch import Sketch
from ..windows import Conv, ConvTranspose

FIRST_OPSET, LAST_OPSET = 11, 21


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _open()
    yield from _opsets()
    yield from _half()
    yield from _weights()


def _open() -> Iterator[Case]:
    for which in ("batch", "sizes", "all"):
        yield Case("dynamic", f"grouped-{which}", partial(_open_conv, which=which, draw=_grouped))
        yield Case("dynamic", f"transposed-{which}", partial(_open_conv, which=which, draw=_up))
        yield Case("dynamic", f"branches-{which}", partial(_open_conv, which=which, draw=_branches))
        yield Case("dynamic", f"same-{which}", partial(_open_conv, which=which, draw=_same))
    yield Case("dynamic", "shuffle-batch", partial(_open_conv, which="batch", draw=_shuffled))


def _open_conv(sketch: Sketch, which: str, draw: object) -> None:
    declared: tuple[int | str, ...] = ("N" if which != "sizes" else 2, 4)
    declared += ("H", "W") if which != "batch" else (6, 8)
    x = sketch.input(4, 6, 8, declared=declared)
    sketch.output(draw(sketch, x))  # type: ignore[operator]
    batch = 3 if which != "sizes" else 2
    sketch.also_on((batch, 4, *((9, 7) if which != "batch" else (6, 8))))


def _grouped(sketch: Sketch, x: str) -> str:
    return sketch.relu(sketch.norm(sketch.conv(x, 6, (3, 3), groups=2, pads=(1, 1, 1, 1))))


def _up(sketch: Sketch, x: str) -> str:
    return sketch.norm(
        sketch.transposed(x, 6, (3, 3), groups=2, strides=(2, 2), output_padding=(1, 1))
    )


def _branches(sketch: Sketch, x: str) -> str:
    return sketch.concat(*(sketch.conv(part, 3, (3, 3)) for part in sketch.split(x, 2, 2)))


def _same(sketch: Sketch, x: str) -> str:
    return sketch.conv(x, 4, (3, 3), groups=4, strides=(2, 2), auto_pad="SAME_UPPER")


def _shuffled(sketch: Sketch, x: str) -> str:
    return sketch.conv(sketch.shuffle(x, 2), 6, (3, 3), groups=2)


def _opsets() -> Iterator[Case]:
    for opset in range(FIRST_OPSET, LAST_OPSET + 1):
        yield Case("opset", f"{opset}-unit", _unit, opset=opset)
        yield Case("opset", f"{opset}-transposed", _transposed_unit, opset=opset)


def _unit(sketch: Sketch) -> None:
    x = sketch.input(6, 5, 7)
    first, second = sketch.split(x, 2, 4)
    second = sketch.act(
        sketch.norm(sketch.conv(second, 4, (3, 3), groups=2, pads=(1, 1, 1, 1))), "relu6"
    )
    y = sketch.shuffle(sketch.identity(sketch.concat(second, first), "Dropout"), 2)
    sketch.output(sketch.conv(sketch.pad(y, (1, 0, 0, 1)), 6, (2, 2), groups=6))


def _transposed_unit(sketch: Sketch) -> None:
    x = sketch.identity(sketch.input(6, 3, 4))
    y = sketch.transposed(x, 9, (3, 2), groups=3, strides=(2, 2), output_padding=(1, 0))
    y = sketch.relu(sketch.norm(sketch.gather(y, sketch.permutation(9))))
    sketch.output(y, sketch.mean(y))


def _half() -> Iterator[Case]:
    drawn = {
        "grouped": _half_grouped,
        "depthwise": _half_depthwise,
        "norm": _half_norm,
        "transposed": _half_transposed,
        "branches": _half_branches,
        "shuffle": _half_shuffle,
        "mask": _half_mask,
    }
    for name, draw in drawn.items():
        yield Case("float16", name, draw, dtype="float16")


def _half_grouped(sketch: Sketch) -> None:
    sketch.output(sketch.conv(sketch.input(6, 5, 7), 9, (3, 3), groups=3))


def _half_depthwise(sketch: Sketch) -> None:
    sketch.output(sketch.conv(sketch.input(5, 5, 7), 5, (3, 3), groups=5, dilations=(2, 2)))


def _half_norm(sketch: Sketch) -> None:
    y = sketch.conv(sketch.input(4, 5, 7), 6, (1, 1), groups=2, bias=False)
    sketch.output(sketch.relu(sketch.norm(y)))


def _half_transposed(sketch: Sketch) -> None:
    sketch.output(sketch.transposed(sketch.input(4, 3, 5), 6, (2, 2), groups=2, strides=(2, 2)))


def _half_branches(sketch: Sketch) -> None:
    parts = sketch.split(sketch.input(6, 5, 7), 2, 4)
    made = [sketch.conv(part, 3, (3, 3)) for part in reversed(parts)]
    sketch.output(sketch.concat(*made))


def _half_shuffle(sketch: Sketch) -> None:
    y = sketch.shuffle(sketch.conv(sketch.input(4, 5, 7), 6, (1, 1), groups=2), 2)
    sketch.output(sketch.conv(y, 6, (1, 1), groups=3))


def _half_mask(sketch: Sketch) -> None:
    mask = (sketch.random.random((6, 4, 1, 1)) < 0.5).astype(sketch.dtype)
    weight = sketch.mul(sketch.weight(6, 4, 3, 3), sketch.constant(mask))
    sketch.output(sketch.one(Conv(), sketch.input(4, 5, 7), weight))


def _weights() -> Iterator[Case]:
    yield Case("weight", "an-input", _weight_is_input)
    yield Case("weight", "an-input-transposed", partial(_weight_is_input, transposed=True))
    yield Case("weight", "transposed-in-the-file", _weight_transposed)
    yield Case("weight", "reshaped-in-the-file", _weight_reshaped)
    yield Case("weight", "scaled-by-an-input", _weight_scaled)
    yield Case("weight", "shared-by-two", _weight_shared)
    yield Case("weight", "shared-with-a-transposed", _weight_both_ways)
    yield Case("weight", "bias-is-an-input", _bias_is_input)
    yield Case("weight", "concatenated", _weight_concatenated)


def _weight_is_input(sketch: Sketch, transposed: bool = False) -> None:
    x = sketch.input(4, 5, 7)
    weight = sketch.input(values=sketch.drawn(4, 2, 3, 3))
    kind = ConvTranspose if transposed else Conv
    sketch.output(sketch.one(kind(groups=2), x, weight))


def _weight_transposed(sketch: Sketch) -> None:
    weight = sketch.transpose(sketch.weight(3, 3, 2, 6), 3, 2, 0, 1)
    sketch.output(sketch.one(Conv(groups=3), sketch.input(6, 5, 7), weight))


def _weight_reshaped(sketch: Sketch) -> None:
    weight = sketch.reshape(sketch.weight(2, 3, 18), 6, 2, 3, 3)
    sketch.output(sketch.one(Conv(groups=2), sketch.input(4, 5, 7), weight))


def _weight_scaled(sketch: Sketch) -> None:
    x = sketch.input(4, 5, 7)
    scale = sketch.input(values=sketch.drawn(6, 1, 1, 1))
    weight = sketch.mul(sketch.weight(6, 2, 3, 3), scale)
    sketch.output(sketch.one(Conv(groups=2), x, weight))


def _weight_shared(sketch: Sketch) -> None:
    weight = sketch.weight(4, 2, 3, 3)
    y = sketch.norm(sketch.one(Conv(groups=2, pads=(1,) * 4), sketch.input(4, 5, 7), weight))
    sketch.output(sketch.one(Conv(groups=2), y, weight))


def _weight_both_ways(sketch: Sketch) -> None:
    weight = sketch.weight(4, 2, 3, 3)
    y = sketch.one(Conv(groups=2), sketch.input(4, 5, 7), weight)
    sketch.output(sketch.norm(sketch.one(ConvTranspose(groups=2), y, weight)))


def _bias_is_input(sketch: Sketch) -> None:
    x = sketch.input(4, 5, 7)
    bias = sketch.input(values=sketch.drawn(6))
    sketch.output(sketch.norm(sketch.one(Conv(groups=2), x, sketch.weight(6, 2, 3, 3), bias)))


def _weight_concatenated(sketch: Sketch) -> None:
    weight = sketch.concat(sketch.weight(2, 2, 3, 3), sketch.weight(4, 2, 3, 3), axis=0)
    sketch.output(sketch.one(Conv(groups=2), sketch.input(4, 5, 7), weight))
