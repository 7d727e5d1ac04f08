"""Quantised convolutions with groups: QDQ around them, QLinearConv, ConvInteger.

Scales are chosen so that what is rounded falls on thirds of a step: far from every tie, exact in
float32, and one right answer to the bit. Whole numbers are small, so that no instruction that adds
pairs of products saturates.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np

from ..case import Case
from ..integers import ConvInteger, Dequantize, QLinearConv, Quantize, ToFloat
from ..known import Array
from ..sketch import BATCH, Sketch
from ..windows import Conv, ConvTranspose

_X_SCALE, _W_SCALE = 1 / 16, 1 / 32
# A result is a whole number of products of the two scales, so thirds of a step, never a half.
_Y_SCALE = 3 * _X_SCALE * _W_SCALE
_LARGEST = 7


def cases() -> Iterator[Case]:
    """All of them."""
    for unsigned in (True, False):
        sign = "uint8" if unsigned else "int8"
        for name, groups, channels, out in (
            ("grouped", 2, 6, 4),
            ("depthwise", 5, 5, 5),
            ("multiplier", 3, 3, 6),
        ):
            draw = partial(_qdq, unsigned=unsigned, groups=groups, channels=channels, out=out)
            yield Case("qdq", f"{name}-{sign}", draw)
            each = partial(draw, each_channel=True)
            yield Case("qdq", f"{name}-{sign}-scale-a-channel", each)
        yield Case("qlinear", f"grouped-{sign}", partial(_qlinear, unsigned=unsigned, groups=2))
        yield Case("qlinear", f"depthwise-{sign}", partial(_qlinear, unsigned=unsigned, groups=6))
        draw = partial(_qlinear, unsigned=unsigned, groups=3, each_channel=True)
        yield Case("qlinear", f"grouped-{sign}-scale-a-channel", draw)
    yield Case("qlinear", "integer-grouped", partial(_conv_integer, groups=2))
    yield Case("qlinear", "integer-depthwise", partial(_conv_integer, groups=4))
    yield Case("qdq", "1d", partial(_qdq, unsigned=True, groups=2, channels=4, out=6, sizes=(9,)))
    yield Case(
        "qdq", "dilated", partial(_qdq, unsigned=True, groups=2, channels=4, out=6, dilation=2)
    )
    yield Case(
        "qdq", "behind-relu", partial(_qdq, unsigned=True, groups=2, channels=4, out=6, relu=True)
    )
    yield Case("qdq", "weights-alone", _weights_alone)
    yield Case("qdq", "transposed", partial(_transposed, each_channel=False))
    yield Case("qdq", "transposed-scale-an-output", partial(_transposed, each_channel=True))
    yield Case("qdq", "two-convolutions", _two)
    yield Case("qdq", "concat-of-branches", _branches)


def _activations(sketch: Sketch, *sizes: int) -> Array:
    """Floats a quarter of a step off whole multiples of the scale."""
    whole = sketch.random.integers(-_LARGEST, _LARGEST + 1, (BATCH, *sizes))
    off = sketch.random.choice((-0.25, 0.0, 0.25), whole.shape)
    found: Array = ((whole + off) * _X_SCALE).astype("float32")
    return found


def _float(sketch: Sketch, *values: float) -> str:
    return sketch.constant(np.array(values if len(values) > 1 else values[0], "float32"))


def _zero(sketch: Sketch, unsigned: bool, count: int = 0) -> str:
    dtype, value = ("uint8", 128) if unsigned else ("int8", 0)
    return sketch.constant(np.full((count,) if count else (), value, dtype))


def _through(sketch: Sketch, x: str, scale: float, unsigned: bool) -> str:
    """Quantize and Dequantize with one scale."""
    names = (_float(sketch, scale), _zero(sketch, unsigned))
    return sketch.one(Dequantize(), sketch.one(Quantize(), x, *names), *names)


def _whole(sketch: Sketch, *shape: int, dtype: str = "int8") -> Array:
    found: Array = sketch.random.integers(-_LARGEST, _LARGEST + 1, shape).astype(dtype)
    return found


def _weight(sketch: Sketch, shape: tuple[int, ...], axis: int, each_channel: bool) -> str:
    """An int8 weight behind a Dequantize."""
    if not each_channel:
        return _dequantized(sketch, _whole(sketch, *shape), [_W_SCALE], axis)
    return _dequantized(sketch, _whole(sketch, *shape), _scales(shape[axis]), axis)


def _scales(count: int) -> list[float]:
    return [_W_SCALE * 2 ** (i % 3) for i in range(count)]


def _dequantized(sketch: Sketch, whole: Array, scales: list[float], axis: int) -> str:
    several = len(scales) > 1
    zero = sketch.constant(np.zeros((len(scales),) if several else (), whole.dtype))
    names = (sketch.constant(whole), _float(sketch, *scales), zero)
    return sketch.one(Dequantize(axis=axis if several else 1), *names)


def _bias(sketch: Sketch, count: int) -> str:
    """A bias in multiples of the product of any two scales, as an integer kernel adds it."""
    step = _X_SCALE * max(_scales(3))
    return sketch.constant((_whole(sketch, count, dtype="int32") * step).astype("float32"))


def _qdq(
    sketch: Sketch,
    unsigned: bool,
    groups: int,
    channels: int,
    out: int,
    *,
    each_channel: bool = False,
    sizes: tuple[int, ...] = (5, 6),
    dilation: int = 1,
    relu: bool = False,
) -> None:
    rank = len(sizes)
    x = sketch.input(channels, *sizes, values=_activations(sketch, channels, *sizes))
    x = _through(sketch, x, _X_SCALE, unsigned)
    weight = _weight(sketch, (out, channels // groups, *[2] * rank), 0, each_channel)
    conv = Conv(groups=groups, dilations=(dilation,) * rank, pads=(1, 0)[:rank] * 2)
    y = sketch.one(conv, x, weight, _bias(sketch, out))
    if relu:
        y = sketch.relu(y)
    sketch.output(_through(sketch, y, _Y_SCALE, unsigned))


def _weights_alone(sketch: Sketch) -> None:
    x = sketch.input(4, 5, 6)
    weight = _weight(sketch, (6, 2, 3, 3), 0, True)
    sketch.output(sketch.one(Conv(groups=2), x, weight))


def _transposed(sketch: Sketch, each_channel: bool) -> None:
    x = sketch.input(4, 3, 5, values=_activations(sketch, 4, 3, 5))
    x = _through(sketch, x, _X_SCALE, True)
    # One scale an output of a group: all groups share them.
    weight = _weight(sketch, (4, 3, 2, 2), 1, each_channel)
    y = sketch.one(ConvTranspose(groups=2, strides=(2, 2)), x, weight, _bias(sketch, 6))
    sketch.output(_through(sketch, y, _Y_SCALE, True))


def _two(sketch: Sketch) -> None:
    x = sketch.input(4, 5, 6, values=_activations(sketch, 4, 5, 6))
    x = _through(sketch, x, _X_SCALE, True)
    y = sketch.one(Conv(groups=2), x, _weight(sketch, (6, 2, 2, 2), 0, True), _bias(sketch, 6))
    y = _through(sketch, sketch.relu(y), _Y_SCALE, True)
    sketch.output(sketch.one(Conv(groups=3), y, _weight(sketch, (6, 2, 1, 1), 0, False)))


def _branches(sketch: Sketch) -> None:
    x = sketch.input(4, 5, 6, values=_activations(sketch, 4, 5, 6))
    parts = sketch.split(_through(sketch, x, _X_SCALE, True), 2, 2)
    made = [sketch.one(Conv(), part, _weight(sketch, (3, 2, 2, 2), 0, False)) for part in parts]
    y = sketch.concat(*reversed(made))
    sketch.output(_through(sketch, y, _Y_SCALE, True))


def _qlinear(sketch: Sketch, unsigned: bool, groups: int, each_channel: bool = False) -> None:
    dtype, middle = ("uint8", 128) if unsigned else ("int8", 0)
    whole = _whole(sketch, BATCH, 6, 5, 6, dtype="int16") + middle
    x = sketch.input(6, 5, 6, values=whole.astype(dtype))
    scales = _scales(6) if each_channel else [_W_SCALE]
    weight = sketch.constant(_whole(sketch, 6, 6 // groups, 2, 2))
    w_zero = sketch.constant(np.zeros((6,) if each_channel else (), "int8"))
    reads = (
        *(x, _float(sketch, _X_SCALE), _zero(sketch, unsigned)),
        *(weight, _float(sketch, *scales), w_zero),
        *(_float(sketch, _Y_SCALE), _zero(sketch, unsigned)),
        sketch.constant(_whole(sketch, 6, dtype="int32")),
    )
    sketch.output(sketch.one(QLinearConv(Conv(groups=groups, pads=(1, 0, 0, 1))), *reads))


def _conv_integer(sketch: Sketch, groups: int) -> None:
    whole = (_whole(sketch, BATCH, 4, 5, 6, dtype="int16") + 128).astype("uint8")
    x = sketch.input(4, 5, 6, values=whole)
    weight = sketch.constant(
        (_whole(sketch, 8, 4 // groups, 2, 2, dtype="int16") + 128).astype("uint8")
    )
    y = sketch.one(
        ConvInteger(Conv(groups=groups)), x, weight, _zero(sketch, True), _zero(sketch, True)
    )
    sketch.output(sketch.one(ToFloat(), y))
