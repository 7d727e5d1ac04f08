"""The rewritten sites, and what opening a model fixed, as lines of a docstring."""

from __future__ import annotations

import textwrap
from collections import defaultdict

from ..rewriting import Result
from .text import one_line


def site_lines(result: Result) -> list[str]:
    """What each rewritten convolution was, and is; equal ones together."""
    names: dict[tuple[str, str], list[str]] = defaultdict(list)
    for site in result.report.sites:
        names[site.before, site.after].append(site.name)
    lines = []
    for (before, after), where in names.items():
        lines += textwrap.wrap(
            one_line(f"{', '.join(where)}: {before} -> {after}"), 96, subsequent_indent="    "
        )
    return lines or ["No convolution in it was rewritten."]


def note_lines(result: Result) -> list[str]:
    """What opening the model fixed, such as its mode."""
    notes = [f"Note: {one_line(note)}." for note in result.report.notes]
    return [line for note in notes for line in textwrap.wrap(note, 96)]
