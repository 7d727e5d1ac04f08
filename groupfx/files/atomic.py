"""Write a file whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import FileError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `path` at the end of the block.

    Until then, and if the block raises, the process dies or the disk is full, whatever was at
    `path` stays there. A link is followed: the file that it names is replaced. Raises `FileError`
    where the folder does not exist or cannot be written.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.part")
    try:
        # Not tempfile, whose files only their owner may read: this one becomes the user's.
        file = part.open("xb")
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


def _sync_folder(folder: Path) -> None:
    """Make the new name durable; not every system can open a folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
