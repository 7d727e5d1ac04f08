"""Write what shows a difference into a folder of its own, whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from ...errors import FileError
from ...report.prose import told
from ..validate.verdict import Validation
from .saved_model import npz
from .script import script
from .smallest import smallest

SCRIPT = "show.py"


def check_repro(folder: Path) -> None:
    """Raise FileError for a folder that holds something, or that could not be made later."""
    if folder.is_dir():
        try:
            if any(folder.iterdir()):
                raise FileError(f"the folder {folder} is not empty: name a new one")
        except OSError as error:
            raise FileError(f"{folder} cannot be read: {error.strerror}") from error
    elif folder.exists() or folder.is_symlink():
        raise FileError(f"{folder} is a file: name a new folder")
    parent = folder.absolute().parent
    if not parent.is_dir():
        raise FileError(f"{folder}: there is no folder {folder.parent}: make it first")
    if not os.access(parent, os.W_OK):
        raise FileError(f"{folder}: no permission to write to {folder.parent}")


def save_repro(validation: Validation, folder: Path) -> Path | None:
    """Write the smallest part that differs, its inputs, and a script that shows it; its path.

    None, and nothing is written, where the two do not differ, or no part of them does when it runs
    alone. Raises FileError where `folder` is not empty or cannot be written.
    """
    check_repro(folder)
    found = validation.difference
    repro = None if found is None else smallest(found)
    if repro is None:
        return None
    inputs = {f"input_{place}": array for place, array in enumerate(repro.inputs)}
    bounds = {"allowed": repro.allowed, "allowed_rms": repro.allowed_rms}
    files = {
        **repro.candidate.files,
        **({} if repro.reference is None else repro.reference.files),
        "inputs.npz": npz(inputs),
        "expected.npz": npz({"expected": repro.expected, **bounds}),
        SCRIPT: script(repro, told(validation.blame or "")).encode("utf-8"),
    }
    _write(folder, files)
    return folder / SCRIPT


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Into a folder beside it first, which becomes `folder` at the end."""
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.part")
    try:
        part.mkdir()
        for name, data in files.items():
            (part / name).write_bytes(data)
        part.replace(folder)
    except OSError as error:
        raise FileError(f"{folder} was not written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
