"""Random inputs for one region, at the sizes that show most for the least work.

Spatial sizes are small primes, a different one in each dimension, and large enough that every tap
of the kernel meets data; the original region decides which sizes are possible at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InternalError
from .bounds import ConvCalls, ConvRecorder
from .region import Float64Copy

# First sizes to try, until one is not too small for the region's kernels.
_LADDER = (2, 5, 11, 23, 47, 97, 193)
_BATCHES = (2, 3)
_RUNS = 2

Values = tuple[Any, ...]


@dataclass(frozen=True)
class Sample:
    """Values for a region's inputs, and the original's output for them in eval mode."""

    values: Values
    output: Tensor


class Sampler:
    """Makes values for the inputs of a region.

    `examples` has one entry for each input: the shape of a floating tensor (a tuple of integers), a
    tensor whose shape and dtype are taken (and, if it is not floating, its values too), or anything
    else, which is passed on.
    """

    def __init__(self, examples: Sequence[Any], seed: int) -> None:
        self._examples = [_Shape(e) if _is_shape(e) else e for e in examples]
        self._generator = torch.Generator().manual_seed(seed)
        self._main = next((s for s in map(_floating_shape, self._examples) if s is not None), None)

    def samples(self, original: Float64Copy) -> tuple[list[Sample], ConvCalls]:
        """Up to two samples that `original` takes in eval mode, and what its convolutions are.

        Raises the error of the last try if it takes none, and InternalError if its value is not a
        tensor.
        """
        first, calls = self._first(original)
        taken: list[Sample] = []
        for batch, spatial in self._sizes(calls):
            try:
                sample = self._sample(original, batch, spatial)
            except Exception:
                continue  # a size that the original does not take
            if sample.output.numel():
                taken.append(sample)
            if len(taken) == _RUNS:
                break
        return taken or [first], calls

    def _first(self, original: Float64Copy) -> tuple[Sample, ConvCalls]:
        """A sample of any size, to see the region's convolutions."""
        sizes = [_primes(start, self._rank) for start in _LADDER] if self._rank else []
        for size in sizes:
            with contextlib.suppress(RuntimeError, ValueError), ConvRecorder() as recorder:
                sample = self._sample(original, _BATCHES[0], tuple(size))
                if sample.output.numel():
                    return sample, recorder.calls
        with ConvRecorder() as recorder:
            return self._sample(original, None, None), recorder.calls

    @property
    def _rank(self) -> int:
        """The number of spatial dimensions."""
        return max(len(self._main or ()) - 2, 0)

    def _sizes(self, calls: ConvCalls) -> Iterator[tuple[int | None, tuple[int, ...] | None]]:
        """Batch and spatial sizes to use, the best first; None is the example's own."""
        if self._rank:
            reach = calls.reach if len(calls.reach) == self._rank else (1,) * self._rank
            small = _distinct_primes(reach, (0,) * self._rank)
            yield _BATCHES[0], small
            yield _BATCHES[1], _distinct_primes(reach[::-1], small[::-1])[::-1]
        yield from ((batch, None) for batch in _BATCHES)
        yield None, None

    def _sample(
        self, original: Float64Copy, batch: int | None, spatial: tuple[int, ...] | None
    ) -> Sample:
        values = self._values(batch, spatial)
        with torch.no_grad():
            output = original.run(values, training=False)
        if not isinstance(output, Tensor):
            raise InternalError(f"the value of a site is a {type(output).__name__}, not a tensor")
        return Sample(values, output)

    def _values(self, batch: int | None, spatial: tuple[int, ...] | None) -> Values:
        return tuple(self._value(example, batch, spatial) for example in self._examples)

    def _value(self, example: Any, batch: int | None, spatial: tuple[int, ...] | None) -> Any:
        shape = _floating_shape(example)
        if shape is None:
            return example.detach().cpu() if isinstance(example, Tensor) else example
        assert self._main is not None
        sizes = list(shape)
        if batch is not None and sizes and sizes[0] == self._main[0]:
            sizes[0] = batch
        if spatial is not None and shape[2:] == self._main[2:]:
            sizes[2:] = spatial
        # Not centred at 0, so that no sign is lost by chance.
        return torch.randn(sizes, generator=self._generator, dtype=torch.float64) + 0.25


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
