"""`groupfx inspect`: what is grouped, what a rewrite would do, and why not where not."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from ...api.models import FoundSite, make_pipeline, survey
from ...convs.names import unnumbered
from ...files.archive import Archive
from ...rewriting import Totals
from ...targets import targets
from ..input.files import STDOUT, check_distinct, check_folder, json_text, write_text
from ..input.model_file import ModelOptions, OpenedFile, read_source
from ..text.numbers import count, plural, short, sizes
from ..text.rewrite_text import show_left, show_opening
from ..text.screen import Screen
from ..text.table import Column, Table

SCHEMA = "groupfx.inspect/1"

_LAST = (Column("output"), Column("calls", right=True), Column("rewrite"))
_TOLD = [Column(target.name) for target in targets()]
_FULL = [
    *(Column(title) for title in ("site", "kind", "type", "channels", "groups", "kernel")),
    *(Column(title, right=True) for title in ("parameters", "MACs")),
    *_LAST,
]
_BRIEF = [
    *(Column(title) for title in ("site", "kind", "conv")),
    *(Column(title, right=True) for title in ("params", "MACs")),
    *_LAST,
]


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
    if options.source.path.suffix == ".onnx":
        from .onnx_files import OnnxCommand, inspect_onnx_file

        return inspect_onnx_file(
            OnnxCommand(
                source=options.source,
                passes=options.passes,
                target=options.target,
                json=options.json,
                quiet=options.quiet,
                verbose=options.verbose,
            )
        )
    check_distinct({"MODEL": options.source.path, "--json": options.json})
    if options.json is not None:
        check_folder(options.json, "--json")
    screen = Screen(quiet=options.quiet, verbose=options.verbose, data=options.json != STDOUT)
    with screen.work(f"Reading {options.source.path}"):
        opened = read_source(options.source, screen.warn)
    with screen.work("Looking at each convolution"):
        seen = survey(
            opened.model,
            opened.inputs,
            passes=options.passes,
            target=options.target,
            way=options.way,
        )
    found, whole = seen.sites, seen.totals
    show_opening(screen, opened, seen.way, seen.notes)
    _show_history(screen, opened.archive)
    _show_found(screen, found, whole)
    if options.json is not None:
        write_text(options.json, json_text(_document(opened, found, whole)))
    return 0


def _document(opened: OpenedFile, found: Sequence[FoundSite], whole: Totals) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "files": opened.document,
        "inputs": opened.inputs.describe(),
        "sites": [_site(site) for site in found],
        "totals": asdict(whole),
        "history": None if opened.archive is None else _history(opened.archive),
    }


def _site(site: FoundSite) -> dict[str, Any]:
    plain = asdict(site)
    del plain["spec"]
    said = {target.name: asdict(target.says(site.spec)) for target in targets()}
    return {**plain, "targets": said}


def _history(archive: Archive) -> dict[str, Any]:
    """What was done to a file of ours, when, and by which version."""
    report = {key: value for key, value in archive.report.items() if key != "state_dict_map"}
    return {**asdict(archive.info), "way": archive.way, "report": report}


def _show_history(screen: Screen, archive: Archive | None) -> None:
    if archive is None:
        return
    info, report = archive.info, archive.report
    made = f"groupfx {info.groupfx} and torch {info.torch}, way {archive.way}"
    screen.paragraph(f"written: {info.created} by {made}")
    for entry in report.get("passes", ()):
        done = plural(entry["rewritten"], "site")
        screen.paragraph(f"{entry['name']}: {done} rewritten, {entry['skipped']} left", indent="  ")
    verdict = report.get("model")
    if verdict is None:
        screen.paragraph("not checked", indent="  ")
    else:
        same = "the same function" if verdict["ok"] else "NOT the same function"
        screen.paragraph(f"checked: {same}", indent="  ")


def _show_found(screen: Screen, found: Sequence[FoundSite], whole: Totals) -> None:
    screen.line()
    if not found:
        screen.line("There is no grouped convolution.")
        return
    screen.table(
        Table([*_FULL, *_TOLD], [(*_full_row(site), *_words(site)) for site in found]),
        Table([*_BRIEF, *_TOLD], [(*_brief_row(site), *_words(site)) for site in found]),
        Table(_BRIEF, [_brief_row(site) for site in found]),
    )
    screen.line()
    _show_totals(screen, found, whole)
    _show_targets(screen, found)
    show_left(screen, [(s.name, s.kind, s.reason or "") for s in found if not s.taken])


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


def _brief_row(site: FoundSite) -> tuple[str | Text, ...]:
    """The kernel tells the dimensions, `conv` the output's channels: neither is said twice."""
    groups = "" if site.groups is None else f" {site.groups}"
    positions = None if site.output_shape is None else site.output_shape[-(site.dims or 0) :]
    return (
        site.name,
        f"{site.kind}{groups}",
        f"{sizes(site.kernel_size)} {_channels(site)}",
        short(site.parameters),
        short(site.macs),
        sizes(positions),
        "" if site.calls == 1 else str(site.calls),
        _taken(site),
    )


def _channels(site: FoundSite) -> str:
    return "-" if site.in_channels is None else f"{site.in_channels}->{site.out_channels}"


def _taken(site: FoundSite) -> Text:
    return Text("yes", style="green") if site.taken else Text("no", style="yellow")


def _words(site: FoundSite) -> tuple[str, ...]:
    return tuple(target.says(site.spec).word for target in targets())


def _show_totals(screen: Screen, found: Sequence[FoundSite], whole: Totals) -> None:
    modules = {unnumbered(site.name): site for site in found}
    parameters = sum(site.parameters or 0 for site in modules.values())
    macs = sum(site.macs or 0 for site in found)
    taken = sum(site.taken for site in found)
    sites = plural(len(found), "grouped convolution")
    screen.line(f"{sites}, of which a rewrite would take {taken}.")
    screen.line()
    rows = [
        ("parameters", count(parameters), count(whole.parameters)),
        ("MACs, one sample", short(macs), short(whole.macs)),
    ]
    titles = (Column("in them", right=True), Column("in the model", right=True))
    screen.table(Table([Column(""), *titles], rows))


def _show_targets(screen: Screen, found: Sequence[FoundSite]) -> None:
    """What each target would say, with the words of the table explained."""
    screen.line()
    for target in targets():
        counts = Counter(target.says(site.spec) for site in found)
        screen.line(f"{target.name}:")
        for said, number in counts.items():
            screen.paragraph(f"{said.word}, {plural(number, 'site')}: {said.text}", indent="  ")
