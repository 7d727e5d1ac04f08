"""Layers with learned groups as sites: how they are read, refused, and executed in a form."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from ..calls import ConvCall, Stored, Unreadable
from ..convs import CONV_TYPES, original_type, rebuild, spec_of_module
from ..forms import ConvPlan, FormPlan
from ..gathers import GatherPlan
from ..inputs import evaluate, unchanged
from ..learned import CONV, INPUT_SCORES, OUTPUT_SCORES, LearnedGroups, groups_of, has_learned_groups
from ..nn import ChannelGather, ChannelShuffle, ChannelTranspose, ConstantChannels
from ..nn.masked_conv import MASKED
from ..state_map import Part, Picked
from .site import BatchNorm, Emit, Site

# On a convolution that freezing made: the default pipeline does not split it.
FROZEN_MARK = "frozen_groups"

_TOLERANCE = 1e-5


def learned_calls(root: fx.GraphModule) -> Mapping[fx.Node, ConvCall | Unreadable]:
    """Every call of a layer with learned groups in the graph of `root`, in order.

    The description is that of the dense convolution inside, under the path of the layer.
    """
    found: dict[fx.Node, ConvCall | Unreadable] = {}
    for node in root.graph.nodes:
        if node.op != "call_module":
            continue
        path = str(node.target)
        layer = root.get_submodule(path)
        if not has_learned_groups(layer):
            continue
        conv = layer.get_submodule(CONV)
        spec = spec_of_module(conv)
        if spec is None or len(node.all_input_nodes) != 1:
            found[node] = Unreadable(node, "it is called with more than its input")
            continue
        bias = Stored(f"{path}.{CONV}.bias") if spec.bias else None
        found[node] = ConvCall(spec, node, Stored(f"{path}.{CONV}.weight"), bias, path, learned=True)
    return found


def read_groups(site: Site) -> LearnedGroups:
    """The groups of the site's layer; UsageError if its maps do not fit its convolution."""
    assert site.module is not None
    return groups_of(site.module, site.name)


def refusal(site: Site, groups: LearnedGroups) -> str | None:
    """Why the layer cannot be frozen, or None."""
    layer = site.module
    assert layer is not None
    conv = layer.get_submodule(CONV)
    hooks = [*site.store.hooks(layer), *site.store.hooks(conv)]
    if hooks:
        return f"it has hooks ({', '.join(dict.fromkeys(hooks))}), which would be lost; remove them"
    if original_type(conv) not in CONV_TYPES or nn.utils.parametrize.is_parametrized(conv):
        return f"its conv is a {type(conv).__name__}, whose weight is not simply stored"
    if not site.batched:
        return "its input has no batch axis; add one with unsqueeze(0)"
    if not site.store.owns_alone(conv):
        return "its weight is shared with another module"
    error = _disagreement(layer, conv, groups)
    if error is None:
        return None
    return (
        f"it holds what a learned-group layer holds, and computes something else: its output "
        f"differs from that of the masked convolution by {error:.2g} of its largest value"
    )


def _disagreement(layer: nn.Module, conv: nn.Module, groups: LearnedGroups) -> float | None:
    """Relative difference between the layer and its masked convolution; None if they agree."""
    spec = spec_of_module(conv)
    assert spec is not None
    weight = conv.get_parameter("weight").detach()
    reach = [(k - 1) * d + 3 for k, d in zip(spec.kernel_size, spec.dilation, strict=True)]
    generator = torch.Generator().manual_seed(17)
    shape = (2, spec.in_channels, *reach)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(weight)
    mask = groups.mask().to(weight)[(..., *(None,) * spec.dims)]
    with unchanged(layer), torch.no_grad():
        evaluate(layer)
        try:
            found = layer(x)
        except Exception:
            return float("inf")
        expected: Tensor = conv._conv_forward(x, weight * mask, conv.bias)  # type: ignore[operator]
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return float("inf")
    scale = max(float(expected.double().abs().max()), torch.finfo(torch.float64).tiny)
    error = float((found.double() - expected.double()).abs().max()) / scale
    return None if error <= _TOLERANCE else error


