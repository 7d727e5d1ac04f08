"""Whether a frozen form is likely to be slower than the dense convolution. A rule of thumb.

Freezing saves MACs and pays for moving channels: gathers, slices and the concatenation copy them,
and each takes a call. Measured on ONNX Runtime 1.31.1, CPU with AVX-512, one thread, float32, batch
1, channels in random unequal groups; time of the frozen layer against the dense one with the mask
folded in, the layer standing between two 1x1 convolutions:

| layer, position | bucketed, 2 / 4 / 8 groups | equal groups, gathered, 2 / 4 / 8 |
|---|---|---|
| 1x1, 64 -> 64, 28x28 | 1.47 / 1.74 / 1.95 | 1.25 / 1.20 / 1.15 |
| 1x1, 384 -> 64, 14x14 | 1.44 / 1.43 / 1.33 | 1.28 / 1.16 / 1.07 |
| 1x1, 256 -> 256, 14x14 | 1.07 / 0.87 / 0.86 | 0.93 / 0.75 / 0.67 |
| 1x1, 1024 -> 1024, 14x14 | 0.77 / 0.50 / 0.38 | 0.66 / 0.41 / 0.29 |
| 3x3, 64 -> 64, 7x7 | 1.76 / 1.36 / 1.41 | 0.93 / 0.77 / 1.23 |
| 3x3, 64 -> 64, 28x28 | 1.30 / 0.96 / 0.74 | 0.73 / 0.58 / 0.89 |
| 3x3, 128 -> 128, 14x14 | 1.07 / 0.79 / 0.61 | 0.63 / 0.43 / 0.34 |
| 3x3, 256 -> 256, 14x14 | 0.83 / 0.57 / 0.42 | 0.57 / 0.33 / 0.22 |

On 120 random layers that the rule was not read off (360 forms of them) it was right for 316; for 17
more the two times were within 10 %. It errs most (20 of 63) for 3x3 layers in equal groups.

Whole models behave alike: MobileNetV2 at 32x32 with 17 pointwise projections in 8 learned groups
takes 1.37 times as long with gathers and slices as with masked dense projections, and 0.80 times
with 8 equal groups; ResNet-18 with 3x3 convolutions in 8 learned groups 0.32 times.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError
from .blocks import BlockStructure
from .forms import FormPlan


@dataclass(frozen=True)
class _Price:
    """MACs that must be saved: for each value that is moved, and for each call more."""

    value: int
    call: int


# Read off measurements, by the way the blocks are executed: (1x1, larger kernels).
_SEVERAL = (_Price(80, 50_000), _Price(100, 200_000))
_PADDED = (_Price(60, 50_000), _Price(250, 200_000))
_GROUPED = (_Price(50, 50_000), _Price(100, 200_000))


def likely_slower(
    structure: BlockStructure,
    plan: FormPlan,
    *,
    taps: int,
    positions: int,
    input_positions: int | None = None,
) -> str | None:
    """Why `plan` is likely to be slower than dense on ONNX Runtime's CPU, or None if it is not.

    The text goes on after "likely slower than dense on ONNX Runtime: ".

    `taps` are those of the kernel (9 for 3x3), `positions` those of the output (196 for 14x14) and
    `input_positions` those of the input, where a stride makes them differ. The answer is a rule of
    thumb, read off the table of this module; measuring is better. Raises UsageError if a number is
    not positive.
    """
    read_positions = positions if input_positions is None else input_positions
    if min(taps, positions, read_positions) < 1:
        raise UsageError(
            f"taps={taps}, positions={positions}, input_positions={input_positions}: "
            "each must be at least 1"
        )
    if not plan.convs:
        return None
    gathers = [g for g in (plan.input_gather, plan.output_gather) if g.kind != "identity"]
    cut = len(plan.convs) > 1
    joined = cut or bool(plan.constants)
    # Slicing and gathering copy what is read, concatenating and gathering what is written.
    read = len(plan.input_gather.indices) if cut or plan.input_gather in gathers else 0
    written = plan.result_channels if joined or plan.output_gather in gathers else 0
    moved = read * read_positions + written * positions
    calls = len(gathers) + len(plan.convs) - 1 + cut + joined
    unequal = cut or plan.convs[0].padded
    prices = _SEVERAL if cut else _PADDED if unequal else _GROUPED
    price = prices[taps > 1]
    saved = (structure.dense_macs - plan.macs) * taps * positions
    cost = moved * price.value + calls * price.call
    if saved >= cost:
        return None
    return (
        f"it saves {saved:,} MACs a sample, but {calls} more calls and {moved:,} values moved cost "
        f"about {cost:,} (measured: {_evidence(unequal, taps)}); try form=dense"
    )


def _evidence(unequal: bool, taps: int) -> str:
    """The slowest of the measured layers of this kind, as a multiple of the dense one's time."""
    if taps > 1:
        return "1.76 times at 64 channels" if unequal else "1.23 times at 64 channels"
    return "1.37 times for a MobileNetV2" if unequal else "1.28 times for 384 -> 64"
