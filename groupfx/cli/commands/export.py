"""`groupfx export`: rewrite for a runtime, write an ONNX file, validate it."""

from typing import TYPE_CHECKING, Any

from ...api.models import make_pipeline, rewrite
from ...api.tuning import Tuned, as_tuned, feeds_of
from ...deploy import Export, Validation, check_target, prepare_export
from ...errors import UsageError
from ...rewriting import Report
from ...running.stages import Stages
from ...targets import target_named
from ..input.checks import validation_options
from ..input.files import ONNX, check_distinct, check_folder, write_json
from ..input.model_file import ModelOptions, OpenedFile, read_source
from ..input.onnx_file import check_tuning, onnx_file
from ..input.options import TORCH_BACKENDS, ExportCommand
from ..input.shown import check_overlay, check_page, check_save_repro
from ..text.export_text import as_in_file, show_export
from ..text.page_file import try_repro, write_overlay_file, write_page_file
from ..text.rewrite_text import show_report
from ..text.screen import Screen
from ..text.tuning_text import show_stages, tuned_file
from ..text.validation_text import WhenWrong, show_validation, validated

if TYPE_CHECKING:
    from ...page import Page

SCHEMA = "groupfx.export/1"
_TARGET = "onnxruntime"


def run_export(options: ExportCommand) -> int:
    """Do it, and return the exit code. Everything that can be refused early is."""
    source, chosen = ModelOptions.of(options.model, options.file), options.chosen
    target = _TARGET if chosen.passes is None and chosen.target is None else chosen.target
    make_pipeline(chosen.passes, target)
    forms = target_named(target).forms if chosen.passes is None else "planned"
    checks = validation_options(options.check)
    file = onnx_file(options.written, "whole" if options.tune else forms)
    _check_outputs(options)
    screen = Screen.of(options.told)
    with screen.work(f"Reading {options.model}"):
        opened = read_source(source, screen.warn)
    words = "Rewriting" if options.no_verify else "Rewriting and checking"
    with screen.work(words) as progress:
        result = rewrite(
            opened.model,
            opened.inputs,
            passes=chosen.passes,
            target=target,
            way=chosen.way,
            verify=not options.no_verify,
            progress=progress,
        )
    with screen.work("Exporting"):
        prepared = prepare_export(result.model, opened.inputs, file)
    tuning, stages = None, Stages()
    if options.tune:
        feeds = feeds_of(prepared, result.model, opened.inputs, options.tuning.batch)
        prepared, tuning = tuned_file(screen, prepared, feeds, options.tuning, stages)
    report = as_in_file(result.report, prepared)
    show_report(screen, opened, report)
    verdict = None
    if not options.no_verify:
        wrong = WhenWrong(options.shown.html, options.check.save_repro)
        verdict = validated(screen, opened, prepared, options.place, checks, wrong)
    with screen.work("Writing"):
        export = prepared.write(options.place, overwrite=options.force)
    show_export(screen, export)
    if verdict is not None:
        show_validation(screen, verdict)
        try_repro(screen, options.check.save_repro, verdict)
    tuned = None if tuning is None else as_tuned(options.place, tuning, export, stages=stages)
    show_stages(screen, stages.table)
    if options.told.json is not None:
        document = _document(opened, report, export, verdict)
        document["tuning"] = None if tuned is None else tuned.to_dict()
        write_json(options.told.json, document)
    if verdict is not None:
        write_overlay_file(screen, options.laid.overlay, verdict, options.place)
    write_page_file(
        screen,
        options.shown.html,
        lambda: _page(options.model.name, export, report, verdict, tuned),
        options.model.name,
    )
    return 0


def _page(
    name: str, export: Export, report: Report, verdict: Validation | None, tuned: Tuned | None
) -> "Page":
    from ...page import page_of_export, with_times

    page = page_of_export(export, report=report, validation=verdict, name=name)
    return page if tuned is None else with_times(page, tuned)


def _check_outputs(options: ExportCommand) -> None:
    place = options.place
    if place.suffix != ONNX:
        raise UsageError(f"-o {place}: the name must end in .onnx, such as {place.name}.onnx")
    if options.model.suffix == ONNX:
        raise UsageError(
            f"{options.model} is an ONNX file already: 'groupfx rewrite' splits it, and "
            "'groupfx validate' compares it"
        )
    check_distinct({"MODEL": options.model, "-o": place, "--json": options.told.json})
    check_tuning(options.tuning, place, used=options.tune)
    if options.tuning.backend in TORCH_BACKENDS:
        raise UsageError(
            f"--backend {options.tuning.backend} runs no ONNX file: 'groupfx tune' tunes for torch"
        )
    check_folder(place, "-o")
    check_target(place, overwrite=options.force)
    check_folder(options.told.json, "--json")
    outputs = {"MODEL": options.model, "-o": place, "--json": options.told.json}
    check_page(options.shown.html, outputs)
    drawn = {**outputs, "--html": options.shown.html}
    check_overlay(options.laid.overlay, drawn, checked=not options.no_verify)
    check_save_repro(options.check.save_repro, no_verify=options.no_verify)


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
