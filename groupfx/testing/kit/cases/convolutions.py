"""Convolutions with groups: each rank, each attribute, prime numbers, where padding is placed."""

from collections.abc import Iterator
from typing import Any

from ..case import Case
from ..sketch import Sketch

# Distinct and mostly prime, so that swapped axes cannot cancel.
SIZES: dict[int, tuple[int, ...]] = {1: (11,), 2: (7, 9), 3: (5, 4, 6)}
KERNELS: dict[int, tuple[int, ...]] = {1: (3,), 2: (3, 2), 3: (2, 3, 1)}


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _plain()
    yield from _depthwise()
    yield from _dilated()
    yield from _uneven_pads()
    yield from _auto_pad()
    yield from _prime()


def one(kind: str, variant: str, rank: int, channels: int, out: int, **given: Any) -> Case:
    """A single convolution."""

    def draw(sketch: Sketch) -> None:
        x = sketch.input(channels, *SIZES[rank])
        kernel = given.get("kernel", KERNELS[rank])
        window = {key: value for key, value in given.items() if key != "kernel"}
        sketch.output(sketch.conv(x, out, kernel, **window))

    return Case(kind, variant, draw)


def _plain() -> Iterator[Case]:
    for rank in (1, 2, 3):
        strides, pads = (2, 3, 2)[:rank], (1, 0, 1)[:rank] * 2
        for bias in (True, False):
            tail = "bias" if bias else "no-bias"
            yield one("grouped", f"{rank}d-{tail}", rank, 6, 9, groups=3, bias=bias)
            given = {"groups": 2, "bias": bias, "strides": strides, "pads": pads}
            yield one("grouped", f"{rank}d-stride-pads-{tail}", rank, 6, 10, **given)
        pointwise = {"kernel": (1,) * rank, "groups": 4}
        yield one("grouped", f"{rank}d-pointwise", rank, 8, 12, **pointwise)
        yield one("grouped", f"{rank}d-pointwise-stride", rank, 8, 4, strides=strides, **pointwise)
        yield one("grouped", f"{rank}d-more-inputs", rank, 12, 3, groups=3)
        yield one("grouped", f"{rank}d-even-kernel", rank, 4, 6, kernel=(4, 2, 2)[:rank], groups=2)


def _depthwise() -> Iterator[Case]:
    for rank in (1, 2, 3):
        pads = (1,) * 2 * rank
        for bias in (True, False):
            tail = "bias" if bias else "no-bias"
            yield one("depthwise", f"{rank}d-{tail}", rank, 5, 5, groups=5, bias=bias, pads=pads)
            yield one("multiplier", f"{rank}d-x2-{tail}", rank, 5, 10, groups=5, bias=bias)
            yield one(
                "multiplier", f"{rank}d-x3-{tail}", rank, 3, 9, groups=3, bias=bias, pads=pads
            )
        yield one("depthwise", f"{rank}d-stride", rank, 7, 7, groups=7, strides=(2,) * rank)
        yield one("multiplier", f"{rank}d-x2-stride", rank, 4, 8, groups=4, strides=(2,) * rank)
        yield one("multiplier", f"{rank}d-x5-pointwise", rank, 2, 10, groups=2, kernel=(1,) * rank)
    # As wide as a vector unit, and one more: where blocked kernels begin and end.
    for channels in (8, 16, 17, 32, 33):
        yield one("depthwise", f"2d-{channels}-channels", 2, channels, channels, groups=channels)


def _dilated() -> Iterator[Case]:
    for rank in (1, 2, 3):
        even, uneven = (2,) * rank, (3, 2, 2)[:rank]
        kernel = (2,) * rank
        for name, dilations in (("even", even), ("uneven", uneven)):
            given: dict[str, Any] = {"dilations": dilations, "kernel": kernel}
            yield one("dilated", f"{rank}d-{name}", rank, 6, 4, groups=2, **given)
            pads = (1,) * 2 * rank
            yield one("dilated", f"{rank}d-{name}-pads", rank, 6, 9, groups=3, pads=pads, **given)
            yield one("dilated", f"{rank}d-{name}-depthwise", rank, 5, 5, groups=5, **given)
        strides = {"strides": (2,) * rank, "dilations": even, "kernel": kernel}
        yield one("dilated", f"{rank}d-stride", rank, 4, 8, groups=4, bias=False, **strides)


def _uneven_pads() -> Iterator[Case]:
    for rank in (1, 2, 3):
        begins, ends = (2, 0, 1)[:rank], (0, 1, 1)[:rank]
        for name, pads in (("begin", (*begins, *ends)), ("end", (*ends, *begins))):
            yield one("asymmetric-pads", f"{rank}d-{name}", rank, 6, 9, groups=3, pads=pads)
            given = {"pads": pads, "strides": (2,) * rank}
            yield one("asymmetric-pads", f"{rank}d-{name}-stride", rank, 4, 6, groups=2, **given)
        one_side = (0,) * rank + (2,) * rank
        yield one("asymmetric-pads", f"{rank}d-depthwise", rank, 5, 5, groups=5, pads=one_side)


def _auto_pad() -> Iterator[Case]:
    for rank in (1, 2, 3):
        for auto in ("SAME_UPPER", "SAME_LOWER", "VALID"):
            name = auto.lower().replace("_", "-")
            given: dict[str, Any] = {"auto_pad": auto, "kernel": (2, 4, 2)[:rank]}
            yield one("auto-pad", f"{rank}d-{name}", rank, 6, 4, groups=2, **given)
            strides = (2, 3, 2)[:rank]
            yield one(
                "auto-pad", f"{rank}d-{name}-stride", rank, 3, 6, groups=3, strides=strides, **given
            )
        given = {"auto_pad": "SAME_UPPER", "kernel": (2,) * rank, "dilations": (3,) * rank}
        yield one("auto-pad", f"{rank}d-same-upper-dilated", rank, 4, 4, groups=4, **given)


def _prime() -> Iterator[Case]:
    for groups in (5, 7, 11, 13):
        yield one("prime-groups", f"{groups}-of-2-to-3", 2, groups * 2, groups * 3, groups=groups)
        yield one(
            "prime-groups", f"{groups}-of-3-to-2-1d", 1, groups * 3, groups * 2, groups=groups
        )
    yield one("prime-groups", "7-of-17-pointwise", 2, 7 * 17, 7 * 3, groups=7, kernel=(1, 1))
    yield one("prime-groups", "3-of-3-3d", 3, 9, 15, groups=3)
