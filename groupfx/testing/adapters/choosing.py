"""Which cases a tool is for, and a fixed sample of them for a tool that takes seconds for each."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from ..kit import Case

Takes = Callable[[Case], bool]


def with_torch(case: Case) -> bool:
    """Whether a case is a torch model too."""
    return case.torch() is not None


def everything(case: Case) -> bool:
    """Every case."""
    return True


def one_in(count: int, takes: Takes = everything) -> Takes:
    """About one in `count` of those that `takes` takes, by name: the same ones each time."""
    return lambda case: zlib.crc32(case.name.encode()) % count == 0 and takes(case)
