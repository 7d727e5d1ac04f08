"""The result of each model of a fleet, and the file that they are kept in: one line of JSON each.

A line is written whole, and is on the disk before the next model's: what is killed loses no result
but that of the model that it was at. A line that was cut off all the same is read as none.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from ..errors import FileError, first_line
from ..files.atomic import lock
from .entries import Limits
from .failures import Failure

SCHEMA = "groupfx.zoo-model/1"


@dataclass(frozen=True, kw_only=True)
class Written:
    """A file that was written; `path` is below the folder of the fleet."""

    path: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was done to a model, as far as it came; it is `ok` where `failure` is None.

    `sites` are the convolutions that the passes looked at, `rewritten` and `skipped` of them.
    `verified` says whether the rewrite was proved, `validated` whether the ONNX file was compared.
    `summary` is the line on how fast it is, of a model that was tuned. `seconds` and `peak_memory`
    (bytes) are of its process; of a series of checkpoints, which shares one, since the one before.
    """

    failure: Failure | None = None
    sites: int | None = None
    rewritten: int | None = None
    skipped: int | None = None
    verified: bool | None = None
    validated: bool | None = None
    summary: str | None = None
    report: str | None = None
    files: Sequence[Written] = ()
    notes: Sequence[str] = ()
    seconds: float | None = None
    peak_memory: int | None = None

    @property
    def ok(self) -> bool:
        """Whether everything that was asked for was done."""
        return self.failure is None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        plain = asdict(self)
        del plain["failure"]
        failure = self.failure
        return {
            "ok": self.ok,
            "class": None if failure is None else failure.kind,
            "message": None if failure is None else failure.message,
            "exit_code": 0 if failure is None else failure.exit_code,
            "stage": None if failure is None else failure.stage,
            "environment": None if failure is None else failure.environment,
            **plain,
            "files": [asdict(file) for file in self.files],
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """What `to_dict` gave. Raises KeyError or TypeError for anything else."""
        failure = None
        if plain["class"] is not None:
            failure = Failure(
                kind=plain["class"],
                message=plain["message"],
                exit_code=plain["exit_code"],
                stage=plain["stage"],
                environment=plain["environment"],
            )
        own = {
            name: plain[name]
            for name in (
                "sites", "rewritten", "skipped", "verified", "validated", "summary", "report",
                "seconds", "peak_memory",
            )
        }  # fmt: skip
        files = tuple(Written(**file) for file in plain["files"])
        return cls(failure=failure, **own, files=files, notes=tuple(plain["notes"]))


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """A line of the file of results: a model, what was done to it, and what that depended on.

    `key` is a digest of its content, of what was asked for, and of the versions of what did it;
    None where there was nothing to read. `same_as` names the model of the same content whose result
    this is. `finished` is the time in UTC (ISO 8601).
    """

    name: str
    model: str
    key: str | None
    finished: str
    limits: Limits
    outcome: Outcome
    same_as: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        own = {name: getattr(self, name) for name in ("name", "model", "key", "same_as")}
        limits = {"time": self.limits.time, "memory": self.limits.memory}
        outcome = self.outcome.to_dict()
        return {
            "schema": SCHEMA, **own, "finished": self.finished, "limits": limits, **outcome
        }  # fmt: skip

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """What `to_dict` gave. Raises KeyError, TypeError or ValueError for anything else."""
        if plain["schema"] != SCHEMA or not isinstance(plain["name"], str):
            raise ValueError("this is no result of a model")
        own = {name: plain[name] for name in ("name", "model", "key", "same_as", "finished")}
        limits = Limits(time=plain["limits"]["time"], memory=plain["limits"]["memory"])
        return cls(**own, limits=limits, outcome=Outcome.from_dict(plain))


def read_results(path: Path) -> tuple[tuple[ModelResult, ...], int]:
    """The results in a file, in their order, and how many lines of it are none.

    Raises FileError where it cannot be read.
    """
    found: list[ModelResult] = []
    lost = 0
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        try:
            found.append(ModelResult.from_dict(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            lost += 1
    return tuple(found), lost


@dataclass
class Journal:
    """The file of results of a run, which nobody else writes to meanwhile."""

    path: Path
    _file: int = field(repr=False)

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path) -> Iterator[Self]:
        """Raises FileError where it cannot be written, or another run writes to it."""
        try:
            file = path.open("ab")
        except OSError as error:
            raise FileError(
                f"{path} cannot be written: {error.strerror}; choose another folder with -o"
            ) from error
        with file:
            if lock(file) is False:
                raise FileError(
                    f"{path} is being written by another run: wait for it, or choose another "
                    "folder with -o"
                )
            yield cls(path, file.fileno())

    def append(self, result: ModelResult) -> None:
        """Put a result on the disk. Raises FileError; the file is then as it was before."""
        text = json.dumps(result.to_dict(), ensure_ascii=False, allow_nan=False)
        before = os.fstat(self._file).st_size
        # What a run that was killed wrote of a line must not become the start of this one.
        start = b"\n" if before and not _ends_a_line(self.path) else b""
        data = start + text.encode("utf-8", "backslashreplace") + b"\n"
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, before)
            raise FileError(
                f"the result of {result.name} was not written to {self.path}: {first_line(error)}; "
                "those before it are there: free some space, and run the same command again"
            ) from error


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
