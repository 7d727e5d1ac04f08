"""Which grouped convolutions really run, counted below everything that could hide them.

A graph, a module and a call of a function are what somebody wrote; this is what was executed.
"""

import os
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, Generic, TypeVar

import torch
from torch._ops import OpOverload

from .watching import Watcher

Owner = TypeVar("Owner")

_TORCH_AND_OURS = tuple(
    f"{place}{os.sep}"
    for place in (Path(torch.__file__).resolve().parent, Path(__file__).resolve().parents[1])
)
_PYTHON = sysconfig.get_path("stdlib") + os.sep
_PACKAGES = f"{os.sep}site-packages{os.sep}"


def at(place: str) -> str:
    """` (file.py:12)` for a text, nothing for no place."""
    return f" ({place})" if place else ""


@dataclass(frozen=True)
class GroupedRun(Generic[Owner]):
    """One grouped convolution that ran: for whom, with how many groups, and where in the source."""

    owner: Owner
    operator: str
    groups: int
    place: str


class GroupedRuns(Watcher, Generic[Owner]):
    """Collects the grouped convolutions that run inside `with`; `owner` says for whom, each time.

    Only operators with groups are looked at, so a backward or a product of matrices is none.
    """

    def __init__(self, owner: Callable[[], Owner]) -> None:
        super().__init__()
        self.runs: list[GroupedRun[Owner]] = []
        self._owner = owner

    def saw(self, func: OpOverload, args: Any, kwargs: Any, result: Any) -> None:
        """Note a grouped convolution."""
        groups = _groups(func, args, kwargs)
        if groups > 1:
            name = func._schema.name.removeprefix("aten::")
            self.runs.append(GroupedRun(self._owner(), name, groups, users_place()))


def _groups(func: OpOverload, args: Any, kwargs: Any) -> int:
    """Groups of the convolution that an operator is; 1 where it is something else."""
    found = _groups_argument(func)
    if found is None:
        return 1
    position, name = found
    value = args[position] if position < len(args) else kwargs.get(name, 1)
    # A quantised convolution has its numbers and its weight in one object.
    return int(value if isinstance(value, int) else value.groups())


@cache
def _groups_argument(func: OpOverload) -> tuple[int, str] | None:
    schema = func._schema
    if "conv" not in schema.name or "backward" in schema.name:
        return None
    names = [argument.name for argument in schema.arguments]
    for name in ("groups", "packed_weight"):
        if name in names and "prepack" not in schema.name:
            return names.index(name), name
    return None


def users_place() -> str:
    """`file.py:12` of the innermost frame of a model's source: not torch's, ours nor Python's own.

    Empty where there is none between an operator and the call of the model.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if is_users(file):
            return place_of(file, frame.f_lineno)
        if frame.f_code.co_qualname in _CALLERS:
            return ""
        frame = frame.f_back
    return ""


# What calls a model of a user's: beyond it lies the code that called us.
_CALLERS = ("ExampleInputs.call", "_trace_with_leaves")


def error_place(error: BaseException) -> str:
    """`file.py:12` of the innermost frame of the user's that an error came through, or nothing."""
    place, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if is_users(file):
            place = place_of(file, trace.tb_lineno)
        trace = trace.tb_next
    return place


@cache
def is_users(file: str) -> bool:
    """Whether a source file is a model's: not torch's, ours nor Python's own."""
    if file.startswith("<"):
        return False
    real = str(Path(file).resolve())
    if real.startswith(_TORCH_AND_OURS):
        return False
    return _PACKAGES in real or not real.startswith(_PYTHON)


def place_of(file: str, line: int) -> str:
    """`file:line`, from the current folder on where it lies in that."""
    path = Path(file)
    try:
        return f"{path.relative_to(Path.cwd())}:{line}"
    except ValueError:
        return f"{path}:{line}"
