"""Sketches of values: small, and their distance is that of the values.

Each number of a tensor is added, with a sign drawn for its place, to one of 256 buckets. This is
linear, so the sketch of a difference is the difference of the sketches, and the squared length of a
sketch is that of the value in expectation (the count sketch: Charikar, Chen and Farach-Colton,
Finding frequent items in data streams, 2002). All values of a large model are held as sketches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

BUCKETS = 256
_SEED = 5
# A sign for each place; a tensor with more of them takes them again.
_SIGNS = 1 << 20


@dataclass(frozen=True)
class Sketch:
    """Shape and kind of a value, and its sketch; `broken` counts what is not finite."""

    shape: tuple[int, ...]
    kind: str
    buckets: Array
    broken: int

    @property
    def size(self) -> float:
        """About the length of the value as a vector."""
        return float(np.linalg.norm(self.buckets))


def sketched(value: npt.NDArray[np.generic]) -> Sketch:
    """The sketch of a tensor of numbers."""
    flat = np.ascontiguousarray(value).reshape(-1).astype(np.float64, copy=False)
    finite = np.isfinite(flat)
    broken = flat.size - int(finite.sum())
    flat = np.where(finite, flat, 0.0) if broken else flat
    total = np.zeros(BUCKETS)
    for start in range(0, flat.size, _SIGNS):
        part = flat[start : start + _SIGNS]
        signed = part * _signs()[: part.size]
        whole = signed.size - signed.size % BUCKETS
        total += signed[:whole].reshape(-1, BUCKETS).sum(0)
        total[: signed.size - whole] += signed[whole:]
    kind = "f" if value.dtype.kind == "f" else "i"
    return Sketch(tuple(value.shape), kind, total, broken)


@cache
def _signs() -> Array:
    drawn = np.random.default_rng(_SEED).integers(0, 2, _SIGNS)
    signs: Array = np.where(drawn == 1, 1.0, -1.0)
    return signs


Sketches = Sequence[Sketch]
"""One value in each of the runs."""


def distance(one: Sketches, other: Sketches) -> float:
    """The largest difference of two values in a run by their size, infinite for other shapes."""
    return max(map(_apart, one, other), default=np.inf)


def _apart(one: Sketch, other: Sketch) -> float:
    if (one.shape, one.kind, one.broken) != (other.shape, other.kind, other.broken):
        return np.inf
    size = max(one.size, other.size)
    with np.errstate(all="ignore"):
        off = float(np.linalg.norm(one.buckets - other.buckets))
    if off == 0:
        return 0.0
    return off / size if np.isfinite(off) else np.inf


def is_zero(value: Sketches) -> bool:
    """Whether a value is nothing but zeros."""
    return all(sketch.size == 0 and not sketch.broken for sketch in value)


class SketchBook:
    """The sketches of one side, and which of them are near a value."""

    def __init__(self, sketches: Iterable[tuple[str, Sketches]]) -> None:
        self.of = dict(sketches)
        self._by_shape: dict[tuple[tuple[int, ...], ...], list[str]] = {}
        for name, found in self.of.items():
            self._by_shape.setdefault(_shapes(found), []).append(name)

    def near(self, value: Sketches, share: float) -> list[tuple[float, str]]:
        """Distance and name of the values that are not farther than `share`, in their order."""
        names = self._by_shape.get(_shapes(value), [])
        found = [(distance(value, self.of[name]), name) for name in names]
        return [pair for pair in found if pair[0] <= share]


def _shapes(value: Sketches) -> tuple[tuple[int, ...], ...]:
    return tuple(sketch.shape for sketch in value)
