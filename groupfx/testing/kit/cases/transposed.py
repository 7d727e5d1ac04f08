"""Transposed convolutions, whose weight lies the other way round: inputs first, groups in them."""

from collections.abc import Iterator
from typing import Any

from ..case import Case
from ..sketch import Sketch

_SIZES: dict[int, tuple[int, ...]] = {1: (6,), 2: (4, 5), 3: (3, 2, 4)}
_KERNELS: dict[int, tuple[int, ...]] = {1: (3,), 2: (3, 2), 3: (2, 3, 1)}


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _plain()
    yield from _sizes()
    yield from _norms()


def _one(kind: str, variant: str, rank: int, channels: int, out: int, **given: Any) -> Case:
    def draw(sketch: Sketch) -> None:
        x = sketch.input(channels, *_SIZES[rank])
        kernel = given.get("kernel", _KERNELS[rank])
        window = {key: value for key, value in given.items() if key != "kernel"}
        sketch.output(sketch.transposed(x, out, kernel, **window))

    return Case(kind, variant, draw)


def _plain() -> Iterator[Case]:
    for rank in (1, 2, 3):
        strides = (2, 3, 2)[:rank]
        for bias in (True, False):
            tail = "bias" if bias else "no-bias"
            yield _one(
                "transposed", f"{rank}d-dense-{tail}", rank, 5, 3, bias=bias, strides=strides
            )
            yield _one("transposed", f"{rank}d-{tail}", rank, 6, 9, groups=3, bias=bias)
            given = {"groups": 2, "bias": bias, "strides": strides, "pads": (1, 0, 0)[:rank] * 2}
            yield _one("transposed", f"{rank}d-stride-pads-{tail}", rank, 4, 6, **given)
        yield _one("transposed", f"{rank}d-depthwise", rank, 5, 5, groups=5, strides=strides)
        yield _one("transposed", f"{rank}d-multiplier", rank, 3, 6, groups=3, strides=strides)
        given = {"dilations": (2,) * rank, "kernel": (2,) * rank}
        yield _one("transposed", f"{rank}d-dilated", rank, 4, 6, groups=2, **given)


def _sizes() -> Iterator[Case]:
    for rank in (1, 2, 3):
        strides, extra = (2, 3, 2)[:rank], (1, 2, 1)[:rank]
        for groups in (1, 3):
            given: dict[str, Any] = {"groups": groups, "strides": strides}
            name = f"{rank}d-groups{groups}"
            yield _one("output-padding", name, rank, 6, 9, output_padding=extra, **given)
        pads = (1,) * 2 * rank
        given = {
            "groups": 2,
            "strides": strides,
            "output_padding": extra,
            "pads": pads,
            "bias": False,
        }
        yield _one("output-padding", f"{rank}d-pads", rank, 4, 6, kernel=(3,) * rank, **given)
    for rank in (1, 2):
        strides = (2, 3)[:rank]
        uneven = {"pads": (1, 0)[:rank] + (0, 1)[:rank], "strides": strides}
        yield _one("transposed-sizes", f"{rank}d-asymmetric-pads", rank, 4, 6, groups=2, **uneven)
        sizes = tuple(n * s for n, s in zip(_SIZES[rank], strides, strict=True))
        given = {"groups": 2, "strides": strides, "output_shape": sizes, "kernel": (5, 4)[:rank]}
        yield _one("transposed-sizes", f"{rank}d-output-shape", rank, 4, 6, **given)
        for auto in ("SAME_UPPER", "SAME_LOWER"):
            name = f"{rank}d-{auto.lower().replace('_', '-')}"
            given = {"auto_pad": auto, "kernel": (5, 4)[:rank], "strides": strides}
            yield _one("transposed-sizes", name, rank, 6, 3, groups=3, **given)


def _norms() -> Iterator[Case]:
    for rank in (1, 2, 3):
        for groups, channels, out in ((1, 5, 3), (2, 4, 6), (5, 5, 5), (3, 3, 6)):
            for bias in (True, False):

                def draw(
                    sketch: Sketch,
                    rank: int = rank,
                    groups: int = groups,
                    channels: int = channels,
                    out: int = out,
                    bias: bool = bias,
                ) -> None:
                    x = sketch.input(channels, *_SIZES[rank])
                    y = sketch.transposed(
                        x, out, _KERNELS[rank], groups=groups, bias=bias, strides=(2,) * rank
                    )
                    sketch.output(sketch.relu(sketch.norm(y)))

                tail = "bias" if bias else "no-bias"
                yield Case("norm-behind-transposed", f"{rank}d-{channels}-to-{out}-{tail}", draw)
