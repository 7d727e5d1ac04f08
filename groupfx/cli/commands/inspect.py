"""`groupfx inspect`: what is grouped, what a rewrite would do, and why not where not."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.text import Text

from ...api.models import FoundSite, make_pipeline, survey
from ...convs.names import unnumbered
from ...files.archive import Archive
from ...rewriting import Totals
from ...targets import Target, target_named, targets
from ..input.files import ONNX, check_distinct, check_folder, write_json
from ..input.model_file import ModelOptions, OpenedFile, read_source
from ..input.options import InspectCommand
from ..text.numbers import count, plural, short, sizes
from ..text.rewrite_text import macs_title, show_left, show_opening, show_taken
from ..text.screen import Screen
from ..text.table import Column, Table

SCHEMA = "groupfx.inspect/1"

_LAST = (Column("output"), Column("calls", right=True), Column("rewrite"))
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


def run_inspect(options: InspectCommand) -> int:
    """Read, look, tell."""
    source = ModelOptions.of(options.model, options.file)
    chosen, told = options.chosen, options.told
    make_pipeline(chosen.passes, chosen.target)
    check_distinct({"MODEL": options.model, "--json": told.json})
    check_folder(told.json, "--json")
    screen = Screen.of(told)
    if options.model.suffix == ONNX:
        source.require_onnx()
        return _inspect_onnx(options, screen)
    with screen.work(f"Reading {options.model}"):
        opened = read_source(source, screen.warn)
    with screen.work("Looking at each convolution"):
        seen = survey(
            opened.model,
            opened.inputs,
            passes=chosen.passes,
            target=chosen.target,
            way=chosen.way,
        )
    found, whole = seen.sites, seen.totals
    show_opening(screen, opened, seen.way, seen.notes)
    _show_history(screen, opened.archive)
    _show_found(screen, found, whole, _columns(chosen.target))
    if told.json is not None:
        write_json(told.json, _document(opened, found, whole))
    return 0


def _inspect_onnx(options: InspectCommand, screen: Screen) -> int:
    """The command for an ONNX file, of any producer."""
    # onnx and ONNX Runtime are not needed for anything else here.
    from ...api.onnx import find_onnx
    from ..text.onnx_text import found_document, show_onnx_found

    path, chosen, json = options.model, options.chosen, options.told.json
    with screen.work(f"Reading {path}"):
        found = find_onnx(path, passes=chosen.passes, target=chosen.target)
    show_onnx_found(screen, path, found)
    if json is not None:
        write_json(json, found_document(path, found))
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


def _columns(named: str | None) -> list[Target]:
    """The targets that tables have a column for, and the one that was named."""
    usual = [target for target in targets() if target.column]
    asked = [] if named is None else [target_named(named)]
    return [*usual, *(target for target in asked if target not in usual)]


def _show_found(
    screen: Screen, found: Sequence[FoundSite], whole: Totals, told: Sequence[Target]
) -> None:
    screen.line()
    if not found:
        show_taken(screen, 0, 0)
        return
    words = [tuple(target.says(site.spec).word for target in told) for site in found]
    columns = [Column(target.name) for target in told]
    rows = list(zip(found, words, strict=True))
    screen.table(
        Table([*_FULL, *columns], [(*_full_row(site), *said) for site, said in rows]),
        Table([*_BRIEF, *columns], [(*_brief_row(site), *said) for site, said in rows]),
        Table(_BRIEF, [_brief_row(site) for site in found]),
    )
    screen.line()
    _show_totals(screen, found, whole)
    _show_targets(screen, found, told)
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


def _show_totals(screen: Screen, found: Sequence[FoundSite], whole: Totals) -> None:
    modules = {unnumbered(site.name): site for site in found}
    parameters = sum(site.parameters or 0 for site in modules.values())
    macs = sum(site.macs or 0 for site in found)
    taken = sum(site.taken for site in found)
    show_taken(screen, len(found), taken)
    screen.line()
    rows = [
        ("parameters", count(parameters), count(whole.parameters)),
        (macs_title(whole), short(macs), short(whole.macs)),
    ]
    titles = (Column("in them", right=True), Column("in the model", right=True))
    screen.table(Table([Column(""), *titles], rows))


def _show_targets(screen: Screen, found: Sequence[FoundSite], told: Sequence[Target]) -> None:
    """What each target would say, with the words of the table explained."""
    screen.line()
    for target in told:
        counts = Counter(target.says(site.spec) for site in found)
        screen.line(f"{target.name}:")
        for said, number in counts.items():
            screen.paragraph(f"{said.word}, {plural(number, 'site')}: {said.text}", indent="  ")
