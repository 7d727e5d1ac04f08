"""FLOPs of a model with learned groups: as it runs, as the groups would have it, and frozen."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ..errors import ModelError
from ..learned.layers import LearnedLayer
from .flops import Flops, count_flops
from .inputs import ExampleInputs


@dataclass(frozen=True)
class LearnedFlops:
    """Operations of one sample.

    `dense` counts a learned layer as the masked dense convolution that it runs, `exact` as the sum
    over its blocks. `positions` are those of each layer's output, in all its calls together.
    """

    dense: Flops
    exact: Flops
    positions: dict[str, int]


def count_learned(
    model: nn.Module, inputs: ExampleInputs, layers: Sequence[LearnedLayer]
) -> LearnedFlops:
    """Run `model` once, in eval mode, and count; `layers` are its learned layers.

    The model is not changed. Raises `ModelError` where it cannot be run, or where a layer's result
    is no tensor of channels.
    """
    positions: Counter[str] = Counter()
    hooks = []
    for layer in layers:
        module = model.get_submodule(layer.name)
        hooks.append(module.register_forward_hook(_count_positions(positions, layer)))
    try:
        dense = count_flops(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    saved = sum(positions[layer.name] * saved_macs(layer) for layer in layers)
    exact = replace(dense, convolutions=dense.convolutions - saved)
    batch = inputs.batch or 1
    each = {layer.name: positions[layer.name] // batch for layer in layers}
    return LearnedFlops(of_one(dense, batch), of_one(exact, batch), each)


def saved_macs(layer: LearnedLayer) -> int:
    """MACs that the layer's dense convolution does and its blocks do not, for one position."""
    structure = layer.structure
    return (structure.dense_macs - structure.exact_macs) * math.prod(layer.kernel_size)


def of_one(flops: Flops, batch: int) -> Flops:
    """FLOPs of one sample, from those of a batch."""
    return Flops(
        flops.convolutions // batch,
        flops.linear // batch,
        flops.batch_norm // batch,
        flops.relu6 // batch,
    )


def _count_positions(positions: Counter[str], layer: LearnedLayer) -> Any:
    def hook(module: nn.Module, arguments: object, result: object) -> None:
        if not isinstance(result, Tensor) or result.numel() % layer.groups.out_channels:
            raise ModelError(f"{layer.name} does not return {layer.groups.out_channels} channels")
        positions[layer.name] += result.numel() // layer.groups.out_channels

    return hook
