"""Arguments and fields as plain data, and back.

None, booleans, integers, floats and strings stand for themselves, lists and tuples for lists and
tuples. Everything else is a table with one entry, whose name says what it is:

    {"node": "conv1"}  {"tensor": 3}  {"slice": [None, 4, None]}  {"ellipsis": True}
    {"dtype": "float16"}  {"device": "cpu"}  {"memory_format": "channels_last"}
    {"layout": "strided"}  {"size": [2, 3]}  {"complex": [0.0, 1.0]}  {"range": [0, 4, 1]}
    {"dict": [["key", value]]}  {"ordered_dict": [["key", value]]}  {"set": [1, 2]}
    {"function": "torch.nn.functional.relu"}  {"enum": "orthogonal_map.cayley"}
"""

import enum
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.nn.utils import parametrizations

from ..names import Damaged
from .operators import function_name, function_of
from .tensors import NotPlain, TensorWriter

MAX_DEPTH = 32
MAX_STRING = 10_000
_INT64 = range(-(2**63), 2**63)
# fx keeps arguments in its own immutable list and dict.
_LISTS = (list, immutable_list)
_DICTS = (dict, immutable_dict, OrderedDict)
_DEVICE = re.compile(r"[a-z]{1,16}(:\d{1,3})?\Z")

# Enumerations that fields of allowed modules hold.
_ENUMS: dict[str, type[enum.Enum]] = {
    name: kind
    for name, kind in [("orthogonal_map", getattr(parametrizations, "_OrthMaps", None))]
    if kind is not None
}
_NAMED: Mapping[type, str] = {
    torch.dtype: "dtype",
    torch.memory_format: "memory_format",
    torch.layout: "layout",
}


@dataclass
class Budget:
    """How many values a file may still unfold into; a few bytes must not become gigabytes."""

    left: int = 50_000_000

    def spend(self, count: int = 1) -> None:
        """Take `count` off. Raises `Damaged` when nothing is left."""
        self.left -= count
        if self.left < 0:
            raise Damaged("it unfolds into far more values than its size allows")


@dataclass
class ValueWriter:
    """Turns values into plain data. Raises `NotPlain` for what a file cannot hold.

    `tensors` is None where a tensor must not stand: an argument of a node, which fx would print.
    """

    tensors: TensorWriter | None

    def write(self, value: object, depth: int = 0) -> object:
        """`value` as plain data; `depth` counts the containers around it."""
        kind = type(value)
        if value is None or kind is bool or kind is float:
            return value
        if kind is int or kind is str:
            return _scalar(value)
        if depth > MAX_DEPTH:
            raise NotPlain(f"a value nested more than {MAX_DEPTH} deep")
        if isinstance(value, fx.Node):
            return {"node": value.name}
        if isinstance(value, Tensor) and self.tensors is not None:
            return {"tensor": self.tensors.add(value)}
        container = self._container(value, depth + 1)
        return _special(value) if container is None else container

    def _container(self, value: object, depth: int) -> object | None:
        """Lists, tuples and the like. Exact types: a named tuple or a model's output is more."""
        kind = type(value)
        if isinstance(value, tuple) and kind is tuple:
            return tuple([self.write(item, depth) for item in value])
        if isinstance(value, list) and kind in _LISTS:
            return [self.write(item, depth) for item in value]
        if isinstance(value, dict) and kind in _DICTS:
            name = "ordered_dict" if kind is OrderedDict else "dict"
            pairs = [[self.write(k, depth), self.write(v, depth)] for k, v in value.items()]
            return {name: pairs}
        if isinstance(value, slice):
            parts = (value.start, value.stop, value.step)
            return {"slice": [self.write(part, depth) for part in parts]}
        if isinstance(value, set) and kind is set:
            return {"set": sorted((self.write(item, depth) for item in value), key=repr)}
        return None


def _is_plain_key(key: object) -> bool:
    if isinstance(key, tuple):
        return all(map(_is_plain_key, key))
    return isinstance(key, str | int | float | bool | None)


def _scalar(value: object) -> object:
    if isinstance(value, int) and value not in _INT64:
        raise NotPlain(f"the integer {value}, which needs more than 64 bits")
    if isinstance(value, str) and len(value) > MAX_STRING:
        raise NotPlain(f"a string of {len(value)} characters (at most {MAX_STRING})")
    return value


def _special(value: object) -> object:
    kind = type(value)
    if kind in _NAMED:
        return {_NAMED[kind]: str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, torch.Size):
        return {"size": [int(size) for size in value]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if kind is complex and isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, np.integer | np.floating | np.bool_):
        return _scalar(value.item())  # torch reads a number of NumPy's as Python's
    return _named(value)


def _named(value: object) -> object:
    for name, kind in _ENUMS.items():
        if isinstance(value, kind):
            return {"enum": f"{name}.{value.name}"}
    function = function_name(value)
    if function is not None:
        return {"function": function}
    if callable(value) and not isinstance(value, type):
        shown = getattr(value, "__qualname__", type(value).__qualname__)
        raise NotPlain(f"the function {getattr(value, '__module__', '?')}.{shown}")
    raise NotPlain(f"a value of the type {type(value).__module__}.{type(value).__qualname__}")


