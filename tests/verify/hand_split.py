"""Splits written by hand, for testing the checker: they use nothing of the rewriting framework."""

import copy
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from groupfx.state import Rows
from groupfx.verify import Region, SiteVerdict, compare_regions


@dataclass
class Pair:
    """A site before and after: `left` is a conv (and a norm), `right` its branches."""

    left: Region
    right: Region
    rows: dict[str, Rows] | None
    shape: tuple[int, ...]

    def compare(self, **options: Any) -> SiteVerdict:
        return compare_regions(
            self.left, self.right, [self.shape], **{"rows": self.rows, **options}
        )

    def node(self, name: str) -> fx.Node:
        """The node of `right` that calls the module of this name, or is called so."""
        nodes = self.right.module.graph.nodes
        return next(n for n in nodes if name in (n.target, n.name))

    def branch(self, name: str) -> Any:
        """The module of this path in `right`."""
        return self.right.module.get_submodule(name)

    def put(self, name: str, module: nn.Module) -> None:
        """Another module at this path of `right`."""
        self.right.module.set_submodule(name, module)

    def recompile(self) -> None:
        self.right.module.graph.lint()
        self.right.module.recompile()


def chain(modules: Mapping[str, nn.Module]) -> Region:
    """A graph that calls the modules one after the other."""
    root, graph = nn.Module(), fx.Graph()
    start = node = graph.placeholder("x")
    for name, module in modules.items():
        root.add_module(name, module)
        node = graph.call_module(name, (node,))
    graph.output(node)
    return Region(fx.GraphModule(root, graph), (start,), node)


@dataclass
class _Branches:
    convs: list[nn.Module] = field(default_factory=list)
    norms: list[nn.Module] = field(default_factory=list)
    rows: dict[str, Rows] = field(default_factory=dict)


def split(conv: nn.Module, norm: nn.Module | None = None, shape: Sequence[int] = ()) -> Pair:
    """Slices, one ungrouped convolution for each group (and its slice of the norm), a concat."""
    size = tuple(shape) or (2, conv.in_channels, *[9] * len(conv.kernel_size))
    modules = {"conv": conv} | ({} if norm is None else {"bn": norm})
    left = chain(modules)
    branches = _branches(conv, norm)
    root, graph = nn.Module(), fx.Graph()
    root.conv, root.bn = nn.ModuleList(branches.convs), nn.ModuleList(branches.norms)
    start = graph.placeholder("x")
    width = conv.in_channels // conv.groups
    parts = []
    for group in range(conv.groups):
        channels = slice(group * width, (group + 1) * width, None)
        node = graph.call_function(operator.getitem, (start, (slice(None), channels)))
        node = graph.call_module(f"conv.{group}", (node,))
        if norm is not None:
            node = graph.call_module(f"bn.{group}", (node,))
        parts.append(node)
    end = graph.call_function(torch.cat, (parts,), {"dim": 1})
    graph.output(end)
    module = fx.GraphModule(root, graph)
    return Pair(left, Region(module, (start,), end), branches.rows, size)


def _branches(conv: nn.Module, norm: nn.Module | None) -> _Branches:
    made = _Branches()
    outputs = conv.out_channels // conv.groups
    rows = conv.weight.shape[0] // conv.groups
    for group in range(conv.groups):
        branch = _branch(conv, outputs)
        made.convs.append(branch)
        _take(branch, conv, "weight", group * rows, rows, f"conv.{group}", "conv", made.rows)
        if conv.bias is not None:
            _take(
                branch, conv, "bias", group * outputs, outputs, f"conv.{group}", "conv", made.rows
            )
        if norm is None:
            continue
        part = copy.deepcopy(norm)
        made.norms.append(part)
        for name, value in (*norm._parameters.items(), *norm._buffers.items()):
            if value is None:
                continue
            if value.dim() == 0:
                made.rows[f"bn.{group}.{name}"] = Rows(f"bn.{name}")
                continue
            _take(part, norm, name, group * outputs, outputs, f"bn.{group}", "bn", made.rows)
        part.num_features = outputs
    return made


def _branch(conv: nn.Module, outputs: int) -> nn.Module:
    options = {
        "stride": conv.stride,
        "padding": conv.padding,
        "dilation": conv.dilation,
        "bias": conv.bias is not None,
        "padding_mode": conv.padding_mode,
        "dtype": conv.weight.dtype,
    }
    if conv.transposed:
        options["output_padding"] = conv.output_padding
    made = type(conv)(conv.in_channels // conv.groups, outputs, conv.kernel_size, **options)
    return made.train(conv.training)


def _take(
    part: nn.Module,
    whole: nn.Module,
    name: str,
    start: int,
    count: int,
    new: str,
    old: str,
    rows: dict[str, Rows],
) -> None:
    tensor = getattr(whole, name)
    value = tensor.detach()[start : start + count].clone()
    if isinstance(tensor, nn.Parameter):
        setattr(part, name, nn.Parameter(value, requires_grad=tensor.requires_grad))
    else:
        setattr(part, name, value)
    rows[f"{new}.{name}"] = Rows(f"{old}.{name}", start, start + count)