def emit_form(
    site: Site, form: FormPlan, groups: LearnedGroups, norm: BatchNorm | None
) -> tuple[fx.Node, fx.Node]:
    """Emit the execution of `form` in place of the site's layer.

    Returns the node that gives the result and the node that it stands for: the layer's, or the
    BatchNorm's where that moved along.
    """
    return _Emission(site, form, groups, norm).run()


class _Emission:
    def __init__(
        self, site: Site, form: FormPlan, groups: LearnedGroups, norm: BatchNorm | None
    ) -> None:
        self.site = site
        self.form = form
        self.groups = groups
        # A BatchNorm on padded channels would turn their zeros into something.
        moves = form.result_channels == site.spec.out_channels
        self.norm = norm if moves and form.output_gather.kind != "identity" else None
        assert site.call.path is not None
        self.home = site.fragment.home(site.call.path)

    def run(self) -> tuple[fx.Node, fx.Node]:
        site, form = self.site, self.form
        key = (id(site.fragment), site.call.path, "frozen")
        if key not in site.store.placed:
            self._place()
            site.store.placed.add(key)
        norms = self._norms()
        value = self._gather("input_gather", form.input_gather, site.call.input)
        results = []
        for position, conv in enumerate(form.convs):
            part = value
            if len(conv.inputs) != len(form.input_gather.indices):
                part = site.channels(value, conv.inputs)
            result = self._call(self._conv_name(position), part)
            results.append(norms[position](result) if norms else result)
        if form.constants:
            constants = self._call("constants", results[0])
            results.append(norms[-1](constants) if norms else constants)
        joined = results[0] if len(results) == 1 else site.concat(results)
        output = self._gather("output_gather", form.output_gather, joined)
        return output, site.call.node if self.norm is None else self.norm.node

    def _call(self, name: str, value: fx.Node) -> fx.Node:
        target = f"{self.home}.{name}" if self.home else name
        return self.site.graph.call_module(target, (value,))

    def _gather(self, name: str, gather: GatherPlan, value: fx.Node) -> fx.Node:
        return value if gather.kind == "identity" else self._call(name, value)

    def _conv_name(self, position: int) -> str:
        return "conv" if len(self.form.convs) == 1 else f"convs.{position}"

    def _norms(self) -> Sequence[Emit] | None:
        """The BatchNorm behind each convolution, with its channels in that one's order."""
        if self.norm is None:
            return None
        picks = [tuple(row for row in conv.rows if row is not None) for conv in self.form.convs]
        if self.form.constants:
            picks.append(self.form.constants)
        return self.site.batchnorm_picks(self.norm, picks)

    def _place(self) -> None:
        """Put the modules of the form where the layer was."""
        site, form = self.site, self.form
        layer = site.module
        assert layer is not None
        conv = layer.get_submodule(CONV)
        children: dict[str, nn.Module] = {}
        entries: dict[str, Picked] = {}
        if form.input_gather.kind != "identity":
            children["input_gather"] = _gather_module(form.input_gather)
        convs = [self._conv(conv, plan) for plan in form.convs]
        for position, (made, plan) in enumerate(zip(convs, form.convs, strict=True)):
            name = self._conv_name(position)
            entries[f"{name}.weight"] = self._weight_pick(plan)
            if made.bias is not None:
                entries[f"{name}.bias"] = _vector_pick("bias", plan.rows, site.spec.out_channels)
        if len(convs) == 1:
            children["conv"] = convs[0]
        else:
            children["convs"] = nn.ModuleList(convs)
        if form.constants:
            children["constants"] = self._constants(conv)
            if conv.bias is not None:
                pick = _vector_pick("bias", form.constants, site.spec.out_channels)
                entries["constants.bias"] = pick
        if form.output_gather.kind != "identity":
            children["output_gather"] = _gather_module(form.output_gather)
        device = conv.get_parameter("weight").device
        for child in children.values():
            _train_alike(child.to(device), layer.training)
        site.store.freeze(
            site.fragment,
            str(site.call.path),
            children,
            entries,
            conv=CONV,
            groups=self.groups,
            scores=(INPUT_SCORES, OUTPUT_SCORES),
        )

    def _conv(self, conv: nn.Module, plan: ConvPlan) -> nn.Module:
        weight, bias = conv.get_parameter("weight"), conv._parameters["bias"]
        picked = self._weight_pick(plan)
        rows = _vector_pick("bias", plan.rows, self.site.spec.out_channels)
        tensors: dict[str, Tensor | None] = {
            "weight": _like(weight, picked.of(weight)),
            "bias": None if bias is None else _like(bias, rows.of(bias)),
        }
        made = rebuild(
            conv,
            tensors,
            in_channels=plan.in_channels,
            out_channels=plan.out_channels,
            groups=plan.groups,
        )
        setattr(made, FROZEN_MARK, True)
        if picked.is_padded:
            return MASKED[type(conv)].of(made, picked.held().to(weight.device))  # type: ignore[no-any-return]
        return made

    def _weight_pick(self, plan: ConvPlan) -> Picked:
        """Rows and columns of the dense weight that make up the weight of `plan`, ties as factors.

        A mask entry of 0 is left out like padding: in the dense form that is the mask itself.
        """
        size = (self.site.spec.out_channels, self.site.spec.in_channels)
        mask = self.groups.mask()
        height = len(plan.rows) // plan.groups
        parts: list[Part] = []
        for group, columns in enumerate(plan.columns):
            for row in plan.rows[group * height : (group + 1) * height]:
                parts.append(_masked_part(row, columns, mask))
        return Picked("weight", tuple(_merged(parts)), size)

    def _constants(self, conv: nn.Module) -> nn.Module:
        bias, chosen = conv._parameters["bias"], list(self.form.constants)
        if bias is None:
            return ConstantChannels(conv.get_parameter("weight").new_zeros(len(chosen)).detach())
        return ConstantChannels(nn.Parameter(bias.detach()[chosen].clone(), bias.requires_grad))


