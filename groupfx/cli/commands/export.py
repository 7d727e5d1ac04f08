"""`groupfx export`: rewrite for a runtime, write an ONNX file, validate it."""

from typing import Any

from ...api.models import make_pipeline, rewrite
from ...deploy import (
    DEFAULT_OPSET,
    Dynamic,
    Export,
    ExportOptions,
    SiteForms,
    Validation,
    check_target,
    prepare_export,
)
from ...errors import UsageError
from ...rewriting import Report
from ...targets import target_named
from ..input.checks import validation_options
from ..input.files import ONNX, check_distinct, check_folder, write_json
from ..input.model_file import ModelOptions, OpenedFile, read_source
from ..input.options import ExportCommand
from ..text.numbers import plural
from ..text.rewrite_text import show_report
from ..text.screen import Screen
from ..text.table import Column, Table
from ..text.validation_text import show_validation, validated

SCHEMA = "groupfx.export/1"
_TARGET = "onnxruntime"
_SITES_SHOWN = 12


def run_export(options: ExportCommand) -> int:
    """Do it, and return the exit code. Everything that can be refused early is."""
    source, chosen = ModelOptions.of(options.model, options.file), options.chosen
    target = _TARGET if chosen.passes is None and chosen.target is None else chosen.target
    make_pipeline(chosen.passes, target)
    forms = target_named(target).forms if chosen.passes is None else "planned"
    checks, file = validation_options(options.check), _file(options, forms)
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
    show_report(screen, opened, result.report)
    with screen.work("Exporting"):
        prepared = prepare_export(result.model, opened.inputs, file)
    verdict = None
    if not options.no_verify:
        verdict = validated(screen, opened, prepared, options.place, checks)
    with screen.work("Writing"):
        export = prepared.write(options.place, overwrite=options.force)
    _show_export(screen, export)
    if verdict is not None:
        show_validation(screen, verdict)
    if options.told.json is not None:
        write_json(options.told.json, _document(opened, result.report, export, verdict))
    return 0


def _file(options: ExportCommand, forms: SiteForms) -> ExportOptions:
    """What the file is to be like."""
    return ExportOptions(
        dtype=options.dtype,
        opset=DEFAULT_OPSET if options.opset is None else options.opset,
        dynamic=Dynamic(not options.fixed_batch, options.dynamic_sizes),
        input_names=options.input_name or None,
        output_names=options.output_name or None,
        external_data=True if options.external_data else None,
        forms=forms,
    )


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
    check_folder(place, "-o")
    check_target(place, overwrite=options.force)
    check_folder(options.told.json, "--json")


def _show_export(screen: Screen, export: Export) -> None:
    """What is in the file, and where it is."""
    screen.line()
    for path in export.files:
        screen.wrote(path)
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
    shown = export.sites if screen.whole else export.sites[:_SITES_SHOWN]
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
