"""Which branches are one grouped convolution, and why the others are not.

Before:  y = cat([g(conv_k(f(x)[:, part_k])) for each branch k], dim=1)
After:   y = g(conv(f(x)[:, order])),  groups = the sum of theirs

The rows of the weight of `conv` are those of the branches one after another: a convolution with
g groups is g convolutions side by side, so it is theirs as well. All groups of it must be of one
size on both sides, and whatever else a convolution says, and what stands around it, must be the
same in each branch.

Branches whose groups are of several sizes are, where that is asked for, the blocks of one layer in
a form of `groupfx.plan.forms`: `bucketed`, one convolution for all groups of a size, or `padded`,
one for all of them, the smaller filled up with zeros. Either is `y = g(form(f(x)))`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from ..folding.wiring import Operation, Value
from ..plan.blocks import Block, BlockStructure
from ..plan.channels import Slice, group_slices
from ..plan.forms import ConvPlan, FormPlan, plan_in_order
from ..plan.gathers import plan_gather
from .branches import CHANNELS, Branch, Read, Reader, common_read

Alike = Callable[[Operation], Hashable]
"""Everything that an operation says but its channels and per-channel parameters; None if it may not
be merged at all."""


Unequal = Literal["keep", "bucketed", "padded"]
"""What becomes of branches whose groups are of several sizes."""


@dataclass(frozen=True)
class Member:
    """Branch number `branch` in a convolution: at which inputs and outputs of that it lies."""

    branch: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class ParallelConvs:
    """Branches that are one grouped convolution, or several where their groups differ in size.

    `form` says how they are executed: from the channels of `source` to those of the concatenation.
    `front` are the operations between the source and the convolutions, of the first branch.
    """

    concat: Operation
    source: Value
    front: tuple[Operation, ...]
    form: FormPlan
    branches: tuple[Branch, ...]

    @property
    def groups(self) -> int:
        """Of all branches."""
        return sum(branch.groups for branch in self.branches)

    def members(self, conv: ConvPlan) -> tuple[Member, ...]:
        """The branches that a convolution of the form executes, in its order."""
        ends = np.cumsum([branch.out_channels for branch in self.branches])
        height, width = conv.out_channels // conv.groups, conv.in_channels // conv.groups
        found: dict[int, tuple[list[int], list[int]]] = {}
        for group in range(conv.groups):
            row = conv.rows[group * height]
            assert row is not None
            branch = int(np.searchsorted(ends, row, side="right"))
            inputs, outputs = found.setdefault(branch, ([], []))
            taken = self.branches[branch].sizes
            inputs += range(group * width, group * width + taken[0])
            outputs += range(group * height, group * height + taken[1])
        return tuple(
            Member(branch, tuple(inputs), tuple(outputs))
            for branch, (inputs, outputs) in found.items()
        )

    def notes(self) -> tuple[str, ...]:
        """What a user should know of the form."""
        found = []
        if self.form.form == "grouped" and self.form.input_gather.kind != "identity":
            found.append(
                "its parts are in another order than the channels: a gather stays in front of it"
            )
        if self.form.form != "grouped":
            sizes = sorted({branch.sizes for branch in self.branches})
            shown = ", ".join("->".join(map(str, each)) for each in sizes)
            own = sum(branch.out_channels * branch.sizes[0] for branch in self.branches)
            told = "one convolution for each size"
            if self.form.form == "padded":
                told = f"filled up with zeros, {self.form.macs / own:.2f} x multiply-accumulates"
            found.append(f"its branches have groups of several sizes ({shown} channels): {told}")
        return tuple(found)


@dataclass(frozen=True)
class Refusal:
    """Branches that look alike, and why they are left as they are."""

    concat: Operation
    branches: tuple[Branch, ...]
    reason: str


class _RefusedError(Exception):
    """Why branches are not one convolution."""


def parallel_convs(
    operations: Iterable[Operation], alike: Alike, unequal: Unequal = "keep"
) -> Iterator[ParallelConvs | Refusal]:
    """All concatenations of convolutions on parts of one value, in order.

    `unequal` says what becomes of branches whose groups are of several sizes. Convolutions that
    the whole of a value each, as those of an Inception block do, are something else, and not
    spoken of.
    """
    reader = Reader(operations)
    for op in reader.operations:
        if op.rule not in ("concat", "barrier") or len(op.outputs) != 1 or len(op.inputs) < 2:
            continue
        found = [reader.branch(value) for value in op.values.values()]
        branches = tuple(branch for branch in found if branch is not None)
        if not _share_a_value(branches):
            continue
        try:
            _require_joined(op, found)
            reads = common_read(branches)
            if reads is None:
                raise _RefusedError("they do not all read one value")
            yield _planned(reader, op, branches, reads, alike, unequal)
        except _RefusedError as refused:
            yield Refusal(op, branches, str(refused))


def _share_a_value(branches: Sequence[Branch]) -> bool:
    """Whether two branches read the same value, and at least one of them a part of it."""
    for one, other in pairwise(branches):
        reads = common_read((one, other))
        if reads is not None and any(read.is_part for read in reads):
            return True
    return False


def _require_joined(op: Operation, found: Sequence[Branch | None]) -> None:
    if op.rule != "concat":
        raise _RefusedError(f"{op.name} is no concatenation of different values along channels")
    if op.numbers["dim"] != CHANNELS:
        raise _RefusedError(f"{op.name} concatenates along axis {op.numbers['dim']}, not channels")
    if len(op.values) < len(op.inputs) or None in found:
        other = next((k for k, b in enumerate(found) if b is None), len(found))
        raise _RefusedError(f"input {other} of {op.name} comes from no convolution")


def _planned(
    reader: Reader,
    op: Operation,
    branches: tuple[Branch, ...],
    reads: Sequence[Read],
    alike: Alike,
    unequal: Unequal,
) -> ParallelConvs:
    _require_alike("the convolutions", [(b.conv,) for b in branches], alike)
    _require_alike("what stands behind them", [_ops(b) for b in branches], alike)
    _require_alike("what stands in front of them", [r.front for r in reads], alike)
    _require_alone(reader, branches, reads)
    if len({branch.bias is None for branch in branches}) > 1:
        raise _RefusedError("some of them have a bias, and some have none")
    order = _order(reads)
    form = _form(order, branches, reads[0].value.shape[CHANNELS], unequal)
    return ParallelConvs(op, reads[0].value, reads[0].front, form, branches)


def _form(
    order: tuple[int, ...], branches: Sequence[Branch], channels: int, unequal: Unequal
) -> FormPlan:
    """How branches are executed that read the channels `order` one after another."""
    first = branches[0]
    odd = next((b for b in branches if b.sizes != first.sizes), None)
    blocks = tuple(_blocks(order, branches))
    outputs = blocks[-1].outputs[-1] + 1
    if odd is None:
        columns = tuple(block.inputs for block in blocks)
        conv = ConvPlan(Slice(0, len(order)), tuple(range(outputs)), columns)
        same = plan_gather(range(outputs), outputs)
        return FormPlan("grouped", plan_gather(order, channels), (conv,), (), same)
    differ = (
        f"a group of {first.conv.name} has {_sizes(first)} channels, and one of "
        f"{odd.conv.name} {_sizes(odd)}"
    )
    if unequal == "keep":
        raise _RefusedError(
            f"{differ}: one convolution has groups of one size; unequal=bucketed makes several, "
            "unequal=padded fills up with zeros"
        )
    unread = tuple(sorted(set(range(channels)) - set(order)))
    structure = BlockStructure(channels, outputs, blocks, dead_inputs=unread)
    form = plan_in_order(structure, unequal)
    if len(form.convs) == len(branches):
        raise _RefusedError(
            f"{differ}, and no two of them have groups of one size: there is nothing to merge"
        )
    return form


def _blocks(order: tuple[int, ...], branches: Sequence[Branch]) -> Iterator[Block]:
    """What each group of each branch reads, and which channels of the concatenation it gives."""
    read = given = 0
    for branch in branches:
        sides = zip(
            group_slices(branch.in_channels, branch.groups),
            group_slices(branch.out_channels, branch.groups),
            strict=True,
        )
        for inputs, outputs in sides:
            yield Block(
                order[read + inputs.start : read + inputs.stop],
                tuple(range(given + outputs.start, given + outputs.stop)),
            )
        read, given = read + branch.in_channels, given + branch.out_channels


def _ops(branch: Branch) -> tuple[Operation, ...]:
    return tuple(stage.op for stage in branch.behind)


def _sizes(branch: Branch) -> str:
    return "->".join(map(str, branch.sizes))


def _require_alone(reader: Reader, branches: Sequence[Branch], reads: Sequence[Read]) -> None:
    for branch, read in zip(branches, reads, strict=True):
        for value in (*branch.inner, *read.parts):
            if reader.uses[value.key] != 1:
                maker = reader.made[value.key][0].name
                raise _RefusedError(f"what {maker} gives is used elsewhere too")
        for parameter in branch.parameters:
            if parameter.fixed is not None:
                raise _RefusedError(f"{_called(parameter.key)} stays: {parameter.fixed}")
    tied = [p.key for b in branches for p in b.joined if reader.uses[p.key] != 1]
    if tied:
        raise _RefusedError(f"{_called(tied[0])} is used more than once")


def _require_alike(what: str, chains: Sequence[tuple[Operation, ...]], alike: Alike) -> None:
    for other in chains[1:]:
        if len(other) != len(chains[0]):
            counts = f"{len(chains[0])} and {len(other)}"
            raise _RefusedError(f"{what} differ: {counts} operations")
    for first, *others in zip(*chains, strict=True):
        said = alike(first)
        if said is None:
            raise _RefusedError(
                f"{first.name} may not be merged: it draws random numbers, or reads tensors that "
                "cannot be put together"
            )
        for other in others:
            if alike(other) != said:
                raise _RefusedError(f"{what} differ: {first.name} and {other.name}")


def _order(reads: Sequence[Read]) -> tuple[int, ...]:
    """The channels of the source in the order of the branches."""
    order = np.concatenate([read.channels for read in reads])
    values, counts = np.unique(order, return_counts=True)
    if counts.max() > 1:
        twice = values[counts > 1]
        raise _RefusedError(
            f"channel {twice[0]} of {_called(reads[0].value.key)} is read by two of them"
        )
    if values[-1] - values[0] + 1 != len(values):
        missing = np.setdiff1d(np.arange(values[0], values[-1]), values)
        raise _RefusedError(
            f"channel {missing[0]} of {_called(reads[0].value.key)} is read by none of them"
        )
    return tuple(order.tolist())


def _called(key: Hashable) -> str:
    """The name of a tensor: that of the node or value that its key is, or the key itself."""
    return str(getattr(key, "name", None) or key)
