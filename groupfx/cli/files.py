"""Files that the command line writes: checked before the work, written whole after it."""

import contextlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import FileError, UsageError

STDOUT = Path("-")


def check_folder(path: Path, option: str) -> None:
    """Refuse a file that could not be written later: no folder, no permission, a folder itself."""
    if path == STDOUT:
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
        resolved = path if path == STDOUT else path.resolve()
        if resolved in seen:
            raise UsageError(f"{seen[resolved]} and {option} both name {path}: give another file")
        seen[resolved] = option


def json_text(document: Mapping[str, Any]) -> str:
    """`document` as JSON with an end of line; a number that is not finite is null."""
    return json.dumps(_finite(document), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_text(path: Path, text: str) -> None:
    """Write `text` whole or not at all; `-` is stdout. Raises FileError."""
    if path == STDOUT:
        _to_stdout(text)
        return
    try:
        if path.exists() and not path.is_file():
            # A device or a pipe, such as /dev/stderr: it must not be replaced by a file.
            path.write_text(text, encoding="utf-8")
        else:
            _replace(path.resolve(), text)
    except OSError as error:
        raise FileError(f"{path} cannot be written ({error.strerror or error})") from error


def _replace(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode(path))
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _mode(path: Path) -> int:
    """Permissions of the file that is replaced, else those of a new file."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _to_stdout(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has what it wanted. Python would complain once more at its end.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
