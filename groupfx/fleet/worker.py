"""The process of a model: open, rewrite and prove it, and what else is asked for, as the commands
for one model do.

Loaded once by the server that forks these processes: with all of torch and ONNX.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..api.models import rewrite
from ..api.onnx import ONNX, require_same, rewrite_onnx
from ..api.source import ModelOptions, OpenedFile, open_source
from ..api.tuning import feeds_of, tune, tuned, tuning_options
from ..deploy import (
    DEFAULT_OPSET,
    Dynamic,
    ExportOptions,
    OnnxRewrite,
    OnnxSide,
    PreparedExport,
    TorchSide,
    Validation,
    ValidationOptions,
    check_target,
    prepare_export,
)
from ..errors import no_exit
from ..files.archive import check_replaceable
from ..files.atomic import whole_file
from ..rewriting import Report, Result
from ..targets import target_named
from .entries import Entry, Reading, Work
from .failures import Stage, failure_of
from .results import Outcome, Written
from .series import Opened, of_same_network
from .task import Task, receive_job, say

_REPORT, _VALIDATION = "report.json", "validation.json"
_SAVED, _EXPORTED = "model.groupfx.pt", "model.onnx"
_TARGET = "onnxruntime"
# What torch loads when it is first asked to trace or to export, for seconds.
_LATE = ("torch._dynamo",)
_LATE_IN_EXPORT = ("torch._inductor.lowering", "onnxscript.function_libs.torch_lib.ops")


def prepare(*, onnx: bool) -> None:
    """Load, in the server, what each process would load by itself; `onnx`: to export."""
    for name in (*_LATE, *(_LATE_IN_EXPORT if onnx else ())):
        # A name of somebody else's may go: then it is slower.
        with suppress(ImportError):
            import_module(name)
    with suppress(Exception), tempfile.TemporaryDirectory() as folder:
        _rehearse(Path(folder) / "model.pt")


def _rehearse(path: Path) -> None:
    """A first model, without its check: torch builds tables of its own when it first needs them.

    On one thread, and without the one that a progress bar of torch's starts: others do not live on
    in a process that is forked, and what they hold stays held there.
    """
    with suppress(ImportError):
        import_module("tqdm").tqdm.monitor_interval = 0
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.save(nn.Sequential(nn.Conv2d(2, 2, 1, groups=2), nn.ReLU()), path)
    opened = open_source(ModelOptions.of(path, Reading(input_shape=("2,2,3,3",))))
    rewrite(opened.model, opened.inputs, verify=False)
    torch.set_num_threads(before)


def work_through(channel: socket.socket) -> None:
    """Do the job that comes through `channel`, and say what came of each of its tasks."""
    job = receive_job(channel)
    # What ends it from inside C++ says so in the log.
    faulthandler.enable()
    # No more than the user lets torch have.
    torch.set_num_threads(min(job.threads, torch.get_num_threads()))
    warnings.simplefilter("ignore")
    before: Opened | None = None

    def at_stage(stage: Stage) -> None:
        say(channel, {"stage": stage})

    here = os.getcwd()
    for place, task in enumerate(job.tasks):
        os.chdir(here)
        say(channel, {"begin": place})
        started = time.perf_counter()
        outcome, before = done(task, before, at_stage, keep=len(job.tasks) > 1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        outcome = replace(outcome, seconds=time.perf_counter() - started, peak_memory=peak)
        say(channel, {"end": place, "outcome": outcome.to_dict()})


@dataclass
class _Progress:
    """How far a model has come; what is known of it stays known when the rest fails."""

    task: Task
    said: Callable[[Stage], None]
    stage: Stage = "open"
    outcome: Outcome = field(default_factory=Outcome)
    opened: Opened | None = None

    @property
    def entry(self) -> Entry:
        return self.task.entry

    @property
    def work(self) -> Work:
        return self.task.entry.work

    def enter(self, stage: Stage) -> None:
        """What fails from here on fails at `stage`."""
        self.stage = stage
        self.said(stage)

    def know(self, **found: Any) -> None:
        self.outcome = replace(self.outcome, **found)

    def place(self, name: str) -> Path:
        """Where a file goes; its folder is made here."""
        self.task.folder.mkdir(parents=True, exist_ok=True)
        return self.task.folder / name

    def wrote(self, paths: Sequence[Path]) -> None:
        """There are these files now."""
        folder = self.task.folder.parent.parent
        files = [Written(path=str(p.relative_to(folder)), bytes=p.stat().st_size) for p in paths]
        self.know(files=(*self.outcome.files, *files))


def done(
    task: Task, before: Opened | None, said: Callable[[Stage], None], *, keep: bool
) -> tuple[Outcome, Opened | None]:
    """What comes of a task, whatever goes wrong, and what the next of its series can build on."""
    at = _Progress(task, said)
    try:
        with no_exit(task.entry.name):
            if task.entry.model.suffix == ONNX:
                _onnx(at)
            else:
                _torch(at, before, keep=keep)
    except Exception as error:
        at.know(failure=failure_of(error, at.stage))
        with suppress(Exception):
            _keep_report(at, getattr(error, "report", None))
    return at.outcome, at.opened or before


def _torch(at: _Progress, before: Opened | None, *, keep: bool) -> None:
    """As `groupfx rewrite` and `groupfx export` do."""
    source = ModelOptions.of(at.entry.model, at.entry.reading)
    if at.work.save:
        check_replaceable(at.place(_SAVED), overwrite=False)
    if at.work.export or at.work.tune:
        check_target(at.place(_EXPORTED), overwrite=False)
    again = None if before is None else of_same_network(before, source, verify=at.work.verify)
    if again is not None:
        at.opened = before
        at.know(notes=again.file.notes)
        opened, result = again.file, again.result
    else:
        opened = open_source(source)
        at.know(notes=opened.notes)
        at.enter("rewrite")
        result = _rewritten(at.work, opened)
        if keep and opened.copyable:
            at.opened = Opened(opened, result, at.entry.name)
    _count(at, result.report)
    at.know(verified=result.report.verified)
    if at.work.save:
        with _writing(at):
            result.save(at.place(_SAVED))
            at.wrote([at.place(_SAVED)])
    if at.work.onnx:
        _export(at, opened, result)
    _keep_report(at, result.report)


def _rewritten(work: Work, opened: OpenedFile) -> Result:
    return rewrite(
        opened.model,
        opened.inputs,
        passes=work.passes,
        target=_target(work),
        way=work.way,
        inplace=not opened.copyable,
        verify=work.verify,
    )


def _target(work: Work) -> str | None:
    """An ONNX file is for ONNX Runtime where nothing else is said, as `groupfx export` has it."""
    exported = work.export or work.tune
    return _TARGET if work.passes is None and work.target is None and exported else work.target


def _count(at: _Progress, found: Report | OnnxRewrite) -> None:
    """Each site once, whichever of several passes looked at it."""
    rewritten = {site.name for site in found.sites}
    skipped = {site.name for site in found.skipped} - rewritten
    number = len(rewritten) + len(skipped)
    at.know(sites=number, rewritten=len(rewritten), skipped=len(skipped))


def _export(at: _Progress, opened: OpenedFile, result: Result) -> None:
    work = at.work
    at.enter("export")
    forms = target_named(_target(work)).forms if work.passes is None else "planned"
    file = ExportOptions(
        dtype=work.dtype,
        opset=DEFAULT_OPSET if work.opset is None else work.opset,
        dynamic=Dynamic(not work.fixed_batch, work.dynamic_sizes),
        forms="whole" if work.tune else forms,
    )
    prepared = prepare_export(result.model, opened.inputs, file)
    if work.tune:
        at.enter("tune")
        feeds = feeds_of(prepared, result.model, opened.inputs, work.batch)
        options = tuning_options(
            work.budget, work.threads, work.backend, None, session=work.session
        )
        prepared, tuning = tuned(prepared, feeds, options, None)
        at.know(summary=tuning.summary)
    if work.verify or work.validate:
        at.enter("validate")
        _validate(at, opened, prepared)
    if work.export or work.tune:
        with _writing(at):
            at.wrote(prepared.write(at.place(_EXPORTED), overwrite=False).files)


def _validate(at: _Progress, opened: OpenedFile, prepared: PreparedExport) -> None:
    at.know(validated=False)
    side = TorchSide.of(opened.model, opened.inputs, "the model")
    other = OnnxSide(_EXPORTED, prepared.model, data=prepared.data)
    require_same(_EXPORTED, side, other, ValidationOptions(), None)
    at.know(validated=True)


def _onnx(at: _Progress) -> None:
    """As `groupfx rewrite` does with an ONNX file, and `groupfx tune`."""
    source, work = ModelOptions.of(at.entry.model, at.entry.reading), at.work
    source.require_onnx()
    place = at.place(_EXPORTED) if work.writes else None
    at.enter("rewrite")
    made = rewrite_onnx(
        source.path,
        None if work.tune else place,
        passes=work.passes,
        target=work.target,
        verify=work.verify or work.validate,
        shapes=source.shapes,
    )
    _count(at, made.rewrite)
    compared = None if made.validation is None else True
    at.know(verified=compared is True, validated=compared, notes=made.rewrite.notes)
    files: Sequence[Path] = made.files
    if work.tune:
        at.enter("tune")
        fast = tune(
            source.path,
            path=place,
            budget=work.budget,
            threads=work.threads,
            batch=work.batch,
            session=work.session,
            backend=work.backend,
            verify=work.verify,
        )
        at.know(summary=fast.summary)
        files = () if fast.export is None else fast.export.files
    at.wrote(files)


@contextmanager
def _writing(at: _Progress) -> Iterator[None]:
    before = at.stage
    at.enter("write")
    yield
    at.enter(before)


def _keep_report(at: _Progress, report: object) -> None:
    """Write what is known of the rewrite, or of a validation that failed, beside the models."""
    if not isinstance(report, (Report, Validation)):
        return
    with _writing(at):
        place = at.place(_REPORT if isinstance(report, Report) else _VALIDATION)
        with whole_file(place) as file:
            file.write(json.dumps(report.to_dict(), indent=1).encode())
        at.know(report=str(place.relative_to(at.task.folder.parent.parent)))
