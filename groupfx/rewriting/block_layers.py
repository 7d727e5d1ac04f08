"""A weight with zeros as blocks: the modules that hold them, their calls, and the map of the state.

What is left out of a weight is 0, or under a mask that is fixed. Everything else is held where it
was, zeros inside a block included: they train as they did.
"""

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor, fx, nn

from ..convs.calls import attribute
from ..convs.names import joined
from ..convs.spec import CONV_TYPES, ConvSpec, module_from_spec, rebuild
from ..nn import ConstantChannels
from ..nn.marks import FROZEN_MARK
from ..nn.masked_conv import MASKED
from ..plan.blocks import Block, BlockStructure
from ..plan.forms import ConvPlan, FormPlan
from ..plan.gathers import GatherPlan
from ..plan.site_plan import SitePlan
from ..state.map import Part, Picked, Rows
from .frozen_layer import gather_module, parameter_like, pieces_of
from .site import BatchNorm, Emit, Site
from .weights import LinearSpec, SparseWeight

Columns = tuple[int | None, ...]


def with_bias_only(structure: BlockStructure) -> BlockStructure:
    """`structure` with the filters that read nothing in the block of the fewest inputs.

    A linear layer has no cheaper way to put out a constant than a few products with 0.
    """
    if not structure.bias_only:
        return structure
    small = min(structure.blocks, key=lambda block: len(block.inputs))
    outputs = tuple(sorted((*small.outputs, *structure.bias_only)))
    blocks = (Block(b.inputs, outputs) if b is small else b for b in structure.blocks)
    return replace(structure, blocks=tuple(blocks), bias_only=())


def norm_moves(form: FormPlan, out_channels: int) -> bool:
    """Whether a BatchNorm that follows goes in front of the output gather of `form`.

    It does not where padded rows would be in its way, and needs not where it is in place already.
    """
    in_place = len(form.convs) == 1 and not form.constants
    in_place = in_place and form.output_gather.kind == "identity"
    return form.result_channels == out_channels and not in_place


def refusal(site: Site, weight: SparseWeight) -> str | None:
    """Why the weight of the site cannot be cut into blocks, or None."""
    ends = (site.call.input, site.call.node)
    if any(site.fragment.stands_for(node) is None for node in ends):
        return (
            "another pass made it, and nothing in the original stands for it, to check it by; run "
            "discover-groups first"
        )
    if site.spec.transposed:
        return "a transposed convolution: its zeros are not looked into"
    if site.spec.groups == site.spec.in_channels > 1:
        return "depthwise: each filter reads one channel, and there is nothing to find"
    if weight.dense.is_meta:
        return "its weight has no values (device meta); load the weights first"
    tensors = [weight.dense] + ([] if weight.bias is None else [weight.bias])
    if not all(isinstance(tensor, nn.Parameter) for tensor in tensors):
        return "its weight or its bias is a buffer, not a parameter"
    hooks = site.hooks()
    if site.module is not None:
        hooks = [hook for part in site.module.modules() for hook in site.store.hooks(part)]
    if hooks:
        return f"it has hooks ({', '.join(dict.fromkeys(hooks))}), which would be lost; remove them"
    reason = _rank_refusal(site)
    return reason or _sharing(site, weight, tensors)


def _rank_refusal(site: Site) -> str | None:
    """Why the shape of what goes in does not do, or None."""
    ranks = [len(site.shapes.input)] if site.shapes is not None else []
    if site.module is not None and len(site.store.call_nodes(site.module)) > 1:
        calls = [node for node in site.graph.nodes if _calls(site, node)]
        shapes = [node.all_input_nodes[0].meta.get("shape") for node in calls]
        ranks += [len(shape) for shape in shapes if shape is not None]
    if not isinstance(site.spec, LinearSpec):
        unbatched = any(rank != site.spec.dims + 2 for rank in ranks)
        return "its input has no batch axis; add one with unsqueeze(0)" if unbatched else None
    if not ranks:
        return "the shape of its input is not known"
    return "its input has no batch axis; add one with unsqueeze(0)" if min(ranks) < 2 else None


