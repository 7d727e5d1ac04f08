"""One forward and one backward through a copy of a region."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..running.unchanged import seed_torch
from .measures import peak
from .region import RegionCopy


@dataclass(frozen=True)
class Derivatives:
    """An output, and the gradients of a random linear function of it.

    `inputs` has one for each floating input, `parameters` one for each full name; zeros where no
    gradient arrives. `inputs` is None if the output does not depend on anything differentiable.
    """

    output: Tensor
    inputs: tuple[Tensor, ...] | None = None
    parameters: Mapping[str, Tensor] = field(default_factory=dict)

    def scale(self) -> float:
        """The largest magnitude among all gradients: what rounding is to be measured by.

        A parameter alone has no scale: the gradient of a bias in front of a BatchNorm in train
        mode is zero but for rounding.
        """
        gradients = (*(self.inputs or ()), *self.parameters.values())
        peaks = [peak(torch.view_as_real(g) if g.is_complex() else g) for g in gradients]
        return max((value for value in peaks if math.isfinite(value)), default=0.0)


Cotangent = Callable[[Tensor], Tensor]
"""Makes the cotangent for an output."""


def differentiate(
    copy: RegionCopy,
    values: Sequence[Any],
    *,
    training: bool,
    seed: int,
    cotangent: Cotangent | None = None,
) -> Derivatives:
    """Run `copy` forward and backward.

    `seed` fixes what the region draws, and the cotangent where none is given. Raises TypeError
    where the output is no tensor.
    """
    leaves = [value.clone().requires_grad_() for value in values if _differentiable(value)]
    remaining = iter(leaves)
    given = [next(remaining) if _differentiable(value) else value for value in values]
    parameters = {
        name: tensor
        for name, tensor in copy.tensors.items()
        if isinstance(tensor, nn.Parameter) and tensor.requires_grad
    }
    seed_torch(seed)
    output = copy.run(given, training=training)
    if not isinstance(output, Tensor):
        raise TypeError(f"the output is a {type(output).__name__}, not a tensor")
    if not output.requires_grad:
        return Derivatives(output)
    wanted = [*leaves, *{id(tensor): tensor for tensor in parameters.values()}.values()]
    given_back = _normal(output, seed) if cotangent is None else cotangent(output.detach())
    # What is complex among real numbers gets a cotangent without an imaginary part.
    given_back = given_back.to(output.dtype)
    gradients = torch.autograd.grad(output, wanted, given_back, materialize_grads=True)
    found = {id(tensor): gradient for tensor, gradient in zip(wanted, gradients, strict=True)}
    return Derivatives(
        output.detach(),
        tuple(found[id(leaf)] for leaf in leaves),
        {name: found[id(tensor)] for name, tensor in parameters.items()},
    )


def _normal(output: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(output.shape, dtype=output.dtype, generator=generator)


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
