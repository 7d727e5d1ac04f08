"""The modules of a site in one piece, over the tensors of its pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..convs.spec import (
    BATCHNORMS,
    CONV_TYPES,
    ConvSpec,
    fields_of,
    module_from_spec,
    norm_channels,
    original_type,
    rebuild,
)
from ..nn import ConstantChannels
from ..nn.masked_conv import MASKED
from ..plan.branches import Branches
from ..plan.forms import ConvPlan, FormPlan
from ..plan.site_plan import SitePlan
from ..state import Entry, Part, Picked, Rows, put_together
from .regions import Region, UnfitError

_UNMASKED: Mapping[type[nn.Module], type[nn.Module]] = {
    masked: plain for plain, masked in MASKED.items()
}


class ComputedConv(nn.Module):
    """A grouped convolution on a weight that it is given: one node for a site of branches."""

    def __init__(self, region: Region) -> None:
        super().__init__()
        assert region.rows is not None
        assert isinstance(region.plan.form, Branches)
        self.function = region.rows.function
        self.options = dict(region.rows.options)
        self.pad = region.rows.pad
        self.groups = region.plan.form.total

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """`function(x, weight, bias, groups=groups)`, padded first where a mode asks for it."""
        if self.pad is not None:
            edges, mode = self.pad
            x = F.pad(x, list(edges), mode)
        return self.function(x, weight, bias, groups=self.groups, **self.options)


def whole_conv(plan: SitePlan, root: nn.Module) -> nn.Module:
    """One convolution that computes what all pieces of `plan` compute.

    A split one has its groups again; a frozen one is dense, with zeros where no piece holds an
    element. Raises `UnfitError` where the modules are not those that the plan speaks of.
    """
    pieces, modules = plan.pieces(), [_conv_at(path, root) for path in plan.convs]
    spec = _common_spec(pieces, modules)
    constants = None if plan.constants is None else root.get_submodule(plan.constants)
    groups = plan.form.total if isinstance(plan.form, Branches) else 1
    whole = replace(spec, bias=spec.bias or constants is not None)
    whole = whole.with_channels(plan.in_channels, plan.out_channels, groups=groups)
    made = module_from_spec(whole)
    made.weight = _frozen(_whole_weight(plan, pieces, modules))
    if whole.bias:
        made.bias = _frozen(_whole_bias(plan, pieces, modules, constants))
    made.training = modules[0].training
    return made


def _conv_at(path: str, root: nn.Module) -> _ConvNd:
    module = root.get_submodule(path)
    plain = _UNMASKED.get(type(module), type(module)) in CONV_TYPES
    if not plain or not isinstance(module, _ConvNd) or _changed(module):
        raise UnfitError(f"{path} is no plain convolution any more")
    return module


def _common_spec(pieces: Sequence[ConvPlan], modules: Sequence[_ConvNd]) -> ConvSpec:
    """The fields of all convolutions but for their channels and groups."""
    found = set()
    for piece, module in zip(pieces, modules, strict=True):
        dims, transposed = CONV_TYPES[_UNMASKED.get(type(module), type(module))]
        spec = fields_of(module, dims, transposed)
        if (spec.in_channels, spec.out_channels, spec.groups) != (
            piece.in_channels,
            piece.out_channels,
            piece.groups,
        ):
            raise UnfitError(f"a convolution of it is now {spec.describe()}")
        found.add(spec.with_channels(1, 1, groups=1))
    if len(found) != 1:
        raise UnfitError("its convolutions differ in more than their channels")
    return found.pop()


def _whole_weight(plan: SitePlan, pieces: Sequence[ConvPlan], modules: Sequence[_ConvNd]) -> Tensor:
    tensors = [_masked_weight(module) for module in modules]
    first = tensors[0]
    if isinstance(plan.form, Branches):
        ends = list(accumulate(map(len, tensors)))
        rows = [Rows("", end - len(part), end) for end, part in zip(ends, tensors, strict=True)]
        made = first.new_zeros((ends[-1], *first.shape[1:]))
        return put_together(zip(rows, tensors, strict=True), made)
    size = (plan.out_channels, plan.in_channels)
    picks = [_picked(piece, size) for piece in pieces]
    for pick, tensor in zip(picks, tensors, strict=True):
        if pick.is_padded and bool(tensor[~pick.held().to(tensor.device)].any()):
            raise UnfitError("what is padding in its weights is not 0")
    made = first.new_zeros((*size, *first.shape[2:]))
    return put_together(zip(picks, tensors, strict=True), made)


def _picked(piece: ConvPlan, size: tuple[int, int]) -> Picked:
    height = piece.out_channels // piece.groups
    parts = (
        Part(piece.rows[group * height : (group + 1) * height], columns)
        for group, columns in enumerate(piece.columns)
    )
    return Picked("", tuple(parts), size)


def _masked_weight(module: _ConvNd) -> Tensor:
    weight = module.weight.detach()
    mask = getattr(module, "mask", None)
    return weight if mask is None else weight * mask[(..., *(None,) * (weight.dim() - 2))]


def _whole_bias(
    plan: SitePlan,
    pieces: Sequence[ConvPlan],
    modules: Sequence[_ConvNd],
    constants: nn.Module | None,
) -> Tensor:
    made = modules[0].weight.detach().new_zeros(plan.out_channels)
    found: list[tuple[Entry, Tensor]] = [
        (_channels(piece.rows, plan), module.bias.detach())
        for piece, module in zip(pieces, modules, strict=True)
        if module.bias is not None
    ]
    if constants is not None:
        if not isinstance(constants, ConstantChannels):
            raise UnfitError(f"{plan.constants} holds no constant channels")
        found.append(
            (_channels(_constant_rows(plan), plan), constants.bias.detach().to(made.dtype))
        )
    return put_together(found, made)


def _channels(rows: Sequence[int | None], plan: SitePlan) -> Picked:
    return Picked("", (Part(tuple(rows)),), (plan.out_channels,))


def _constant_rows(plan: SitePlan) -> tuple[int, ...]:
    return plan.form.constants if isinstance(plan.form, FormPlan) else ()


def whole_norm(plan: SitePlan, root: nn.Module) -> nn.Module:
    """One BatchNorm with the channels of those behind the pieces, in the order of the output."""
    modules = [root.get_submodule(path) for path in plan.norms]
    rows: list[Sequence[int | None]] = [piece.rows for piece in plan.pieces()]
    rows += [_constant_rows(plan)] if plan.constants is not None else []
    first = modules[0]
    for module, chosen in zip(modules, rows, strict=True):
        if type(module) not in BATCHNORMS or _changed(module) or _fields(module) != _fields(first):
            raise UnfitError("the BatchNorms of its pieces differ, or were changed")
        if norm_channels(module) != len(chosen):
            raise UnfitError(f"a BatchNorm of it now has {norm_channels(module)} channels")
    entries = [_channels(chosen, plan) for chosen in rows]
    tensors: dict[str, Tensor | None] = {}
    for name in (*first._parameters, *first._buffers):
        own = getattr(first, name)
        if own is not None and own.dim():
            parts = [getattr(module, name).detach() for module in modules]
            whole = own.detach().new_zeros(plan.out_channels)
            put_together(zip(entries, parts, strict=True), whole)
            own = _frozen(whole) if name in first._parameters else whole
        tensors[name] = own
    return rebuild(first, tensors, num_features=plan.out_channels)


def _fields(module: nn.Module) -> tuple[Any, ...]:
    fields = ("eps", "momentum", "affine", "track_running_stats")
    return (type(module), *(getattr(module, name) for name in fields))


def _changed(module: nn.Module) -> bool:
    """Whether hooks or a parametrisation make more of a module than its fields say."""
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    return any(hooks) or original_type(module) is not type(module)


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
