"""Inputs for one region, at the sizes that show most for the least work.

Spatial sizes are small primes, a different one in each dimension, and large enough that every tap
of the kernel meets data; the original region decides which sizes are possible at all.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..errors import InternalError
from .bounds import ConvCalls, ConvRecorder
from .region import RegionCopy

# First sizes to try, until one is not too small for the region's kernels.
_LADDER = (2, 5, 11, 23, 47, 97, 193)
_BATCHES = (2, 3)
_RUNS = 2

# Beyond what examples and checks are made with, where something could depend on it.
_LARGE_BATCH = 5
_LARGE_SIZE = 41
_LARGE_NUMBERS = 2**20

_NOT_TAKEN = (RuntimeError, ValueError, IndexError, TypeError, ArithmeticError)
"""What a region raises for sizes that it is not made for: a window that is larger divides by 0."""

Values = tuple[Any, ...]

Draw = Callable[[tuple[int, ...]], Tensor]
"""Makes the numbers of one input."""


@dataclass(frozen=True)
class Size:
    """Batch and spatial sizes of a run; None is the example's own."""

    batch: int | None = None
    spatial: tuple[int, ...] | None = None


class Sampler:
    """Makes values for the inputs of a region.

    `examples` has one entry for each input: the shape of a floating tensor (a tuple of integers), a
    tensor whose shape and kind are taken (and, if it is not floating, its values too), or anything
    else, which is passed on. `dtype` is that of inputs that are given as a shape. The axes in
    `kept`, of which 0 is the batch, have the sizes of the examples.
    """

    def __init__(
        self,
        examples: Sequence[Any],
        seed: int,
        dtype: torch.dtype,
        kept: frozenset[int] = frozenset(),
    ) -> None:
        self._kept = kept
        self._examples = [_Shape(e) if _is_shape(e) else e for e in examples]
        self._generator = torch.Generator().manual_seed(seed)
        self._dtype = dtype
        shapes = [s for s in map(_floating_shape, self._examples) if s is not None]
        # A number alone, such as a weight of a sum, tells no batch.
        self._main = next(filter(None, shapes), shapes[0] if shapes else None)

    def sizes(
        self, original: RegionCopy, *, any_size: bool = False
    ) -> tuple[list[Size], ConvCalls]:
        """Up to two sizes that `original` takes in eval mode, and what its convolutions are.

        `any_size` says that nothing in it asks for one, so that none has to be tried that is as
        large as its kernels. Raises the error of the last try if it takes none, and InternalError
        if its value is not a tensor.
        """
        first, calls = self._first(original)
        taken: list[Size] = []
        if any_size and calls.reach and self._rank and not calls.transposed:
            return list(islice(self._possible(calls), _RUNS)), calls
        for size in self._possible(calls):
            with contextlib.suppress(*_NOT_TAKEN):
                if self._output(original, size).numel():
                    taken.append(size)
            if len(taken) == _RUNS:
                break
        return taken or [first], calls

    def large_sizes(self, calls: ConvCalls, *, all_sides: bool = True) -> Iterator[Size]:
        """Sizes beyond the usual ones: the first that a region takes is to be used.

        A large batch, and the last spatial dimension large, or, where that is little work and asked
        for, every one.
        """
        reach, rank = self._reach(calls), self._rank
        own = (self._main or ())[2:] if rank else ()
        least = [max(_LARGE_SIZE, r) for r in reach]
        channels = (self._main or (1, 1))[1] if rank else 1
        wide = _distinct_primes(least, own)
        numbers = _LARGE_BATCH * channels
        for size in wide:
            numbers *= size
        if rank and all_sides and numbers <= _LARGE_NUMBERS:
            yield Size(_LARGE_BATCH, wide)
        if rank:
            small = _distinct_primes((*reach[:-1], least[-1]), own)
            yield Size(_LARGE_BATCH, small)
        yield Size(_LARGE_BATCH)
        yield Size()

    def values(self, size: Size, draw: Draw | None = None) -> Values:
        """Values of a size, each floating one made by `draw`, else random and not centred."""
        draw = draw or self._normal
        return tuple(self._value(example, size, draw) for example in self._examples)

    @property
    def dtype(self) -> torch.dtype:
        """Of inputs that are given as a shape."""
        return self._dtype

    def _first(self, original: RegionCopy) -> tuple[Size, ConvCalls]:
        """A size that is possible, to see the region's convolutions."""
        ladder = [_primes(start, self._rank) for start in _LADDER] if self._rank else []
        for sizes in ladder:
            if math.prod(sizes) > _LARGE_NUMBERS:  # of a value with many axes
                break
            size = Size(_BATCHES[0], tuple(sizes))
            with contextlib.suppress(*_NOT_TAKEN), ConvRecorder() as recorder:
                if self._output(original, size).numel():
                    return size, recorder.calls
        with ConvRecorder() as recorder:
            self._output(original, Size())
        return Size(), recorder.calls

    @property
    def _rank(self) -> int:
        """The number of spatial dimensions whose sizes are free."""
        rank = len(self._main or ())
        return 0 if self._kept.issuperset(range(2, rank)) else rank - 2

    def _reach(self, calls: ConvCalls) -> tuple[int, ...]:
        return calls.reach if len(calls.reach) == self._rank else (1,) * self._rank

    def _possible(self, calls: ConvCalls) -> Iterator[Size]:
        """Sizes to use, the best first."""
        if self._rank:
            reach = self._reach(calls)
            small = _distinct_primes(reach, (0,) * self._rank)
            yield Size(_BATCHES[0], small)
            yield Size(_BATCHES[1], _distinct_primes(reach[::-1], small[::-1])[::-1])
        yield from (Size(batch) for batch in _BATCHES)
        yield Size()

    def _output(self, original: RegionCopy, size: Size) -> Tensor:
        with torch.no_grad():
            output = original.run(self.values(size), training=False)
        if not isinstance(output, Tensor):
            raise InternalError(f"the value of a site is a {type(output).__name__}, not a tensor")
        return output

    def _value(self, example: Any, size: Size, draw: Draw) -> Any:
        shape = _floating_shape(example)
        if shape is None:
            is_tensor = isinstance(example, Tensor)
            return self._of_batch(example.detach().cpu(), size) if is_tensor else example
        assert self._main is not None
        sizes = list(shape)
        if size.batch is not None and sizes and self._main and sizes[0] == self._main[0]:
            sizes[0] = size.batch
        if size.spatial is not None and shape[2:] == self._main[2:]:
            sizes[2:] = size.spatial
        drawn = tuple(shape[a] if a in self._kept else n for a, n in enumerate(sizes))
        made = draw(drawn)
        if isinstance(example, Tensor) and example.is_complex() and not made.is_complex():
            return torch.complex(made, draw(drawn))
        return made

    def _of_batch(self, example: Tensor, size: Size) -> Tensor:
        """A tensor whose values are taken, its samples again and again where it has one a row."""
        rows = example.shape[0] if example.dim() else 0
        if size.batch is None or 0 in self._kept or not self._main or rows != self._main[0]:
            return example
        return example[torch.arange(size.batch) % rows]

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        # Not centred at 0, so that no sign is lost by chance.
        return torch.randn(shape, generator=self._generator, dtype=self._dtype) + 0.25


class _Shape(tuple[int, ...]):
    """The shape of a floating tensor, told from other tuples."""


def _is_shape(example: Any) -> bool:
    return isinstance(example, tuple) and all(type(size) is int for size in example)


def _floating_shape(example: Any) -> tuple[int, ...] | None:
    if isinstance(example, _Shape):
        return tuple(example)
    if isinstance(example, Tensor) and (example.is_floating_point() or example.is_complex()):
        return tuple(example.shape)
    return None


def _distinct_primes(least: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    """For each entry of `least` a prime at least as large: no two alike, none as in `other`."""
    chosen: list[int] = []
    for size, avoided in zip(least, other, strict=True):
        candidates = _primes(size, len(least) + 1)
        chosen.append(next(p for p in candidates if p not in chosen and p != avoided))
    return tuple(chosen)


def _primes(start: int, count: int) -> list[int]:
    """The first `count` primes that are at least `start`."""
    found: list[int] = []
    number = max(start, 2)
    while len(found) < count:
        if all(number % divisor for divisor in range(2, int(number**0.5) + 1)):
            found.append(number)
        number += 1
    return found
