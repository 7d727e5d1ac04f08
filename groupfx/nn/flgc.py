"""Convolutions that learn their groups: fully learnable group convolution (FLGC).

Each input channel and each filter keeps a row of scores, one a group, and belongs to the group with
the greatest. A dense weight is masked by that assignment:

    B = 1 where a row of softmax(map) equals its own maximum, else 0       [channels, groups]
    mask = B_out @ B_in.T                                                  [out, in]
    y = conv(x, weight * mask)

The step from probabilities to `B` has no useful gradient, so the backward is straight-through: a
gradient passes where `B` is 1, and is 0 elsewhere. Two groups of equal score share the channel, and
a row with a NaN belongs to none. `groupfx.learned.groups` reads an assignment as integers.

Groups that are learned so come out unequal, and unequal groups run slowly. A *balanced* layer gives
each group the same number of channels: of all such assignments the one with the largest sum of
scores, which is the most probable one, found as an assignment problem. Freezing it is one standard
grouped convolution. The backward is the same.

Source: Wang et al., Fully Learnable Group Convolution for Acceleration of Deep Neural Networks
(CVPR 2019). Parameters have the names and shapes of the public code, so that its checkpoints load.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..plan.balancing import best_equal_groups, equal_group_num

BALANCED = "balanced"
"""The buffer of a layer whose groups are of equal size; those without have no such buffer."""


def group_assignment(scores: Tensor, *, balanced: bool = False) -> Tensor:
    """1 where a channel is in a group, else 0.

    A channel is where an entry of `softmax(scores)` equals the maximum of its row; or, `balanced`,
    where the equal groups of the largest sum of scores have it. There a NaN counts as a score of 0,
    and makes the row NaN.

    Takes `[channels, groups]` of any floating dtype and decides in float32, so that a layer in half
    precision or float64 has the groups that it was trained with. Returns float32 of the same shape.
    Raises UsageError where balanced groups cannot be equal.
    """
    probabilities = torch.softmax(scores, 1, dtype=torch.float32)
    if balanced:
        chosen = _equal_groups(scores.detach())
    # A compiler's own softmax differs in the last bit, which is enough to make or break a tie.
    elif torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        chosen = _row_maxima_of_softmax(scores.detach())
    else:
        chosen = probabilities == probabilities.amax(1, keepdim=True)
    # Straight-through without an autograd.Function, whose backward a trace or an export would lose:
    # the value is 1 + (p - p), exactly 1, and the gradient is that of p.
    return torch.where(chosen, 1 + (probabilities - probabilities.detach()), 0)


@torch.library.custom_op("groupfx::row_maxima_of_softmax", mutates_args=())
def _row_maxima_of_softmax(scores: Tensor) -> Tensor:
    probabilities = torch.softmax(scores, 1, dtype=torch.float32)
    return probabilities == probabilities.amax(1, keepdim=True)


@torch.library.custom_op("groupfx::equal_groups", mutates_args=())
def _equal_groups(scores: Tensor) -> Tensor:
    homes = torch.from_numpy(best_equal_groups(scores.float().cpu().numpy()))
    chosen = homes[:, None] == torch.arange(scores.shape[1])
    return chosen.to(scores.device)


@_row_maxima_of_softmax.register_fake
@_equal_groups.register_fake
def _(scores: Tensor) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.bool)


def _is_whole(number: object) -> bool:
    return isinstance(number, Integral)


class _Flgc(nn.Module):
    """The layer for any number of dimensions."""

    _conv_type: ClassVar[type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]]

    conv: nn.Conv1d | nn.Conv2d | nn.Conv3d
    in_channels_in_group_assignment_map: nn.Parameter
    out_channels_in_group_assignment_map: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        *,
        group_num: int,
        balanced: bool | int = False,
        learn_outputs: bool = True,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if not _is_whole(group_num):
            raise UsageError(f"{name}(group_num={group_num!r}): the groups are a whole number")
        if group_num < 1:
            raise UsageError(f"{name}(group_num={group_num}): the groups must be at least 1")
        if balanced and not _is_whole(balanced):
            raise UsageError(f"{name}(balanced={balanced!r}): True, or a whole number for sizes")
        if balanced:
            sides = in_channels, out_channels
            group_num = self._balanced_group_num(group_num, int(balanced), *sides)
        self.conv = self._conv_type(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            bias=bias,
            padding_mode=padding_mode,
            device=device,
            dtype=dtype,
        )
        for name, channels in (("in", in_channels), ("out", out_channels)):
            scores = torch.empty(channels, group_num, device=device, dtype=dtype)
            key = f"{name}_channels_in_group_assignment_map"
            if name == "in" or learn_outputs:
                self.register_parameter(key, nn.Parameter(scores))
            else:
                self.register_buffer(key, scores)
        # In the state, since a checkpoint does not say by its maps alone how they are read.
        if balanced:
            self.register_buffer(BALANCED, torch.tensor(int(balanced)))
        self.reset_parameters()

    def _balanced_group_num(self, group_num: int, multiple: int, *channels: int) -> int:
        name = type(self).__name__
        if multiple < 1:
            raise UsageError(f"{name}(balanced={multiple}): sizes are multiples of 1 or more")
        found = equal_group_num(group_num, multiple, *channels)
        if multiple == 1 and found != group_num:
            raise UsageError(
                f"{name}(group_num={group_num}, balanced=True): {channels[0]} inputs and "
                f"{channels[1]} filters do not make {group_num} equal groups; "
                f"group_num={found} would"
            )
        return found

    @property
    def group_num(self) -> int:
        """Number of groups that channels can be assigned to; some may be empty."""
        return self.in_channels_in_group_assignment_map.shape[1]

    def reset_parameters(self) -> None:
        """Draw both maps anew, from a standard normal; the conv has a method of its own.

        A map that is not learned has the filters in the order of their groups, as equal as can be.
        """
        nn.init.normal_(self.in_channels_in_group_assignment_map)
        outputs = self.out_channels_in_group_assignment_map
        if isinstance(outputs, nn.Parameter):
            nn.init.normal_(outputs)
            return
        filters, groups = outputs.shape
        home = torch.arange(filters, device=outputs.device) * groups // filters
        outputs.zero_()[torch.arange(filters, device=outputs.device), home] = 1

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, in, *size]` to `[batch, out, *size]`, as the convolution has it."""
        balanced = self._buffers.get(BALANCED) is not None
        inputs = group_assignment(self.in_channels_in_group_assignment_map, balanced=balanced)
        outputs = group_assignment(self.out_channels_in_group_assignment_map, balanced=balanced)
        weight = self.conv.weight
        mask = (outputs @ inputs.T).to(weight.dtype)
        taps = (None,) * len(self.conv.kernel_size)
        masked = weight * mask[(..., *taps)]
        result: Tensor = self.conv._conv_forward(x, masked, self.conv.bias)
        return result

    def extra_repr(self) -> str:
        said = f"group_num={self.group_num}"
        balanced = self._buffers.get(BALANCED)
        if balanced is not None:
            said += f", balanced={int(balanced)}"
        learned = isinstance(self.out_channels_in_group_assignment_map, nn.Parameter)
        return said if learned else f"{said}, learn_outputs=False"


