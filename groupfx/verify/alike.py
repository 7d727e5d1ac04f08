"""Whether two values are the same to the bit: tensors, and what else a module or a call may hold.

Values are compared by what they are made of, not by `==`: a user's class need not have one, and
`True == 1`. Nothing is copied. What Python cannot look into (a lock, a compiled object) counts as
the same where its class is.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Mapping, Sequence, Set
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from .measures import identical

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Compared by what they say. Two of another class or object are other values.
_PLAIN = (bool, int, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_CONTAINERS = (dict, OrderedDict, list, tuple, set)
_BUILT_IN: Mapping[type, tuple[str, ...]] = {
    slice: ("start", "stop", "step"),
    MethodType: ("__func__", "__self__"),
    functools.partial: ("func", "args", "keywords"),
}
_ATOMS = (type, FunctionType, BuiltinFunctionType, ModuleType)


def same_bits(before: Tensor, after: Tensor) -> bool:
    """Whether two tensors of one shape and dtype hold the same bits: NaN is NaN, and 0 is not -0.

    No copy is made of a dense tensor. Tensors without values (on `meta`) hold the same.
    """
    if before is after or before.is_meta:
        return True
    if before.layout is not torch.strided or before.is_quantized:
        return identical(before, after)
    before, after = before.detach().resolve_conj(), after.detach().resolve_conj()
    if before.element_size() not in _WORDS:  # complex128
        before, after = torch.view_as_real(before), torch.view_as_real(after)
    words = _WORDS[before.element_size()]
    return torch.equal(before.view(words), after.view(words))


def tensor_facts(tensor: Tensor) -> dict[str, object]:
    """What a tensor is besides its values."""
    strided = tensor.layout is torch.strided
    return {
        "class": type(tensor),
        "shape": tuple(tensor.shape),
        "dtype": tensor.dtype,
        "device": tensor.device,
        "strides": tensor.stride() if strided else tensor.layout,
        "requires_grad": tensor.requires_grad and tensor.is_leaf,
    }


class Alike:
    """Compares values of two models whose modules and nodes correspond.

    `nodes` gives for each node of the first graph the one that stands for it; `modules` for the id
    of each module of the first model those that may stand for it. A module that is in neither is
    compared as a value.
    """

    def __init__(
        self,
        nodes: Mapping[fx.Node, fx.Node] | None = None,
        modules: Mapping[int, Sequence[nn.Module]] | None = None,
    ) -> None:
        self._nodes = nodes or {}
        self._modules = modules or {}
        self._seen: set[tuple[int, int]] = set()
        self._kept: list[object] = []

    def __call__(self, before: Any, after: Any) -> bool:
        """Whether `after` is what `before` was. Both must live on while this object is used."""
        if isinstance(before, fx.Node):
            return self._nodes.get(before) is after
        if isinstance(before, nn.Module) and id(before) in self._modules:
            return any(after is module for module in self._modules[id(before)])
        if before is after:
            return True
        return type(before) is type(after) and self._same_value(before, after)

    def _same_value(self, before: Any, after: Any) -> bool:
        """For two objects of one class."""
        if isinstance(before, _PLAIN):
            return bool(before == after)
        if isinstance(before, float | complex):
            return np.array(before).tobytes() == np.array(after).tobytes()
        if isinstance(before, _ATOMS):
            return False
        if type(before).__module__.startswith("torch._dynamo"):
            return True  # made anew for each module, and compared by what that one computes
        if type(before) in _CONTAINERS and not before:
            return not after
        # What is being compared further up, or was, is taken for the same: cycles end here.
        pair = (id(before), id(after))
        if pair in self._seen:
            return True
        self._seen.add(pair)
        try:
            return self._same_parts(before, after)
        except Exception:  # a user's class may raise at anything
            return True

    def _same_parts(self, before: Any, after: Any) -> bool:
        if isinstance(before, Tensor):
            return tensor_facts(before) == tensor_facts(after) and same_bits(before, after)
        if isinstance(before, np.ndarray) and before.dtype != object:
            same = (before.shape, before.dtype) == (after.shape, after.dtype)
            return bool(same and before.tobytes() == after.tobytes())
        if isinstance(before, torch.Generator):
            return torch.equal(before.get_state(), after.get_state())
        if isinstance(before, fx.Graph):
            return bool(before.python_code("self").src == after.python_code("self").src)
        for kind, names in _BUILT_IN.items():
            if isinstance(before, kind):
                return all(self(getattr(before, name), getattr(after, name)) for name in names)
        return self._same_items(before, after) and self._same_state(before, after)

    def _same_items(self, before: Any, after: Any) -> bool:
        """What a container holds; nothing else holds anything."""
        if isinstance(before, Mapping):
            keys = self._all(list(before), list(after))
            return keys and self._all(list(before.values()), list(after.values()))
        if isinstance(before, Set):
            # Objects in a set have no order to go by: those that are not plain are counted.
            plain = {item for item in before if isinstance(item, _PLAIN)}
            return len(before) == len(after) and all(item in after for item in plain)
        return not isinstance(before, tuple | list) or self._all(before, after)

    def _all(self, before: Sequence[Any], after: Sequence[Any]) -> bool:
        return len(before) == len(after) and all(map(self, before, after))

    def _same_state(self, before: object, after: object) -> bool:
        """By what a copy would take over: attributes and slots, or what the class says instead."""
        states = before.__getstate__(), after.__getstate__()
        self._kept.append(states)  # some are made just now, and are gone over by their ids
        return self(*states)
