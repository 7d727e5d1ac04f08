"""ONNX Runtime on the CPU: one session a model and level of optimisation."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch

from ...errors import FileError, ModelError, UsageError, first_line
from ..graph.files import proto_of, write_onnx
from ..graph.tensors import tensors

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
Optimised = Literal["off", "on"]

_SILENT = 4
_LEVELS = {
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "on": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
# Beyond this a model does not fit into one message, and is handed over as files.
_MOST_BYTES = 1_500_000_000


class Session:
    """A model in ONNX Runtime, with its graph optimisations off or on.

    `also` are names of inner values that are given out as well, `data` the bytes of the model's
    file, if they were made already. Raises `FileError` where ONNX Runtime cannot load the model;
    `source` names it there.
    """

    def __init__(
        self,
        model: ir.Model,
        optimised: Optimised,
        *,
        source: str,
        also: Sequence[str] = (),
        data: bytes | None = None,
    ) -> None:
        self.source = source
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        options = ort.SessionOptions()
        options.graph_optimization_level = _LEVELS[optimised]
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = _SILENT
        try:
            self._session = ort.InferenceSession(
                self._given(model, also, data), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise FileError(_not_loaded(source, model, error)) from error

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return tuple(value.name for value in self._session.get_inputs())

    def run(self, feeds: Feeds, names: Sequence[str] | None = None) -> dict[str, Array]:
        """Values of the outputs `names`, by default of all. Raises `ModelError` if it fails."""
        wanted = [value.name for value in self._session.get_outputs()]
        wanted = wanted if names is None else list(names)
        if not wanted:
            return {}  # to ONNX Runtime no name means every output
        try:
            values = self._session.run(wanted, dict(feeds))
        except Exception as error:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())
            raise ModelError(
                f"ONNX Runtime cannot run {self.source} on {shapes}: {_message(error)}"
            ) from error
        return {name: np.asarray(value) for name, value in zip(wanted, values, strict=True)}

    def _given(self, model: ir.Model, also: Sequence[str], data: bytes | None) -> bytes | str:
        if data is not None and len(data) < _MOST_BYTES:
            # Messages one behind the other are one that has the repeated fields of all.
            return data + _more_outputs(model, also)
        size = sum(tensor.nbytes for tensor in tensors(model))
        if size < _MOST_BYTES:
            proto = proto_of(model)
            give_out(proto, also)
            made: bytes = proto.SerializeToString()
            return made
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / "model.onnx"
        write_onnx(model, path, overwrite=True, external=True)
        if also:
            proto = onnx.load(path, load_external_data=False)
            give_out(proto, also)
            onnx.save(proto, path)
        return str(path)


def give_out(proto: onnx.ModelProto, names: Sequence[str]) -> None:
    """Make inner values outputs; ONNX Runtime finds out their types."""
    known = {value.name for value in proto.graph.output}
    given = {value.name for value in proto.graph.input}
    for name in names:
        if name not in known and name not in given:
            proto.graph.output.append(onnx.ValueInfoProto(name=name))
            known.add(name)


def _more_outputs(model: ir.Model, names: Sequence[str]) -> bytes:
    """A message of nothing but those of `names` that are no inputs or outputs yet."""
    known = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    more = onnx.ModelProto()
    give_out(more, [name for name in names if name not in known])
    data: bytes = more.SerializeToString()
    return data


def _not_loaded(source: str, model: ir.Model, error: Exception) -> str:
    foreign = dict.fromkeys(
        f"{node.domain}.{node.op_type}"
        for node in model.graph
        if node.domain not in ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
        and node.op_identifier() not in model.functions
    )
    if foreign:
        return (
            f"ONNX Runtime cannot load {source}: it has operators that no one else knows "
            f"({', '.join(foreign)}); it can be read and split, but not run or validated here. "
            f"ONNX Runtime says: {_message(error)}"
        )
    return (
        f"ONNX Runtime {ort.__version__} cannot load {source}: {_message(error)}. If this names an "
        "opset or a type, write the file in another one; `python -m onnx.checker` may tell more"
    )


def _message(error: Exception) -> str:
    text = first_line(error)
    return text.split(" : ", 2)[-1].strip()


def declared_inputs(
    model: ir.Model, without: Collection[str] = ()
) -> Iterator[tuple[str, np.dtype[Any], tuple[int | None, ...]]]:
    """Name, dtype and sizes of each input that a caller gives; None for an open size."""
    for value in model.graph.inputs:
        if value.is_initializer() or value.name in without:
            continue
        if value.dtype is None or value.shape is None:
            raise UsageError(f"input {value.name!r} has no type or shape in the file")
        if value.dtype == ir.DataType.STRING:
            raise UsageError(f"input {value.name!r} is text, which nothing can be drawn for")
        sizes = tuple(size if isinstance(size, int) else None for size in value.shape)
        yield value.name or "", value.dtype.numpy(), sizes
