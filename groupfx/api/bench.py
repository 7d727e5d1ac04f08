"""The function that users call to see which of several models is faster, if that can be told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..deploy import (
    ExportOptions,
    OnnxSide,
    paired,
    prepare_export,
    read_onnx,
    require_fit,
)
from ..errors import GroupfxError, UsageError, first_line
from ..running.alone import alone
from ..running.inputs import ExampleInputs
from ..tuning import (
    Raced,
    Session,
    backend_named,
    cpu_name,
    race_models,
    require_dimensions,
    require_threads,
    runs_torch,
)
from .onnx import ONNX, Array, Model, opened
from .tuning import Feeds, feeds_of, feeds_of_file

Progress = Callable[[int, int], None]
Shapes = Mapping[str | int, tuple[int, ...]]


@dataclass(frozen=True)
class Contender:
    """A model to be raced: a file as it is, or a torch model with its inputs."""

    name: str
    model: OnnxSide | nn.Module
    inputs: ExampleInputs | None = None

    @classmethod
    def of(cls, model: Model | str | Path, inputs: object = None) -> Contender:
        """Of an .onnx file, or of a torch model as the other functions take it."""
        if isinstance(model, (str, Path)):
            if Path(model).suffix != ONNX:
                raise UsageError(f"{model} is no .onnx file: read it, and give the model")
            return cls(str(model), OnnxSide(str(model), read_onnx(model)))
        plain, example = opened(model, inputs)
        return cls(type(plain).__name__, plain, example)


@dataclass(frozen=True)
class Benchmark:
    """How long models take on the same inputs, on so many `threads` of a backend, with the options
    of a user's `session`.

    `inputs` are the shapes of the first, by name or position; `guessed` are sizes of them that
    nobody gave. `raced` are the models in their order: each after the first has a ratio to it,
    whose verdict claims no difference that was not seen.
    """

    backend: str
    version: str
    processor: str
    threads: int
    session: Session
    inputs: Mapping[str, tuple[int, ...]]
    guessed: str | None
    names: tuple[str, ...]
    raced: tuple[Raced, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What should be known of it."""
        found = [
            f"{name} gives other outputs than {self.names[0]}: this compares times alone, and "
            "'groupfx validate' what they compute"
            for name, raced in zip(self.names, self.raced, strict=True)
            if raced.differs
        ]
        if self.guessed is not None:
            found.append(f"{self.guessed} is a guess: give yours with --input-shape")
        return tuple(found)

    def verdict(self, place: int) -> str:
        """Such as `0.93 (0.92 to 0.94) x the time of a.onnx: faster`; "" for the first."""
        ratio = self.raced[place].ratio
        if ratio is None:
            return ""
        words = {"same": "no difference", "cannot tell": "cannot tell, it is too noisy for that"}
        said = words.get(ratio.verdict, ratio.verdict)
        return f"{ratio} x the time of {self.names[0]}: {said}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data; times in seconds."""
        return {
            "backend": self.backend,
            "version": self.version,
            "processor": self.processor,
            "threads": self.threads,
            "session": dict(self.session),
            "inputs": {name: list(shape) for name, shape in self.inputs.items()},
            "guessed": self.guessed,
            "models": [
                {
                    "name": name,
                    "latency": asdict(raced.latency),
                    "ratio": None if raced.ratio is None else raced.ratio.to_dict(),
                    "verdict": self.verdict(place) or None,
                    "differs": raced.differs,
                }
                for place, (name, raced) in enumerate(zip(self.names, self.raced, strict=True))
            ],
            "notes": list(self.notes),
        }


@alone
def bench(
    models: Sequence[Contender | Model | str | Path],
    inputs: object = None,
    *,
    budget: float = 20.0,
    threads: int = 1,
    batch: int | None = None,
    backend: str = "onnxruntime",
    session: object = None,
    shapes: Shapes | None = None,
    progress: Progress | None = None,
) -> Benchmark:
    """Race `models` against the first of them, on the same inputs.

    Each is an .onnx file, which is run as it is, or a torch model, which is exported as it is; for
    the backends `torch` and `torch.compile` all are torch models. `inputs` are those of the torch
    models, `shapes` those of files that leave sizes open, by name or position; `batch` is their
    first dimension. `session` are options of ONNX Runtime, as for `groupfx.tune`. It takes about
    `budget` seconds.

    Raises UsageError for less than two models, and where one takes other inputs than the first;
    ModelError for one that does not run; MissingDependencyError for a backend that is not there.
    """
    made = [m if isinstance(m, Contender) else Contender.of(m, inputs) for m in models]
    if len(made) < 2:
        raise UsageError("give two models or more: a race of one has no winner")
    if batch is not None and batch < 1:
        raise UsageError(f"batch={batch}: it must be at least 1")
    require_threads(threads)
    if not 0 < budget < float("inf"):
        raise UsageError(f"budget={budget}: give seconds, such as 20")
    runtime = backend_named(backend).with_session(session, threads)
    prepare = _modules if runs_torch(backend) else _files
    ready = prepare(made, batch, shapes or {}, backend)
    for model, feeds in zip(ready.models, ready.feeds, strict=True):
        if runtime.session:
            require_dimensions(runtime.session, model, feeds)
    raced = race_models(
        ready.models,
        ready.feeds,
        runtime,
        threads,
        budget,
        host=ready.host,
        advance=progress or (lambda done, total: None),
    )
    return Benchmark(
        backend=runtime.name,
        version=runtime.version(),
        processor=cpu_name() if ready.host else ready.processor,
        threads=threads,
        session=runtime.session,
        inputs=ready.shapes,
        guessed=ready.guessed,
        names=_names(made),
        raced=raced,
    )


