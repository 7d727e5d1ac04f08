"""Sites of one kind: their channels, how many and how they are wired, are all that they differ in.

Where either region is made of convolutions with one geometry, of equal BatchNorms, and of what
cuts, joins and orders channels, where each way from the input to the output leads through the same
layers, a convolution the first of them, and where each tensor is rows of the original, each of
which has one place, the region is

    y[n, o, i] = norm_o(sum over c and t of A[o, c, t] x[n, c, s i + d t - p] + b[o])

for every sample n and place i, with the taps t, stride s, dilation d and padding p of the kind. (A
transposed convolution has i and s i + d t - p in each other's places.) A and b are polynomials of
the tensors, and no two sides of a kind can differ in anything else: not by the batch, a width, the
dtype or a mode, for no layer asks for one; not in gradients or statistics, which follow from the
layers; not in what comes of an infinity, for y sums the same products. A and b are the same
polynomials where the outputs are, for independent numbers at one size where every tap meets data at
some place. So of the sites of one kind one is compared in all respects, and the others in whole
numbers at one size.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..convs.spec import BATCHNORMS, CONV_TYPES
from ..nn.channel_gather import ChannelGather
from ..nn.channel_shuffle import ChannelShuffle
from ..state import Entry, Rows
from .region import RegionState
from .repeated import UnknownError, fields_of

_WIDTHS = frozenset(("in_channels", "out_channels", "groups", "num_features"))
_ORDERS = frozenset((ChannelGather, ChannelShuffle, nn.Identity))

# Where a function of torch takes the axis, and its keyword.
_AXIS: Mapping[Any, int] = {
    torch.cat: 1,
    torch.index_select: 1,
    torch.narrow: 1,
    torch.chunk: 2,
    torch.split: 2,
}

_Layers = tuple[Hashable, ...]
"""The layers between the input and a node, without their numbers of channels."""


def kind_of(
    original: RegionState,
    rewritten: RegionState,
    examples: Sequence[Any],
    rows: Mapping[str, Entry],
    native: Collection[str],
) -> Hashable | None:
    """What sites have in common that differ in their channels alone; None where more may differ.

    The arguments are those of `compare_regions`.
    """
    sides = (original, rewritten)
    if len(examples) != 1:  # what is made of tensors of the model alone has none
        return None
    (example,) = examples
    if type(example) is not tuple or not _each_row_once(original, rewritten, rows):
        return None
    if any(name in native for name in (*original.originals, *rewritten.originals)):
        return None
    try:
        layers = [_layers(state, len(example)) for state in sides]
    except UnknownError:
        return None
    if layers[0] != layers[1]:
        return None
    held = [frozenset(map(_held, state.originals.values())) for state in sides]
    steps = [frozenset(_step(node, state) for node in state.nodes) for state in sides]
    return layers[0], *held, *steps


def _each_row_once(
    original: RegionState, rewritten: RegionState, rows: Mapping[str, Entry]
) -> bool:
    """Whether each row of the original is held once: of two, train mode would update both.

    Padding is no row of it: whole numbers do not see what is multiplied with zeros.
    """
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for name, tensor in rewritten.originals.items():
        entry = rows.get(name, Rows(name))
        if entry.key not in original.originals:
            if not _is_index(tensor):
                return False
        elif not isinstance(entry, Rows):
            return False
        elif tensor.dim():
            places[entry.key].append((entry.start, entry.start + len(tensor)))
    if any(len({*map(id, s.originals.values())}) < len(s.originals) for s in (original, rewritten)):
        return False
    return all(
        [0, *stops] == [*starts, len(tensor)]
        for key, tensor in original.originals.items()
        if tensor.dim()
        for starts, stops in (zip(*sorted(places[key]), strict=True) if places[key] else ((), ()),)
    )


def _layers(state: RegionState, rank: int) -> _Layers:
    """The layers from the input to the output of a region, the same on every way.

    Raises UnknownError where ways differ, or lead through anything else.
    """
    (start,) = state.region.inputs
    found: dict[fx.Node, _Layers] = {start: ()}
    called: set[int] = set()
    for node in state.nodes:
        if node.op == "get_attr":
            continue
        given = [source for source in node.all_input_nodes if source in found]
        layers = found[given[0]] if given else ()
        if not given or any(found[source] != layers for source in given):
            raise UnknownError
        if node.op == "call_module":
            module = state.parts[str(node.target)]
            if id(module) in called or len(node.args) != 1 or node.kwargs:
                raise UnknownError
            called.add(id(module))
            layers = (*layers, *_layer(module, rank, first=not layers))
        elif not _keeps_places(node) or not all(
            source in found or _is_index(state.parts[str(source.target)])
            for source in node.all_input_nodes
        ):
            raise UnknownError
        found[node] = layers
    if not found[state.region.output]:
        raise UnknownError
    return found[state.region.output]


def _layer(module: nn.Module, rank: int, *, first: bool) -> _Layers:
    """What a module does at each place, whatever its channels; nothing if it only orders those."""
    kind, fields = type(module), fields_of(module)
    if kind in _ORDERS:
        return ()
    dims = CONV_TYPES[kind][0] if first and kind in CONV_TYPES else None
    dims = BATCHNORMS.get(kind) if not first else dims
    if dims is None or dims + 2 != rank or getattr(module, "padding_mode", "zeros") != "zeros":
        raise UnknownError
    weight = module._parameters.get("weight")
    taps = tuple(weight.shape[2:]) if first and weight is not None else ()
    named = (*module._parameters.items(), *module._buffers.items())
    held = tuple(name for name, tensor in named if tensor is not None)
    return ((kind, taps, held, tuple(each for each in fields if each[0] not in _WIDTHS)),)


def _keeps_places(node: fx.Node) -> bool:
    """Whether a function does nothing but cut, join or order channels."""
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        source, index = node.args
        if type(index) is int and isinstance(source, fx.Node):
            return source.target in (torch.chunk, torch.split)
        return isinstance(index, tuple) and len(index) > 1 and _is_of_channels(*index)
    place = _AXIS.get(node.target)
    if place is None or not set(node.kwargs) <= {"dim"}:
        return False
    axis = node.args[place] if place < len(node.args) else node.kwargs.get("dim")
    return type(axis) is int and axis == 1


def _is_of_channels(batch: Any, channels: Any, *places: Any) -> bool:
    whole = all(type(each) is slice and each == slice(None) for each in (batch, *places))
    return whole and isinstance(channels, slice | list | fx.Node)


def _is_index(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.int64, torch.int32)


def _held(tensor: Tensor) -> Hashable:
    return type(tensor), tensor.dtype, tensor.dim(), tensor.is_contiguous()


def _step(node: fx.Node, state: RegionState) -> Hashable:
    called: Any = node.target if node.op == "call_function" else node.op
    if node.op == "call_module":
        called = type(state.parts[str(node.target)])
    return called  # type: ignore[no-any-return]
