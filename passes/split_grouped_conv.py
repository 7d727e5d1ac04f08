"""Split a grouped convolution into branches: one `groups=1` convolution a group, or fewer.

Before:  y = conv(x)                                        groups = g
After:   y = cat([conv_k(x[:, k*n : (k+1)*n]) for k in range(g)], dim=1)

A grouped convolution applies g independent convolutions to g slices of n = in_channels / g
channels. Its weight is [out, n, ...]: rows k*m to (k+1)*m, m = out_channels / g, are the weight
of group k. A transposed one keeps its weight as [in, m, ...], so its rows go by n instead; the
bias goes by m in both. No number is computed anew, so the result is the same to the bit.

A BatchNorm that follows acts on each channel alone and is cut along with the convolution:

         bn(cat([y_0, y_1, ...])) = cat([bn_0(y_0), bn_1(y_1), ...])

A device whose memory holds some of the groups, but not all, takes a partial split: a branch then
holds several groups that follow one another, and stays a grouped convolution with those. The
algebra is the same, with n and m the channels of a branch.
"""

from dataclasses import dataclass
from typing import Literal

from groupfx.convs.calls import Recomputed
from groupfx.convs.spec import describe_branches
from groupfx.errors import UsageError
from groupfx.nn import hooked_names
from groupfx.plan.branches import Branches
from groupfx.plan.channels import Slice
from groupfx.plan.site_plan import SitePlan
from groupfx.rewriting import BatchNorm, Convolution, Note, Pass, Rewritten, Site, Skip, unwanted
from groupfx.rewriting.site import modules_called
from groupfx.tracing.hooks import hooked, lost_with


