"""`groupfx rewrite`: read, rewrite, check, write, tell."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...api.models import make_pipeline, rewrite
from ...errors import MismatchError, UsageError
from ...files.archive import check_replaceable
from ...rewriting import Report, Result
from ...targets import target_named
from ..input.files import (
    ONNX,
    STDOUT,
    check_distinct,
    check_folder,
    check_python,
    write_json,
    write_text,
)
from ..input.model_file import ModelOptions, OpenedFile, read_source
from ..input.options import RewriteCommand
from ..input.shown import check_page
from ..text.export_text import as_in_file
from ..text.page_file import try_page_file, write_page_file
from ..text.rewrite_text import show_report
from ..text.screen import Advance, Screen

if TYPE_CHECKING:
    from ...deploy import PreparedExport

_EXPORTED = ".pt2"


def run_rewrite(options: RewriteCommand) -> int:
    """Do it, and return the exit code. Everything that can be refused early is."""
    source = ModelOptions.of(options.model, options.file)
    make_pipeline(options.chosen.passes, options.chosen.target)
    if options.model.suffix == ONNX:
        return _rewrite_onnx(options, source)
    _check_outputs(options)
    screen = Screen.of(options.told, options.emit_python)
    with screen.work(f"Reading {options.model}"):
        opened = read_source(source, screen.warn)
    words = "Rewriting" if options.no_verify else "Rewriting and checking"
    try:
        with screen.work(words) as progress:
            result = _rewrite(options, opened, progress)
    except MismatchError as error:
        if isinstance(error.report, Report):
            show_report(screen, opened, error.report)
            screen.line()
            screen.note("No model was written.")
            _write_json(options, opened, error.report, written=False)
            try_page_file(screen, options.shown.html, error.report, options.model.name)
        raise
    prepared = _prepare_onnx(screen, options, opened, result)
    with screen.work("Writing"):
        python = _write(options, result, prepared)
    if options.emit_python == STDOUT:
        write_text(STDOUT, python)
    report = as_in_file(result.report, prepared)
    show_report(screen, opened, report)
    _show_files(screen, options, report)
    if prepared is not None and prepared.promise is not None:
        screen.paragraph(prepared.promise, indent="  ")
    _write_json(options, opened, report, written=not options.dry_run)
    write_page_file(screen, options.shown.html, report, options.model.name)
    return 0


def _check_outputs(options: RewriteCommand) -> None:
    """Refuse what could not be written in the end, before any work."""
    place, python = options.place, options.emit_python
    if place.suffix not in (".pt", _EXPORTED, ONNX):
        raise UsageError(
            f"-o {place}: the name must end in .pt, .pt2 or .onnx, such as {place.name}.pt"
        )
    check_distinct(
        {
            "MODEL": options.model,
            "-o": None if options.dry_run or options.force else place,
            "--emit-python": python,
            "--json": options.told.json,
        }
    )
    if (
        options.force
        and not options.dry_run
        and os.path.abspath(place) != os.path.abspath(options.model)
    ):
        # --force is for what -o names: MODEL under another name is not meant to be lost.
        check_distinct({"MODEL": options.model, "-o": place})
    if not options.dry_run:
        check_folder(place, "-o")
        _check_replaceable(place, overwrite=options.force)
    check_folder(options.told.json, "--json")
    others = {"MODEL": options.model, "-o": None if options.dry_run else place}
    check_page(options.shown.html, {**others, "--json": options.told.json, "--emit-python": python})
    if python is not None:
        check_folder(python, "--emit-python")
        check_python(python, force=options.force)


def _check_replaceable(place: Path, *, overwrite: bool) -> None:
    if place.suffix != ONNX:
        check_replaceable(place, overwrite=overwrite)
        return
    from ...deploy import check_target

    check_target(place, overwrite=overwrite)


def _rewrite_onnx(options: RewriteCommand, source: ModelOptions) -> int:
    """The command for a file that is ONNX already, of any producer."""
    # onnx and ONNX Runtime are not needed for anything else here.
    from ...api.onnx import onnx_passes, rewrite_onnx
    from ..text.onnx_text import rewrite_document, show_onnx_rewrite
    from ..text.validation_text import WhenWrong, shown_if_wrong

    chosen, told = options.chosen, options.told
    if options.emit_python is not None:
        raise UsageError("--emit-python writes torch modules: an ONNX file has none")
    source.require_onnx()
    onnx_passes(chosen.passes, chosen.target)
    _check_onnx_outputs(options)
    screen = Screen.of(told)
    words = "Rewriting" if options.no_verify else "Rewriting and validating"
    html, name = options.shown.html, options.model.name
    with shown_if_wrong(screen, WhenWrong(html)), screen.work(words, what="runs") as progress:
        result = rewrite_onnx(
            options.model,
            None if options.dry_run else options.place,
            passes=chosen.passes,
            target=chosen.target,
            verify=not options.no_verify,
            overwrite=options.force,
            shapes=source.shapes,
            progress=progress,
        )
    show_onnx_rewrite(screen, options.model, result)
    screen.line()
    if options.dry_run:
        screen.note("Dry run: no file was written.")
    for path in result.files:
        screen.wrote(path)
    if told.json is not None:
        write_json(told.json, rewrite_document(options.model, result))
    write_page_file(screen, html, result, name)
    return 0


def _check_onnx_outputs(options: RewriteCommand) -> None:
    place, json = options.place, options.told.json
    if place.suffix != ONNX:
        raise UsageError(
            f"-o {place}: what was read from an .onnx file is written to one: end the name in .onnx"
        )
    check_distinct({"MODEL": options.model, "-o": None if options.dry_run else place})
    check_distinct({"-o": place, "--json": json})
    if not options.dry_run:
        check_folder(place, "-o")
    check_folder(json, "--json")
    check_page(options.shown.html, {"MODEL": options.model, "-o": place, "--json": json})


def _prepare_onnx(
    screen: Screen, options: RewriteCommand, opened: OpenedFile, result: Result
) -> "PreparedExport | None":
    """The ONNX model of the result, validated against the original; None for another file."""
    if options.place.suffix != ONNX:
        return None
    from ...deploy import ExportOptions, ValidationOptions, prepare_export
    from ..text.validation_text import WhenWrong, validated

    with screen.work("Exporting"):
        chosen = options.chosen
        forms = target_named(chosen.target).forms if chosen.passes is None else "planned"
        file = ExportOptions(forms=forms)
        prepared = prepare_export(result.model, opened.inputs, file)
    if not options.no_verify:
        checks, wrong = ValidationOptions(), WhenWrong(options.shown.html)
        validated(screen, opened, prepared, options.place, checks, wrong)
    return prepared


def _rewrite(options: RewriteCommand, opened: OpenedFile, progress: Advance) -> Result:
    return rewrite(
        opened.model,
        opened.inputs,
        passes=options.chosen.passes,
        target=options.chosen.target,
        way=options.chosen.way,
        inplace=not opened.copyable,
        verify=not options.no_verify,
        progress=progress,
    )


def _write(options: RewriteCommand, result: Result, prepared: "PreparedExport | None") -> str:
    """Write the model, and its Python where that is a file; return the Python."""
    python = ""
    if options.emit_python is not None:
        from ...emit import emit_python

        python = emit_python(result)
    if not options.dry_run and prepared is not None:
        prepared.write(options.place, overwrite=options.force)
    elif not options.dry_run:
        save = result.save_exported if options.place.suffix == _EXPORTED else result.save
        save(options.place, overwrite=options.force)
    if options.emit_python is not None and options.emit_python != STDOUT:
        write_text(options.emit_python, python)
    return python


def _write_json(
    options: RewriteCommand, opened: OpenedFile, report: Report, *, written: bool
) -> None:
    if options.told.json is not None:
        write_json(options.told.json, _document(options, opened, report, written=written))


def _document(
    options: RewriteCommand, opened: OpenedFile, report: Report, *, written: bool
) -> dict[str, Any]:
    """The report, and what the command made of it."""
    python = options.emit_python if report.ok else None
    plain = report.to_dict()
    files = {
        **opened.document,
        "written": str(options.place) if written else None,
        "python": None if python is None else str(python),
    }
    first = {"schema": plain["schema"], "ok": report.ok, "verified": report.verified}
    return {**first, "files": files, **plain}


def _show_files(screen: Screen, options: RewriteCommand, report: Report) -> None:
    screen.line()
    if options.dry_run:
        screen.note("Dry run: no model was written.")
    else:
        screen.wrote(options.place)
        screen.paragraph(f"Read it with {_loading(options.place, report)}.")
    if options.emit_python not in (None, STDOUT):
        screen.note(f"Wrote {options.emit_python}: the model as Python.")


def _loading(place: Path, report: Report) -> str:
    """The call that reads the file."""
    if place.suffix == ONNX:
        return f'onnxruntime.InferenceSession("{place}"): the file was validated against the model'
    if place.suffix == _EXPORTED:
        return f'torch.export.load("{place}").module(), which trusts whoever wrote the file'
    if report.way == "modules":
        return f'groupfx.load("{place}", model), where model is one as it was before'
    return f'groupfx.load("{place}"), which executes nothing of it'
