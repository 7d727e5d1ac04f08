"""Tools that compute something else: each changes a program as a careless converter would.

A change gives the changed program, or None where a case has nothing that it could get wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from groupfx.testing import Adapter, Case
from groupfx.testing.conformance.adapter import Outputs
from groupfx.testing.kit.integers import ConvInteger, Dequantize, QLinearConv, Quantize
from groupfx.testing.kit.known import Known
from groupfx.testing.kit.operations import (
    Activation,
    Binary,
    Concat,
    Gather,
    Norm,
    Reshape,
    Slice,
    Split,
)
from groupfx.testing.kit.program import Program, Step
from groupfx.testing.kit.windows import Conv, ConvTranspose, Pad

CONVS = (Conv, ConvTranspose, QLinearConv, ConvInteger)
Change = Callable[[Step, Mapping[str, Known]], Step | None]


@dataclass(frozen=True)
class _Rows:
    """A convolution whose weight has its rows of groups in another order."""

    inner: Any
    groups: int

    def define(self, *given: Known) -> tuple[Known, ...]:
        place = weight_place(self.inner)
        size = len(given[place].value) // self.groups
        turned = given[place].moved(lambda v: np.roll(v, size, 0))
        return self.inner.define(*given[:place], turned, *given[place + 1 :])


def weight_place(operation: object) -> int:
    """Where a convolution reads its weight."""
    return 3 if isinstance(operation, QLinearConv) else 1


def wrong_groups(step: Step, known: Mapping[str, Known]) -> Step | None:
    """Each group takes the weights of its neighbour."""
    operation = step.operation
    if not isinstance(operation, CONVS):
        return None
    inner = operation.conv if isinstance(operation, (QLinearConv, ConvInteger)) else operation
    return replace(step, operation=_Rows(operation, inner.groups)) if inner.groups > 1 else None


def ignored_dilation(step: Step, known: Mapping[str, Known]) -> Step | None:
    """The taps lie side by side; pads make up for the size."""
    operation = step.operation
    if not isinstance(operation, Conv) or not any(d > 1 for d in operation.dilations):
        return None
    kernel = known[step.reads[1]].shape[2:]
    placed = operation.placed(known[step.reads[0]].shape[2:], kernel)
    rank = len(kernel)
    less = [(k - 1) * (d - 1) for k, d in zip(kernel, operation.dilations, strict=True)]
    begins = [p - n // 2 for p, n in zip(placed.pads or (0,) * rank, less, strict=False)]
    ends = [
        p - (n - n // 2) for p, n in zip((placed.pads or (0,) * 2 * rank)[rank:], less, strict=True)
    ]
    return replace(step, operation=replace(placed, dilations=(), pads=(*begins, *ends)))


def dropped_bias(step: Step, known: Mapping[str, Known]) -> Step | None:
    """No bias."""
    operation = step.operation
    if isinstance(operation, (Conv, ConvTranspose)) and len(step.reads) > 2:
        return replace(step, reads=step.reads[:2])
    if isinstance(operation, QLinearConv) and len(step.reads) > 8:
        return replace(step, reads=step.reads[:8])
    return None


def swapped_concat(step: Step, known: Mapping[str, Known]) -> Step | None:
    """The first part behind the others."""
    if not isinstance(step.operation, Concat):
        return None
    return replace(step, reads=(*step.reads[1:], step.reads[0]))


def swapped_pads(step: Step, known: Mapping[str, Known]) -> Step | None:
    """The pads of the ends at the begins."""
    operation = step.operation
    if isinstance(operation, (Conv, ConvTranspose)) and operation.auto_pad == "NOTSET":
        half = len(operation.pads) // 2
        pads = operation.pads[half:] + operation.pads[:half]
        return (
            replace(step, operation=replace(operation, pads=pads))
            if pads != operation.pads
            else None
        )
    other = {"SAME_UPPER": "SAME_LOWER", "SAME_LOWER": "SAME_UPPER"}
    if not isinstance(operation, (Conv, ConvTranspose)) or operation.auto_pad not in other:
        return None
    changed = replace(operation, auto_pad=other[operation.auto_pad])
    return replace(step, operation=changed)


def crop_at_the_other_end(step: Step, known: Mapping[str, Known]) -> Step | None:
    """What output_padding or output_shape adds at the end is added at the begin."""
    operation = step.operation
    if not isinstance(operation, ConvTranspose):
        return None
    if operation.output_padding:
        rank = len(operation.output_padding)
        pads = operation.pads or (0,) * 2 * rank
        begins = [p - e for p, e in zip(pads, operation.output_padding, strict=False)]
        ends = [p + e for p, e in zip(pads[rank:], operation.output_padding, strict=True)]
        return replace(step, operation=replace(operation, pads=(*begins, *ends)))
    if operation.output_shape:
        return replace(step, operation=replace(operation, auto_pad="SAME_UPPER"))
    return None


def forgotten_mean(step: Step, known: Mapping[str, Known]) -> Step | None:
    """A norm that takes its mean for 0."""
    if not isinstance(step.operation, Norm):
        return None
    return replace(step, operation=_NoMean(step.operation))


@dataclass(frozen=True)
class _NoMean:
    inner: Norm

    def define(
        self, x: Known, scale: Known, bias: Known, mean: Known, var: Known
    ) -> tuple[Known, ...]:
        return self.inner.define(x, scale, bias, mean.moved(np.zeros_like), var)


def ignored_order(step: Step, known: Mapping[str, Known]) -> Step | None:
    """A permutation that is left out, or turned round."""
    operation = step.operation
    if isinstance(operation, Gather):
        changed = replace(operation, indices=tuple(sorted(operation.indices)))
        return replace(step, operation=changed) if changed != operation else None
    if isinstance(operation, Slice) and operation.step == -1:
        return replace(step, operation=Slice(0, known[step.reads[0]].shape[1]))
    return None


def inverse_order(step: Step, known: Mapping[str, Known]) -> Step | None:
    """A shuffle of (g, n) taken for one of (n, g), or a permutation for its inverse."""
    operation = step.operation
    if isinstance(operation, Reshape):
        return _inverse_shuffle(step, operation, known[step.reads[0]].shape)
    if not isinstance(operation, Gather) or len(set(operation.indices)) < len(operation.indices):
        return None
    if sorted(operation.indices) != [*range(len(operation.indices))]:
        return None
    inverse = tuple(int(i) for i in np.argsort(operation.indices))
    changed = replace(operation, indices=inverse)
    return replace(step, operation=changed) if changed != operation else None


def _inverse_shuffle(step: Step, operation: Reshape, shape: tuple[int, ...]) -> Step | None:
    """Channels that are taken apart into groups and depth: into depth and groups."""
    sizes = [*operation.sizes]
    for axis, first in ((1, 1), (-1, len(sizes) - 2)):
        apart = sizes[first : first + 2]
        if len(sizes) > 3 and apart[0] * apart[1] == shape[axis] and apart[0] != apart[1]:
            sizes[first : first + 2] = reversed(apart)
            return replace(step, operation=Reshape(tuple(sizes)))
    return None


def swapped_parts(step: Step, known: Mapping[str, Known]) -> Step | None:
    """The results of a split the other way round."""
    operation = step.operation
    if not isinstance(operation, Split) or len(set(operation.sizes)) > 1:
        return None
    return replace(step, gives=step.gives[::-1])


def mirrored_window(step: Step, known: Mapping[str, Known]) -> Step | None:
    """A correlation taken for a convolution."""
    operation = step.operation
    if not isinstance(operation, CONVS):
        return None
    kernel = known[step.reads[weight_place(operation)]].shape[2:]
    return replace(step, operation=_Mirrored(operation)) if max(kernel) > 1 else None


@dataclass(frozen=True)
class _Mirrored:
    inner: Any

    def define(self, *given: Known) -> tuple[Known, ...]:
        place = weight_place(self.inner)
        axes = tuple(range(2, given[place].value.ndim))
        mirrored = given[place].moved(lambda v: np.flip(v, axes))
        return self.inner.define(*given[:place], mirrored, *given[place + 1 :])


def ignored_value(step: Step, known: Mapping[str, Known]) -> Step | None:
    """Zeros in place of the value of a Pad."""
    if isinstance(step.operation, Pad) and step.operation.value:
        return replace(step, operation=replace(step.operation, value=0.0))
    return None


def lost_activation(step: Step, known: Mapping[str, Known]) -> Step | None:
    """An activation that is left out."""
    if not isinstance(step.operation, Activation):
        return None
    return replace(step, operation=Gather(tuple(range(known[step.reads[0]].shape[1]))))


def one_for_all(step: Step, known: Mapping[str, Known]) -> Step | None:
    """A constant that is added or multiplied: that of the first channel, or column, for all."""
    if not isinstance(step.operation, Binary):
        return None
    rest = known[step.reads[1]]
    return replace(step, operation=_FirstForAll(step.operation)) if rest.value.size > 1 else None


@dataclass(frozen=True)
class _FirstForAll:
    inner: Binary

    def define(self, left: Known, right: Known) -> tuple[Known, ...]:
        return self.inner.define(left, right.moved(lambda v: np.full_like(v, v.flat[0])))


def zero_point_off(step: Step, known: Mapping[str, Known]) -> Step | None:
    """A zero point that is one off."""
    operation = step.operation
    if not isinstance(operation, (Quantize, Dequantize, QLinearConv, ConvInteger)):
        return None
    return replace(step, operation=_OneOff(operation))


@dataclass(frozen=True)
class _OneOff:
    inner: Any

    def define(self, *given: Known) -> tuple[Known, ...]:
        place = 7 if isinstance(self.inner, QLinearConv) else 2
        off = given[place].moved(lambda v: v + 1)
        return self.inner.define(*given[:place], off, *given[place + 1 :])


CHANGES: Mapping[str, Change] = {
    "wrong groups": wrong_groups,
    "ignored dilation": ignored_dilation,
    "dropped bias": dropped_bias,
    "swapped concat": swapped_concat,
    "swapped pads": swapped_pads,
    "crop at the other end": crop_at_the_other_end,
    "forgotten mean": forgotten_mean,
    "ignored order": ignored_order,
    "inverse order": inverse_order,
    "swapped parts": swapped_parts,
    "mirrored window": mirrored_window,
    "ignored value": ignored_value,
    "lost activation": lost_activation,
    "one for all": one_for_all,
    "zero point off": zero_point_off,
}


def wrong_programs(case: Case, change: Change) -> Iterator[Program]:
    """The program with each step changed in turn that can be."""
    program = case.program
    known = program.values(program.feeds[0])
    for position, step in enumerate(program.steps):
        changed = change(step, known)
        if changed is not None:
            steps = (*program.steps[:position], changed, *program.steps[position + 1 :])
            yield replace(program, steps=steps)


def outputs_of(program: Program) -> Outputs:
    """What a runtime that follows `program` gives, each number rounded to its dtype."""
    return [
        {
            name: known.stored()
            for name, known in zip(program.outputs, program.answers(feeds), strict=True)
        }
        for feeds in program.feeds
    ]


def wrong_tool(change: Change) -> Adapter:
    """A runtime that makes a mistake in the first place where it can."""

    def run(case: Case) -> Outputs:
        return outputs_of(next(wrong_programs(case, change), case.program))

    return Adapter("wrong", run)
