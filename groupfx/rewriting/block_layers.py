"""A dense layer in blocks: how they are executed, and the modules and calls that do it.

    gathered = x[:, input_gather]
    y        = cat([norm_b(conv_b(gathered[:, part_b])) for each conv b], constants)[:, output]

What is known of the layer (`MaskedLayer`) and the plan in integers (`FormPlan`) say everything; the
passes that find blocks differ in how they find them alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, fx, nn

from ..convs.names import joined
from ..convs.spec import LinearSpec, module_from_spec, rebuild
from ..nn import ConstantChannels
from ..nn.marks import FROZEN_MARK
from ..nn.masked_conv import MASKED
from ..plan.blocks import BlockStructure
from ..plan.choice import Choice, choose_eager
from ..plan.cost import SLOWER, Work, likely_slower
from ..plan.forms import ConvPlan, FormPlan, PlainForm, plan
from ..plan.gathers import GatherPlan
from ..plan.notes import Note
from ..plan.site_plan import SitePlan
from ..state.map import Picked
from .leaves import gather_module, parameter_like
from .pass_ import Rewritten
from .site import BatchNorm, Emit, Site, modules_called
from .weights import BlockWeights, ConvWeight, MaskedLayer


@dataclass(frozen=True)
class Blocks:
    """A layer, the blocks that were found in it, how they are executed, and what a user should
    know of that.

    `batchnorm` moves along. `zeroed` and `choice` are as in `Rewritten`.
    """

    layer: MaskedLayer
    structure: BlockStructure
    form: FormPlan
    batchnorm: BatchNorm | None
    notes: tuple[str, ...]
    zeroed: Mapping[str, Tensor] = field(default_factory=dict)
    choice: Choice | None = None

    @property
    def weights(self) -> BlockWeights:
        """What the tensors of its convolutions are."""
        return BlockWeights(self.layer, self.structure, self.form)


def plan_blocks(
    site: Site,
    layer: MaskedLayer,
    structure: BlockStructure,
    form: PlainForm | Literal["auto", "fastest"],
    remarks: Sequence[str],
    remedy: str = "try form=dense",
) -> Blocks:
    """How the blocks of the site's layer are executed in `form`; `remarks` open the notes, and
    `remedy` helps where it is likely to be slow.

    `fastest` is what is expected to be in eager PyTorch, and `auto` where no sizes are known.
    """
    choice = _fastest(site, structure) if form == "fastest" else None
    plain = plan(structure, "auto" if form == "fastest" else form)
    chosen = plain if choice is None else choice.plan
    notes = [structure.describe(), *remarks, *structure.remarks()]
    notes += _speed(site, structure, chosen, remedy) if form != "fastest" else []
    norm = _moving_batchnorm(site, chosen)
    if isinstance(norm, str):
        notes.append(Note("BatchNorm stays behind", norm))
        norm = None
    return Blocks(layer, structure, chosen, norm, tuple(notes), choice=choice)


def _fastest(site: Site, structure: BlockStructure) -> Choice | None:
    work = _work(site)
    return choose_eager(structure, work) if work is not None and structure.blocks else None


def _speed(site: Site, structure: BlockStructure, form: FormPlan, remedy: str) -> list[Note]:
    work = _work(site)
    reason = (
        None if work is None else likely_slower(structure, form, replace(work, batch=1), remedy)
    )
    return [] if reason is None else [Note(SLOWER, reason)]


def _work(site: Site) -> Work | None:
    """What a convolution has to do for the example; None where nobody knows."""
    spec, shapes = site.spec, site.shapes
    if shapes is None or isinstance(spec, LinearSpec) or spec.groups > 1:
        return None
    if 0 in (*shapes.input, *shapes.output):
        return None
    batched = len(shapes.output) == spec.dims + 2
    return Work(
        math.prod(spec.kernel_size),
        max(math.prod(shapes.output[2:]), 1),
        max(math.prod(shapes.input[2:]), 1),
        batch=shapes.output[0] if batched else 1,
        blocked=spec.dims == 2,
    )


def _moving_batchnorm(site: Site, form: FormPlan) -> BatchNorm | str | None:
    """The BatchNorm that goes in front of the output gather of `form`, why it may not, or None."""
    if form.in_order or isinstance(site.spec, LinearSpec):
        return None
    norm = site.following_batchnorm()
    if isinstance(norm, BatchNorm) and form.result_channels != site.spec.out_channels:
        return (
            "padded filters must be dropped before it, or it would make their zeros something else"
        )
    return norm


def emit_blocks(site: Site, blocks: Blocks) -> Rewritten:
    """Put the blocks, as they are executed, in place of the site's layer."""
    form, spec, norm = blocks.form, site.spec, blocks.batchnorm
    output, plan = _Emission(site, blocks).run()
    dense = spec.in_channels * spec.out_channels // spec.groups
    return Rewritten(
        output=output,
        end=site.call.node if norm is None else norm.node,
        form=form.describe(),
        branches=len(form.convs),
        notes=blocks.notes,
        macs=None if site.macs is None else site.macs * form.macs // dense,
        zeroed=blocks.zeroed,
        plan=plan,
        choice=blocks.choice,
    )


