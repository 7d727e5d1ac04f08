"""Tensors that no state_dict holds, as source: masks, indices, buffers that are not persistent."""

from __future__ import annotations

import math
from typing import TypeGuard

import torch
from torch import Tensor

from ..errors import RewriteError
from .imports import Imports
from .layout import ATOM, Doc, bracket, call, keyword, within
from .literals import literal

MOST_NUMBERS = 4096


def shape_arguments(tensor: Tensor) -> list[Doc]:
    """The sizes, as arguments of `torch.zeros`; a scalar's are an empty tuple."""
    return [Doc(str(int(size))) for size in tensor.shape] or [Doc("()")]


def zeros(tensor: Tensor, imports: Imports, *, precise: bool) -> Doc:
    """`torch.zeros` of the tensor's shape; `precise` says the dtype of a floating-point one too."""
    imports.module("torch")
    floating = tensor.is_floating_point() or tensor.is_complex()
    named = {} if floating and not precise else _dtype(tensor, torch.float32)
    return call("torch.zeros", shape_arguments(tensor), **named)


def constant(tensor: Tensor, path: str, imports: Imports) -> Doc:
    """An expression for the very numbers of `tensor`.

    Raises RewriteError where there are more than `MOST_NUMBERS` without a pattern.
    """
    imports.module("torch")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise RewriteError(
            f"{path} is a tensor of another kind than plain numbers, so it cannot be written down"
        )
    data = tensor.detach().cpu()
    found = _uniform(data, imports) or _counted(data) or _triangle(data) or _rows(data, imports)
    if found is not None:
        return found
    if data.numel() > MOST_NUMBERS:
        raise RewriteError(
            f"{path} holds {data.numel()} numbers that no state_dict holds, and at most "
            f"{MOST_NUMBERS} are written into a file: make it a persistent buffer"
        )
    return _listed(data, imports)


def _listed(data: Tensor, imports: Imports) -> Doc:
    default = torch.int64 if _is_integer(data) else torch.float32
    return call("torch.tensor", [literal(_numbers(data), imports)], **_dtype(data, default))


def _numbers(data: Tensor) -> object:
    if data.is_floating_point():
        return data.to(torch.float64).tolist()
    # True and False are 1 and 0 here: a mask is easier to read.
    return data.long().tolist() if data.dtype is torch.bool else data.tolist()


def _is_integer(data: Tensor) -> bool:
    return not data.is_floating_point() and not data.is_complex()


def _dtype(tensor: Tensor, default: torch.dtype) -> dict[str, Doc]:
    return {} if tensor.dtype == default else {"dtype": Doc(str(tensor.dtype))}


def _uniform(data: Tensor, imports: Imports) -> Doc | None:
    """One number everywhere. 0.0 and -0.0 are two numbers."""
    if data.dim() == 0 or data.numel() == 0:
        return None
    first = data.flatten()[:1]
    whole = data.to(torch.float64) if data.is_floating_point() else data
    same = bool((data == first).all()) and _zero_signs(whole) <= 1
    if not same:
        return None
    number = _numbers(first.reshape(()))
    sizes = shape_arguments(data)
    if _is_real(number) and number == 0 and math.copysign(1, number) > 0:
        return call("torch.zeros", sizes, **_dtype(data, torch.float32))
    if number == 1 and not data.is_complex():
        return call("torch.ones", sizes, **_dtype(data, torch.float32))
    return call(
        "torch.full",
        [bracket("", sizes), literal(number, imports)],
        dtype=Doc(str(data.dtype)),
    )


def _is_real(number: object) -> TypeGuard[float]:
    return isinstance(number, int | float)


def _zero_signs(data: Tensor) -> int:
    """How many signs the zeros of `data` have."""
    if not data.is_floating_point():
        return 1
    return int(torch.signbit(data[data == 0]).unique().numel())


def _counted(data: Tensor) -> Doc | None:
    """Consecutive integers, whatever their shape."""
    if data.dtype != torch.int64 or data.dim() == 0 or data.numel() < 3:
        return None
    start = int(data.flatten()[0])
    stop = start + data.numel()
    if not torch.equal(data.flatten(), torch.arange(start, stop)):
        return None
    ends = [Doc(str(stop))] if start == 0 else [Doc(str(start)), Doc(str(stop))]
    counted = call("torch.arange", ends)
    if data.dim() == 1:
        return counted
    return call(f"{within(counted, ATOM)}.reshape", shape_arguments(data))


def _rows(data: Tensor, imports: Imports) -> Doc | None:
    """A matrix with few different rows, as the mask of a convolution in blocks."""
    if data.dim() != 2 or data.is_floating_point() or data.is_complex():
        return None
    different, place = torch.unique(data, dim=0, return_inverse=True)
    few = 4 * len(different) <= len(data)
    if not few or different.numel() + len(data) > MOST_NUMBERS:
        return None
    rows = [_listed(different, imports), Doc("0"), _listed(place, imports)]
    return call("torch.index_select", rows)


def _triangle(data: Tensor) -> Doc | None:
    """Ones on one side of the diagonal, as a causal mask has them."""
    if data.dim() < 2 or data.numel() < 4 or data.is_complex():
        return None
    ones = torch.ones_like(data)
    made = call("torch.ones", shape_arguments(data), **_dtype(data, torch.float32))
    for name, diagonal in (("tril", 0), ("triu", 0), ("tril", -1), ("triu", 1)):
        if torch.equal(data, getattr(ones, name)(diagonal)) and _zero_signs(data) <= 1:
            named = [keyword("diagonal", Doc(str(diagonal)))] if diagonal else []
            return call(f"{made.flat}.{name}", named)
    return None
