"""The page of a result, and what shows a fault: written last, so that they lose nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import FileError
from .screen import Screen

if TYPE_CHECKING:
    from ...deploy import Validation
    from ...page import Page, Showable


def write_page_file(
    screen: Screen, path: Path | None, result: Showable | Callable[[], Page], name: str
) -> None:
    """Write the page of `result`, or the one that it makes, where one is wanted.

    Raises FileError.
    """
    if path is None:
        return
    # Loaded here: jinja2 is for a page alone.
    from ...page import write_page

    write_page(result() if callable(result) else result, path, name=name)
    screen.wrote(path)


def write_overlay_file(screen: Screen, path: Path | None, found: Validation, file: Path) -> None:
    """Write the overlay of an ONNX file. Raises FileError, or warns where the verdict is no."""
    if path is None:
        return
    from ...page import write_overlay

    try:
        write_overlay(found, file, path)
        screen.wrote(path)
    except FileError as error:
        if found.ok:
            raise
        screen.warn(str(error))


def try_repro(screen: Screen, folder: Path | None, found: Validation) -> None:
    """Write what shows a difference, where that is wanted; what is wrong with it is a warning."""
    if folder is None:
        return
    if found.ok:
        screen.note(f"Nothing differs: there is nothing to write to {folder}.")
        return
    try:
        script = found.save_repro(folder)
    except FileError as error:
        screen.warn(str(error))
        return
    if script is None:
        screen.warn(f"{folder} was not written: no part of the two differs when it runs alone")
    else:
        screen.note(f"Wrote {folder}: what differs; run {script}.")


def try_page_file(screen: Screen, path: Path | None, result: Showable, name: str) -> None:
    """The same of what failed, whose own error is the one to tell: one of the page is a warning."""
    try:
        write_page_file(screen, path, result, name)
    except FileError as error:
        screen.warn(str(error))