class Flgc1d(_Flgc):
    """A `Conv1d` that learns its groups; arguments, state and errors are those of `Flgc2d`."""

    _conv_type = nn.Conv1d


class Flgc2d(_Flgc):
    """A `Conv2d` that learns its groups.

    Takes the arguments of `torch.nn.Conv2d`, and in place of `groups` the `group_num` on offer.
    Raises UsageError if that is no positive whole number, or if equal groups are asked for and not
    possible.

    State: `conv.weight` `[out, in, *kernel]`, `conv.bias` `[out]`, and the scores
    `in_channels_in_group_assignment_map` `[in, group_num]` and
    `out_channels_in_group_assignment_map` `[out, group_num]`. The module has the formula.

    Args:
        group_num: number of groups on offer.
        balanced: True for groups of equal size, which freeze into one standard grouped convolution;
            a number for sizes that are multiples of it (16: the width of a block of channels in
            ONNX Runtime's kernels with AVX-512), of as many groups as that allows, one if it allows
            none. Adds the buffer `balanced` to the state.
        learn_outputs: False leaves filters in order, and learns only which inputs they read, so
            that a frozen layer has nothing to permute behind it. Their map is then a buffer.
    """

    _conv_type = nn.Conv2d


class Flgc3d(_Flgc):
    """A `Conv3d` that learns its groups; arguments, state and errors are those of `Flgc2d`."""

    _conv_type = nn.Conv3d
