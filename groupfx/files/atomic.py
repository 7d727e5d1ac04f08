"""Write a file whole or not at all."""

import contextlib
import os
import re
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

from ..errors import FileError


@contextlib.contextmanager
def whole_file(path: Path, *, owner: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `path` at the end of the block.

    Until then, and if the block raises, the process dies or the disk is full, whatever was at
    `path` stays there. A link is followed: the file that it names is replaced. Raises `FileError`
    where the folder does not exist or cannot be written, and for what is no file: who may write
    anything could replace /dev/null. What a run that was killed left of its file for `path` is
    removed; for `owner`, where a file is a part of another and goes with it.
    """
    target = Path(os.path.realpath(path))
    if os.path.exists(target) and not (os.path.isfile(target) or os.path.isdir(target)):
        raise FileError(f"{path} is not a regular file and will not be replaced")
    start = f".{os.path.basename(os.path.realpath(owner or path))[:100]}."
    _remove_left(target.parent, start)
    part = target.with_name(f"{start}{secrets.token_hex(_TOKEN)}.part")
    try:
        # Not tempfile, whose files only their owner may read: this one becomes the user's.
        file = part.open("xb")
        lock(file)
    except OSError as error:
        raise FileError(
            f"{path} cannot be written: {error.strerror}; choose another place with -o"
        ) from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        raise FileError(
            f"{path} was not written: {error.strerror or error}; what was there is unchanged"
        ) from error
    finally:
        # After the replacement there is nothing left to remove.
        part.unlink(missing_ok=True)
    _sync_folder(target.parent)


def lock(file: BinaryIO) -> bool | None:
    """Hold `file` as one that is being written; False where another process holds it.

    None where nobody can tell: not every system has locks, and not every file system.
    """
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove_left(folder: Path, start: str) -> None:
    """Remove files of runs that were killed: those that nobody holds, where that can be told."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            token = name.removeprefix(start).removesuffix(".part")
            if f"{start}{token}.part" != name or not _HEX.fullmatch(token):
                continue
            with contextlib.suppress(OSError), (folder / name).open("rb") as left:
                # One that was made this moment may not be held yet.
                young = time.time() - os.fstat(left.fileno()).st_mtime < _YOUNG
                if not (young and not os.fstat(left.fileno()).st_size) and lock(left):
                    (folder / name).unlink()


_TOKEN = 6
_HEX = re.compile(rf"[0-9a-f]{{{2 * _TOKEN}}}")
_YOUNG = 1.0


def _sync_folder(folder: Path) -> None:
    """Make the new name durable; not every system can open a folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
