"""How far two values are from each other, and what belongs together.

Values that are not finite are held to the rule of `yardstick`.
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

from .yardstick import kind_mismatch


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


class StructureMismatchError(Exception):
    """Two outputs are not built alike. Internal to this package: it becomes a verdict's reason."""


def difference(original: Tensor, candidate: Tensor) -> Difference:
    """Compare a candidate with a reference in the reference's own dtype; see the module's text.

    Tensors without values (on `meta`) differ in nothing else.

    Integers and bools must be equal; they have no range to overflow.
    """
    if original.shape != candidate.shape:
        shapes = f"{list(candidate.shape)} instead of {list(original.shape)}"
        return Difference(float("inf"), 0.0, f"has shape {shapes}")
    if original.dtype != candidate.dtype:
        return Difference(
            float("inf"), 0.0, f"has dtype {candidate.dtype} instead of {original.dtype}"
        )
    if original.is_meta or candidate.is_meta:
        return Difference(0.0, 0.0)
    original, candidate = real(original), real(candidate)
    if not original.is_floating_point():
        return _exact_difference(original, candidate)
    error, scale = peak(candidate - original), peak(original)
    if math.isfinite(error) and math.isfinite(scale):
        return Difference(error, scale)
    before, after = (t.detach().cpu().double().numpy() for t in (original, candidate))
    reason = kind_mismatch(before, before, after, original.dtype)
    finite = torch.isfinite(original)
    error = peak((candidate - original)[finite & torch.isfinite(candidate)])
    return Difference(error, peak(original[finite]), reason)


def identical(original: Tensor, candidate: Tensor) -> bool:
    """Same shape, dtype and values; NaN equals NaN. On `meta` there are no values to differ."""
    if original.shape != candidate.shape or original.dtype != candidate.dtype:
        return False
    if original.is_meta or candidate.is_meta:
        return original.is_meta and candidate.is_meta
    original, candidate = real(original), real(candidate)
    if torch.equal(original, candidate):
        return True
    return bool(((original == candidate) | (original.isnan() & candidate.isnan())).all())


def unlike(original: Any, candidate: Any) -> str | None:
    """Where two outputs of one model differ by more than another order of sums explains.

    Coarse on purpose, and in the outputs' own dtype: it tells one function from another.
    """
    try:
        for path, before, after in paired_leaves(original, candidate):
            found = difference(before, after)
            rough = before.is_floating_point() or before.is_complex()
            allowed = math.sqrt(torch.finfo(before.dtype).eps) if rough else 0.0
            if found.reason or found.relative > allowed:
                return f"{path} {found.reason or f'is off by {found.relative:.2g} of its largest'}"
    except StructureMismatchError as error:
        return str(error)
    return None


def _plain(tensor: Tensor) -> Tensor:
    """The tensor without a class of the user's, which need not take all of what is computed here.

    One made anew in each forward takes no other of its name. One that holds its numbers itself
    (`__torch_dispatch__`) stays as it is.
    """
    kind = type(tensor)
    if kind is Tensor or kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)


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
        if original.is_nested and candidate.is_nested:
            yield from paired_leaves(original.unbind(), candidate.unbind(), path)
            return
        yield path, _plain(original), _plain(candidate)
        return
    if not _same_type(_type(original), _type(candidate)):
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


def _same_type(one: type, other: type) -> bool:
    """One class, or two named tuples of one name and fields: a forward may make it in each call."""
    if one is other:
        return True
    names = [(k.__module__, k.__qualname__, getattr(k, "_fields", None)) for k in (one, other)]
    return names[0] == names[1] and names[0][2] is not None


def _listed(parts: Mapping[str, Any]) -> str:
    return ", ".join(parts) or "nothing"


def _exact_difference(original: Tensor, candidate: Tensor) -> Difference:
    wrong = int((original != candidate).sum())
    if not wrong:
        return Difference(0.0, 0.0)
    reason = f"differs in {wrong} of {original.numel()} values, which are {original.dtype}"
    return Difference(float("inf"), 0.0, reason)


def real(tensor: Tensor) -> Tensor:
    """Dense and real, so that every number in it can be compared."""
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def peak(tensor: Tensor) -> float:
    """max|x| of a real tensor, 0 for an empty one, NaN if it holds one. Makes no copy of it."""
    if not tensor.numel():
        return 0.0
    if tensor.is_floating_point() and tensor.itemsize == 1:
        tensor = tensor.float()  # a float8 has no order of its own
    low, high = torch.aminmax(tensor.detach())
    return float(torch.maximum(-low, high))
