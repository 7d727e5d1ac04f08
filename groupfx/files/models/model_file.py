"""One function for every kind of file that holds a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from ...errors import FileError, GroupfxError, UsageError
from ...state.wrapping import is_counter, unwrapped
from ..archive import Archive, apply, load_state
from ..archive.content import reading
from ..archive.file import read_archive
from ..existing import factory_in
from ..kinds import FileKind, opened
from ..safetensors import read_safetensors
from .exported import read_exported, refusal
from .factories import build
from .pickled import read_trusted, read_untrusted

_WHOLE = "leave --arch out: it is for files that hold only weights, and this one holds its model"


@dataclass(frozen=True)
class ReadModel:
    """A model that was read, and where it came from.

    `source` is `archive` (our own file), `module` (pickled), `state_dict`, `safetensors`,
    `exported` (`.pt2`) or `factory`. `inputs` describes example inputs, where the file knows them.
    `archive` is there for our own files only, with the report of the rewrite that made them.
    `notes` say which of several networks was taken, and how its names were read.
    """

    model: nn.Module
    source: str
    inputs: list[dict[str, Any]] | None = None
    archive: Archive | None = None
    notes: tuple[str, ...] = ()

    @property
    def report(self) -> Mapping[str, Any] | None:
        """The report that came with our own file."""
        return None if self.archive is None else self.archive.report


@dataclass(frozen=True)
class _Request:
    """What the user said about a file."""

    path: Path
    trust_pickle: bool
    arch: str | None
    arch_args: Mapping[str, Any]
    key: str | None
    python_path: tuple[Path, ...]
    into: nn.Module | None = None

    def build(self) -> nn.Module:
        """The model of `--arch`. Raises `FileError` where it is missing."""
        if self.into is not None:
            return self.into
        if self.arch is None:
            raise FileError(
                f"{self.path} holds weights without their model: say how to build it with --arch "
                "package.module:factory or file.py:factory (and --arch-args as JSON)"
            )
        return _built(self.arch, self)

    def whole(self) -> None:
        """Raise `UsageError` if `--arch` came with a file that needs none."""
        if self.arch is not None:
            raise UsageError(f"{self.path}: {_WHOLE}")


def read_model(
    path: str | os.PathLike[str],
    *,
    trust_pickle: bool = False,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    key: str | None = None,
    python_path: Sequence[str | os.PathLike[str]] = (),
    into: nn.Module | None = None,
) -> ReadModel:
    """Read the model in the file at `path`; its tensors are put on the CPU.

    A `path` that is no file and reads `file.py:factory` or `package.module:factory` is what makes
    the model: it is called with `arch_args`.

    Read without trust: our own files, modules made of `torch.nn` and `groupfx.nn` only (also in a
    dict, chosen with `key`), state_dicts and safetensors. The last two, and our own files of
    swapped modules, need `arch`, `package.module:factory` or `file.py:factory`, which is called
    with `arch_args`. Any other pickle, and a `.pt2`, runs code of its author's when it is loaded:
    that takes `trust_pickle`. `python_path` holds folders in which Python looks for modules first.
    `into` is what `arch` has made already: weights go there.

    Raises `FileError` for a file that is missing, damaged or not trusted, or whose weights do not
    fit, and `UsageError` for an `arch` or a `key` that does not work.
    """
    request = _Request(
        Path(path),
        trust_pickle,
        arch,
        dict(arch_args or {}),
        key,
        tuple(Path(folder) for folder in python_path),
        into,
    )
    factory = factory_in(request.path)
    if factory is not None:
        return _made(factory, request)
    with opened(request.path) as (file, kind):
        return _READERS[kind](file, request)


def _made(factory: str, request: _Request) -> ReadModel:
    if request.arch is not None or request.key is not None:
        raise UsageError(f"{factory} makes a model by itself: leave --arch and --key out")
    return ReadModel(_built(factory, request), "factory")


def _built(factory: str, request: _Request) -> nn.Module:
    model = build(factory, request.arch_args, request.python_path)
    named = (*model.named_parameters(), *model.named_buffers())
    empty = next((name for name, tensor in named if tensor.is_meta or is_fake(tensor)), None)
    if empty is not None:
        # Weights would be loaded into nothing, without a word.
        tensor = dict(named)[empty]
        place = "lies on the device meta" if tensor.is_meta else "is a FakeTensor"
        raise UsageError(
            f"what {factory} returned has no values: {empty} {place}; make it on the CPU"
        )
    return model


def _read_exported(file: BinaryIO, request: _Request) -> ReadModel:
    request.whole()
    if not request.trust_pickle:
        raise refusal(file, str(request.path))
    module, inputs = read_exported(file, str(request.path))
    return ReadModel(module, "exported", inputs)


def _read_archive(file: BinaryIO, request: _Request) -> ReadModel:
    if request.key is not None:
        raise UsageError(f"{request.path} is a file of groupfx with one model: leave --key out")
    archive = reading(lambda: read_archive(file), str(request.path))
    model: nn.Module | None = archive.model
    if model is None:
        model = apply(archive, replace(request, into=None).build(), inplace=True)
    else:
        request.whole()
    return ReadModel(model, "archive", archive.inputs or None, archive)


def _read_pickle(file: BinaryIO, request: _Request) -> ReadModel:
    source = str(request.path)
    if request.trust_pickle:
        found = read_trusted(file, source, request.key, request.python_path)
    else:
        found = read_untrusted(file, source, request.key)
    notes = () if found.note is None else (found.note,)
    if found.form == "module":
        request.whole()
        return ReadModel(found.network, "module", notes=notes)
    try:
        model, more = _with_weights(found.network, request)
    except GroupfxError as error:
        if not notes:
            raise
        # Perhaps it was the other one that was meant.
        raise type(error)("; ".join((str(error), *notes))) from error
    return ReadModel(model, "state_dict", notes=(*notes, *more))


def _with_weights(
    state: Mapping[str, Tensor], request: _Request
) -> tuple[nn.Module, tuple[str, ...]]:
    """The model of the factory with the weights of the file, and how their names were read."""
    model = request.build()
    own = model.state_dict()
    found = unwrapped(state, own)
    fitting = {name: state[old] for name, old in found.names.items()}
    counters = {name: own[name] for name in own if is_counter(name) and name not in fitting}
    load_state(model, fitting | counters, str(request.path), exact=False)
    return model, tuple(f"{request.path}: {note}" for note in found.notes)


def _read_safetensors(file: BinaryIO, request: _Request) -> ReadModel:
    state = read_safetensors(request.path, request.key).tensors
    model, notes = _with_weights(state, request)
    return ReadModel(model, "safetensors", notes=notes)


_READERS: Mapping[FileKind, Callable[[BinaryIO, _Request], ReadModel]] = {
    "archive": _read_archive,
    "exported": _read_exported,
    "pickle": _read_pickle,
    "safetensors": _read_safetensors,
}
