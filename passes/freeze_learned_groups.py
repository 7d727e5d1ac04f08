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

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import fx

from groupfx.convs.calls import ConvCall, Unreadable
from groupfx.plan.blocks import BlockStructure, find_blocks
from groupfx.plan.cost import likely_slower
from groupfx.plan.forms import FormPlan, plan
from groupfx.rewriting import BatchNorm, Pass, Rewritten, Site, Skip, name_matches
from groupfx.rewriting.frozen_layer import emit_form, norm_is_in_place, norm_stays_because
from groupfx.rewriting.learned_sites import MaskedLayer, learned_calls, read_layer

_SHOWN = 4


@dataclass(frozen=True)
class Freeze:
    """The groups as they were learned, their blocks, and how these are executed."""

    layer: MaskedLayer
    structure: BlockStructure
    form: FormPlan
    batchnorm: BatchNorm | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FreezeLearnedGroups(Pass[Freeze]):
    """Learned groups (FLGC) become standard grouped convolutions with channel shuffles."""

    exact = False

    refuses = (
        "a layer that computes something else than its maps say (the report has the number)",
        "masks that depend on the input, or differ from call to call",
        "a mask on a convolution that is grouped already",
        "user hooks, parametrised maps or weights, tensors shared with another module",
        "an input without a batch axis",
    )

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
        assert site.module is not None
        # A layer with two names is frozen under both or under none.
        names = site.store.paths_of(site.module) or (site.name,)
        if self.only and not any(name_matches(name, self.only) for name in names):
            return Skip(f"not among only={','.join(self.only)}")
        if any(name_matches(name, self.skip) for name in names):
            return Skip(f"named by skip={','.join(self.skip)}")
        layer = read_layer(site)
        if isinstance(layer, str):
            return Skip(layer)
        mask = layer.mask.numpy()
        structure = find_blocks(mask, max_blocks=len(mask), min_saving=0)
        form = plan(structure, self.form if structure.blocks else "dense")
        notes = [*_remarks(site, layer, structure), *_speed(site, structure, form)]
        norm = None if norm_is_in_place(form) else site.following_batchnorm()
        if isinstance(norm, BatchNorm):
            reason = norm_stays_because(form, site.spec.out_channels)
        else:
            reason, norm = norm, None
        if reason is not None:
            notes.append(f"BatchNorm stays behind: {reason}")
            norm = None
        return Freeze(layer, structure, form, norm, tuple(notes))

    def rewrite(self, site: Site, description: Freeze) -> Rewritten:
        form = description.form
        layer, norm = description.layer, description.batchnorm
        output, end, remembered = emit_form(site, form, layer, norm)
        return Rewritten(
            output=output,
            end=end,
            form=_describe(form),
            branches=len(form.convs),
            notes=(_blocks(description.structure), *description.notes),
            macs=None if site.macs is None else _frozen_macs(site, form),
            plan=remembered,
        )


def _frozen_macs(site: Site, form: FormPlan) -> int:
    dense = site.spec.in_channels * site.spec.out_channels
    assert site.macs is not None
    return site.macs * form.macs // dense


def _describe(form: FormPlan) -> str:
    convs = [
        f"{conv.in_channels}->{conv.out_channels}" + (f" /{conv.groups}" if conv.groups > 1 else "")
        for conv in form.convs
    ]
    gathers = [
        f"{name} {gather.kind}"
        for name, gather in (("input", form.input_gather), ("output", form.output_gather))
        if gather.kind != "identity"
    ]
    return "; ".join([f"{form.form}: {_listed(convs)}", *gathers])


def _blocks(structure: BlockStructure) -> str:
    """The blocks by their shape, such as `8 blocks of 8->8` or `3 blocks: 3->4, 1->1, 4->3`."""
    shapes = [f"{inputs}->{outputs}" for inputs, outputs in structure.shapes]
    if len(shapes) < 2:
        return f"1 block: {shapes[0]}" if shapes else "no blocks"
    if structure.equal:
        return f"{len(shapes)} blocks of {shapes[0]}"
    return f"{len(shapes)} blocks: {_listed(shapes)}"


def _listed(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more


def _remarks(site: Site, layer: MaskedLayer, structure: BlockStructure) -> list[str]:
    """What a user should know of the groups that were learned."""
    groups, found = layer.groups, []
    for channels, side in ((groups.nan_inputs, "input"), (groups.nan_outputs, "filter")):
        if channels:
            are = _are(len(channels), side)
            found.append(f"{are} in no group, because of NaN or infinity in the map")
    if structure.dead_inputs:
        found.append(f"{_are(len(structure.dead_inputs), 'input')} read by no filter")
    if structure.bias_only:
        found.append(f"{_are(len(structure.bias_only), 'filter')} without inputs: bias alone")
    if not structure.partition:
        found.append("ties: blocks share inputs")
    if not structure.blocks:
        found.append("no filter reads anything: one convolution stays, for the size of its output")
    if layer.padding_mode != site.spec.padding_mode:
        mode = site.spec.padding_mode
        found.append(f"padded with zeros, as its forward does (its conv says '{mode}')")
    return found


def _are(number: int, what: str) -> str:
    return f"1 {what} is" if number == 1 else f"{number} {what}s are"


def _speed(site: Site, structure: BlockStructure, form: FormPlan) -> list[str]:
    if site.shapes is None:
        return []
    reason = likely_slower(
        structure,
        form,
        taps=math.prod(site.spec.kernel_size),
        positions=max(math.prod(site.shapes.output[2:]), 1),
        input_positions=max(math.prod(site.shapes.input[2:]), 1),
    )
    return [] if reason is None else [f"likely slower than dense on ONNX Runtime: {reason}"]
