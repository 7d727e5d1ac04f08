"""A report as plain text: the rows of its table, and what is said below it.

The command line shows the same rows, with colours and fitted to a terminal.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..toolchains import told_together

if TYPE_CHECKING:
    from .report import Report, RewrittenSite

TITLES = ("site", "kind", "before", "after", "branches", "check")
UNSEEN = "*"
_GAP = "  "
ALONE = "Each site was checked on its own; the model has no values to compare."


def check_word(site: RewrittenSite) -> str:
    """What came of the check of a site; with `*`, its weights do not reach the output now."""
    mark = UNSEEN if site.observable is False else ""
    if site.verdict is None:
        return "not checked"
    if not site.verdict.ok:
        return f"MISMATCH{mark}"
    return f"{'identical' if site.verdict.identical else 'within bound'}{mark}"


def site_row(site: RewrittenSite) -> tuple[str, ...]:
    """The cells of a site, under `TITLES`."""
    words = (site.name, site.kind, site.before, site.after)
    return (*words, str(site.branches), check_word(site))


def report_text(report: Report) -> str:
    """The whole report in lines: the table, how many sites, what was left and why, the verdict."""
    lines = _aligned([TITLES, *map(site_row, report.sites)]) if report.sites else []
    lines += [*([""] if lines else []), summary(report)]
    lines += [] if report.expected is None else [report.expected]
    lines += [*operations(report), *(fold.describe() for fold in report.folds)]
    reasons: dict[str, list[str]] = defaultdict(list)
    for site in report.skipped:
        reasons[site.reason].append(site.name)
    for reason, names in reasons.items():
        lines.append(f"left: {', '.join(names)}: {reason}")
    return "\n".join([*lines, *obstacles(report), verdict(report)])


def summary(report: Report) -> str:
    """How many sites were rewritten, and by what."""
    number, branches = len(report.sites), sum(site.branches for site in report.sites)
    if not number:
        done = report.respelled or any(fold.changes for fold in report.folds)
        return "No site to rewrite." if done else "Nothing to rewrite."
    names = ", ".join(dict.fromkeys(site.pass_name for site in report.sites))
    return (
        f"{number:,} site{'s' * (number != 1)} rewritten by {names}, "
        f"{branches:,} branch{'es' * (branches != 1)}."
    )


def operations(report: Report) -> list[str]:
    """What became of operations that are no sites, a line for each kind."""
    counts = Counter((each.pass_name, each.before, each.after) for each in report.respelled)
    return [
        f"{name}: {before} -> {after}" + (f", {count} times" if count > 1 else "")
        for (name, before, after), count in counts.items()
    ]


def obstacles(report: Report) -> list[str]:
    """What the target that was named would still refuse, or that it would take all."""
    if report.obstacles is None:
        return []
    if not report.obstacles:
        return ["Nothing is left that the target would refuse."]
    return [f"the target: {line}" for line in told_together(report.obstacles)]


def checked_alone(report: Report) -> bool:
    """Whether each site has a verdict and the whole model, which has no values, has none."""
    judged = bool(report.sites) and all(site.verdict is not None for site in report.sites)
    return judged and report.model is None


def verdict(report: Report) -> str:
    """Whether the function is the same."""
    if not report.verified:
        if not report.ok:
            return "NOT the same function."
        return ALONE if checked_alone(report) else "Not checked."
    if not report.ok:
        return "NOT the same function."
    own = report.model is not None and not report.model.wide
    return f"Same function, checked in {'its own dtype' if own else 'float64'}."


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        _GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
