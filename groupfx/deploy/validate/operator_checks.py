"""What is said of an operator of a candidate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...verify.measures import plain_number


@dataclass(frozen=True)
class OperatorCheck:
    """One operator of a candidate, or a few that only together have a counterpart.

    `name` and `kind` are the candidate's, `expected` says what the reference has there. `ratio` is
    the difference by what rounding explains, on the worst input; above 1 it fails. `position` is
    that of the operator in the order of the file.
    """

    name: str
    kind: str
    ok: bool
    ratio: float
    expected: str
    position: int
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data; a number that is not finite is None."""
        return {**vars(self), "ratio": plain_number(self.ratio)}

    def __str__(self) -> str:
        return f"the operator {self.kind} {self.name}: {self.reason}"
