"""The part of a graph that executes one site, read by the plan of that site.

What the plan says is followed from the site's value back to what goes in:

    y = output_gather(cat([norm_k(conv_k(input_gather(x)[:, part_k])) for each piece k, constants]))

A piece that was itself split stands as a concatenation in the concatenation, and reads a slice of a
slice. Whatever differs from the plan, or is used by anything else in the graph, is no such region.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from ..convs.norms import is_batchnorm
from ..errors import UsageError
from ..nn import ChannelGather, ChannelShuffle, ChannelTranspose
from ..plan.branches import Branches
from ..plan.channels import Slice, shuffle_permutation
from ..plan.forms import FormPlan
from ..plan.gathers import GatherPlan
from ..plan.site_plan import SitePlan

Function = Callable[..., Tensor]

_CATS = (torch.cat, torch.ops.aten.cat.default)
_TRANSPOSED = frozenset[Any](getattr(torch, f"conv_transpose{dims}d") for dims in (1, 2, 3))
_FUNCTIONS = _TRANSPOSED | {getattr(torch, f"conv{dims}d") for dims in (1, 2, 3)}


class UnfitError(Exception):
    """What in a graph is not as a plan says."""


@dataclass(frozen=True)
class RowCall:
    """How pieces are called that are functions of rows of one weight, and of one bias."""

    function: Function
    options: Mapping[str, Any]
    pad: Any
    weight: fx.Node
    bias: fx.Node | None

    @property
    def transposed(self) -> bool:
        """Whether the rows of the weight are those of the input."""
        return self.function in _TRANSPOSED


@dataclass(frozen=True)
class Region:
    """One call of a site: from `source`, what it reads, to `end`, what it gives.

    `extra` are further arguments of its convolutions. `inner` are all nodes of it.
    """

    plan: SitePlan
    source: fx.Node
    end: fx.Node
    extra: tuple[Any, ...]
    rows: RowCall | None
    inner: frozenset[fx.Node]


def read_region(plan: SitePlan, end: fx.Node, root: fx.GraphModule) -> Region:
    """The region of `plan` that ends in `end`. Raises `UnfitError` where the graph is another."""
    try:
        pieces = plan.pieces()
    except UsageError as error:
        raise UnfitError(str(error)) from error
    if isinstance(plan.form, FormPlan):
        _require_sense(plan, plan.form)
    return _Reader(plan, root).read(end, [piece.inputs for piece in pieces])


def _require_sense(plan: SitePlan, form: FormPlan) -> None:
    """Every output comes from its own row, and every row reads the inputs that it says."""
    result = [*(row for conv in form.convs for row in conv.rows), *form.constants]
    outputs, inputs = form.output_gather.indices, form.input_gather.indices
    right = len(plan.convs) == len(form.convs)
    right = right and len(outputs) == plan.out_channels and max(outputs) < len(result)
    right = right and [result[place] for place in outputs] == list(range(plan.out_channels))
    right = (
        right and max(inputs) < plan.in_channels and bool(form.constants) == bool(plan.constants)
    )
    for conv in form.convs:
        read = inputs[conv.inputs.start : conv.inputs.stop]
        said = [column for columns in conv.columns for column in columns]
        right = right and len(read) == len(said) and len(conv.rows) % len(conv.columns) == 0
        right = right and all(c in (r, None) for r, c in zip(read, said, strict=False))
    if not right:
        raise UnfitError("its numbers contradict each other")


class _Reader:
    """Follows a plan backwards; `inner` are the nodes that were met."""

    def __init__(self, plan: SitePlan, root: fx.GraphModule) -> None:
        self.plan, self.root = plan, root
        self.inner: set[fx.Node] = set()

    def read(self, end: fx.Node, parts: Sequence[Slice]) -> Region:
        plan, form = self.plan, self.plan.form
        width, value = plan.in_channels, end
        if isinstance(form, FormPlan):
            width = len(form.input_gather.indices)
            self._require_gather(plan.input_gather, form.input_gather, plan.in_channels)
            self._require_gather(plan.output_gather, form.output_gather, form.result_channels)
            value = self._before(end, plan.output_gather)
        count = len(parts) + (plan.constants is not None)
        results = [value] if count == 1 else list(self._concatenated(value))
        if len(results) != count:
            raise UnfitError(f"{len(results)} values are concatenated, not {count}")
        if len(plan.norms) not in (0, count):
            raise UnfitError(f"{len(plan.norms)} BatchNorms are not one for each of {count} pieces")
        if plan.norms:
            results = [self._before(v, path) for v, path in zip(results, plan.norms, strict=True)]
        if plan.convs:
            rows, calls = None, self._module_calls(results[: len(parts)])
        else:
            rows, calls = self._row_calls(results[: len(parts)])
        if (
            plan.constants is not None
            and self._before(results[-1], plan.constants) not in self.inner
        ):
            raise UnfitError(f"{plan.constants} is called on another value")
        if any(args[1:] != calls[0][1:] for args in calls):
            raise UnfitError("its convolutions are called with other arguments")
        source = self._source([args[0] for args in calls], parts, Slice(0, width))
        source = self._before(source, plan.input_gather)
        outside = [u for n in self.inner if n is not end for u in n.users if u not in self.inner]
        if outside:
            raise UnfitError(f"{outside[0].name} reads a value from inside it")
        return Region(plan, source, end, tuple(calls[0][1:]), rows, frozenset(self.inner))

    def _before(self, node: fx.Node, path: str | None) -> fx.Node:
        """What goes into the module at `path`, which `node` must call; `node` itself without it."""
        if path is None:
            return node
        called = node.op == "call_module" and node.target == path
        if (
            not called
            or len(node.args) != 1
            or node.kwargs
            or not isinstance(node.args[0], fx.Node)
        ):
            raise UnfitError(f"{node.name} stands where {path} was called")
        self.inner.add(node)
        return node.args[0]

    def _require_gather(self, path: str | None, gather: GatherPlan, width: int) -> None:
        indices = gather.indices
        found = tuple(range(width)) if path is None else gathered(self._module(path), width)
        if found != indices:
            raise UnfitError(f"{path or 'no gather'} does not read the channels in its order")

    def _module(self, path: str) -> nn.Module:
        try:
            return self.root.get_submodule(path)
        except AttributeError as error:
            raise UnfitError(f"there is no {path}") from error

    def _concatenated(self, node: fx.Node) -> Sequence[fx.Node]:
        values = cat_values(node, self.root)
        if values is None:
            raise UnfitError(f"{node.name} is no concatenation of channels")
        self.inner.add(node)
        nested = (
            self._concatenated(v) if cat_values(v, self.root) is not None else [v] for v in values
        )
        return [value for part in nested for value in part]

    def _module_calls(self, results: Sequence[fx.Node]) -> list[tuple[Any, ...]]:
        if len(results) != len(self.plan.convs):
            raise UnfitError(f"it has {len(self.plan.convs)} convolutions, not {len(results)}")
        for node, path in zip(results, self.plan.convs, strict=True):
            if node.op != "call_module" or node.target != path or node.kwargs or not node.args:
                raise UnfitError(f"{node.name} stands where {path} was called")
            self.inner.add(node)
        return [node.args for node in results]

    def _row_calls(self, results: Sequence[fx.Node]) -> tuple[RowCall, list[tuple[Any, ...]]]:
        branches = [read_branch(node) for node in results]
        call, plan, form = branches[0].call, self.plan, self.plan.form
        if any(branch.call != call for branch in branches):
            raise UnfitError("its convolutions are not called alike")
        groups = tuple(branch.groups for branch in branches)
        if not isinstance(form, Branches) or groups != form.groups:
            raise UnfitError("its convolutions have other groups")
        outputs = form.slices(plan.out_channels)
        rows = form.slices(plan.in_channels) if call.transposed else outputs
        for branch, part, bias in zip(branches, rows, outputs, strict=True):
            if branch.rows != part or branch.bias_rows not in (None, bias):
                raise UnfitError("its rows of the weight are not those of its groups")
            self.inner.update(branch.nodes)
        return call, [(branch.input,) for branch in branches]

    def _source(self, values: Sequence[fx.Node], parts: Sequence[Slice], whole: Slice) -> fx.Node:
        """The one value of which `values` are these parts."""
        chains = [dict(_slices(value)) for value in values]
        for base in chains[0]:
            shared = all(base in chain for chain in chains)
            if shared and [chain[base] or whole for chain in chains] == list(parts):
                for chain in chains:
                    nodes = list(chain)
                    self.inner.update(nodes[: nodes.index(base)])
                return base
        raise UnfitError("its convolutions do not read the channels that they did")


@dataclass(frozen=True)
class Branch:
    """A convolution on rows of a weight: what it reads, its rows, and the nodes that it is."""

    call: RowCall
    input: fx.Node
    groups: int
    rows: Slice
    bias_rows: Slice | None
    nodes: tuple[fx.Node, ...]


def read_branch(node: fx.Node) -> Branch:
    """The branch that ends in `node`. Raises `UnfitError` where that is something else."""
    known = node.op == "call_function" and node.target in _FUNCTIONS and len(node.args) == 3
    data, weight, bias = node.args if known else (None, None, None)
    nodes, pad = [node], None
    if isinstance(data, fx.Node) and data.target is F.pad and _pads_space(data, node):
        nodes.append(data)
        data, *pad = data.args
    held, offset = _rows(weight), _rows(bias)
    options = dict(node.kwargs)
    groups: Any = options.pop("groups", 1)
    readable = isinstance(data, fx.Node) and held is not None and isinstance(groups, int)
    if not readable or (offset is None and bias is not None):
        raise UnfitError(f"{node.name} is no convolution on rows of a weight")
    assert isinstance(data, fx.Node)
    assert held is not None
    bias_node, bias_rows = offset or (None, None)
    nodes += [part for part in (weight, bias) if isinstance(part, fx.Node)]
    function: Any = node.target
    call = RowCall(function, options, pad, held[0], bias_node)
    return Branch(call, data, groups, held[1], bias_rows, tuple(nodes))


def _rows(node: Any) -> tuple[fx.Node, Slice] | None:
    """The tensor and the rows of `w[start:stop]`."""
    if not isinstance(node, fx.Node) or node.target is not operator.getitem:
        return None
    source, index = node.args
    part = _part(index)
    return None if part is None or not isinstance(source, fx.Node) else (source, part)


def _slices(node: fx.Node) -> Sequence[tuple[fx.Node, Slice | None]]:
    """`node`, what it is a slice of, and so on; and which channels of each it is, None for all."""
    found: list[tuple[fx.Node, Slice | None]] = [(node, None)]
    while (step := sliced(node)) is not None:
        node, part = step
        inside = found[-1][1]
        if inside is not None:
            part = Slice(part.start + inside.start, part.start + inside.stop)
        found.append((node, part))
    return found


def cat_values(node: fx.Node, root: nn.Module) -> list[fx.Node] | None:
    """The values that `node` concatenates along the channels, None if it does something else.

    Channels are axis 1. Counted from the end, as an output of PLiNIO's form has them, the number of
    axes is told by the convolution that gives the first value.
    """
    if node.op != "call_function" or node.target not in _CATS:
        return None
    arguments = dict(zip(("tensors", "dim"), node.args, strict=False)) | dict(node.kwargs)
    values = arguments.get("tensors")
    if not isinstance(values, (list, tuple)):
        return None
    found = [value for value in values if isinstance(value, fx.Node)]
    if len(found) < len(values) or not found:
        return None
    axes = spatial_axes(found[0], root)
    from_the_end = None if axes is None else -1 - axes
    return found if arguments.get("dim", 0) in (1, from_the_end) else None


def spatial_axes(node: fx.Node, root: nn.Module) -> int | None:
    """Axes besides batch and channels of what a convolution gives; None of any other value.

    BatchNorms and concatenations may lie behind the convolution.
    """
    while node.all_input_nodes and (is_batchnorm(node, root) or node.target in _CATS):
        node = node.all_input_nodes[0]
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return len(module.kernel_size) if isinstance(module, _ConvNd) else None
    return _function_axes(node) if node.target in _FUNCTIONS else None


def sliced(node: fx.Node) -> tuple[fx.Node, Slice] | None:
    """The tensor and the channels of `x[:, start:stop]`, None for any other node."""
    if node.op != "call_function" or node.target is not operator.getitem:
        return None
    source, index = node.args
    if not isinstance(index, tuple) or len(index) != 2 or index[0] != slice(None):
        return None
    part = _part(index[1])
    return None if part is None or not isinstance(source, fx.Node) else (source, part)


def _part(index: Any) -> Slice | None:
    if not isinstance(index, slice) or index.step is not None:
        return None
    start, stop = index.start, index.stop
    known = isinstance(start, int) and isinstance(stop, int) and 0 <= start < stop
    return Slice(start, stop) if known else None


def _pads_space(pad: fx.Node, conv: fx.Node) -> bool:
    """Whether the edges are those of the spatial axes, in a mode without further numbers."""
    if len(pad.args) != 3 or pad.kwargs or not isinstance(pad.args[1], (list, tuple)):
        return False
    return len(pad.args[1]) == 2 * _function_axes(conv)


def _function_axes(conv: fx.Node) -> int:
    """Spatial axes of a functional convolution: `conv2d` has two."""
    return int(str(getattr(conv.target, "__name__", ""))[-2])


def gathered(module: nn.Module, width: int) -> tuple[int, ...]:
    """What a gather module reads of `width` channels: `y = x[:, indices]`."""
    try:
        if isinstance(module, ChannelGather):
            return module.channels
        if isinstance(module, ChannelShuffle):
            return shuffle_permutation(width, module.groups)
        if isinstance(module, ChannelTranspose):
            order = np.arange(width).reshape(module.shape).transpose(module.axes).ravel()
            return tuple(order.tolist())
    except (UsageError, ValueError) as error:
        raise UnfitError(f"a gather does not take {width} channels") from error
    raise UnfitError(f"{type(module).__name__} is no gather")
