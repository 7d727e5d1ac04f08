"""`groupfx validate`: are two models the same function, and which site is wrong if not?"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...deploy import OnnxSide, TorchSide, read_onnx, validate_sides
from ...errors import UsageError
from ...running.guess import Declared
from ...running.inputs import ExampleInputs
from ..input.checks import validation_options
from ..input.files import ONNX, check_distinct, check_folder, write_json
from ..input.model_file import ModelOptions, OpenedFile, read_source
from ..input.options import ValidateCommand
from ..input.shown import check_overlay, check_page, check_save_repro
from ..text.page_file import try_page_file, try_repro, write_overlay_file, write_page_file
from ..text.screen import Screen
from ..text.validation_text import show_validation


def run_validate(options: ValidateCommand) -> int:
    """Read both, compare, tell."""
    source, json = ModelOptions.of(options.reference, options.file), options.told.json
    checks = validation_options(options.check, source.shapes)
    check_distinct({"CANDIDATE": options.candidate, "--json": json})
    check_distinct({"REFERENCE": options.reference, "--json": json})
    check_folder(json, "--json")
    html = options.shown.html
    inputs = {"REFERENCE": options.reference, "CANDIDATE": options.candidate}
    check_page(html, {**inputs, "--json": json})
    check_overlay(options.laid.overlay, {**inputs, "--json": json, "--html": html})
    if options.laid.overlay is not None and options.candidate.suffix != ONNX:
        other = options.candidate
        raise UsageError(f"--overlay colours the nodes of an ONNX file, and {other} is none")
    check_save_repro(options.check.save_repro)
    screen = Screen.of(options.told)
    with screen.work("Reading"):
        reference, candidate, notes = _sides(source, options.candidate, screen)
    screen.paragraph(f"reference: {reference.source}")
    screen.paragraph(f"candidate: {candidate.source}")
    with screen.work("Validating", what="runs") as progress:
        verdict = validate_sides(reference, candidate, checks, progress)
    verdict = replace(verdict, notes=(*notes, *verdict.notes))
    show_validation(screen, verdict)
    if json is not None:
        write_json(json, verdict.to_dict())
    try_repro(screen, options.check.save_repro, verdict)
    write_overlay_file(screen, options.laid.overlay, verdict, options.candidate)
    show = write_page_file if verdict.ok else try_page_file
    show(screen, html, verdict, options.candidate.name)
    verdict.require_ok(str(options.candidate))
    return 0


def _sides(
    source: ModelOptions, other: Path, screen: Screen
) -> tuple[TorchSide | OnnxSide, TorchSide | OnnxSide, tuple[str, ...]]:
    """Both sides; where one alone knows its inputs, the other is run on them too. And notes."""
    paths = (source.path, other)
    found: list[TorchSide | OnnxSide | None] = [
        OnnxSide(str(path), read_onnx(path)) if path.suffix == ONNX else None for path in paths
    ]
    declared = next((side.for_torch for side in found if isinstance(side, OnnxSide)), ())
    inputs: ExampleInputs | None = None
    notes: list[str] = []
    for position, path in enumerate(paths):
        if found[position] is not None:
            continue
        # A key that the reference has not is a mistake; the candidate may be of another kind.
        of_path = replace(source, path=path)
        opened = _opened(of_path, screen, declared, spare=inputs is not None)
        notes += opened.notes
        inputs = inputs or opened.inputs
        found[position] = TorchSide.of(opened.model, inputs, str(path))
    first, second = found
    assert first is not None
    assert second is not None
    return first, second, tuple(notes)


def _opened(
    source: ModelOptions, screen: Screen, declared: Sequence[Declared], *, spare: bool
) -> OpenedFile:
    """The model of a file; `--arch` is for those of the two that hold weights alone.

    With `spare`, so is `--key` for those that hold it.
    """
    try:
        return read_source(source, screen.warn, declared)
    except UsageError:
        if source.key is not None and spare:
            return _opened(replace(source, key=None), screen, declared, spare=False)
        if source.arch is None:
            raise
        return _opened(replace(source, arch=None, arch_args={}), screen, declared, spare=False)
