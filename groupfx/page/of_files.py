"""What a page shows of an ONNX file: exported, rewritten or tuned, and compared with its model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ..deploy import Export, OnnxSite, Validation, site_blocks, site_pieces
from ..plan.blocks import BlockStructure
from ..report.pieces import Piece
from ..report.prose import plural, told
from ..rewriting.report import Report
from ..running.totals import Complexity, Totals
from ..tuning import Ratio
from .content import Grid, Page, Side, SiteRow, Size, Time
from .of_report import left_rows, page_of_report, sizes_of
from .of_validation import (
    page_of_validation,
    site_facts,
    validation_grids,
    validation_lines,
)

Blocks = Mapping[str, BlockStructure]
Pieces = Mapping[str, tuple[Piece, ...]]

if TYPE_CHECKING:
    from ..api.onnx import OnnxResult
    from ..api.tuning import Tuned


def page_of_export(
    export: Export,
    *,
    report: Report | None = None,
    validation: Validation | None = None,
    name: str | None = None,
) -> Page:
    """The page of a file that was exported; of the rewrite before it, and of its comparison.

    `report` tells the forms that its sites have in the file.
    """
    written = export.path.name
    if report is None:
        base = Page("Export", name or written, "open", "Not checked.")
    else:
        base = page_of_report(report, name or written)
    page = replace(
        base,
        kind="Export",
        lines=(*base.lines, *export_lines(export)),
        sites=tuple(_with_forms(base.sites, export)),
        sizes=(*base.sizes, *_file_sizes(export)),
        grids=(*base.grids, _tensors(export)),
        notes=(*base.notes, *map(told, export.notes)),
    )
    return page if validation is None else with_validation(page, validation)


def export_lines(export: Export) -> Iterator[str]:
    """What was written."""
    yield f"{export.path.name}: opset {export.opset}, {plural(export.nodes, 'node')}"
    if export.summary is not None:
        yield told(export.summary)


def _with_forms(rows: Iterable[SiteRow], export: Export) -> Iterator[SiteRow]:
    """The rows with the form of each site in the file; those that only the file tells of."""
    forms = {site.name: site for site in export.sites}
    known = set()
    for row in rows:
        known.add(row.name)
        site = forms.get(row.name)
        if site is None:
            yield row
            continue
        text = site.form if row.tone != "left" else row.after.text
        pieces = export.pieces.get(row.name, row.after.pieces)
        more = ("in the file", f"{site.form}, {plural(site.convs, 'convolution')}")
        yield replace(row, after=Side(text or site.form, pieces), facts=(*row.facts, more))
    for site in export.sites:
        if site.name not in known:
            side = Side(site.form, export.pieces.get(site.name, ()))
            count = ("convolutions", f"{site.convs:,}")
            yield SiteRow(site.name, "convolution", "open", "-", after=side, facts=(count,))


def _file_sizes(export: Export) -> Iterator[Size]:
    sizes = [path.stat().st_size for path in export.files if path.is_file()]
    if sizes:
        yield Size("the file", None, sum(sizes), of_bytes=True)


def _tensors(export: Export) -> Grid:
    rows = [
        (word, info.name, info.dtype, ", ".join(map(str, info.shape)))
        for word, infos in (("input", export.inputs), ("output", export.outputs))
        for info in infos
    ]
    return Grid("Inputs and outputs", ("", "name", "dtype", "shape"), rows)


def with_validation(page: Page, validation: Validation) -> Page:
    """The same with the verdict of a comparison, and each site's error in it."""
    alone = page_of_validation(validation)
    checks = {check.name: check for check in validation.sites}
    compares = {row.name: row for row in alone.sites}
    rows = []
    for row in page.sites:
        check, compared = checks.get(row.name), compares.pop(row.name, None)
        if check is None or compared is None:
            rows.append(row)
            continue
        facts = (*row.facts, *((f"file: {title}", text) for title, text in site_facts(check)))
        worse = row.tone in ("open", "left") or compared.tone == "bad"
        verdict = compared.verdict if worse and row.tone != "left" else row.verdict
        tone = compared.tone if compared.tone == "bad" or row.tone == "open" else row.tone
        if compared.tone == "bad":
            verdict = compared.verdict
        before = row.before if row.before != Side() else compared.before
        blocks = row.structure or compared.structure
        measured = replace(row, before=before, ratio=compared.ratio, structure=blocks)
        rows.append(replace(measured, facts=facts, tone=tone, verdict=verdict))
    rows += compares.values()
    worst = alone if page.tone != "bad" or alone.tone == "bad" else page
    return replace(
        page,
        tone=worst.tone,
        verdict=worst.verdict,
        lines=(*page.lines, *validation_lines(validation)),
        sites=tuple(rows),
        grids=(*validation_grids(validation), *page.grids),
        notes=tuple(dict.fromkeys((*page.notes, *alone.notes))),
    )


