"""Give a grouped convolution fewer groups, or one, with zeros in its weight between them.

Before:  y = conv(x, W)        groups = g, W [out, in / g, ...]
After:   y = conv(x, W')       groups = h, W' [out, in / h, ...], h divides g

g / h groups that follow one another become one. A filter keeps its weights for the channels that it
read, and gets zeros for the others of its new group:

         W'[r, c] = W[r, c - first(r)]      where filter r reads channel c, else 0

What is multiplied with a zero is computed all the same, g / h times the MACs. So this is for
toolchains that take no groups and no slices either: `split-grouped-conv` costs no MACs. The zeros
are parameters like all others, and are trained with them.
"""

from dataclasses import dataclass
from typing import Literal

from groupfx.convs.spec import ConvSpec
from groupfx.errors import UsageError
from groupfx.plan.blocks import Block, BlockStructure
from groupfx.plan.channels import Slice, group_slices
from groupfx.plan.forms import ConvPlan, FormPlan
from groupfx.plan.gathers import plan_gather
from groupfx.rewriting import Convolution, Note, Pass, Rewritten, Site, Skip, unwanted
from groupfx.rewriting.block_layers import Blocks, emit_blocks
from groupfx.rewriting.sparse_sites import read_weight
from groupfx.rewriting.weights import MaskedLayer


@dataclass(frozen=True)
class WidenGroups(Pass[Blocks]):
    """Fewer groups, or none, with zeros between them: for tools that take neither."""

    exact = False

    refuses = (
        "1-d and 2-d depthwise (depthwise=widen takes them)",
        "transposed convolutions",
        "numbers of groups that `groups` does not divide",
        "weights that forward computes, shared weights, user hooks, an input without a batch axis",
        "what another pass made in the same run",
    )

    groups: int = 1
    """how many groups are left"""

    depthwise: Literal["keep", "widen"] = "keep"
    """keep leaves 1-d and 2-d depthwise convolutions as they are"""

    only: tuple[str, ...] = ()
    """patterns of site names; the others are skipped"""

    skip: tuple[str, ...] = ()
    """patterns of site names that are skipped"""

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise UsageError(f"groups={self.groups}: a convolution has at least 1")

    def plan(self, conv: Convolution) -> FormPlan | Skip:
        refusal = self._declines(conv)
        return _widened(conv.spec, self.groups) if refusal is None else Skip(refusal)

    def match(self, site: Site) -> Blocks | Skip:
        form = self.plan(site)
        if isinstance(form, Skip):
            return form
        layer = read_weight(site, _takes_any, self.pass_name())
        if isinstance(layer, str):
            return Skip(layer)
        if layer.factors is not None:
            return Skip(
                "its weight is under a mask; freeze-learned-groups or discover-groups take it"
            )
        return _blocks(layer, form)

    def rewrite(self, site: Site, description: Blocks) -> Rewritten:
        return emit_blocks(site, description)

    def _declines(self, conv: Convolution) -> str | None:
        """Why the options or its numbers leave a convolution alone, or None."""
        named = unwanted((conv.name,), self.only, self.skip)
        if named is not None:
            return named
        spec = conv.spec
        if spec.transposed:
            return "a transposed convolution is not widened; split-grouped-conv splits it"
        if spec.kind == "depthwise" and self.depthwise == "keep" and spec.dims < 3:
            return f"{spec.dims}-d depthwise is left alone; depthwise=widen widens it"
        if spec.groups <= self.groups:
            return f"it has no more than groups={self.groups}"
        if spec.groups % self.groups:
            return f"its {spec.groups} groups do not become groups={self.groups} equal ones"
        return None


def _takes_any(spec: ConvSpec) -> None:
    """No convolution is left for its fields alone: those were looked at."""


def _widened(spec: ConvSpec, groups: int) -> FormPlan:
    inputs, outputs = spec.in_channels, spec.out_channels
    columns = tuple(tuple(range(*part)) for part in _bounds(inputs, groups))
    conv = ConvPlan(Slice(0, inputs), tuple(range(outputs)), columns)
    sides = (plan_gather(range(n), n) for n in (inputs, outputs))
    return FormPlan("merged", next(sides), (conv,), (), next(sides))


def _blocks(layer: MaskedLayer, form: FormPlan) -> Blocks:
    spec = layer.spec
    parts = zip(
        *(_bounds(n, spec.groups) for n in (spec.in_channels, spec.out_channels)), strict=True
    )
    blocks = tuple(Block(tuple(range(*i)), tuple(range(*o))) for i, o in parts)
    structure = BlockStructure(spec.in_channels, spec.out_channels, blocks, (), ())
    times = spec.groups // form.convs[0].groups
    note = Note("zeros are multiplied too", f"{times} x the MACs")
    return Blocks(layer.training_zeros(), structure, form, None, (note,))


def _bounds(channels: int, groups: int) -> list[tuple[int, int]]:
    return [(part.start, part.stop) for part in group_slices(channels, groups)]