@dataclass
class ValueReader:
    """Turns plain data back into values. Raises `Damaged`.

    `nodes` are the nodes that an argument may name; `functions` says whether a function may stand
    here (as a field of a module), or only in the target of a node.
    """

    tensors: list[Tensor]
    budget: Budget
    nodes: Mapping[str, fx.Node] = field(default_factory=dict)
    functions: bool = False

    def read(self, data: object, depth: int = 0) -> object:
        """The value that `data` stands for."""
        self.budget.spend(1 + len(data) if isinstance(data, str) else 1)
        kind = type(data)
        if data is None or kind is bool or kind is float:
            return data
        if kind is int or kind is str:
            return self._scalar(data)
        if depth > MAX_DEPTH:
            raise Damaged(f"a value is nested more than {MAX_DEPTH} deep")
        if isinstance(data, list | tuple) and kind in (list, tuple):
            items = [self.read(item, depth + 1) for item in data]
            return items if kind is list else tuple(items)
        if not isinstance(data, dict) or len(data) != 1:
            raise Damaged("a value is written in an unknown way")
        name, content = next(iter(data.items()))
        reader = _READERS.get(name) if isinstance(name, str) else None
        if reader is None:
            raise Damaged("a value is of an unknown kind")
        return reader(self, content, depth)

    def _scalar(self, data: object) -> object:
        try:
            return _scalar(data)
        except NotPlain as error:
            raise Damaged(f"it holds {error}") from error

    def items(self, data: object, depth: int, count: int | None = None) -> list[object]:
        """The values in the list `data`, which must hold `count` of them."""
        if not isinstance(data, list) or (count is not None and len(data) != count):
            raise Damaged("a list has the wrong length")
        return [self.read(item, depth + 1) for item in data]

    def _node(self, data: object, depth: int) -> fx.Node:
        node = self.nodes.get(data) if isinstance(data, str) else None
        if node is None:
            raise Damaged("a node reads a value that no earlier node computes")
        return node

    def _tensor(self, data: object, depth: int) -> Tensor:
        return tensor_at(self.tensors, data)

    def _slice(self, data: object, depth: int) -> slice:
        return slice(*self.items(data, depth, 3))

    def _range(self, data: object, depth: int) -> range:
        return range(*_integers(self.items(data, depth, 3)))

    def _size(self, data: object, depth: int) -> torch.Size:
        return torch.Size(_integers(self.items(data, depth)))

    def _complex(self, data: object, depth: int) -> complex:
        real, imaginary = self.items(data, depth, 2)
        if not isinstance(real, float) or not isinstance(imaginary, float):
            raise Damaged("a complex number is not made of two numbers")
        if not math.isfinite(real) or not math.isfinite(imaginary):
            raise Damaged("a complex number is not finite")
        return complex(real, imaginary)

    def _dict(self, data: object, depth: int) -> dict[object, object]:
        if not isinstance(data, list):
            raise Damaged("a table is not a list of pairs")
        found: dict[object, object] = {}
        for pair in data:
            key, value = self.items(pair, depth + 1, 2)
            if not _is_plain_key(key):
                raise Damaged("a key of a table is no plain value")
            found[key] = value
        return found

    def _ordered_dict(self, data: object, depth: int) -> OrderedDict[object, object]:
        return OrderedDict(self._dict(data, depth))

    def _set(self, data: object, depth: int) -> set[object]:
        found = self.items(data, depth)
        if not all(isinstance(item, str | int | float | bool | None) for item in found):
            raise Damaged("an item of a set is no plain value")
        return set(found)

    def _ellipsis(self, data: object, depth: int) -> object:
        return Ellipsis

    def _device(self, data: object, depth: int) -> torch.device:
        if not isinstance(data, str) or not _DEVICE.match(data):
            raise Damaged("a device has no proper name")
        return torch.device(data)

    def _function(self, data: object, depth: int) -> object:
        if not self.functions:
            raise Damaged("a function stands where a value should")
        return function_of(data)

    def _enum(self, data: object, depth: int) -> enum.Enum:
        name, _, member = str(data).partition(".")
        found = _ENUMS[name].__members__.get(member) if name in _ENUMS else None
        if found is None:
            raise Damaged("a choice is not one of those known")
        return found


def tensor_at(tensors: list[Tensor], index: object) -> Tensor:
    """The tensor with that index. Raises `Damaged`."""
    if type(index) is not int or not 0 <= index < len(tensors):
        raise Damaged("a tensor is named that is not in the file")
    return tensors[index]


def _integers(values: list[object]) -> list[int]:
    found = [value for value in values if type(value) is int]
    if len(found) != len(values):
        raise Damaged("a size is not a whole number")
    return found


def _named_constant(kind: type) -> Callable[[ValueReader, object, int], object]:
    def read(reader: ValueReader, data: object, depth: int) -> object:
        found = getattr(torch, data, None) if isinstance(data, str) else None
        if not isinstance(found, kind):
            raise Damaged(f"there is no {kind.__name__} of that name")
        return found

    return read


_READERS: Mapping[str, Callable[[ValueReader, object, int], object]] = {
    "node": ValueReader._node,
    "tensor": ValueReader._tensor,
    "slice": ValueReader._slice,
    "range": ValueReader._range,
    "size": ValueReader._size,
    "complex": ValueReader._complex,
    "dict": ValueReader._dict,
    "ordered_dict": ValueReader._ordered_dict,
    "set": ValueReader._set,
    "ellipsis": ValueReader._ellipsis,
    "device": ValueReader._device,
    "function": ValueReader._function,
    "enum": ValueReader._enum,
    **{name: _named_constant(kind) for kind, name in _NAMED.items()},
}