# A file that was rewritten


def page_of_onnx(result: OnnxResult, name: str) -> Page:
    """The page of an ONNX file that was rewritten."""
    made = result.rewrite
    drawn = site_pieces(made.original), site_pieces(made.model), site_blocks(made.original)
    base = Page(
        kind="Rewrite",
        name=name,
        tone="open" if made.changed else "good",
        verdict="Not checked." if made.changed else "Nothing to rewrite.",
        lines=tuple(_rewrite_lines(result)),
        sites=(
            *(_onnx_row(site, *drawn) for site in made.sites),
            *left_rows(s for s in made.skipped if s.name not in {o.name for o in made.sites}),
        ),
        sizes=_onnx_sizes(made.before, made.after),
        notes=tuple(map(told, made.notes)),
    )
    return base if result.validation is None else with_validation(base, result.validation)


def _rewrite_lines(result: OnnxResult) -> Iterator[str]:
    made = result.rewrite
    if made.sites:
        branches = plural(sum(site.branches for site in made.sites), "branch")
        yield f"{plural(len(made.sites), 'site')} rewritten, {branches}."
    if made.fastest is not None and made.fastest.summary is not None:
        yield told(made.fastest.summary)
    yield from (told(fold.describe()) for fold in made.folds)


def _onnx_row(site: OnnxSite, before: Pieces, after: Pieces, blocks: Blocks) -> SiteRow:
    return SiteRow(
        name=site.name,
        kind=site.kind,
        tone="open",
        verdict="not checked",
        before=Side(site.before, before.get(site.name, ())),
        after=Side(site.after or "", after.get(site.name, ())),
        done=site.pass_name,
        macs=(site.macs, None),
        facts=(("branches", f"{site.branches:,}"),),
        notes=tuple(map(told, site.notes)),
        structure=blocks.get(site.name),
    )


def _onnx_sizes(before: Totals, after: Totals) -> tuple[Size, ...]:
    return sizes_of(Complexity(before, after))


# A model that was tuned


def page_of_tuned(tuned: Tuned, name: str | None = None) -> Page:
    """The page of a model that was tuned: what was raced, and which form each site has."""
    title = name or tuned.path.name
    if tuned.export is not None:
        page = page_of_export(tuned.export, name=title)
    elif tuned.result is not None:
        page = page_of_report(tuned.result.report, title)
    else:
        page = Page("Tuning", title, "open", "Not checked.")
    page = with_times(replace(page, kind="Tuning"), tuned)
    return page if tuned.validation is None else with_validation(page, tuned.validation)


def with_times(page: Page, tuned: Tuned) -> Page:
    """The same with what was measured, and the plan that came of it."""
    plan, grids = tuned.plan, page.grids
    if plan.sites:
        recipes = [(site.site, site.recipe, site.signature) for site in plan.sites]
        grids = (*grids, Grid("Plan", ("site", "recipe", "what it is"), recipes))
    threads = plural(plan.threads, "thread")
    where = f"measured with {plan.backend} {plan.version} on {threads} of {plan.cpu}"
    return replace(
        page,
        lines=tuple(dict.fromkeys((told(tuned.summary), told(where), *page.lines))),
        times=tuple(_times(tuned)),
        grids=grids,
        notes=tuple(dict.fromkeys((*page.notes, *map(told, tuned.notes)))),
    )


def _times(tuned: Tuned) -> Iterator[Time]:
    for title, ratio in tuned.races.items():
        yield time_of(f"{title}: what was written" if ratio is tuned.ratio else title, ratio)


def time_of(title: str, ratio: Ratio) -> Time:
    """A measured ratio."""
    note = plural(ratio.rounds, "round") if ratio.rounds else "not raced: it is itself"
    return Time(title, ratio.value, ratio.low, ratio.high, ratio.verdict, note)
