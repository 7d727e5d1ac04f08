"""Sites that are built alike: what was proved of one holds for the others.

The proof in whole numbers, and what goes with it, replaces every number in a site's tensors, so
that it is a statement on how the two regions are built: which operators run in which order, with
which arguments and fields, on tensors of which shapes, and which rows of the original each of the
rewritten tensors is. `structure_of` writes that down. Two sites with the same structure are the
same question, and it has the same answer; what is left to compare are the tensors themselves.

Only what is known through and through has a structure: torch's own functions, and modules of the
classes that a region runs without care for their dtype, with no hook, no attribute of their own
and nothing replaced. A number that the proof leaves as it is, such as a counter or an index, is a
part of the structure.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..state import Entry, Rows
from .region import RegionState, is_plain

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)
_LIBRARIES = ("torch", "_operator")
_OF_NO_EFFECT = ("training", "_parameters", "_buffers", "_modules")


class UnknownError(Exception):
    """Something whose parts are not known. Internal: nothing is said of such a site."""


def structure_of(
    original: RegionState,
    rewritten: RegionState,
    examples: Sequence[Any],
    rows: Mapping[str, Entry],
    native: Collection[str],
) -> Hashable | None:
    """How the two regions of a site are built; None where something in them is not known.

    Equal for two sites if the names of their nodes, modules and tensors are all that differs, and
    the numbers that a proof replaces. Holds on to no tensor.
    """
    try:
        return (
            tuple(map(_value, examples)),
            tuple(_side(original, native)),
            tuple(_side(rewritten, native)),
            tuple(_places(original, rewritten, rows)),
        )
    except UnknownError:
        return None


def _side(state: RegionState, native: Collection[str]) -> Iterator[Hashable]:
    nodes = {node: at for at, node in enumerate((*state.region.inputs, *state.nodes))}
    modules: dict[int, int] = {}
    tensors: dict[int, int] = {}
    for tensor in state.originals.values():
        tensors.setdefault(id(tensor), len(tensors))
    for node in state.nodes:
        arguments = (_value(node.args, nodes), _value(node.kwargs, nodes))
        part: Any = None if node.op == "call_function" else state.parts.get(str(node.target))
        if isinstance(part, Tensor) and node.op == "get_attr":
            called: Hashable = tensors[id(part)]
        elif isinstance(part, nn.Module) and node.op == "call_module":
            number = modules.setdefault(id(part), len(modules))
            called = (number, _module(part, tensors))
        else:
            called = _function(node)
        yield node.op, called, arguments
    yield nodes[state.region.output]
    for name, tensor in state.originals.items():
        last = name.rpartition(".")[2]
        yield last, tensors[id(tensor)], name in native, _tensor(tensor, name in native)


def _function(node: fx.Node) -> Hashable:
    module = getattr(node.target, "__module__", None) or ""
    if node.op != "call_function" or module.split(".")[0] not in _LIBRARIES:
        raise UnknownError
    return node.target


def _module(module: nn.Module, tensors: Mapping[int, int]) -> Hashable:
    held = tuple(
        (name, None if tensor is None else tensors[id(tensor)])
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
    )
    return type(module), fields_of(module), held


def fields_of(module: nn.Module) -> tuple[tuple[str, Hashable], ...]:
    """What a module is besides its class, its mode and its tensors.

    Raises UnknownError for one of another class than torch's and ours, and for one with hooks.
    """
    if not is_plain(module) or module._modules:
        raise UnknownError
    fields = []
    for key, value in vars(module).items():
        if "hook" in key:
            if value:
                raise UnknownError
        elif key not in _OF_NO_EFFECT:
            fields.append((key, _value(value)))
    return tuple(fields)


def _tensor(tensor: Tensor, native: bool) -> Hashable:
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided:
        raise UnknownError
    free = not native and (tensor.is_floating_point() or tensor.is_complex())
    kept = None if free else _bytes(tensor)
    return type(tensor), tuple(tensor.shape), tensor.stride(), tensor.dtype, kept


def _bytes(tensor: Tensor) -> bytes:
    if tensor.is_meta:
        return b""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _places(
    original: RegionState, rewritten: RegionState, rows: Mapping[str, Entry]
) -> Iterator[Hashable]:
    """Which rows of which tensor of the original each of the rewritten ones is."""
    names = {name: at for at, name in enumerate(original.originals)}
    for name in rewritten.originals:
        entry = rows.get(name, Rows(name))
        if not isinstance(entry, Rows) or entry.key not in names:
            raise UnknownError
        yield names[entry.key], entry.start, entry.stop


def _value(value: Any, nodes: Mapping[fx.Node, int] | None = None) -> Hashable:
    """An argument, a field or an example, told from every other one."""
    kind = type(value)
    if kind in _PLAIN:
        return kind, repr(value) if kind is float else value
    if kind is fx.Node and nodes is not None:
        return "node", nodes[value]
    if kind is tuple and all(type(item) is int for item in value):
        return "sizes", value
    if isinstance(value, slice):
        return "slice", _value((value.start, value.stop, value.step), nodes)
    if isinstance(value, tuple | list):
        items = "tuple" if isinstance(value, tuple) else "list"
        return items, tuple(_value(item, nodes) for item in value)
    if isinstance(value, Mapping):
        return "dict", tuple((str(key), _value(item, nodes)) for key, item in value.items())
    if isinstance(value, set) and not value:
        return "set"
    raise UnknownError