def _train_alike(module: nn.Module, training: bool) -> None:
    for part in module.modules():
        part.training = training


def _like(parameter: Tensor, value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=parameter.requires_grad)


def _vector_pick(key: str, rows: Sequence[int | None], channels: int) -> Picked:
    return Picked(key, (Part(tuple(rows)),), (channels,))


def _masked_part(row: int | None, columns: tuple[int | None, ...], mask: Tensor) -> Part:
    if row is None:
        return Part((None,), columns)
    entries = mask[row].tolist()
    kept = tuple(c if c is not None and entries[c] else None for c in columns)
    chosen = columns if kept == columns else kept
    values = tuple(1.0 if c is None else float(entries[c]) for c in chosen)
    scaled = any(value != 1 for value in values)
    return Part((row,), chosen, (values,) if scaled else None)


def _merged(parts: Sequence[Part]) -> list[Part]:
    """Neighbouring parts with the same columns as one."""
    merged: list[Part] = []
    for part in parts:
        last = merged[-1] if merged else None
        if last is not None and last.columns == part.columns and last.factors is part.factors:
            merged[-1] = Part((*last.rows, *part.rows), last.columns)
        else:
            merged.append(part)
    return merged


def _gather_module(gather: GatherPlan) -> nn.Module:
    if gather.kind == "shuffle":
        assert gather.groups is not None
        return ChannelShuffle(gather.groups)
    if gather.kind == "transpose":
        return ChannelTranspose(gather.shape, gather.axes)
    return ChannelGather(gather.indices)
