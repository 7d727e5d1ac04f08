"""How far two values are from each other, what counts as the same kind, and what belongs together.

A value that is not finite fails where the float64 reference is finite and well inside the range of
the dtype. Elsewhere (the reference is itself not finite, or so large that rounding may overflow)
both sides must agree in kind: finite, NaN, plus or minus infinity.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_KINDS = ("finite", "NaN", "infinity", "-infinity")
_RMS_FACTOR = 4.0


@dataclass(frozen=True)
class Difference:
    """Two tensors compared. `error` is max|d|, `scale` max|original|, over the finite elements.

    `reason` says in words what cannot be expressed by a number: another shape, dtype or kind.
    """

    error: float
    scale: float
    reason: str | None = None

    @property
    def relative(self) -> float:
        """`error / scale`; 0 where both are 0, infinite where only the scale is."""
        if self.error == 0.0:
            return 0.0
        return self.error / self.scale if self.scale > 0.0 else float("inf")


@dataclass(frozen=True)
class Yardstick:
    """The outcome of `rms_within`: root-mean-square errors against float64, and the limit."""

    ok: bool
    candidate_rms: float
    original_rms: float
    limit: float
    reason: str | None = None


class StructureMismatchError(Exception):
    """Two outputs are not built alike. Internal to this package: it becomes a verdict's reason."""


def difference(original: Tensor, candidate: Tensor) -> Difference:
    """Compare a candidate with a reference in the reference's own dtype; see the module's text.

    Integers and bools must be equal; they have no range to overflow.
    """
    if original.shape != candidate.shape:
        shapes = f"{list(candidate.shape)} instead of {list(original.shape)}"
        return Difference(float("inf"), 0.0, f"has shape {shapes}")
    if original.dtype != candidate.dtype:
        return Difference(
            float("inf"), 0.0, f"has dtype {candidate.dtype} instead of {original.dtype}"
        )
    original, candidate = _real(original), _real(candidate)
    if not original.is_floating_point():
        return _exact_difference(original, candidate)
    error, scale = peak(candidate - original), peak(original)
    if math.isfinite(error) and math.isfinite(scale):
        return Difference(error, scale)
    reason = kind_mismatch(original, original, candidate, original.dtype)
    finite = torch.isfinite(original)
    error = peak((candidate - original)[finite & torch.isfinite(candidate)])
    return Difference(error, peak(original[finite]), reason)


def identical(original: Tensor, candidate: Tensor) -> bool:
    """Same shape, dtype and values; NaN equals NaN."""
    if original.shape != candidate.shape or original.dtype != candidate.dtype:
        return False
    original, candidate = _real(original), _real(candidate)
    if torch.equal(original, candidate):
        return True
    return bool(((original == candidate) | (original.isnan() & candidate.isnan())).all())


def kind_mismatch(
    reference: Tensor, original: Tensor, candidate: Tensor, dtype: torch.dtype
) -> str | None:
    """Apply the rule for values that are not finite; None if it holds, else a sentence.

    `reference` is the float64 result, `original` and `candidate` are results in `dtype`.
    """
    limit = torch.finfo(dtype).max / 2
    inside = torch.isfinite(reference) & (reference.abs() <= limit)
    broken = inside & ~torch.isfinite(candidate)
    if bool(broken.any()):
        kind = _KINDS[int(_kind(candidate)[broken][0])]
        count = int(broken.sum())
        return f"{count} of {broken.numel()} values became {kind} where the original is finite"
    differing = ~inside & (_kind(original) != _kind(candidate))
    if not bool(differing.any()):
        return None
    before = _KINDS[int(_kind(original)[differing][0])]
    after = _KINDS[int(_kind(candidate)[differing][0])]
    return f"{int(differing.sum())} of {inside.numel()} values are {after} instead of {before}"


def rms_within(
    reference: Tensor, original: Tensor, candidate: Tensor, dtype: torch.dtype
) -> Yardstick:
    """Judge a result in a lower precision or from another runtime.

    Args:
        reference: the original's result in float64.
        original: the original's result when it is run in `dtype`.
        candidate: the result to judge.
        dtype: the floating dtype in which the candidate was computed.

    The candidate's root-mean-square error against the reference may be at most 4 times that of the
    original run in `dtype`, with a floor of u max|reference|, u being the unit roundoff of `dtype`.
    """
    nothing = float("inf")
    if not reference.shape == original.shape == candidate.shape:
        shapes = f"{list(candidate.shape)} instead of {list(reference.shape)}"
        return Yardstick(False, nothing, nothing, 0.0, f"has shape {shapes}")
    wide = [_real(value).detach().cpu().double() for value in (reference, original, candidate)]
    yardstick, own, other = wide
    reason = kind_mismatch(yardstick, own, other, dtype)
    finite = torch.isfinite(yardstick) & torch.isfinite(own) & torch.isfinite(other)
    yardstick, own, other = yardstick[finite], own[finite], other[finite]
    candidate_rms, original_rms = _rms(other - yardstick), _rms(own - yardstick)
    floor = torch.finfo(dtype).eps / 2 * peak(yardstick)
    limit = max(_RMS_FACTOR * original_rms, floor)
    if reason is None and not candidate_rms <= limit:
        reason = (
            f"its root-mean-square error is {candidate_rms:.2e} against float64; the original's in "
            f"{str(dtype).removeprefix('torch.')} is {original_rms:.2e}, the limit {limit:.2e}"
        )
    return Yardstick(reason is None, candidate_rms, original_rms, limit, reason)


