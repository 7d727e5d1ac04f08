"""What each target would say of a grouped convolution, in a word and in a sentence."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

# ONNX Runtime's CPU kernels keep channels in blocks of 16 (AVX-512) or 8.
_WIDE_BLOCK = 16
_NARROW_BLOCK = 8


class Numbers(Protocol):
    """What an opinion is about: a site of a model or a file; None where it is not a constant."""

    @property
    def kind(self) -> str: ...
    @property
    def dims(self) -> int | None: ...
    @property
    def groups(self) -> int | None: ...
    @property
    def in_channels(self) -> int | None: ...
    @property
    def out_channels(self) -> int | None: ...


@dataclass(frozen=True)
class Opinion:
    """A word for the table, and what it means."""

    word: str
    text: str


_UNKNOWN = Opinion("?", "its numbers are not constants of the model")

_PLINIO_OK = Opinion("ok", "taken as it is")
_PLINIO_SPLIT = Opinion("split", "refused by PIT, and counted as dense by MPS, until it is split")
_PLINIO_NO_RULE = Opinion("no rule", "it knows no transposed convolution, split or not")

_RUNS = Opinion("runs", "taken as it is")
_BLOCKED = Opinion("blocked", "stays in the blocked layout, the fast one of the CPU kernels")
_BLOCKED_8 = Opinion(
    "blocked 8", "stays in the blocked layout only on a CPU whose blocks have 8 channels"
)
_REORDERS = Opinion("reorders", "leaves the blocked layout, which takes channels in multiples of 8")


def plinio(site: Numbers) -> Opinion:
    """PLiNIO's optimisers: PIT, MPS and SuperNet."""
    if site.groups is None or site.dims is None:
        return _UNKNOWN
    if site.kind == "transposed":
        return _PLINIO_NO_RULE
    return _PLINIO_OK if site.kind == "depthwise" and site.dims < 3 else _PLINIO_SPLIT


def onnxruntime(site: Numbers) -> Opinion:
    """ONNX Runtime on a CPU; its blocked layout is for two spatial dimensions."""
    if site.groups is None or site.in_channels is None or site.out_channels is None:
        return _UNKNOWN
    if site.dims != 2 or site.kind == "transposed":
        return _RUNS
    if site.kind == "depthwise":
        block = _block(site.out_channels)
    else:
        inner, outer = site.in_channels // site.groups, site.out_channels // site.groups
        block = min(_block(inner), _block(outer))
    if block == _WIDE_BLOCK:
        return _BLOCKED
    return _BLOCKED_8 if block == _NARROW_BLOCK else _REORDERS


def _block(channels: int) -> int:
    """The largest block that divides `channels`; 1 where there is none."""
    return next((size for size in (_WIDE_BLOCK, _NARROW_BLOCK) if channels % size == 0), 1)


TARGETS: Mapping[str, Callable[[Numbers], Opinion]] = {
    "plinio": plinio,
    "onnxruntime": onnxruntime,
}
