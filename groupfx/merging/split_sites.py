"""Put split sites together again, in a copy that is only there to be exported.

Exporters take tens of milliseconds for each node of a graph, so a convolution with 1,024 branches
is exported as the one convolution that it was, and split in the ONNX graph. What a split looks like
is read off the graph itself, so that it does not matter whether the model was rewritten just now,
read from a file, or swapped into a user's own class:

    cat([norm_k(conv_k(x[:, k*n : (k+1)*n])) for k in range(g)], dim=1)
    becomes  norm(conv(x)),  groups = g,  every tensor the concatenation of the branches' own

Whatever does not have this form to the letter stays as it is.
"""

from __future__ import annotations

import operator
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ..convs.names import joined
from ..convs.spec import rebuild, spec_of_module
from ..plan.channels import Slice
from .graph import Call, Gathered, PlannedSite, place_of
from .norms import Norms, calls_below, changed, numbered_home, peel_norms, stacked

_CATS = (torch.cat, torch.ops.aten.cat.default)


Shapes = Mapping[fx.Node, Sequence[int]]


@dataclass(frozen=True)
class _Branch:
    """One branch: a slice and a convolution module. `extra` are further arguments of its call."""

    slice: fx.Node
    part: Slice
    conv: str
    extra: tuple[Any, ...]

    @property
    def source(self) -> fx.Node:
        """What is sliced."""
        return self.slice.all_input_nodes[0]


@dataclass(frozen=True)
class _Region:
    """A concatenation of branches; `home` holds the convolutions."""

    cat: fx.Node
    home: str
    norms: Norms | None
    branches: tuple[_Branch, ...]


def unsplit(root: fx.GraphModule, path: str, shapes: Shapes) -> Gathered:
    """The split sites of `root`, which lies at `path` in its model.

    `shapes` has the shape of each value that is sliced: branches must read all of its channels.
    """
    read = (_read(node, root) for node in root.graph.nodes)
    regions = [region for region in read if region is not None and _reads_all(region, shapes)]
    found = Gathered()
    for home, calls in _by_home(regions).items():
        merged = _merged_conv(root, calls) if _all_calls(root, home, calls) else None
        norms = _merged_norms(root, calls)
        if merged is None or norms is None:
            continue
        place = place_of(home)
        found.modules |= {place: merged, **norms}
        found.calls += [_call(region, place) for region in calls]
        # A convolution that is the whole model has no path: its weight's name stands for it.
        name = joined(path, home).removesuffix(".weight") or "weight"
        found.planned.append(PlannedSite(joined(path, place), name, len(calls[0].branches)))
    return found


def _reads_all(region: _Region, shapes: Shapes) -> bool:
    first = region.branches[0]
    return covers(first.part, len(region.branches), first.source, 1, shapes)


def covers(part: Slice, count: int, source: fx.Node, axis: int, shapes: Shapes) -> bool:
    """Whether `count` slices as long as `part` make up the whole `axis` of `source`."""
    return tuple(shapes.get(source, ()))[axis : axis + 1] == (count * len(part),)


def _call(region: _Region, place: str) -> Call:
    first = region.branches[0]
    norm = None if region.norms is None else region.norms.home
    return Call(region.cat, place, (first.source, *first.extra), norm)


def _by_home(regions: Sequence[_Region]) -> Mapping[str, list[_Region]]:
    homes: dict[str, list[_Region]] = defaultdict(list)
    for region in regions:
        homes[region.home].append(region)
    return homes


def _read(node: fx.Node, root: fx.GraphModule) -> _Region | None:
    values = cat_values(node)
    if values is None or len(values) < 2:
        return None
    peeled = peel_norms(values, root)
    if peeled is None:
        return None
    convs, norms = peeled
    branches = [branch for conv in convs if (branch := _branch(conv, root)) is not None]
    if len(branches) != len(convs):
        return None
    home, first = numbered_home([branch.conv for branch in branches]), branches[0]
    alike = all(b.source is first.source and b.extra == first.extra for b in branches)
    if home is None or not alike or not equal_parts([branch.part for branch in branches]):
        return None
    return _Region(node, home, norms, tuple(branches))


