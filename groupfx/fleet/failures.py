"""Why a model of a fleet failed: a class for each kind, and whether the environment did it."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ..errors import (
    FileError,
    GroupfxError,
    InternalError,
    MismatchError,
    MissingDependencyError,
    ModelError,
    NotComparableError,
    kind_and_line,
)

FailureClass = Literal[
    "cannot open", "not rewritten", "mismatch", "not comparable", "time", "memory", "crash"
]
Environment = Literal["full disk", "out of memory", "missing package", "lost worker"]
Stage = Literal["open", "rewrite", "export", "tune", "validate", "write"]

CLASSES: tuple[FailureClass, ...] = (
    "cannot open", "not rewritten", "mismatch", "not comparable", "time", "memory", "crash",
)  # fmt: skip

FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# What torch and ONNX Runtime raise, which is of no class of its own.
_NO_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|bad_alloc|bad allocation|out of memory", re.I
)
# Of a model whose process took too much or too long, or ended: as of one that cannot be read.
OF_A_PROCESS = ModelError.exit_code


@dataclass(frozen=True)
class Failure:
    """What went wrong with a model.

    `exit_code` is what the command for one model would return. `stage` is what it was at; None
    where nothing was begun. `environment` is what must be mended before it is worth another try,
    where the model itself is not to blame.
    """

    kind: FailureClass
    message: str
    exit_code: int
    stage: Stage | None = None
    environment: Environment | None = None


def failure_of(error: BaseException, stage: Stage) -> Failure:
    """The failure that `error`, raised at `stage`, is."""
    environment = _environment(error)
    return Failure(
        _kind(error, stage, environment),
        kind_and_line(error),
        _exit_code(error, environment),
        stage,
        environment,
    )


def _kind(error: BaseException, stage: Stage, environment: Environment | None) -> FailureClass:
    if environment == "out of memory":
        return "memory"
    if isinstance(error, MismatchError):
        return "not comparable" if isinstance(error, NotComparableError) else "mismatch"
    expected = isinstance(error, GroupfxError) and not isinstance(error, InternalError)
    if not expected and environment is None:
        return "crash"
    # An ONNX file is read by what rewrites it.
    unread = stage == "rewrite" and isinstance(error, (FileError, ModelError))
    opening = stage == "open" or unread
    return "cannot open" if opening else "not rewritten"


def _exit_code(error: BaseException, environment: Environment | None) -> int:
    if isinstance(error, GroupfxError):
        return error.exit_code
    if environment == "out of memory":
        return ModelError.exit_code
    return FileError.exit_code if environment == "full disk" else InternalError.exit_code


def _environment(error: BaseException) -> Environment | None:
    for each in _causes(error):
        if isinstance(each, MemoryError) or _NO_MEMORY.search(str(each)):
            return "out of memory"
        if isinstance(each, (MissingDependencyError, ModuleNotFoundError)):
            return "missing package"
        if isinstance(each, OSError) and each.errno in FULL_DISK:
            return "full disk"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
