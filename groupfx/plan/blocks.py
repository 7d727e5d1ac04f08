"""The blocks of a masked convolution: which filters read which input channels. Integers only.

Two primitives find them. The *partition* is made of the connected components of the channel graph,
which has an edge wherever the mask has an entry; no channel is in two of its blocks. The *cover* is
made of the classes of filters that read the same inputs; an input may be in several of its blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from ..errors import UsageError
from .channels import channels_per_group, group_slices, is_permutation
from .notes import Note

Mask = npt.NDArray[Any]
Support = npt.NDArray[np.bool_]

MIN_SAVING = 0.1
_SHOWN = 4
_MANY_ENTRIES, _MOST_STEPS = 1 << 19, 8


@dataclass(frozen=True)
class Block:
    """Filters `outputs` and the input channels `inputs` that they read. Neither is empty."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.inputs or not self.outputs:
            raise UsageError(
                f"a block of {len(self.inputs)} inputs and {len(self.outputs)} outputs computes "
                "nothing: filters without inputs are `bias_only` of a BlockStructure, inputs "
                "without filters are its `dead_inputs`"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of inputs and of outputs."""
        return len(self.inputs), len(self.outputs)


@dataclass(frozen=True)
class BlockStructure:
    """A convolution of `in_channels` to `out_channels` as blocks.

    Every output channel is in one block, or in `bias_only`: a filter that reads nothing and puts
    out its bias alone. Every input channel is in one block, in several, or in `dead_inputs`, which
    nothing reads. Raises UsageError where that is not so.

    All MACs are for one position of the output and one tap of the kernel.
    """

    in_channels: int
    out_channels: int
    blocks: tuple[Block, ...]
    bias_only: tuple[int, ...] = ()
    dead_inputs: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        written = [*self.bias_only, *(c for block in self.blocks for c in block.outputs)]
        _require_all(written, self.out_channels, "output", "block or among `bias_only`")
        read = {channel for block in self.blocks for channel in block.inputs}
        _require_all([*self.dead_inputs, *read], self.in_channels, "input", "set: read or dead")
        for block in self.blocks:
            if len(set(block.inputs)) < len(block.inputs):
                raise UsageError(f"a block reads an input twice: {block.inputs}")

    @classmethod
    def of_groups(cls, in_channels: int, out_channels: int, groups: int) -> BlockStructure:
        """The groups of a grouped convolution. Raises UsageError where they divide no channels."""
        inputs, outputs = (group_slices(count, groups) for count in (in_channels, out_channels))
        return cls(
            in_channels,
            out_channels,
            tuple(
                Block(tuple(range(i.start, i.stop)), tuple(range(o.start, o.stop)))
                for i, o in zip(inputs, outputs, strict=True)
            ),
        )

    @cached_property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Numbers of inputs and of outputs, for each block."""
        return tuple(block.shape for block in self.blocks)

    @property
    def exact_macs(self) -> int:
        """MACs of the blocks as they are."""
        return sum(inputs * outputs for inputs, outputs in self.shapes)

    @property
    def padded_macs(self) -> int:
        """MACs of the blocks if each is padded to the most inputs and the most outputs of any."""
        if not self.blocks:
            return 0
        width = max(inputs for inputs, _ in self.shapes)
        height = max(outputs for _, outputs in self.shapes)
        return len(self.blocks) * width * height

    @property
    def dense_macs(self) -> int:
        """MACs of the dense convolution."""
        return self.in_channels * self.out_channels

    @property
    def equal(self) -> bool:
        """Whether all blocks have one shape; False where there is no block."""
        return len(set(self.shapes)) == 1

    @property
    def partition(self) -> bool:
        """Whether no channel is in two blocks."""
        read = sum(inputs for inputs, _ in self.shapes)
        return read == self.in_channels - len(self.dead_inputs)

    def without_bias_only(self) -> BlockStructure:
        """The same with the filters that read nothing in the block of the fewest inputs.

        A linear layer has no cheaper way to put out a constant than a few products with 0.
        """
        if not self.bias_only:
            return self
        small = min(self.blocks, key=lambda block: len(block.inputs))
        outputs = tuple(sorted((*small.outputs, *self.bias_only)))
        blocks = (Block(b.inputs, outputs) if b is small else b for b in self.blocks)
        return replace(self, blocks=tuple(blocks), bias_only=())

    def describe(self) -> Note:
        """The blocks by their shape: `8 blocks of 8->8`, or `3 blocks: 3->4, 1->1, 4->3`."""
        shapes = [f"{inputs}->{outputs}" for inputs, outputs in self.shapes]
        if len(shapes) < 2:
            return Note("block", shapes[0], count=1) if shapes else Note("no blocks")
        if self.equal:
            return Note(f"blocks of {shapes[0]}", count=len(shapes))
        return Note("blocks", first_few(shapes), count=len(shapes))

    def remarks(self) -> list[Note]:
        """What a user should know of the channels that are in no block, or in several."""
        found = []
        if self.dead_inputs:
            found.append(counted(self.dead_inputs, "input", "read by no filter"))
        if self.bias_only:
            found.append(counted(self.bias_only, "filter", "without inputs", "bias alone"))
        if not self.partition:
            found.append(Note("some inputs are in several blocks"))
        return found


def counted(channels: Sequence[int], what: str, state: str, detail: str = "") -> Note:
    """`1 filter is state: detail`, `2 filters are state: detail`."""
    are = f"{what} is" if len(channels) == 1 else f"{what}s are"
    return Note(f"{are} {state}", detail, count=len(channels))


def first_few(texts: Sequence[str]) -> str:
    """The first texts of a list that may be long, and how many more there are."""
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more


def find_blocks(
    mask: Mask, *, max_blocks: int | None = None, min_saving: float = MIN_SAVING
) -> BlockStructure:
    """The blocks of `mask`, a boolean or integer array `[out_channels, in_channels]`.

    Only zero or not matters. The rule, for each connected component of the channel graph:

    - where every filter reads every input, the component is one block;
    - else its cover needs fewer MACs, one for each entry of the mask, and is taken if it has at
      most `max_blocks` blocks and saves at least the share `min_saving` of the component's MACs;
    - else the component is one block, with zeros inside.

    So the mask of an FLGC layer gives its groups, a mask whose groups share inputs (ties, or a
    CondenseNet's learned 1x1) the cover, and a few zeros by chance do not cut up a block.

    `max_blocks` is the most blocks that one component is cut into. None stands for half as many as
    it has filters: in a layer pruned at random each filter reads its own set of inputs, and a block
    for each would move about as many channels as it saves MACs. `max_blocks=out_channels` with
    `min_saving=0` always takes the fewest MACs, which suits a mask that is known to be of groups.

    Blocks come in the order of their smallest output, their channels ascending. Takes time linear
    in the entries of the mask. Raises UsageError if `mask` is not two-dimensional, has no
    entries, or is not of booleans or integers, and if an option is out of range.
    """
    support = _support(mask)
    _require_options(max_blocks, min_saving)
    classes = _row_classes(support)
    # One row of each class tells as much as all of them, and there may be far fewer.
    seen = support[[rows[0] for rows in classes]]
    blocks: list[Block] = []
    for members in _components(seen):
        chosen = [classes[member] for member in members]
        blocks.extend(_cut(seen[members], chosen, max_blocks, min_saving))
    out_channels, in_channels = support.shape
    return BlockStructure(
        in_channels,
        out_channels,
        tuple(sorted(blocks, key=lambda block: block.outputs[0])),
        bias_only=_indices(~support.any(axis=1)),
        dead_inputs=_indices(~support.any(axis=0)),
    )


def spread_mask(mask: Mask, groups: int) -> Mask:
    """The mask of a grouped convolution, as the mask of the dense one that computes the same.

    From `[out_channels, in_channels / groups]`, as a grouped weight has it, to
    `[out_channels, in_channels]`, zero outside the groups. Raises UsageError if `mask` is not
    two-dimensional or the groups do not divide `out_channels`.
    """
    if mask.ndim != 2:
        raise UsageError(f"a mask must be [out_channels, inputs a group], not {list(mask.shape)}")
    out_channels, width = mask.shape
    height = channels_per_group(out_channels, groups)
    spread = np.zeros((groups, height, groups, width), dtype=mask.dtype)
    each = np.arange(groups)
    spread[each, :, each] = mask.reshape(groups, height, width)
    return spread.reshape(out_channels, groups * width)


def _cut(
    entries: Support, classes: list[list[int]], max_blocks: int | None, min_saving: float
) -> list[Block]:
    """Blocks of one component, given the entries and the rows of each of its classes."""
    rows = sorted(row for chosen in classes for row in chosen)
    inputs = entries.any(axis=0)
    limit = len(rows) // 2 if max_blocks is None else max_blocks
    macs = len(rows) * int(inputs.sum())
    saved = macs - int(entries.sum(axis=1) @ [len(chosen) for chosen in classes])
    if len(classes) <= limit and saved >= min_saving * macs:
        pairs = zip(entries, classes, strict=True)
        return [Block(_indices(reads), tuple(chosen)) for reads, chosen in pairs]
    return [Block(_indices(inputs), tuple(rows))]


def _row_classes(support: Support) -> list[list[int]]:
    """Rows with the same entries, ascending, in the order of their first row; no empty rows."""
    classes: dict[bytes, list[int]] = {}
    packed = np.packbits(support, axis=1)
    for row in np.flatnonzero(support.any(axis=1)).tolist():
        classes.setdefault(packed[row].tobytes(), []).append(row)
    return list(classes.values())


def _components(support: Support) -> list[list[int]]:
    """Rows that are connected through the columns that they share; none of them is empty."""
    found: list[list[int]] = []
    left, sizes, packed = np.arange(len(support)), support.sum(axis=1), np.packbits(support, axis=1)
    # Zeros anywhere leave a component of nearly all entries, and as many edges for a search.
    while sizes[left].sum() > _MANY_ENTRIES:
        reached = _reached(packed[left], int(sizes[left].argmax()))
        if reached is None:
            break
        found.append(left[reached].tolist())
        left = left[~reached]
    return found + [left[chosen].tolist() for chosen in _searched(support[left])]


def _reached(packed: npt.NDArray[np.uint8], row: int) -> Support | None:
    """The rows that are connected with one, whole rows of bits at a time; None if they are many
    steps away.
    """
    columns, rows = packed[row], 0
    for _ in range(_MOST_STEPS):
        reached: Support = (packed & columns).any(axis=1)
        if reached.sum() == rows:
            return reached
        columns, rows = np.bitwise_or.reduce(packed[reached]), int(reached.sum())
    return None


def _searched(support: Support) -> Iterator[npt.NDArray[np.int64]]:
    """The same by a search along single entries."""
    rows, columns = support.shape
    nodes = rows + columns
    targets = rows + np.nonzero(support)[1]
    # The edges of each node, one after another; only those from rows to columns are stored.
    ends = np.full(nodes + 1, len(targets))
    ends[: rows + 1] = np.concatenate(([0], support.sum(axis=1).cumsum()))
    edges = np.ones(len(targets), dtype=np.int8)
    graph = csr_array((edges, targets, ends), shape=(nodes, nodes))
    labels = connected_components(graph, directed=False)[1][:rows]
    order = labels.argsort(kind="stable")
    return iter(np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)) if rows else iter(())


