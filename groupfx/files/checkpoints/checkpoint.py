"""One checkpoint: the names, the shapes and the wanted values of a network's tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from torch import Tensor

from ...errors import FileError
from ...state.wrapping import without_wrappers
from ..choosing import Look, choose
from ..inert import Inert
from ..kinds import opened
from ..names import Damaged
from ..safetensors import read_safetensors
from .stored import StoredFile, StoredTensor, stored_tensor

Kind = Literal["module", "state_dict", "safetensors"]
_EPOCHS = ("epoch", "last_epoch")
# Deeper than any network; a file that nests modules without end must not exhaust the stack.
_MAX_DEPTH = 200


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a network as a file holds them.

    `network` is the dotted name of its class where the file is a pickled module. `epoch` is the
    number that the file keeps next to the network. `shapes` has every parameter and buffer by its
    name in a state_dict, `tensors` those that were asked for, on the CPU. What DataParallel
    and torch.compile put into names is left out. `notes` say which of several networks was taken.
    """

    path: Path
    kind: Kind
    network: str | None
    epoch: int | None
    shapes: Mapping[str, tuple[int, ...]]
    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()

    @property
    def document(self) -> dict[str, Any]:
        """What was read, as plain data."""
        return {"read": str(self.path), "kind": self.kind, "notes": list(self.notes)}


def read_checkpoint(
    path: str | os.PathLike[str],
    *,
    wanted: Callable[[str], bool] = lambda name: True,
    key: str | None = None,
) -> Checkpoint:
    """Read the checkpoint at `path` without running anything of it, whatever classes it names.

    Takes what `torch.save` writes, in today's format and in that before torch 1.6: a module of any
    class, a state_dict, or a dict that holds one of them, chosen with `key`; and safetensors.
    `wanted` says by their names which tensors are read. Raises `FileError` for any other file and
    for one that is damaged, and `UsageError` for a `key` that is not there.
    """
    place = Path(path)
    with opened(place) as (file, kind):
        if kind == "safetensors":
            found = read_safetensors(place, key, wanted)
            return Checkpoint(place, kind, None, None, found.shapes, found.tensors)
        if kind == "archive":
            raise FileError(
                f"{place} is a file of groupfx, whose learned groups are frozen: give the "
                "checkpoint that it was made from"
            )
        if kind == "exported":
            raise FileError(f"{place} is a .pt2 file: give the checkpoint that it was made from")
        return _read(file, place, wanted, key)


def _read(file: BinaryIO, path: Path, wanted: Callable[[str], bool], key: str | None) -> Checkpoint:
    stored = StoredFile(file)
    chosen = choose(stored.content, _LOOK, key=key, source=str(path))
    network = chosen.network
    held = _tensors_of(network)
    tensors = {name: held[old] for name, old in without_wrappers(held).items()}
    return Checkpoint(
        path=path,
        kind=chosen.form,
        network=network.kind_name if isinstance(network, Inert) else None,
        epoch=_epoch(stored.content),
        shapes={name: tensor.shape for name, tensor in tensors.items()},
        tensors=stored.read({name: tensor for name, tensor in tensors.items() if wanted(name)}),
        notes=() if chosen.note is None else (chosen.note,),
    )


_LOOK = Look(
    lambda found: isinstance(found, Inert) and _fields(found) is not None,
    lambda found: stored_tensor(found) is not None,
)


def _fields(found: Inert) -> dict[object, object] | None:
    """The fields of a module; None where it is none."""
    state = found.state[0] if isinstance(found.state, tuple) and found.state else found.state
    is_module = isinstance(state, dict) and {"_parameters", "_modules"} <= state.keys()
    return state if is_module and isinstance(state, dict) else None


def _tensors_of(network: object) -> dict[str, StoredTensor]:
    if isinstance(network, Inert):
        return dict(_module_tensors(network, "", set(), 0))
    assert isinstance(network, dict)
    found = {name: stored_tensor(value) for name, value in network.items()}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _module_tensors(
    module: Inert, prefix: str, seen: set[int], depth: int
) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors of a module under its path. A module that stands in two places comes once."""
    fields = _fields(module)
    if fields is None or id(module) in seen:
        return
    if depth > _MAX_DEPTH:
        raise Damaged(f"its modules are nested more than {_MAX_DEPTH} deep")
    seen.add(id(module))
    passing = fields.get("_non_persistent_buffers_set")
    skipped = passing if isinstance(passing, list) else []
    for table in ("_parameters", "_buffers"):
        for name, value in _entries(fields.get(table)):
            tensor = stored_tensor(value)
            if tensor is not None and (table == "_parameters" or name not in skipped):
                yield prefix + name, tensor
    for name, child in _entries(fields["_modules"]):
        if isinstance(child, Inert):
            yield from _module_tensors(child, f"{prefix}{name}.", seen, depth + 1)


def _entries(table: object) -> list[tuple[str, object]]:
    if isinstance(table, Inert):
        table = table.items
    if not isinstance(table, dict):
        return []
    return [(name, value) for name, value in table.items() if isinstance(name, str)]


def _epoch(found: object) -> int | None:
    if not isinstance(found, dict):
        return None
    numbers = (found.get(name) for name in _EPOCHS)
    return next((n for n in numbers if type(n) is int and n >= 0), None)
