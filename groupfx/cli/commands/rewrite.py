"""`groupfx rewrite`: read, rewrite, check, write, tell."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ...api.models import make_pipeline, rewrite
from ...errors import MismatchError, ModelError, UsageError
from ...files.archive import check_replaceable
from ...rewriting import Report, Result
from ...tracing.program import copied
from ..input.files import STDOUT, check_distinct, check_folder, check_python, json_text, write_text
from ..input.model_file import ModelOptions, OpenedFile, read_source
from ..text.numbers import size
from ..text.rewrite_text import show_report
from ..text.screen import Advance, Screen

if TYPE_CHECKING:
    from ...deploy import PreparedExport

_EXPORTED = ".pt2"
ONNX = ".onnx"


@dataclass(frozen=True)
class RewriteOptions:
    """The options of the command; `output` is None for the usual name."""

    source: ModelOptions
    passes: tuple[str, ...] | None
    target: str | None
    way: str
    verify: bool
    output: Path | None
    force: bool
    dry_run: bool
    emit_python: Path | None
    json: Path | None
    quiet: bool
    verbose: bool

    @property
    def place(self) -> Path:
        """Where the model goes."""
        return self.output or Path(f"{self.source.path.stem}.groupfx.pt")


def run_rewrite(options: RewriteOptions) -> int:
    """Do it, and return the exit code. Everything that can be refused early is."""
    make_pipeline(options.passes, options.target)
    if options.source.path.suffix == ONNX:
        return _rewrite_onnx(options)
    _check_outputs(options)
    to_stdout = STDOUT in (options.json, options.emit_python)
    screen = Screen(quiet=options.quiet, verbose=options.verbose, data=not to_stdout)
    path = options.source.path
    with screen.work(f"Reading {path}"):
        opened = read_source(options.source, screen.warn)
    try:
        with screen.work("Rewriting and checking" if options.verify else "Rewriting") as progress:
            result = _rewrite(options, opened, progress)
    except MismatchError as error:
        if isinstance(error.report, Report):
            show_report(screen, opened, error.report)
            screen.line()
            screen.note("No model was written.")
            _write_json(options, opened, error.report, written=False)
        raise
    prepared = _prepare_onnx(screen, options, opened, result)
    with screen.work("Writing"):
        python = _write(options, result, prepared)
    if options.emit_python == STDOUT:
        write_text(STDOUT, python)
    show_report(screen, opened, result.report)
    _show_files(screen, options, result.report)
    _write_json(options, opened, result.report, written=not options.dry_run)
    return 0


def _check_outputs(options: RewriteOptions) -> None:
    """Refuse what could not be written in the end, before any work."""
    place, python = options.place, options.emit_python
    if place.suffix not in (".pt", _EXPORTED, ONNX):
        raise UsageError(
            f"-o {place}: the name must end in .pt, .pt2 or .onnx, such as {place.name}.pt"
        )
    check_distinct(
        {
            "MODEL": options.source.path,
            "-o": None if options.dry_run or options.force else place,
            "--emit-python": python,
            "--json": options.json,
        }
    )
    if not options.dry_run:
        check_folder(place, "-o")
        _check_replaceable(place, overwrite=options.force)
    if options.json is not None:
        check_folder(options.json, "--json")
    if python is not None:
        check_folder(python, "--emit-python")
        check_python(python, force=options.force)


def _check_replaceable(place: Path, *, overwrite: bool) -> None:
    if place.suffix != ONNX:
        check_replaceable(place, overwrite=overwrite)
        return
    from ...deploy import check_target

    check_target(place, overwrite=overwrite)


def _rewrite_onnx(options: RewriteOptions) -> int:
    """The command for a file that is ONNX already."""
    from .onnx_files import OnnxCommand, rewrite_onnx_file

    if options.emit_python is not None:
        raise UsageError("--emit-python writes torch modules: an ONNX file has none")
    return rewrite_onnx_file(
        OnnxCommand(
            source=options.source,
            passes=options.passes,
            target=options.target,
            verify=options.verify,
            output=options.output,
            force=options.force,
            dry_run=options.dry_run,
            json=options.json,
            quiet=options.quiet,
            verbose=options.verbose,
        )
    )


def _prepare_onnx(
    screen: Screen, options: RewriteOptions, opened: OpenedFile, result: Result
) -> "PreparedExport | None":
    """The ONNX model of the result, validated against the original; None for another file."""
    if options.place.suffix != ONNX:
        return None
    # onnx and ONNX Runtime are not needed for anything else here.
    from ...deploy import ExportOptions, ValidationOptions, prepare_export
    from .export import checked

    with screen.work("Exporting"):
        chosen = options.passes is None and options.target == "onnxruntime"
        file = ExportOptions(choose_forms=chosen)
        prepared = prepare_export(result.model, opened.inputs, file)
    if options.verify:
        checks = ValidationOptions()
        checked(screen, opened.model, opened.inputs, prepared, options.place, checks)
    return prepared


def _rewrite(options: RewriteOptions, opened: OpenedFile, progress: Advance) -> Result:
    return rewrite(
        opened.model,
        opened.inputs,
        passes=options.passes,
        target=options.target,
        way=options.way,
        # The model is nobody else's: one that cannot be copied may be changed.
        inplace=not _can_be_copied(opened.model),
        verify=options.verify,
        progress=progress,
    )


def _can_be_copied(model: nn.Module) -> bool:
    try:
        copied(model, share=True)
    except ModelError:
        return False
    return True


def _write(options: RewriteOptions, result: Result, prepared: "PreparedExport | None") -> str:
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
    options: RewriteOptions, opened: OpenedFile, report: Report, *, written: bool
) -> None:
    if options.json is not None:
        document = _document(options, opened, report, written=written)
        write_text(options.json, json_text(document))


def _document(
    options: RewriteOptions, opened: OpenedFile, report: Report, *, written: bool
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


def _show_files(screen: Screen, options: RewriteOptions, report: Report) -> None:
    screen.line()
    if options.dry_run:
        screen.note("Dry run: no model was written.")
    else:
        place = options.place
        screen.note(f"Wrote {place} ({size(place.stat().st_size)}).")
        screen.paragraph(f"Read it with {_loading(place, report)}.")
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
