"""What a tool folds into a convolution: norms, factors, constants, activations, pads, sums.

Each of them next to one that looks the same and must not be folded, or not in the same way: a norm
in front of padding, a constant along the width that has as many numbers as there are channels, a
value that somebody else reads.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from ..case import Case
from ..operations import PRelu
from ..sketch import Sketch


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _norms()
    yield from _constants()
    yield from _activations()
    yield from _pads()
    yield from _sums()


def _grouped(sketch: Sketch, x: str, *, out: int = 6, groups: int = 2, **given: Any) -> str:
    return sketch.conv(x, out, (3, 3), groups=groups, pads=(1, 1, 1, 1), **given)


def _norms() -> Iterator[Case]:
    shapes = {1: (9,), 2: (5, 7), 3: (3, 4, 5)}
    for rank, sizes in shapes.items():
        for groups, bias in ((1, True), (3, False), (3, True), (6, False)):
            draw = partial(_norm_behind, sizes=sizes, groups=groups, bias=bias)
            tail = "bias" if bias else "no-bias"
            yield Case("norm-behind", f"{rank}d-groups{groups}-{tail}", draw)
    yield Case("norm-behind", "value-read-twice", _norm_behind_shared)
    yield Case("norm-behind", "two-norms", _two_norms)
    yield Case("norm-behind", "over-a-concat", _norm_over_concat)
    yield Case("norm-behind", "over-a-shuffle", _norm_over_shuffle)
    for groups in (1, 2):
        yield Case(
            "norm-before", f"groups{groups}-pads", partial(_norm_before, groups=groups, pad=1)
        )
        yield Case("norm-before", f"groups{groups}", partial(_norm_before, groups=groups, pad=0))
        yield Case(
            "norm-before", f"groups{groups}-transposed", partial(_norm_before_up, groups=groups)
        )


def _norm_behind(sketch: Sketch, sizes: tuple[int, ...], groups: int, bias: bool) -> None:
    x = sketch.input(6, *sizes)
    y = sketch.conv(x, 6, (2,) * len(sizes), groups=groups, bias=bias)
    sketch.output(sketch.relu(sketch.norm(y)))


def _norm_behind_shared(sketch: Sketch) -> None:
    y = _grouped(sketch, sketch.input(4, 5, 7))
    sketch.output(sketch.norm(y), sketch.relu(y))


def _two_norms(sketch: Sketch) -> None:
    sketch.output(sketch.norm(sketch.norm(_grouped(sketch, sketch.input(4, 5, 7)))))


def _norm_over_concat(sketch: Sketch) -> None:
    first, second = sketch.split(sketch.input(5, 5, 7), 2, 3)
    parts = (sketch.conv(first, 4, (1, 1)), sketch.conv(second, 3, (1, 1)))
    sketch.output(sketch.norm(sketch.concat(*parts)))


def _norm_over_shuffle(sketch: Sketch) -> None:
    y = _grouped(sketch, sketch.input(4, 5, 7))
    sketch.output(sketch.norm(sketch.shuffle(y, 2)))


def _norm_before(sketch: Sketch, groups: int, pad: int) -> None:
    x = sketch.norm(sketch.input(4, 5, 7))
    sketch.output(sketch.conv(x, 6, (3, 3), groups=groups, pads=(pad,) * 4))


def _norm_before_up(sketch: Sketch, groups: int) -> None:
    x = sketch.norm(sketch.input(4, 3, 5))
    sketch.output(sketch.transposed(x, 6, (3, 2), groups=groups, strides=(2, 2)))


_CONSTANTS: dict[str, tuple[int, ...]] = {
    "a-channel": (1, 6, 1, 1),
    "a-channel-3d": (6, 1, 1),
    "scalar": (),
    "one": (1, 1, 1, 1),
    "along-width": (6,),
    "along-height": (6, 1),
    "everywhere": (1, 6, 6, 6),
}


def _constants() -> Iterator[Case]:
    for kind in ("add", "mul"):
        for where, shape in _CONSTANTS.items():
            draw = partial(_constant_behind, kind=kind, shape=shape)
            yield Case("constant-behind", f"{kind}-{where}", draw)
        yield Case("constant-behind", f"{kind}-transposed", partial(_constant_up, kind=kind))
    yield Case("constant-behind", "mul-then-add", _mul_then_add)
    yield Case("constant-behind", "mul-before-padding", _mul_before)
    yield Case("constant-behind", "add-before-padding", _add_before)


def _constant_behind(sketch: Sketch, kind: str, shape: tuple[int, ...]) -> None:
    y = sketch.conv(sketch.input(4, 6, 6), 6, (1, 1), groups=2)
    sketch.output(getattr(sketch, kind)(y, sketch.weight(*shape)))


def _constant_up(sketch: Sketch, kind: str) -> None:
    y = sketch.transposed(sketch.input(4, 3, 5), 6, (2, 2), groups=2, strides=(2, 2))
    sketch.output(getattr(sketch, kind)(y, sketch.weight(1, 6, 1, 1)))


def _mul_then_add(sketch: Sketch) -> None:
    y = sketch.mul(_grouped(sketch, sketch.input(4, 5, 7), bias=False), sketch.weight(1, 6, 1, 1))
    sketch.output(sketch.relu(sketch.add(y, sketch.weight(1, 6, 1, 1))))


def _mul_before(sketch: Sketch) -> None:
    x = sketch.mul(sketch.input(4, 5, 7), sketch.weight(1, 4, 1, 1))
    sketch.output(_grouped(sketch, x))


def _add_before(sketch: Sketch) -> None:
    x = sketch.add(sketch.input(4, 5, 7), sketch.weight(1, 4, 1, 1))
    sketch.output(_grouped(sketch, x))


def _activations() -> Iterator[Case]:
    for kind in ("relu", "relu6", "leaky_relu"):
        for groups in (2, 4):
            draw = partial(_activation, kind=kind, groups=groups)
            yield Case("activation-behind", f"{kind}-groups{groups}", draw)
    yield Case("activation-behind", "relu-read-twice", _activation_shared)
    yield Case("activation-behind", "relu-transposed", _activation_up)
    yield Case("activation-behind", "prelu-groups2", partial(_prelu, groups=2))
    yield Case("activation-behind", "prelu-groups4", partial(_prelu, groups=4))


def _activation(sketch: Sketch, kind: str, groups: int) -> None:
    y = _grouped(sketch, sketch.input(4, 5, 7), out=8, groups=groups)
    sketch.output(sketch.act(y, kind))


def _prelu(sketch: Sketch, groups: int) -> None:
    y = _grouped(sketch, sketch.input(4, 5, 7), out=8, groups=groups)
    sketch.output(sketch.one(PRelu(), y, sketch.weight(8, 1, 1)))


def _activation_shared(sketch: Sketch) -> None:
    y = _grouped(sketch, sketch.input(4, 5, 7))
    sketch.output(sketch.add(sketch.relu(y), y))


def _activation_up(sketch: Sketch) -> None:
    y = sketch.transposed(sketch.input(4, 3, 5), 6, (2, 2), groups=2, strides=(2, 2))
    sketch.output(sketch.act(y, "relu6"))


def _pads() -> Iterator[Case]:
    for name, pads in (
        ("even", (1, 1, 1, 1)),
        ("uneven", (2, 0, 0, 1)),
        ("cropping", (-1, 0, 0, -2)),
    ):
        yield Case("pad-before", name, partial(_pad_before, pads=pads, value=0.0))
    yield Case("pad-before", "of-ones", partial(_pad_before, pads=(1, 1, 1, 1), value=1.0))
    yield Case("pad-before", "behind-relu", _pad_behind_relu)
    yield Case("pad-before", "then-max-pool", _pad_max_pool)


def _pad_before(sketch: Sketch, pads: tuple[int, ...], value: float) -> None:
    x = sketch.pad(sketch.input(4, 6, 7), pads, value)
    sketch.output(sketch.conv(x, 6, (3, 2), groups=2, pads=(0, 1, 1, 0)))


def _pad_behind_relu(sketch: Sketch) -> None:
    x = sketch.relu(_grouped(sketch, sketch.input(4, 6, 7)))
    sketch.output(sketch.conv(sketch.pad(x, (1, 1, 0, 0)), 6, (2, 2), groups=3))


def _pad_max_pool(sketch: Sketch) -> None:
    # Zeros of a Pad take part in the maximum, those of a pooling do not.
    x = sketch.add(_grouped(sketch, sketch.input(4, 6, 7)), sketch.constant(_minus_nine(sketch)))
    sketch.output(sketch.max_pool(sketch.pad(x, (1, 1, 1, 1)), (3, 3)))


def _minus_nine(sketch: Sketch) -> Any:
    return (abs(sketch.drawn(1)) * 0 - 99).astype(sketch.dtype)


def _sums() -> Iterator[Case]:
    yield Case("residual", "add-relu", _residual)
    yield Case("residual", "add-itself", _residual_twice)
    yield Case("residual", "two-convolutions", _two_sums)
    yield Case("residual", "depthwise-then-pointwise", _separable)
    yield Case("residual", "grouped-then-pooled", _pooled)
    yield Case("residual", "grouped-then-linear", _classifier)
    yield Case("residual", "pointwise-twice", _pointwise_twice)
    yield Case("residual", "gate", _gate)
    yield Case("residual", "gate-over-a-shuffle", partial(_gate, shuffled=True))


def _residual(sketch: Sketch) -> None:
    x = sketch.input(6, 5, 7)
    sketch.output(sketch.relu(sketch.add(sketch.norm(_grouped(sketch, x)), x)))


def _residual_twice(sketch: Sketch) -> None:
    y = _grouped(sketch, sketch.input(4, 5, 7))
    sketch.output(sketch.relu(sketch.add(y, y)))


def _two_sums(sketch: Sketch) -> None:
    x = sketch.input(4, 5, 7)
    sketch.output(sketch.add(_grouped(sketch, x), _grouped(sketch, x, groups=1, bias=False)))


def _separable(sketch: Sketch) -> None:
    x = sketch.input(5, 7, 9)
    y = sketch.relu(sketch.norm(sketch.conv(x, 5, (3, 3), groups=5, bias=False)))
    sketch.output(sketch.norm(sketch.conv(y, 7, (1, 1), bias=False)))


def _pooled(sketch: Sketch) -> None:
    y = sketch.max_pool(_grouped(sketch, sketch.input(4, 6, 7)), (2, 2), strides=(2, 2))
    sketch.output(sketch.average_pool(y, (2, 2), pads=(1, 1, 1, 1)))


def _classifier(sketch: Sketch) -> None:
    y = sketch.mean(sketch.relu(_grouped(sketch, sketch.input(4, 5, 7))))
    sketch.output(sketch.linear(sketch.reshape(y, 0, -1), 5))


def _pointwise_twice(sketch: Sketch) -> None:
    y = sketch.conv(sketch.input(4, 5, 7), 6, (1, 1), groups=2)
    sketch.output(sketch.conv(y, 9, (1, 1), groups=3))


def _gate(sketch: Sketch, shuffled: bool = False) -> None:
    y = sketch.relu(_grouped(sketch, sketch.input(4, 5, 7)))
    squeezed = sketch.act(sketch.conv(sketch.mean(y), 4, (1, 1), groups=2), "leaky_relu")
    y = sketch.mul(y, sketch.conv(squeezed, 6, (1, 1), groups=2))
    sketch.output(sketch.shuffle(y, 3) if shuffled else y)
