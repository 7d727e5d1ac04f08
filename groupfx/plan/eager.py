"""What a form costs in eager PyTorch on a CPU, in microseconds: a model of oneDNN's convolutions.

Nothing is fused, and nothing is prepared: every call of a convolution takes a few microseconds and
puts its weights into oneDNN's order anew, which on small maps is most of the time of a wide one.
Channels are computed in blocks of 16, narrow groups at a fraction of the rate. A slice is a view, a
gather and a concatenation are copies, and of a BatchNorm behind several convolutions each has a
part.

The rates are measured: torch 2.13.0, float32, one thread of a Zen 5 with AVX-512, without
gradients. Of 87 figures, at batch 1 and 16, all are within a factor of 2.1, and 75 of 1.5.
"""

from __future__ import annotations

from dataclasses import dataclass

from .binned.piece import padded
from .cost import Work
from .forms import ConvPlan, FormPlan
from .gathers import GatherPlan

_BLOCK, _HALF_BLOCK = 16, 8
# GMAC/s with many channels, and how many channels reach half of that.
_ALONE, _GROUPED, _POINTWISE = (125.0, 40), (105.0, 16), (100.0, 16)
# Groups whose channels do not fill blocks: how much longer they take than full blocks.
_RAGGED = 1.6
# Microseconds of a call, of a sample in it, of a group, of a view, of a part of a BatchNorm.
_CALL, _SAMPLE, _GROUP, _VIEW, _NORM = 3.5, 2.0, 1.2, 1.2, 5.0
# Nanoseconds a weight, and one of a 1x1 kernel.
_WEIGHT, _POINTWISE_WEIGHT = 0.38, 0.1
# Nanoseconds a value that a 1x1 kernel reads, and one that is copied: near, and far.
_READ, _READ_FAR = 0.1, 0.3
_MOVE, _MOVE_FAR = 0.035, 0.1
_NEAR = 1 << 16
_COPY = 1.7
# view, transpose, reshape
_TRANSPOSE_CALLS = 3
# expand, and what it asks of sizes
_CONSTANT_CALLS = 4


@dataclass(frozen=True)
class Eager:
    """The cost of a site that has to do `work`."""

    work: Work

    def site(self, plan: FormPlan, in_channels: int) -> float:
        """The whole site in the form of `plan`; `in_channels` go in."""
        work = self.work
        total = self._moved(plan.input_gather, work.read_positions)
        width = len(plan.input_gather.indices)
        for conv in plan.convs:
            total += self.conv(conv) + (0 if len(conv.inputs) == width else _VIEW)
        parts = len(plan.convs) + bool(plan.constants)
        if plan.constants:
            total += _CONSTANT_CALLS * _VIEW
        if parts > 1:
            total += self._copy(plan.result_channels * self._written) + (parts - 1) * _NORM
        return total + self._moved(plan.output_gather, work.positions)

    def products(self, plan: FormPlan) -> float:
        """The convolutions of the site alone."""
        return sum(map(self.conv, plan.convs))

    def conv(self, conv: ConvPlan) -> float:
        """One convolution."""
        groups, taps, pointwise = conv.groups, self.work.taps, self.work.taps == 1
        inputs, outputs = conv.in_channels // groups, conv.out_channels // groups
        weights = groups * inputs * outputs * taps
        if not pointwise:
            full = _full(inputs), _full(outputs)
            ragged = groups > 1 and full != (inputs, outputs) and min(full) <= _BLOCK
            inputs, outputs = full
        peak, half = _POINTWISE if pointwise else _GROUPED if groups > 1 else _ALONE
        narrow = min(inputs, outputs)
        time = groups * inputs * outputs * taps * self._written / (peak * narrow / (narrow + half))
        if not pointwise and ragged:
            time *= _RAGGED
        several = _GROUP * groups if groups > 1 else 0
        ordered = weights * (_POINTWISE_WEIGHT if pointwise else _WEIGHT)
        values = conv.in_channels * self.work.read_positions * self.work.batch if pointwise else 0
        read = values * (_READ if values <= _NEAR or groups > 1 else _READ_FAR)
        return _CALL + _SAMPLE * self.work.batch + several + (time + ordered + read) / 1e3

    def _moved(self, gather: GatherPlan, positions: int) -> float:
        if gather.kind == "identity":
            return 0
        copy = self._copy(len(gather.indices) * positions * self.work.batch)
        return copy if gather.kind == "gather" else copy + _TRANSPOSE_CALLS * _VIEW

    def _copy(self, values: int) -> float:
        return _COPY + values * (_MOVE if values <= _NEAR else _MOVE_FAR) / 1e3

    @property
    def _written(self) -> int:
        return self.work.positions * self.work.batch


def _full(channels: int) -> int:
    """As many channels as are computed for so many."""
    return padded(channels, _HALF_BLOCK if channels <= _HALF_BLOCK else _BLOCK)
