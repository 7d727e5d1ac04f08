"""The function that users call to get the fastest file: measured in place, never a slower one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..deploy import (
    DEFAULT_OPSET,
    DType,
    Dynamic,
    Export,
    ExportedSite,
    ExportOptions,
    OnnxSide,
    PreparedExport,
    Progress,
    TorchSide,
    Validation,
    ValidationOptions,
    check_onnx,
    check_target,
    example_feeds,
    prepare_export,
    read_onnx,
    require_fit,
    rewrite_graph,
    sites_in,
)
from ..errors import FileError, UsageError, first_line
from ..files.archive import check_replaceable
from ..rewriting import Result
from ..running.alone import alone
from ..running.inputs import ExampleInputs, in_order, require_room
from ..running.stages import Stage, Stages
from ..tuning import (
    Ratio,
    Tuning,
    TuningOptions,
    TuningPlan,
    read_plan,
    runs_torch,
    tune_graph,
    tune_module,
)
from .onnx import ONNX, Array, Model, module_of, opened, require_same

Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class Tuned:
    """A tuned model. `ratio` is its time by that of the untouched one, with an interval of 98 %.

    `export` is the ONNX file and `validation` its check; a backend of torch gives a `result` of a
    rewrite instead, which was written to `path`. `summary` is one line: what it takes by what the
    untouched model takes. `ratio` is None where a plan was applied and nothing measured; it is 1
    where `untouched`, which is so unless another form is provably faster. `races` has what else ran
    against the untouched model. `plan.save(path)` writes the plan, to be applied again with the
    same bytes as result (of a file of ours, the same model).
    """

    path: Path
    summary: str
    export: Export | None
    result: Result | None
    plan: TuningPlan
    ratio: Ratio | None
    untouched: bool
    races: Mapping[str, Ratio]
    notes: tuple[str, ...]
    validation: Validation | None
    stages: tuple[Stage, ...] = ()
    """what each stage took"""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "summary": self.summary,
            "export": None if self.export is None else self.export.to_dict(),
            "rewrite": None if self.result is None else self.result.report.to_dict(),
            "plan": self.plan.to_dict(),
            "ratio": None if self.ratio is None else self.ratio.to_dict(),
            "untouched": self.untouched,
            "races": {name: ratio.to_dict() for name, ratio in self.races.items()},
            "notes": list(self.notes),
            "validation": None if self.validation is None else self.validation.to_dict(),
            "stages": [vars(stage) for stage in self.stages],
        }


@alone
def tune(
    model: Model | str | Path,
    inputs: object = None,
    path: str | Path | None = None,
    *,
    budget: float = 60.0,
    threads: int = 1,
    batch: int | None = None,
    plan: TuningPlan | str | Path | None = None,
    session: object = None,
    backend: str = "onnxruntime",
    dtype: DType | None = None,
    opset: int = DEFAULT_OPSET,
    dynamic_batch: bool = True,
    verify: bool = True,
    overwrite: bool = False,
    cache: bool = True,
    progress: Progress | None = None,
) -> Tuned:
    """Write the fastest form of `model` on this machine: never slower than the untouched one.

    `model` is a torch model, a result, what `groupfx.load` gave, or the path of an `.onnx` file.
    Every convolution with groups, or with blocks of zeros (as a mask of learned groups leaves
    them), is executed in the form that was fastest in the whole model, with `inputs` of this
    `batch` (by default their own), on so many `threads` of `backend`: an ONNX file for
    `onnxruntime` or `openvino`; for `torch` (eager) and `torch.compile` a file of ours, whose model
    `.result` has, tuned on the device on which the model lies.
    `inputs` are as for `groupfx.export`; for a file, a tuple or a table of arrays, guessed where
    they are not given. Measuring takes at most about `budget` seconds, less for layers that were
    measured before (`cache`). A `plan`, or its file, is applied without measuring, where it fits.
    `session` are the options of the user's ONNX Runtime session, under which all is measured: a
    table by name, such as `{"execution_mode": "ORT_PARALLEL", "session.disable_prepacking": 1}`,
    with `free_dimension.NAME` for an open size that it is told; or an `onnxruntime.SessionOptions`,
    of which what it logs and writes is not taken over, and neither are such sizes, which cannot be
    read from it.

    The result is validated (`verify`) like every file. Raises `ModelError` for a model that gives
    other outputs on the same inputs, `MismatchError` where the file is not the same function.
    """
    options = tuning_options(budget, threads, backend, plan, cache=cache, session=session)
    if batch is not None and (not isinstance(batch, int) or batch < 1):
        raise UsageError(f"batch={batch!r}: it must be at least 1")
    place = Path(path or ("model.groupfx.pt" if runs_torch(backend) else "model.onnx"))
    if runs_torch(backend):
        if isinstance(model, (str, Path)):
            raise UsageError(f"the backend {backend} runs torch models: {model} is a file")
        example = opened(model, inputs)[1]
        given = example.asked(batch)
        return module_tuned(
            module_of(model, original=True),
            given,
            place,
            options,
            verify=verify,
            overwrite=overwrite,
            progress=progress,
        )
    if place.suffix != ONNX:
        raise UsageError(f"{place}: the name must end in {ONNX}, such as {place.name}{ONNX}")
    if not isinstance(model, (str, Path)):
        file = ExportOptions(dtype=dtype, opset=opset, dynamic=Dynamic(dynamic_batch))
        return tuned_export(
            model,
            inputs,
            place,
            file,
            options,
            batch=batch,
            verify=verify,
            overwrite=overwrite,
            progress=progress,
        )
    check_target(place, overwrite=overwrite)
    if place.exists() and Path(model).exists() and place.samefile(model):
        raise UsageError(f"{place} is the file that is tuned: name another one")
    stages = Stages()
    with stages("read"):
        side, prepared, feeds = _of_file(Path(model), inputs, batch)
    made, tuning = tuned(prepared, feeds, options, progress, stages)
    checks = ValidationOptions(shapes={name: array.shape for name, array in feeds.items()})
    verdict = _verdict(side, made, checks, progress, stages) if verify else None
    return _written(place, made, tuning, verdict, stages, overwrite=overwrite)


def module_tuned(
    model: nn.Module,
    inputs: ExampleInputs,
    path: Path,
    options: TuningOptions,
    *,
    verify: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Tuned:
    """Tune a torch model for a backend of torch, prove it as a rewrite, and write it."""
    if path.suffix == ONNX:
        raise UsageError(
            f"{path}: the backend {options.backend} runs torch models and no ONNX; name a .pt file"
        )
    check_replaceable(path, overwrite=overwrite)
    stages = Stages()
    shown = progress or (lambda done, total: None)
    tuning, passes = tune_module(model, inputs, options, shown, stages)
    with stages("rewrite"):
        result = passes(model, inputs, verify=verify)
    with stages("write"):
        result.save(path, overwrite=overwrite)
    return as_tuned(path, tuning, result=result, stages=stages)


@alone
def tuned_export(
    model: Model,
    inputs: object,
    path: Path,
    file: ExportOptions,
    options: TuningOptions | None = None,
    *,
    batch: int | None = None,
    verify: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Tuned:
    """Export a torch model as `file` says, tuned."""
    check_target(path, overwrite=overwrite)
    stages = Stages()
    with stages("export"):
        plain, example = opened(model, inputs)
        prepared = prepare_export(plain, example, replace(file, forms="whole"))
    feeds = feeds_of(prepared, plain, example, batch)
    made, tuning = tuned(prepared, feeds, options or TuningOptions(), progress, stages)
    original = module_of(model, original=True)
    side = TorchSide.of(original, example, type(original).__name__)
    checks = ValidationOptions(given=inputs is not None)
    verdict = _verdict(side, made, checks, progress, stages) if verify else None
    return _written(path, made, tuning, verdict, stages, overwrite=overwrite)


def _verdict(
    side: TorchSide | OnnxSide,
    made: PreparedExport,
    checks: ValidationOptions,
    progress: Progress | None,
    stages: Stages,
) -> Validation:
    other = OnnxSide("the tuned model", made.model, data=made.data)
    with stages("validate"):
        return require_same("the tuned model", side, other, checks, progress)


def _written(
    place: Path,
    made: PreparedExport,
    tuning: Tuning,
    verdict: Validation | None,
    stages: Stages,
    *,
    overwrite: bool,
) -> Tuned:
    with stages("write"):
        export = made.write(place, overwrite=overwrite)
    return as_tuned(place, tuning, export, verdict, stages=stages)


def tuning_options(
    budget: float,
    threads: int,
    backend: str,
    plan: TuningPlan | str | Path | None,
    *,
    cache: bool = True,
    session: object = None,
) -> TuningOptions:
    """The options of a tuning; a plan is read from its file."""
    read = read_plan(plan) if isinstance(plan, (str, Path)) else plan
    if read is not None and not isinstance(read, TuningPlan):
        raise UsageError(f"plan={read!r}: give a plan that a tuning made, or the path of its file")
    found = TuningOptions(
        budget=budget, threads=threads, backend=backend, plan=read, session=session
    )
    return found if cache else replace(found, cache=None)


def tuned(
    prepared: PreparedExport,
    feeds: Feeds,
    options: TuningOptions,
    progress: Progress | None,
    stages: Stages | None = None,
) -> tuple[PreparedExport, Tuning]:
    """The prepared file, whose sites are in one piece, with the fastest forms in it."""
    told, shown = stages or Stages(), progress or (lambda done, total: None)
    tuning = tune_graph(prepared.model, feeds, options, shown, told)
    with told("check"):
        data = check_onnx(tuning.model)
    convs = Counter(sites_in(tuning.model))
    sites = tuple(
        ExportedSite(entry.site, entry.recipe, convs[entry.site]) for entry in tuning.plan.sites
    )
    made = replace(
        prepared,
        model=tuning.model,
        data=data,
        sites=sites,
        notes=(*prepared.notes, *tuning.notes),
        summary=tuning.summary,
        expected=None if tuning.ratio is None else tuning.ratio.value,
    )
    return made, tuning


def as_tuned(
    path: Path,
    tuning: Tuning,
    export: Export | None = None,
    verdict: Validation | None = None,
    *,
    result: Result | None = None,
    stages: Stages | None = None,
) -> Tuned:
    """A file that was written, and how it was tuned."""
    return Tuned(
        path=path,
        summary=tuning.summary,
        export=export,
        result=result,
        plan=tuning.plan,
        ratio=tuning.ratio,
        untouched=tuning.untouched,
        races=tuning.races,
        notes=tuning.notes,
        validation=verdict,
        stages=() if stages is None else stages.table,
    )


def feeds_of(
    prepared: PreparedExport, model: nn.Module, inputs: ExampleInputs, batch: int | None
) -> Feeds:
    """The example inputs as arrays, by the names that the file has for them.

    Raises UsageError where the file fixes the batch to another one.
    """
    given = inputs.asked(batch)
    values = prepared.model.graph.inputs
    arrays = map(_array, in_order(model, given).tensors())
    feeds = {}
    for value, array in zip(values, arrays, strict=True):
        first = value.shape[0] if value.shape else None
        if array.ndim:
            _require_batch(first, len(array))
        assert value.dtype is not None
        feeds[value.name or ""] = array.astype(value.dtype.numpy())
    return feeds


def _require_batch(declared: object, batch: int) -> None:
    """Raise UsageError where a file says another batch than the one to tune for."""
    if isinstance(declared, int) and declared != batch:
        raise UsageError(
            f"batch={batch}: the file takes batches of {declared} only; leave its batch open"
        )


def file_to_tune(
    path: Path, shapes: Mapping[str | int, tuple[int, ...]], batch: int | None
) -> tuple[OnnxSide, PreparedExport, Feeds]:
    """An ONNX file, and arrays to run it on: of `shapes`, else of sizes that it takes."""
    if path.suffix != ONNX:
        raise UsageError(f"{path} is no .onnx file: read it with groupfx.load, or give the model")
    original = read_onnx(path)
    try:
        check_onnx(original, FileError)
    except FileError as error:
        raise FileError(
            f"{path}: {error} Mend that first, or rewrite the file for --target onnxruntime, "
            "which only notes it"
        ) from error
    side = OnnxSide(str(path), original)
    sizes = [value.shape[0] for value in original.graph.inputs if value.shape]
    if batch is not None and sizes and all(isinstance(size, int) for size in sizes):
        _require_batch(sizes[0], batch)
    found, guessed = feeds_of_file(side, shapes, batch)
    base = rewrite_graph(original, ())
    opset = base.model.graph.opset_imports.get("", DEFAULT_OPSET)
    prepared = PreparedExport(
        base.model, ExportOptions(), (), base.notes, opset=opset, guessed=guessed
    )
    return side, prepared, found


def feeds_of_file(
    side: OnnxSide, shapes: Mapping[str | int, tuple[int, ...]], batch: int | None
) -> tuple[Feeds, str | None]:
    """Arrays to run an ONNX file on: of `shapes`, else of sizes that it takes, which are a guess
    where it leaves them open.
    """
    found, guessed = example_feeds(side, side, {}, shapes)
    # Guesses have a batch of 2, so that a wrong axis shows; a runtime is most often given 1.
    if batch is None and not shapes and _open_batch(side, found):
        batch = 1
    return found if batch is None else with_rows(side, found, batch), guessed


def with_rows(side: OnnxSide, feeds: Feeds, batch: int) -> Feeds:
    """The arrays with so many rows, those whose first size is the open one of the batch.

    Raises UsageError where the file fixes that of the first input to another one.
    """
    first = [name for name, array in feeds.items() if array.ndim and len(array)][:1]
    names = _open_batch(side, feeds) or first
    require_room([feeds[name].shape for name in names], batch)
    found = {n: a[np.arange(batch) % len(a)] if n in names else a for n, a in feeds.items()}
    require_fit(side, found)
    return found


def _open_batch(side: OnnxSide, feeds: Feeds) -> frozenset[str]:
    """The inputs whose first size is open, and called as that of the first of them."""
    sizes = {v.name: v.shape[0] for v in side.model.graph.inputs if v.shape}
    called = {
        name: sizes[name].value  # type: ignore[union-attr]
        for name in feeds
        if name in sizes and not isinstance(sizes[name], int) and len(feeds[name])
    }
    first = next(iter(called.values()), None)
    return frozenset(name for name, size in called.items() if size == first)


def _of_file(
    path: Path, inputs: object, batch: int | None
) -> tuple[OnnxSide, PreparedExport, Feeds]:
    if inputs is None:
        return file_to_tune(path, {}, batch)
    if isinstance(inputs, Mapping):
        given = {name: _array(value) for name, value in inputs.items()}
    else:
        values = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
        given = dict(enumerate(map(_array, values)))
    shapes = {name: array.shape for name, array in given.items()}
    side, prepared, found = file_to_tune(path, shapes, None)
    names = [*found]
    own = {name: given.get(name, given.get(place)) for place, name in enumerate(names)}
    taken = {name: array for name, array in own.items() if array is not None}
    found = {n: taken[n].astype(a.dtype) if n in taken else a for n, a in found.items()}
    found = found if batch is None else with_rows(side, found, batch)
    return side, prepared, found


def _array(value: Any) -> Array:
    """What is given for an input, as an array. Raises UsageError for a tensor without values."""
    if not isinstance(value, Tensor):
        return np.asarray(value)
    try:
        host = value.detach().cpu()
        # NumPy has no bfloat16, and the file takes another dtype in any case.
        found: Array = (host.float() if host.dtype is torch.bfloat16 else host).numpy()
    except (NotImplementedError, RuntimeError, TypeError) as error:
        raise UsageError(f"an input has no values to run on: {first_line(error)}") from error
    return found
