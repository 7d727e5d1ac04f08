"""Small random whole numbers, on which floating point computes sums of products exactly.

While every sum of magnitudes stays below 2^p, p being the bits of the mantissa, no addition and no
multiplication of whole numbers rounds, in whatever order and on however many threads it is done,
with or without padding by zeros. Two forms of one polynomial then agree bit for bit.

That is polynomial identity testing. Two different polynomials of degree d agree at a point that is
drawn evenly out of s^n with probability d / s at most (Schwartz 1980, Zippel 1979), so a wrong form
passes t independent trials with probability (d / s)^t at most. A trial of `reach` r draws from the
s = 2 r + 1 whole numbers -r ... r; there are as many trials as bring (d / s)^t below 2^-40, less
than 1 in 1,000,000,000,000 a site. In float64 these are two for a convolution of usual size, and
three or four where a BatchNorm moved with it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CHANCE = 2.0**-40
"""With what probability at most a wrong form may pass the trials of one site."""

_LEAST_REACH_A_DEGREE = 2


def mantissa(dtype: torch.dtype) -> int:
    """p: all whole numbers up to 2^p are exact in `dtype`; for a complex one in each part."""
    return 1 - math.frexp(torch.finfo(dtype).eps)[1] + 1


def chance_of(degree: int, reach: int) -> float:
    """The probability d / s with which one trial misses a difference, at most."""
    return min(degree / (2 * reach + 1), 1.0)


def trials_needed(degree: int, reach: int) -> int:
    """How many trials it takes until all of them miss a difference in fewer than 1 of 2^40 cases.

    Raises ValueError where `reach` is so small that a trial says nothing.
    """
    chance = chance_of(degree, reach)
    if chance >= 1:
        raise ValueError(f"whole numbers up to {reach} say nothing of a polynomial of {degree}")
    trials = 1
    while chance**trials >= CHANCE:
        trials += 1
    return trials


def largest_reach(degree: int, magnitude: float, dtype: torch.dtype) -> int:
    """The largest r for which nothing leaves the mantissa of `dtype`; 0 where it is too small.

    `magnitude` is the largest sum of magnitudes where each number is 1: a monomial of degree d or
    less grows by r^d at most.
    """
    if not 0 < magnitude < math.inf:
        return 0
    magnitude = max(magnitude, 1.0)  # what is drawn is in the mantissa too
    reach = int((2.0 ** mantissa(dtype) / magnitude) ** (1 / degree))
    while reach and magnitude * float(reach) ** degree >= 2.0 ** mantissa(dtype):
        reach -= 1
    return reach if reach >= _LEAST_REACH_A_DEGREE * degree else 0


def fill_whole(tensor: Tensor, reach: int, generator: torch.Generator) -> None:
    """Draw every number, of a complex tensor both parts, evenly from -reach ... reach."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    real.random_(-reach, reach + 1, generator=generator)


def is_whole(tensor: Tensor) -> bool:
    """Whether every number in it is a whole one, and finite."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    if not real.is_floating_point():
        return True
    return bool((real == real.round()).all() & torch.isfinite(real).all())
