"""The groups that a layer learned, as integers: who is in which group, and the mask of that.

A learned-group layer is known by what it holds, not by its class: a dense convolution called `conv`
and the two score maps of `groupfx.nn.flgc`. Ours has that form, and so does the layer of the public
FLGC code, wherever it was defined.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..convs.names import joined
from ..convs.spec import shape_of_weight
from ..errors import UsageError
from ..nn.flgc import BALANCED, group_assignment

CONV = "conv"
INPUT_SCORES = "in_channels_in_group_assignment_map"
OUTPUT_SCORES = "out_channels_in_group_assignment_map"

Members = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class LearnedGroups:
    """Which input channels and which filters belong to which group.

    `inputs[g]` and `outputs[g]` are the channels of group `g`, ascending. A channel may be in
    several groups (a tie), in one, or in none.
    """

    in_channels: int
    out_channels: int
    inputs: Members
    outputs: Members

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Numbers of input channels and of filters, for each group."""
        pairs = zip(self.inputs, self.outputs, strict=True)
        return tuple((len(inputs), len(outputs)) for inputs, outputs in pairs)

    @property
    def empty_groups(self) -> tuple[int, ...]:
        """Groups that compute nothing: without input channels, without filters, or without both."""
        return tuple(group for group, size in enumerate(self.sizes) if 0 in size)

    @property
    def nan_inputs(self) -> tuple[int, ...]:
        """Input channels in no group: their softmax is NaN, as a NaN or an infinity makes it."""
        return _missing(self.in_channels, self.inputs)

    @property
    def nan_outputs(self) -> tuple[int, ...]:
        """Filters in no group, for the same reason."""
        return _missing(self.out_channels, self.outputs)

    @property
    def dead_inputs(self) -> tuple[int, ...]:
        """Input channels that no filter reads."""
        return _missing(self.in_channels, _partnered(self.inputs, self.outputs))

    @property
    def bias_only_filters(self) -> tuple[int, ...]:
        """Filters that read no input channel, and put out their bias alone."""
        return _missing(self.out_channels, _partnered(self.outputs, self.inputs))

    def mask(self) -> Tensor:
        """How many groups filter and input channel share: int32 `[out_channels, in_channels]`.

        0 where they share none, 1 where they are in one group; more only with ties.
        """
        outputs = _membership(self.out_channels, self.outputs)
        inputs = _membership(self.in_channels, self.inputs)
        # In float32, which is exact up to 2**24 groups: a product of integer matrices is slow.
        return (outputs @ inputs.T).to(torch.int32)


