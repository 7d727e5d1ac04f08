"""What a checkpoint of the original must say, so that the rewritten model can hold it.

Freezing bakes a decision into the structure: which channel is in which group, which weights are
zero. Another checkpoint of the same network may have decided otherwise; its tensors would have the
right shapes, load, and compute another function. Requirements are how a map notices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..learned.groups import LearnedGroups, members_of
from .rows import Entry

Check = Callable[[Sequence[Tensor], Any], str | None]

_GROUPS = "learned-groups"
_EXACTLY = "exactly"


@dataclass(frozen=True)
class Fixed:
    """The original's tensors `keys` must say `value`, as the check called `kind` reads them.

    `value` is plain: None, booleans, numbers, strings, and tuples of those. The rewritten model
    need not hold these tensors. `of_groups` and `exactly` build the two kinds that are always
    known; a pass adds others with `register_check`.
    """

    keys: tuple[str, ...]
    kind: str
    value: Any = None

    @classmethod
    def of_groups(
        cls, input_scores: str, output_scores: str, groups: LearnedGroups, *balanced: str
    ) -> Fixed:
        """The score maps under these keys must give the mask that `groups` has.

        Groups that are numbered in another order are the same groups. `balanced` is the key of the
        tensor that balanced layers have.
        """
        value = (groups.in_channels, groups.out_channels, groups.inputs, groups.outputs)
        return cls((input_scores, output_scores, *balanced), _GROUPS, value)

    @classmethod
    def exactly(cls, key: str, tensor: Tensor) -> Fixed:
        """The tensor under this key must have these values, in whatever dtype."""
        return cls((key,), _EXACTLY, _digest(tensor))

    @property
    def path(self) -> str:
        """What the keys have in common: the path of their layer, or the key itself."""
        paths = {key.rpartition(".")[0] or key for key in self.keys}
        return ", ".join(sorted(paths))

    def problem(self, tensors: Sequence[Tensor]) -> str | None:
        """How far the original's tensors are from what is required, in words; None if they fit.

        Raises UsageError for a kind that nobody registered.
        """
        if self.kind not in _CHECKS:
            raise UsageError(
                f"{self.path}: the map asks for the check '{self.kind}', which is not known here; "
                "import the pass that made the map"
            )
        found = _CHECKS[self.kind](tensors, self.value)
        return None if found is None else f"{self.path}: {found}"


@dataclass(frozen=True)
class Zeros:
    """Elements of the original in `source` that no tensor of the rewritten model holds must be 0.

    A pass that leaves out the zeros of a weight puts what it found in its place here.
    """

    source: Entry


Requirement = Fixed | Zeros


def zeros_of(key: str, requires: Mapping[str, Requirement]) -> list[Entry]:
    """What `Zeros` among the requirements say of the original's tensor `key`."""
    zeros = (each.source for each in requires.values() if isinstance(each, Zeros))
    return [source for source in zeros if source.key == key]


def register_check(kind: str, check: Check) -> None:
    """Make `Fixed(kind=kind)` known.

    `check(tensors, value)` gets the original's tensors, detached, and returns what is wrong in
    words, or None. Raises UsageError if the kind is taken by another function.
    """
    if _CHECKS.setdefault(kind, check) is not check:
        raise UsageError(f"the check '{kind}' is registered already; take another name")


def _check_groups(tensors: Sequence[Tensor], value: Any) -> str | None:
    in_channels, out_channels, inputs, outputs = value
    problems = []
    members = []
    sides = (("input channels", in_channels, inputs), ("filters", out_channels, outputs))
    scores_of, balanced = tensors[:2], len(tensors) > 2
    for scores, (what, channels, frozen) in zip(scores_of, sides, strict=True):
        if scores.dim() != 2 or len(scores) != channels:
            return f"a map is {list(scores.shape)}, and {channels} {what} are needed"
        members.append(members_of(scores, balanced=balanced))
        moved = _moved(channels, members[-1], frozen)
        if moved:
            problems.append(f"{moved} of {channels} {what}")
    if not problems:
        return None
    counts = (in_channels, out_channels)
    masks = [LearnedGroups(*counts, *found).mask() for found in (members, (inputs, outputs))]
    if torch.equal(*masks):
        return None
    return f"{' and '.join(problems)} are in other groups than those that were frozen"


def _moved(channels: int, now: Sequence[Sequence[int]], frozen: Sequence[Sequence[int]]) -> int:
    """How many channels are not in the groups that they were in."""
    before: list[list[int]] = [[] for _ in range(channels)]
    after: list[list[int]] = [[] for _ in range(channels)]
    for homes, groups in ((after, now), (before, frozen)):
        for group, held in enumerate(groups):
            for channel in held:
                homes[channel].append(group)
    return sum(left != right for left, right in zip(before, after, strict=True))


def _check_exactly(tensors: Sequence[Tensor], value: Any) -> str | None:
    (tensor,) = tensors
    if _digest(tensor) == value:
        return None
    return f"its values {list(tensor.shape)} are not those that the model was rewritten with"


def _digest(tensor: Tensor) -> str:
    # Adding 0 makes -0 the 0 that it is equal to.
    values = (tensor.detach().cpu().to(torch.float64) + 0.0).contiguous()
    return hashlib.sha256(f"{list(values.shape)}".encode() + values.numpy().tobytes()).hexdigest()


_CHECKS: dict[str, Check] = {_GROUPS: _check_groups, _EXACTLY: _check_exactly}
