"""`groupfx export`: rewrite for a runtime, write an ONNX file, validate it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ...api.models import make_pipeline, rewrite
from ...api.onnx import ONNX, read_arrays
from ...deploy import (
    DEFAULT_OPSET,
    DType,
    Dynamic,
    Export,
    ExportOptions,
    OnnxSide,
    PreparedExport,
    TorchSide,
    Validation,
    ValidationOptions,
    check_target,
    prepare_export,
    validate_sides,
)
from ...errors import MismatchError, UsageError
from ...rewriting import Report
from ...running.inputs import ExampleInputs
from ..input.files import STDOUT, check_distinct, check_folder, json_text, write_text
from ..input.model_file import ModelOptions, OpenedFile, read_source
from ..text.numbers import plural, size
from ..text.rewrite_text import show_report
from ..text.screen import Screen
from ..text.table import Column, Table
from ..text.validation_text import show_validation

SCHEMA = "groupfx.export/1"
_TARGET = "onnxruntime"
_SITES_SHOWN = 12


@dataclass(frozen=True)
class ExportCommand:
    """The options of the command; `output` is None for the usual name."""

    source: ModelOptions
    passes: tuple[str, ...] | None
    target: str | None
    way: str
    verify: bool
    output: Path | None
    dtype: DType | None
    opset: int | None
    dynamic_batch: bool
    dynamic_sizes: bool
    input_names: Sequence[str] | None
    output_names: Sequence[str] | None
    external_data: bool
    atol: tuple[str, ...]
    data: tuple[Path, ...]
    force: bool
    json: Path | None
    quiet: bool
    verbose: bool

    @property
    def place(self) -> Path:
        """Where the file goes."""
        return self.output or Path(f"{self.source.path.stem}.onnx")

    @property
    def file(self) -> ExportOptions:
        """What the file is to be like."""
        return ExportOptions(
            dtype=self.dtype,
            opset=DEFAULT_OPSET if self.opset is None else self.opset,
            dynamic=Dynamic(self.dynamic_batch, self.dynamic_sizes),
            input_names=self.input_names or None,
            output_names=self.output_names or None,
            external_data=True if self.external_data else None,
            choose_forms=self.passes is None and self.target in (None, _TARGET),
        )


def run_export(options: ExportCommand) -> int:
    """Do it, and return the exit code. Everything that can be refused early is."""
    target = _TARGET if options.passes is None and options.target is None else options.target
    make_pipeline(options.passes, target)
    checks = ValidationOptions(parse_atol(options.atol), read_arrays(options.data))
    file = options.file
    _check_outputs(options)
    screen = Screen(quiet=options.quiet, verbose=options.verbose, data=options.json != STDOUT)
    with screen.work(f"Reading {options.source.path}"):
        opened = read_source(options.source, screen.warn)
    with screen.work("Rewriting and checking" if options.verify else "Rewriting") as progress:
        result = rewrite(
            opened.model,
            opened.inputs,
            passes=options.passes,
            target=target,
            way=options.way,
            verify=options.verify,
            progress=progress,
        )
    show_report(screen, opened, result.report)
    with screen.work("Exporting"):
        prepared = prepare_export(result.model, opened.inputs, file)
    verdict = None
    if options.verify:
        verdict = checked(screen, opened.model, opened.inputs, prepared, options.place, checks)
    with screen.work("Writing"):
        export = prepared.write(options.place, overwrite=options.force)
    show_export(screen, export)
    if verdict is not None:
        show_validation(screen, verdict)
    if options.json is not None:
        document = _document(opened, result.report, export, verdict)
        write_text(options.json, json_text(document))
    return 0


def checked(
    screen: Screen,
    original: nn.Module,
    inputs: ExampleInputs,
    prepared: PreparedExport,
    place: Path,
    options: ValidationOptions,
) -> Validation:
    """Validate an export before it is written. Raises `MismatchError`, with all of it shown."""
    sides = TorchSide.of(original, inputs, "the model"), OnnxSide(str(place), prepared.model)
    with screen.work("Validating", what="runs") as progress:
        verdict = validate_sides(*sides, options, progress)
    if not verdict.ok:
        show_validation(screen, verdict)
        screen.note("No file was written.")
        raise MismatchError(
            f"the ONNX model is not the same function: {verdict.blame}", report=verdict
        )
    return verdict


def parse_atol(texts: Sequence[str]) -> Mapping[str, float]:
    """`logits:1e-4` as a table. Raises UsageError."""
    found: dict[str, float] = {}
    for text in texts:
        name, colon, value = text.rpartition(":")
        try:
            found[name] = float(value)
        except ValueError as error:
            raise UsageError(f"--atol {text!r}: {value!r} is not a number; {_ATOL}") from error
        if not colon or not name:
            raise UsageError(f"--atol {text!r} names no output; {_ATOL}")
    return found


_ATOL = "write NAME:VALUE, such as logits:1e-4"


def _check_outputs(options: ExportCommand) -> None:
    place = options.place
    if place.suffix != ONNX:
        raise UsageError(f"-o {place}: the name must end in .onnx, such as {place.name}.onnx")
    if options.source.path.suffix == ONNX:
        raise UsageError(
            f"{options.source.path} is an ONNX file already: 'groupfx rewrite' splits it, and "
            "'groupfx validate' compares it"
        )
    check_distinct({"MODEL": options.source.path, "-o": place, "--json": options.json})
    check_folder(place, "-o")
    check_target(place, overwrite=options.force)
    if options.json is not None:
        check_folder(options.json, "--json")


def show_export(screen: Screen, export: Export) -> None:
    """What is in the file, and where it is."""
    screen.line()
    for path in export.files:
        screen.note(f"Wrote {path} ({size(path.stat().st_size)}).")
    screen.paragraph(f"opset {export.opset}, {plural(export.nodes, 'node')}", indent="  ")
    for word, infos in (("input", export.inputs), ("output", export.outputs)):
        for info in infos:
            sizes = ", ".join(map(str, info.shape))
            screen.paragraph(f"{word} {info.name}: {info.dtype} [{sizes}]", indent="  ")
    if export.summary is not None:
        screen.paragraph(export.summary, indent="  ")
    for note in export.notes:
        screen.paragraph(note, indent="  ")
    if not export.sites:
        return
    screen.line()
    shown = export.sites if screen.verbose or not screen.terminal else export.sites[:_SITES_SHOWN]
    rows = [(site.name, site.form, str(site.convs)) for site in shown]
    screen.table(
        Table([Column("site"), Column("in the file"), Column("convolutions", right=True)], rows)
    )
    if len(shown) < len(export.sites):
        screen.paragraph(f"and {len(export.sites) - len(shown)} more (-v names them)")


def _document(
    opened: OpenedFile, report: Report, export: Export, verdict: Validation | None
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "ok": verdict is None or verdict.ok,
        "files": {
            **opened.document,
            "written": [str(path) for path in export.files],
        },
        "rewrite": report.to_dict(),
        "export": export.to_dict(),
        "validation": None if verdict is None else verdict.to_dict(),
    }
