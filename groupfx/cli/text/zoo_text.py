"""What came of a fleet, as text: a row a model, and the counts."""

from ...fleet import FleetResult, ModelResult
from .numbers import plural, size
from .screen import Screen
from .table import Column, Table

_DONE_SHOWN = 40


def told_line(result: ModelResult) -> str:
    """One line on a model that has just ended."""
    took = result.outcome.seconds
    seconds = "" if took is None else f", {took:.1f} s"
    return f"{result.name}: {_verdict(result)}{seconds}"


def show_fleet(screen: Screen, result: FleetResult) -> None:
    """The table, the counts, and where the rest is."""
    models = sorted(result.models, key=lambda each: not each.outcome.ok)
    failed = sum(not each.outcome.ok for each in models)
    shown = models if screen.whole else models[: max(failed, _DONE_SHOWN)]
    if shown:
        screen.table(_table(shown, wide=True), _table(shown, wide=False))
    if len(shown) < len(models):
        screen.paragraph(f"and {len(models) - len(shown)} more that are done (-v names them)")
    for each in shown:
        if each.outcome.failure is not None:
            screen.line()
            screen.paragraph(f"{each.name}: {each.outcome.failure.message}", indent="  ")
    for note in result.notes:
        screen.warn(note)
    screen.line()
    screen.paragraph(_counts(result))
    if result.interrupted or result.missing:
        screen.paragraph("Run the same command again to go on where it was.")
    flagged = sum(_environment(each) != "" for each in result.models)
    if flagged:
        screen.paragraph(
            f"{plural(flagged, 'model')} failed for want of something here: mend it, and run them "
            "alone with --retry-environment."
        )
    screen.note(f"The results are in {result.folder}.")


def _counts(result: FleetResult) -> str:
    done = sum(each.outcome.ok for each in result.models)
    parts = [f"{done} of {plural(len(result.names), 'model')} done"]
    parts += [f"{number} {name}" for name, number in result.failures.items()]
    if result.missing:
        parts.append(f"{len(result.missing)} without a result")
    if result.kept:
        parts.append(f"{len(result.kept)} known from before")
    return ", ".join(parts)


def _verdict(result: ModelResult) -> str:
    failure = result.outcome.failure
    return "done" if failure is None else failure.kind


def _environment(result: ModelResult) -> str:
    failure = result.outcome.failure
    return "" if failure is None else failure.environment or ""


def _table(models: list[ModelResult], *, wide: bool) -> Table:
    columns = [Column("model"), Column("result"), Column("environment")]
    columns += [Column("rewritten", right=True), Column("check")]
    columns += [Column("seconds", right=True), Column("memory", right=True)] if wide else []
    columns += [Column("speed"), Column("same as")] if wide else []
    return Table(columns, [_row(each, wide=wide) for each in models])


def _row(result: ModelResult, *, wide: bool) -> list[str]:
    outcome = result.outcome
    row = [result.name, _verdict(result), _environment(result)]
    row.append("" if outcome.sites is None else f"{outcome.rewritten} of {outcome.sites}")
    row.append(_check(result))
    if wide:
        row.append("" if outcome.seconds is None else f"{outcome.seconds:.1f}")
        row.append("" if outcome.peak_memory is None else size(outcome.peak_memory))
        row += [outcome.summary or "", result.same_as or ""]
    return row


def _check(result: ModelResult) -> str:
    outcome = result.outcome
    words = {"proved": outcome.verified, "validated": outcome.validated}
    return ", ".join(word for word, holds in words.items() if holds)
