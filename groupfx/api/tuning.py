"""The function that users call to get the fastest file: measured in place, never a slower one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

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
    rewrite_graph,
    sites_in,
)
from ..errors import FileError, UsageError
from ..files.archive import check_replaceable
from ..rewriting import Result
from ..running.alone import alone
from ..running.inputs import ExampleInputs, in_order
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

    The result is validated (`verify`) like every file. Raises `ModelError` for a model that gives
    other outputs on the same inputs, `MismatchError` where the file is not the same function.
    """
    options = tuning_options(budget, threads, backend, plan, cache=cache)
    place = Path(path or ("model.groupfx.pt" if runs_torch(backend) else "model.onnx"))
    if runs_torch(backend):
        if isinstance(model, (str, Path)):
            raise UsageError(f"the backend {backend} runs torch models: {model} is a file")
        example = opened(model, inputs)[1]
        given = example if batch is None else example.with_batch(batch)
        return module_tuned(
            module_of(model, original=True),
            given,
            place,
            options,
            verify=verify,
            overwrite=overwrite,
            progress=progress,
        )
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
    side, prepared, feeds = _of_file(Path(model), inputs, batch)
    made, tuning = tuned(prepared, feeds, options, progress)
    checks = ValidationOptions(shapes={name: array.shape for name, array in feeds.items()})
    verdict = _verdict(side, made, checks, progress) if verify else None
    return as_tuned(place, tuning, made.write(place, overwrite=overwrite), verdict)


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
    tuning, passes = tune_module(model, inputs, options, progress or (lambda done, total: None))
    result = passes(model, inputs, verify=verify)
    result.save(path, overwrite=overwrite)
    return as_tuned(path, tuning, result=result)


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
    plain, example = opened(model, inputs)
    prepared = prepare_export(plain, example, replace(file, forms="whole"))
    feeds = feeds_of(prepared, plain, example, batch)
    made, tuning = tuned(prepared, feeds, options or TuningOptions(), progress)
    original = module_of(model, original=True)
    side = TorchSide.of(original, example, type(original).__name__)
    checks = ValidationOptions(given=inputs is not None)
    verdict = _verdict(side, made, checks, progress) if verify else None
    return as_tuned(path, tuning, made.write(path, overwrite=overwrite), verdict)


def _verdict(
    side: TorchSide | OnnxSide,
    made: PreparedExport,
    checks: ValidationOptions,
    progress: Progress | None,
) -> Validation:
    return require_same(
        "the tuned model", side, OnnxSide("the tuned model", made.model), checks, progress
    )


def tuning_options(
    budget: float,
    threads: int,
    backend: str,
    plan: TuningPlan | str | Path | None,
    *,
    cache: bool = True,
) -> TuningOptions:
    """The options of a tuning; a plan is read from its file."""
    read = read_plan(plan) if isinstance(plan, (str, Path)) else plan
    found = TuningOptions(budget=budget, threads=threads, backend=backend, plan=read)
    return found if cache else replace(found, cache=None)


def tuned(
    prepared: PreparedExport, feeds: Feeds, options: TuningOptions, progress: Progress | None
) -> tuple[PreparedExport, Tuning]:
    """The prepared file, whose sites are in one piece, with the fastest forms in it."""
    tuning = tune_graph(prepared.model, feeds, options, progress or (lambda done, total: None))
    convs = Counter(sites_in(tuning.model))
    sites = tuple(
        ExportedSite(entry.site, entry.recipe, convs[entry.site]) for entry in tuning.plan.sites
    )
    made = replace(
        prepared,
        model=tuning.model,
        data=check_onnx(tuning.model),
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
    )


def feeds_of(
    prepared: PreparedExport, model: nn.Module, inputs: ExampleInputs, batch: int | None
) -> Feeds:
    """The example inputs as arrays, by the names that the file has for them.

    Raises UsageError where the file fixes the batch to another one.
    """
    given = inputs if batch is None else inputs.with_batch(batch)
    values = prepared.model.graph.inputs
    arrays = (tensor.detach().cpu().numpy() for tensor in in_order(model, given).tensors())
    feeds = {}
    for value, array in zip(values, arrays, strict=True):
        first = value.shape[0] if value.shape else None
        if isinstance(first, int) and array.ndim and first != len(array):
            raise UsageError(
                f"batch={len(array)}: the file takes batches of {first} only; leave its batch open"
            )
        assert value.dtype is not None
        feeds[value.name or ""] = array.astype(value.dtype.numpy())
    return feeds


def file_to_tune(
    path: Path, shapes: Mapping[str | int, tuple[int, ...]], batch: int | None
) -> tuple[OnnxSide, PreparedExport, Feeds]:
    """An ONNX file, and arrays to run it on: of `shapes`, else of sizes that it takes."""
    if path.suffix != ONNX:
        raise UsageError(f"{path} is no .onnx file: read it with groupfx.load, or give the model")
    original = read_onnx(path)
    check_onnx(original, FileError)
    side = OnnxSide(str(path), original)
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
    first = next(iter(side.model.graph.inputs)).shape
    is_open = first is not None and len(first) > 0 and not isinstance(first[0], int)
    # Guesses have a batch of 2, so that a wrong axis shows; a runtime is most often given 1.
    wanted = batch if batch is not None else (1 if is_open and not shapes else None)
    if wanted is not None:
        rows = [k % len(array) for array in found.values() if array.ndim for k in range(wanted)]
        found = {n: a[rows[:wanted]] if a.ndim else a for n, a in found.items()}
    return found, guessed


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
    side, prepared, found = file_to_tune(
        path, {name: array.shape for name, array in given.items()}, batch
    )
    if batch is None:
        names = {name: given.get(name, given.get(place)) for place, name in enumerate(found)}
        found = {
            name: found[name] if own is None else own.astype(found[name].dtype)
            for name, own in names.items()
        }
    return side, prepared, found


def _array(value: Any) -> Array:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
