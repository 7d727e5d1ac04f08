"""What one tensor of a rewritten model is, in terms of the original's tensors.

| class | says |
|---|---|
| `Rows` | consecutive rows of an original tensor, or all of it |
| `Picked`, made of `Part`s | rows and columns in any order, with padding and factors |
| `Fixed` | tensors of the original must say what they said when it was rewritten |
| `Zeros` | elements of the original that the rewritten model left out must be 0 |
"""

from .compose import compose
from .coverage import coverage, held_by, taken_by
from .fit import Fit, compare, listed, require_met, required_keys
from .joining import assembled, put_together
from .picked import Part, Picked
from .plain import Reader, entry_to_plain, requirement_to_plain
from .requirements import Fixed, Requirement, Zeros, register_check, zeros_of
from .rows import Entry, Rows

__all__ = [
    "Entry",
    "Fit",
    "Fixed",
    "Part",
    "Picked",
    "Reader",
    "Requirement",
    "Rows",
    "Zeros",
    "assembled",
    "compare",
    "compose",
    "coverage",
    "entry_to_plain",
    "held_by",
    "listed",
    "put_together",
    "register_check",
    "require_met",
    "required_keys",
    "requirement_to_plain",
    "taken_by",
    "zeros_of",
]
