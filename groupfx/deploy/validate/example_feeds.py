"""Inputs to start a validation from: those of a torch side, or guesses for two files."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import GroupfxError, UsageError
from ..running.runtime import declared_inputs
from .sides import OnnxSide, Side, TorchSide, Values

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]


def require_fit(side: Side, feeds: Feeds) -> None:
    """Raise UsageError where a file declares other sizes than the inputs have."""
    if isinstance(side, TorchSide):
        return
    for name, _, sizes in declared_inputs(side.model):
        shape = feeds[name].shape
        same_rank = len(shape) == len(sizes)
        if not same_rank or any(n not in (None, k) for n, k in zip(sizes, shape, strict=True)):
            declared = ", ".join("any" if size is None else str(size) for size in sizes)
            raise UsageError(
                f"input {name} has the shape {list(shape)}, and {side.source} takes [{declared}]: "
                "give inputs of that shape (--input-shape), or export it with open sizes"
            )


def example_feeds(
    reference: Side,
    candidate: Side,
    inputs: Mapping[str, str],
    shapes: Mapping[str | int, tuple[int, ...]],
) -> Values:
    """Arrays to start from: those of a torch side, or random ones of the sizes that a file says."""
    if isinstance(reference, TorchSide):
        return reference.feeds
    if isinstance(candidate, TorchSide):
        return {name: candidate.feeds[other] for name, other in inputs.items()}
    for size in _GUESSES:
        feeds = _guessed(reference, size, shapes)
        with contextlib.suppress(GroupfxError):
            reference.session.run(feeds)
            return feeds
    texts = [f"{n} {[k or '?' for k in s]}" for n, _, s in declared_inputs(reference.model)]
    raise UsageError(
        f"cannot guess sizes that {reference.source} takes ({'; '.join(texts)}): give the shape of "
        "its inputs, with shapes= or --input-shape"
    )


_GUESSES = (32, 64, 224, 16, 128, 8, 7)


def _guessed(side: OnnxSide, size: int, shapes: Mapping[str | int, tuple[int, ...]]) -> Values:
    """Random arrays of the declared sizes, with batch 2 and `size` where they are open."""
    generator = np.random.default_rng(0)
    feeds: Values = {}
    for position, (name, dtype, sizes) in enumerate(declared_inputs(side.model)):
        opened = [2 if axis == 0 else size for axis in range(len(sizes))]
        shape = [n if n is not None else opened[axis] for axis, n in enumerate(sizes)]
        shape = list(shapes.get(name, shapes.get(position, tuple(shape))))
        if dtype.kind == "f":
            feeds[name] = generator.standard_normal(shape).astype(dtype)
        elif dtype.kind == "b":
            feeds[name] = generator.random(shape) < 0.5
        else:
            feeds[name] = generator.integers(0, 2, shape).astype(dtype)
    return feeds
