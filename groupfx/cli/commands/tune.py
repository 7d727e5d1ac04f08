"""`groupfx tune`: the fastest form on this machine, of a model or of an ONNX file.

What comes out is an ONNX file, or a file of ours where torch is to run it.
"""

import torch

from ...api.onnx import require_same
from ...api.tuning import Feeds, as_tuned, feeds_of, file_to_tune, module_tuned
from ...deploy import (
    OnnxSide,
    PreparedExport,
    TorchSide,
    Validation,
    ValidationOptions,
    check_target,
    prepare_export,
)
from ...errors import UsageError, first_line
from ...files.archive import check_replaceable
from ...running.stages import Stages
from ..input.checks import validation_options
from ..input.files import ONNX, check_distinct, check_folder, write_json
from ..input.model_file import ModelOptions, read_source
from ..input.onnx_file import check_tuning, onnx_file, tuning_of
from ..input.options import Check, OnnxFile, TuneCommand
from ..input.shown import check_page, check_save_repro
from ..text.export_text import show_export
from ..text.page_file import try_repro, write_page_file
from ..text.rewrite_text import show_report
from ..text.screen import Screen
from ..text.tuning_text import show_stages, tuned_file
from ..text.validation_text import WhenWrong, show_validation, shown_if_wrong

SCHEMA = "groupfx.tune/1"


def run_tune(options: TuneCommand) -> int:
    """Do it, and return the exit code. Everything that can be refused early is."""
    source = ModelOptions.of(options.model, options.file)
    if options.of_torch:
        return _tune_module(options, source)
    checks = validation_options(options.check, source.shapes)
    _check_outputs(options)
    screen, stages = Screen.of(options.told), Stages()
    side, prepared, feeds = _read(screen, source, options, stages)
    made, tuning = tuned_file(screen, prepared, feeds, options.tuning, stages)
    verdict = None
    if not options.no_verify:
        with stages("validate"):
            verdict = _validated(screen, side, made, checks, options)
    with stages("write"), screen.work("Writing"):
        export = made.write(options.place, overwrite=options.force)
    show_export(screen, export)
    if verdict is not None:
        show_validation(screen, verdict)
        try_repro(screen, options.check.save_repro, verdict)
    found = as_tuned(options.place, tuning, export, verdict, stages=stages)
    show_stages(screen, found.stages)
    if options.told.json is not None:
        files = {"read": str(options.model), "written": [str(path) for path in export.files]}
        first = {"schema": SCHEMA, "ok": verdict is None or verdict.ok, "files": files}
        write_json(options.told.json, {**first, **found.to_dict()})
    write_page_file(screen, options.shown.html, found, options.model.name)
    return 0


def _read(
    screen: Screen, source: ModelOptions, options: TuneCommand, stages: Stages
) -> tuple[TorchSide | OnnxSide, PreparedExport, Feeds]:
    """The model to compare with, its file with every site in one piece, and inputs of it."""
    batch = options.tuning.batch
    if options.model.suffix == ONNX:
        with stages("read"), screen.work(f"Reading {options.model}"):
            return file_to_tune(options.model, source.shapes, batch)
    file = onnx_file(options.written, "whole")
    with stages("read"), screen.work(f"Reading {options.model}"):
        opened = read_source(source, screen.warn)
    with stages("export"), screen.work("Exporting"):
        prepared = prepare_export(opened.model, opened.inputs, file)
    side = TorchSide.of(opened.model, opened.inputs, "the model")
    return side, prepared, feeds_of(prepared, opened.model, opened.inputs, batch)


def _validated(
    screen: Screen,
    side: TorchSide | OnnxSide,
    made: PreparedExport,
    checks: ValidationOptions,
    options: TuneCommand,
) -> Validation:
    other = OnnxSide("the tuned model", made.model, data=made.data)
    with (
        shown_if_wrong(screen, WhenWrong(options.shown.html, options.check.save_repro)),
        screen.work("Validating", what="runs") as progress,
    ):
        return require_same("the tuned model", side, other, checks, progress)


def _tune_module(options: TuneCommand, source: ModelOptions) -> int:
    """Tune for torch itself, and write a file of ours."""
    _check_module_outputs(options)
    screen, tuning = Screen.of(options.told), options.tuning
    with screen.work(f"Reading {options.model}"):
        opened = read_source(source, screen.warn)
    device = _device(options.device)
    inputs = opened.inputs.map(lambda tensor: tensor.to(device))
    with screen.work("Tuning", what="variants and heats") as progress:
        found = module_tuned(
            opened.model.to(device),
            inputs.asked(tuning.batch),
            options.place,
            tuning_of(tuning),
            verify=not options.no_verify,
            overwrite=options.force,
            progress=progress,
        )
    assert found.result is not None
    show_report(screen, opened, found.result.report)
    screen.line()
    screen.wrote(options.place)
    for line in (found.summary, *found.notes):
        screen.paragraph(line, indent="  ")
    show_stages(screen, found.stages)
    if tuning.save_plan is not None:
        found.plan.save(tuning.save_plan)
        screen.wrote(tuning.save_plan)
    if options.told.json is not None:
        files = {"read": str(options.model), "written": [str(options.place)]}
        document = {"schema": SCHEMA, "ok": found.result.report.ok, "files": files}
        write_json(options.told.json, {**document, **found.to_dict()})
    write_page_file(screen, options.shown.html, found, options.model.name)
    return 0


def _device(name: str | None) -> torch.device:
    """Raises UsageError for one that is not here."""
    try:
        device = torch.device(name or "cpu")
        torch.zeros(1, device=device).cpu()
    except Exception as error:
        raise UsageError(f"--device {name}: {first_line(error)}") from error
    return device


def _check_module_outputs(options: TuneCommand) -> None:
    place, tuning = options.place, options.tuning
    backend = tuning.backend
    if ONNX in (options.model.suffix, place.suffix):
        raise UsageError(
            f"--backend {backend} runs torch models: neither MODEL nor -o may be an .onnx file"
        )
    if options.written != OnnxFile() or options.check != Check():
        raise UsageError(
            f"--backend {backend} writes no ONNX file: what says how one is written or compared "
            "has no meaning there"
        )
    check_tuning(tuning, place, used=True)
    outputs = {"-o": place, "--json": options.told.json, "--save-plan": tuning.save_plan}
    check_distinct({"MODEL": options.model, **outputs})
    check_folder(place, "-o")
    check_replaceable(place, overwrite=options.force)
    check_folder(options.told.json, "--json")
    check_page(options.shown.html, {"MODEL": options.model, **outputs})


def _check_outputs(options: TuneCommand) -> None:
    place, tuning = options.place, options.tuning
    if options.device is not None:
        raise UsageError("--device: only with --backend torch or torch.compile")
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
    check_page(options.shown.html, {"MODEL": options.model, **outputs})
    check_save_repro(options.check.save_repro, no_verify=options.no_verify)
