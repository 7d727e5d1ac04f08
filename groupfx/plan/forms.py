"""The forms in which a block structure can be executed, planned in integers.

Every form computes the same function:

    gathered = x[:, plan.input_gather.indices]
    result   = concat(conv(gathered[:, conv.inputs]) for conv in plan.convs, then the constants)
    y        = result[:, plan.output_gather.indices]

where a conv with a gather of its own reads `x[:, conv.source.indices]` in place of `gathered`, and
one that is `added` adds its result, without a bias, to that of the conv before it.

The weight of a conv is taken from the masked dense weight `W`, entry by entry. It is
`[out_channels, in_channels / groups, *kernel_size]` as ever; row `r`, which is in the group
`g = r // (out_channels / groups)`, has at column `c` the entry `W[rows[r], columns[g][c]]`, and 0
where either is None.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from ..errors import UsageError
from .binned import Way
from .blocks import Block, BlockStructure, first_few
from .channels import Slice
from .gathers import GatherPlan, plan_gather

PlainForm = Literal["dense", "grouped", "bucketed", "padded", "split"]
FORMS: tuple[PlainForm, ...] = get_args(PlainForm)

BinForm = Way | Literal["mixed", "absorbed"]
"""Forms that need to know what a convolution costs; see `groupfx.plan.packing`."""

Form = PlainForm | BinForm

Layout = tuple[Block, ...]
"""Blocks in the order of execution, with the channels of each in the order of its weight."""


@dataclass(frozen=True)
class ConvPlan:
    """One convolution of a form. All MACs are for one position of the output and one tap.

    `inputs` are the channels of the gathered tensor that it reads. `rows` are the original output
    channels that it puts out, `columns` for each group the original input channels that it reads;
    None stands for padding, whose weight (and, for a row, bias) is 0.

    A padded column reads again a channel that its own block reads: a value that is not finite
    reaches no other block, and a weight that training moves away from 0 opens no new path. A padded
    row is dropped before anything sees it.

    `source` is a gather of the conv's own, straight from the layer's input; `added` says that the
    result is added to that of the conv before it, which has the same rows and their bias.
    """

    inputs: Slice
    rows: tuple[int | None, ...]
    columns: tuple[tuple[int | None, ...], ...]
    source: GatherPlan | None = None
    added: bool = False

    @property
    def groups(self) -> int:
        return len(self.columns)

    @property
    def in_channels(self) -> int:
        return len(self.inputs)

    @property
    def out_channels(self) -> int:
        return len(self.rows)

    @property
    def macs(self) -> int:
        """MACs, those of padding included."""
        return self.out_channels * self.in_channels // self.groups

    @property
    def padded(self) -> bool:
        """Whether any row or column is padding."""
        return None in self.rows or any(None in group for group in self.columns)

    def describe(self) -> str:
        """`64->64 /8`: its channels, and its groups if it has more than one."""
        groups = f" /{self.groups}" if self.groups > 1 else ""
        return f"{self.in_channels}->{self.out_channels}{groups}"


@dataclass(frozen=True)
class FormPlan:
    """How to execute a block structure in `form`; see the module's docstring.

    `constants` are the output channels that are their bias everywhere, or 0 without one. They
    follow the convs' channels in the concatenated result, and cost no MACs. Where no filter reads
    anything, there is no conv, and the result is the constants alone.

    If `input_gather` is the identity, the convs read slices of the layer's own input.

    `by_product` is for runtimes with a blocked layout, which a gather leaves: the output gather is
    a 1x1 convolution of zeros and ones there, which takes along an addition that follows.
    """

    form: Form
    input_gather: GatherPlan
    convs: tuple[ConvPlan, ...]
    constants: tuple[int, ...]
    output_gather: GatherPlan
    by_product: bool = False

    @cached_property
    def macs(self) -> int:
        """MACs for one position of the output and one tap, those of padding included."""
        return sum(conv.macs for conv in self.convs)

    @property
    def result_channels(self) -> int:
        """Channels of the concatenated result, before the output gather."""
        put_out = sum(conv.out_channels for conv in self.convs if not conv.added)
        return put_out + len(self.constants)

    def blocks(self, in_channels: int) -> BlockStructure:
        """What is executed, whatever the form: a block for each group of each conv."""
        found: list[Block] = []
        for conv in self.convs:
            height = conv.out_channels // conv.groups
            for group, columns in enumerate(conv.columns):
                rows = conv.rows[group * height : (group + 1) * height]
                sides = [tuple(c for c in side if c is not None) for side in (columns, rows)]
                if all(sides):
                    found.append(Block(sides[0], sides[1]))
        read = {channel for block in found for channel in block.inputs}
        written = {channel for block in found for channel in block.outputs}
        return BlockStructure(
            in_channels,
            len(self.output_gather.indices),
            tuple(found),
            tuple(c for c in range(len(self.output_gather.indices)) if c not in written),
            tuple(c for c in range(in_channels) if c not in read),
        )

    @property
    def cuts(self) -> tuple[int, ...]:
        """How many channels of the gathered tensor each conv reads, where these follow each other
        up to its end, and there are several: it is cut once. Else nothing.
        """
        slices = [conv.inputs for conv in self.convs if conv.source is None]
        ends = [0, *(part.stop for part in slices)]
        joined = all(part.start == end for part, end in zip(slices, ends, strict=False))
        whole = joined and ends[-1] == len(self.input_gather.indices)
        several = len(self.convs) == len(slices) > 1
        return tuple(map(len, slices)) if whole and several else ()

    @property
    def in_order(self) -> bool:
        """Whether one convolution puts out all channels, in order: nothing comes behind it."""
        one = len(self.convs) == 1 and not self.constants
        return one and self.output_gather.kind == "identity"

    @property
    def ends_in_conv(self) -> bool:
        """Whether one convolution gives the result, so that a runtime can fuse what follows."""
        return self.in_order or self.by_product

    def describe(self) -> str:
        """The form, its convolutions and what gathers for them, in one line."""
        sides = (("input", self.input_gather), ("output", self.output_gather))
        return "; ".join(
            [
                f"{self.form}: {first_few([conv.describe() for conv in self.convs])}",
                *(f"{name} {side.kind}" for name, side in sides if side.kind != "identity"),
                *(["by a 1x1 convolution"] if self.by_product else []),
            ]
        )


def plan(structure: BlockStructure, form: PlainForm | Literal["auto"] = "auto") -> FormPlan:
    """The plan of `structure` in `form`.

    - `dense`: the convolution as it was, with the mask folded into its weight.
    - `grouped`: one grouped conv; only for blocks that all have one shape.
    - `bucketed`: one grouped conv for all blocks of one shape.
    - `padded`: one grouped conv, each block padded to the most inputs and most outputs of any.
    - `split`: one conv with groups=1 a block.
    - `auto`: see `choose_form`.

    Blocks are executed in the order, and with their channels in the order, that leaves the fewest
    gathers, then the fewest transposes, then the fewest shuffles, then moves the fewest channels;
    among equals, in the order of the structure.

    Raises UsageError for an unknown form, and for `grouped` where blocks differ in shape.
    """
    chosen = choose_form(structure) if form == "auto" else form
    if chosen not in FORMS:
        raise UsageError(f"form={form!r}: choose one of auto, {', '.join(FORMS)}")
    if chosen == "dense":
        return _dense(structure)
    if chosen == "grouped" and not structure.equal:
        shapes = len(set(structure.shapes))
        raise UsageError(
            f"form='grouped' needs blocks of one shape, and these {len(structure.blocks)} blocks "
            f"have {shapes}; take 'bucketed' or 'padded'"
        )
    plans = (_assemble(structure, chosen, layout) for layout in _layouts(structure))
    return min(plans, key=_cost)


def plan_in_order(structure: BlockStructure, form: Literal["bucketed", "padded"]) -> FormPlan:
    """The plan that executes the blocks, and the channels of each, in the order that they have."""
    return _assemble(structure, form, structure.blocks)


def choose_form(structure: BlockStructure) -> PlainForm:
    """The form with the fewest MACs; among equals the first of dense, grouped, bucketed, split.

    That is `dense` where the blocks save nothing (such as one block of all channels), else
    `grouped` where all blocks have one shape, else `bucketed`. It is never `split`, which needs as
    many MACs as `bucketed` and more calls, nor `padded`, which needs more.
    """
    if structure.exact_macs >= structure.dense_macs:
        return "dense"
    return "grouped" if structure.equal else "bucketed"


def _dense(structure: BlockStructure) -> FormPlan:
    inputs, outputs = structure.in_channels, structure.out_channels
    conv = ConvPlan(Slice(0, inputs), tuple(range(outputs)), (tuple(range(inputs)),))
    same_inputs, same_outputs = (plan_gather(range(n), n) for n in (inputs, outputs))
    return FormPlan("dense", same_inputs, (conv,), (), same_outputs)


def _assemble(structure: BlockStructure, form: PlainForm, layout: Layout) -> FormPlan:
    """The plan that executes the blocks in the order of `layout`."""
    buckets = [_Bucket.of(blocks) for blocks in _buckets(layout, form)]
    input_gather, slices = _reading(structure.in_channels, [bucket.reads for bucket in buckets])
    convs = tuple(
        ConvPlan(where, bucket.rows, bucket.columns)
        for where, bucket in zip(slices, buckets, strict=True)
    )
    result = [*(row for conv in convs for row in conv.rows), *structure.bias_only]
    place = {row: place for place, row in enumerate(result) if row is not None}
    output_gather = plan_gather([place[row] for row in range(len(place))], len(result))
    return FormPlan(form, input_gather, convs, structure.bias_only, output_gather)


@dataclass(frozen=True)
class _Bucket:
    """Blocks that one conv executes, each padded to the largest of them."""

    reads: tuple[int, ...]
    rows: tuple[int | None, ...]
    columns: tuple[tuple[int | None, ...], ...]

    @staticmethod
    def of(blocks: Sequence[Block]) -> _Bucket:
        width = max(len(block.inputs) for block in blocks)
        height = max(len(block.outputs) for block in blocks)
        reads: list[int] = []
        rows: list[int | None] = []
        columns: list[tuple[int | None, ...]] = []
        for block in blocks:
            missing = width - len(block.inputs)
            reads += [*block.inputs, *[block.inputs[-1]] * missing]
            rows += [*block.outputs, *[None] * (height - len(block.outputs))]
            columns.append((*block.inputs, *[None] * missing))
        return _Bucket(tuple(reads), tuple(rows), tuple(columns))


def _buckets(layout: Layout, form: PlainForm) -> list[list[Block]]:
    """The blocks of each conv, in the order of their first block."""
    if form == "split":
        return [[block] for block in layout]
    buckets: dict[object, list[Block]] = {}
    for block in layout:
        buckets.setdefault(block.shape if form == "bucketed" else None, []).append(block)
    return list(buckets.values())


def _reading(channels: int, reads: list[tuple[int, ...]]) -> tuple[GatherPlan, list[Slice]]:
    """One gather for all convs, and what each reads of it."""
    if all(_is_run(chosen) for chosen in reads):
        slices = [Slice(chosen[0], chosen[-1] + 1) for chosen in reads]
        return plan_gather(range(channels), channels), slices
    ends = np.cumsum([len(chosen) for chosen in reads]).tolist()
    slices = [Slice(end - len(chosen), end) for end, chosen in zip(ends, reads, strict=True)]
    return plan_gather([channel for chosen in reads for channel in chosen], channels), slices


def _is_run(channels: tuple[int, ...]) -> bool:
    return channels == tuple(range(channels[0], channels[0] + len(channels)))


def _cost(plan: FormPlan) -> tuple[int, ...]:
    """What `plan` keeps as small as it can: the costliest kind of gather first."""
    gathers = [plan.input_gather, plan.output_gather]
    kinds = [gather.kind for gather in gathers]
    moved = sum(len(gather.indices) for gather in gathers if gather.kind != "identity")
    return (*(kinds.count(kind) for kind in ("gather", "transpose", "shuffle")), moved)


def _layouts(structure: BlockStructure) -> Iterator[Layout]:
    """Orders worth trying: as given, by inputs, and those that make a gather regular."""
    blocks = structure.blocks
    yield blocks
    yield tuple(sorted(blocks, key=lambda block: min(block.inputs)))
    if not structure.equal:
        return
    reading = list(_regular_orders(structure.in_channels, [block.inputs for block in blocks]))
    writing = list(_regular_orders(structure.out_channels, [block.outputs for block in blocks]))
    for inputs in reading:
        as_given = {index: blocks[index].outputs for index in inputs}
        for outputs in (*writing, as_given):
            if list(outputs) == list(inputs):
                yield tuple(Block(inputs[index], outputs[index]) for index in inputs)
    for outputs in writing:
        yield tuple(Block(blocks[index].inputs, outputs[index]) for index in outputs)


def _regular_orders(
    channels: int, members: Sequence[tuple[int, ...]]
) -> Iterator[dict[int, tuple[int, ...]]]:
    """Orders of the blocks, and of the channels in each, that a shuffle or nothing brings about.

    `members` are the channels of each block, as many in each. There is no such order unless each of
    the `channels` is in exactly one block.
    """
    size = len(members[0])
    owner = np.full(channels, -1)
    for index, chosen in enumerate(members):
        owner[list(chosen)] = index
    if size * len(members) != channels or -1 in owner:
        return
    for groups in (number for number in range(1, channels) if channels % number == 0):
        order = np.arange(channels).reshape(groups, -1).T.reshape(len(members), size)
        owners = owner[order]
        if (owners == owners[:, :1]).all():
            yield dict(zip(owners[:, 0].tolist(), map(tuple, order.tolist()), strict=True))
