"""How large the rounding error of a convolution may be, and how far its kernel reaches.

A sum of K products, in any order, is off by at most g_K times the sum of their magnitudes, with
g_K = K u / (1 - K u) and u the unit roundoff. Two ways to compute one convolution therefore agree,
element by element, within

    |d| <= 2 g_K (|w| * |x| + |b|),   K = taps x inputs a group

(Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1). The magnitudes
come from running the same graph once more with every convolution's operands replaced by their
absolute values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..running.float64 import operator_name
from .measures import peak

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = (*_CONV[:5], "output_padding", "groups", "dilation")
_ANY = (*_CONV[:6], "transposed", "output_padding", "groups")
SIGNATURES: Mapping[str, tuple[str, ...]] = {
    "convolution": _ANY,
    "_convolution": _ANY,
    **{f"conv{rank}d": _CONV for rank in (1, 2, 3)},
    **{f"conv_transpose{rank}d": _TRANSPOSED for rank in (1, 2, 3)},
}
_LINEAR = ("linear", "addmm")
_NORMS = ("batch_norm", "_native_batch_norm_legit_no_training")
_AVERAGES = frozenset(
    ("mean", *(f"{kind}avg_pool{rank}d" for kind in ("", "adaptive_") for rank in (1, 2, 3)))
)

# Smaller kernels are met by their whole windows, which costs nothing.
_WHOLE_WINDOW = 32

# A batch norm in eval mode: subtract, multiply, add, and a scale that is itself rounded twice.
_NORM_TERMS = 5


@dataclass(frozen=True)
class Rounding:
    """What may be rounded besides the sums of the original.

    `terms` is through how many more roundings a value may pass. `constants` is the dtype of numbers
    that a kernel of torch holds and that its backward multiplies with.
    """

    terms: int = 0
    constants: torch.dtype | None = None


@dataclass(frozen=True)
class ConvCalls:
    """What the convolutions of a region add up to.

    `terms` is how many roundings one output value passes through at most; `reach` is, for each
    spatial dimension, an input size from which on every tap meets data in some window: the
    smallest, but for kernels so small that whole windows cost nothing. `transposed` says whether
    one is.
    """

    terms: int = 0
    reach: tuple[int, ...] = ()
    transposed: bool = False


class ConvRecorder(TorchFunctionMode):
    """Context manager that sums up the convolutions, linear layers and batch norms that run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = ConvCalls()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        name = operator_name(func)
        terms, reach = self.calls.terms, self.calls.reach
        transposed = False
        if name in SIGNATURES:
            call = {**dict(zip(SIGNATURES[name], args, strict=False)), **named}
            transposed = "transpose" in name or bool(call.get("transposed"))
            terms += _terms(call, transposed) + 1
            here = _reach(call, transposed)
            reach = tuple(a + b for a, b in zip(reach or (0,) * len(here), here, strict=True))
        elif name in _LINEAR:
            operands = [value for value in (*args, *named.values()) if isinstance(value, Tensor)]
            terms += max(tensor.shape[-1] for tensor in operands) + 1
        elif name in _NORMS:
            terms += _NORM_TERMS
        elif name in _AVERAGES:
            # A sum over at most all positions, and a division.
            (averaged, *_) = (value for value in (*args, *named.values()) if _is_tensor(value))
            terms += math.prod(averaged.shape[2:]) + 1
        self.calls = ConvCalls(terms, reach, self.calls.transposed or transposed)
        return func(*args, **named)


class Magnitudes(TorchFunctionMode):
    """Context manager under which a linear operator gives |w| * |x| + |b|.

    A batch norm in eval mode gives (|x| + |mean|) |w| / sqrt(var + eps) + |b|. What lies between,
    such as a gather or a concatenation, does not care for signs. `largest` is the largest of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0.0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        name = operator_name(func)
        if name in SIGNATURES or name in _LINEAR:
            result = func(*map(_abs, args), **{key: _abs(value) for key, value in named.items()})
            return self._noted(result)
        if name not in _NORMS:
            return func(*args, **named)
        means = (1,) if func is F.batch_norm else (3,)
        changed = [
            -_abs(value) if position in means and value is not None else _abs(value)
            for position, value in enumerate(args)
        ]
        keywords = {
            key: -_abs(value) if key == "running_mean" and value is not None else _abs(value)
            for key, value in named.items()
        }
        return self._noted(func(*changed, **keywords))

    def _noted(self, result: Any) -> Any:
        first = result[0] if isinstance(result, tuple) else result
        self.largest = max(self.largest, peak(first.abs()))
        return result


def rounding_bound(magnitudes: Tensor, terms: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """2 g_K times the magnitudes, K being `terms` and u the unit roundoff of `dtype`."""
    unit = torch.finfo(dtype).eps / 2
    return magnitudes.abs() * (2 * terms * unit / (1 - terms * unit))


def bound_ratio(before: Tensor, after: Tensor, bound: Tensor) -> float:
    """The largest |after - before| / bound over the elements that are finite on both sides.

    0 where there is no error, infinite where there is one and the bound is 0 or not a number.
    """
    finite = torch.isfinite(before) & torch.isfinite(after)
    error, bound = (after - before)[finite].abs(), bound[finite]
    ratios = (error / bound)[error > 0]
    return float(ratios.nan_to_num(nan=math.inf, posinf=math.inf).max()) if ratios.numel() else 0.0


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _abs(value: Any) -> Any:
    floating = isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
    return value.abs() if floating else value


def _terms(call: Mapping[str, Any], transposed: bool) -> int:
    weight: Tensor = call["weight"]
    taps = math.prod(weight.shape[2:])
    inputs = weight.shape[0] // int(call.get("groups", 1)) if transposed else weight.shape[1]
    return taps * inputs


def _reach(call: Mapping[str, Any], transposed: bool) -> tuple[int, ...]:
    kernel = call["weight"].shape[2:]
    strides = _each(call.get("stride", 1), len(kernel))
    dilations = _each(call.get("dilation", 1), len(kernel))
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    if transposed:
        return tuple(-(-span // stride) + 1 for span, stride in zip(spans, strides, strict=True))
    whole = [span + stride - 1 for span, stride in zip(spans, strides, strict=True)]
    padding = call.get("padding", 0)
    if isinstance(padding, str):  # "same" pads by half a window
        padding = [(span - 1) // 2 if padding == "same" else 0 for span in spans]
    # The last tap meets data in the first window where the padding in front of it ends before it.
    cut = [size - p for size, p in zip(whole, _each(padding, len(kernel)), strict=True)]
    least = [max(size, s) for size, s in zip(cut, strides, strict=True)]
    return tuple(max(a, min(b, _WHOLE_WINDOW)) for a, b in zip(least, whole, strict=True))


def _each(value: Any, rank: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * rank if len(values) == 1 else values
