"""What a fleet is made of: models, how each is read, what is done to it, and what it may take."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..errors import UsageError

_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BINARY = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_MOST = 1e15
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the file of a model is read: what `groupfx.api.source.ModelOptions.of` takes."""

    input_shape: Sequence[str] = ()
    arch: str | None = None
    arch_args: str | None = None
    key: str | None = None
    trust_pickle: bool = False
    python_path: Sequence[Path] = ()


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is done to a model: rewritten and checked (`verify`) always, the rest on request.

    `save` writes the rewritten model, `export` an ONNX file of it, which is validated (`verify`);
    `validate` does that without keeping the file. `tune` measures which forms are fastest, within
    `budget` seconds, for the file that `export` writes; `session` are texts `NAME=VALUE`.
    """

    passes: Sequence[str] | None = None
    target: str | None = None
    way: str = "auto"
    verify: bool = True
    save: bool = False
    export: bool = False
    validate: bool = False
    tune: bool = False
    dtype: Literal["float32", "float16"] | None = None
    opset: int | None = None
    fixed_batch: bool = False
    dynamic_sizes: bool = False
    budget: float = 60.0
    threads: int = 1
    batch: int | None = None
    session: Sequence[str] = ()
    backend: str = "onnxruntime"

    @property
    def writes(self) -> bool:
        """Whether there are files of models afterwards."""
        return self.save or self.export or self.tune

    @property
    def onnx(self) -> bool:
        """Whether an ONNX file is made of a torch model, kept or not."""
        return self.export or self.validate or self.tune


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one model may take: seconds of wall-clock time and bytes of resident memory.

    None is no limit of time, and the machine's share of memory.
    """

    time: float | None = 600.0
    memory: int | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A model of a fleet. `model` is a file, or `file.py:factory` or `package.module:factory`."""

    name: str
    model: Path
    reading: Reading = field(default_factory=Reading)
    work: Work = field(default_factory=Work)
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Refused:
    """An entry of a manifest that says nothing that can be done."""

    name: str
    model: str
    message: str


@dataclass(frozen=True)
class Fleet:
    """The models of a manifest, in its order, and what was refused of it."""

    entries: tuple[Entry | Refused, ...]

    def shard(self, place: int, number: int) -> Fleet:
        """Every `number`-th model from the `place`-th on, which counts from 1."""
        if not 1 <= place <= number:
            raise UsageError(
                f"--shard {place}/{number}: the first of {number} is 1/{number}, the last "
                f"{number}/{number}"
            )
        return Fleet(self.entries[place - 1 :: number])


def memory_size(text: str) -> int:
    """`4GB` or `512 MiB` in bytes. Raises UsageError."""
    found = _SIZE.fullmatch(text.strip())
    units = {name.lower(): factor for name, factor in (_UNITS | _BINARY).items()}
    factor = None if found is None else units.get(found[2].lower())
    if found is None or factor is None or not 0 < float(found[1]) < _MOST:
        known = ", ".join([*_UNITS, *_BINARY])
        raise UsageError(f"memory {text!r} is no size: write a number and one of {known}")
    return int(float(found[1]) * factor)