def _calls(site: Site, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    return site.root.get_submodule(str(node.target)) is site.module


def _sharing(site: Site, weight: SparseWeight, tensors: Sequence[Tensor]) -> str | None:
    """Who else needs the tensors whole, or None."""
    if site.module is not None:
        alone = all(site.store.owns_alone(part) for part in site.module.modules())
        return None if alone else "its weight is shared with another module"
    if any(used_elsewhere(site, tensor) for tensor in tensors):
        return "its weight is used elsewhere too"
    return None


def original_key(site: Site, weight: SparseWeight) -> str | None:
    """Key of the dense tensor in the original; None where it is only a part of one."""
    prefix = site.fragment.path if weight.path is None else site.fragment.full_name(weight.path)
    entry = site.store.entries.get(joined(prefix, weight.key))
    return entry.key if isinstance(entry, Rows) and entry.stop is None else None


def used_elsewhere(site: Site, tensor: Tensor) -> bool:
    """Whether a tensor that the graph reads serves anything but the site's convolution."""
    places = [
        (id(module), name)
        for module in site.store.program.result.modules()
        for name, own in (*module._parameters.items(), *module._buffers.items())
        if own is tensor
    ]
    if len(places) != 1:
        return True
    reached: set[fx.Node] = {site.call.node}
    pending = [
        node
        for node in site.graph.nodes
        if node.op == "get_attr" and attribute(site.root, str(node.target)) is tensor
    ]
    if not pending:  # held by a module that computes with it
        return True
    while pending:
        node = pending.pop()
        if node.op == "output":
            return True
        pending += [user for user in node.users if user not in reached]
        reached.update(node.users)
    return False


@dataclass(frozen=True)
class BlockPicks:
    """What the tensors of a form are, of the stored dense weight and of the bias.

    `factors` `[out_channels, inputs a group]` is what the dense weight is multiplied by, None for
    ones. `structure` says, in the form `dense`, which elements stay.
    """

    spec: ConvSpec
    weight: SparseWeight
    structure: BlockStructure
    form: FormPlan

    @property
    def _size(self) -> tuple[int, int]:
        return self.spec.out_channels, self.spec.in_channels // self.spec.groups

    def of(self, plan: ConvPlan) -> Picked:
        """What the weight of a convolution of the form is."""
        height = len(plan.rows) // plan.groups
        parts: list[Part] = []
        for group, columns in enumerate(plan.columns):
            parts += self._parts(plan.rows[group * height : (group + 1) * height], columns)
        return Picked(self.weight.key, tuple(parts), self._size)

    def vector(self, key: str, rows: Sequence[int | None]) -> Picked:
        """What a bias is."""
        return Picked(key, (Part(tuple(rows)),), (self.spec.out_channels,))

    def unmasked(self) -> Picked:
        """All that the mask lets through: where it is not held, it must be 0."""
        every = tuple(range(self._size[1]))
        rows = range(self.spec.out_channels)
        parts = _grouped((row, *self._scaled(row, every)) for row in rows)
        plain = tuple(Part(part.rows, part.columns) for part in parts)
        return Picked(self.weight.key, plain, self._size)

    def zeroed(self) -> Tensor | None:
        """Entries `[out_channels, inputs a group]` that are not 0 and that no convolution holds.

        None where there are none, as without a threshold.
        """
        held = torch.zeros(self._size)
        for plan in self.form.convs:
            self.of(plan).count(held)
        value = self.weight.value.detach().cpu().reshape(*self._size, -1)
        lost = (held == 0) & (value != 0).any(dim=2)
        return lost if bool(lost.any()) else None

    def _parts(self, rows: Sequence[int | None], columns: Columns) -> Iterator[Part]:
        rows_per_group, width = self.spec.out_channels // self.spec.groups, self._size[1]
        local: dict[tuple[int, object], Columns] = {}

        def entries(row: int | None) -> tuple[int | None, Columns, tuple[float, ...] | None]:
            first = 0 if row is None else row // rows_per_group * width
            allowed = None if row is None else self._allowed(row)
            if (first, allowed) not in local:
                local[first, allowed] = tuple(
                    None if c is None or (allowed is not None and c not in allowed) else c - first
                    for c in columns
                )
            chosen = local[first, allowed]
            return (row, chosen, None) if row is None else (row, *self._scaled(row, chosen))

        found = [entries(row) for row in rows]
        known = next((columns for row, columns, _ in found if row is not None), None)
        # A row of padding has no columns of its own: it goes with the rows around it.
        return _grouped((r, known if r is None and known else c, f) for r, c, f in found)

    def _allowed(self, row: int) -> frozenset[int] | None:
        """In the form `dense`, the inputs of the block that `row` is in."""
        if self.form.form != "dense":
            return None
        found = (block for block in self.structure.blocks if row in block.outputs)
        return frozenset(next((block.inputs for block in found), ()))

    def _scaled(self, row: int, columns: Columns) -> tuple[Columns, tuple[float, ...] | None]:
        """`columns` of `row` without those whose factor is 0, and the factors if any is not 1."""
        factors = self.weight.factors
        if factors is None:
            return columns, None
        values = [1.0 if c is None else float(factors[row, c]) for c in columns]
        kept = tuple(c if value else None for c, value in zip(columns, values, strict=True))
        held = tuple(value or 1.0 for value in values)
        return (columns if kept == columns else kept), (
            None if all(value == 1 for value in held) else held
        )


def _grouped(
    rows: Iterable[tuple[int | None, Columns, tuple[float, ...] | None]],
) -> Iterator[Part]:
    """Neighbouring rows with the same columns and factors as one part."""
    for (columns, factors), run in groupby(rows, lambda each: each[1:]):
        chosen = tuple(row for row, _, _ in run)
        yield Part(chosen, columns, None if factors is None else (factors,) * len(chosen))


def emit_blocks(
    site: Site, picks: BlockPicks, norm: BatchNorm | None
) -> tuple[fx.Node, fx.Node, SitePlan | None]:
    """Emit the execution of a form in place of the site's convolution or linear layer.

    `norm` is a BatchNorm that moves along. Returns the node that gives the result, the node that
    it stands for (the convolution's, or the BatchNorm's), and the plan to remember, which is for
    convolutions alone.
    """
    emission = _Emission(site, picks, norm)
    plan = None if emission.linear else pieces_of(site, picks.form, emission.home, norm)
    return *emission.run(), plan


class _Emission:
    def __init__(self, site: Site, picks: BlockPicks, norm: BatchNorm | None) -> None:
        self.site = site
        self.picks = picks
        self.form = picks.form
        self.weight = picks.weight
        self.norm = norm
        self.linear = isinstance(site.spec, LinearSpec)
        path = self.weight.path
        self.home = site.fragment.home(path) if path is not None else self._free_home()

    def _free_home(self) -> str:
        key, bias = self.weight.key, self.weight.bias_key
        return self.site.store.home_of(self.site.fragment, key, bias)

    def run(self) -> tuple[fx.Node, fx.Node]:
        site, form = self.site, self.form
        key = (id(site.fragment), self.weight.path or self.weight.key, "blocks")
        if key not in site.store.placed:
            self._place()
            site.store.placed.add(key)
        norms = self._norms()
        value = self._gather("input_gather", form.input_gather, site.call.input)
        width = site.spec.in_channels
        if form.input_gather.kind != "identity":
            width = len(form.input_gather.indices)
        results = []
        for position, plan in enumerate(form.convs):
            part = value if len(plan.inputs) == width else self._slice(value, plan)
            result = self._call(self._conv_name(position), part)
            results.append(norms[position](result) if norms else result)
        if form.constants:
            constants = self._call("constants", results[0])
            results.append(norms[-1](constants) if norms else constants)
        joined = results[0] if len(results) == 1 else self._concat(results)
        output = self._gather("output_gather", form.output_gather, joined)
        return output, site.call.node if self.norm is None else self.norm.node

    # Nodes. The channels of a linear layer are the last axis, those of a convolution axis 1.

    @property
    def _axis(self) -> int:
        if not self.linear:
            return 1
        assert self.site.shapes is not None
        return len(self.site.shapes.input) - 1

    def _slice(self, value: fx.Node, plan: ConvPlan) -> fx.Node:
        index = (*(slice(None),) * self._axis, slice(plan.inputs.start, plan.inputs.stop))
        return self.site.graph.call_function(operator.getitem, (value, index))

    def _concat(self, values: Sequence[fx.Node]) -> fx.Node:
        return self.site.graph.call_function(torch.cat, (list(values),), {"dim": self._axis})

    def _call(self, name: str, value: fx.Node) -> fx.Node:
        target = joined(self.home, name)
        return self.site.graph.call_module(target, (value,))

    def _gather(self, name: str, gather: GatherPlan, value: fx.Node) -> fx.Node:
        if gather.kind == "identity":
            return value
        if self._axis == 1:
            return self._call(name, value)
        turn = (1, self._axis)
        turned = self.site.graph.call_function(torch.transpose, (value, *turn))
        gathered = self._call(name, turned)
        return self.site.graph.call_function(torch.transpose, (gathered, *turn))

    def _conv_name(self, position: int) -> str:
        one, several = ("linear", "linears") if self.linear else ("conv", "convs")
        return one if len(self.form.convs) == 1 else f"{several}.{position}"

    def _norms(self) -> Sequence[Emit] | None:
        """The BatchNorm behind each convolution, with its channels in that one's order."""
        if self.norm is None:
            return None
        rows = [tuple(row for row in plan.rows if row is not None) for plan in self.form.convs]
        if self.form.constants:
            rows.append(self.form.constants)
        return self.site.batchnorm_picks(self.norm, rows)

    # Modules

    def _place(self) -> None:
        """Put the modules of the form where the weight was."""
        form, weight, picks = self.form, self.weight, self.picks
        template = self._template()
        children: dict[str, nn.Module] = {}
        entries: dict[str, Picked] = {}
        if form.input_gather.kind != "identity":
            children["input_gather"] = gather_module(form.input_gather)
        made = []
        for position, plan in enumerate(form.convs):
            name = self._conv_name(position)
            entries[f"{name}.weight"] = picks.of(plan)
            if weight.bias_key is not None:
                entries[f"{name}.bias"] = picks.vector(weight.bias_key, plan.rows)
            made.append(self._part(template, plan, entries, name))
        name = self._conv_name(0).partition(".")[0]
        children[name] = made[0] if len(made) == 1 else nn.ModuleList(made)
        if form.constants:
            children["constants"] = self._constants()
            if weight.bias_key is not None:
                entries["constants.bias"] = picks.vector(weight.bias_key, form.constants)
        if form.output_gather.kind != "identity":
            children["output_gather"] = gather_module(form.output_gather)
        for child in children.values():
            child.to(weight.dense.device)
            for module in child.modules():
                module.training = template.training
        self.site.store.replace_blocks(
            self.site.fragment,
            weight.path,
            self.home,
            children,
            entries,
            zeros=picks.unmasked(),
            fixed=weight.masks,
            removed=[key for key, mask in weight.masks.items() if not self._needed(mask)],
        )

    def _needed(self, mask: Tensor) -> bool:
        """Whether anything else reads a tensor that the mask is made of."""
        return self.weight.path is None and used_elsewhere(self.site, mask)

    def _template(self) -> nn.Module:
        """A module with the fields of the site's, whatever computes it."""
        module, spec = self.site.module, self.site.spec
        plain = type(module) in (*CONV_TYPES, nn.Linear)
        # A hook is the one that recomputes a pruned weight.
        if module is not None and plain and not module._forward_pre_hooks:
            return module
        made = module_from_spec(spec) if not self.linear else _meta_linear(spec)
        made.training = self.site.root.training if module is None else module.training
        return made

    def _part(
        self, template: nn.Module, plan: ConvPlan, entries: Mapping[str, Picked], name: str
    ) -> nn.Module:
        pick, weight = entries[f"{name}.weight"], self.weight
        tensors: dict[str, Tensor | None] = {
            "weight": parameter_like(weight.dense, pick.of(weight.dense.detach())),
            "bias": None,
        }
        if weight.bias is not None:
            rows = entries[f"{name}.bias"].of(weight.bias.detach())
            tensors["bias"] = parameter_like(weight.bias, rows)
        inputs, outputs = plan.in_channels, plan.out_channels
        if self.linear:
            return rebuild(template, tensors, in_features=inputs, out_features=outputs)
        channels = {"in_channels": inputs, "out_channels": outputs, "groups": plan.groups}
        made = rebuild(template, tensors, **channels)
        setattr(made, FROZEN_MARK, True)
        if pick.is_padded:
            held = pick.held().to(weight.dense.device)
            return MASKED[type(template)].of(made, held)  # type: ignore[no-any-return]
        return made

    def _constants(self) -> nn.Module:
        bias, chosen = self.weight.bias, list(self.form.constants)
        if bias is None:
            return ConstantChannels(self.weight.dense.detach().new_zeros(len(chosen)))
        return ConstantChannels(parameter_like(bias, bias.detach()[chosen]))


def _meta_linear(spec: ConvSpec) -> nn.Module:
    return nn.Linear(spec.in_channels, spec.out_channels, spec.bias, device="meta")
