"""One piece of a candidate and the reference's own, run on the same inputs of many magnitudes.

Ordinary inputs do not show everything: a bound that is not reached, a slope of 1e-5, an axis of
size 1, a branch that is multiplied by 0. So a piece also gets inputs of both signs, of all
magnitudes, and of one sign alone. Both sides run in float64; what they may differ by is what moving
every constant and input by one rounding of the candidate's dtype does to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .matching import Piece
from .value_graph import Jitter, ValueGraph, jittered

Array = npt.NDArray[Any]
Inputs = Mapping[str, Array]
"""The values of the cut, by the candidate's names."""

# What is allowed, in what one rounding of everything does: such roundings add up, and are drawn.
_FACTOR = 32.0
_SAMPLES = 3
# Of the typical noise along an axis, for an element whose own was drawn small by chance.
_TYPICAL = 0.25
_QUICK = 4.0
# Equal values are moved apart, for which of them a maximum or an order takes is not defined.
_APART = 1e-7
_MOST = 1e30
_SEED = 3
# Of an axis that an elementwise piece is looked at along, so many places.
_MOST_PLACES = 8
_ELEMENTWISE = frozenset(
    ("abs", "add", "addtensor", "clamp", "clip", "div", "elu", "erf", "exp", "gelu", "hardsigmoid",
     "hardswish", "hardtanh", "leakyrelu", "log", "max", "maximum", "min", "minimum", "mish", "mul",
     "neg", "pow", "reciprocal", "relu", "relu6", "round", "rsub", "selu", "sigmoid", "sign",
     "silu", "softplus", "sqrt", "square", "sub", "tanh")
)  # fmt: skip

Function = Callable[[Inputs, Jitter | None], Array]


@dataclass(frozen=True)
class Finding:
    """How far apart two pieces are: `ratio` by what rounding explains, `share` by the value's size.

    `draw` says on what.
    """

    ratio: float
    share: float = 0.0
    draw: str = ""


def draws(base: Inputs, few: bool = False) -> Iterator[tuple[str, Inputs]]:
    """The inputs that a piece is run on; `few` of them for what is linear or large."""
    generator = np.random.default_rng(_SEED)
    floats = {name for name, value in base.items() if value.dtype.kind == "f"}

    def made(change: Callable[[Array], Array]) -> Inputs:
        return {name: change(v) if name in floats else v for name, v in base.items()}

    def normal(value: Array) -> Array:
        return generator.standard_normal(value.shape)

    def any_size(value: Array) -> Array:
        return np.sign(normal(value)) * 10.0 ** generator.uniform(-4, 3, value.shape)

    yield "its own input", made(lambda value: _apart(value, generator))
    if not floats:
        return
    yield "inputs of both signs", made(normal)
    if few:
        return
    yield "inputs of all magnitudes", made(any_size)
    yield "large inputs", made(lambda value: 100.0 * normal(value))
    yield "negative inputs", made(lambda value: -np.abs(normal(value)))


def _apart(value: Array, generator: np.random.Generator) -> Array:
    finite = np.isfinite(value)
    size = float(np.sqrt(np.mean(np.square(value[finite])))) if finite.any() else 0.0
    return value + _APART * size * generator.standard_normal(value.shape)


def side_function(graph: ValueGraph, piece: Piece, side: int) -> Function:
    """What one side of a piece computes: 0 the candidate's, 1 the reference's."""
    operators = (piece.candidate, piece.reference)[side]

    def run(inputs: Inputs, jitter: Jitter | None) -> Array:
        given = {pair[side]: inputs[pair[0]] for pair in piece.cut}
        return graph.compute(operators, given, piece.ends[side], jitter)

    return run


def sampled(piece: Piece, base: Inputs, sides: tuple[Function, Function]) -> Inputs:
    """Fewer places of what goes into a piece that treats each place alone, else all of it.

    Those of the largest and smallest values are among them. That it does so is known where its
    operators do, and all that goes in has one shape.
    """
    shapes = {value.shape for value in base.values()}
    kinds = {op.kind.replace("_", "").lower() for op in (*piece.candidate, *piece.reference)}
    (shape,) = shapes if len(shapes) == 1 else ((),)
    if len(shape) < 3 or not kinds <= _ELEMENTWISE or math.prod(shape) == 0:
        return base
    chosen = [_places(base, axis, size) for axis, size in enumerate(shape) if axis > 1]
    index = np.ix_(*(range(size) for size in shape[:2]), *chosen)
    few = {name: np.ascontiguousarray(value[index]) for name, value in base.items()}
    wanted = next(iter(few.values())).shape
    try:
        fits = all(side(few, None).shape == wanted for side in sides)
    except Exception:  # a constant has the shape of the whole
        return base
    return few if fits else base


