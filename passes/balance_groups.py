"""Make the groups that a layer learned equal, at the price of a few weights.

Before:  y = conv(x, W * M)           M leaves unequal blocks of W
After:   y = conv_g(x[:, inputs])[:, order]           one grouped convolution, all groups equal

Unequal blocks cost more time than they save; equal ones run as one grouped convolution. Channels
change groups so that as much as possible of the weight, by its squares, stays inside a group. What
ends up outside is set to 0, and what comes in from outside the learned mask starts at 0 and can be
trained. So the function changes, on purpose: the report says how much of each weight is kept and
how far outputs move, and every check is against the original with the same zeros. Fine-tune after.

A layer that is trained with equal groups from the start (`Flgc2d(balanced=True)`) needs none of
this: `freeze-learned-groups` makes it one grouped convolution, exactly.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import fx

from groupfx.convs.calls import ConvCall, Unreadable
from groupfx.errors import UsageError
from groupfx.plan.balancing import Balanced, balance, equal_group_num
from groupfx.rewriting import Convolution, Note, Pass, Rewritten, Site, Skip, unwanted
from groupfx.rewriting.block_layers import Blocks, emit_blocks, plan_blocks
from groupfx.rewriting.learned_sites import learned_calls, read_layer
from groupfx.rewriting.sparse_sites import original_key
from groupfx.rewriting.weights import MaskedLayer


@dataclass(frozen=True)
class BalanceGroups(Pass[Blocks]):
    """Learned groups become equal ones; loses a few weights, so only on request."""

    exact = False

    refuses = (
        "what freeze-learned-groups refuses",
        "channels that make no two equal groups of a multiple of `multiple`",
    )

    groups: int | None = None
    """how many equal groups; none: as many as the layer could learn, or fewer, so that they fit"""

    multiple: int = 1
    """sizes of groups are multiples of it; 16 suits ONNX Runtime's kernels with AVX-512"""

    only: tuple[str, ...] = ()
    """patterns of layer names; the others are skipped"""

    skip: tuple[str, ...] = ()
    """patterns of layer names that are skipped"""

    def __post_init__(self) -> None:
        if self.groups is not None and self.groups < 2:
            raise UsageError(f"groups={self.groups}: it takes at least two to share channels")
        if self.multiple < 1:
            raise UsageError(f"multiple={self.multiple}: sizes are multiples of 1 or more")

    def calls(self, root: fx.GraphModule) -> Mapping[fx.Node, ConvCall | Unreadable]:
        return learned_calls(root)

    def wants(self, conv: Convolution) -> bool:
        return True

    def match(self, site: Site) -> Blocks | Skip:
        assert site.module is not None
        # A layer with two names is balanced under both or under none.
        named = unwanted(site.store.paths_of(site.module) or (site.name,), self.only, self.skip)
        if named is not None:
            return Skip(named)
        layer = read_layer(site)
        if isinstance(layer, str):
            return Skip(layer)
        found = self._balanced(layer)
        if isinstance(found, Skip):
            return found
        remarks = [Note("groups were made equal", f"{found.kept:.1%} of the weight's square kept")]
        layer = replace(layer, trains_zeros=True)
        # One that is chosen for its time may be dense again, with the same zeros.
        remedy = "'groupfx export' takes what is fastest there"
        blocks = plan_blocks(site, layer, found.structure, "bucketed", remarks, remedy)
        lost, key = blocks.weights.zeroed(), original_key(site, layer)
        if lost is None or key is None:
            return blocks
        return replace(blocks, zeroed={key: lost})

    def _balanced(self, layer: MaskedLayer) -> Balanced | Skip:
        spec, learned = layer.spec, layer.groups
        assert learned is not None
        most = len(learned.inputs) if self.groups is None else self.groups
        groups = equal_group_num(most, self.multiple, spec.in_channels, spec.out_channels)
        if most < 2:
            return Skip(
                "it has one group; groups=2 or more makes several of it, and loses the rest"
            )
        if groups == 1 or (self.groups is not None and groups != self.groups):
            number = "two" if self.groups is None else str(self.groups)
            sizes = f" of a multiple of {self.multiple}" if self.multiple > 1 else ""
            other = f"; groups={groups} would" if groups > 1 else ""
            return Skip(
                f"{spec.in_channels} inputs and {spec.out_channels} filters do not make {number} "
                f"equal groups{sizes}{other}"
            )
        energy = layer.value.detach().double().square().flatten(2).sum(2).cpu().numpy()
        return balance(energy, groups)

    def rewrite(self, site: Site, description: Blocks) -> Rewritten:
        return emit_blocks(site, description)
