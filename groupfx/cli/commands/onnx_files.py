"""`rewrite` and `inspect` for an ONNX file of any producer."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...api.onnx import ONNX, OnnxResult, find_onnx, onnx_passes, rewrite_onnx
from ...deploy import OnnxSite, Validation
from ...errors import MismatchError, UsageError
from ...running.totals import Totals
from ..input.files import STDOUT, check_distinct, check_folder, json_text, write_text
from ..input.model_file import ModelOptions
from ..text.numbers import count, plural, short, size
from ..text.rewrite_text import show_left
from ..text.screen import Screen
from ..text.table import Column, Table
from ..text.validation_text import show_validation

SCHEMA = "groupfx.onnx/1"
_COLUMNS = [Column(t) for t in ("site", "kind", "before", "after")]
_FOUND = [
    *(Column(t) for t in ("site", "kind", "convolution")),
    Column("MACs", right=True),
    Column("rewrite"),
]


@dataclass(frozen=True)
class OnnxCommand:
    """The options that make sense for an ONNX file."""

    source: ModelOptions
    passes: tuple[str, ...] | None
    target: str | None
    verify: bool = True
    output: Path | None = None
    force: bool = False
    dry_run: bool = False
    json: Path | None = None
    quiet: bool = False
    verbose: bool = False

    @property
    def path(self) -> Path:
        """The file to read."""
        return self.source.path

    @property
    def place(self) -> Path:
        """Where the result goes."""
        return self.output or Path(f"{self.path.stem}.groupfx{ONNX}")

    @property
    def screen(self) -> Screen:
        """Where output goes."""
        return Screen(quiet=self.quiet, verbose=self.verbose, data=self.json != STDOUT)


def rewrite_onnx_file(options: OnnxCommand) -> int:
    """Split, validate, write, tell."""
    onnx_passes(options.passes, options.target)
    _check_outputs(options)
    screen = options.screen
    shapes: dict[str | int, tuple[int, ...]] = {
        position if shape.name is None else shape.name: shape.sizes
        for position, shape in enumerate(options.source.input_shapes)
    }
    words = "Rewriting and validating" if options.verify else "Rewriting"
    try:
        with screen.work(words, what="runs") as progress:
            result = rewrite_onnx(
                options.path,
                None if options.dry_run else options.place,
                passes=options.passes,
                target=options.target,
                verify=options.verify,
                overwrite=options.force,
                shapes=shapes,
                progress=progress,
            )
    except MismatchError as error:
        if isinstance(error.report, Validation):
            show_validation(screen, error.report)
            screen.note("No file was written.")
        raise
    _show(screen, options, result)
    if options.json is not None:
        write_text(options.json, json_text(_document(options, result)))
    return 0


def inspect_onnx_file(options: OnnxCommand) -> int:
    """Look, tell."""
    check_distinct({"MODEL": options.path, "--json": options.json})
    if options.json is not None:
        check_folder(options.json, "--json")
    screen = options.screen
    with screen.work(f"Reading {options.path}"):
        found = find_onnx(options.path, passes=options.passes, target=options.target)
    screen.paragraph(f"{options.path}: an ONNX file")
    screen.line()
    if not found:
        screen.line("There is no grouped convolution.")
    else:
        screen.table(Table(_FOUND, [_found_row(site) for site in found]))
        screen.line()
        taken = sum(site.reason is None for site in found)
        sites = plural(len(found), "grouped convolution")
        screen.line(f"{sites}, of which a rewrite would take {taken}.")
        left = [(site.name, site.kind, site.reason) for site in found if site.reason is not None]
        show_left(screen, left)
    if options.json is not None:
        document = {
            "schema": SCHEMA,
            "files": {"read": str(options.path), "written": []},
            "sites": [_site(site) for site in found],
            "totals": None,
            "notes": [],
            "validation": None,
        }
        write_text(options.json, json_text(document))
    return 0


def _found_row(site: OnnxSite) -> tuple[str, ...]:
    taken = "no" if site.reason is not None else "yes"
    return (site.name, site.kind, site.before, short(site.macs), taken)


def _check_outputs(options: OnnxCommand) -> None:
    place = options.place
    if place.suffix != ONNX:
        raise UsageError(
            f"-o {place}: what was read from an .onnx file is written to one: end the name in .onnx"
        )
    check_distinct({"MODEL": options.path, "-o": None if options.dry_run else place})
    check_distinct({"-o": place, "--json": options.json})
    if not options.dry_run:
        check_folder(place, "-o")
    if options.json is not None:
        check_folder(options.json, "--json")


def _show(screen: Screen, options: OnnxCommand, result: OnnxResult) -> None:
    made = result.rewrite
    screen.paragraph(f"{options.path}: an ONNX file")
    for note in made.notes:
        screen.paragraph(note, indent="  ")
    screen.line()
    if made.sites:
        rows = [(s.name, f"{s.kind} {s.groups}", s.before, s.after or "") for s in made.sites]
        screen.table(Table(_COLUMNS, rows))
        screen.line()
        branches = sum(site.branches for site in made.sites)
        sites = plural(len(made.sites), "site")
        screen.line(f"{sites} rewritten, {plural(branches, 'branch')}.")
    else:
        why = "" if made.skipped else ": there is no grouped convolution"
        screen.line(f"Nothing to rewrite{why}.")
    show_left(screen, [(site.name, site.kind, site.reason) for site in made.skipped])
    _show_totals(screen, made.before, made.after)
    if result.validation is not None:
        show_validation(screen, result.validation)
    elif made.sites:
        screen.line("Not checked (--no-verify).")
    screen.line()
    if options.dry_run:
        screen.note("Dry run: no file was written.")
    for path in result.files:
        screen.note(f"Wrote {path} ({size(path.stat().st_size)}).")


def _show_totals(screen: Screen, before: Totals, after: Totals) -> None:
    rows = [
        ("convolutions", count(before.convs), count(after.convs)),
        ("  grouped", count(before.grouped_convs), count(after.grouped_convs)),
        ("parameters", count(before.parameters), count(after.parameters)),
        ("MACs, one sample", short(before.macs), short(after.macs)),
    ]
    screen.line()
    screen.table(
        Table([Column(""), Column("before", right=True), Column("after", right=True)], rows)
    )


def _document(options: OnnxCommand, result: OnnxResult) -> dict[str, Any]:
    made, verdict = result.rewrite, result.validation
    skipped: Sequence[dict[str, Any]] = [
        {"name": s.name, "kind": s.kind, "pass": s.pass_name, "reason": s.reason}
        for s in made.skipped
    ]
    return {
        "schema": SCHEMA,
        "files": {
            "read": str(options.path),
            "written": [str(path) for path in result.files],
        },
        "sites": [_site(site) for site in made.sites],
        "skipped": skipped,
        "totals": {"before": _totals(made.before), "after": _totals(made.after)},
        "notes": list(made.notes),
        "validation": None if verdict is None else verdict.to_dict(),
    }


def _site(site: OnnxSite) -> dict[str, Any]:
    fields = {**asdict(site), "notes": list(site.notes)}
    pass_name = fields.pop("pass_name")
    return {**fields, "pass": pass_name}


def _totals(totals: Totals) -> dict[str, Any]:
    counts = asdict(totals)
    return {"grouped": counts.pop("grouped_convs"), **counts}
