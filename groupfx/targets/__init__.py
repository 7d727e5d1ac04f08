"""What a target is: what it takes, as facts with their sources, and the passes that it needs.

Each `.toml` file of this folder is one target. Adding a target is adding a file: the command line,
its help and completion, the reports and the library find it by listing. Files of others are found
in the folders that the environment variable `GROUPFX_TARGETS` names, in packages that have an entry
point `groupfx.targets`, and by their path, wherever a target may be named. Nothing here imports
torch when it is read.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path

from ..errors import FileError, UsageError, kind_and_line, no_exit
from .facts import Fact, Judged, Numbers, Subject, Verdict, Where
from .reading import ENDING, read_target
from .target import Opinion, Target, numbers_of

__all__ = [
    "ENDING",
    "Fact",
    "Judged",
    "Numbers",
    "Opinion",
    "Subject",
    "Target",
    "Verdict",
    "Where",
    "numbers_of",
    "target_named",
    "target_names",
    "targets",
]

FOLDERS = "GROUPFX_TARGETS"
_GROUP = "groupfx.targets"
_DEFAULT = "default"
_HERE = Path(__file__).parent


def target_names() -> tuple[str, ...]:
    """The names that a user may give, in the order of the alphabet; no file is read for them."""
    with contextlib.suppress(FileError):  # which is told where one of them is asked for
        return tuple(sorted(_places().keys() - {_DEFAULT}))
    return tuple(sorted(path.stem for path in _HERE.glob(f"*{ENDING}") if path.stem != _DEFAULT))


def targets() -> tuple[Target, ...]:
    """Those that a user may name, in the order in which they are listed. Raises `FileError`."""
    found = (_read(path) for name, path in _places().items() if name != _DEFAULT)
    return tuple(sorted(found, key=lambda target: (target.place, target.name)))


def target_named(name: str | None) -> Target:
    """The target of this name, or of this file; what runs by default for None.

    Raises `UsageError` with the nearest if there is none, and `FileError` for a file that cannot be
    read.
    """
    if name is not None and name.endswith(ENDING):
        return read_target(Path(name))
    known = _places()
    if name is None or name in known:
        return _read(known[name or _DEFAULT])
    names = target_names()
    near = get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(
        f"there is no target {name!r}: {hint}choose one of {', '.join(names)}, or give a file "
        f"of facts, ending in {ENDING}"
    )


def _places() -> dict[str, Path]:
    """The file of each name. Raises `FileError` where two files are of one name."""
    found: dict[str, Path] = {}
    for folder in (_HERE, *_given_folders(), *_packages()):
        for path in sorted(folder.glob(f"*{ENDING}")):
            other = found.setdefault(path.stem, path)
            if other != path:
                raise FileError(f"{other} and {path} are both the target {path.stem!r}: rename one")
    return found


def _given_folders() -> Iterator[Path]:
    for text in _unique(os.environ.get(FOLDERS, "").split(os.pathsep)):
        folder = Path(text)
        if not folder.is_dir():
            raise FileError(f"{FOLDERS} names {text}, which is no folder")
        yield folder


def _packages() -> Iterator[Path]:
    """The folders of packages that have targets; their `__init__` runs."""
    for entry in entry_points(group=_GROUP):
        with no_exit(f"the package {entry.value}", FileError):
            try:
                yield Path(str(files(entry.value)))
            except Exception as error:
                raise FileError(
                    f"the targets of the package {entry.value} cannot be found: "
                    f"{kind_and_line(error)}"
                ) from error


def _unique(texts: Iterable[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if text]


def _read(path: Path) -> Target:
    return _cached(path, path.stat().st_mtime_ns) if path.is_file() else read_target(path)


@cache
def _cached(path: Path, changed: int) -> Target:
    return read_target(path)
