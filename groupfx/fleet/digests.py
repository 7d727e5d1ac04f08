"""Digests of all that the result of a model depends on: its content, what was asked, versions.

A file that was digested is not read again while its size, its time of change and its place on the
disk are what they were, and were so for a moment before it was read (as git has it): a second run
over many gigabytes takes no time. Of code, that of the named file counts and what it imports from
beside it; of an installed package, all of its Python files.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

from ..errors import FileError, GroupfxError
from ..files.atomic import whole_file
from ..files.existing import factory_in, require_model
from ..passes import PASSES, name_and_options, pass_class
from ..targets import target_named
from ..version import __version__
from .entries import Entry

SCHEMA = "groupfx.digests/1"
_ONNX = ".onnx"
_DEPENDS_ON = ("torch", "onnxruntime", "onnx", "onnxscript", "numpy")
# A file that changed within this of being read may change again without being seen to.
_SETTLED = 2.0
# In an .onnx file that keeps weights beside it, and hardly in another.
_LOCATION = b"location"


@dataclass
class Digests:
    """Digests of files, kept from run to run in `path`."""

    path: Path
    _known: dict[str, Any] = field(default_factory=dict)
    _changed: bool = False

    @classmethod
    def open(cls, path: Path) -> Digests:
        """What is known; a file that is damaged knows nothing."""
        known: dict[str, Any] = {}
        with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
            data = json.loads(path.read_bytes())
            known = dict(data["files"]) if data["schema"] == SCHEMA else {}
        return cls(path, known)

    def save(self) -> None:
        """Keep it, if that can be."""
        if self._changed:
            with suppress(FileError), whole_file(self.path) as file:
                file.write(json.dumps({"schema": SCHEMA, "files": self._known}).encode())

    def key(self, entry: Entry) -> str:
        """The digest of an entry.

        Raises FileError where there is nothing to read, and UsageError where a pass or a target is
        none.
        """
        require_model(entry.model)
        for text in entry.work.passes or ():
            name, _ = name_and_options(text)
            if name not in PASSES and ":" not in name:
                pass_class(name)
        target = None if entry.work.passes is not None else target_named(entry.work.target)
        reading, work = asdict(entry.reading), asdict(entry.work)
        searched = tuple(reading.pop("python_path"))
        code = [text for text in (entry.reading.arch, *_foreign(entry.work.passes)) if text]
        factory = factory_in(entry.model)
        content = self._model(entry.model) if factory is None else self._code(factory, searched)
        whole = {
            "versions": _versions(),
            "model": content,
            "code": [self._code(text, searched) for text in code],
            "reading": reading,
            "work": work,
            # Some are files of facts, which change.
            "target": None if target is None else self._file(target.path),
        }
        # A factory is called by its name; what a file is called makes no difference.
        whole |= {"kind": entry.model.suffix} if factory is None else {"factory": factory}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    def _model(self, path: Path) -> list[str]:
        beside = _weights_of(path) if path.suffix == _ONNX else ()
        return [self._file(each) for each in (path, *beside)]

    def _code(self, text: str, searched: Sequence[Path]) -> list[str]:
        """Of `file.py:name` or `package.module:name`, and of what that imports from beside it."""
        place = text.rpartition(":")[0]
        folders = tuple(str(folder) for folder in searched)
        if not place.endswith(".py"):
            return [self._file(path) for path in _package(place.partition(".")[0], folders)]
        path = Path(place)
        return [self._file(each) for each in _imported(path, (str(path.parent), *folders))]

    def _file(self, path: Path) -> str:
        try:
            with path.open("rb") as file:
                found, now = os.fstat(file.fileno()), time.time()
                state = [found.st_size, found.st_mtime_ns, found.st_ino, found.st_ctime_ns]
                known = self._known.get(str(path.absolute()))
                if known is not None and known[0] == state:
                    return str(known[1])
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise FileError(f"{path} cannot be read: {error.strerror or error}") from error
        if now - max(found.st_mtime, found.st_ctime) > _SETTLED:
            self._known[str(path.absolute())] = [state, digest]
            self._changed = True
        return digest


@cache
def _versions() -> Mapping[str, str | None]:
    found: dict[str, str | None] = {"groupfx": __version__}
    for name in _DEPENDS_ON:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _foreign(passes: Sequence[str] | None) -> Iterable[str]:
    """Where the classes of passes are that are none of ours."""
    for text in passes or ():
        name, _ = name_and_options(text)
        if name not in PASSES and ":" in name:
            yield name


def _weights_of(path: Path) -> tuple[Path, ...]:
    """The files beside an .onnx file that hold its weights."""
    with suppress(OSError, ValueError), path.open("rb") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(_LOCATION) < 0:
                return ()
        # It loads onnx, and that torch: not for files that hold their weights.
        from ..deploy import external_files

        # One that cannot be read is told when it is its turn.
        with suppress(GroupfxError):
            return tuple(each for each in external_files(path) if each.is_file())
    return ()


@cache
def _imported(path: Path, folders: tuple[str, ...]) -> tuple[Path, ...]:
    """A Python file, and what it imports from these folders, and so on."""
    finder = ModuleFinder(path=list(folders))
    with suppress(Exception):  # what does not compile imports nothing
        finder.run_script(str(path))
    files = [getattr(module, "__file__", None) for module in finder.modules.values()]
    found = {Path(each) for each in files if each is not None}
    return (path, *sorted(found - {path}))


@cache
def _package(name: str, folders: tuple[str, ...]) -> tuple[Path, ...]:
    """The Python files of a module or package, where there is one."""
    spec = PathFinder.find_spec(name, [*folders, os.getcwd()]) or PathFinder.find_spec(name)
    if spec is None:
        return ()
    if spec.submodule_search_locations is None:
        return () if spec.origin is None else (Path(spec.origin),)
    roots = [Path(place) for place in spec.submodule_search_locations]
    return tuple(sorted(path for root in roots for path in root.rglob("*.py")))
