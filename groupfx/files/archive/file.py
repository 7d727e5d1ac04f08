"""Write and read a file of ours."""

import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from ...errors import FileError, first_line
from ..atomic import whole_file
from ..container import PICKLE, ZIP_START, check_container, check_size, read_record
from ..names import Damaged, first_few
from ..pickles import globals_of
from .content import FORMAT, Archive, decode, encode, reading
from .values import Budget

# Within these first bytes of a file stands the name of the format.
_HEAD = 1000
# How many values a byte of the pickle may stand for. A name that is used again costs 2 to 5 bytes.
_VALUES_A_BYTE = 10

# All that a file of ours names: a tensor's rebuilder, storages, dtypes and an ordered dictionary.
_ALLOWED = re.compile(
    r"torch\._utils\._rebuild_(tensor_v2|tensor_v3|meta_tensor_no_storage)"
    r"|torch\.[A-Za-z0-9]+Storage|torch\.storage\.UntypedStorage|collections\.OrderedDict"
    r"|torch\.(float|bfloat|int|uint|complex|bool)[a-z0-9_]*\Z"
)


def write(path: str | os.PathLike[str], archive: Archive, *, overwrite: bool = False) -> None:
    """Write `archive` to `path`, whole or not at all.

    A file of ours is replaced; any other only with `overwrite`. Raises `FileError`, before
    anything is written, for a model that is not plain data or a path that cannot be written.
    """
    place = Path(path)
    data = encode(archive)
    check_replaceable(place, overwrite=overwrite)
    with whole_file(place) as file:
        _save(data, file, place)


def _save(data: dict[str, object], file: BinaryIO, place: Path) -> None:
    crc = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        torch.save(data, file)
    except RuntimeError as error:
        # torch wraps what the operating system says, such as a full disk.
        raise FileError(
            f"{place} was not written: {first_line(error)}; what was there is unchanged"
        ) from error
    finally:
        torch.serialization.set_crc32_options(crc)


def check_replaceable(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Raise `FileError` if writing to `path` would destroy what groupfx did not write."""
    place = Path(path)
    try:
        mode = place.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise FileError(f"{place} cannot be written: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise FileError(f"{place} is a folder: name a file in it, such as {place / 'model.pt'}")
    if not stat.S_ISREG(mode):
        raise FileError(f"{place} is not a regular file and will not be replaced")
    if not overwrite and not is_archive(place):
        raise FileError(
            f"{place} exists and groupfx did not write it: choose another name, or replace it with "
            "--force (overwrite=True)"
        )


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether the file at `path` looks like one of ours, by its first bytes; never raises."""
    try:
        with Path(path).open("rb") as file:
            return is_archive_file(file)
    except (OSError, ValueError):
        return False


def is_archive_file(file: BinaryIO) -> bool:
    """Whether an open file looks like one of ours; its position returns to the start."""
    # torch.save writes the pickle first, and the pickle begins with the name of the format.
    start = file.read(_HEAD)
    file.seek(0)
    return start.startswith(ZIP_START) and FORMAT.encode() in start


def read(path: str | os.PathLike[str]) -> Archive:
    """Read a file that `write` wrote. Nothing in it is executed, whoever wrote it.

    Tensors are put on the CPU. Raises `FileError` for a file that is missing, damaged, from
    another program, or from a newer version of groupfx.
    """
    try:
        with Path(path).open("rb") as file:
            return reading(lambda: read_archive(file), str(path))
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error


def read_archive(file: BinaryIO) -> Archive:
    """The archive in an open file. Raises `Damaged`, or whatever wrong data makes torch raise."""
    if not is_archive_file(file):
        raise Damaged("it does not begin as a file of ours does")
    container = check_container(file)
    pickled = read_record(file, PICKLE)
    strange = sorted(name for name in globals_of(pickled) if not _ALLOWED.match(name))
    if strange:
        raise Damaged(f"it asks for {first_few(strange, 5)}, which no file of ours does")
    data = torch.load(file, weights_only=True, map_location="cpu")
    archive = decode(data, Budget(100_000 + _VALUES_A_BYTE * len(pickled)))
    check_size(_all(archive), container.size)
    return archive


def _all(archive: Archive) -> list[Tensor]:
    roots: list[nn.Module] = [*archive.fragments.values()]
    if archive.model is not None:
        roots.append(archive.model)
    found = [tensor for root in roots for tensor in (*root.parameters(), *root.buffers())]
    return [*found, *(archive.state or {}).values()]
