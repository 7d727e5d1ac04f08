"""Which cases of a broad grid wait for the long run: the default one takes a sample of each grid.

The default run is what a developer waits for; the long one takes every case, before any change
lands. So a grid of like cases is sampled here, by place and not by chance, and never left out.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from _pytest.mark import ParameterSet


def one_in(step: int, cases: Iterable[Any]) -> list[ParameterSet]:
    """The cases for `pytest.mark.parametrize`: one in `step` for each run, the others long.

    The names of a mapping's cases are its keys, and its values the parameters; a tuple is a row
    of parameters.
    """
    rows = [
        (value if isinstance(value, tuple) else (value,), name)
        for name, value in (
            cases.items() if isinstance(cases, Mapping) else ((None, case) for case in cases)
        )
    ]
    return [
        pytest.param(*row, id=name, marks=[pytest.mark.long] if index % step else [])
        for index, (row, name) in enumerate(rows)
    ]
