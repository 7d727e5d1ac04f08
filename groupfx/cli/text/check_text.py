"""What a toolchain takes of a model, as text, as plain data, and as test cases."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from ...api.check import Checked, Judgement
from ...report.junit import JunitCase, Kind
from ...targets import Judged, Target
from ...targets.facts import Fact, Verdict
from ...toolchains import told_together
from .numbers import plural
from .screen import Screen
from .table import Cell, Column, Table

_STYLES: dict[Verdict, str] = {
    "accepted": "green",
    "slow": "green",
    "unknown": "yellow",
    "wrong": "bold red",
    "elsewhere": "red",
    "refused": "red",
}
_SHOWN = 8


def show_checked(screen: Screen, checked: Checked) -> None:
    """The whole answer."""
    target, before = checked.target, checked.before
    screen.paragraph(f"target: {target.title} ({target.name}; facts of {target.date})")
    if set(checked.methods) != set(target.methods):
        screen.paragraph(f"methods: {', '.join(checked.methods)}", indent="  ")
    screen.line()
    if not before.sites:
        screen.paragraph("There is no convolution.")
    if before.all:
        _show_table(screen, checked)
        screen.line()
    screen.paragraph(f"{_summary(before)}{'' if before.ok else ':'}")
    _show_against(screen, before)
    _show_obstacles(screen, before)
    if before.ok:
        return
    screen.line()
    _show_remedy(screen, checked)


def _show_table(screen: Screen, checked: Checked) -> None:
    methods = checked.methods
    columns = [Column(title) for title in ("site", "what", *(methods or ("verdict",)))]
    rows: list[tuple[Cell, ...]] = []
    for judged in checked.before.all:
        by_method = judged.by_method
        verdicts = [by_method[method] for method in methods] or [judged.verdict]
        rows.append((judged.subject.name, judged.subject.text, *map(_colored, verdicts)))
    screen.table(Table(columns, rows))


def _colored(verdict: Verdict) -> Text:
    return Text("ok" if verdict == "accepted" else verdict, style=_STYLES[verdict])


def _summary(judgement: Judgement) -> str:
    known = len(judgement.refused)
    if judgement.ok:
        return "All of it is acceptable."
    parts = []
    if known:
        parts.append(
            f"{known} of {len(judgement.all)} {'is' if known == 1 else 'are'} not acceptable"
        )
    if judgement.unknown:
        parts.append(f"of {len(judgement.unknown)} nobody knows")
    if judgement.obstacles:
        parts.append(f"{plural(len(judgement.obstacles), 'operation')} would be refused")
    return ", ".join(parts)


def _show_against(screen: Screen, judgement: Judgement) -> None:
    """Each fact that speaks against something once, with the sites and its source."""
    about: dict[Fact, list[str]] = defaultdict(list)
    for judged in judgement.all:
        for fact in judged.against:
            about[fact].append(judged.subject.name)
    for fact, names in sorted(about.items(), key=lambda item: -item[0].badness):
        of = f" by {', '.join(fact.methods)}" if fact.methods else ""
        screen.paragraph(f"{fact.verdict}{of}: {fact.text}: {_some(screen, names)}", indent="  ")
        screen.paragraph(f"[{fact.source}; {fact.version}; {fact.date}]", indent="    ")


def _show_obstacles(screen: Screen, judgement: Judgement) -> None:
    lines = list(told_together(judgement.obstacles))
    shown = lines if screen.whole else lines[:_SHOWN]
    for line in shown:
        screen.paragraph(line, indent="  ")
    if len(shown) < len(lines):
        screen.paragraph(f"and {len(lines) - len(shown)} more (-v)", indent="  ")


def _show_remedy(screen: Screen, checked: Checked) -> None:
    if checked.after is None:
        screen.paragraph("No pass would be run.")
    else:
        passes = _spelled(checked)
        done = checked.result is not None
        screen.paragraph(
            f"{'Passes that were run' if done else 'Passes that would be run'}: {passes}"
        )
        then = (
            "then all of it is acceptable"
            if checked.after.ok
            else f"then {_summary(checked.after)}"
        )
        proved = "proved" if done else "not proved: --fix proves it, and writes it"
        screen.paragraph(f"{then} ({proved})", indent="  ")
        if not checked.after.ok:
            _show_obstacles(screen, checked.after)
    for left in checked.left:
        screen.paragraph(f"{left.name}: {left.reason}", indent="  ")


def _spelled(checked: Checked) -> str:
    """The passes as the command line takes them; those of a grammar belong together."""
    given = [each.spelled() for each in checked.passes]
    if checked.target.grammar is not None and given == [*checked.target.passes]:
        return f"all {len(given)} of --target {checked.target.name}"
    return " ".join(f"-p {each}" for each in given)


def _some(screen: Screen, names: Sequence[str]) -> str:
    shown = names if screen.whole else names[:_SHOWN]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def checked_document(checked: Checked) -> dict[str, Any]:
    """The answer as plain data, without the files."""
    target = checked.target
    return {
        "ok": checked.ok,
        "target": {
            "name": target.name,
            "title": target.title,
            "file": str(target.path),
            "date": target.date.isoformat(),
            "methods": list(checked.methods),
        },
        "before": _judgement(checked.before),
        "passes": [each.spelled() for each in checked.passes],
        "after": None if checked.after is None else _judgement(checked.after),
        "left": [vars(each) for each in checked.left],
        "notes": list(checked.notes),
    }


def _judgement(judgement: Judgement) -> dict[str, Any]:
    return {
        "ok": judgement.ok,
        "sites": [_judged(each) for each in judgement.sites],
        "operations": [_judged(each) for each in judgement.operations],
        "obstacles": [each.to_dict() for each in judgement.obstacles],
    }


def _judged(judged: Judged) -> dict[str, Any]:
    subject = judged.subject
    return {
        "name": subject.name,
        "site": subject.site,
        "what": subject.text,
        "layout": subject.layout,
        "verdict": judged.verdict,
        "methods": dict(judged.by_method),
        "reason": judged.reason,
        "facts": [fact.to_dict() for fact in judged.facts],
    }


def junit_cases(target: Target, judgement: Judgement) -> list[JunitCase]:
    """A test case for each subject, and one for each operation that is refused."""
    group = f"groupfx.check.{target.name}"
    cases = [
        JunitCase(group, each.subject.name, _kind(each), "" if each.acceptable else _told(each))
        for each in judgement.all
    ]
    numbered = enumerate(judgement.obstacles, 1)
    return [
        *cases,
        *(
            JunitCase(group, f"{e.name}: {e.operation} #{n}", "failure", str(e))
            for n, e in numbered
        ),
    ]


def _kind(judged: Judged) -> Kind:
    if judged.verdict == "unknown":
        return "skipped"
    return "pass" if judged.acceptable else "failure"


def _told(judged: Judged) -> str:
    sources = {f"{f.source}; {f.version}; {f.date}": None for f in judged.against}
    return f"{judged.verdict}: {judged.reason} [{'] ['.join(sources)}]"
