"""A rewrite's report as text: the sites, what was left and why, the sizes, and the verdict."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.text import Text

from ...folding.fold import Fold
from ...plan.notes import Note
from ...rewriting import Report, RewrittenSite
from ...rewriting.report_text import (
    ALONE,
    TITLES,
    UNSEEN,
    check_word,
    checked_alone,
    obstacles,
    operations,
    site_row,
)
from ...running.totals import Totals
from ..input.model_file import OpenedFile
from .numbers import count, plural, short, sizes
from .screen import Screen
from .table import Column, Table

WAYS = {
    "trace": "traced as one graph",
    "modules": "by its convolution modules, which are swapped in a copy",
    "export": "exported as one graph",
}
_FULL = [Column(title) for title in TITLES]
_BRIEF = [Column(t) for t in ("site", "kind", "before", "after", "check")]
_NAMES_SHOWN = 3
_WRONG_SHOWN = 5
_FEW_NOTES = 2
_KEPT_SHOWN = 5


def show_report(screen: Screen, opened: OpenedFile, report: Report) -> None:
    """The whole report."""
    show_opening(screen, opened, report.way, report.notes)
    screen.line()
    if report.sites:
        _show_sites(screen, report)
    _show_summary(screen, report)
    for line in operations(report):
        screen.paragraph(line, indent="  ")
    show_folds(screen, report.folds)
    show_left(screen, [(site.name, site.kind, site.reason) for site in report.skipped])
    if report.complexity is not None:
        branches = sum(site.branches for site in report.sites)
        show_sizes(screen, report.complexity.before, report.complexity.after, branches)
    for line in obstacles(report):
        screen.paragraph(line)
    _show_verdict(screen, report)


def show_opening(screen: Screen, opened: OpenedFile, way: str | None, notes: Sequence[str]) -> None:
    """What was read, how it was opened, and on which inputs it was run."""
    screen.paragraph(opened.text)
    if way is not None:
        screen.paragraph(f"opened: {WAYS.get(way, way)}")
    for note in notes:
        screen.paragraph(note, indent="  ")
    entries = opened.inputs.describe()
    screen.paragraph(f"input: {', '.join(map(_input_text, entries))}, {opened.inputs_source}")


def _input_text(entry: Mapping[str, Any]) -> str:
    name = "" if entry["name"] is None else f"{entry['name']}: "
    if "shape" not in entry:
        return f"{name}{entry.get('kind', entry.get('value'))}"
    return f"{name}{entry['dtype']} {entry['shape']}"


def _show_sites(screen: Screen, report: Report) -> None:
    full = Table(_FULL, [_full_row(site) for site in report.sites])
    brief = Table(_BRIEF, [_brief_row(site) for site in report.sites])
    screen.table(full, brief)
    if any(site.observable is False for site in report.sites):
        screen.paragraph(
            f"{UNSEEN} not observable end to end: its weights do not reach the output now, so "
            "only the check of the site itself tells"
        )
    _show_notes(screen, report.sites)
    screen.line()


def _show_notes(screen: Screen, sites: Sequence[RewrittenSite]) -> None:
    """What to know of single sites; many notes on one topic are one line."""
    noted: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for site in sites:
        for note in site.notes:
            topic = note.topic if isinstance(note, Note) else note
            noted[note if screen.verbose else topic][note].append(site.name)
    for topic, notes in noted.items():
        if len(notes) <= _FEW_NOTES:
            for note, names in notes.items():
                screen.paragraph(f"{note}: {_some(screen, names)}", indent="  ")
        else:
            count = sum(map(len, notes.values()))
            screen.paragraph(f"{topic}: {plural(count, 'site')} (-v tells each)", indent="  ")


def _full_row(site: RewrittenSite) -> tuple[str | Text, ...]:
    return (*site_row(site)[:-1], _check(site))


def _brief_row(site: RewrittenSite) -> tuple[str | Text, ...]:
    """As few words as will do: what `before` says is not said again by `after`."""
    spec = site.spec
    before = f"{spec.type_name} {sizes(spec.kernel_size)} {spec.channels()}"
    return (site.name, f"{site.kind} {spec.groups}", before, site.brief, _check(site))


def _check(site: RewrittenSite) -> Text:
    style = "yellow" if site.verdict is None else "green" if site.verdict.ok else "bold red"
    return Text(check_word(site), style=style)


def _show_summary(screen: Screen, report: Report) -> None:
    if not report.sites and (report.folds or report.respelled):
        return
    if not report.sites:
        screen.paragraph(f"Nothing to rewrite{_why_nothing(report)}.")
        return
    branches = sum(site.branches for site in report.sites)
    names = ", ".join(dict.fromkeys(site.pass_name for site in report.sites))
    sites = plural(len(report.sites), "site")
    screen.paragraph(f"{sites} rewritten by {names}, {plural(branches, 'branch')}.")
    if report.expected is not None:
        screen.paragraph(report.expected)


def show_folds(screen: Screen, folds: Sequence[Fold]) -> None:
    """How many permutations were there and are left, and why those."""
    for fold in folds:
        screen.paragraph(fold.describe())
        shown = fold.kept if screen.whole else fold.kept[:_KEPT_SHOWN]
        for kept in shown:
            screen.paragraph(str(kept), indent="  ")
        if len(shown) < len(fold.kept):
            screen.paragraph(f"and {len(fold.kept) - len(shown)} more (-v tells each)", indent="  ")


def _why_nothing(report: Report) -> str:
    if report.skipped:
        return ""
    grouped = 0 if report.complexity is None else report.complexity.before.grouped_convs
    if not grouped:
        return ": there is no grouped convolution"
    return f": these passes are not about its {plural(grouped, 'grouped convolution')}"


def show_taken(screen: Screen, number: int, taken: int) -> None:
    """How many grouped convolutions there are, and how many of them a rewrite would take."""
    if number:
        found = plural(number, "grouped convolution")
        screen.paragraph(f"{found}, of which a rewrite would take {taken}.")
    else:
        screen.line("There is no grouped convolution.")


def show_left(screen: Screen, left: Sequence[tuple[str, str, str]]) -> None:
    """Sites that stay as they are, as (name, kind, reason): alike ones are told once."""
    if not left:
        return
    screen.line()
    screen.line(f"{plural(len(left), 'site')} left as {'it is' if len(left) == 1 else 'they are'}:")
    alike = defaultdict(list)
    for name, kind, reason in left:
        alike[kind, reason].append(name)
    for (kind, reason), names in alike.items():
        screen.paragraph(f"{len(names)} {kind}: {reason}", indent="  ")
        screen.paragraph(_some(screen, names), indent="     ")


def _some(screen: Screen, names: Sequence[str]) -> str:
    """The first names, and how many more there are; all of them where no person reads."""
    if screen.whole or len(names) <= _NAMES_SHOWN + 1:
        return ", ".join(names)
    more = len(names) - _NAMES_SHOWN
    return f"{', '.join(names[:_NAMES_SHOWN])} and {more} more (-v names them)"


def show_sizes(screen: Screen, before: Totals, after: Totals, branches: int | None = None) -> None:
    """The size of a model before and after."""
    made = [] if branches is None else [("  branches", "0", count(branches))]
    rows = [
        ("convolutions", count(before.convs), count(after.convs)),
        ("  grouped", count(before.grouped_convs), count(after.grouped_convs)),
        *made,
        ("parameters", count(before.parameters), count(after.parameters)),
        (macs_title(before), short(before.macs), short(after.macs)),
    ]
    screen.line()
    screen.table(
        Table([Column(""), Column("before", right=True), Column("after", right=True)], rows)
    )


def macs_title(totals: Totals) -> str:
    """What the multiply-accumulates are of: a guess says so where the number stands."""
    if totals.guessed is None:
        return "MACs, one sample"
    return f"MACs, at a guessed {totals.guessed}"


def show_not_checked(screen: Screen) -> None:
    """In the place of the verdict."""
    screen.line(Text("Not checked (--no-verify).", style="yellow"))


def _show_verdict(screen: Screen, report: Report) -> None:
    if not report.sites:
        return
    screen.line()
    if checked_alone(report) and report.ok:
        screen.line(Text(ALONE, style="yellow"))
        for line in (*_site_counts(report), *_outside(report)):
            screen.paragraph(line, indent="  ")
        return
    if report.model is None and report.ok:
        show_not_checked(screen)
        return
    ok, style = ("Same function", "green") if report.ok else ("NOT the same function", "bold red")
    screen.line(Text.assemble((ok, style), ", checked in float64:"))
    for line in (*_site_counts(report), *_outside(report), _end_to_end(report)):
        screen.paragraph(line, indent="  ")


def _site_counts(report: Report) -> Iterable[str]:
    verdicts = [site.verdict for site in report.sites if site.verdict is not None]
    wrong = [site for site in report.sites if site.verdict is not None and not site.verdict.ok]
    identical = sum(verdict.ok and verdict.identical for verdict in verdicts)
    close = sum(verdict.ok and not verdict.identical for verdict in verdicts)
    own = sum(verdict.ok and verdict.in_own_dtype for verdict in verdicts)
    parts = [
        (identical, "bit-identical"),
        (close, "within the rounding bound"),
        (own, "in their own dtype, for they do not run in float64"),
    ]
    good = ", ".join(f"{number} {what}" for number, what in parts if number)
    if good:
        yield f"sites: {good}"
    for site in wrong[:_WRONG_SHOWN]:
        assert site.verdict is not None
        yield f"MISMATCH at {site.name}: {site.verdict.reason}"
    if len(wrong) > _WRONG_SHOWN:
        yield f"and at {len(wrong) - _WRONG_SHOWN} more sites, marked above"


def _outside(report: Report) -> Iterable[str]:
    changes = report.changes
    if changes is None:
        return
    if not changes:
        yield "outside the sites: nothing changed"
    for change in changes[:_WRONG_SHOWN]:
        yield f"outside the sites: MISMATCH: {change}"
    if len(changes) > _WRONG_SHOWN:
        yield f"and {len(changes) - _WRONG_SHOWN} more changes outside the sites"


def _end_to_end(report: Report) -> str:
    verdict = report.model
    if verdict is None:
        return "end to end: it does not run"
    if not verdict.ok:
        return f"end to end: MISMATCH: {verdict.reason}"
    if verdict.identical:
        return f"end to end: bit-identical in {plural(len(verdict.runs), 'run')}"
    return f"end to end: max|d| / max|y| = {verdict.relative_error:.1e}, at most 1e-12"
