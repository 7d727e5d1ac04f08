"""One result as one HTML file that needs nothing else: `write_page`."""

from __future__ import annotations

from pathlib import Path

from ..api.onnx import OnnxResult
from ..api.tuning import Tuned
from ..deploy import Export, Validation
from ..errors import UsageError
from ..files.atomic import whole_file
from ..fleet import FleetResult
from ..rewriting import Report, Result
from .content import Page
from .of_files import page_of_export, page_of_onnx, page_of_tuned, with_times, with_validation
from .of_fleet import page_of_fleet
from .of_report import page_of_report
from .of_validation import page_of_validation
from .overlays import write_overlay
from .rendering import MOST_BYTES, render

__all__ = [
    "MOST_BYTES",
    "Page",
    "page_of",
    "page_of_export",
    "page_of_fleet",
    "page_of_onnx",
    "page_of_report",
    "page_of_tuned",
    "page_of_validation",
    "render",
    "with_times",
    "with_validation",
    "write_overlay",
    "write_page",
]

Showable = Result | Report | Export | Validation | OnnxResult | Tuned | FleetResult | Page


def write_page(result: Showable, path: str | Path, *, name: str | None = None) -> None:
    """Write one HTML file that shows `result`, whole or not at all.

    `result` is what `groupfx.rewrite`, `export`, `validate`, `tune` or `rewrite_onnx` gave. `name`
    is what the page calls the model. The page loads nothing, is smaller than 2 MB, and has the same
    bytes for the same result: no time, path or user is in it. Raises `FileError` where `path`
    cannot be written, `UsageError` for what is no result.
    """
    text = render(page_of(result, name=name))
    with whole_file(Path(path)) as file:
        file.write(text.encode("utf-8"))


def page_of(result: Showable, *, name: str | None = None) -> Page:
    """What the page of a result shows."""
    if isinstance(result, Page):
        return result
    if isinstance(result, Result):
        return page_of_report(result.report, name or type(result.program.model).__name__)
    if isinstance(result, Report):
        return page_of_report(result, name or "a model")
    if isinstance(result, Export):
        return page_of_export(result, name=name)
    if isinstance(result, Validation):
        return page_of_validation(result)
    if isinstance(result, OnnxResult):
        return page_of_onnx(result, name or "an ONNX file")
    if isinstance(result, Tuned):
        return page_of_tuned(result, name)
    if isinstance(result, FleetResult):
        return page_of_fleet(result)
    raise UsageError(
        f"a page shows what groupfx.rewrite, export, validate, tune or rewrite_onnx gave, and not "
        f"a {type(result).__name__}"
    )
