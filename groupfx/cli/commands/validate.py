"""`groupfx validate`: are two models the same function, and which site is wrong if not?"""

from dataclasses import dataclass, replace
from pathlib import Path

from ...api.onnx import ONNX, read_arrays
from ...deploy import OnnxSide, TorchSide, Validation, ValidationOptions, read_onnx, validate_sides
from ...errors import MismatchError, UsageError
from ...running.inputs import ExampleInputs
from ..input.files import STDOUT, check_distinct, check_folder, json_text, write_text
from ..input.model_file import ModelOptions, OpenedFile, read_source
from ..text.screen import Screen
from ..text.validation_text import show_validation
from .export import parse_atol


@dataclass(frozen=True)
class ValidateCommand:
    """The options of the command; `source` names the reference, and how torch files are read."""

    source: ModelOptions
    candidate: Path
    atol: tuple[str, ...]
    data: tuple[Path, ...]
    json: Path | None
    quiet: bool
    verbose: bool


def run_validate(options: ValidateCommand) -> int:
    """Read both, compare, tell."""
    checks = ValidationOptions(
        parse_atol(options.atol), read_arrays(options.data), shapes=_shapes(options.source)
    )
    check_distinct({"CANDIDATE": options.candidate, "--json": options.json})
    check_distinct({"REFERENCE": options.source.path, "--json": options.json})
    if options.json is not None:
        check_folder(options.json, "--json")
    screen = Screen(quiet=options.quiet, verbose=options.verbose, data=options.json != STDOUT)
    with screen.work("Reading"):
        reference, candidate, notes = _sides(options, screen)
    screen.paragraph(f"reference: {reference.source}")
    screen.paragraph(f"candidate: {candidate.source}")
    with screen.work("Validating", what="runs") as progress:
        verdict = validate_sides(reference, candidate, checks, progress)
    verdict = replace(verdict, notes=(*notes, *verdict.notes))
    show_validation(screen, verdict)
    _write(options, verdict)
    if not verdict.ok:
        raise MismatchError(
            f"{options.candidate} is not the same function: {verdict.blame}", report=verdict
        )
    return 0


def _shapes(source: ModelOptions) -> dict[str | int, tuple[int, ...]]:
    """The given shapes by name or position, for two files that leave sizes open."""
    return {
        position if shape.name is None else shape.name: shape.sizes
        for position, shape in enumerate(source.input_shapes)
    }


def _sides(
    options: ValidateCommand, screen: Screen
) -> tuple[TorchSide | OnnxSide, TorchSide | OnnxSide, tuple[str, ...]]:
    """Both sides; where one alone knows its inputs, the other is run on them too. And notes."""
    paths = (options.source.path, options.candidate)
    found: list[TorchSide | OnnxSide | None] = [
        OnnxSide(str(path), read_onnx(path)) if path.suffix == ONNX else None for path in paths
    ]
    inputs: ExampleInputs | None = None
    notes: list[str] = []
    for position, path in enumerate(paths):
        if found[position] is not None:
            continue
        # A key that the reference has not is a mistake; the candidate may be of another kind.
        opened = _opened(replace(options.source, path=path), screen, spare=inputs is not None)
        notes += opened.notes
        inputs = inputs or opened.inputs
        found[position] = TorchSide.of(opened.model, inputs, str(path))
    first, second = found
    assert first is not None
    assert second is not None
    return first, second, tuple(notes)


def _opened(source: ModelOptions, screen: Screen, *, spare: bool) -> OpenedFile:
    """The model of a file; `--arch` is for those of the two that hold weights alone.

    With `spare`, so is `--key` for those that hold it.
    """
    try:
        return read_source(source, screen.warn)
    except UsageError:
        if source.key is not None and spare:
            return _opened(replace(source, key=None), screen, spare=False)
        if source.arch is None:
            raise
        return _opened(replace(source, arch=None, arch_args={}), screen, spare=False)


def _write(options: ValidateCommand, verdict: Validation) -> None:
    if options.json is not None:
        write_text(options.json, json_text(verdict.to_dict()))
