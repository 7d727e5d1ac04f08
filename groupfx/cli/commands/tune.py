"""`groupfx tune`: the fastest ONNX file on this machine, from a model or from another file."""

from ...api.onnx import require_same
from ...api.tuning import Feeds, as_tuned, feeds_of, file_to_tune
from ...deploy import (
    OnnxSide,
    PreparedExport,
    TorchSide,
    Validation,
    ValidationOptions,
    check_target,
    prepare_export,
)
from ...errors import UsageError
from ..input.checks import validation_options
from ..input.files import ONNX, check_distinct, check_folder, write_json
from ..input.model_file import ModelOptions, read_source
from ..input.onnx_file import check_tuning, onnx_file
from ..input.options import OnnxFile, TuneCommand
from ..text.export_text import show_export
from ..text.screen import Screen
from ..text.tuning_text import tuned_file
from ..text.validation_text import show_validation, shown_if_wrong

SCHEMA = "groupfx.tune/1"


def run_tune(options: TuneCommand) -> int:
    """Do it, and return the exit code. Everything that can be refused early is."""
    source = ModelOptions.of(options.model, options.file)
    checks = validation_options(options.check, source.shapes)
    _check_outputs(options)
    screen = Screen.of(options.told)
    side, prepared, feeds = _read(screen, source, options)
    made, tuning = tuned_file(screen, prepared, feeds, options.tuning)
    verdict = None if options.no_verify else _validated(screen, side, made, checks)
    with screen.work("Writing"):
        export = made.write(options.place, overwrite=options.force)
    show_export(screen, export)
    if verdict is not None:
        show_validation(screen, verdict)
    if options.told.json is not None:
        document = as_tuned(export, tuning, verdict).to_dict()
        files = {"read": str(options.model), "written": [str(path) for path in export.files]}
        ok = verdict is None or verdict.ok
        write_json(options.told.json, {"schema": SCHEMA, "ok": ok, "files": files, **document})
    return 0


def _read(
    screen: Screen, source: ModelOptions, options: TuneCommand
) -> tuple[TorchSide | OnnxSide, PreparedExport, Feeds]:
    """The model to compare with, its file with every site in one piece, and inputs of it."""
    batch = options.tuning.batch
    if options.model.suffix == ONNX:
        with screen.work(f"Reading {options.model}"):
            return file_to_tune(options.model, source.shapes, batch)
    file = onnx_file(options.written, "whole")
    with screen.work(f"Reading {options.model}"):
        opened = read_source(source, screen.warn)
    with screen.work("Exporting"):
        prepared = prepare_export(opened.model, opened.inputs, file)
    side = TorchSide.of(opened.model, opened.inputs, "the model")
    return side, prepared, feeds_of(prepared, opened.model, opened.inputs, batch)


def _validated(
    screen: Screen,
    side: TorchSide | OnnxSide,
    made: PreparedExport,
    checks: ValidationOptions,
) -> Validation:
    other = OnnxSide("the tuned model", made.model)
    with shown_if_wrong(screen), screen.work("Validating", what="runs") as progress:
        return require_same("the tuned model", side, other, checks, progress)


def _check_outputs(options: TuneCommand) -> None:
    place, tuning = options.place, options.tuning
    if place.suffix != ONNX:
        raise UsageError(f"-o {place}: the name must end in .onnx, such as {place.name}.onnx")
    if options.model.suffix == ONNX and options.written != OnnxFile():
        raise UsageError(
            f"{options.model} is an ONNX file: --dtype, --opset, --fixed-batch, --dynamic-sizes, "
            "names and --external-data are for a file that is made of a model"
        )
    check_tuning(tuning, place, used=True)
    outputs = {"-o": place, "--json": options.told.json, "--save-plan": tuning.save_plan}
    check_distinct({"MODEL": options.model, **outputs})
    check_folder(place, "-o")
    check_target(place, overwrite=options.force)
    check_folder(options.told.json, "--json")
