"""What stands in place of a learned-group layer: its modules, its part of the graph, its map."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from ..convs.names import joined
from ..convs.spec import rebuild
from ..learned.groups import CONV, INPUT_SCORES, OUTPUT_SCORES, LearnedGroups, has_learned_groups
from ..nn import ChannelGather, ChannelShuffle, ChannelTranspose, ConstantChannels
from ..nn.marks import FROZEN_MARK
from ..nn.masked_conv import MASKED
from ..plan.forms import ConvPlan, FormPlan
from ..plan.gathers import GatherPlan
from ..plan.site_plan import SitePlan
from ..state.map import Part, Picked
from .learned_sites import MaskedLayer
from .site import BatchNorm, Emit, Site

# Whatever the default device is.
_TABLE: Any = {"dtype": torch.int32, "device": "cpu"}

Columns = tuple[int | None, ...]


def emit_form(
    site: Site, form: FormPlan, layer: MaskedLayer, norm: BatchNorm | None
) -> tuple[fx.Node, fx.Node, SitePlan]:
    """Emit the execution of `form` in place of the site's layer.

    `norm` is a BatchNorm that moves along. Returns the node that gives the result, the node that
    it stands for (the layer's, or the BatchNorm's), and the plan to remember.
    """
    emission = _Emission(site, form, layer, norm)
    return *emission.run(), pieces_of(site, form, emission.home, norm)


def pieces_of(site: Site, form: FormPlan, home: str, norm: BatchNorm | None) -> SitePlan:
    """Where the pieces of a frozen convolution lie."""

    def path(name: str, present: bool = True) -> str | None:
        return ".".join(part for part in (home, name) if part) if present else None

    one = len(form.convs) == 1
    names = ["conv"] if one else [f"convs.{position}" for position in range(len(form.convs))]
    norms: list[str] = []
    if norm is not None:
        count = len(names) + bool(form.constants)
        norms = [norm.path] if count == 1 else [f"{norm.path}.{k}" for k in range(count)]
    return SitePlan(
        site.name,
        site.spec.in_channels,
        site.spec.out_channels,
        form,
        convs=tuple(str(path(name)) for name in names),
        norms=tuple(norms),
        input_gather=path("input_gather", form.input_gather.kind != "identity"),
        constants=path("constants", bool(form.constants)),
        output_gather=path("output_gather", form.output_gather.kind != "identity"),
    )


def norm_stays_because(form: FormPlan, out_channels: int) -> str | None:
    """Why a BatchNorm that follows must not move in front of the output gather of `form`.

    None if it may.
    """
    if form.result_channels == out_channels:
        return None
    return "padded filters must be dropped before it, or it would make their zeros something else"


def norm_is_in_place(form: FormPlan) -> bool:
    """Whether a BatchNorm that follows stands directly behind the one convolution of `form`."""
    return len(form.convs) == 1 and not form.constants and form.output_gather.kind == "identity"


@dataclass(frozen=True)
class Weight:
    """What the weight of one convolution is, of the dense weight under its mask.

    `picked` has rows and columns, with mask entries that are powers of 2 as factors, which round
    nothing. `entries` is None, or, where there are others (a 3, of a filter and an input that share
    three groups), all of the mask, by which the convolution multiplies in each forward.
    """

    picked: Picked
    entries: Tensor | None = None


class Weights:
    """The weights of the convolutions that execute `groups`."""

    def __init__(self, groups: LearnedGroups) -> None:
        self._groups = groups
        self._size = (groups.out_channels, groups.in_channels)

    def of(self, plan: ConvPlan) -> Weight:
        """The weight of the convolution `plan`.

        A mask entry of 0 is left out like padding: in the dense form that is the mask itself.
        """
        height = len(plan.rows) // plan.groups
        parts: list[Part] = []
        for group, columns in enumerate(plan.columns):
            parts += self._parts(plan.rows[group * height : (group + 1) * height], columns)
        if all(_round_nothing(part) for part in parts):
            return Weight(Picked("weight", tuple(parts), self._size))
        entries = torch.tensor([row for part in parts for row in _entries(part)], **_TABLE)
        bare = tuple(replace(part, factors=None) for part in parts)
        return Weight(Picked("weight", bare, self._size), entries)

    def _parts(self, rows: Sequence[int | None], columns: Columns) -> Iterator[Part]:
        """`rows` of one group, cut where the mask of the rows changes."""
        masks: dict[tuple[int, ...] | None, tuple[Columns, tuple[float, ...] | None]] = {
            None: (columns, None)
        }
        for signature, run in groupby(rows, self._signature):
            if signature not in masks:
                assert signature is not None
                masks[signature] = self._masked(signature, columns)
            kept, factors = masks[signature]
            chosen = tuple(run)
            yield Part(chosen, kept, None if factors is None else (factors,) * len(chosen))

    def _signature(self, row: int | None) -> tuple[int, ...] | None:
        """The groups that a filter is in: filters in the same ones have the same mask."""
        return None if row is None else self._homes[row]

    @cached_property
    def _homes(self) -> list[tuple[int, ...]]:
        homes: list[list[int]] = [[] for _ in range(self._groups.out_channels)]
        for group, rows in enumerate(self._groups.outputs):
            for row in rows:
                homes[row].append(group)
        return [tuple(groups) for groups in homes]

    def _masked(
        self, signature: tuple[int, ...], columns: Columns
    ) -> tuple[Columns, tuple[float, ...] | None]:
        """`columns` without those whose mask entry is 0, and the entries where one is not 1."""
        # One entry more for padding, which is index -1.
        mask = np.zeros(self._groups.in_channels + 1)
        for group in signature:
            mask[list(self._groups.inputs[group])] += 1
        entries: npt.NDArray[np.float64] = mask[[-1 if c is None else c for c in columns]]
        held = entries > 0
        kept = tuple(c if keep else None for c, keep in zip(columns, held.tolist(), strict=True))
        if entries.max(initial=0) <= 1:
            return (columns if kept == columns else kept), None
        return kept, tuple(np.where(held, entries, 1).tolist())


def _round_nothing(part: Part) -> bool:
    """Whether all factors of a part, whose rows have the same, are powers of 2."""
    return part.factors is None or all(math.frexp(f)[0] == 0.5 for f in part.factors[0])


def _entries(part: Part) -> list[list[int]]:
    """The mask of a part, a row for each of its rows; 0 for padding."""
    assert part.columns is not None
    factors = (1.0,) * len(part.columns) if part.factors is None else part.factors[0]
    row = [0 if c is None else int(f) for c, f in zip(part.columns, factors, strict=True)]
    return [[0] * len(row) if number is None else row for number in part.rows]


class _Emission:
    def __init__(
        self, site: Site, form: FormPlan, layer: MaskedLayer, norm: BatchNorm | None
    ) -> None:
        self.site = site
        self.form = form
        self.layer = layer
        self.norm = norm
        assert site.call.path is not None
        self.home = site.fragment.home(site.call.path)

    def run(self) -> tuple[fx.Node, fx.Node]:
        site, form = self.site, self.form
        # Another call of the layer, under this path or another, may have been here before.
        if site.module is not None and has_learned_groups(site.module):
            self._place(site.module)
        norms = self._norms()
        value = self._gather("input_gather", form.input_gather, site.call.input)
        width = len(form.input_gather.indices)
        results = []
        for position, conv in enumerate(form.convs):
            part = value if len(conv.inputs) == width else site.channels(value, conv.inputs)
            result = self._call(self._conv_name(position), part)
            results.append(norms[position](result) if norms else result)
        if form.constants:
            constants = self._call("constants", results[0])
            results.append(norms[-1](constants) if norms else constants)
        joined = results[0] if len(results) == 1 else site.concat(results)
        output = self._gather("output_gather", form.output_gather, joined)
        return output, site.call.node if self.norm is None else self.norm.node

    def _call(self, name: str, value: fx.Node) -> fx.Node:
        target = joined(self.home, name)
        return self.site.graph.call_module(target, (value,))

    def _gather(self, name: str, gather: GatherPlan, value: fx.Node) -> fx.Node:
        return value if gather.kind == "identity" else self._call(name, value)

    def _conv_name(self, position: int) -> str:
        return "conv" if len(self.form.convs) == 1 else f"convs.{position}"

    def _norms(self) -> Sequence[Emit] | None:
        """The BatchNorm behind each convolution, with its channels in that one's order."""
        if self.norm is None:
            return None
        picks = [tuple(row for row in conv.rows if row is not None) for conv in self.form.convs]
        if self.form.constants:
            picks.append(self.form.constants)
        return self.site.batchnorm_picks(self.norm, picks)

    def _place(self, layer: nn.Module) -> None:
        """Put the modules of the form where the layer was."""
        form, channels = self.form, self.site.spec.out_channels
        conv = layer.get_submodule(CONV)
        weights = Weights(self.layer.groups)
        children: dict[str, nn.Module] = {}
        picks: dict[str, Picked] = {}
        if form.input_gather.kind != "identity":
            children["input_gather"] = gather_module(form.input_gather)
        convs = []
        for position, plan in enumerate(form.convs):
            name = self._conv_name(position)
            weight, rows = weights.of(plan), _vector_pick("bias", plan.rows, channels)
            picks[f"{name}.weight"] = weight.picked
            made = self._conv(conv, plan, weight, rows)
            if made.bias is not None:
                picks[f"{name}.bias"] = rows
            convs.append(made)
        if len(convs) == 1:
            children["conv"] = convs[0]
        else:
            children["convs"] = nn.ModuleList(convs)
        if form.constants:
            children["constants"] = self._constants(conv)
            if conv.bias is not None:
                picks["constants.bias"] = _vector_pick("bias", form.constants, channels)
        if form.output_gather.kind != "identity":
            children["output_gather"] = gather_module(form.output_gather)
        device = conv.get_parameter("weight").device
        for child in children.values():
            _train_alike(child.to(device), layer.training)
        self.site.store.freeze(
            self.site.fragment,
            str(self.site.call.path),
            children,
            picks,
            conv=CONV,
            groups=self.layer.groups,
            scores=(INPUT_SCORES, OUTPUT_SCORES),
        )

    def _conv(self, conv: nn.Module, plan: ConvPlan, source: Weight, rows: Picked) -> nn.Module:
        weight, bias = conv.get_parameter("weight"), conv._parameters["bias"]
        tensors: dict[str, Tensor | None] = {
            "weight": parameter_like(weight, source.picked.of(weight)),
            "bias": None if bias is None else parameter_like(bias, rows.of(bias)),
        }
        made = rebuild(
            conv,
            tensors,
            in_channels=plan.in_channels,
            out_channels=plan.out_channels,
            groups=plan.groups,
            padding_mode=self.layer.padding_mode,
        )
        setattr(made, FROZEN_MARK, True)
        mask = source.entries
        if mask is None and source.picked.is_padded:
            mask = source.picked.held()
        if mask is None:
            return made
        return MASKED[type(conv)].of(made, mask.to(weight.device))  # type: ignore[no-any-return]

    def _constants(self, conv: nn.Module) -> nn.Module:
        bias, chosen = conv._parameters["bias"], list(self.form.constants)
        if bias is None:
            return ConstantChannels(conv.get_parameter("weight").new_zeros(len(chosen)).detach())
        return ConstantChannels(nn.Parameter(bias.detach()[chosen].clone(), bias.requires_grad))


def _train_alike(module: nn.Module, training: bool) -> None:
    for part in module.modules():
        part.training = training


def parameter_like(tensor: Tensor, value: Tensor) -> nn.Parameter:
    """A copy of `value` as a parameter with the memory format and `requires_grad` of `tensor`."""
    wanted = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    plain = wanted is None or tensor.is_contiguous()
    if wanted is not None and not plain and tensor.is_contiguous(memory_format=wanted):
        value = value.contiguous(memory_format=wanted)
    return nn.Parameter(value.detach().clone(), requires_grad=tensor.requires_grad)


def _vector_pick(key: str, rows: Sequence[int | None], channels: int) -> Picked:
    return Picked(key, (Part(tuple(rows)),), (channels,))


def gather_module(gather: GatherPlan) -> nn.Module:
    """The leaf that does what `gather` plans."""
    if gather.kind == "shuffle":
        assert gather.groups is not None
        return ChannelShuffle(gather.groups)
    if gather.kind == "transpose":
        return ChannelTranspose(gather.shape, gather.axes)
    return ChannelGather(gather.indices)