@dataclass(frozen=True)
class _Ready:
    """Models as the backend takes them, and what each is run on."""

    models: Sequence[Any]
    feeds: Sequence[Any]
    shapes: Mapping[str, tuple[int, ...]]
    guessed: str | None
    host: bool = True
    processor: str = ""


def _names(models: Sequence[Contender]) -> tuple[str, ...]:
    """Each once: a model may be raced against itself."""
    seen: Counter[str] = Counter()
    found = []
    for model in models:
        seen[model.name] += 1
        again = seen[model.name] > 1
        found.append(f"{model.name} ({seen[model.name]})" if again else model.name)
    return tuple(found)


def _files(models: Sequence[Contender], batch: int | None, shapes: Shapes, backend: str) -> _Ready:
    first, *others = models
    feeds, side, guessed = _exported(first, batch, shapes)
    require_fit(side, feeds)
    sides, all_feeds = [side], [feeds]
    for other in others:
        # Its own inputs are of no use: all get those of the first.
        own = other.model if isinstance(other.model, OnnxSide) else _exported(other, None, {})[1]
        sides.append(own)
        all_feeds.append(_as_inputs_of(first, side, other, own, feeds))
    shown = {name: array.shape for name, array in feeds.items()}
    return _Ready([each.model for each in sides], all_feeds, shown, guessed)


def _exported(
    model: Contender, batch: int | None, shapes: Shapes
) -> tuple[Feeds, OnnxSide, str | None]:
    if isinstance(model.model, OnnxSide):
        found, guessed = feeds_of_file(model.model, shapes, batch)
        return found, model.model, guessed
    assert model.inputs is not None
    prepared = prepare_export(model.model, model.inputs, ExportOptions())
    feeds = feeds_of(prepared, model.model, model.inputs, batch)
    return feeds, OnnxSide(model.name, prepared.model), model.inputs.guessed


def _as_inputs_of(
    first: Contender, side: OnnxSide, other: Contender, own: OnnxSide, feeds: Feeds
) -> Feeds:
    """The inputs of the first by the names of another. Raises UsageError where they do not fit."""
    try:
        names = paired(side.inputs, own.inputs, "input")
        found: dict[str, Array] = {names[name]: array for name, array in feeds.items()}
        require_fit(own, found)
        for name, dtype, _ in own.declared:
            if found[name].dtype != dtype:
                raise UsageError(f"input {name} is {found[name].dtype}, and {dtype} in the other")
    except UsageError as error:
        raise UsageError(f"{first.name} and {other.name} cannot be raced: {error}") from error
    return found


def _modules(
    models: Sequence[Contender], batch: int | None, shapes: Shapes, backend: str
) -> _Ready:
    first = models[0]
    modules = []
    for each in models:
        if isinstance(each.model, OnnxSide):
            raise UsageError(f"the backend {backend} runs torch models: {each.name} is a file")
        modules.append(each.model.eval())
    example = first.inputs
    assert example is not None
    given = example.asked(batch)
    for each, module in zip(models, modules, strict=True):
        _runs_on(first, each, module, given)
    tensors = list(given.tensors())
    shown = {str(place): tuple(tensor.shape) for place, tensor in enumerate(tensors)}
    host = all(tensor.device.type == "cpu" for tensor in tensors)
    processor = "" if host else str(tensors[0].device)
    return _Ready(modules, [given] * len(modules), shown, example.guessed, host, processor)


def _runs_on(first: Contender, each: Contender, module: nn.Module, inputs: ExampleInputs) -> None:
    try:
        inputs.call(module)
    except GroupfxError:
        raise
    except Exception as error:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in inputs.tensors())
        raise UsageError(
            f"{first.name} and {each.name} cannot be raced: {each.name} does not run on inputs of "
            f"{shapes} ({first_line(error)}); give a shape that all take with --input-shape"
        ) from error
