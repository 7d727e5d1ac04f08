"""ONNX Runtime on a CPU. It runs grouped convolutions as they are; only masks cost it time."""

from typing import TYPE_CHECKING

from . import Opinion, Target

if TYPE_CHECKING:
    from ..convs.spec import ConvSpec

# The CPU kernels keep channels in blocks of 16 (AVX-512) or 8.
_WIDE_BLOCK = 16
_NARROW_BLOCK = 8

_RUNS = Opinion("runs", "taken as it is")
_BLOCKED = Opinion("blocked", "stays in the blocked layout, the fast one of the CPU kernels")
_BLOCKED_8 = Opinion(
    "blocked 8", "stays in the blocked layout only on a CPU whose blocks have 8 channels"
)
_REORDERS = Opinion("reorders", "leaves the blocked layout, which takes channels in multiples of 8")


def opinion(conv: "ConvSpec") -> Opinion:
    """Whether it stays in the blocked layout, which is for two spatial dimensions."""
    if conv.dims != 2 or conv.kind == "transposed":
        return _RUNS
    if conv.kind == "depthwise":
        block = _block(conv.out_channels)
    else:
        sides = conv.in_channels // conv.groups, conv.out_channels // conv.groups
        block = min(map(_block, sides))
    if block == _WIDE_BLOCK:
        return _BLOCKED
    return _BLOCKED_8 if block == _NARROW_BLOCK else _REORDERS


def _block(channels: int) -> int:
    """The largest block that divides `channels`; 1 where there is none."""
    return next((size for size in (_WIDE_BLOCK, _NARROW_BLOCK) if channels % size == 0), 1)


TARGET = Target(
    "onnxruntime",
    place=2,
    passes=("freeze-learned-groups",),
    opinion=opinion,
    forms="fastest",
)
