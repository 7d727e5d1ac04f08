"""What a form costs on ONNX Runtime's CPU, in microseconds: a model of its kernels and layouts.

There is a blocked layout, in which channels lie in blocks of 16 (AVX-512) or 8 (AVX2):

- with one group, fewer inputs than a block are read as they are (`direct`); a multiple of 4 stays
  in the blocked layout and costs what the next multiple of the block does; outputs are free;
- with several, inputs and outputs a group must be multiples of the block, or it is depthwise;
- everything else is im2col and a matrix product, in the plain layout;
- Concat stays if every input is a multiple of the block; gathers and slices need the plain layout.

A change of the layout is a node that copies. What goes into the site and what comes out is taken to
be blocked, as it is between two convolutions, and the activation or addition behind the site to be
fused into it where the site ends in one convolution, else to be a node of its own.

The rates are those of a `Machine`. On two networks with learned groups the model's choice is
measured by `python -m tests.benchmarks form-speed`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ..errors import UsageError
from .binned.piece import Piece, padded
from .blocks import BlockStructure
from .forms import ConvPlan, FormPlan, plan
from .gathers import GatherPlan
from .machine import Machine, rate

Layout = Literal["blocked", "direct", "plain"]

SLOWER = "in this form likely slower than dense on ONNX Runtime"
"""Topic of a note on a site that is written in the form that the rewrite gave it."""

_FILTERS_AT_A_TIME = 4
# Taps of a 3x3 kernel.
_NARROW = 9
_STAYS = 4
_ELEMENT = 4
# Bytes of a way of the first cache.
_ALIAS = 4096
# What an output of a Split takes of a node: 10 of them took 8 us where a node took 2.
_OF_CUT = 0.4
# Of the time that memory takes, the share in which a convolution that is not depthwise computes.
_HIDDEN = 0.6
# So many times the cache, and nothing that is written is in it: of MobileNetV2 at 96x96 and batch
# 16, a depthwise convolution takes 3 times as long as it computes, a 1x1 one up to 1.8 times.
_ALL_BEYOND = 4
# Reorder, gather, addition and reorder took 2.0 us at 64 channels of 8x8, a 1x1 convolution 2.4:
# three nodes that stand next to each other take nothing by themselves.
_LEFT_OUT = 3
# Shape, Slice, Slice, Concat, Expand.
_CONSTANT_NODES = 5
# Shape, Reshape, Reshape; the Transpose itself is counted as a copy.
_TRANSPOSE_NODES = 3


@dataclass(frozen=True)
class Work:
    """How much a site has to do: taps of the kernel (9 for 3x3), positions of the output (196 for
    14x14) and of the input, the same where not given, samples in a batch.

    `model_weights` are the bytes of all weights of the model: where they do not fit into the
    cache, weights come from memory. `model_values` are the most that a convolution of it reads and
    writes: where these do not fit, what a large one writes lies in no cache, nor does all that it
    reads. `blocked` is whether the runtime has a blocked layout for the site: for 2-d convolutions
    in float32. Raises UsageError if a number is not positive.
    """

    taps: int
    positions: int
    input_positions: int | None = None
    batch: int = 1
    model_weights: int = 0
    model_values: int = 0
    blocked: bool = True

    def __post_init__(self) -> None:
        if min(self.taps, self.positions, self.batch, self.read_positions) < 1:
            raise UsageError(
                f"taps={self.taps}, positions={self.positions}, "
                f"input_positions={self.input_positions}, batch={self.batch}: "
                "each must be at least 1"
            )

    @property
    def read_positions(self) -> int:
        """Positions of the input."""
        return self.positions if self.input_positions is None else self.input_positions


@dataclass(frozen=True)
class OnnxRuntime:
    """The cost of the parts of a site, in microseconds. `share` of the model's weights is left.

    `read_channels` is how many channels the site reads, of which each of its pieces takes some.
    """

    work: Work
    machine: Machine = field(default_factory=Machine)
    share: float = 1.0
    read_channels: int = 0

    @property
    def block(self) -> int:
        """Width of the blocked layout; 0 if the site has none."""
        return self.machine.block if self.work.blocked else 0

    def site(self, plan: FormPlan, in_channels: int) -> float:
        """The whole site, which reads `in_channels`, in the form of `plan`, between convolutions
        in the blocked layout.
        """
        total = self.inside(plan, in_channels)
        if not self.reads_as_it_is(plan):
            total += self.leaves(in_channels * self._read, self.work.read_positions)
        written = len(plan.output_gather.indices) * self._written
        if not plan.ends_in_conv:
            # What was fused into the one convolution.
            total += self.copy(written)
        return total if self.gives_blocked(plan) else total + self.enters(written)

    def inside(self, plan: FormPlan, in_channels: int, *, joined: bool = False) -> float:
        """The nodes of the site alone: what it reads and what it gives lie as it needs them.

        If `joined`, no gather stands behind: the site that follows gathers for both.
        """
        layouts = [self._layout_of(conv) for conv in plan.convs]
        total = self._moved(plan.input_gather, self._read, in_channels)
        as_it_is = self.reads_as_it_is(plan)
        cuts = plan.cuts
        total += self._cut(cuts)
        for conv, layout in zip(plan.convs, layouts, strict=True):
            total += 0 if cuts else self._source(plan, conv, in_channels)
            total += 0 if as_it_is else self._enter(conv.in_channels, layout)
            total += self.conv(conv.in_channels, conv.out_channels, conv.groups)
        return total + self._joining(plan, layouts, joined=joined)

    def reads_as_it_is(self, plan: FormPlan) -> bool:
        """Whether one conv reads the layer's input in the layout in which it came."""
        if len(plan.convs) != 1:
            return not plan.convs
        first = plan.convs[0]
        whole = plan.input_gather.kind == "identity" and first.source is None
        return whole and (self._layout_of(first) == "blocked" or not self.block)

    def gives_blocked(self, plan: FormPlan, *, joined: bool = False) -> bool:
        """Whether the result is in the blocked layout, or there is none."""
        if not self.block:
            return True
        return not _gathers_behind(plan, joined) and not self._joins_outside(plan)

    def products(self, plan: FormPlan) -> float:
        """The convolutions of the site alone, without what is moved for them."""
        own = sum(self.conv(c.in_channels, c.out_channels, c.groups) for c in plan.convs)
        return own + self._picked(plan)

    def piece(self, piece: Piece, bins: int = 1) -> float:
        """One conv of `bins` equal bins, from its gather to its part of the concatenation."""
        columns, rows = piece.columns * bins, piece.rows * bins
        layout = self.layout(columns, rows, bins)
        total = self._gather(columns, self._read, self.read_channels)
        total += self._enter(columns, layout) + self.conv(columns, rows, bins)
        if piece.added:
            return total + (self.copy(rows * self._written) if layout == "plain" else 0)
        written = rows * self._written
        leaves = 0.0 if layout == "plain" else self.leaves(written, self.work.positions)
        return total + leaves + self.copy(written) - self.machine.node

    def layout(self, inputs: int, outputs: int, groups: int) -> Layout:
        """What the runtime makes of a convolution."""
        block = self.block
        if not block:
            return "plain"
        if groups == 1:
            if inputs < block:
                return "direct"
            return "plain" if inputs % _STAYS else "blocked"
        sides = (inputs // groups, outputs // groups)
        if sides == (1, 1):
            return "plain" if outputs % block else "blocked"
        return "plain" if any(side % block for side in sides) else "blocked"

    def conv(self, inputs: int, outputs: int, groups: int) -> float:
        """The convolution alone."""
        node, layout = self.machine.node, self.layout(inputs, outputs, groups)
        read, filters = inputs // groups, outputs // groups
        if layout == "blocked" and read > 1:
            read = padded(read, self.block)
        weights = groups * read * filters * self.work.taps * _ELEMENT / self._bandwidth / 1e3
        if layout == "plain":
            # A product reads its weights from end to end and writes, and computes meanwhile.
            product = groups * self._product(read, filters)
            streamed, written = (
                values * self._each(0, values) / 1e3
                for values in (inputs * self._read, outputs * self._written)
            )
            return node + max(product, weights, written) + groups * self._unfold(read) + streamed
        if read == filters == 1:
            time = outputs * self.work.taps * self._written / self.machine.depthwise / 1e3
        else:
            time = groups * self._blocked(read, filters, direct=layout == "direct")
        waits = self._waits(inputs, outputs) * (1 if read == filters == 1 else 1 - _HIDDEN)
        return node + time + weights + waits

    def _waits(self, inputs: int, outputs: int) -> float:
        """What a depthwise convolution waits for values that lie in no cache."""
        machine, values = self.machine, inputs * self._read + outputs * self._written
        of_model = _beyond(self.work.model_values, machine.cache, _ALL_BEYOND * machine.cache)
        own = _beyond(values, machine.near_bytes, machine.far_bytes)
        return of_model * own * values * machine.stream / 1e3

    def _layout_of(self, conv: ConvPlan) -> Layout:
        return self.layout(conv.in_channels, conv.out_channels, conv.groups)

    @property
    def _bandwidth(self) -> float:
        fits = self.work.model_weights * self.share <= self.machine.cache
        return self.machine.warm if fits else self.machine.cold

    def _blocked(self, inputs: int, outputs: int, *, direct: bool) -> float:
        work, machine = self.work, self.machine
        table = machine.pointwise if work.taps == 1 else machine.blocked
        size, blocks = math.sqrt(work.positions), -(-outputs // self.block)
        full, rest = divmod(blocks, _FILTERS_AT_A_TIME)
        macs = inputs * self.block * work.taps * self._written / 1e3
        time = full * _FILTERS_AT_A_TIME * macs / rate(table, size, _FILTERS_AT_A_TIME)
        if rest:
            time += rest * macs / rate(table, size, rest)
        if direct and work.taps == 1:
            return blocks * macs / machine.direct_pointwise
        if work.taps > _NARROW and work.positions >= work.taps:
            time /= machine.wide
        return time / machine.direct if direct else time

    def _product(self, inputs: int, outputs: int) -> float:
        work, machine = self.work, self.machine
        macs = inputs * outputs * work.taps * self._written / 1e3
        if work.taps > 1:
            return macs / machine.plain
        # Narrow products do not fill the kernel.
        return macs / machine.plain_pointwise * (1 + machine.plain_half / outputs)

    def _unfold(self, inputs: int) -> float:
        """What im2col takes in front of a product; a 1x1 kernel needs none."""
        work, (fixed, by_width) = self.work, self.machine.unfold
        if work.taps == 1:
            return 0
        each = fixed + by_width / math.sqrt(work.positions)
        return inputs * work.taps * self._written * each / 1e3

    @property
    def _written(self) -> int:
        return self.work.positions * self.work.batch

    @property
    def _read(self) -> int:
        return self.work.read_positions * self.work.batch

    def _each(self, near: float, values: int) -> float:
        """Nanoseconds for each value out of a tensor of `values`, which take `near` in a cache."""
        machine = self.machine
        share = _beyond(values, machine.near_bytes, machine.far_bytes)
        return near + share * max(machine.far - near, 0.0)

    def copy(self, values: int, source: int = 0) -> float:
        """A copy of `values` out of a tensor of `source`, where that is larger."""
        each = self._each(self.machine.move, max(values, source))
        return self.machine.node + values * each / 1e3

    def enters(self, values: int) -> float:
        """A change from the plain layout into the blocked one."""
        return self.machine.node + values * self.machine.reorder / 1e3 if self.block else 0

    def leaves(self, values: int, positions: int) -> float:
        """A change from the blocked layout into the plain one, of maps of so many `positions`."""
        if not self.block:
            return 0
        machine = self.machine
        aliased = positions * _ELEMENT % _ALIAS == 0
        each = self._each(machine.reorder_aliased if aliased else machine.reorder, values)
        return machine.node + values * each / 1e3

    def interpolates(self, values: int) -> float:
        """What so many values between others take longer than in the blocked layout."""
        return values * self.machine.interpolate / 1e3 if self.block else 0

    def _gather(self, channels: int, positions: int, source: int) -> float:
        """So many channels out of `source` channels."""
        picked = channels * self.work.batch * self.machine.pick
        return self.copy(channels * positions, source * positions) + picked

    def _enter(self, inputs: int, layout: Layout) -> float:
        """What brings a gathered or sliced tensor into the layout of its convolution."""
        return self.enters(inputs * self._read) if layout == "blocked" else 0

    def _moved(self, gather: GatherPlan, positions: int, source: int) -> float:
        channels = len(gather.indices)
        if gather.kind == "identity":
            return 0
        if gather.kind == "gather":
            return self._gather(channels, positions, source)
        return _TRANSPOSE_NODES * self.machine.node + self.copy(2 * channels * positions)

    def _source(self, plan: FormPlan, conv: ConvPlan, in_channels: int) -> float:
        """What picks the conv's inputs of what is read."""
        if conv.source is not None:
            return self._moved(conv.source, self._read, in_channels)
        gathered = len(plan.input_gather.indices)
        if len(conv.inputs) == gathered:
            return 0
        return self.copy(conv.in_channels * self._read, gathered * self._read)

    def _cut(self, cuts: Sequence[int]) -> float:
        """A Split into so many channels each; nothing where there is none."""
        if not cuts:
            return 0
        return self.copy(sum(cuts) * self._read) + len(cuts) * _OF_CUT * self.machine.node

    def _picked(self, plan: FormPlan) -> float:
        """The 1x1 convolution that picks what the site gives, where one does."""
        if not plan.by_product:
            return 0
        one = replace(self, work=replace(self.work, taps=1, input_positions=None))
        more = _LEFT_OUT * self.machine.node
        return one.conv(plan.result_channels, len(plan.output_gather.indices), 1) + more

    def _joins_outside(self, plan: FormPlan) -> bool:
        """Whether the results of the convolutions are, or are concatenated, in the plain layout."""
        parts = [conv for conv in plan.convs if not conv.added]
        several = len(parts) > 1 or bool(plan.constants)
        ragged = bool(plan.constants) or any(conv.out_channels % self.block for conv in parts)
        plain = any(self._layout_of(conv) == "plain" for conv in parts)
        return plain or (several and ragged)

    def _joining(self, plan: FormPlan, layouts: Sequence[Layout], *, joined: bool) -> float:
        """Everything of the site behind its convolutions."""
        pairs = list(zip(plan.convs, layouts, strict=True))
        parts = [(conv.out_channels, kind) for conv, kind in pairs if not conv.added]
        total = sum(
            self.copy(conv.out_channels * self._written)
            for conv, kind in pairs
            if conv.added and kind == "plain"
        )
        gathers = _gathers_behind(plan, joined)
        result = plan.result_channels * self._written
        several = len(parts) != 1 or bool(plan.constants)
        if plan.constants:
            total += _CONSTANT_NODES * self.machine.node
        if several:
            total += self.copy(result)
        if self.block and (several or gathers) and self._joins_outside(plan):
            left = [rows * self._written for rows, kind in parts if kind != "plain"]
            total += sum(self.leaves(values, self.work.positions) for values in left)
        elif gathers:
            total += self.leaves(result, self.work.positions)
        if not gathers:
            return total + self._picked(plan)
        return total + self._moved(plan.output_gather, self._written, plan.result_channels)


def _gathers_behind(plan: FormPlan, joined: bool) -> bool:
    return plan.output_gather.kind != "identity" and not joined and not plan.by_product


def _beyond(values: int, near: int, far: int) -> float:
    """How far so many values are from `near` bytes to `far` bytes: 0 to 1, by their logarithm."""
    place = math.log(max(values, 1) * _ELEMENT / near) / math.log(far / near)
    return min(max(place, 0.0), 1.0)


def likely_slower(
    structure: BlockStructure, form: FormPlan, work: Work, remedy: str = "try form=dense"
) -> str | None:
    """Why `form` is likely to be slower than dense on ONNX Runtime's CPU, or None if it is not.

    The text goes on after `SLOWER`.
    """
    if not form.convs:
        return None
    price = OnnxRuntime(work)
    dense = price.site(plan(structure, "dense"), structure.in_channels)
    time = price.site(form, structure.in_channels)
    if time <= dense:
        return None
    return f"about {time / dense:.2f} times as long ({time:.0f} us, {dense:.0f}); {remedy}"
