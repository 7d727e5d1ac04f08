"""Checks the file of a page before the work, as every other file that a command writes."""

from collections.abc import Mapping
from pathlib import Path

from ...errors import UsageError
from .files import check_distinct, check_folder

_ENDINGS = (".html", ".htm")


def check_page(path: Path | None, others: Mapping[str, Path | None]) -> None:
    """Refuse a page that could not be written, or that would replace one of the `others`.

    Raises UsageError or FileError.
    """
    if path is None:
        return
    if path.suffix.lower() not in _ENDINGS:
        raise UsageError(f"--html {path}: the name must end in .html, such as {path.name}.html")
    for option, other in others.items():
        check_distinct({option: other, "--html": path})
    check_folder(path, "--html")


def check_overlay(
    path: Path | None, others: Mapping[str, Path | None], *, checked: bool = True
) -> None:
    """Refuse an overlay of nothing, or one that could not be written.

    Raises UsageError or FileError.
    """
    if path is None:
        return
    if not checked:
        raise UsageError("--overlay shows what a check finds, and --no-verify leaves it out")
    for option, other in others.items():
        check_distinct({option: other, "--overlay": path})
    check_folder(path, "--overlay")


def check_save_repro(folder: Path | None, *, no_verify: bool = False) -> None:
    """Refuse a folder that could not be written later. Raises UsageError or FileError."""
    if folder is None:
        return
    if no_verify:
        raise UsageError("--save-repro shows what a check finds, and --no-verify leaves it out")
    from ...deploy.repro import check_repro

    check_repro(folder)
