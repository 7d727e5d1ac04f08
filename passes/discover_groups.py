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
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from groupfx.convs.calls import ConvCall, Unreadable
from groupfx.errors import UsageError
from groupfx.plan.blocks import MIN_SAVING, BlockStructure, find_blocks, spread_mask
from groupfx.plan.cost import likely_slower
from groupfx.plan.forms import FormPlan, plan
from groupfx.rewriting import BatchNorm, Pass, Rewritten, Site, Skip, name_matches
from groupfx.rewriting.block_layers import (
    BlockPicks,
    emit_blocks,
    norm_moves,
    original_key,
    refusal,
    with_bias_only,
)
from groupfx.rewriting.weights import LinearSpec, SparseWeight, read_sparse, sparse_calls

# More linear layers in place of one than that are slower than it, however small they are.
_MOST_LINEARS = 64


@dataclass(frozen=True)
class Discovery:
    """The blocks of a weight, how they are executed, and what the user should know."""

    picks: BlockPicks
    norm: BatchNorm | None
    notes: tuple[str, ...]
    zeroed: Mapping[str, Tensor]


@dataclass(frozen=True)
class DiscoverGroups(Pass[Discovery]):
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

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < float("inf"):
            raise UsageError(f"threshold={self.threshold}: it must be finite and at least 0")
        find_blocks(np.ones((2, 2), bool), max_blocks=self.max_blocks, min_saving=self.min_saving)

    def calls(self, root: fx.GraphModule) -> Mapping[fx.Node, ConvCall | Unreadable]:
        return sparse_calls(root)

    def wants(self, site: Site) -> bool:
        return True

    def match(self, site: Site) -> Discovery | Skip:
        if self.only and not name_matches(site.name, self.only):
            return Skip(f"not among only={','.join(self.only)}")
        if name_matches(site.name, self.skip):
            return Skip(f"named by skip={','.join(self.skip)}")
        weight = read_sparse(site.call, site.root).found
        if isinstance(weight, str):
            return Skip(weight)
        reason = refusal(site, weight)
        if reason is not None:
            return Skip(reason)
        return self._blocks(site, weight)

    def _blocks(self, site: Site, weight: SparseWeight) -> Discovery | Skip:
        groups = site.spec.groups
        structure = find_blocks(
            spread_mask(_mask(weight, self.threshold), groups),
            max_blocks=self.max_blocks,
            min_saving=self.min_saving,
        )
        if not structure.blocks:
            return Skip("all its weights are 0: it puts out its bias alone, and can be removed")
        if isinstance(site.spec, LinearSpec):
            structure = with_bias_only(structure)
        before = structure.dense_macs // groups
        saved = 1 - structure.exact_macs / before
        if saved <= 0 or saved < self.min_saving:
            return Skip(_nothing(weight, saved, self.min_saving))
        form = self._form(site, structure)
        if isinstance(form, Skip):
            return form
        picks = BlockPicks(site.spec, weight, structure, form)
        if isinstance(site.spec, LinearSpec) and any(picks.of(c).is_padded for c in form.convs):
            return Skip(
                "its mask has zeros inside the blocks, which a Linear cannot keep; fold it in "
                "first (torch.nn.utils.prune.remove)"
            )
        notes = [*_remarks(site, structure, form, saved)]
        norm = site.following_batchnorm() if site.spec.dims else None
        if isinstance(norm, str):
            notes.append(f"BatchNorm stays where it is: {norm}")
            norm = None
        if norm is not None and not norm_moves(form, site.spec.out_channels):
            norm = None
        zeroed = picks.zeroed()
        if zeroed is None:
            return Discovery(picks, norm, tuple(notes), {})
        key = original_key(site, weight)
        if key is None:
            return Skip(
                "a threshold needs the weight of the original model, and another pass has cut this "
                "one; run discover-groups first"
            )
        notes.append(_error(weight, zeroed, self.threshold))
        return Discovery(picks, norm, tuple(notes), {key: zeroed})

    def _form(self, site: Site, structure: BlockStructure) -> FormPlan | Skip:
        blocks = len(structure.blocks)
        if isinstance(site.spec, LinearSpec):
            if self.form == "auto" and blocks > _MOST_LINEARS:
                return Skip(
                    f"{blocks} blocks would be {blocks} Linear layers, slower than one; "
                    "form=split takes them"
                )
            return Skip(_KEPT) if self.form == "dense" else plan(structure, "split")
        if self.form == "dense" and site.spec.groups > 1:
            return Skip(_KEPT)
        if self.form == "auto":
            return plan(structure, "grouped" if structure.equal else "bucketed")
        return plan(structure, self.form)

    def rewrite(self, site: Site, description: Discovery) -> Rewritten:
        picks = description.picks
        output, end, remembered = emit_blocks(site, picks, description.norm)
        sizes = ", ".join(f"{inputs}->{outputs}" for inputs, outputs in picks.structure.shapes[:8])
        more = len(picks.structure.shapes) - 8
        blocks = f"blocks: {sizes}" + (f" and {more} more" if more > 0 else "")
        before = picks.structure.dense_macs // site.spec.groups
        return Rewritten(
            output=output,
            end=end,
            form=_describe(picks.form),
            branches=len(picks.form.convs),
            notes=(blocks, *description.notes),
            macs=None if site.macs is None else site.macs * picks.form.macs // before,
            zeroed=description.zeroed,
            plan=remembered,
        )


