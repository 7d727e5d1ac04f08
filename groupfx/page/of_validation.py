"""What a page shows of a validation: every output, and every site by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ..deploy import OutputCheck, SiteCheck, Validation
from ..report.prose import digits, exact, plural, told
from .content import Grid, Page, Side, SiteRow, Tone

_SENTENCES: Mapping[str, tuple[Tone, str]] = {
    "same": ("good", "Same function, to rounding."),
    "different": ("bad", "NOT the same function."),
    "not comparable": ("open", "CANNOT be compared."),
}


def page_of_validation(validation: Validation) -> Page:
    """The page of a comparison of two models."""
    tone, sentence = _SENTENCES[validation.verdict]
    names = [short_name(text) for text in (validation.candidate, validation.reference)]
    before, after = validation.pieces
    rows = [
        replace(
            validated_row(check),
            before=Side.of(before.get(check.name, ())),
            after=Side.of(after.get(check.name, ())),
            structure=validation.blocks.get(check.name),
        )
        for check in validation.sites
    ]
    return Page(
        kind="Validation",
        name=f"{names[0]} against {names[1]}",
        tone=tone,
        verdict=sentence,
        lines=tuple(validation_lines(validation)),
        sites=tuple(rows),
        grids=tuple(validation_grids(validation)),
        notes=tuple(map(told, validation.notes)),
    )


def short_name(source: str) -> str:
    """A file by its own name; what is no file as it is."""
    return Path(told(source)).name if Path(source).suffix else told(source)


def validation_lines(validation: Validation) -> Iterator[str]:
    """What the verdict rests on."""
    if validation.blame is not None:
        word = "because" if validation.verdict == "not comparable" else "to blame:"
        yield f"{word} {told(validation.blame)}"
    guess = "" if validation.guessed is None else f" at a guessed {validation.guessed}"
    runs = plural(len(validation.runs), "run")
    yield f"compared in {validation.dtype} on {runs}{guess}: {', '.join(validation.runs)}"
    worst = validation.worst_site
    if worst is not None:
        yield (
            f"{plural(len(validation.sites), 'convolution')} recomputed in float64 from the "
            f"candidate's own inputs; the largest error is {digits(worst.ratio)} of what rounding "
            f"explains, at {told(worst.name)}"
        )
    yield from (f"not compared: {told(text)}" for text in validation.unseen)


def validated_row(check: SiteCheck) -> SiteRow:
    """One site, recomputed on its own."""
    good: Tone = "close" if check.seen else "open"
    verdict = "within bound" if check.seen else "only zeros went in"
    return SiteRow(
        name=check.name,
        kind="convolution",
        tone=good if check.ok else "bad",
        verdict=verdict if check.ok else "MISMATCH",
        ratio=check.ratio if check.seen or not check.ok else None,
        facts=tuple(site_facts(check)),
    )


def site_facts(check: SiteCheck) -> Iterator[tuple[str, str]]:
    """What was measured at a site."""
    if check.reason is not None:
        yield "wrong", told(check.reason)
    yield "error / allowed", f"{digits(check.error)} / {digits(check.limit)}"
    if check.expected is not None:
        place = ", ".join(map(str, check.index))
        yield f"worst, at [{place}]", f"{exact(check.found)} instead of {exact(check.expected)}"
    if check.run is not None:
        yield "worst run", check.run


def validation_grids(validation: Validation) -> Iterator[Grid]:
    """The outputs in every runtime, and the operators that are wrong."""
    outputs = validation.outputs
    tones: list[Tone] = ["close" if check.ok else "bad" for check in outputs]
    titles = ("output", "runtime", "max|d|", "max|d| / max|y|", "rms", "allowed", "SNR dB", "check")
    rows = [_output_row(check) for check in outputs]
    yield Grid("Outputs", titles, rows, tones, frozenset(range(2, 7)))
    wrong = [check for check in validation.operators if not check.ok]
    if wrong:
        yield Grid(
            "Operators that are wrong",
            ("operator",),
            [(told(str(check)),) for check in wrong],
            ["bad"] * len(wrong),
        )


def _output_row(check: OutputCheck) -> tuple[str, ...]:
    name = f"{check.name}, {check.run}" if check.adversarial else check.name
    numbers = (check.max_abs, check.max_rel, check.rms, check.limit, check.snr_db)
    word = "ok" if check.ok else f"MISMATCH: {told(check.reason or 'too far')}"
    return (name, check.runtime, *map(digits, numbers), word)
