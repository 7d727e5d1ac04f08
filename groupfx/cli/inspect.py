"""`groupfx inspect`: what is grouped, what a rewrite would do, and why not where not."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from ..api import FoundSite, find, make_pipeline
from ..archive import Archive
from ..rewriting import Totals
from ..rewriting.complexity import totals
from .files import STDOUT, check_distinct, check_folder, json_text, write_text
from .model_file import ModelOptions, OpenedFile, read_source
from .numbers import count, plural, short, sizes
from .rewrite_text import show_left, show_opening
from .screen import Screen
from .table import Column

SCHEMA = "groupfx.inspect/1"

_TITLES = ("site", "kind", "type", "channels", "groups", "kernel")


@dataclass(frozen=True)
class InspectOptions:
    """The options of the command."""

    source: ModelOptions
    passes: tuple[str, ...] | None
    target: str | None
    way: str
    json: Path | None
    quiet: bool
    verbose: bool


def run_inspect(options: InspectOptions) -> int:
    """Read, look, tell."""
    make_pipeline(options.passes, options.target)
    check_distinct({"MODEL": options.source.path, "--json": options.json})
    if options.json is not None:
        check_folder(options.json, "--json")
    screen = Screen(quiet=options.quiet, verbose=options.verbose, data=options.json != STDOUT)
    path = options.source.path
    with screen.work(f"Reading {path}"):
        opened = read_source(options.source)
    with screen.work("Looking at each convolution"):
        found = find(
            opened.model,
            opened.inputs,
            passes=options.passes,
            target=options.target,
            way=options.way,
        )
        whole = totals(opened.model, opened.inputs)
    show_opening(screen, opened, None, ())
    _show_history(screen, opened.archive)
    _show_found(screen, found, whole)
    if options.json is not None:
        write_text(options.json, json_text(_document(options, opened, found, whole)))
    return 0


def _document(
    options: InspectOptions, opened: OpenedFile, found: Sequence[FoundSite], whole: Totals
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "files": {"read": str(options.source.path), "kind": opened.kind},
        "inputs": opened.inputs.describe(),
        "sites": [asdict(site) for site in found],
        "totals": asdict(whole),
        "history": None if opened.archive is None else _history(opened.archive),
    }


def _history(archive: Archive) -> dict[str, Any]:
    """What was done to a file of ours, when, and by which version."""
    report = {key: value for key, value in archive.report.items() if key != "state_dict_map"}
    return {**asdict(archive.info), "report": report}


def _show_history(screen: Screen, archive: Archive | None) -> None:
    if archive is None:
        return
    info, report = archive.info, archive.report
    made = f"groupfx {info.groupfx}, torch {info.torch}"
    screen.paragraph(f"written {info.created} by {made}, opened {archive.way}")
    for entry in report.get("passes", ()):
        done = plural(entry["rewritten"], "site")
        screen.paragraph(f"{entry['name']}: {done} rewritten, {entry['skipped']} left", indent="  ")
    verdict = report.get("model")
    same = "not checked" if verdict is None else "checked: the same function"
    if verdict is not None and not verdict["ok"]:
        same = "checked: NOT the same function"
    screen.paragraph(same, indent="  ")


def _show_found(screen: Screen, found: Sequence[FoundSite], whole: Totals) -> None:
    screen.line()
    if not found:
        screen.line("There is no grouped convolution.")
    elif screen.terminal:
        screen.table(_columns("site", "kind", "conv"), map(_short_row, found))
    else:
        screen.table(_columns(*_TITLES), map(_full_row, found))
    if found:
        screen.line()
        _show_totals(screen, found, whole)
    show_left(screen, [(s.name, s.kind, s.reason or "") for s in found if not s.taken])


def _columns(*titles: str) -> list[Column]:
    left = [Column(title) for title in titles]
    numbers = [Column(title, right=True) for title in ("parameters", "MACs")]
    return [*left, *numbers, Column("output"), Column("calls", right=True), Column("rewrite")]


def _full_row(site: FoundSite) -> tuple[str | Text, ...]:
    return (
        site.name,
        site.kind,
        site.type or "-",
        _channels(site),
        count(site.groups),
        sizes(site.kernel_size),
        count(site.parameters),
        count(site.macs),
        sizes(site.output_shape),
        str(site.calls),
        _taken(site),
    )


def _short_row(site: FoundSite) -> tuple[str | Text, ...]:
    groups = "" if site.groups is None else f" {site.groups}"
    conv = "-" if site.type is None else f"{site.type} {sizes(site.kernel_size)} {_channels(site)}"
    return (
        site.name,
        f"{site.kind}{groups}",
        conv,
        short(site.parameters),
        short(site.macs),
        sizes(site.output_shape),
        "" if site.calls == 1 else str(site.calls),
        _taken(site),
    )


def _channels(site: FoundSite) -> str:
    return "-" if site.in_channels is None else f"{site.in_channels}->{site.out_channels}"


def _taken(site: FoundSite) -> Text:
    return Text("yes", style="green") if site.taken else Text("no", style="yellow")


def _show_totals(screen: Screen, found: Sequence[FoundSite], whole: Totals) -> None:
    modules = {site.name.partition("#")[0]: site for site in found}
    parameters = sum(site.parameters or 0 for site in modules.values())
    macs = sum(site.macs or 0 for site in found)
    taken = sum(site.taken for site in found)
    screen.line(f"{plural(len(found), 'grouped convolution')}, a rewrite would take {taken}.")
    rows = [
        ("parameters", count(parameters), count(whole.parameters)),
        ("MACs, one sample", short(macs), short(whole.macs)),
    ]
    screen.table([Column(""), Column("in them", right=True), Column("in all", right=True)], rows)
