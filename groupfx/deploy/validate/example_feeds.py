"""Inputs to start a validation from: those of a torch side, or guesses for two files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import FileError, GroupfxError, UsageError
from .domain import Domain, guessed_domain
from .picking import read_domains
from .sides import OnnxSide, Side, TorchSide, Values

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]


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


def example_feeds(
    reference: Side,
    candidate: Side,
    inputs: Mapping[str, str],
    shapes: Mapping[str | int, tuple[int, ...]],
    domains: Mapping[str, Domain] | None = None,
) -> Values:
    """Arrays to start from: those of a torch side, or random ones of the sizes that a file says.

    `domains` of its integers are those of `input_domains`; without them they are read here.
    """
    example = _example_of(reference, candidate, inputs)
    if example is not None:
        return example
    assert isinstance(reference, OnnxSide)
    if domains is None:
        own = {name: name for name in reference.inputs}
        domains, _ = input_domains(reference, reference, own)
    reason: GroupfxError | None = None
    for batch in _BATCHES:
        for size in _GUESSES:
            feeds = _guessed(reference, batch, size, shapes, domains)
            try:
                reference.session.run(reference.own(feeds))
            except FileError:
                raise
            except GroupfxError as error:
                reason = reason or error
                continue
            return feeds
    texts = [f"{n} {[k or '?' for k in s]}" for n, _, s in reference.declared]
    raise UsageError(
        f"cannot guess sizes that {reference.source} takes ({'; '.join(texts)}): give the shape of "
        f"its inputs, with shapes= or --input-shape. The first try failed: {reason}"
    )


_GUESSES = (32, 64, 224, 16, 128, 8, 7)
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


def _guessed(
    side: OnnxSide,
    batch: int,
    size: int,
    shapes: Mapping[str | int, tuple[int, ...]],
    domains: Mapping[str, Domain],
) -> Values:
    """Random arrays of the declared sizes, with `batch` and `size` where they are open."""
    generator = np.random.default_rng(0)
    feeds: Values = {}
    for position, (name, dtype, sizes) in enumerate(side.declared):
        opened = [batch if axis == 0 else size for axis in range(len(sizes))]
        shape = tuple(n if n is not None else opened[axis] for axis, n in enumerate(sizes))
        shape = tuple(shapes.get(name, shapes.get(position, shape)))
        if name in domains:
            value = domains[name].sample(shape, generator)
        else:
            value = np.asarray(generator.standard_normal(shape))
        feeds[name] = value.astype(dtype)
    return feeds
