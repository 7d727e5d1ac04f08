"""What `groupfx conformance` shows: kind by kind what came out, then what went wrong, and why."""

from collections.abc import Mapping, Sequence
from itertools import groupby

from rich.text import Text

from ...testing import Case, Conformance, Judged
from ...testing.conformance.judging import VERDICTS, WRONG
from ...testing.conformance.running import Row
from .screen import Screen
from .table import Cell, Column, Table

# So many failures, and reasons of refusals, are shown to a person who did not ask for more.
_SHOWN = 12


def show_conformance(screen: Screen, result: Conformance) -> None:
    """The table of a tool, its failures, and its refusals by reason."""
    versions = ", ".join(f"{package} {number}" for package, number in result.versions.items())
    screen.line(Text(f"{result.tool} ({versions})" if versions else result.tool, style="bold"))
    # A verdict that nothing got needs no column.
    given = [word for word in VERDICTS if word == "pass" or result.total.counts[word]]
    columns = [Column("kind"), Column("cases", right=True)]
    columns += [Column(word, right=True) for word in given]
    columns.append(Column("worst error / bound", right=True))
    rows = [
        [row.kind, str(row.cases), *_counts(row, given), _worst(row)]
        for row in (*result.rows, result.total)
    ]
    screen.table(Table(columns, rows))
    _show_wrong(screen, [each for each in result.judged if each.verdict in WRONG])
    _show_reasons(
        screen, [each for each in result.judged if each.verdict in ("refused", "skipped")]
    )
    screen.line()


def _counts(row: Row, words: Sequence[str]) -> list[Cell]:
    return [str(count) if (count := row.counts[word]) else "" for word in words]


def _worst(row: Row) -> str:
    return "" if row.worst is None else f"{row.worst:.2g}"


def _show_wrong(screen: Screen, wrong: Sequence[Judged]) -> None:
    shown = wrong if screen.whole else wrong[:_SHOWN]
    for each in shown:
        size = "" if each.ratio is None else f" ({each.ratio:.2g} x the bound)"
        screen.paragraph(f"{each.verdict}: {each.case}: {each.reason}{size}", indent="  ")
    if len(shown) < len(wrong):
        screen.line(f"  and {len(wrong) - len(shown)} more: -v shows them")


def _show_reasons(screen: Screen, cases: Sequence[Judged]) -> None:
    ordered = sorted(cases, key=lambda each: (each.verdict, each.reason))
    groups = [(key, [*group]) for key, group in groupby(ordered, lambda e: (e.verdict, e.reason))]
    shown = groups if screen.whole else groups[:_SHOWN]
    for (verdict, reason), group in shown:
        also = f" and {len(group) - 1} more" if len(group) > 1 else ""
        screen.paragraph(f"{verdict}: {group[0].case}{also}: {reason}", indent="  ")
    if len(shown) < len(groups):
        screen.line(f"  and {len(groups) - len(shown)} more reasons: -v shows them")


def show_tools(screen: Screen, tools: Mapping[str, str], cases: Sequence[Case]) -> None:
    """The tools that there are adapters for, each with its versions or what is missing; the kinds
    of cases.
    """
    screen.table(Table([Column("tool"), Column("versions")], [*tools.items()]))
    screen.line()
    kinds = dict.fromkeys(case.kind for case in cases)
    counts = [[kind, str(sum(case.kind == kind for case in cases))] for kind in kinds]
    rows = [*counts, ["all", str(len(cases))]]
    screen.table(Table([Column("kind"), Column("cases", right=True)], rows))
