"""Which cases of a broad grid wait for the long run: the default one takes a sample of each grid.

The default run is what a developer waits for; the long one takes every case, before any change
lands. So a grid of like cases is sampled here, by place and not by chance, and never left out.
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import pytest
from _pytest.mark import ParameterSet

Cases = Iterable[Any] | Mapping[str, Any]
"""The names of a mapping's cases are its keys. A tuple is a row of parameters."""


def one_in(step: int, cases: Cases) -> list[ParameterSet]:
    """The cases for `pytest.mark.parametrize`: one in `step` for each run, the others long."""
    rows = enumerate(_rows(cases))
    return [pytest.param(*row, id=name, marks=_marks(index % step)) for index, (name, row) in rows]


def long_unless(quick: Container[str], cases: Cases) -> list[ParameterSet]:
    """The cases, those of which the names (their values, without names) are not `quick` long."""
    return [
        pytest.param(*row, id=name, marks=_marks((name or row[0]) not in quick))
        for name, row in _rows(cases)
    ]


def _rows(cases: Cases) -> Iterator[tuple[str | None, tuple[Any, ...]]]:
    named = cases.items() if isinstance(cases, Mapping) else ((None, case) for case in cases)
    for name, value in named:
        yield name, value if isinstance(value, tuple) else (value,)


def _marks(late: object) -> list[pytest.MarkDecorator]:
    return [pytest.mark.long] if late else []
