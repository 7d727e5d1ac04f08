"""A value whose exact numbers are known, with what rounding may do to them.

`value` is the answer in float64. A runtime that computes in a smaller dtype may differ from it by
the bound of `verify/bounds.py`, for which each operation says two things more: `magnitude`, the
same operation on absolute values, which is what rounding errors are relative to, and `terms`, how
many roundings one number has passed through at most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Known:
    """Exact numbers in float64, integers too; `dtype` is what they are in a file."""

    value: Array
    magnitude: Array
    terms: int
    dtype: str

    @classmethod
    def exact(cls, value: Array) -> Known:
        """A value that no rounding has touched: an input, a weight, a whole number."""
        wide = np.asarray(value, np.float64)
        return cls(wide, np.abs(wide), 0, value.dtype.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of all axes."""
        return self.value.shape

    def moved(self, move: Callable[[Array], Array]) -> Known:
        """The same numbers elsewhere: a permutation, a part, a view."""
        return replace(self, value=move(self.value), magnitude=move(self.magnitude))

    def rounded(self, value: Array, magnitude: Array, roundings: int, *others: Known) -> Known:
        """What a sum or product of this and `others` gives, after so many roundings more."""
        terms = max([self.terms, *(other.terms for other in others)])
        return Known(value, magnitude, terms + roundings, self.dtype)

    def stored(self) -> Array:
        """The numbers as a file has them."""
        return self.value.astype(self.dtype)
