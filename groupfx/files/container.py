"""The zip container that `torch.save` writes, checked before torch looks into it.

torch stores its records uncompressed and does not check their checksums on reading. So whatever
claims more than the file holds, is compressed, or does not match its checksum, is refused here.
"""

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

from torch import Tensor

from .names import Damaged

PICKLE = "data.pkl"
ZIP_START = b"PK\x03\x04"
MAX_RECORDS = 4_000_000
_CHUNK = 1 << 20
# What Python's zipfile raises on damaged files; an OSError comes from seeking before the start.
_FAILURES = (zipfile.BadZipFile, LookupError, EOFError, RuntimeError, ValueError, OSError)


@dataclass(frozen=True)
class Container:
    """What a checked zip file holds: the names of its records below its one folder."""

    folder: str
    records: frozenset[str]
    size: int


def is_zip(file: BinaryIO) -> bool:
    """Whether `file` begins as a zip file does; its position stays."""
    position = file.tell()
    start = file.read(len(ZIP_START))
    file.seek(position)
    return start == ZIP_START


def record_names(file: BinaryIO) -> frozenset[str]:
    """Names of the records of a zip file, below its folder, not checked. Raises `Damaged`."""
    try:
        with zipfile.ZipFile(file) as archive:
            return frozenset(name.partition("/")[2] for name in archive.namelist())
    except _FAILURES as error:
        raise Damaged(
            f"it is truncated or damaged ({str(error) or type(error).__name__})"
        ) from error
    finally:
        file.seek(0)


def check_container(file: BinaryIO, *, checksums: bool = True) -> Container:
    """Look through the directory of the zip `file` and verify its checksums. Raises `Damaged`."""
    size = file.seek(0, 2)
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            container = _check_directory(archive.infolist(), size)
            if checksums:
                _check_records(archive)
    except Damaged:
        raise
    except _FAILURES as error:
        raise Damaged(
            f"it is truncated or damaged ({str(error) or type(error).__name__})"
        ) from error
    finally:
        file.seek(0)
    return container


def _check_directory(entries: list[zipfile.ZipInfo], size: int) -> Container:
    if not entries or len(entries) > MAX_RECORDS:
        raise Damaged(f"it holds {len(entries)} records")
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise Damaged("two of its records have the same name")
    folder = names[0].partition("/")[0]
    for entry in entries:
        parts = entry.filename.split("/")
        if parts[0] != folder or len(parts) < 2 or ".." in parts or "\\" in entry.filename:
            raise Damaged(f"the name of a record leads elsewhere: {entry.filename[:80]!r}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise Damaged(f"the record {entry.filename[:80]!r} is compressed; torch.save stores it")
    claimed = sum(entry.file_size for entry in entries)
    if claimed > size:
        raise Damaged(f"its records claim {claimed:,} bytes, and the file has {size:,}")
    below = frozenset(name.partition("/")[2] for name in names)
    return Container(folder, below, size)


def _check_records(archive: zipfile.ZipFile) -> None:
    for entry in archive.infolist():
        with archive.open(entry) as record:
            while record.read(_CHUNK):
                pass


def read_record(file: BinaryIO, name: str, limit: int | None = None) -> bytes:
    """The bytes of the record `name` (below the folder), at most `limit` of them."""
    try:
        with zipfile.ZipFile(file) as archive:
            folder = archive.infolist()[0].filename.partition("/")[0]
            with archive.open(f"{folder}/{name}") as record:
                return record.read() if limit is None else record.read(limit)
    except _FAILURES as error:
        raise Damaged(f"its record {name} cannot be read ({error})") from error
    finally:
        file.seek(0)


def check_size(tensors: Iterable[Tensor], size: int) -> None:
    """Raise `Damaged` where the storages of `tensors` need more than the `size` of their file.

    Each of them lies in the file, but a legal directory may name one record many times.
    """
    storages = [tensor.untyped_storage() for tensor in tensors if not tensor.is_meta]
    claimed = sum({s.data_ptr(): s.nbytes() for s in storages}.values())
    if claimed > size:
        raise Damaged(f"tensors of {claimed:,} bytes in a file of {size:,}")