def plain_number(value: float | None) -> float | None:
    """The number for a report, where JSON has no infinity and no NaN: None for those."""
    return value if value is not None and math.isfinite(value) else None


def paired_leaves(
    original: Any, candidate: Any, path: str = "output"
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Walk two outputs in step and yield the tensors that belong together, with their path.

    Tuples, lists, mappings (such as Hugging Face outputs), dataclasses and the attributes of plain
    objects are entered; numbers, strings and None must be equal (floats are yielded as tensors).

    Raises StructureMismatchError where the two are not built alike.
    """
    if isinstance(original, Tensor) and isinstance(candidate, Tensor):
        yield path, original, candidate
        return
    if _type(original) is not _type(candidate):
        raise StructureMismatchError(
            f"{path} is a {type(candidate).__name__} instead of a {type(original).__name__}"
        )
    if isinstance(original, float):
        wide = torch.float64
        yield path, torch.tensor(original, dtype=wide), torch.tensor(candidate, dtype=wide)
    elif isinstance(original, np.ndarray) and original.dtype != object:
        yield path, torch.from_numpy(original), torch.from_numpy(candidate)
    elif isinstance(original, (bool, int, str, bytes, type(None))):
        if original != candidate:
            raise StructureMismatchError(f"{path} is {candidate!r} instead of {original!r}")
    else:
        yield from _paired_parts(_parts(original), _parts(candidate), path)


def _paired_parts(
    original: Mapping[str, Any], candidate: Mapping[str, Any], path: str
) -> Iterator[tuple[str, Tensor, Tensor]]:
    if original.keys() != candidate.keys():
        raise StructureMismatchError(
            f"{path} has the parts {_listed(candidate)} instead of {_listed(original)}"
        )
    for key, part in original.items():
        yield from paired_leaves(part, candidate[key], path + key)


def _parts(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {f"[{key!r}]": part for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return {f"[{position}]": part for position, part in enumerate(value)}
    if dataclasses.is_dataclass(value):
        named = dataclasses.fields(value)
        return {f".{part.name}": getattr(value, part.name) for part in named}
    attributes = getattr(value, "__dict__", {})
    return {f".{key}": part for key, part in attributes.items() if _carries_tensors(part)}


def _carries_tensors(value: Any, depth: int = 4) -> bool:
    """Whether an attribute of a plain object, such as a cache of attention keys, holds tensors."""
    if isinstance(value, Tensor):
        return True
    if depth == 0 or isinstance(value, (torch.nn.Module, type)):
        return False
    parts: Sequence[Any] = ()
    if isinstance(value, (tuple, list)):
        parts = value
    elif isinstance(value, Mapping):
        parts = list(value.values())
    elif hasattr(value, "__dict__"):
        parts = list(vars(value).values())
    return any(_carries_tensors(part, depth - 1) for part in parts)


def _type(value: Any) -> type:
    """The type, with the read-only lists and dicts of torch.fx taken for what they stand for."""
    kind = type(value)
    return kind.__mro__[1] if kind.__module__.startswith("torch.fx") else kind


def _listed(parts: Mapping[str, Any]) -> str:
    return ", ".join(parts) or "nothing"


def _exact_difference(original: Tensor, candidate: Tensor) -> Difference:
    wrong = int((original != candidate).sum())
    if not wrong:
        return Difference(0.0, 0.0)
    reason = f"differs in {wrong} of {original.numel()} values, which are {original.dtype}"
    return Difference(float("inf"), 0.0, reason)


def _real(tensor: Tensor) -> Tensor:
    """Dense and real, so that every number in it can be compared."""
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _kind(tensor: Tensor) -> Tensor:
    """0 finite, 1 NaN, 2 plus infinity, 3 minus infinity."""
    infinity = torch.isposinf(tensor) * 2 + torch.isneginf(tensor) * 3
    return torch.isnan(tensor) + infinity


def peak(tensor: Tensor) -> float:
    """max|x| of a real tensor, 0 for an empty one, NaN if it holds one. Makes no copy of it."""
    if not tensor.numel():
        return 0.0
    low, high = torch.aminmax(tensor.detach())
    return float(torch.maximum(-low, high))


def _rms(tensor: Tensor) -> float:
    return float(tensor.square().mean().sqrt()) if tensor.numel() else 0.0
