"""What kind of file holds a network, told by its first bytes and its records."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from ..errors import FileError
from .archive.file import is_archive_file
from .container import PICKLE, is_zip, record_names
from .existing import require_file
from .names import Damaged

FileKind = Literal["archive", "exported", "pickle", "safetensors"]

_MAX_HEADER = 100_000_000


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, FileKind]]:
    """The file at `path`, at its start, and what it is.

    Raises `FileError` where there is none, for one of another kind, and in place of `Damaged`.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            yield file, _kind_of(file, path)
    except Damaged as error:
        raise FileError(f"{path} cannot be read: {error}") from error
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error


def _kind_of(file: BinaryIO, path: Path) -> FileKind:
    if is_zip(file):
        return "archive" if is_archive_file(file) else _kind_of_zip(file, path)
    start = file.read(400)
    size = file.seek(0, 2)
    file.seek(0)
    if not start:
        raise FileError(f"{path} is empty: it was not written to the end, save the model again")
    # The length of a JSON table, and the table.
    length = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and 2 <= length <= min(size - 8, _MAX_HEADER):
        return "safetensors"
    if start[:1] == b"\x80":
        return "pickle"
    hint = f": name what makes the model in it, such as {path}:Net" if path.suffix == ".py" else ""
    raise FileError(f"{path} is {_described(start)}, not a model that torch.save wrote{hint}")


def _kind_of_zip(file: BinaryIO, path: Path) -> FileKind:
    records = record_names(file)
    # Those of today's torch, and of torch 2.7.
    older = {"serialized_exported_program.json", "serialized_state_dict.pt"} <= records
    if older or ("archive_format" in records and any(r.startswith("models/") for r in records)):
        return "exported"
    if "constants.pkl" in records:
        raise FileError(
            f"{path} is a TorchScript file, which cannot be rewritten: save the Python model that "
            "it was made from"
        )
    if PICKLE not in records:
        raise FileError(f"{path} is a zip file that torch.save did not write")
    return "pickle"


def _described(start: bytes) -> str:
    if b"ustar" in start or start.startswith(b"\x1f\x8b"):
        return "a tar or gzip file"
    if start.startswith(b"\x08") and b"onnx" in start.lower():
        return "an ONNX file"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in start):
        return f"a text file (it begins with {start[:20].decode(errors='replace')!r})"
    return "of an unknown kind"
