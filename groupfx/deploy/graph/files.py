"""ONNX files, written whole or not at all, and models as the checker and a runtime take them.

A protobuf message ends at 2 GB: a model that is too large for one file keeps its weights in a
second one beside it, `<name>.<digest>.data`. Its name is made of its content: an .onnx file that is
there always finds the weights that it was written with, also where a run is killed between the two.
The .onnx file gets its name last, and what it replaced loses its weights after that, unless another
.onnx file in the folder has them too: one of ours that was renamed or copied.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

from ...errors import FileError, GroupfxError, InternalError, first_line
from ...files.atomic import whole_file
from .reading import PRODUCER, is_ours, read_onnx
from .tensors import external_tensors, in_memory, initializers, load_attributes, load_external

__all__ = ["PRODUCER", "check_onnx", "proto_of", "read_onnx", "write_onnx"]

# A protobuf message ends at 2 GiB; what is not weights (nodes, names, shapes) needs room too.
_MOST_WEIGHT_BYTES = 1_900_000_000

# Smaller tensors stay in the .onnx file; a page for each of them would be mostly padding.
_EXTERNAL_FROM = 1024
_ALIGNMENT = 4096
_DATA = ".data"
_DIGEST = 6


def write_onnx(
    model: ir.Model,
    path: Path | str,
    *,
    overwrite: bool,
    external: bool | None = None,
    data: bytes | None = None,
) -> tuple[Path, ...]:
    """Write a model whole or not at all, the same bytes for the same model; the paths written.

    `external` says whether weights go to a second file beside it: None, only where one file would
    not hold them. The model stays usable, whatever it was read from. `data` is what `check_onnx`
    gave for it, which saves making it again. Raises FileError where something that groupfx did not
    write would be replaced and `overwrite` is False.
    """
    place = Path(path)
    ours = check_target(place, overwrite=overwrite)
    if external is None:
        external = _is_large(model)
    folder, name = os.path.split(os.path.realpath(place))
    before = _own_data(Path(folder), name, replaced=ours)
    if not external:
        _hold_tensors(model, before)
        with whole_file(place) as file:
            file.write(_serialized(place, proto_of(model)) if data is None else data)
        _remove(before)
        return (place,)
    weights = Path(folder, f"{name}.{_digest(model)}{_DATA}")
    _hold_tensors(model, {weights, *before})
    with whole_file(weights, owner=place) as weights_file:
        proto = _with_weights_in(weights_file, weights.name, model)
    with whole_file(place) as file:
        file.write(_serialized(place, proto))
    _remove(before - {weights})
    return place, place.with_name(weights.name)


def _own_data(folder: Path, name: str, *, replaced: bool) -> set[Path]:
    """Files of weights that we wrote for the file `name`: of the one there, and of killed runs.

    `replaced`: the one there is ours, and may be from before their names told their content.
    """
    ours = re.compile(rf"{re.escape(name)}\.[0-9a-f]{{{2 * _DIGEST}}}{re.escape(_DATA)}")
    found = {folder / entry for entry in os.listdir(folder) if ours.fullmatch(entry)}
    old = folder / f"{name}{_DATA}"
    return (
        found | {old} if replaced and old.is_file() and _names(folder / name, old.name) else found
    )


def _names(path: Path, location: str) -> bool:
    """Whether an .onnx file keeps weights in the file `location`."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # what is damaged is replaced, and names nothing
        return False
    places = {entry.value for t in model.graph.initializer for entry in t.external_data}
    return location in places


def _remove(paths: Iterable[Path]) -> None:
    """Remove weights of what was replaced, as far as no other .onnx file beside them has them."""
    for path in paths:
        # The new file is complete: what stays of the old one is only in the way.
        with contextlib.suppress(OSError):
            if not any(_mentions(entry, path.name) for entry in path.parent.iterdir()):
                path.unlink()


def _mentions(path: Path, location: str) -> bool:
    """Whether a file that may be a model (`n.onnx`, `m.onnx.bak`) says `location` anywhere.

    A message holds texts as they are: to look for one takes no parsing, and no memory.
    """
    if ".onnx" not in path.name or path.suffix == _DATA or not path.is_file():
        return False
    if not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(os.fsencode(location)) >= 0


def _digest(model: ir.Model) -> str:
    """Of all that goes into the second file."""
    digest = hashlib.blake2b(digest_size=_DIGEST)
    for value in initializers(model):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= _EXTERNAL_FROM:
            digest.update(tensor.nbytes.to_bytes(8, "little"))
            digest.update(tensor.tobytes())
    return digest.hexdigest()