def cat_values(node: fx.Node) -> list[fx.Node] | None:
    """The values that `node` concatenates along the channels, None if it does something else."""
    if node.op != "call_function" or node.target not in _CATS:
        return None
    arguments = dict(zip(("tensors", "dim"), node.args, strict=False)) | dict(node.kwargs)
    values = arguments.get("tensors")
    if arguments.get("dim", 0) != 1 or not isinstance(values, (list, tuple)):
        return None
    found = [value for value in values if isinstance(value, fx.Node)]
    return found if len(found) == len(values) else None


def sliced(node: fx.Node) -> tuple[fx.Node, Slice] | None:
    """The tensor and the channels of `x[:, start:stop]`, None for any other node."""
    if node.op != "call_function" or node.target is not operator.getitem:
        return None
    source, index = node.args
    if not isinstance(index, tuple) or len(index) != 2 or index[0] != slice(None):
        return None
    part = index[1]
    if not isinstance(part, slice) or part.step is not None or not isinstance(source, fx.Node):
        return None
    if not isinstance(part.start, int) or not isinstance(part.stop, int):
        return None
    return source, Slice(part.start, part.stop)


def _branch(conv: fx.Node, root: fx.GraphModule) -> _Branch | None:
    if conv.op != "call_module" or conv.kwargs or not conv.args:
        return None
    spec, data = spec_of_module(root.get_submodule(str(conv.target))), conv.args[0]
    if spec is None or not isinstance(data, fx.Node):
        return None
    found = sliced(data)
    if found is None or any(len(node.users) != 1 for node in (data, conv)):
        return None
    _, part = found
    if spec.groups != 1 or len(part) != spec.in_channels:
        return None
    return _Branch(data, part, str(conv.target), tuple(conv.args[1:]))


def equal_parts(parts: Sequence[Slice]) -> bool:
    """Whether slices of one size lie one after another, from 0 on."""
    size = len(parts[0])
    return all(
        part == Slice(position * size, (position + 1) * size) for position, part in enumerate(parts)
    )


def _all_calls(root: fx.GraphModule, home: str, calls: Sequence[_Region]) -> bool:
    """Whether the branches, and their BatchNorms, are called by these regions alone, and alike."""
    count = len(calls[0].branches)
    norms = Counter(call.norms.home for call in calls if call.norms is not None)
    expected = {home: len(calls), **norms}
    return all(len(call.branches) == count for call in calls) and all(
        calls_below(root, prefix) == number * count for prefix, number in expected.items()
    )


def _merged_conv(root: fx.GraphModule, calls: Sequence[_Region]) -> nn.Module | None:
    modules = [root.get_submodule(branch.conv) for branch in calls[0].branches]
    specs = {spec_of_module(module) for module in modules}
    (spec,) = specs if len(specs) == 1 else (None,)
    if spec is None or any(changed(module) for module in modules):
        return None
    whole = {
        "in_channels": spec.in_channels * len(modules),
        "out_channels": spec.out_channels * len(modules),
        "groups": len(modules),
    }
    return rebuild(modules[0], stacked(modules, ("weight", "bias")), **whole)


def _merged_norms(root: fx.GraphModule, calls: Sequence[_Region]) -> Mapping[str, nn.Module] | None:
    """The BatchNorms of a site put together, by their path; None where they cannot be."""
    merged: dict[str, nn.Module] = {}
    for norms in {call.norms for call in calls if call.norms is not None}:
        whole = norms.merged(root)
        if whole is None:
            return None
        merged[norms.home] = whole
    return merged


def graph_modules(model: nn.Module) -> Iterator[tuple[str, fx.GraphModule]]:
    """Every graph in `model`, itself included, with its path."""
    for path, module in model.named_modules():
        if isinstance(module, fx.GraphModule):
            yield path, module
