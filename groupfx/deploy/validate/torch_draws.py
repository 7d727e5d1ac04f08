"""Random numbers that a torch model draws while it runs: found, and given in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from ...running.watching import Watcher

Kind = tuple[Any, ...]
"""What is drawn: `normal` with mean and deviation, `uniform` with both ends, `keep` with the
probability of a 1, `bernoulli` and `multinomial` of probabilities that are computed."""

_PLAIN: Mapping[str, Kind] = {
    "randn": ("normal", 0.0, 1.0),
    "randn_like": ("normal", 0.0, 1.0),
    "rand": ("uniform", 0.0, 1.0),
    "rand_like": ("uniform", 0.0, 1.0),
}
COMPUTED = ("bernoulli", "multinomial")


class Draws(Watcher):
    """Notes what is drawn, in order; with `given`, those values are drawn.

    `kinds` says what each is, `values` are the numbers, `inputs` the probabilities, if computed.
    """

    def __init__(self, given: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self._given = given
        self.kinds: list[Kind] = []
        self.values: list[Tensor] = []
        self.inputs: list[Tensor | None] = []

    def saw(self, func: OpOverload, args: Any, kwargs: Any, result: Any) -> None:
        """Note what an operator draws."""
        if torch.Tag.nondeterministic_seeded not in func.tags or not isinstance(result, Tensor):
            return
        kind = _kind(func.__name__.partition(".")[0], func.__name__.partition(".")[2], args)
        number = len(self.kinds)
        self.kinds.append(kind)
        if self._given is not None and number < len(self._given):
            # In place, for operators that fill what they take.
            result.copy_(self._given[number].to(result.dtype))
        self.values.append(result.detach().clone())
        self.inputs.append(args[0].detach().clone() if kind[0] in COMPUTED else None)


def _kind(name: str, overload: str, args: Sequence[Any]) -> Kind:
    if name in _PLAIN:
        return _PLAIN[name]
    if name == "normal_":
        return ("normal", *_numbers(args[1:3], (0.0, 1.0)))
    if name == "uniform_":
        return ("uniform", *_numbers(args[1:3], (0.0, 1.0)))
    if name == "bernoulli_" and overload == "float":
        return ("keep", *_numbers(args[1:2], (0.5,)))
    if name == "bernoulli" and overload == "p":
        return ("keep", *_numbers(args[1:2], (0.5,)))
    if name == "bernoulli":
        return ("bernoulli",)
    if name == "multinomial":
        return ("multinomial", args[1])
    return (name,)


def _numbers(given: Sequence[Any], usual: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(v) for v in (*given, *usual[len(given) :]))