def proto_of(model: ir.Model) -> onnx.ModelProto:
    """The model as a message that holds all of its weights, as a runtime or the checker takes it.

    `model` is not changed; weights in other files are read.
    """
    if not any(True for _ in external_tensors(model)):
        return _message(model)
    copy = model.clone()
    load_external(copy)
    return _message(copy)


def check_onnx(model: ir.Model, error: type[GroupfxError] = InternalError) -> bytes | None:
    """Run onnx.checker with full shape inference; raise `error` with what it says.

    Returns the bytes of the model's file, None where it is too large for one.
    """
    try:
        if not _is_large(model):
            data: bytes = proto_of(model).SerializeToString(deterministic=True)
            onnx.checker.check_model(data, full_check=True)
            return data
        with tempfile.TemporaryDirectory() as folder:
            (path, _) = write_onnx(model, Path(folder) / "model.onnx", overwrite=True)
            onnx.checker.check_model(str(path), full_check=True)
        return None
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as reason:
        raise error(f"onnx.checker refuses the model: {first_line(reason)}") from reason


def check_made(original: ir.Model, made: ir.Model) -> tuple[str, ...]:
    """Hold what was made to onnx's checker, or note that the original does not pass it either."""
    try:
        check_onnx(original, FileError)
    except FileError as error:
        return (f"as it was read, {error}",)
    check_onnx(made)
    return ()


def check_target(path: Path, *, overwrite: bool) -> bool:
    """Whether there is a file of ours; FileError where there is something not to be replaced."""
    if not path.parent.is_dir():
        raise FileError(
            f"{path} cannot be written: there is no folder {path.parent}: make it first"
        )
    if path.is_dir():
        raise FileError(f"{path} is a folder: name a file in it, such as {path / 'model.onnx'}")
    folder = os.path.dirname(os.path.realpath(path))
    if not os.access(folder, os.W_OK):
        raise FileError(f"{path} cannot be written: no permission to write to {folder}")
    if not path.exists():
        return False
    if not path.is_file():
        raise FileError(f"{path} is not a regular file and will not be replaced")
    ours = is_ours(path)
    if not overwrite and not ours:
        raise FileError(
            f"{path} exists: choose another name, or replace it with --force (overwrite=True)"
        )
    return ours


def _is_large(model: ir.Model) -> bool:
    weights = (value.const_value for value in initializers(model))
    return sum(tensor.nbytes for tensor in weights if tensor is not None) > _MOST_WEIGHT_BYTES


def _message(model: ir.Model) -> onnx.ModelProto:
    """What onnx-ir makes of a model, without a second description of each initialiser."""
    proto = ir.to_proto(model)
    known = model.graph.initializers
    kept = [info for info in proto.graph.value_info if info.name not in known]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
    return proto


def _serialized(path: Path, proto: onnx.ModelProto) -> bytes:
    try:
        data: bytes = proto.SerializeToString(deterministic=True)
    except Exception as error:
        # Protobuf has no one error for a message that is too large.
        raise FileError(
            f"{path} was not written: {first_line(error)}; keep the weights in a second file "
            "(external=True)"
        ) from error
    return data


def _hold_tensors(model: ir.Model, targets: set[Path]) -> None:
    """Keep hold of weights of `model` that lie in files that are going to be replaced or removed.

    They are mapped, and a mapping outlives the name of its file.
    """
    places = set(map(os.path.realpath, targets))
    if any(os.path.realpath(tensor.path) in places for tensor in external_tensors(model)):
        load_external(model)


def _with_weights_in(file: BinaryIO, name: str, model: ir.Model) -> onnx.ModelProto:
    """The model as a message, its large initialisers written to `file`, which becomes `name`."""
    copy = model.clone()
    for value in initializers(copy):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= _EXTERNAL_FROM:
            value.const_value = _moved(file, name, tensor)
        elif isinstance(tensor, ir.ExternalTensor):
            value.const_value = in_memory(tensor)
    load_attributes(copy)
    return _message(copy)


def _moved(file: BinaryIO, name: str, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
    file.write(bytes(-file.tell() % _ALIGNMENT))
    offset = file.tell()
    file.write(tensor.tobytes())
    return ir.ExternalTensor(
        name,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or "",
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def external_files(path: Path | str) -> tuple[Path, ...]:
    """The files that hold weights of the .onnx file at `path`, by name. Raises FileError."""
    return tuple(sorted({Path(tensor.path) for tensor in external_tensors(read_onnx(path))}))
