"""A validation as text: every output in every runtime, the sites, and the verdict."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from ...api.onnx import require_same
from ...deploy import (
    BRIEF_RUNTIMES,
    QUANTISATION,
    OnnxSide,
    OutputCheck,
    PreparedExport,
    SiteCheck,
    SiteNoise,
    TorchSide,
    Validation,
    ValidationOptions,
)
from ...errors import MismatchError
from ..input.model_file import OpenedFile
from .numbers import plural
from .page_file import try_page_file, try_repro
from .screen import Screen
from .table import Column, Table

_COLUMNS = [
    Column("output"),
    Column("runtime"),
    *(Column(t, right=True) for t in ("max|d|", "max|d|/max|y|", "rms", "allowed", "SNR dB")),
    Column("check"),
]
_BRIEF = [
    Column("output"),
    Column("runtime"),
    *(Column(t, right=True) for t in ("max|d|", "rms", "allowed")),
    Column("check"),
]
_SITES = [
    Column("site"),
    *(Column(t, right=True) for t in ("error", "allowed", "ratio")),
    Column("check"),
]
_NOISE = [
    Column("convolution"),
    Column("as"),
    *(Column(t, right=True) for t in ("bits", "SNR dB", "at least", "cut off", "weight, steps")),
    Column("check"),
]
_BRIEF_NOISE = [
    Column("convolution"),
    *(Column(t, right=True) for t in ("SNR dB", "at least", "cut off")),
    Column("check"),
]
_WRONG_SHOWN = 5


def show_validation(screen: Screen, validation: Validation) -> None:
    """The whole verdict."""
    runs = validation.runs
    screen.line()
    guess = "" if validation.guessed is None else f" at a guessed {validation.guessed}"
    screen.paragraph(
        f"compared in {validation.dtype} on {plural(len(runs), 'run')}{guess}: {', '.join(runs)}"
    )
    for note in validation.notes:
        screen.paragraph(note, indent="  ")
    for text in validation.unseen:
        screen.paragraph(f"not compared: {text}", indent="  ")
    screen.line()
    _show_outputs(screen, validation)
    if validation.yardstick == QUANTISATION:
        _show_noise(screen, validation)
    else:
        _show_sites(screen, validation)
    _show_verdict(screen, validation)


@dataclass(frozen=True)
class WhenWrong:
    """Where what is wrong is written: as a page, and as a folder that shows it."""

    html: Path | None = None
    repro: Path | None = None


def validated(
    screen: Screen,
    opened: OpenedFile,
    made: PreparedExport,
    place: Path,
    options: ValidationOptions,
    wrong: WhenWrong = WhenWrong(),
) -> Validation:
    """Validate an export of `opened` before it is written; what is wrong with it is shown."""
    sides = (
        TorchSide.of(opened.model, opened.inputs, "the model"),
        OnnxSide(str(place), made.model, data=made.data),
    )
    with shown_if_wrong(screen, wrong), screen.work("Validating", what="runs") as progress:
        return require_same("the ONNX model", *sides, options, progress)


@contextlib.contextmanager
def shown_if_wrong(screen: Screen, wrong: WhenWrong) -> Iterator[None]:
    """Show the validation that keeps a file from being written."""
    try:
        yield
    except MismatchError as error:
        if isinstance(error.report, Validation):
            show_validation(screen, error.report)
            screen.note("No file was written.")
            try_page_file(screen, wrong.html, error.report, "the candidate")
            try_repro(screen, wrong.repro, error.report)
        raise


def _show_outputs(screen: Screen, validation: Validation) -> None:
    full = Table(_COLUMNS, [_full_row(check) for check in validation.outputs])
    brief = Table(_BRIEF, [_brief_row(check) for check in validation.outputs])
    screen.table(full, brief)
    for check in _wrong(validation.outputs):
        place = ", ".join(map(str, check.index))
        screen.paragraph(f"{check.name} ({check.runtime}, {check.run}) {check.reason}", indent="  ")
        if check.expected is not None:
            screen.paragraph(
                f"worst at [{place}]: {_value(check.found)} instead of {_value(check.expected)}; "
                f"mean |d| {_number(check.mean_abs)}, 99.9 % below {_number(check.quantile_999)}, "
                f"cosine {check.cosine:.9f}",
                indent="    ",
            )


def _wrong(checks: Iterable[OutputCheck]) -> list[OutputCheck]:
    return [check for check in checks if not check.ok][:_WRONG_SHOWN]


def _full_row(check: OutputCheck) -> tuple[str | Text, ...]:
    numbers = (check.max_abs, check.max_rel, check.rms, check.limit, check.snr_db)
    return (_named(check), check.runtime, *map(_number, numbers), _mark(check.ok))


def _named(check: OutputCheck) -> str:
    """The output, and the run where it is not one of the ordinary ones."""
    return f"{check.name}, {check.run}" if check.adversarial else check.name


def _brief_row(check: OutputCheck) -> tuple[str | Text, ...]:
    numbers = (check.max_abs, check.rms, check.limit)
    runtime = BRIEF_RUNTIMES.get(check.runtime, check.runtime)
    return (_named(check), runtime, *map(_number, numbers), _mark(check.ok))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.7g}"


def _mark(ok: bool) -> Text:
    return Text("ok", style="green") if ok else Text("MISMATCH", style="bold red")


def _show_sites(screen: Screen, validation: Validation) -> None:
    sites, worst = validation.sites, validation.worst_site
    if not sites or worst is None:
        return
    screen.line()
    unseen = [site.name for site in sites if not site.seen and site.ok]
    if screen.verbose:
        screen.table(Table(_SITES, [_site_row(site) for site in sites]))
    number = plural(len(sites), "convolution")
    screen.paragraph(
        f"{number} recomputed in float64 from the candidate's own inputs; {_worst(worst)}"
    )
    if unseen:
        screen.paragraph(
            f"nothing but zeros went into {', '.join(unseen)}, which says little about them",
            indent="  ",
        )


def _show_noise(screen: Screen, validation: Validation) -> None:
    """The yardstick, and every quantised convolution, the worst first."""
    screen.line()
    screen.paragraph(
        "held against the noise that the steps of whole numbers explain, not against rounding; "
        f"{plural(len(validation.noise), 'quantised convolution')} recomputed in float64 from the "
        "file's own inputs with the float weights, the worst first"
    )
    if validation.noise:
        rows = [_noise_row(site) for site in validation.noise]
        brief = [[row[place] for place in (0, 3, 4, 5, 7)] for row in rows]
        screen.table(Table(_NOISE, rows), Table(_BRIEF_NOISE, brief))
    for site in validation.noise:
        if site.fault is not None:
            screen.paragraph(f"{site.name}, {site.fault.kind}: {site.fault.text}", indent="  ")
        if site.not_finite:
            screen.paragraph(f"{site.name}: {site.not_finite} values are not finite", indent="  ")


def _noise_row(site: SiteNoise) -> tuple[str | Text, ...]:
    decibels = ("-" if v is None else f"{v:.1f}" for v in (site.snr_db, site.least_snr_db))
    steps = _number(site.weight_steps)
    cut = f"{site.saturated:.2%}"
    return (site.name, site.layout, str(site.bits), *decibels, cut, steps, _mark(site.ok))


def _worst(site: SiteCheck) -> str:
    return f"the largest error is {site.ratio:.2g} of what rounding explains, at {site.name}"


def _site_row(site: SiteCheck) -> tuple[str | Text, ...]:
    return (site.name, *map(_number, (site.error, site.limit, site.ratio)), _mark(site.ok))


def _show_verdict(screen: Screen, validation: Validation) -> None:
    screen.line()
    if validation.ok:
        noise = validation.yardstick == QUANTISATION
        same = "Same network, to the noise of its whole numbers." if noise else _SAME
        screen.line(Text(same, style="green"))
        return
    if validation.verdict == "not comparable":
        screen.line(Text("CANNOT be compared.", style="bold yellow"))
        screen.paragraph(f"because {validation.blame}", indent="  ")
        return
    screen.line(Text("NOT the same function.", style="bold red"))
    screen.paragraph(f"to blame: {validation.blame}", indent="  ")
    first, worst = validation.first_site, validation.worst_site
    if first is not None:
        screen.paragraph(f"first wrong site: {_site_text(first)}", indent="  ")
    if worst is not None and first is not None and worst.name != first.name:
        screen.paragraph(f"worst site: {_site_text(worst)}", indent="  ")
    wrong = [site.name for site in validation.sites if not site.ok]
    if len(wrong) > 1:
        screen.paragraph(f"all wrong sites: {', '.join(wrong)}", indent="  ")


_SAME = "Same function, to rounding."


def _site_text(site: SiteCheck) -> str:
    if site.expected is None:
        return f"{site.name}, {site.reason}"
    place = ", ".join(map(str, site.index))
    return (
        f"{site.name}, {_value(site.found)} instead of {_value(site.expected)} at [{place}] "
        f"({site.run}); its error is {site.ratio:.3g} x what rounding explains"
    )
