"""The sites of a quantised file, each with what the float network computes there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...graph.conv_nodes import CONVS, WHOLE, conv_nodes
from ...graph.metadata import mark_of
from ...quantised.convs import QuantisedConv, quantised_conv
from ...quantised.misfits import misfit
from ..onnx_sites import some_names
from ..site_functions import SiteFunction
from .dynamic import DynamicEnd, dynamic_end
from .rows import Rows, branch, joined, rows_of

_ADDED = "_quant"
"""What ONNX Runtime's quantiser puts behind the name of an operator on whole numbers."""

_BEHIND = frozenset({"BatchNormalization", "Clip", "Relu"})
_PASSED = frozenset({"Concat", "DequantizeLinear", "Identity", "QuantizeLinear"})
"""What stands between a convolution, or one of its branches, and an activation."""


@dataclass(frozen=True)
class SitePart:
    """One convolution of a site: all of it, or the groups of it that `function` is.

    `rows` are None where they are computed, or where `misfit` says that a scale or a zero point is
    none of them. `end` says where what a ConvInteger sums is made reals.
    """

    conv: QuantisedConv
    function: SiteFunction
    rows: Rows | None
    end: DynamicEnd | None = None
    misfit: str | None = None

    @property
    def leaves_activation(self) -> bool:
        """Whether an activation, or a norm, comes behind what it gives: nothing else bounds it."""
        result = self.conv.result
        value = self.conv.conv.node.outputs[0] if result is None else result.stored
        value = value if self.end is None else self.end.value
        while len(uses := tuple(value.uses())) == 1 and uses[0].node.op_type in _PASSED:
            value = uses[0].node.outputs[0]
        return any(use.node.op_type in _BEHIND for use in uses)

    @property
    def bits(self) -> int:
        """Of a number of the weight."""
        dtype = self.conv.weight.stored.dtype
        tensor = self.conv.weight.tensor
        found = tensor.dtype if dtype is None and tensor is not None else dtype
        return 8 if found is None else int(found.bitwidth)


@dataclass(frozen=True)
class QuantisedSite:
    """A site of the float network in the quantised file; several parts where it is split."""

    function: SiteFunction
    parts: tuple[SitePart, ...]

    @property
    def name(self) -> str:
        """Of the site."""
        return self.function.name

    @property
    def rows(self) -> Rows | None:
        """The numbers of all parts; None where some are computed."""
        found = [part.rows for part in self.parts if part.rows is not None]
        return joined(found) if len(found) == len(self.parts) else None

    @property
    def misfit(self) -> str | None:
        """What does not fit in one of its parts, in words."""
        return next((part.misfit for part in self.parts if part.misfit is not None), None)

    @property
    def bias(self) -> npt.NDArray[np.float64] | None:
        """The bias that the file has, in reals; zeros without one, None where it is computed."""
        found = [_bias(part) for part in self.parts]
        known = [each for each in found if each is not None]
        return np.concatenate(known) if len(known) == len(found) else None

    @property
    def bias_steps(self) -> npt.NDArray[np.float64]:
        """How far apart two numbers of the bias are, `[out]`; 0 where it is in reals."""
        return np.concatenate([_bias_steps(part) for part in self.parts])


def paired_sites(
    model: ir.Model, functions: Sequence[SiteFunction]
) -> tuple[tuple[QuantisedSite, ...], tuple[str, ...]]:
    """The quantised convolutions of a file by the sites of the float network, and notes.

    By their names, as the quantiser and a rewrite of ours keep them; else in order, where there are
    as many on both sides and their weights have the same shapes.
    """
    convs = conv_nodes(model, None, (*CONVS, *WHOLE))[0]
    named: dict[str, list[QuantisedConv]] = defaultdict(list)
    order: list[str] = []
    for conv in convs:
        found = mark_of(conv.node)
        name = (conv.name if found is None else found.site).removesuffix(_ADDED)
        order += [] if name in named or name in order else [name]
        quantised = quantised_conv(conv)
        if quantised is not None:
            named[name].append(quantised)
    by_name = {function.name: function for function in functions}
    notes: list[str] = []
    if named and not set(named) & set(by_name) and len(order) == len(functions):
        by_name = dict(zip(order, functions, strict=True))
        notes.append(
            "no names agree: quantised convolutions are paired with the float ones in order"
        )
    unknown = [name for name in named if name not in by_name]
    if unknown:
        notes.append(f"no convolution of the float network is called {some_names(unknown)}")
    sites = []
    for name, parts in named.items():
        function = by_name.get(name)
        if function is None:
            continue
        placed = _placed(function, parts)
        if placed is None:
            notes.append(
                f"{name} has other channels than in the float network: it is not looked at"
            )
        else:
            sites.append(QuantisedSite(function, placed))
    return tuple(sites), tuple(notes)


def _placed(function: SiteFunction, convs: Sequence[QuantisedConv]) -> tuple[SitePart, ...] | None:
    """The groups of a site that each convolution is; None where they are not all of it."""
    spec, first = function.spec, 0
    found = []
    for conv in convs:
        own = conv.conv.spec
        groups = own.groups
        if groups > spec.groups - first:
            return None
        part = branch(function, first, groups)
        sizes = (part.spec.in_channels, part.spec.out_channels, part.spec.kernel_size)
        if sizes != (own.in_channels, own.out_channels, own.kernel_size):
            return None
        end = dynamic_end(conv) if conv.layout == "ConvInteger" else None
        # Blocks are no misfit here, where nothing is cut.
        problem = None if conv.weight.block else misfit(conv.conv)
        scale = None if end is None else end.scale
        rows = rows_of(conv.weight, own, scale) if problem is None else None
        found.append(SitePart(conv, part, rows, end, problem))
        first += groups
    return tuple(found) if first == spec.groups else None


def _bias(part: SitePart) -> npt.NDArray[np.float64] | None:
    conv, outs = part.conv, part.function.spec.out_channels
    if part.end is not None:
        return np.zeros(outs) if part.end.bias is None else part.end.bias
    if conv.conv.bias is None:
        return np.zeros(outs)
    if conv.bias is None:
        held = conv.conv.bias_array()
        return None if held is None else held.astype(np.float64)
    reals = conv.bias_reals
    return None if reals is None else reals.astype(np.float64)


def _bias_steps(part: SitePart) -> npt.NDArray[np.float64]:
    conv, outs = part.conv, part.function.spec.out_channels
    if conv.bias is None or part.rows is None:
        return np.zeros(outs)
    scales = conv.bias.scales
    if scales is None:
        data = None if conv.data is None else conv.data.scales
        step = 0.0 if data is None else float(np.ravel(data)[0])
        return part.rows.steps[:, 0] * step
    return np.broadcast_to(np.ravel(scales).astype(np.float64), (outs,))
