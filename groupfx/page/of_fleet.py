"""What a page shows of a fleet: each model, what came of it, and its time by its limit."""

from __future__ import annotations

from collections.abc import Iterator

from ..fleet import FleetResult, ModelResult
from ..report.prose import digits, plural, told
from .content import Grid, Page, Side, SiteRow, Tone, Words

WORDS = Words(
    title="Models",
    columns=("model", "class", "sites", "what came of it", "time / limit", "result"),
    strip="The time of each model by its limit, logarithmic; the line is the limit.",
    empty="There is no model to show.",
    tones=(("good", "proved"), ("close", "done"), ("open", "no result"), ("bad", "failed")),
)


def page_of_fleet(result: FleetResult) -> Page:
    """The page of many models."""
    models, missing = result.models, result.missing
    done = sum(model.outcome.ok for model in models)
    failures = [f"{number} {kind}" for kind, number in result.failures.items()]
    rest = [f"{len(missing)} without a result"] if missing else []
    counts = [f"{done} of {plural(len(result.names), 'model')} done", *failures, *rest]
    tone: Tone = "bad" if failures else "open" if missing or result.interrupted else "good"
    return Page(
        kind="Fleet",
        name=told(result.folder.name),
        tone=tone,
        verdict=", ".join(counts),
        lines=tuple(_lines(result)),
        sites=(*map(_row, models), *(SiteRow(name, "", "open", "no result") for name in missing)),
        grids=tuple(_grids(result)),
        notes=tuple(map(told, result.notes)),
        words=WORDS,
    )


def _lines(result: FleetResult) -> Iterator[str]:
    outcomes = [model.outcome for model in result.models]
    rewritten = sum(outcome.rewritten or 0 for outcome in outcomes)
    sites = sum(outcome.sites or 0 for outcome in outcomes)
    yield f"{rewritten:,} of {plural(sites, 'site')} rewritten"
    if result.kept:
        yield f"{plural(len(result.kept), 'result')} known from before"
    if result.interrupted:
        yield "interrupted: the same command goes on where it was"


def _row(model: ModelResult) -> SiteRow:
    outcome, failure = model.outcome, model.outcome.failure
    proved = outcome.verified or outcome.validated
    tone: Tone = "bad" if failure is not None else "good" if proved else "close"
    limit = model.limits.time
    ratio = None if outcome.seconds is None or not limit else outcome.seconds / limit
    if failure is not None:
        after = told(failure.message)
    else:
        words = {"proved": outcome.verified, "validated": outcome.validated}
        after = ", ".join(word for word, holds in words.items() if holds) or "not checked"
        after = "; ".join(told(text) for text in (after, outcome.summary or "") if text)
    sites = "" if outcome.sites is None else f"{outcome.rewritten} of {outcome.sites} rewritten"
    return SiteRow(
        name=model.name,
        kind="" if failure is None else failure.kind,
        tone=tone,
        verdict="done" if failure is None else "failed",
        before=Side(sites),
        after=Side(after),
        ratio=ratio,
        facts=tuple(_facts(model)),
        notes=tuple(map(told, outcome.notes)),
    )


def _facts(model: ModelResult) -> Iterator[tuple[str, str]]:
    outcome, failure = model.outcome, model.outcome.failure
    if failure is not None:
        yield "at", failure.stage or "nothing was begun"
        yield "exit code of one model", str(failure.exit_code)
        if failure.environment is not None:
            yield "the environment", failure.environment
    if outcome.seconds is not None:
        limit = "" if model.limits.time is None else f" of {digits(model.limits.time)} s"
        yield "time", f"{digits(outcome.seconds)} s{limit}"
    if outcome.peak_memory is not None:
        yield "memory at its peak", f"{outcome.peak_memory / 1e6:,.0f} MB"
    if model.same_as is not None:
        yield "same content as", model.same_as
    for file in outcome.files:
        yield "wrote", f"{told(file.path)} ({file.bytes:,} bytes)"


def _grids(result: FleetResult) -> Iterator[Grid]:
    if result.failures:
        rows = [(kind, f"{number:,}") for kind, number in result.failures.items()]
        yield Grid("What failed, by class", ("class", "models"), rows, numbers=frozenset([1]))
