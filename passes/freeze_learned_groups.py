"""Replace a layer that learned its groups by ordinary convolutions that compute the same.

Before:  y = conv(x, W * M)           M = B_out @ B_in.T, decided anew in each forward
After:   y = cat([conv_b(x[:, inputs_b]) for each block b])[:, order]

The mask M says which filters read which inputs. Filters that read the same inputs make a block,
and a block is a small dense convolution: rows and columns of W, times M where a tie makes an entry
2. Blocks of one shape run as one grouped convolution; where the channels of the blocks are laid
out regularly, the gathers become channel shuffles or nothing.

A BatchNorm that follows acts on each channel alone: it is permuted along and stays directly behind
the convolution, with the output gather behind it.

         bn(y[:, order]) = bn'(y)[:, order]          bn' holds the parameters of bn in y's order

The masked products are left out and the others are added up in another order, so the result is the
same to rounding, not to the bit. The trained binarisation is reproduced to the bit: a float32
softmax compared with its own maximum.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import fx

from groupfx.blocks import BlockStructure, find_blocks
from groupfx.calls import ConvCall, Unreadable
from groupfx.errors import UsageError
from groupfx.forms import FormPlan, plan
from groupfx.learned import LearnedGroups
from groupfx.rewriting import BatchNorm, Pass, Rewritten, Site, Skip, name_matches
from groupfx.rewriting.learned_sites import (
    emit_form,
    learned_calls,
    read_groups,
    refusal,
)
from groupfx.speed import likely_slower


@dataclass(frozen=True)
class Freeze:
    """The groups as they were learned, their blocks, and how these are executed."""

    groups: LearnedGroups
    structure: BlockStructure
    form: FormPlan
    batchnorm: BatchNorm | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FreezeLearnedGroups(Pass[Freeze]):
    """Learned groups (FLGC) become standard grouped convolutions with channel shuffles."""

    exact = False

    form: Literal["auto", "dense", "bucketed", "padded", "split"] = "auto"
    """how blocks are executed; auto takes the fewest MACs, and bucketed before split"""

    only: tuple[str, ...] = ()
    """patterns of layer names; the others are skipped"""

    skip: tuple[str, ...] = ()
    """patterns of layer names that are skipped"""

    def calls(self, root: fx.GraphModule) -> Mapping[fx.Node, ConvCall | Unreadable]:
        return learned_calls(root)

    def wants(self, site: Site) -> bool:
        return True

    def match(self, site: Site) -> Freeze | Skip:
        if self.only and not name_matches(site.name, self.only):
            return Skip(f"not among only={','.join(self.only)}")
        if name_matches(site.name, self.skip):
            return Skip(f"named by skip={','.join(self.skip)}")
        try:
            groups = read_groups(site)
        except UsageError as error:
            return Skip(str(error))
        reason = refusal(site, groups)
        if reason is not None:
            return Skip(reason)
        mask = groups.mask().numpy()
        structure = find_blocks(mask, max_blocks=groups.out_channels, min_saving=0)
        form = plan(structure, self.form if structure.blocks else "dense")
        notes = [*_remarks(groups, structure), *_speed(site, structure, form)]
        norm = site.following_batchnorm()
        if isinstance(norm, str):
            notes.append(f"BatchNorm stays behind the gather: {norm}")
            norm = None
        return Freeze(groups, structure, form, norm, tuple(notes))

    def rewrite(self, site: Site, description: Freeze) -> Rewritten:
        groups, form, norm = description.groups, description.form, description.batchnorm
        output, end = emit_form(site, form, groups, norm)
        sizes = ", ".join(f"{inputs}->{outputs}" for inputs, outputs in description.structure.shapes)
        return Rewritten(
            output=output,
            end=end,
            form=_describe(form),
            branches=len(form.convs),
            notes=(f"groups: {sizes or 'none'}", *description.notes),
            macs=None if site.macs is None else _frozen_macs(site, form),
        )


def _frozen_macs(site: Site, form: FormPlan) -> int:
    dense = site.spec.in_channels * site.spec.out_channels
    assert site.macs is not None
    return site.macs * form.macs // dense


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


def _remarks(groups: LearnedGroups, structure: BlockStructure) -> list[str]:
    """What a user should know of the groups that were learned."""
    found = []
    for channels, side in ((groups.nan_inputs, "inputs"), (groups.nan_outputs, "filters")):
        if channels:
            found.append(f"NaN in the scores of {len(channels)} {side}: they are in no group")
    if structure.dead_inputs:
        found.append(f"{len(structure.dead_inputs)} inputs are read by no filter")
    if structure.bias_only:
        found.append(f"{len(structure.bias_only)} filters read nothing and put out their bias")
    if not structure.partition:
        found.append("ties: some inputs are in several blocks")
    if not structure.blocks:
        found.append("no filter reads anything: it stays one convolution with a zero weight")
    return found


def _speed(site: Site, structure: BlockStructure, form: FormPlan) -> list[str]:
    if site.shapes is None:
        return []
    spec = site.spec
    reason = likely_slower(
        structure,
        form,
        taps=_product(spec.kernel_size),
        positions=max(_product(site.shapes.output[2:]), 1),
        input_positions=max(_product(site.shapes.input[2:]), 1),
    )
    return [] if reason is None else [reason]


def _product(sizes: tuple[int, ...]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result