_KEPT = "form=dense keeps it as it is; take another form"


def _mask(weight: SparseWeight, threshold: float) -> npt.NDArray[np.bool_]:
    """`[out_channels, inputs a group]`: where any tap of the kernel counts as not 0."""
    value = weight.value.flatten(2) if weight.dense.dim() > 2 else weight.value[..., None]
    # Not `abs > threshold`: a NaN is no zero.
    entries = ~(value.abs() <= threshold)
    found: npt.NDArray[np.bool_] = entries.any(dim=2).cpu().numpy()
    return found


def _error(weight: SparseWeight, zeroed: Tensor, threshold: float) -> str:
    """What the entries that are set to 0 change, for the report."""
    value = weight.value.double().flatten(2) if weight.dense.dim() > 2 else weight.value.double()
    lost = value[zeroed.to(value.device)]
    size = torch.zeros_like(value)
    size[zeroed.to(value.device)] = lost.abs()
    worst = float(size.flatten(1).sum(1).max())
    share = float(lost.norm() / value.norm())
    return (
        f"threshold={threshold:g}: {int(lost.count_nonzero())} entries of up to "
        f"{float(lost.abs().max()):.3g} are set to 0, {share:.3g} of the weight's norm, which is "
        "the relative error of the output (root mean square, without the bias) for inputs that "
        f"are not correlated; no output moves by more than {worst:.3g} times the largest input"
    )


def _nothing(weight: SparseWeight, saved: float, least: float) -> str:
    zeros = int((weight.value == 0).sum())
    if not zeros:
        return "its weight holds no zeros"
    share = zeros / weight.dense.numel()
    if saved <= 0:
        return f"{share:.0%} of its weight is 0, but no channel can be left out of any block"
    return (
        f"its zeros ({share:.0%} of the weight) save {saved:.1%} of its MACs, less than "
        f"min_saving={least:g}"
    )


def _remarks(site: Site, structure: BlockStructure, form: FormPlan, saved: float) -> list[str]:
    found = [f"{saved:.0%} of the MACs are products with 0"]
    if structure.dead_inputs:
        found.append(f"{len(structure.dead_inputs)} inputs are read by no filter")
    if structure.bias_only:
        found.append(f"{len(structure.bias_only)} filters read nothing and put out their bias")
    if not structure.partition:
        found.append("some inputs are in several blocks")
    if site.shapes is None or not site.spec.dims or site.spec.groups > 1:
        return found
    slower = likely_slower(
        structure,
        form,
        taps=_product(site.spec.kernel_size),
        positions=max(_product(site.shapes.output[2:]), 1),
        input_positions=max(_product(site.shapes.input[2:]), 1),
    )
    return found if slower is None else [*found, f"likely slower on ONNX Runtime: {slower}"]


def _describe(form: FormPlan) -> str:
    convs = ", ".join(
        f"{conv.in_channels}->{conv.out_channels}" + (f" /{conv.groups}" if conv.groups > 1 else "")
        for conv in form.convs[:3]
    )
    more = f" and {len(form.convs) - 3} more" if len(form.convs) > 3 else ""
    gathers = [
        f"{name} {gather.kind}"
        for name, gather in (("input", form.input_gather), ("output", form.output_gather))
        if gather.kind != "identity"
    ]
    return "; ".join([f"{form.form}: {convs}{more}", *gathers])


def _product(sizes: tuple[int, ...]) -> int:
    return int(np.prod(sizes, dtype=int))
