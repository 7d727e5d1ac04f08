"""Tensors in a file of `torch.save`, read one at a time where they are wanted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..container import PICKLE, check_container, is_zip, read_record
from ..inert import REBUILD, Inert, Named, Outside, load_inert
from ..names import Damaged, shown

_REBUILD = frozenset({"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"})
_REBUILD_V3 = "torch._utils._rebuild_tensor_v3"
_PARAMETERS = frozenset(
    {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
)
# A parameter of a tensor's subclass is a tensor in two wrappings; more are nobody's.
_MAX_WRAPPED = 8
_STORAGES: Mapping[str, torch.dtype] = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "Untyped": torch.uint8,
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: elements of the storage `key`, counted in `dtype` from its start."""

    key: str
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def stored_tensor(found: object) -> StoredTensor | None:
    """What `found` says of a tensor; None where it is none. Raises `Damaged`."""
    for _ in range(_MAX_WRAPPED):
        if not isinstance(found, Inert) or not isinstance(found.arguments, tuple):
            return None
        name, arguments = found.kind_name, found.arguments
        if name in _PARAMETERS and arguments:
            found = arguments[0]
        elif name == REBUILD and len(arguments) > 2:
            found = Inert(arguments[0], arguments[2])
        elif (name in _REBUILD or name == _REBUILD_V3) and len(arguments) > 3:
            storage, offset, shape, stride = arguments[:4]
            tensor = _in_storage(storage, offset, shape, stride)
            return _retyped(tensor, arguments) if name == _REBUILD_V3 else tensor
        else:
            return None
    return None


def _in_storage(storage: object, offset: object, shape: object, stride: object) -> StoredTensor:
    identity = storage.id if isinstance(storage, Outside) else None
    if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
        raise Damaged("one of its tensors has no storage")
    kind, key = identity[1:3]
    dtype = _dtype_of_storage(kind)
    sizes, steps = _numbers(shape), _numbers(stride)
    if len(sizes) != len(steps) or dtype is None or not isinstance(key, str):
        raise Damaged("the description of one of its tensors is inconsistent")
    # Before zip files, a storage could be a view of another one: its key, start and size.
    view = identity[5] if len(identity) > 5 else None
    start = view[1] if isinstance(view, tuple) and len(view) == 3 else 0
    first, begin = _numbers((offset, start))
    return StoredTensor(key, dtype, first + begin, sizes, steps)


def _retyped(tensor: StoredTensor, arguments: tuple[Any, ...]) -> StoredTensor:
    """The tensor with the dtype that its storage does not tell."""
    named = arguments[6] if len(arguments) > 6 else None
    name = named.name.removeprefix("torch.") if isinstance(named, Named) else ""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise Damaged("one of its tensors has no dtype")
    return replace(tensor, dtype=dtype)


def _dtype_of_storage(kind: object) -> torch.dtype | None:
    """`torch.float32` of `torch.FloatStorage`, also of the one of a GPU."""
    name = kind.name.rpartition(".")[2] if isinstance(kind, Named) else ""
    return _STORAGES.get(name.removesuffix("Storage"))


def _numbers(found: object) -> tuple[int, ...]:
    if not isinstance(found, (tuple, list)) or not all(type(n) is int and n >= 0 for n in found):
        raise Damaged("a size of one of its tensors is no number")
    return tuple(found)


class StoredFile:
    """An open file of `torch.save`: what was saved, as data, and its storages."""

    def __init__(self, file: BinaryIO) -> None:
        """Read the pickle. Raises `Damaged` for a file that is none of `torch.save`."""
        self._file = file
        # Of a file before zip files: where the storages begin, their keys, the dtype of each.
        self._legacy: tuple[int, list[str]] | None = None
        if is_zip(file):
            records = check_container(file, checksums=False).records
            if "byteorder" in records and read_record(file, "byteorder", 16) != b"little":
                raise Damaged("its numbers are big-endian")
            self.content = load_inert(read_record(file, PICKLE))
        else:
            self.content = self._read_legacy()

    def _read_legacy(self) -> object:
        magic = load_inert(self._file)
        if magic != torch.serialization.MAGIC_NUMBER:
            raise Damaged("it is a plain pickle that torch.save did not write")
        _, system, content, keys = (load_inert(self._file) for _ in range(4))
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise Damaged("its numbers are big-endian")
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise Damaged("its list of storages is inconsistent")
        self._legacy = (self._file.tell(), keys)
        return content

    def read(self, tensors: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
        """The values of `tensors`, on the CPU; a storage is read once. Raises `Damaged`."""
        places = {} if self._legacy is None else self._legacy_places(*self._legacy)
        storages: dict[str, bytearray] = {}
        found = {}
        for name, tensor in tensors.items():
            if tensor.key not in storages:
                storages[tensor.key] = self._storage(tensor.key, places)
            found[name] = _values(name, tensor, storages[tensor.key])
        return found

    def _storage(self, key: str, places: Mapping[str, tuple[int, int]]) -> bytearray:
        if self._legacy is None:
            return bytearray(read_record(self._file, f"data/{key}"))
        if key not in places:
            raise Damaged("one of its tensors has no storage")
        begin, size = places[key]
        self._file.seek(begin)
        return bytearray(self._file.read(size))

    def _legacy_places(self, position: int, keys: list[str]) -> dict[str, tuple[int, int]]:
        """Where each storage begins, and its bytes: its length comes first, then its numbers."""
        sizes = {tensor.key: tensor.dtype.itemsize for tensor in self._all_tensors()}
        end = self._file.seek(0, 2)
        places = {}
        for key in keys:
            self._file.seek(position)
            count = int.from_bytes(self._file.read(8), "little", signed=True)
            size = count * sizes.get(key, 0)
            if count < 0 or key not in sizes or position + 8 + size > end:
                raise Damaged("it is truncated, or its storages are inconsistent")
            places[key] = (position + 8, size)
            position += 8 + size
        return places

    def _all_tensors(self) -> list[StoredTensor]:
        """Every tensor anywhere in the file, each object looked at once."""
        found, seen, waiting = [], set(), [self.content]
        while waiting:
            item = waiting.pop()
            if id(item) in seen:
                continue
            seen.add(id(item))
            tensor = stored_tensor(item)
            if tensor is not None:
                found.append(tensor)
            elif isinstance(item, Inert):
                waiting += [item.arguments, item.state, item.items]
            elif isinstance(item, dict):
                waiting += item.values()
            elif isinstance(item, (list, tuple)):
                waiting += item
        return found


def _values(name: str, tensor: StoredTensor, data: bytearray) -> Tensor:
    present = len(data) // tensor.dtype.itemsize
    elements = math.prod(tensor.shape)
    steps = zip(tensor.shape, tensor.stride, strict=True)
    last = tensor.offset + sum((size - 1) * step for size, step in steps)
    # Elements on top of each other, as after expand, could claim any amount of memory.
    if elements and (last >= present or elements > present):
        raise Damaged(f"{shown(name)} claims {elements:,} elements and has {present:,}")
    try:
        if not elements:
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        whole = torch.frombuffer(data, dtype=tensor.dtype, count=present)
        return whole.as_strided(tensor.shape, tensor.stride, tensor.offset)
    except (RuntimeError, TypeError, OverflowError, ValueError) as error:
        raise Damaged(f"the sizes of {shown(name)} are inconsistent") from error
