"""What computes here: the name of the processor, and how many threads it has use for."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

from ..errors import UsageError

_FEW_THREADS = 4


@cache
def cpu_name() -> str:
    """What the system calls the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def require_threads(number: int, what: str = "threads") -> None:
    """Raise UsageError for fewer than 1, and for more than the machine has use for."""
    if not isinstance(number, int) or number < 1:
        raise UsageError(f"{what}={number!r}: it must be at least 1")
    cores = os.cpu_count() or 1
    # They wait for each other in turns: with 1,000 of them a budget of 2 s took 7 minutes.
    if number > max(cores, _FEW_THREADS):
        raise UsageError(f"{what}={number}: this machine has {cores} cores; give at most {cores}")