@dataclass(frozen=True)
class Split:
    """The channels of each branch, of the input and of the output, and its groups."""

    inputs: tuple[Slice, ...]
    outputs: tuple[Slice, ...]
    branches: Branches
    batchnorm: BatchNorm | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplitGroupedConv(Pass[Split]):
    """Slice the input channels, one `groups=1` convolution a group, concatenate."""

    refuses = (
        "1-d and 2-d depthwise (depthwise=split takes them)",
        "more groups than max_groups",
        "user hooks on the convolution or its gradients",
        "an input without a batch axis",
        "groups, or a weight's shape, that forward computes",
    )

    batchnorm: Literal["branches", "after"] = "branches"
    """where a BatchNorm that follows goes: into the branches, or after the concatenation"""

    depthwise: Literal["auto", "keep", "split"] = "auto"
    """auto leaves 1-d and 2-d depthwise alone and splits 3-d ones and those with a multiplier"""

    frozen: Literal["keep", "split"] = "split"
    """keep leaves the grouped convolutions that freeze-learned-groups made"""

    branches: int | None = None
    """how many branches to make of a site, each of which stays grouped if it holds more than one
    group; as many as it has groups where those are fewer"""

    groups_per_branch: int | None = None
    """how many groups a branch holds; the last one holds the rest"""

    max_channels: int | None = None
    """the most input channels, and the most output channels, of a branch: it holds as many groups
    as that allows"""

    max_groups: int | None = None
    """sites with more groups than this are skipped"""

    qdq: Literal["inside", "outside"] = "inside"
    """in a quantised ONNX file, where the Q/DQ pairs of input and output go: into the branches,
    so that each runs on whole numbers, or around all of them"""

    only: tuple[str, ...] = ()
    """patterns of site names; the others are skipped"""

    skip: tuple[str, ...] = ()
    """patterns of site names that are skipped"""

    def __post_init__(self) -> None:
        if self.max_groups is not None and self.max_groups < 2:
            raise UsageError(f"max_groups={self.max_groups}: a site has at least 2 groups")
        given = self._sizes()
        for name, number in given.items():
            least = 2 if name == "branches" else 1
            if number < least:
                raise UsageError(f"{name}={number}: it must be at least {least}")
        if len(given) > 1:
            text = " and ".join(f"{name}={number}" for name, number in given.items())
            raise UsageError(f"{text}: each says how large a branch is; give one of them")

    def plan(self, conv: Convolution) -> Branches | Skip:
        refusal = self._declines(conv)
        return self._branches(conv) if refusal is None else Skip(refusal)

    def _sizes(self) -> dict[str, int]:
        """The options that say how large a branch is, and are given."""
        sizes = {
            "branches": self.branches,
            "groups_per_branch": self.groups_per_branch,
            "max_channels": self.max_channels,
        }
        return {name: number for name, number in sizes.items() if number is not None}

    def _branches(self, conv: Convolution) -> Branches | Skip:
        groups, spec = conv.spec.groups, conv.spec
        if not self._sizes():
            return Branches.one_each(groups)
        if self.branches is not None:
            if conv.branch_of is not None:
                return Skip(f"{conv.branch_of} was split into it and others before")
            return Branches.even(groups, min(self.branches, groups))
        size, limit = self.groups_per_branch, f"groups_per_branch={self.groups_per_branch}"
        if self.max_channels is not None:
            own = max(spec.in_channels, spec.out_channels) // groups
            size, limit = self.max_channels // own, f"max_channels={self.max_channels}"
            if not size:
                return Skip(f"one group has {own} channels, and {limit}: no branch is that small")
        assert size is not None
        if size >= groups:
            return Skip(f"all its {groups} groups fit one branch, {limit}")
        return Branches.at_most(groups, size)

    @property
    def moves_norms(self) -> bool:  # type: ignore[override]
        return self.batchnorm == "branches"

    @property
    def moves_quantisation(self) -> bool:  # type: ignore[override]
        return self.qdq == "inside"

    def match(self, site: Site) -> Split | Skip:
        branches = self.plan(site)
        if isinstance(branches, Skip):
            return branches
        refusal = _not_possible(site)
        if refusal is not None:
            return Skip(refusal)
        spec = site.spec
        sides = branches.slices(spec.in_channels), branches.slices(spec.out_channels)
        norm = site.following_batchnorm() if self.batchnorm == "branches" else None
        if self.batchnorm == "branches" and site.may_have_hidden_batchnorm():
            return Split(*sides, branches, None, (_OUT_OF_SIGHT,))
        if isinstance(norm, str):
            notes = (Note("BatchNorm stays after the concat", norm),)
            return Split(*sides, branches, None, notes)
        return Split(*sides, branches, norm)

    def rewrite(self, site: Site, description: Split) -> Rewritten:
        spec, norm, branches = site.spec, description.batchnorm, description.branches
        inputs, outputs = description.inputs, description.outputs
        fields = spec.branches(branches)
        convs = site.conv_branches(inputs if spec.transposed else outputs, outputs, fields)
        norms = site.batchnorm_branches(norm, outputs) if norm else None
        results, values = [], []
        for position, part in enumerate(inputs):
            results.append(convs[position](site.channels(site.call.input, part)))
            values.append(norms[position](results[-1]) if norms else results[-1])
        return Rewritten(
            output=site.concat(values),
            end=norm.node if norm else site.call.node,
            form=describe_branches(b.describe() for b in fields) + (" + BatchNorm" if norm else ""),
            brief=describe_branches(b.brief() for b in fields) + (" + BN" if norm else ""),
            branches=len(values),
            notes=description.notes,
            plan=SitePlan(
                site.local_name,
                spec.in_channels,
                spec.out_channels,
                form=branches,
                convs=modules_called(results),
                norms=modules_called(values) if norms else (),
            ),
        )

    def _declines(self, conv: Convolution) -> str | None:
        """Why the options leave a convolution alone, or None."""
        named = unwanted((conv.name,), self.only, self.skip)
        if named is not None:
            return named
        spec = conv.spec
        if self.frozen == "keep" and conv.frozen:
            return "made by freezing learned groups; -p split-grouped-conv splits it"
        if spec.kind == "depthwise" and self.depthwise == "auto" and spec.dims < 3:
            return f"{spec.dims}-d depthwise is left alone; depthwise=split splits it"
        if spec.kind.startswith("depthwise") and self.depthwise == "keep":
            return "depthwise=keep"
        if self.max_groups is not None and spec.groups > self.max_groups:
            limit = f"max_groups={self.max_groups}"
            made = "" if self._sizes() else f" would make {spec.groups} branches"
            return f"{spec.groups} groups{made}, {limit}"
        return None


_OUT_OF_SIGHT = Note(
    "a BatchNorm that follows stays after the concat", "forward is no graph to see it in"
)


def _not_possible(site: Site) -> str | None:
    """Why no split of this site computes the same, or None."""
    if not site.batched and site.shapes is not None:
        return f"its input has no batch axis (shape {site.shapes.input}); add one with unsqueeze(0)"
    hooks = site.hooks()
    if hooks:
        in_place = site.module is not None and hooks == hooked(site.module)
        return lost_with(hooks, kept=in_place and not site.fragment.is_part)
    module = site.module
    if module is None:
        return None
    sources = [s for s in (site.call.weight, site.call.bias) if isinstance(s, Recomputed)]
    names = hooked_names(module)
    if len(names) > 1:
        return (
            f"hooks recompute its {' and its '.join(names)}, one of which alone can be taken over; "
            f"make the {names[-1]} plain first, such as by torch.nn.utils.prune.remove"
        )
    if sources and not site.store.can_expose(module):
        return "a hook recomputes its weight in a way that is not known; remove the hook first"
    if sources and site.call.output_size is not None:
        return "its weight is recomputed and it is called with output_size; set output_padding"
    return None
