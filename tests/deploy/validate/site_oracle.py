"""How far a site's output may move by rounding, worked out again with nothing of `groupfx.deploy`.

    y = s (W * x + b - mean) + beta

Each output element may be off by 2 K u / (1 - K u) times m, K = taps x inputs a group + 5, and each
channel in root mean square by max(4, sqrt(K)) u times that of m, with

    m = |s| (|W| * |x| + |b| + |mean|) + |beta|

Which BatchNorm belongs to which convolution is seen when the model runs: it takes what the
convolution gave.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from tests.models import zoo
from tests.models.frozen_cases import INPUT_MAP, OUTPUT_MAP

Array = np.ndarray[Any, np.dtype[Any]]

_UNIT = 2.0**-24
_LEAST_NORMAL = 2.0**-126


@dataclass(frozen=True)
class SiteOracle:
    """One convolution of the original model with the BatchNorm behind it."""

    name: str
    conv: nn.Module
    norm_name: str | None
    norm: nn.Module | None

    def moved(self, x: Array, before: Array, after: Array) -> float:
        """How far the output moved for the input `x`, by what rounding is allowed."""
        wide = torch.from_numpy(x).double()
        size = self._magnitudes(wide)
        step = (torch.from_numpy(after).double() - torch.from_numpy(before).double()).abs()
        terms = self._terms()
        element = 2 * terms * _UNIT / (1 - terms * _UNIT) * size + _LEAST_NORMAL
        channel = max(4.0, math.sqrt(terms)) * _UNIT * _rms(size) + _LEAST_NORMAL
        return float(max((step / element).max(), (_rms(step) / channel).max()))

    def _terms(self) -> int:
        conv = _plain(self.conv)
        return math.prod(conv.kernel_size) * (conv.in_channels // conv.groups) + 5

    @torch.no_grad()
    def _magnitudes(self, x: Tensor) -> Tensor:
        size = self._absolute()(x.abs())
        if self.norm is None:
            return size
        norm = copy.deepcopy(self.norm).double()
        gamma = 1.0 if norm.weight is None else norm.weight
        scale = (gamma / (norm.running_var + norm.eps).sqrt()).abs()
        beta = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias.abs()
        shape = (1, -1, *(1,) * (x.dim() - 2))
        parts = (scale.reshape(shape), norm.running_mean.abs().reshape(shape), beta.reshape(shape))
        return parts[0] * (size + parts[1]) + parts[2]

    def _absolute(self) -> nn.Module:
        """The convolution with the absolute values of its weight and bias, in float64."""
        conv = copy.deepcopy(_plain(self.conv)).double()
        conv.weight.copy_((conv.weight * _mask(self.conv, conv.weight)).abs())
        if conv.bias is not None:
            conv.bias.copy_(conv.bias.abs())
        if conv.padding_mode != "zeros":
            # A node in front of the site has padded the input already.
            conv.padding_mode, conv.padding = "zeros", (0,) * len(conv.kernel_size)
        return conv


def site_oracles(model: nn.Module, inputs: Any) -> dict[str, SiteOracle]:
    """Name -> site, for every convolution module and every layer with learned groups."""
    named = dict(_layers(model))
    given: dict[int, tuple[str, Tensor]] = {}
    norms: dict[str, str] = {}

    def gave(name: str, output: Tensor) -> None:
        given[id(output)] = (name, output)

    def took(name: str, x: Tensor) -> None:
        if id(x) in given:
            norms[given[id(x)][0]] = name

    handles = [
        layer.register_forward_hook(lambda _, __, output, name=name: gave(name, output))
        for name, layer in named.items()
    ]
    handles += [
        module.register_forward_pre_hook(lambda _, args, name=name: took(name, args[0]))
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
    ]
    with torch.no_grad():
        zoo.run(model, inputs)
    for handle in handles:
        handle.remove()
    return {
        name: SiteOracle(name, layer, norms.get(name), _submodule(model, norms.get(name)))
        for name, layer in named.items()
    }


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    learned = [name for name, module in model.named_modules() if hasattr(module, INPUT_MAP)]
    inner = {f"{name}.conv" for name in learned}
    for name, module in model.named_modules():
        if name in learned or (isinstance(module, _ConvNd) and name not in inner):
            yield name, module


def _submodule(model: nn.Module, name: str | None) -> nn.Module | None:
    return None if name is None else model.get_submodule(name)


def _plain(layer: nn.Module) -> Any:
    return layer if isinstance(layer, _ConvNd) else layer.conv


def _mask(layer: nn.Module, weight: Tensor) -> Tensor:
    """1 where a filter reads an input: the greatest scores of both are of one group."""
    if isinstance(layer, _ConvNd):
        return torch.ones_like(weight)
    chosen = [layer.get_parameter(name).argmax(1) for name in (OUTPUT_MAP, INPUT_MAP)]
    mask = (chosen[0][:, None] == chosen[1][None]).double()
    return mask.reshape(*mask.shape, *(1,) * (weight.dim() - 2))


def _rms(value: Tensor) -> Tensor:
    """Root mean square of each channel."""
    return value.square().transpose(0, 1).flatten(1).mean(1).sqrt()