class _Emission:
    def __init__(self, site: Site, blocks: Blocks) -> None:
        self.site = site
        self.layer = blocks.layer
        self.form = blocks.form
        self.norm = blocks.batchnorm
        self.weights = blocks.weights
        self.linear = isinstance(site.spec, LinearSpec)
        fragment, layer = site.fragment, self.layer
        if layer.path is not None:
            self.home = fragment.home(layer.path)
        else:
            self.home = site.store.home_of(fragment, layer.key, layer.bias_key)

    def run(self) -> tuple[fx.Node, SitePlan | None]:
        """Emit; the node that gives the result, and the plan to remember."""
        site, form = self.site, self.form
        # Another call of the layer, under this path or another, may have been here before.
        key = (id(site.fragment), id(self.layer.dense), "blocks")
        if key not in site.store.placed:
            self._place()
            site.store.placed.add(key)
        norms = self._norms()
        value = self._gather("input_gather", form.input_gather, site.call.input)
        width = len(form.input_gather.indices)
        convs, values = [], []
        for position, conv in enumerate(form.convs):
            whole = len(conv.inputs) == width
            part = value if whole else site.channels(value, conv.inputs, self._axis)
            convs.append(self._call(self._conv_name(position), part))
            values.append(norms[position](convs[-1]) if norms else convs[-1])
        if form.constants:
            constants = self._call("constants", values[0])
            values.append(norms[-1](constants) if norms else constants)
        joint = values[0] if len(values) == 1 else site.concat(values, self._axis)
        output = self._gather("output_gather", form.output_gather, joint)
        return output, self._plan(modules_called(convs), modules_called(values if norms else ()))

    def _plan(self, convs: tuple[str, ...], norms: tuple[str, ...]) -> SitePlan | None:
        """Where the pieces lie; of convolutions alone, which are what is exported in one piece."""
        site, form = self.site, self.form
        if self.linear:
            return None

        def path(name: str, present: bool) -> str | None:
            return joined(self.home, name) if present else None

        return SitePlan(
            site.local_name,
            site.spec.in_channels,
            site.spec.out_channels,
            form,
            convs,
            norms,
            input_gather=path("input_gather", form.input_gather.kind != "identity"),
            constants=path("constants", bool(form.constants)),
            output_gather=path("output_gather", form.output_gather.kind != "identity"),
        )

    # Nodes. The channels of a linear layer are the last axis, those of a convolution axis 1.

    @property
    def _axis(self) -> int:
        if not self.linear:
            return 1
        assert self.site.shapes is not None
        return len(self.site.shapes.input) - 1

    def _call(self, name: str, value: fx.Node) -> fx.Node:
        return self.site.graph.call_module(joined(self.home, name), (value,))

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
        rows = [tuple(row for row in conv.rows if row is not None) for conv in self.form.convs]
        if self.form.constants:
            rows.append(self.form.constants)
        return self.site.batchnorm_picks(self.norm, rows)

    # Modules

    def _place(self) -> None:
        """Put the modules of the form where the layer was."""
        site, form, layer = self.site, self.form, self.layer
        children: dict[str, nn.Module] = {}
        picks: dict[str, Picked] = {}
        if form.input_gather.kind != "identity":
            children["input_gather"] = gather_module(form.input_gather)
        made = []
        for position, conv in enumerate(form.convs):
            name = self._conv_name(position)
            weight, bias = self.weights.of(conv), self.weights.bias_of(conv.rows)
            picks[f"{name}.weight"] = weight.picked
            if bias is not None:
                picks[f"{name}.bias"] = bias
            made.append(self._conv(conv, weight, bias))
        name = self._conv_name(0).partition(".")[0]
        children[name] = made[0] if len(made) == 1 else nn.ModuleList(made)
        if form.constants:
            bias = self.weights.bias_of(form.constants)
            children["constants"] = self._constants(bias)
            if bias is not None:
                picks["constants.bias"] = bias
        if form.output_gather.kind != "identity":
            children["output_gather"] = gather_module(form.output_gather)
        training = (site.root if site.module is None else site.module).training
        for child in children.values():
            child.to(layer.dense.device)
            for module in child.modules():
                module.training = training
        # Groups are required as they were; that no mask entry is lost with them needs no zeros.
        zeros = self.weights.unmasked() if layer.groups is None else None
        shared = layer.path is None
        removed = [k for k, t in layer.fixed.items() if shared and not site.used_elsewhere(t)]
        site.store.replace_blocks(
            site.fragment, layer, self.home, children, picks, zeros=zeros, removed=removed
        )

    @cached_property
    def _template(self) -> nn.Module:
        """A module with the fields of the layer."""
        given = self.layer.template
        return module_from_spec(self.layer.spec) if given is None else given

    def _conv(self, conv: ConvPlan, weight: ConvWeight, bias: Picked | None) -> nn.Module:
        layer = self.layer
        tensors: dict[str, Tensor | None] = {
            "weight": parameter_like(layer.dense, weight.picked.of(layer.dense)),
            "bias": None,
        }
        if layer.bias is not None and bias is not None:
            tensors["bias"] = parameter_like(layer.bias, bias.of(layer.bias))
        inputs, outputs = conv.in_channels, conv.out_channels
        if self.linear:
            return rebuild(self._template, tensors, in_features=inputs, out_features=outputs)
        made = rebuild(
            self._template,
            tensors,
            in_channels=inputs,
            out_channels=outputs,
            kernel_size=layer.spec.kernel_size,
            groups=conv.groups,
            padding_mode=layer.spec.padding_mode,
        )
        setattr(made, FROZEN_MARK, True)
        if weight.mask is None:
            return made
        mask = weight.mask.to(layer.dense.device)
        return MASKED[type(made)].of(made, mask)  # type: ignore[no-any-return]

    def _constants(self, bias: Picked | None) -> nn.Module:
        layer = self.layer
        if layer.bias is None or bias is None:
            return ConstantChannels(layer.dense.detach().new_zeros(len(self.form.constants)))
        return ConstantChannels(parameter_like(layer.bias, bias.of(layer.bias)))
