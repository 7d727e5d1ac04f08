"""`groupfx check`: what a toolchain takes of a model, and the rewrite that helps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...api.check import Checked, check
from ...errors import UsageError
from ...files.archive import check_replaceable
from ...report.junit import junit_xml
from ...rewriting import Result
from ...targets import target_named
from ..input.check_options import CheckCommand
from ..input.files import ONNX, check_distinct, check_folder, write_json, write_text
from ..input.model_file import ModelOptions, OpenedFile, read_source
from ..text.check_text import checked_document, junit_cases, show_checked
from ..text.rewrite_text import show_opening
from ..text.screen import Screen

SCHEMA = "groupfx.check/1"
_EXPORTED = ".pt2"
_UNKNOWN = 4


def run_check(options: CheckCommand) -> int:
    """Judge, tell, and with --fix write; the exit code is for a CI."""
    source = ModelOptions.of(options.model, options.file)
    assert options.target is not None
    target = target_named(options.target)
    methods = target.methods_named(options.method or ())
    place = options.place(target.name) if options.fix else None
    _check_outputs(options, place)
    screen = Screen.of(options.told, options.junit)
    asked: dict[str, Any] = {"target": options.target, "methods": methods, "fix": options.fix}
    if options.model.suffix == ONNX:
        source.require_onnx()
        opened = None
        with screen.work(f"Judging {options.model}", what="runs") as progress:
            found = check(options.model, shapes=source.shapes, progress=progress, **asked)
        screen.paragraph(f"{options.model}: an ONNX file")
    else:
        with screen.work(f"Reading {options.model}"):
            opened = read_source(source, screen.warn)
        with screen.work("Judging") as progress:
            found = check(opened.model, opened.inputs, way=options.way, progress=progress, **asked)
        show_opening(screen, opened, None, found.notes)
    show_checked(screen, found)
    written = _write(screen, place, options, opened, found)
    document = {
        "schema": SCHEMA,
        "files": {
            **({"read": str(options.model)} if opened is None else opened.document),
            "written": [str(path) for path in written],
        },
        **checked_document(found),
    }
    _report(options, document, found)
    return _code(found, fixed=options.fix)


def _check_outputs(options: CheckCommand, place: Path | None) -> None:
    """Refuse what could not be written in the end, before any work."""
    if options.output is not None and not options.fix:
        raise UsageError("-o names the file that --fix writes: give --fix as well")
    named = {"MODEL": options.model, "-o": place}
    check_distinct({**named, "--json": options.told.json, "--junit": options.junit})
    check_folder(options.told.json, "--json")
    check_folder(options.junit, "--junit")
    if place is None:
        return
    onnx = options.model.suffix == ONNX
    endings = (ONNX,) if onnx else (".pt", _EXPORTED, ONNX)
    if place.suffix not in endings:
        *most, last = endings
        told = f"{', '.join(most)} or {last}" if most else last
        raise UsageError(f"-o {place}: the name must end in {told}")
    check_folder(place, "-o")
    if place.suffix != ONNX:
        check_replaceable(place, overwrite=options.force)
    else:
        from ...deploy import check_target

        check_target(place, overwrite=options.force)


def _write(
    screen: Screen,
    place: Path | None,
    options: CheckCommand,
    opened: OpenedFile | None,
    found: Checked,
) -> tuple[Path, ...]:
    """Write what was fixed, if all that is left is acceptable; the files."""
    if place is None:
        return ()
    screen.line()
    if found.result is None or found.last.ok is False:
        why = "nothing is to be done" if found.ok else "it would not be acceptable"
        screen.note(f"No model was written: {why}.")
        if found.passes:
            passes = " ".join(f"-p '{each.spelled()}'" for each in found.passes)
            screen.paragraph(f"groupfx rewrite {options.model} {passes} writes it all the same.")
        return ()
    with screen.work("Writing"):
        files = _written(screen, place, options, opened, found)
    for path in files:
        screen.wrote(path)
    return files


def _written(
    screen: Screen,
    place: Path,
    options: CheckCommand,
    opened: OpenedFile | None,
    found: Checked,
) -> tuple[Path, ...]:
    result, force = found.result, options.force
    if isinstance(result, Result) and place.suffix != ONNX:
        save = result.save_exported if place.suffix == _EXPORTED else result.save
        save(place, overwrite=force)
        return (place,)
    from ...deploy import ExportOptions, ValidationOptions, prepare_export, write_onnx

    if isinstance(result, Result):
        from ..text.validation_text import validated

        assert opened is not None
        prepared = prepare_export(result.model, opened.inputs, ExportOptions())
        validated(screen, opened, prepared, place, ValidationOptions())
        return tuple(prepared.write(place, overwrite=force).files)
    assert result is not None
    return tuple(write_onnx(result.rewrite.model, place, overwrite=force))


def _report(options: CheckCommand, document: Mapping[str, Any], found: Checked) -> None:
    if options.junit is not None:
        last = found.last if options.fix else found.before
        suite = f"groupfx check --target {found.target.name}"
        write_text(options.junit, junit_xml(suite, junit_cases(found.target, last)))
    if options.told.json is not None:
        write_json(options.told.json, document)


def _code(found: Checked, *, fixed: bool) -> int:
    last = found.last if fixed else found.before
    return {True: 0, False: 1, None: _UNKNOWN}[last.ok]
