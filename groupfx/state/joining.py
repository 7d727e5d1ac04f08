"""The way back: one tensor of the original, out of those of the rewritten model that hold it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import RewriteError, UsageError
from .coverage import held_by, original_shape, taken_by
from .picked import Picked
from .requirements import Requirement, zeros_of
from .rows import Entry, Rows

_SHOWN = 4


def assembled(
    key: str,
    entries: Mapping[str, Entry],
    given: Mapping[str, Any],
    *,
    fill: Mapping[str, Any] | None,
    requires: Mapping[str, Requirement],
) -> Any:
    """The original tensor `key`, checked against every piece of it that there is.

    `given` is a state_dict of the rewritten model, of which `entries` describe the pieces; what
    none of them holds comes from `fill`, a state_dict of the original. Raises RewriteError and
    UsageError as `StateDictMap.to_original` says.
    """
    rows = {new: entry for new, entry in entries.items() if isinstance(entry, Rows)}
    if len(rows) == len(entries):
        return _of_rows(key, rows, given)
    shape = _shape(key, entries, given)
    like = given[next(iter(entries))]
    pieces = [(entry, given[new]) for new, entry in entries.items()]
    whole = put_together(pieces, _background(key, shape, entries, fill, requires, like))
    for new, entry in entries.items():
        _require_agreement(key, new, entry, whole, given[new])
    return whole


def put_together(pieces: Iterable[tuple[Entry, Tensor]], whole: Tensor) -> Tensor:
    """`whole`, which is changed, with each piece written to where its entry says it comes from."""
    for entry, part in pieces:
        entry.put_back(part, whole)
    return whole


def _of_rows(key: str, entries: Mapping[str, Rows], given: Mapping[str, Any]) -> Any:
    pieces = sorted(entries, key=lambda new: entries[new].start)
    whole = next((new for new in pieces if entries[new].stop is None), None)
    value = given[whole] if whole is not None else _concatenated(key, pieces, entries, given)
    for new in pieces:
        part = value if entries[new].stop is None else entries[new].of(value)
        if not _equal(part, given[new]):
            raise RewriteError(
                f"'{key}' of the original cannot be given back: '{new}' and "
                f"'{whole or pieces[0]}' should hold the same values and do not; they were "
                "changed apart from each other, so make them equal first"
            )
    return value


def _concatenated(
    key: str, pieces: Iterable[str], entries: Mapping[str, Rows], given: Mapping[str, Any]
) -> Tensor:
    parts: list[Tensor] = []
    end, last = 0, 0
    for new in pieces:
        rows = entries[new]
        last = max(last, rows.stop or 0)
        if rows.start <= end < last:
            parts.append(given[new].detach()[end - rows.start :])
            end = last
    if end != last:
        raise RewriteError(
            f"'{key}' of the original cannot be given back: of its {last} rows, the rewritten "
            f"model lacks those from {end} on"
        )
    if len({part.shape[1:] for part in parts}) > 1:
        raise _unlike(key, [part.shape for part in parts])
    return torch.cat(parts)


def _shape(key: str, entries: Mapping[str, Entry], given: Mapping[str, Any]) -> tuple[int, ...]:
    shapes = [original_shape(entry, given[new].shape) for new, entry in entries.items()]
    if len({shape[1:] for shape in shapes}) > 1:
        raise _unlike(key, [given[new].shape for new in entries])
    return max(shapes)


def _background(
    key: str,
    shape: tuple[int, ...],
    entries: Mapping[str, Entry],
    fill: Mapping[str, Any] | None,
    requires: Mapping[str, Requirement],
    like: Tensor,
) -> Tensor:
    """The original tensor, right where no piece holds it."""
    zeros = zeros_of(key, requires)
    held = held_by(entries.values(), zeros, shape)
    known = taken_by(zeros, held) & ~held
    found = int(held.sum()) + int(known.sum())
    lost = (held.numel() - found) * math.prod(shape[held.dim() :])
    if not lost:
        return like.new_zeros(shape)
    if fill is None or key not in fill:
        raise UsageError(
            f"{lost} of the {math.prod(shape)} elements of '{key}' were masked off: the rewritten "
            "model does not hold them; give `fill`, a full state_dict of the original, to take "
            "them from"
        )
    value = fill[key]
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        what = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise UsageError(f"'{key}' of `fill` is {what}, and {list(shape)} is needed")
    whole = value.detach().to(like.device, like.dtype, copy=True)
    whole[known.to(whole.device)] = 0
    return whole


def _require_agreement(key: str, new: str, entry: Entry, whole: Tensor, found: Tensor) -> None:
    expected = entry.of(whole)
    padded = isinstance(entry, Picked) and entry.is_padded
    scaled = isinstance(entry, Picked) and entry.is_scaled
    if isinstance(entry, Picked) and padded and found.dim() == 1:
        # Padding of a vector belongs to channels that nothing reads: statistics move there.
        held = entry.held().to(found.device)
        expected, found = expected[held], found[held]
    # A trained weight, divided by a factor such as 3 and multiplied again, is off by a rounding.
    if _equal(expected, found.detach(), steps=4 if scaled else 0):
        return
    if isinstance(entry, Picked) and padded and found.dim() > 1:
        _require_padding(key, new, entry, found)
    raise RewriteError(
        f"'{key}' of the original cannot be given back: what '{new}' holds of it is held a "
        "second time, with other values; they were changed apart from each other, so make "
        "them equal first"
    )


def _require_padding(key: str, new: str, entry: Picked, found: Tensor) -> None:
    padding = ~entry.held().to(found.device)
    changed = int((found[padding] != entry.fill).sum())
    if changed:
        raise RewriteError(
            f"'{key}' of the original cannot be given back: {changed} elements of padding in "
            f"'{new}' are no longer {entry.fill:g}, and the original has no place for them; "
            "set them back"
        )


def _unlike(key: str, shapes: Sequence[Sequence[int]]) -> RewriteError:
    shown = ", ".join(str(list(shape)) for shape in shapes[:_SHOWN])
    return RewriteError(f"the parts of '{key}' cannot be joined: their shapes are {shown}")


def _equal(left: Any, right: Any, *, steps: int = 0) -> bool:
    """Whether two values are the same, or within `steps` roundings of their dtype."""
    if left is right:
        return True
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return bool(left == right)
    if left.shape != right.shape:
        return False
    if torch.equal(left, right):
        return True
    if not left.is_floating_point():
        return False
    # NaN in both is agreement: a diverged model must still be convertible.
    rtol = steps * torch.finfo(left.dtype).eps
    return torch.allclose(left, right, rtol=rtol, atol=0, equal_nan=True)
