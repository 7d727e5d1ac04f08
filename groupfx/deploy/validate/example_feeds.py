"""Inputs to start a validation from: those of a torch side, or guesses for two files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import FileError, GroupfxError, UsageError
from ...running.inputs import MOST_ELEMENTS
from .domain import Domain, guessed_domain
from .picking import read_domains
from .sides import OnnxSide, Side, TorchSide, Values

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
Declared = tuple[str, np.dtype[Any], tuple[int | None, ...]]


def require_fit(side: Side, feeds: Feeds) -> None:
    """Raise UsageError where a file declares other sizes than the inputs have."""
    if isinstance(side, TorchSide):
        return
    for name, _, sizes in side.declared:
        shape = feeds[name].shape
        same_rank = len(shape) == len(sizes)
        if not same_rank or any(n not in (None, k) for n, k in zip(sizes, shape, strict=True)):
            declared = ", ".join("any" if size is None else str(size) for size in sizes)
            raise UsageError(
                f"input {name} has the shape {list(shape)}, and {side.source} takes [{declared}]: "
                "give inputs of that shape (--input-shape), or export it with open sizes"
            )


def input_domains(
    reference: Side, candidate: Side, inputs: Mapping[str, str]
) -> tuple[Mapping[str, Domain], tuple[str, ...]]:
    """What the integer and bool inputs may hold, by the reference's names, and which are guessed.

    Those of a torch side without one keep to the values of its example.
    """
    first, second = read_domains(reference), read_domains(candidate)
    kinds, example = _kinds(reference), _example_of(reference, candidate, inputs)
    found, guessed = {}, []
    for name, other in inputs.items():
        told = [domains[key] for domains, key in ((first, name), (second, other)) if key in domains]
        scalar_flag = example is not None and kinds[name] == "b" and not example[name].ndim
        if kinds[name] == "f" or not kinds[name]:
            continue
        if told:
            found[name] = told[0] if len(told) == 1 else told[0].narrower(told[1])
        elif scalar_flag or example is None:
            found[name] = guessed_domain(name, kinds[name])
            guessed += [] if kinds[name] == "b" else [name]
    return found, tuple(guessed)


class Example(NamedTuple):
    """Arrays by the names of inputs; `guessed` are sizes of them, such as `32x32`, if they are."""

    feeds: Values
    guessed: str | None = None


def example_feeds(
    reference: Side,
    candidate: Side,
    inputs: Mapping[str, str],
    shapes: Mapping[str | int, tuple[int, ...]],
    domains: Mapping[str, Domain] | None = None,
) -> Example:
    """Arrays to start from: those of a torch side, or random ones of the sizes that a file says.

    What one of two files leaves open is as the other declares it. `domains` of its integers are
    those of `input_domains`; without them they are read here.
    """
    example = _example_of(reference, candidate, inputs)
    if example is not None:
        side = reference if isinstance(reference, TorchSide) else candidate
        return Example(example, side.example.guessed if isinstance(side, TorchSide) else None)
    assert isinstance(reference, OnnxSide)
    assert isinstance(candidate, OnnxSide)
    names = reference.inputs
    unknown = next((k for k in shapes if k not in names and k not in range(len(names))), None)
    if unknown is not None:
        raise UsageError(
            f"{reference.source} has no input {unknown!r}: its inputs are {', '.join(names)}"
        )
    declared = list(_declared(reference, candidate, inputs, shapes))
    open_sizes = any(None in sizes[1:] for _, _, sizes in declared)
    if domains is None:
        own = {name: name for name in reference.inputs}
        domains, _ = input_domains(reference, reference, own)
    reason: GroupfxError | None = None
    for batch in _BATCHES:
        for size in _GUESSES if open_sizes else _GUESSES[:1]:
            if _elements(declared, batch, size) > MOST_ELEMENTS:
                reason = reason or UsageError(f"they have more than {MOST_ELEMENTS:,} elements")
                continue
            feeds = _guessed(declared, batch, size, domains)
            require_fit(reference, feeds)
            try:
                reference.session.run(reference.own(feeds))
            except FileError:
                raise
            except GroupfxError as error:
                reason = reason or error
                continue
            return Example(feeds, _named(declared, feeds) if open_sizes else None)
    texts = [f"{n} {[k or '?' for k in s]}" for n, _, s in reference.declared]
    raise UsageError(
        f"cannot guess sizes that {reference.source} takes ({'; '.join(texts)}): give the shape of "
        f"its inputs, with shapes= or --input-shape. The first try failed: {reason}"
    )


_GUESSES = (32, 64, 224, 16, 128, 8, 7, 28, 96, 256, 48, 160, 299, 384, 512)
_BATCHES = (2, 1, 4, 3)


def _example_of(reference: Side, candidate: Side, inputs: Mapping[str, str]) -> Values | None:
    """The example of a torch side, by the reference's names."""
    if isinstance(reference, TorchSide):
        return reference.feeds
    if isinstance(candidate, TorchSide):
        return {name: candidate.feeds[other] for name, other in inputs.items()}
    return None


def _kinds(side: Side) -> Mapping[str, str]:
    """The kind of each input's dtype: `f`, `b`, `i` or `u`."""
    if isinstance(side, TorchSide):
        return {name: _kind(array.dtype) for name, array in side.feeds.items()}
    return {name: _kind(dtype) for name, dtype, _ in side.declared}


def _kind(dtype: np.dtype[Any]) -> str:
    return dtype.kind if dtype.kind in "fbiu" else ""


def _declared(
    reference: OnnxSide,
    candidate: OnnxSide,
    inputs: Mapping[str, str],
    shapes: Mapping[str | int, tuple[int, ...]],
) -> Iterator[Declared]:
    """Inputs of the reference: sizes that are given, else those that one of two files declares."""
    others = {name: sizes for name, _, sizes in candidate.declared}
    for position, (name, dtype, sizes) in enumerate(reference.declared):
        known = shapes.get(name, shapes.get(position))
        other = others.get(inputs.get(name, name), sizes)
        if known is not None:
            yield name, dtype, tuple(known)
        elif len(other) == len(sizes):
            pairs = zip(sizes, other, strict=True)
            yield name, dtype, tuple(own if own is not None else told for own, told in pairs)
        else:
            yield name, dtype, sizes


def _named(declared: Sequence[Declared], feeds: Values) -> str:
    """The guessed sizes of the first input that has some."""
    shapes = [feeds[name].shape[1:] for name, _, sizes in declared if None in sizes[1:]]
    first = shapes[0][1:] or shapes[0]
    return "x".join(map(str, first))


def _sizes(sizes: Sequence[int | None], batch: int, size: int) -> tuple[int, ...]:
    """All sizes of an input, `batch` and `size` where they are open."""
    opened = [batch if axis == 0 else size for axis in range(len(sizes))]
    return tuple(n if n is not None else opened[axis] for axis, n in enumerate(sizes))


def _elements(declared: Sequence[Declared], batch: int, size: int) -> int:
    return sum(math.prod(_sizes(sizes, batch, size)) for _, _, sizes in declared)


def _guessed(
    declared: Sequence[Declared], batch: int, size: int, domains: Mapping[str, Domain]
) -> Values:
    """Random arrays of the declared sizes, with `batch` and `size` where they are open."""
    generator = np.random.default_rng(0)
    feeds: Values = {}
    for name, dtype, sizes in declared:
        shape = _sizes(sizes, batch, size)
        if name in domains:
            value = domains[name].sample(shape, generator)
        else:
            value = np.asarray(generator.standard_normal(shape))
        feeds[name] = value.astype(dtype)
    return feeds
