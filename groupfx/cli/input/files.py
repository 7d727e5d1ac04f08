"""Files that the command line writes: checked before the work, written whole after it."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import FileError, UsageError, first_line

STDOUT = Path("-")
ONNX = ".onnx"
PROGRAM = "groupfx"
# What groupfx.emit puts into the first lines of a file.
_MARK = "Written by groupfx"
_HEAD = 400


def check_folder(path: Path | None, option: str) -> None:
    """Refuse a file that could not be written later: no folder, no permission, a folder itself."""
    if path is None or path == STDOUT:
        return
    folder = path.parent
    if not folder.is_dir():
        raise FileError(f"{option} {path}: there is no folder {folder}: make it first")
    if path.is_dir():
        raise FileError(f"{option} {path} is a folder: name a file in it")
    writable = path if path.exists() and not path.is_file() else folder
    if not os.access(writable, os.W_OK):
        raise FileError(f"{option} {path}: no permission to write to {writable}")


def check_distinct(named: Mapping[str, Path | None]) -> None:
    """Refuse one file under two options, the file that is read among them."""
    seen: dict[Path, str] = {}
    for option, path in named.items():
        if path is None:
            continue
        resolved = path if path == STDOUT else _resolved(path, option)
        if resolved in seen:
            raise UsageError(f"{seen[resolved]} and {option} both name {path}: give another file")
        seen[resolved] = option


def _resolved(path: Path, option: str) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # links that lead to each other
        raise FileError(f"{option} {path} cannot be followed: {first_line(error)}") from error


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """`document` as JSON with an end of line; a number that is not finite is null."""
    write_text(path, json.dumps(_finite(document), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def check_python(path: Path, *, force: bool) -> None:
    """Refuse to replace Python that somebody wrote: what we write says so in its first lines."""
    if force or not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        if _MARK not in file.read(_HEAD):
            raise FileError(
                f"--emit-python {path}: the file exists and groupfx did not write it: choose "
                "another name, or replace it with --force"
            )


def write_text(path: Path, text: str) -> None:
    """Write `text` whole or not at all; `-` is stdout. Raises FileError."""
    if path == STDOUT:
        _to_stdout(text)
    elif path.exists() and not path.is_file():
        _to_device(path, text)
    else:
        from ...files.atomic import whole_file

        with whole_file(path) as file:
            file.write(text.encode("utf-8"))


def _to_device(path: Path, text: str) -> None:
    """Write to a pipe or to something like /dev/stderr, which a file must not replace."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}") from error


def _to_stdout(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has what it wanted. Python would complain once more at its end.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
