"""Every layer of a model that learned its groups: what they came to, and what that is worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from ..convs.spec import shape_of_weight
from ..errors import UsageError
from ..nn.flgc import BALANCED
from ..plan.blocks import BlockStructure, find_blocks
from .groups import (
    CONV,
    INPUT_SCORES,
    OUTPUT_SCORES,
    LearnedGroups,
    Members,
    groups_of,
    has_learned_groups,
)

_CONVS: Mapping[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
# Where a weight lies that is pruned, normalised or parametrised; all of these have its shape.
_PARAMETRIZED = "parametrizations.weight.original"
_WEIGHTS = ("weight", "weight_orig", "weight_v", f"{_PARAMETRIZED}1", _PARAMETRIZED)


@dataclass(frozen=True)
class LearnedLayer:
    """A layer with learned groups; `name` is its path in the model."""

    name: str
    kernel_size: tuple[int, ...]
    groups: LearnedGroups

    @cached_property
    def structure(self) -> BlockStructure:
        """The blocks that freezing makes of the groups."""
        mask = self.groups.mask().numpy()
        return find_blocks(mask, max_blocks=self.groups.out_channels, min_saving=0)

    @property
    def tied_inputs(self) -> tuple[int, ...]:
        """Input channels in more than one group."""
        return _in_several(self.groups.inputs)

    @property
    def tied_filters(self) -> tuple[int, ...]:
        """Filters in more than one group."""
        return _in_several(self.groups.outputs)


def is_scores(name: str) -> bool:
    """Whether a tensor of this name holds the scores of channels for groups."""
    return name.rpartition(".")[2] in (INPUT_SCORES, OUTPUT_SCORES)


def decides_groups(name: str) -> bool:
    """Whether a tensor of this name may say, with others, who is in which group."""
    return is_scores(name) or name.rpartition(".")[2] == BALANCED


def learned_layers(model: nn.Module) -> tuple[LearnedLayer, ...]:
    """The layers of `model` with learned groups, in the order of its modules.

    Raises UsageError, with the layer's name, for maps that do not fit its convolution.
    """
    found = []
    for name, layer in model.named_modules():
        if has_learned_groups(layer):
            _, _, *kernel = shape_of_weight(layer.get_submodule(CONV))
            found.append(LearnedLayer(name, tuple(kernel), groups_of(layer, name)))
    return tuple(found)


def learned_layers_in(
    shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]
) -> tuple[LearnedLayer, ...]:
    """The same from the tensors of a state_dict, by their names; the model is not needed.

    `shapes` are those of all tensors, of which `tensors` holds at least those of `decides_groups`.
    Raises UsageError, with the layer's name, for maps that do not fit each other or their
    convolution, and where one of the three is missing.
    """
    names = dict.fromkeys(_layer(name) for name in shapes if is_scores(name))
    return tuple(_layer_in(name, shapes, tensors) for name in names)


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _layer_in(
    name: str, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]
) -> LearnedLayer:
    path = f"{name}." if name else ""
    for key in (INPUT_SCORES, OUTPUT_SCORES):
        if path + key not in tensors:
            raise UsageError(f"{name or 'the model'} has only one of its two maps: no {path}{key}")
    weights = [f"{path}{CONV}.{weight}" for weight in _WEIGHTS]
    shape = next((shapes[weight] for weight in weights if weight in shapes), None)
    if shape is None or len(shape) - 2 not in _CONVS or 0 in shape:
        said = "no weights" if shape is None else f"weights of the shape {list(shape)}"
        raise UsageError(
            f"{name or 'the model'}: its maps belong to a convolution called {path}{CONV}, "
            f"and the file has {said} for it"
        )
    out_channels, in_channels, *kernel = shape
    # Without memory: only its sizes are looked at.
    layer = nn.Module()
    conv = _CONVS[len(kernel)](in_channels, out_channels, tuple(kernel), device="meta")
    layer.add_module(CONV, conv)
    for key in (INPUT_SCORES, OUTPUT_SCORES):
        scores = tensors[path + key]
        if not scores.is_floating_point():
            kind = str(scores.dtype).removeprefix("torch.")
            raise UsageError(f"{path}{key} holds {kind}, and scores are floating-point numbers")
        layer.register_buffer(key, scores)
    layer.register_buffer(BALANCED, tensors.get(path + BALANCED))
    return LearnedLayer(name, tuple(kernel), groups_of(layer, name or "the model"))


def _in_several(members: Members) -> tuple[int, ...]:
    counts = Counter(channel for group in members for channel in group)
    return tuple(sorted(channel for channel, count in counts.items() if count > 1))
