"""Find the groups that zeros in a weight make, and compute those alone.

Before:  y = conv(x, W)               many entries of W are 0: pruned, or masked
After:   y = cat([conv_b(x[:, inputs_b]) for each block b])[:, order]

A filter reads a channel if any tap of its kernel for that channel is not 0. Filters and channels
that are connected make a block, or, where that takes fewer MACs, the filters that read the very
same channels. Blocks are executed as `freeze-learned-groups` does it, and a linear layer as one
linear layer a block.

A mask that the graph multiplies with a stored weight counts as part of it, if it is made of stored
tensors alone: a pruning hook, a parametrisation, the Kronecker gates of a DGConv. It is folded in.

Everything outside the blocks is 0 and left out, so the result is the same to rounding. With a
`threshold`, entries outside the blocks need not be 0: they are set to 0, the check compares with
the layer that has zeros there, and what that changes is measured and reported.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from groupfx.convs.calls import ConvCall, Unreadable
from groupfx.convs.spec import ConvSpec, LinearSpec
from groupfx.errors import UsageError
from groupfx.plan.blocks import MIN_SAVING, BlockStructure, find_blocks, spread_mask
from groupfx.plan.forms import FormPlan
from groupfx.plan.forms import plan as form_plan
from groupfx.rewriting import Convolution, Note, Pass, Rewritten, Site, Skip, unwanted
from groupfx.rewriting.block_layers import Blocks, emit_blocks, plan_blocks
from groupfx.rewriting.sparse_sites import nothing_to_find, original_key, read_weight, sparse_calls
from groupfx.rewriting.weights import MaskedLayer

# More linear layers in place of one than that are slower than it, however small they are.
_MOST_LINEARS = 64

Entries = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class DiscoverGroups(Pass[Blocks]):
    """Zeros in any dense layer (pruned, masked) become standard grouped convolutions."""

    exact = False

    refuses = (
        "zeros that leave no channel out of any block, or save less than min_saving",
        "weights or biases shared with another module, or read elsewhere in the graph",
        "masks that depend on the input, or differ between the taps of a kernel",
        "transposed and depthwise convolutions, user hooks, an input without a batch axis",
        "what another pass made in the same run: run discover-groups first",
        "dense layers (not seen at all) where forward cannot be traced: open it with way=export",
    )

    form: Literal["auto", "dense", "bucketed", "padded", "split"] = "auto"
    """how blocks are executed; auto: one grouped convolution for all blocks of a shape"""

    min_saving: float = MIN_SAVING
    """share of the MACs that a layer, and a cut inside it, must save, from 0 to 1"""

    max_blocks: int | None = None
    """most blocks that connected channels are cut into; none: half as many as filters"""

    threshold: float = 0.0
    """entries up to this size count as 0; above 0 the report says how far outputs move"""

    only: tuple[str, ...] = ()
    """patterns of layer names; the others are skipped"""

    skip: tuple[str, ...] = ()
    """patterns of layer names that are skipped"""

    reads_values: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < float("inf"):
            raise UsageError(f"threshold={self.threshold}: it must be finite and at least 0")
        find_blocks(np.ones((2, 2), bool), max_blocks=self.max_blocks, min_saving=self.min_saving)

    def calls(self, root: fx.GraphModule) -> Mapping[fx.Node, ConvCall | Unreadable]:
        return sparse_calls(root)

    def wants(self, conv: Convolution) -> bool:
        return True

    def plan(self, conv: Convolution) -> FormPlan | Skip:
        named = unwanted((conv.name,), self.only, self.skip)
        if named is not None:
            return Skip(named)
        reason = nothing_to_find(conv.spec)
        if reason is not None:
            return Skip(reason)
        if self.threshold:
            return Skip("a threshold changes the function: it takes a torch model, to measure how")
        weight = conv.weight_array()
        if weight is None:
            return Skip("its weight is computed")
        entries = (weight != 0).reshape(*weight.shape[:2], -1)
        structure = self._structure(entries, conv.spec)
        return structure if isinstance(structure, Skip) else form_plan(structure, self.form)

    def match(self, site: Site) -> Blocks | Skip:
        named = unwanted((site.name,), self.only, self.skip)
        if named is not None:
            return Skip(named)
        layer = read_weight(site)
        if isinstance(layer, str):
            return Skip(layer)
        structure = self._structure(_entries(layer, self.threshold), layer.spec)
        if isinstance(structure, Skip):
            return structure
        linear = isinstance(layer.spec, LinearSpec)
        if self.form == "auto" and linear and len(structure.blocks) > _MOST_LINEARS:
            number = len(structure.blocks)
            return Skip(
                f"{number} blocks would be {number} Linear layers, slower than one; "
                "form=split takes them"
            )
        saved = _saved(structure, layer.spec.groups)
        remarks = [f"{saved:.0%} of the MACs are products with 0"]
        blocks = plan_blocks(site, layer, structure, "split" if linear else self.form, remarks)
        if linear and any(blocks.weights.of(each).mask is not None for each in blocks.form.convs):
            return Skip(
                "its mask has zeros inside the blocks, which a Linear cannot keep; fold it in "
                "first (torch.nn.utils.prune.remove)"
            )
        return self._with_zeros(site, blocks)

    def _structure(self, entries: Entries, spec: ConvSpec) -> BlockStructure | Skip:
        """The blocks of `entries`, `[out_channels, inputs a group, taps]`, or why none are cut."""
        mask: Entries = np.any(entries, axis=2)
        structure = find_blocks(
            spread_mask(mask, spec.groups),
            max_blocks=self.max_blocks,
            min_saving=self.min_saving,
        )
        if not structure.blocks:
            return Skip("all its weights are 0: it puts out its bias alone, and can be removed")
        linear = isinstance(spec, LinearSpec)
        structure = structure.without_bias_only() if linear else structure
        saved = _saved(structure, spec.groups)
        if saved <= 0 or saved < self.min_saving:
            return Skip(_nothing(entries, saved, self.min_saving))
        if self.form == "dense" and (linear or spec.groups > 1):
            return Skip("form=dense keeps it as it is; take another form")
        return structure

    def _with_zeros(self, site: Site, blocks: Blocks) -> Blocks | Skip:
        """`blocks`, and what they leave out that is not 0, as a threshold allows."""
        zeroed = blocks.weights.zeroed()
        if zeroed is None:
            return blocks
        key = original_key(site, blocks.layer)
        if key is None:
            return Skip(
                "a threshold needs the weight of the original model, and another pass has cut this "
                "one; run discover-groups first"
            )
        note = _error(blocks.layer, zeroed, self.threshold)
        return replace(blocks, notes=(*blocks.notes, note), zeroed={key: zeroed})

    def rewrite(self, site: Site, description: Blocks) -> Rewritten:
        return emit_blocks(site, description)


def _saved(structure: BlockStructure, groups: int) -> float:
    """The share of the MACs of a convolution of so many groups that its blocks leave out."""
    return 1 - structure.exact_macs * groups / structure.dense_macs


def _entries(layer: MaskedLayer, threshold: float) -> Entries:
    """`[out_channels, inputs a group, taps]`: what counts as not 0."""
    value = layer.value.flatten(2) if layer.dense.dim() > 2 else layer.value[..., None]
    # Not `abs > threshold`: a NaN is no zero.
    found: Entries = (~(value.abs() <= threshold)).cpu().numpy()
    return found


def _error(layer: MaskedLayer, zeroed: Tensor, threshold: float) -> Note:
    """What the entries that are set to 0 change, for the report."""
    value = layer.value.double().flatten(2) if layer.dense.dim() > 2 else layer.value.double()
    lost = value[zeroed.to(value.device)]
    size = torch.zeros_like(value)
    size[zeroed.to(value.device)] = lost.abs()
    worst = float(size.flatten(1).sum(1).max())
    share = float(lost.norm() / value.norm())
    return Note(
        f"threshold={threshold:g}",
        f"{int(lost.count_nonzero())} entries of up to "
        f"{float(lost.abs().max()):.3g} are set to 0, {share:.3g} of the weight's norm, which is "
        "the relative error of the output (root mean square, without the bias) for inputs that "
        f"are not correlated; no output moves by more than {worst:.3g} times the largest input",
    )


def _nothing(entries: Entries, saved: float, least: float) -> str:
    share = 1 - float(entries.mean())
    if not share:
        return "its weight holds no zeros"
    if saved <= 0:
        return f"{share:.0%} of its weight is 0, but no channel can be left out of any block"
    return (
        f"its zeros ({share:.0%} of the weight) save {saved:.1%} of its MACs, less than "
        f"min_saving={least:g}"
    )
