"""The functions that users call for ONNX: export, validate, and what reads or rewrites a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from ..deploy import (
    DEFAULT_OPSET,
    DType,
    Dynamic,
    Export,
    ExportOptions,
    OnnxRewrite,
    OnnxSide,
    OnnxSite,
    Progress,
    TorchSide,
    Validation,
    ValidationOptions,
    check_made,
    check_target,
    find_in_onnx,
    prepare_export,
    read_onnx,
    rewrite_graph,
    validate_sides,
    write_onnx,
)
from ..errors import FileError, UsageError
from ..files.existing import require_file
from ..files.models import read_model
from ..passes import PASSES, pass_class
from ..rewriting import Pass, Result
from ..running.alone import alone
from ..running.guess import Declared, infer_inputs, inputs_for
from ..running.inputs import ExampleInputs
from ..targets import target_named
from .models import Loaded, make_pipeline, refuse_named, rewrite

Array = npt.NDArray[Any]
Model = nn.Module | Result | Loaded
Side = Model | str | Path
Data = Mapping[str, Array] | str | Path

ONNX = ".onnx"


@alone
def export(
    model: Model,
    inputs: object = None,
    path: str | Path = "model.onnx",
    *,
    passes: Sequence[str | Pass[Any]] | None = None,
    target: str | None = None,
    way: str = "auto",
    dtype: DType | None = None,
    opset: int = DEFAULT_OPSET,
    dynamic_batch: bool = True,
    dynamic_sizes: bool = False,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    external_data: bool | None = None,
    tune: bool = False,
    session: object = None,
    overwrite: bool = False,
) -> Export:
    """Write `model`, or the result of a rewrite, to an ONNX file, as it is in eval mode.

    Nothing is rewritten unless `passes` or a `target` are given. The sites of a result, or of a
    model that was read from a file of ours, are in the file in the form that the rewrite gave them;
    with `target="onnxruntime"` learned groups get the form that is expected to be fastest, which
    may be dense with the mask folded in.
    A BatchNorm behind a convolution is folded into it. The first dimension of the inputs is open
    (`dynamic_batch`), the spatial ones on request (`dynamic_sizes`). `dtype` is `float32` or
    `float16`, by default the model's own; a model in another one is refused without it.
    `external_data` puts the weights into a second file beside it, whose name tells its content; by
    default only where one file cannot hold them. Nodes carry the name of their site; no path, user
    or source text is in the file, and the same model gives the same bytes. `tune`
    measures which form is fastest, see `groupfx.tune`, there also for `session`, and validates what
    it writes.

    Raises `ModelError` where torch cannot export the model, `UsageError` for options that do not
    fit it, and `FileError` where `path` exists and groupfx did not write it (`overwrite=True`).
    """
    options = ExportOptions(
        dtype=dtype,
        opset=opset,
        dynamic=Dynamic(dynamic_batch, dynamic_sizes),
        input_names=input_names,
        output_names=output_names,
        external_data=external_data,
        forms="fastest" if passes is None and _takes_fastest(target) else "planned",
    )
    if session is not None and not tune:
        raise UsageError("session: only with tune=True, as nothing is measured without it")
    plain, example = opened(model, inputs)
    if passes is not None or target is not None:
        plain = rewrite(plain, example, passes=passes, target=target, way=way).model
    if tune:
        # It is built from what is here.
        from ..tuning import TuningOptions
        from .tuning import tuned_export

        found = tuned_export(
            plain,
            example,
            Path(path),
            options,
            TuningOptions(session=session),
            overwrite=overwrite,
        ).export
        assert found is not None
        return found
    check_target(Path(path), overwrite=overwrite)
    return prepare_export(plain, example, options).write(Path(path), overwrite=overwrite)


@alone
def validate(
    reference: Side,
    candidate: Side,
    inputs: object = None,
    *,
    atol: Mapping[str, float] | None = None,
    data: Data | Sequence[Data] = (),
    shapes: Mapping[str | int, tuple[int, ...]] | None = None,
    trust_pickle: bool = False,
    key: str | None = None,
    progress: Progress | None = None,
) -> Validation:
    """Whether `candidate` computes what `reference` does, and which site is wrong if it does not.

    Either may be a torch model, the result of a rewrite (as reference: the original), what
    `groupfx.load` gave, or a file: one of ours, a `.pt2` (with `trust_pickle`), or an `.onnx`.
    `key` says which network of the reference's file is meant where that holds several.

    The yardstick is float64: the root-mean-square error of each output may be at most 4 times that
    of the reference run in the candidate's dtype, with a floor of u max|y|; `atol` gives an output
    of the candidate a limit of its own, for max|d|. Each convolution is also recomputed in float64
    from the candidate's own input of it. An ONNX file runs in ONNX Runtime with graph optimisations
    off and on, on several batch and spatial sizes, seeds and adversarial inputs, and on `data`:
    arrays by the names of inputs, or `.npz` files that hold them. `shapes` of inputs, by name or
    position, are for two files that leave their sizes open.

    Raises `UsageError` where inputs or outputs cannot be paired, `FileError` for a file that cannot
    be read or that ONNX Runtime cannot load, `ModelError` where the reference does not run.
    """
    given = None if inputs is None else ExampleInputs.of(inputs)
    files = [_onnx_side(side) for side in (reference, candidate)]
    declared = next((file.for_torch for file in files if file is not None), ())
    inferring = _Inferring(
        given, _known_inputs(reference) or _known_inputs(candidate), declared, trust_pickle
    )
    first, notes = (files[0], ()) if files[0] else inferring.side(reference, key, original=True)
    second, more = (files[1], ()) if files[1] else inferring.side(candidate, None, original=False)
    options = ValidationOptions(atol or {}, read_arrays(data), given is not None, shapes or {})
    verdict = validate_sides(first, second, options, progress)
    return replace(verdict, notes=(*notes, *more, *verdict.notes))


@dataclass(frozen=True)
class OnnxResult:
    """An ONNX file that was rewritten: what was done, where it was written, and the check of it."""

    rewrite: OnnxRewrite
    files: tuple[Path, ...]
    validation: Validation | None


def find_onnx(
    path: str | Path,
    *,
    passes: Sequence[str | Pass[Any]] | None = None,
    target: str | None = None,
) -> tuple[OnnxSite, ...]:
    """Every grouped convolution of an ONNX file, in order, and what a rewrite would make of it."""
    chosen = onnx_passes(passes, target)
    return find_in_onnx(read_onnx(path), chosen)


def rewrite_onnx(
    path: str | Path,
    output: str | Path | None,
    *,
    passes: Sequence[str | Pass[Any]] | None = None,
    target: str | None = None,
    verify: bool = True,
    overwrite: bool = False,
    shapes: Mapping[str | int, tuple[int, ...]] | None = None,
    progress: Progress | None = None,
) -> OnnxResult:
    """Rewrite the convolutions of an ONNX file of any producer, and write the result.

    `passes` are those that say in integers what they do: split-grouped-conv and discover-groups.
    With `target="onnxruntime"` convolutions with groups, or with blocks of zeros, take the form
    that is expected to be fastest there, as in an export.

    What is written is first validated against the original, in ONNX Runtime, on inputs of `shapes`
    (by name or position), which are guessed where the file leaves them open. `output=None` writes
    nothing. Raises `MismatchError` where the two differ, with the validation as its `report`, and
    `RewriteError` where a site that an option names is refused.
    """
    chosen = onnx_passes(passes, target)
    if output is not None:
        check_target(Path(output), overwrite=overwrite)
    original = read_onnx(path)
    made = rewrite_graph(original, chosen, fastest=passes is None and _takes_fastest(target))
    refuse_named(chosen, made.skipped)
    verdict = None
    note = check_made(original, made.model)
    made = replace(made, notes=(*made.notes, *note))
    if verify and made.changed:
        sides = OnnxSide(str(path), original), OnnxSide("the rewritten model", made.model)
        options = ValidationOptions(shapes=shapes or {})
        verdict = require_same("the rewritten model", *sides, options, progress)
    files: tuple[Path, ...] = ()
    if output is not None:
        files = write_onnx(made.model, output, overwrite=overwrite)
    return OnnxResult(made, files, verdict)


def _takes_fastest(target: str | None) -> bool:
    return target_named(target).forms == "fastest"


def require_same(
    name: str,
    reference: TorchSide | OnnxSide,
    candidate: TorchSide | OnnxSide,
    options: ValidationOptions,
    progress: Progress | None,
) -> Validation:
    """The validation of two that are the same.

    Raises `MismatchError`, with it as its `report`, where they are not, and `NotComparableError`
    where nobody can tell.
    """
    verdict = validate_sides(reference, candidate, options, progress)
    verdict.require_ok(name)
    return verdict


def onnx_passes(
    passes: Sequence[str | Pass[Any]] | None, target: str | None
) -> tuple[Pass[Any], ...]:
    """The passes that work on ONNX files, of those that are asked for.

    Raises `UsageError` for one that is named and needs a torch model.
    """
    chosen = make_pipeline(passes, target).passes
    torch_only = [entry for entry in chosen if not entry.works_on_onnx()]
    if passes is not None and torch_only:
        *most, last = (name for name in PASSES if pass_class(name).works_on_onnx())
        others = f"{', '.join(most)} and {last}"
        raise UsageError(
            f"{torch_only[0].pass_name()} works on torch models, not on ONNX files: {others} do"
        )
    return tuple(entry for entry in chosen if entry.works_on_onnx())


def opened(model: Model, inputs: object) -> tuple[nn.Module, ExampleInputs]:
    """The torch model, and its inputs: those given, those that came with it, or guesses."""
    plain = module_of(model, original=False)
    if inputs is not None:
        return plain, ExampleInputs.of(inputs)
    return plain, _known_inputs(model) or infer_inputs(plain).inputs


def module_of(model: Model, *, original: bool) -> nn.Module:
    """The torch model of a result; its original where that is wanted."""
    if isinstance(model, Result):
        return model.program.model if original else model.model
    return model.model if isinstance(model, Loaded) else model


def _known_inputs(side: Side) -> ExampleInputs | None:
    """The example inputs that come with a side."""
    if isinstance(side, Result):
        return side.program.inputs
    return side.inputs if isinstance(side, Loaded) else None


def _onnx_side(side: Side) -> OnnxSide | None:
    """The side of an .onnx file; None for anything else."""
    if not isinstance(side, (str, Path)) or Path(side).suffix != ONNX:
        return None
    return OnnxSide(str(side), read_onnx(side))


@dataclass(frozen=True)
class _Inferring:
    """What torch models are run on: what was given, what came with one, or what a file declares."""

    given: ExampleInputs | None
    known: ExampleInputs | None
    declared: Sequence[Declared]
    trust_pickle: bool

    def side(
        self, side: Side, key: str | None, *, original: bool
    ) -> tuple[TorchSide, tuple[str, ...]]:
        """A torch side to compare, and notes on what was read."""
        if not isinstance(side, (str, Path)):
            model = module_of(side, original=original)
            return TorchSide.of(model, self._inputs(model, None), type(model).__name__), ()
        read = read_model(side, trust_pickle=self.trust_pickle, key=key)
        own = ExampleInputs.from_description(read.inputs) if read.inputs else None
        return TorchSide.of(read.model, self._inputs(read.model, own), str(side)), read.notes

    def _inputs(self, model: nn.Module, own: ExampleInputs | None) -> ExampleInputs:
        if self.given is not None:
            return self.given
        return inputs_for(model, self.known or own, self.declared).inputs


def read_arrays(data: Data | Sequence[Data]) -> tuple[Mapping[str, Array], ...]:
    """The user's own inputs, one table of arrays a run; `.npz` files are read."""
    if isinstance(data, (str, Path, Mapping)):
        data = (data,)
    return tuple(d if isinstance(d, Mapping) else read_npz(Path(d)) for d in data)


def read_npz(path: Path) -> Mapping[str, Array]:
    """The arrays of a `.npz` file; nothing in it is executed. Raises `FileError`."""
    require_file(path)
    try:
        with np.load(path, allow_pickle=False) as found:
            if not isinstance(found, np.lib.npyio.NpzFile):
                raise FileError(f"{path} is not an .npz file: {_NPZ}")
            arrays = {name: found[name] for name in found.files}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise FileError(f"{path} is no .npz file but a zip file of something else: {_NPZ}")
            return arrays
    except FileError:
        raise
    except Exception as error:
        raise FileError(
            f"{path} cannot be read as an .npz file ({type(error).__name__}: {error}): {_NPZ}"
        ) from error


_NPZ = "write one with numpy.savez, an array for each input"
