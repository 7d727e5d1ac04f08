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

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import fx

from groupfx.convs.calls import ConvCall, Unreadable
from groupfx.plan.blocks import counted, find_blocks
from groupfx.rewriting import Convolution, Note, Pass, Rewritten, Site, Skip, unwanted
from groupfx.rewriting.block_layers import Blocks, emit_blocks, plan_blocks
from groupfx.rewriting.learned_sites import learned_calls, read_layer
from groupfx.rewriting.weights import MaskedLayer


@dataclass(frozen=True)
class FreezeLearnedGroups(Pass[Blocks]):
    """Learned groups (FLGC) become standard grouped convolutions with channel shuffles."""

    exact = False

    refuses = (
        "a layer that computes something else than its maps say (the report has the number)",
        "masks that depend on the input, or differ from call to call",
        "a mask on a convolution that is grouped already",
        "user hooks, parametrised maps or weights, tensors shared with another module",
        "an input without a batch axis",
    )

    form: Literal["auto", "fastest", "dense", "bucketed", "padded", "split"] = "auto"
    """how blocks are executed; auto takes the fewest MACs, fastest what eager PyTorch needs least
    time for"""

    only: tuple[str, ...] = ()
    """patterns of layer names; the others are skipped"""

    skip: tuple[str, ...] = ()
    """patterns of layer names that are skipped"""

    def calls(self, root: fx.GraphModule) -> Mapping[fx.Node, ConvCall | Unreadable]:
        return learned_calls(root)

    def wants(self, conv: Convolution) -> bool:
        return True

    def match(self, site: Site) -> Blocks | Skip:
        assert site.module is not None
        # A layer with two names is frozen under both or under none.
        names = site.store.paths_of(site.module) or (site.name,)
        named = unwanted(names, self.only, self.skip)
        if named is not None:
            return Skip(named)
        layer = read_layer(site)
        if isinstance(layer, str):
            return Skip(layer)
        assert layer.factors is not None
        mask = layer.factors.numpy()
        structure = find_blocks(mask, max_blocks=len(mask), min_saving=0)
        form = self.form if structure.blocks else "dense"
        return plan_blocks(site, layer, structure, form, [*_remarks(site, layer)])

    def rewrite(self, site: Site, description: Blocks) -> Rewritten:
        return emit_blocks(site, description)


_ONE_STAYS = "one convolution stays, for the size of its output"


def _remarks(site: Site, layer: MaskedLayer) -> Iterator[Note]:
    """What a user should know of the groups that were learned, beside their blocks."""
    groups, said = layer.groups, site.spec.padding_mode
    assert groups is not None
    for channels, side in ((groups.nan_inputs, "input"), (groups.nan_outputs, "filter")):
        if channels:
            yield counted(channels, side, "in no group, because of NaN or infinity in the map")
    if all(0 in size for size in groups.sizes):
        yield Note("no filter reads anything", _ONE_STAYS)
    if layer.spec.padding_mode != said:
        yield Note(f"padded with zeros, as its forward does (its conv says '{said}')")
