"""Processes of models: what they take, and their end with all that they started."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import psutil

# What is left to the rest of the machine.
_SHARE = 0.9
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel end this process when its parent ends, however that comes about (Linux)."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def tree(pid: int) -> tuple[psutil.Process, ...]:
    """A process and all that it started, as far as they live."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return (process, *process.children(recursive=True))
    return ()


def resident(processes: tuple[psutil.Process, ...]) -> int:
    """Bytes of resident memory of those that live."""
    found = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found += process.memory_info().rss
    return found


def kill_tree(pid: int) -> None:
    """End a process, its session and all that it started, at once."""
    # Until nobody new is found: what starts processes meanwhile must not outrun this.
    for _ in range(_ROUNDS):
        found = tree(pid)
        if not found:
            break
        # The first is stopped by its group: it leads its session.
        with contextlib.suppress(OSError):
            if os.getpgid(pid) == pid:
                os.killpg(pid, signal.SIGKILL)
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=0.2)
        if not any(_lives(process) for process in found):
            break


_ROUNDS = 5


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def end_session(pid: int) -> None:
    """End what a process that has ended has left in its session."""
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)


def available_memory() -> int:
    """Bytes that may be taken here: what is free, and no more than the group's limit leaves."""
    free = int(psutil.virtual_memory().available)
    for limit, used in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):
            free = min(free, int(limit.read_text()) - int(used.read_text()))
    return int(max(free, 0) * _SHARE)


_CGROUPS = tuple(
    (Path("/sys/fs/cgroup") / limit, Path("/sys/fs/cgroup") / used)
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    )
)


def killed_for_memory() -> int:
    """How many processes the kernel has ended for want of memory, as far as it says so."""
    found = 0
    for place in (Path("/proc/vmstat"), Path("/sys/fs/cgroup/memory.events")):
        with contextlib.suppress(OSError, ValueError):
            for line in place.read_text().splitlines():
                name, _, number = line.partition(" ")
                if name == "oom_kill":
                    found += int(number)
    return found
