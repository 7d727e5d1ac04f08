"""What is said of an operator of a candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from ...verify.measures import plain_number
from .value_graph import Operator


@dataclass(frozen=True)
class Apart:
    """A piece of both sides that differs on `inputs`, which have the candidate's names.

    `cut` pairs the values that go in and `ends` are those that come out, the candidate's first;
    `reference` are the operators of the reference between them. `what` says it in words.
    """

    what: str
    cut: tuple[tuple[str, str], ...]
    ends: tuple[str, str]
    reference: tuple[Operator, ...]
    inputs: Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class OperatorCheck:
    """One operator of a candidate, or a few that only together have a counterpart.

    `name` and `kind` are the candidate's, `expected` says what the reference has there. `ratio` is
    the difference by what rounding explains, on the worst input; above 1 it fails. `position` is
    that of the operator in the order of the file. `apart` is a piece that shows it, where there
    is one.
    """

    name: str
    kind: str
    ok: bool
    ratio: float
    expected: str
    position: int
    reason: str | None = None
    apart: Apart | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; a number that is not finite is None."""
        plain = {**vars(self), "ratio": plain_number(self.ratio)}
        del plain["apart"]
        return plain

    def __str__(self) -> str:
        return f"the operator {self.kind} {self.name}: {self.reason}"
