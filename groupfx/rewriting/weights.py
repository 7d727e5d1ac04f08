"""What the tensors of a block form are: rows and columns of a dense weight under a fixed mask.

Both passes that make blocks come down to

    weight = factors * dense          factors [out_channels, inputs a group], the same for each tap

with `dense` a stored tensor. What is left out of it is under a factor of 0 or, where a pass found
zeros in it, outside the blocks. Everything else is held as it was, zeros inside a block included.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..convs.spec import ConvSpec
from ..learned.groups import LearnedGroups
from ..plan.blocks import BlockStructure
from ..plan.channels import group_slices
from ..plan.forms import ConvPlan, FormPlan
from ..state.map import Part, Picked

# Whatever the default device is.
_TABLE: Any = {"dtype": torch.int32, "device": "cpu"}

Indices = tuple[int | None, ...]
Factors = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MaskedLayer:
    """A dense layer under a mask, which may be replaced by blocks of it.

    `spec` says what it computes. `path` is the module that holds all its tensors and may be
    replaced as a whole; None where the graph reads them. Keys are relative to it. `template` is the
    module whose fields those in its place take over, None where no plain one computes it.

    `factors` `[out_channels, inputs a group]` multiply the dense weight, None for ones. Floats, in
    the dtype of the weight, are folded into it. Integers count the learned groups that a filter and
    an input share: a count that would round is multiplied by in each forward instead.

    Zeros that padding makes stay zeros in training, unless the layer `trains_zeros`.

    What decided the factors must not change: `fixed` are tensors that a checkpoint must hold as
    they are, `groups` those that its score maps must give.
    """

    spec: ConvSpec
    path: str | None
    key: str
    dense: Tensor
    bias_key: str | None
    bias: Tensor | None
    template: nn.Module | None = None
    factors: Tensor | None = None
    fixed: Mapping[str, Tensor] = field(default_factory=dict)
    groups: LearnedGroups | None = None
    trains_zeros: bool = False

    @property
    def value(self) -> Tensor:
        """The weight itself."""
        dense = self.dense.detach()
        if self.factors is None:
            return dense
        return dense * self.factors[(..., *(None,) * (dense.dim() - 2))]

    def training_zeros(self) -> "MaskedLayer":
        """The same layer, whose padding is trained like all else."""
        return replace(self, trains_zeros=True)


@dataclass(frozen=True)
class ConvWeight:
    """The weight of one convolution: what is `picked` of the dense one.

    `mask`, where there is one, multiplies it in each forward: bool, where padding must stay 0 in
    training, or int32 counts that cannot be folded in.
    """

    picked: Picked
    mask: Tensor | None


@dataclass(frozen=True, eq=False)
class BlockWeights:
    """The tensors of all convolutions of `form`, which executes `structure`."""

    layer: MaskedLayer
    structure: BlockStructure
    form: FormPlan

    def of(self, plan: ConvPlan) -> ConvWeight:
        """The weight of a convolution of the form. A factor of 0 is left out like padding."""
        height = len(plan.rows) // plan.groups
        parts: list[Part] = []
        for group, columns in enumerate(plan.columns):
            rows = plan.rows[group * height : (group + 1) * height]
            parts += self._parts(rows, columns, self._held)
        factors = self.layer.factors
        counted = factors is not None and not factors.is_floating_point()
        if counted and not all(map(_round_nothing, parts)):
            counts = torch.tensor([row for part in parts for row in _counts(part)], **_TABLE)
            return ConvWeight(self._picked(replace(part, factors=None) for part in parts), counts)
        picked = self._picked(parts)
        keeps = picked.is_padded and not self.layer.trains_zeros
        return ConvWeight(picked, picked.held() if keeps else None)

    def bias_of(self, rows: Iterable[int | None]) -> Picked | None:
        """The bias of the output channels `rows`; None without one."""
        if self.layer.bias_key is None:
            return None
        return Picked(self.layer.bias_key, (Part(tuple(rows)),), self._size[:1])

    def unmasked(self) -> Picked:
        """All that the mask lets through: where it is not held, it must be 0."""
        spec = self.layer.spec
        parts: list[Part] = []
        sides = (group_slices(n, spec.groups) for n in (spec.out_channels, spec.in_channels))
        for rows, columns in zip(*sides, strict=True):
            inputs = tuple(range(columns.start, columns.stop))
            parts += self._parts(range(rows.start, rows.stop), inputs, self._factors)
        return self._picked(replace(part, factors=None) for part in parts)

    def zeroed(self) -> Tensor | None:
        """Entries `[out_channels, inputs a group]` that are not 0 and that no convolution holds.

        None where there are none, as without a threshold.
        """
        held = torch.zeros(self._size)
        for plan in self.form.convs:
            self.of(plan).picked.count(held)
        value = self.layer.value.detach().cpu().reshape(*self._size, -1)
        lost = (held == 0) & (value != 0).any(dim=2)
        return lost if bool(lost.any()) else None

    @property
    def _size(self) -> tuple[int, int]:
        spec = self.layer.spec
        return spec.out_channels, spec.in_channels // spec.groups

    @cached_property
    def _factors(self) -> Factors | None:
        factors = self.layer.factors
        return None if factors is None else factors.double().cpu().numpy()

    @cached_property
    def _held(self) -> Factors | None:
        """The factors; in the form `dense`, 0 outside the blocks as well."""
        if self.form.form != "dense":
            return self._factors
        inside = np.zeros(self._size)
        for block in self.structure.blocks:
            inside[np.ix_(block.outputs, block.inputs)] = 1
        return inside if self._factors is None else self._factors * inside

    def _own(self, first: int, columns: Indices) -> Indices:
        """`columns`, counted from the `first` that a group reads; None for those of others."""
        if self.layer.spec.groups == 1:
            return columns
        last = first + self._size[1]
        return tuple(c - first if c is not None and first <= c < last else None for c in columns)

    def _picked(self, parts: Iterable[Part]) -> Picked:
        return Picked(self.layer.key, tuple(parts), self._size)

    def _parts(
        self, rows: Sequence[int | None], columns: Indices, table: Factors | None
    ) -> Iterator[Part]:
        """`rows` and `columns` of one group, cut where what the table leaves of a row changes.

        Columns that the group of a row does not read are padding in that row.
        """
        height, width = self._size[0] // self.layer.spec.groups, self._size[1]
        known: dict[object, tuple[Indices, tuple[float, ...] | None]] = {}
        chosen = []
        last: object = None
        for row in rows:
            # A row of padding goes with the rows around it.
            if row is not None:
                first = row // height * width
                factors = None if table is None else table[row]
                last = first, None if factors is None else factors.tobytes()
                if last not in known:
                    known[last] = _under(factors, self._own(first, columns))
            chosen.append((row, known.get(last, (columns, None))))
        for (kept, scales), run in groupby(chosen, key=lambda each: each[1]):
            members = tuple(row for row, _ in run)
            yield Part(members, kept, None if scales is None else (scales,) * len(members))


def _under(
    factors: npt.NDArray[np.float64] | None, columns: Indices
) -> tuple[Indices, tuple[float, ...] | None]:
    """`columns` of a row without those whose factor is 0, and the factors if any is not 1."""
    if factors is None:
        return columns, None
    # One entry more for padding, which is index -1.
    entries = np.append(factors, 0)[[-1 if c is None else c for c in columns]]
    held = entries != 0
    kept = tuple(c if keep else None for c, keep in zip(columns, held.tolist(), strict=True))
    scales = np.where(held, entries, 1)
    return (columns if kept == columns else kept), (
        None if (scales == 1).all() else tuple(scales.tolist())
    )


def _round_nothing(part: Part) -> bool:
    """Whether all factors of a part, whose rows have the same, are powers of 2."""
    return part.factors is None or all(math.frexp(f)[0] == 0.5 for f in part.factors[0])


def _counts(part: Part) -> list[list[int]]:
    """The factors of a part, a row for each of its rows; 0 for padding."""
    assert part.columns is not None
    factors = (1.0,) * len(part.columns) if part.factors is None else part.factors[0]
    row = [0 if c is None else int(f) for c, f in zip(part.columns, factors, strict=True)]
    return [[0] * len(row) if number is None else row for number in part.rows]
