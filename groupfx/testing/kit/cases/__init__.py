"""The cases of the kit, family by family."""

from ..case import Case
from . import branches, convolutions, files, norms, orders, quantised, transposed, wide

_FAMILIES = (convolutions, transposed, norms, branches, orders, wide, quantised, files)


def all_cases() -> tuple[Case, ...]:
    """Every case, in one order; models are made when they are asked for."""
    return tuple(case for family in _FAMILIES for case in family.cases())
