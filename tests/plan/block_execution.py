"""Runs a plan on integers, and says what is wrong with it: the oracle of the blocks' tests.

Written from the description of a plan alone, with a loop for everything, and in Python's own
integers, so that any difference counts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from groupfx.plan.forms import FormPlan
from groupfx.plan.gathers import GatherPlan

Ints = npt.NDArray[np.int64]


def problem_with_plan(plan: FormPlan, mask: Ints, seed: int = 0) -> str | None:
    """Say how `plan` differs from the masked 1x1 conv of `mask`, `[out, in]`; None if it does not.

    Weights, bias and input are random, and none of them is zero.
    """
    draw = np.random.default_rng(seed)
    out_channels, in_channels = mask.shape
    weight = draw.integers(1, 10**6, mask.shape) * mask
    bias = draw.integers(1, 10**6, size=(out_channels,))
    x = draw.integers(1, 10**6, size=(in_channels,))
    try:
        found = execute(plan, weight, bias, x)
    except (IndexError, AssertionError) as error:
        return f"cannot be executed: {error!r}"
    expected = weight @ x + bias
    if found.shape != expected.shape:
        return f"{len(found)} channels come out instead of {out_channels}"
    wrong = np.flatnonzero(found != expected)
    return f"output channels {wrong.tolist()} differ" if len(wrong) else None


def execute(plan: FormPlan, weight: Ints, bias: Ints, x: Ints) -> Ints:
    """Output of `plan` for the input channels `x`; `weight` is the masked one, `[out, in]`."""
    gathered = apply_gather(plan.input_gather, x)
    result: list[int] = []
    previous: tuple[int | None, ...] = ()
    for conv in plan.convs:
        assert conv.groups > 0, "a conv without groups"
        assert conv.in_channels > 0, "a conv without inputs"
        assert conv.out_channels > 0, "a conv without outputs"
        assert conv.in_channels % conv.groups == 0, "inputs are not whole groups"
        assert conv.out_channels % conv.groups == 0, "outputs are not whole groups"
        whole = gathered if conv.source is None else apply_gather(conv.source, x)
        assert 0 <= conv.inputs.start < conv.inputs.stop <= len(whole), "no such slice"
        read = whole[conv.inputs.start : conv.inputs.stop]
        width = conv.in_channels // conv.groups
        height = conv.out_channels // conv.groups
        put_out: list[int] = []
        for place, row in enumerate(conv.rows):
            group = place // height
            assert len(conv.columns[group]) == width, "columns do not fit the group"
            total = 0 if row is None or conv.added else int(bias[row])
            for offset, column in enumerate(conv.columns[group]):
                entry = 0 if row is None or column is None else int(weight[row, column])
                total += entry * int(read[group * width + offset])
            put_out.append(total)
        if conv.added:
            assert previous == conv.rows, "what is added has other rows"
            before = result[-len(put_out) :]
            del result[-len(put_out) :]
            put_out = [one + other for one, other in zip(before, put_out, strict=True)]
        previous = conv.rows
        result.extend(put_out)
    result.extend(int(bias[channel]) for channel in plan.constants)
    return apply_gather(plan.output_gather, np.array(result))


def apply_gather(gather: GatherPlan, x: Ints) -> Ints:
    """`x` as `gather.kind` says to treat it, which must agree with its indices."""
    by_index = x[list(gather.indices)]
    if gather.kind == "gather":
        return by_index
    treated = x
    if gather.kind == "shuffle":
        assert gather.groups is not None, "a shuffle without groups"
        treated = x.reshape(gather.groups, -1).T.ravel()
    if gather.kind == "transpose":
        treated = x.reshape(gather.shape).transpose(gather.axes).ravel()
    assert np.array_equal(treated, by_index), f"{gather.kind} is not what its indices say"
    return treated
