"""The weight of a convolution by its output channels, in the float network and in whole numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ....convs.spec import ConvSpec
from ...quantised.tensors import QuantisedTensor
from ..site_functions import Affine, SiteFunction

Array = npt.NDArray[np.float64]

_HALF = 0.5 + 1e-3


def by_outputs(weight: npt.NDArray[Any], spec: ConvSpec) -> Array:
    """`[out, products of one value]`, from the layout of either kind of convolution."""
    wide = weight.astype(np.float64)
    if not spec.transposed:
        return wide.reshape(spec.out_channels, -1)
    apart = wide.reshape(spec.groups, -1, *wide.shape[1:])
    return np.moveaxis(apart, 2, 1).reshape(spec.out_channels, -1)


@dataclass(frozen=True)
class Rows:
    """The numbers of a weight in float64, `[out, products]`, zero points not taken off yet.

    `steps` and `zeros` have the scale and the zero point of each number; `low` and `high` are the
    limits of the type.
    """

    numbers: Array
    steps: Array
    zeros: Array
    low: float
    high: float

    @property
    def reals(self) -> Array:
        """What the numbers stand for."""
        return (self.numbers - self.zeros) * self.steps

    def saturated(self, float_rows: Array) -> npt.NDArray[np.bool_]:
        """Which numbers are at a limit because the float ones lie beyond it."""
        low, high = self.numbers <= self.low, self.numbers >= self.high
        # What is rounded to the limit is within half a step of it.
        beyond = (float_rows - self.reals) / np.where(self.steps == 0, 1.0, self.steps)
        return (low & (beyond < -_HALF)) | (high & (beyond > _HALF))


def rows_of(tensor: QuantisedTensor, spec: ConvSpec, scale: npt.NDArray[Any] | None) -> Rows | None:
    """The numbers of a weight; `scale` is that of an operator that knows none. None if computed."""
    numbers, zeros = tensor.numbers, tensor.zero_points
    scales = tensor.scales if scale is None else scale
    if numbers is None or scales is None or (tensor.zero_point is not None and zeros is None):
        return None
    axis = tensor.axis
    if scale is not None and scale.size > 1:
        axis = 0
    placed = replace(tensor, axis=axis)
    steps = np.broadcast_to(placed.spread(scales, numbers.shape), numbers.shape)
    offset = np.zeros(()) if zeros is None else placed.spread(zeros, numbers.shape)
    low, high = limits(tensor)
    return Rows(
        by_outputs(numbers, spec),
        by_outputs(steps, spec),
        by_outputs(np.broadcast_to(offset, numbers.shape), spec),
        low,
        high,
    )


def limits(tensor: QuantisedTensor) -> tuple[float, float]:
    """The least and the greatest number of the type that is stored."""
    dtype = tensor.stored.dtype
    if dtype is None and tensor.tensor is not None:
        dtype = tensor.tensor.dtype
    if dtype is None or not dtype.is_integer():
        return -np.inf, np.inf
    half = 2.0 ** (dtype.bitwidth - 1)
    return (-half, half - 1) if dtype.is_signed() else (0.0, 2 * half - 1)


@dataclass(frozen=True)
class FloatRows:
    """What a site is in the float network: weight `[out, products]` and bias `[out]`.

    `folded` says that the BatchNorms behind are in them.
    """

    site: str
    weight: Array
    bias: Array
    folded: bool


def float_rows(function: SiteFunction, *, fold: bool) -> FloatRows:
    """The weight of a site, with the BatchNorms behind folded in or not."""
    weight = by_outputs(function.weight.numpy(), function.spec)
    bias = np.zeros(len(weight)) if function.bias is None else function.bias.double().numpy()
    for norm in function.norms if fold else ():
        scale, mean, beta = norm.scale.numpy(), norm.mean.numpy(), norm.beta.numpy()
        weight, bias = weight * scale[:, None], (bias - mean) * scale + beta
    return FloatRows(function.name, weight, bias, fold and bool(function.norms))


def branch(function: SiteFunction, first: int, groups: int) -> SiteFunction:
    """`groups` groups of a site from number `first` on, as a site of their own."""
    spec = function.spec
    if groups == spec.groups:
        return function
    inputs, outputs = (n // spec.groups for n in (spec.in_channels, spec.out_channels))
    held = slice(first * outputs, (first + groups) * outputs)
    rows = slice(first * inputs, (first + groups) * inputs) if spec.transposed else held
    norms = tuple(
        Affine(norm.scale[held], norm.mean[held], norm.beta[held]) for norm in function.norms
    )
    return replace(
        function,
        spec=spec.with_channels(groups * inputs, groups * outputs, groups=groups),
        weight=function.weight[rows],
        bias=None if function.bias is None else function.bias[held],
        norms=norms,
    )


def with_rows(function: SiteFunction, rows: Array, bias: Array) -> SiteFunction:
    """The same convolution with another weight, `[out, products]`, and bias; no norms."""
    spec, shape = function.spec, tuple(function.weight.shape)
    weight = rows
    if spec.transposed:
        apart = rows.reshape(spec.groups, spec.out_channels // spec.groups, -1, *shape[2:])
        weight = np.moveaxis(apart, 1, 2)
    made = torch.from_numpy(np.ascontiguousarray(weight.reshape(shape)))
    return replace(function, weight=made, bias=torch.from_numpy(bias.copy()), norms=())


def joined(parts: Sequence[Rows]) -> Rows:
    """The rows of all branches of a site, one after another."""
    return replace(
        parts[0],
        numbers=np.concatenate([part.numbers for part in parts]),
        steps=np.concatenate([part.steps for part in parts]),
        zeros=np.concatenate([part.zeros for part in parts]),
    )
