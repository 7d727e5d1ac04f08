"""On what inputs a quantised file is compared: a user's, else such as it was calibrated for.

A range of activations is right or wrong for some inputs and not for others. Where nobody gives any,
they are drawn to fill the range that the file's first quantiser has, which is what it was
calibrated on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ....errors import UsageError
from ...quantised.tensors import quantised
from ..example_feeds import example_feeds, input_domains, require_fit
from ..sides import OnnxSide, Side, TorchSide, Values
from .rows import limits

Array = npt.NDArray[Any]

_SEEDS = (11, 23, 47)
_DEVIATIONS = 9.0
"""How many standard deviations wide a range is of values that are normally distributed: the
largest of some ten thousand are 4 from the mean, to either side."""


@dataclass(frozen=True)
class Given:
    """What a user gave: `data` by the names of inputs, `shapes` of inputs that leave sizes open.

    `example` says that the torch side's example inputs are the user's own. `atol` are limits of
    max|d| by the names of the candidate's outputs, in place of what the steps explain.
    """

    data: Sequence[Mapping[str, Array]] = ()
    shapes: Mapping[str | int, tuple[int, ...]] = field(default_factory=dict)
    example: bool = False
    atol: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class QuantisedFeeds:
    """Runs by their names, arrays by the reference's names, and notes.

    `own` says that they are a user's.
    """

    runs: tuple[tuple[str, Values], ...]
    own: bool
    notes: tuple[str, ...] = ()
    guessed: str | None = None


def quantised_feeds(
    reference: Side, candidate: OnnxSide, inputs: Mapping[str, str], given: Given
) -> QuantisedFeeds:
    """What to compare on. Raises UsageError for data that has not all inputs, or does not fit."""
    domains, guessed = input_domains(reference, candidate, inputs)
    example = example_feeds(reference, candidate, inputs, given.shapes, domains)
    runs: list[tuple[str, Values]] = []
    if given.example and isinstance(reference, TorchSide):
        runs.append(("the given inputs", dict(example.feeds)))
    for position, data in enumerate(given.data):
        missing = [n for n, o in inputs.items() if n not in data and o not in data]
        if missing:
            raise UsageError(
                f"the given data has no {', '.join(missing)}; it has {', '.join(data)}"
            )
        name = f"data {position + 1}" if len(given.data) > 1 else "data"
        runs.append((name, {n: data[n] if n in data else data[o] for n, o in inputs.items()}))
    notes = tuple(
        f"nothing says which integers {name} takes: {domains[name]} are guessed" for name in guessed
    )
    own = bool(runs)
    if not own:
        ranges = {mine: _range(candidate, other) for mine, other in inputs.items()}
        for seed in _SEEDS:
            draw = np.random.default_rng(seed)
            made = {
                name: domains[name].sample(a.shape, draw)
                if name in domains
                else _drawn(draw, a.shape, ranges[name])
                for name, a in example.feeds.items()
            }
            runs.append((f"random seed {seed}", made))
        told = [f"{n} in [{r[0]:.3g}, {r[1]:.3g}]" for n, r in ranges.items() if r is not None]
        filled = f" to fill the range that the file quantises, {', '.join(told)}" if told else ""
        notes += (
            f"inputs are drawn{filled}: whether scales of activations fit is not judged on these; "
            "give some that the file was calibrated for (--inputs)",
        )
    fitting = tuple((name, _fitting(candidate, inputs, feeds)) for name, feeds in runs)
    for _, feeds in fitting:
        require_fit(reference, feeds)
        require_fit(candidate, {inputs[name]: array for name, array in feeds.items()})
    return QuantisedFeeds(fitting, own, notes, example.guessed)


def _fitting(candidate: OnnxSide, inputs: Mapping[str, str], feeds: Mapping[str, Array]) -> Values:
    """The same arrays, floats in the dtypes of the candidate."""
    dtypes = {name: dtype for name, dtype, _ in candidate.declared}
    made = {}
    for name, array in feeds.items():
        wanted = np.dtype(dtypes.get(inputs[name], array.dtype))
        made[name] = array.astype(wanted) if array.dtype.kind == wanted.kind == "f" else array
    return made


def _range(candidate: OnnxSide, name: str) -> tuple[float, float] | None:
    """The range of an input that the file quantises first thing."""
    value = next(v for v in candidate.model.graph.inputs if v.name == name)
    for use in value.uses():
        made = quantised(use.node)
        scales = None if made is None else made.scales
        if made is None or scales is None or scales.size != 1:
            continue
        zeros = made.zero_points
        zero = 0.0 if zeros is None else float(np.ravel(zeros)[0])
        low, high = limits(made) if made.zero_point is None else _limits_of(zeros, made)
        scale = float(np.ravel(scales)[0])
        ends = (low - zero) * scale, (high - zero) * scale
        if np.isfinite(ends).all() and ends[0] < ends[1]:
            return ends
    return None


def _limits_of(zeros: Array | None, made: Any) -> tuple[float, float]:
    if zeros is None or zeros.dtype.kind not in "iu":
        return limits(made)
    info = np.iinfo(zeros.dtype)
    return float(info.min), float(info.max)


def _drawn(
    draw: np.random.Generator, shape: tuple[int, ...], ends: tuple[float, float] | None
) -> Array:
    """Normally distributed over a range, or around 0 with a deviation of 1."""
    values = draw.normal(size=shape)
    if ends is not None:
        low, high = ends
        # What is calibrated on values around 0 is not centred exactly.
        middle = 0.0 if low < 0 < high else (low + high) / 2
        values = np.clip(middle + values * (high - low) / _DEVIATIONS, low, high)
    return values.astype(np.float32)
