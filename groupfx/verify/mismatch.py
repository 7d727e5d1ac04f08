"""How a comparison ends that finds a difference: with the reason, in words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from ..errors import InternalError, kind_and_line
from .carry import Carrier, placed
from .gradients import Derivatives
from .measures import difference, identical
from .region import RegionCopy

TOLERANCE = 1e-12


class RegionMismatchError(Exception):
    """The two sides differ; the message is the reason. Internal: it becomes a verdict's.

    `error` is by how much outputs differ; `in_gradients` says that these do and outputs do not.
    """

    def __init__(self, reason: str, error: float = 0.0, *, in_gradients: bool = False) -> None:
        super().__init__(reason)
        self.error = error
        self.in_gradients = in_gradients


@contextlib.contextmanager
def failing(when: str) -> Iterator[None]:
    """An error of the rewritten form, which the original did not raise, is a mismatch."""
    try:
        yield
    except (InternalError, RegionMismatchError):
        raise
    except Exception as error:
        reason = f"{when} the rewritten form fails: {kind_and_line(error)}"
        raise RegionMismatchError(reason) from error


def require_tensor(what: str, value: Any) -> None:
    """Raise RegionMismatchError for anything else."""
    if not isinstance(value, Tensor):
        raise RegionMismatchError(f"{what} is a {type(value).__name__}, not a tensor")


def require_identical(what: str, before: Tensor, after: Tensor) -> None:
    """Raise RegionMismatchError where two tensors differ in a bit."""
    require_tensor(what, after)
    if identical(before, after):
        return
    found = difference(before, after)
    if found.reason is not None:
        raise RegionMismatchError(f"{what} {found.reason}", found.error)
    raise RegionMismatchError(
        f"{what} is off by up to {found.error:.3g} and not bit-identical; it reaches "
        f"{found.scale:.3g}",
        found.error,
    )


def require_close(
    what: str,
    before: Tensor,
    after: Tensor,
    scale: float = 0.0,
    tolerance: float = TOLERANCE,
) -> None:
    """Raise RegionMismatchError where tensors differ by more than rounding, `tolerance` times them.

    `scale` is by what magnitude rounding is to be measured where it is more than the tensor's own.
    """
    if identical(before, after):
        return
    found = difference(before, after)
    if found.reason is not None:
        raise RegionMismatchError(f"{what} {found.reason}", found.error)
    limit = tolerance * max(scale, found.scale)
    if found.error > limit:
        raise RegionMismatchError(
            f"{what} is off by up to {found.error:.3g}, and at most {limit:.3g} is rounding",
            found.error,
        )


def match_gradients(
    before: Derivatives,
    after: Derivatives,
    carrier: Carrier | None,
    when: str,
    *,
    tolerance: float | None,
) -> None:
    """Compare the gradients of inputs, and with a map of the rewrite those of its parameters.

    Without a tolerance they must be the same bits; padding, which nothing in the original stands
    for, is left out.
    """
    scale = 0.0 if tolerance is None else before.scale()
    if after.inputs is None:
        raise RegionMismatchError(f"{when} the output lost its gradient", in_gradients=True)
    pairs = [
        (f"{when} the gradient of input {position}", *pair)
        for position, pair in enumerate(zip(before.inputs or (), after.inputs, strict=True))
    ]
    for what, own, other in pairs:
        _require(what, own, other, scale, tolerance)
    for name, entry in () if carrier is None else carrier.pairs():
        if name in after.parameters and entry.key in before.parameters:
            source = before.parameters[entry.key]
            expected, found = entry.gradient_of(source), after.parameters[name]
            place = placed(entry, source)
            if place is not None and found.shape == expected.shape:
                expected, found = expected[place], found[place]
            _require(f"{when} the gradient of {name}", expected, found, scale, tolerance)


def _require(
    what: str, before: Tensor, after: Tensor, scale: float, tolerance: float | None
) -> None:
    try:
        if tolerance is None:
            require_identical(what, before, after)
        else:
            require_close(what, before, after, scale, tolerance)
    except RegionMismatchError as mismatch:
        raise RegionMismatchError(str(mismatch), in_gradients=True) from mismatch


def match_state(
    original: RegionCopy, rewritten: RegionCopy, carrier: Carrier, when: str, tolerance: float
) -> None:
    """Compare what is no parameter: running statistics, counters."""
    for name, entry in carrier.pairs():
        tensor = rewritten.tensors[name]
        if isinstance(tensor, Parameter):
            continue
        source = original.tensors[entry.key]
        expected, place = entry.of(source), placed(entry, source)
        if place is not None and tensor.shape == expected.shape:
            expected, tensor = expected[place], tensor[place]
        require_close(f"{when} {name}", expected, tensor, tolerance=tolerance)