def has_learned_groups(layer: nn.Module) -> bool:
    """Whether `layer` holds what a learned-group layer holds; nothing is said about its forward."""
    if isinstance(layer, torch.jit.ScriptModule):
        return False
    conv = layer._modules.get(CONV)
    is_conv = isinstance(conv, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return is_conv and all(_holds(layer, name) for name in (INPUT_SCORES, OUTPUT_SCORES))


def _holds(layer: nn.Module, name: str) -> bool:
    # Not by getattr: while a model is traced, that gives no tensor and leaves a node in the graph.
    held = (layer._parameters, layer._buffers, vars(layer))
    is_tensor = any(isinstance(each.get(name), Tensor) for each in held)
    return is_tensor or nn.utils.parametrize.is_parametrized(layer, name)


class UnfitMapsError(UsageError):
    """The maps of a layer do not fit its convolution. `reason` does not name the layer."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.reason = reason


def groups_of(layer: nn.Module, name: str = "") -> LearnedGroups:
    """The groups that `layer` has now, decided as its forward decides them.

    `name` is what messages call the layer. Raises UsageError for a layer of another form, and
    UnfitMapsError for maps that do not fit its convolution.
    """
    name = name or type(layer).__name__
    if not has_learned_groups(layer):
        raise UsageError(
            f"{name} is no layer with learned groups: it needs a Conv1d, Conv2d or Conv3d called "
            f"{CONV}, and the tensors {INPUT_SCORES} and {OUTPUT_SCORES}"
        )
    conv: nn.Conv1d | nn.Conv2d | nn.Conv3d = getattr(layer, CONV)
    if conv.groups != 1:
        raise UnfitMapsError(
            name,
            f"its conv has groups={conv.groups}; groups are learned on a dense conv, "
            "so build it with groups=1",
        )
    out_channels, in_channels, *_ = shape_of_weight(conv)
    scores = _scores(layer, name, INPUT_SCORES, in_channels, "in_channels")
    other = _scores(layer, name, OUTPUT_SCORES, out_channels, "out_channels")
    if scores.shape[1] != other.shape[1]:
        raise UnfitMapsError(
            name,
            f"{INPUT_SCORES} has {scores.shape[1]} groups (columns) and {OUTPUT_SCORES} "
            f"has {other.shape[1]}; give both the same number",
        )
    balanced = is_balanced(layer)
    if balanced and (in_channels % scores.shape[1] or out_channels % scores.shape[1]):
        raise UnfitMapsError(
            name,
            f"it is balanced, and {scores.shape[1]} groups cannot share {in_channels} inputs "
            f"and {out_channels} filters equally",
        )
    return LearnedGroups(
        in_channels=in_channels,
        out_channels=out_channels,
        inputs=members_of(scores, balanced=balanced),
        outputs=members_of(other, balanced=balanced),
    )


def is_balanced(layer: nn.Module) -> bool:
    """Whether the groups of a layer that has some are of equal size, whatever its scores."""
    return _holds(layer, BALANCED)


def _scores(layer: nn.Module, name: str, key: str, channels: int, field: str) -> Tensor:
    scores: Tensor = getattr(layer, key).detach()
    if scores.dim() != 2 or scores.shape[0] != channels or scores.shape[1] < 1:
        raise UnfitMapsError(
            name,
            f"{key} has the shape {list(scores.shape)}, and its conv has {field}={channels}; "
            f"the map must be [{channels}, groups], a row for each channel",
        )
    if scores.is_meta:
        raise UnfitMapsError(name, f"{key} has no values (device meta); load the weights first")
    return scores


def members_of(scores: Tensor, *, balanced: bool) -> Members:
    """The channels of each group, ascending, by the scores `[channels, groups]` of the channels."""
    # On the device of the layer: the last bit of a softmax, and so a tie, may depend on it.
    assignment = group_assignment(scores.detach(), balanced=balanced).cpu()
    return tuple(_rows(column != 0) for column in assignment.unbind(1))


def _rows(chosen: Tensor) -> tuple[int, ...]:
    return tuple(chosen.nonzero().flatten().tolist())


def _partnered(members: Members, partners: Members) -> Members:
    """The members of the groups that have partners on the other side."""
    return tuple(own for own, others in zip(members, partners, strict=True) if others)


def _missing(channels: int, members: Members) -> tuple[int, ...]:
    """Channels that are in none of the groups."""
    present = {channel for group in members for channel in group}
    return tuple(channel for channel in range(channels) if channel not in present)


def _membership(channels: int, members: Members) -> Tensor:
    table = torch.zeros(channels, len(members), dtype=torch.float32, device="cpu")
    for group, chosen in enumerate(members):
        table[list(chosen), group] = 1
    return table


def deciding_tensors(model: nn.Module) -> tuple[str, ...]:
    """Names of the tensors that decide who is in which group, in float32 and not in float64.

    The maps, and what else a learned-group layer holds beside its convolution (a temperature).
    """
    return tuple(
        joined(path, name)
        for path, layer in model.named_modules()
        if has_learned_groups(layer)
        for name in (*dict(layer.named_parameters()), *dict(layer.named_buffers()))
        if not name.startswith(f"{CONV}.")
    )
