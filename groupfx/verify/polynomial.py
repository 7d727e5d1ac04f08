"""What polynomial a region computes: its degree, and how large its sums of magnitudes are.

The region runs once, forward and backward, with every number in its tensors and inputs at 1. Each
value carries the degree that it has in them: what only constants make (a mask, the map of learned
groups) has degree 0, a product has the sum of its operands' degrees, a sum and everything that
moves elements the largest. A BatchNorm in eval mode multiplies by weight / sqrt(var + eps), of
degree 1 where var + eps is held at 1. Magnitudes are added up by taking all constants positive.

An operator that is not known here, or a constant that is no whole number, makes the region no
polynomial in whole numbers, and the problem says which.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..running.float64 import operator_name
from .bounds import SIGNATURES
from .measures import peak
from .whole import is_whole

_PRODUCTS = frozenset(
    (*SIGNATURES, "linear", "addmm", "mm", "bmm", "matmul", "__matmul__", "mul", "mul_")
) | {"__mul__", "__rmul__", "__imul__"}

# What a product adds to, where it is not the first operands: the position of a bias.
_BIAS = {**dict.fromkeys(SIGNATURES, 2), "linear": 2, "addmm": 0}

_MOVES = frozenset(
    [
        "__get__",
        "__set__",
        "__getitem__",
        "__setitem__",
        "narrow",
        "select",
        "slice",
        "split_with_sizes",
        "chunk",
        "tensor_split",
        "unbind",
        "index_select",
        "gather",
        "take_along_dim",
        "index_copy",
        "index_fill",
        "cat",
        "concat",
        "concatenate",
        "stack",
        "hstack",
        "vstack",
        "dstack",
        "view",
        "view_as",
        "reshape",
        "reshape_as",
        "_unsafe_view",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "permute",
        "transpose",
        "swapaxes",
        "movedim",
        "moveaxis",
        "t",
        "expand",
        "expand_as",
        "repeat",
        "tile",
        "repeat_interleave",
        "contiguous",
        "clone",
        "alias",
        "detach",
        "requires_grad_",
        "pad",
        "constant_pad_nd",
        "roll",
        "flip",
        "channel_shuffle",
        "copy_",
        "scatter",
        "where",
        "masked_fill",
        "lift_fresh_copy",
        "split",
    ]
)
# They read the shape alone; and the call that computes the backward of all.
_SHAPES = frozenset(["zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "grad"])

# They give no tensor, and what they give decides.
_READS = frozenset(["item", "tolist", "__bool__", "__float__", "__int__", "equal", "allclose"])
_SUMS = frozenset(["add", "add_", "__add__", "__radd__", "__iadd__", "sum"])
_ELEMENTWISE = frozenset((*_SUMS, *(n for n in _PRODUCTS if "mul" in n and "mat" not in n))) - {
    "sum"
}

_NORM_FIELDS: Mapping[str, Sequence[str]] = {
    "functional": ("input", "mean", "var", "weight", "bias", "training", "momentum", "eps"),
    "batch_norm": ("input", "weight", "bias", "mean", "var", "training", "momentum", "eps"),
    "_native_batch_norm_legit_no_training": (
        *("input", "weight", "bias", "mean", "var", "momentum", "eps"),
    ),
}
_NORM_NAMES = {"running_mean": "mean", "running_var": "var"}
_EPS = 1e-5


@dataclass
class Polynomial:
    """What a region was found to compute.

    Attributes:
        degree: of the output, in all of the region's numbers together.
        forward: the largest sum of magnitudes of a forward, where each number is 1.
        backward: the same of a backward, whose cotangent is 1.
        epsilons: for each variance of a BatchNorm, by its name, what is added to it.
        offsets: for each bias of a BatchNorm, by its name, that of the variance it goes with.
        ends_in_norm: whether nothing is multiplied behind a BatchNorm, so that no sum mixes its
            channels.
        problem: why it is no polynomial in whole numbers; None where it is one.
    """

    degree: int = 0
    forward: float = 0.0
    backward: float = 0.0
    epsilons: Mapping[str, float] = field(default_factory=dict)
    offsets: Mapping[str, str] = field(default_factory=dict)
    ends_in_norm: bool = True
    problem: str | None = None

    @property
    def magnitude(self) -> float:
        """The largest sum of magnitudes, forward or backward."""
        return max(self.forward, self.backward)


def mark_degree(tensor: Tensor, degree: int = 1) -> None:
    """Say of which degree a value is."""
    tensor._groupfx_degree = degree  # type: ignore[attr-defined]


def degree_of(value: Any) -> int:
    """The degree of a value, 0 for what is not marked."""
    return int(getattr(value, "_groupfx_degree", 0))


class PolynomialRecorder(TorchFunctionMode):
    """Context manager that follows degrees and magnitudes; see the text of this module."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Polynomial()
        self._complex = False
        self._seen_norm = False
        self._epsilons: dict[int, float] = {}
        self._offsets: dict[int, int] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        name = operator_name(func)
        operands = list(_tensors((args, named)))
        if name in _SHAPES or not any(degree_of(tensor) for tensor in operands):
            return func(*args, **named)
        fields = _NORM_FIELDS.get("functional" if func is F.batch_norm else name)
        if fields is not None:
            call = {**dict(zip(fields, args, strict=False)), **named}
            result = self._norm(func, {_NORM_NAMES.get(k, k): v for k, v in call.items()})
            degree = degree_of(call["input"]) + 1
        elif name in _PRODUCTS or name in _SUMS:
            self._need_whole(name, operands)
            if named.get("alpha", 1) != 1:
                self._fail(f"{name} with alpha={named['alpha']}")
            positive = _positive_operand if name in _ELEMENTWISE else _positive
            result = func(*map(positive, args), **{k: positive(v) for k, v in named.items()})
            degree = _degree_of_call(name, args, named)
            self._follow_norms(name)
        else:
            result = func(*args, **named)
            if name not in _MOVES and (name in _READS or next(_tensors(result), None) is not None):
                self._fail(f"{name} is no sum of products")
            degree = max(map(degree_of, operands))
        for tensor in _tensors(result):
            mark_degree(tensor, degree)
            if name not in _MOVES:
                self._record(tensor)
        self.found.degree = max(self.found.degree, degree)
        return result

    def _norm(self, func: Callable[..., Any], call: dict[str, Any]) -> Any:
        """The norm with a mean of -1 and a variance with which it multiplies by its weight."""
        eps, var = call.get("eps", _EPS), call.get("var")
        if var is None or call.get("training"):
            self._fail("a norm by the statistics of its input")
            var = call["input"].new_ones(call["input"].shape[1])
        elif self._epsilons.setdefault(id(var), eps) != eps:
            self._fail("one variance with two values of eps")
        elif self._offsets.setdefault(id(call.get("bias")), id(var)) != id(var):
            self._fail("one bias behind two variances")
        self._seen_norm = True
        weight, bias = (_positive(call.get(key)) for key in ("weight", "bias"))
        mean, held = -torch.ones_like(var), torch.full_like(var, 4.0 ** least_exponent(eps) - eps)
        # The functional form of any of them.
        result = F.batch_norm(call["input"], mean, held, weight, bias, False, 0.0, eps)
        return (result, mean, held) if operator_name(func).startswith("_native") else result

    def _follow_norms(self, name: str) -> None:
        if self._seen_norm and name in _PRODUCTS:
            self.found.ends_in_norm = False

    def _need_whole(self, name: str, operands: Sequence[Tensor]) -> None:
        self._complex |= any(tensor.is_complex() for tensor in operands)
        # What is made of whole numbers by sums and products is whole.
        if not all(is_whole(tensor) for tensor in operands if not degree_of(tensor)):
            self._fail(f"{name} of what is no whole number")

    def _record(self, tensor: Tensor) -> None:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return
        self._complex |= tensor.is_complex()
        self.found.forward = max(self.found.forward, magnitude_of(tensor))

    def _fail(self, problem: str) -> None:
        self.found.problem = self.found.problem or problem

    def finish(self, names: Mapping[str, Tensor], gradients: Sequence[Tensor]) -> Polynomial:
        """What was found, with the magnitudes of these gradients. `names` are of all tensors."""
        found = self.found
        variances = {id(t): name for name, t in names.items() if id(t) in self._epsilons}
        found.epsilons = {n: self._epsilons[id(t)] for n, t in names.items() if id(t) in variances}
        found.offsets = {
            name: variances[self._offsets[id(t)]]
            for name, t in names.items()
            if self._offsets.get(id(t)) in variances
        }
        found.backward = max(map(magnitude_of, gradients), default=0.0)
        if self._complex:
            # Each product adds four, and the sums may be formed from sums of both parts.
            found.forward *= 4.0**found.degree
            found.backward *= 4.0**found.degree
        if not found.degree:
            self._fail("it does not depend on its numbers")
        return found


def least_exponent(eps: float) -> int:
    """The least k, from 0, for which a variance of 4^k - eps is positive."""
    exponent = 0
    while 4.0**exponent <= eps:
        exponent += 1
    return exponent


def magnitude_of(tensor: Tensor) -> float:
    """The largest magnitude in a tensor, of a complex one in either part."""
    return peak(torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor)


def _degree_of_call(name: str, args: Sequence[Any], named: Mapping[str, Any]) -> int:
    if name in _SUMS:
        return max(map(degree_of, _tensors((args, named))))
    at = _BIAS.get(name)
    bias = named.get("input" if at == 0 else "bias")
    factors = [*(v for k, v in named.items() if k != "bias")]
    for position, value in enumerate(args):
        if position == at:
            bias = value
        else:
            factors.append(value)
    return max(sum(map(degree_of, _tensors(factors))), degree_of(bias))


def _positive(value: Any) -> Any:
    constant = isinstance(value, Tensor) and value.is_floating_point() and not degree_of(value)
    return value.abs() if constant else value


def _positive_operand(value: Any) -> Any:
    """The same, where numbers are operands too."""
    return abs(value) if type(value) in (int, float) else _positive(value)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
