"""An ONNX file that is rewritten or looked at, as text and as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...running.totals import Totals
from .numbers import plural, short
from .rewrite_text import show_folds, show_left, show_not_checked, show_sizes, show_taken
from .screen import Screen
from .table import Column, Table

# A torch model is rewritten and looked at without ONNX.
if TYPE_CHECKING:
    from ...api.onnx import OnnxResult
    from ...deploy import OnnxSite

SCHEMA = "groupfx.onnx/1"
_COLUMNS = [Column(t) for t in ("site", "kind", "before", "after")]
_FOUND = [
    *(Column(t) for t in ("site", "kind", "convolution")),
    Column("MACs", right=True),
    Column("rewrite"),
]


def show_onnx_found(screen: Screen, path: Path, found: Sequence[OnnxSite]) -> None:
    """Every grouped convolution, and whether a rewrite would take it."""
    screen.paragraph(f"{path}: an ONNX file")
    screen.line()
    if found:
        screen.table(Table(_FOUND, [_found_row(site) for site in found]))
        screen.line()
    show_taken(screen, len(found), sum(site.reason is None for site in found))
    show_left(screen, [(s.name, s.kind, s.reason) for s in found if s.reason is not None])


def _found_row(site: OnnxSite) -> tuple[str, ...]:
    taken = "no" if site.reason is not None else "yes"
    return (site.name, site.kind, site.before, short(site.macs), taken)


def show_onnx_rewrite(screen: Screen, path: Path, result: OnnxResult) -> None:
    """What was done, what was left and why, the sizes, and the validation."""
    made = result.rewrite
    screen.paragraph(f"{path}: an ONNX file")
    for note in made.notes:
        screen.paragraph(note, indent="  ")
    screen.line()
    if made.sites:
        rows = [(s.name, f"{s.kind} {s.groups}", s.before, s.after or "") for s in made.sites]
        screen.table(Table(_COLUMNS, rows))
        screen.line()
        branches = sum(site.branches for site in made.sites)
        sites = plural(len(made.sites), "site")
        screen.paragraph(f"{sites} rewritten, {plural(branches, 'branch')}.")
    elif not made.folds:
        why = "" if made.skipped else ": there is no grouped convolution"
        screen.paragraph(f"Nothing to rewrite{why}.")
    if made.fastest is not None and made.fastest.summary is not None:
        screen.paragraph(made.fastest.summary)
    show_folds(screen, made.folds)
    show_left(screen, [(site.name, site.kind, site.reason) for site in made.skipped])
    show_sizes(screen, made.before, made.after)
    if result.validation is not None:
        # ONNX is loaded by now: there is a result.
        from .validation_text import show_validation

        show_validation(screen, result.validation)
    elif made.changed:
        show_not_checked(screen)


def found_document(path: Path, found: Sequence[OnnxSite]) -> dict[str, Any]:
    """A file that was looked at."""
    return {
        "schema": SCHEMA,
        "files": {"read": str(path), "written": []},
        "sites": [_site(site) for site in found],
        "totals": None,
        "notes": [],
        "folds": [],
        "validation": None,
    }


def rewrite_document(path: Path, result: OnnxResult) -> dict[str, Any]:
    """A file that was rewritten."""
    made, verdict = result.rewrite, result.validation
    return {
        "schema": SCHEMA,
        "files": {"read": str(path), "written": [str(file) for file in result.files]},
        "sites": [_site(site) for site in made.sites],
        "skipped": [
            {"name": s.name, "kind": s.kind, "pass": s.pass_name, "reason": s.reason}
            for s in made.skipped
        ],
        "totals": {"before": _totals(made.before), "after": _totals(made.after)},
        "notes": list(made.notes),
        "folds": [fold.to_dict() for fold in made.folds],
        "validation": None if verdict is None else verdict.to_dict(),
    }


def _site(site: OnnxSite) -> dict[str, Any]:
    plain = {**asdict(site), "notes": list(site.notes)}
    plain["pass"] = plain.pop("pass_name")
    return plain


def _totals(totals: Totals) -> dict[str, Any]:
    plain = asdict(totals)
    # A file says its sizes, or there are no MACs.
    del plain["guessed"]
    return {"grouped": plain.pop("grouped_convs"), **plain}