def _indices(chosen: npt.ArrayLike) -> tuple[int, ...]:
    return tuple(np.flatnonzero(chosen).tolist())


def _support(mask: Mask) -> Support:
    if mask.ndim != 2 or not mask.size:
        raise UsageError(
            f"a mask must be [out_channels, in_channels], both at least 1, not {list(mask.shape)}"
        )
    if mask.dtype.kind not in "biu":
        raise UsageError(
            f"a mask must be of booleans or integers, not {mask.dtype}; "
            "`weight != 0` is the mask of a weight that holds zeros"
        )
    support: Support = mask != 0
    return support


def _require_options(max_blocks: int | None, min_saving: float) -> None:
    if max_blocks is not None and max_blocks < 1:
        raise UsageError(f"max_blocks={max_blocks}: a component has at least 1 block")
    if not 0 <= min_saving < 1:
        raise UsageError(f"min_saving={min_saving}: a share of MACs is at least 0 and less than 1")


def _require_all(channels: list[int], expected: int, side: str, place: str) -> None:
    if expected < 1:
        raise UsageError(f"{expected} {side} channels: there must be at least 1")
    if len(channels) != expected or not is_permutation(channels):
        raise UsageError(
            f"each of the {side} channels 0 ... {expected - 1} must be in exactly one {place}; "
            f"{len(channels)} are given, of which {len({*channels} & {*range(expected)})} differ "
            "and are in range"
        )
