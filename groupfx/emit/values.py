"""Plain values and small tensors as source."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.immutable_collections import immutable_dict

from ..errors import RewriteError
from .imports import Imports
from .text import call, parsed

Write = Callable[[Any], ast.expr]
MOST_NUMBERS = 4096


def value(
    given: Any, imports: Imports, other: Callable[[Any], ast.expr | None] = lambda given: None
) -> ast.expr:
    """`given` as an expression; `other` is asked first, for what only the caller knows.

    Raises RewriteError for a value that has no such form.
    """

    def write(inner: Any) -> ast.expr:
        return value(inner, imports, other)

    found = other(given)
    if found is not None:
        return found
    if isinstance(given, tuple) and hasattr(given, "_fields"):
        return call(imports.callable(type(given)), map(write, given))
    if isinstance(given, tuple):
        return ast.Tuple([write(inner) for inner in given])
    if isinstance(given, list):
        return ast.List([write(inner) for inner in given])
    if isinstance(given, dict) and type(given) not in (dict, immutable_dict):
        parts = {str(key): write(part) for key, part in given.items()}
        return call(imports.callable(type(given)), (), parts)
    if isinstance(given, dict):
        return ast.Dict([write(key) for key in given], [write(inner) for inner in given.values()])
    if isinstance(given, slice):
        return call("slice", [write(part) for part in (given.start, given.stop, given.step)])
    if callable(given):
        return parsed(imports.callable(given))
    return _scalar(given)


def _scalar(given: Any) -> ast.expr:
    kind = type(given)
    if isinstance(given, torch.device):
        return call("torch.device", [ast.Constant(str(given))])
    if isinstance(given, torch.dtype | torch.memory_format | torch.layout | range):
        return parsed(str(given))
    if given is None or given is Ellipsis or kind in (bool, str):
        return ast.Constant(given)
    if kind is complex:
        return call("complex", [_scalar(given.real), _scalar(given.imag)])
    if kind not in (int, float):
        raise RewriteError(
            f"a value of type {kind.__module__}.{kind.__qualname__} cannot be written as Python"
        )
    if not math.isfinite(given):
        return call("float", [ast.Constant(str(given))])
    if math.copysign(1, given) < 0:
        return ast.UnaryOp(ast.USub(), ast.Constant(-given))
    return ast.Constant(given)


def index(given: Any, write: Write) -> ast.expr:
    """What stands between the brackets of `x[given]`."""
    if isinstance(given, tuple):
        return ast.Tuple([index(part, write) for part in given])
    if not isinstance(given, slice):
        return write(given)
    ends = (given.start, given.stop, given.step)
    return ast.Slice(*(None if end is None else write(end) for end in ends))


def zeros(tensor: Tensor) -> ast.expr:
    """`torch.zeros` of the shape of `tensor`, whose numbers a state_dict brings."""
    sizes: list[ast.expr] = [ast.Constant(int(size)) for size in tensor.shape]
    # One floating-point dtype holds for the whole model, and is said once.
    plain = tensor.is_floating_point() or tensor.is_complex()
    return call(
        "torch.zeros",
        sizes or [parsed("()")],
        {} if plain else {"dtype": parsed(str(tensor.dtype))},
    )


def constant(tensor: Tensor, path: str, imports: Imports) -> ast.expr:
    """An expression for the very numbers of `tensor`.

    Raises RewriteError where there are more than `MOST_NUMBERS` that differ.
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise RewriteError(
            f"{path} is a tensor of another kind than plain numbers, so it cannot be written down"
        )
    data = tensor.detach().cpu()
    numbers = (data.double() if data.is_floating_point() else data).tolist()
    flat = data.flatten()
    known = data.dtype in (torch.float32, torch.int64, torch.bool) and len(flat) > 0
    dtype = {} if known else {"dtype": parsed(str(data.dtype))}
    if data.dtype == torch.int64 and len(flat) > 2 and torch.equal(flat, torch.arange(len(flat))):
        counted = parsed(f"torch.arange({len(flat)})")
        sizes = [ast.Constant(size) for size in data.shape]
        return counted if data.dim() == 1 else call(ast.Attribute(counted, "reshape"), sizes)
    # 0.0 and -0.0 are two numbers.
    if data.dim() and len(flat) > 2 and len({str(number) for number in flat.tolist()}) == 1:
        shape = value(tuple(data.shape), imports)
        first = value(flat.tolist()[0], imports)
        return call("torch.full", [shape, first], dtype)
    if data.numel() > MOST_NUMBERS:
        raise RewriteError(
            f"{path} holds {data.numel()} numbers that no state_dict holds, and at most "
            f"{MOST_NUMBERS} are written into a file: make it a persistent buffer"
        )
    return call("torch.tensor", [value(numbers, imports)], dtype)