def _places(base: Inputs, axis: int, size: int) -> list[int]:
    """Places along an axis: the extremes of each input, and evenly spread ones."""
    found = {int(k) for k in np.linspace(0, size - 1, min(size, _MOST_PLACES))}
    for value in base.values():
        for flat in (int(value.argmax()), int(value.argmin())):
            found.add(int(np.unravel_index(flat, value.shape)[axis]))
    return sorted(found)


def compare(expected: Function, found: Function, inputs: Inputs, unit: float, draw: str) -> Finding:
    """How far apart two functions are on one input.

    The reference says where there is an answer: where it does not run or is not finite, nothing is
    compared, and the ratio is 0.
    """
    with np.errstate(all="ignore"):
        try:
            wanted = expected(inputs, None)
        except Exception:
            return Finding(0.0, draw=draw)
        try:
            got = found(inputs, None)
        except Exception:
            return Finding(math.inf, math.inf, draw)
        if got.shape != wanted.shape:
            return Finding(math.inf, math.inf, draw)
        if wanted.dtype.kind != "f" or got.dtype.kind != "f":
            return _whole(expected, wanted, got, inputs, draw)
        return _real(expected, found, wanted, got, inputs, unit, draw)


def _real(
    expected: Function,
    found: Function,
    wanted: Array,
    got: Array,
    inputs: Inputs,
    unit: float,
    draw: str,
) -> Finding:
    usable = np.isfinite(wanted) & (np.abs(wanted) < _MOST)
    if not usable.any():
        return Finding(0.0, draw=draw)
    off = np.where(usable, np.abs(got - wanted), 0.0)
    if not np.isfinite(off).all():
        return Finding(math.inf, math.inf, draw)
    size = np.where(usable, np.abs(wanted), 0.0)
    if (off <= _QUICK * unit * size).all():
        return Finding(0.0, draw=draw)
    noise = np.maximum(_noise(expected, wanted, inputs, unit), _noise(found, got, inputs, unit))
    limit = _FACTOR * np.sqrt(noise + (_TYPICAL**2) * _typical(noise)) + _QUICK * unit * size
    ratio = float(np.max(off / np.maximum(limit, np.finfo(np.float32).tiny)))
    return Finding(ratio, float(np.linalg.norm(off) / (np.linalg.norm(size) or 1.0)), draw)


def _noise(function: Function, value: Array, inputs: Inputs, unit: float) -> Array:
    """The mean square of what one rounding of every input and constant does, by element."""
    total = np.zeros(value.shape)
    for seed in range(_SAMPLES):
        move = jittered(unit, np.random.default_rng([_SEED, seed]))
        try:
            moved = function({name: move(v) for name, v in inputs.items()}, move)
        except Exception:
            continue
        if moved.shape == value.shape:
            change = np.square(moved - value)
            total += np.where(np.isfinite(change), change, 0.0)
    return total / _SAMPLES


def _typical(noise: Array) -> Array:
    """The least of its means along the axes: outputs of mixed scale have their own by column."""
    if noise.ndim == 0:
        return noise
    least = np.full(noise.shape, np.inf)
    for axis in range(noise.ndim):
        others = tuple(other for other in range(noise.ndim) if other != axis)
        least = np.minimum(least, noise.mean(axis=others, keepdims=True))
    return least


def _whole(expected: Function, wanted: Array, got: Array, inputs: Inputs, draw: str) -> Finding:
    """Integers and booleans are equal, but where a rounding turns the reference's own over."""
    wrong = got != wanted
    if not wrong.any():
        return Finding(0.0, draw=draw)
    for seed in range(_SAMPLES):
        move = jittered(1e-6, np.random.default_rng([_SEED, seed]))
        try:
            moved = expected({name: move(v) for name, v in inputs.items()}, None)
        except Exception:
            continue
        if moved.shape == wanted.shape:
            wrong &= moved == wanted
    share = float(wrong.mean())
    return Finding(math.inf if share else 0.0, share, draw)
