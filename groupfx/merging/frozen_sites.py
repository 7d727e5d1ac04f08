"""Read a frozen site back as one dense convolution and a plan of how it is executed.

What freezing emitted is

    gathered = input_gather(x);  values = [norm_k(conv_k(gathered[:, part_k]))], constants
    y = output_gather(cat(values))

It is exported as one convolution with the dense weight, zeros where nothing was, and executed in
the ONNX graph by the same plan, from the weight's own rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from ..convs.names import joined
from ..convs.spec import CONV_TYPES, ConvSpec, fields_of, module_from_spec, rebuild
from ..nn import ChannelGather, ChannelShuffle, ChannelTranspose, ConstantChannels
from ..nn.marks import FROZEN_MARK
from ..nn.masked_conv import MASKED
from ..plan.channels import Slice, shuffle_permutation
from ..plan.forms import ConvPlan, FormPlan
from ..plan.gathers import plan_gather
from .graph import Call, Gathered, PlannedSite, place_of
from .norms import changed, is_batchnorm
from .split_sites import Shapes, cat_values, sliced

_UNMASKED: Mapping[type[nn.Module], type[nn.Module]] = {
    masked: plain for plain, masked in MASKED.items()
}


@dataclass(frozen=True)
class _Piece:
    """One convolution: its module, the gathered channels that it reads, its BatchNorm's path."""

    module: _ConvNd
    part: Slice
    norm: str | None


@dataclass(frozen=True)
class _Frozen:
    """One call of a frozen site, read from the graph; `reader` is what takes its input."""

    reader: fx.Node
    output: fx.Node
    pieces: tuple[_Piece, ...]
    constants: ConstantChannels | None
    constants_norm: str | None
    plan: FormPlan
    in_channels: int

    @property
    def source(self) -> fx.Node:
        """What comes in."""
        return self.reader.all_input_nodes[0]


class _OtherFormError(Exception):
    """The nodes around a frozen convolution are not what freezing emits; they stay as they are."""


def merge_frozen(root: fx.GraphModule, path: str, shapes: Shapes) -> Gathered:
    """The frozen sites of `root`, which lies at `path` in its model.

    `shapes` has the shape of each value that is sliced, or that goes into a `ChannelGather`: both
    may leave channels out.
    """
    found = Gathered()
    for home, firsts in _homes(root).items():
        try:
            calls = [_Reader(root, home, first, shapes).read() for first in firsts]
            norm = _merged_norm(root, calls)
        except _OtherFormError:
            continue
        if any(call.plan != calls[0].plan for call in calls):
            continue
        place = place_of(home)
        found.modules[place] = _dense(calls[0])
        if norm is not None:
            found.modules[norm[0]] = norm[1]
        behind = None if norm is None else norm[0]
        found.calls += [Call(call.output, place, (call.source,), behind) for call in calls]
        name = joined(path, home) or "weight"
        found.planned.append(PlannedSite(joined(path, place), name, calls[0].plan))
    return found


def _homes(root: fx.GraphModule) -> dict[str, list[fx.Node]]:
    """For each frozen layer, the calls of its first convolution."""
    homes: dict[str, list[fx.Node]] = {}
    for node in root.graph.nodes:
        if node.op != "call_module":
            continue
        target = str(node.target)
        home = _home_of(target)
        if home is not None and getattr(root.get_submodule(target), FROZEN_MARK, False):
            homes.setdefault(home, []).append(node)
    return homes


def _home_of(target: str) -> str | None:
    for name in ("convs.0", "conv"):
        if target == name:
            return ""
        if target.endswith(f".{name}"):
            return target.removesuffix(f".{name}")
    return None


class _Reader:
    """Reads the region around one call of a site's first convolution."""

    def __init__(self, root: fx.GraphModule, home: str, first: fx.Node, shapes: Shapes) -> None:
        self.root, self.home, self.first, self.shapes = root, home, first, shapes

    def read(self) -> _Frozen:
        data = _only_argument(self.first)
        found = sliced(data)
        gathered = data if found is None else found[0]
        if gathered.op == "call_module" and self._is(gathered, "input_gather"):
            reader, source = gathered, _only_argument(gathered)
        else:
            reader, source = (self.first if found is None else data), gathered
        value, _ = self._behind(self.first)
        cat = self._cat_of(value)
        values = [value] if cat is None else cat_values(cat)
        assert values is not None
        constants, norm = self._constants(values[-1])
        convs = [self._piece(v, gathered) for v in (values[:-1] if constants else values)]
        joint = value if cat is None else cat
        gather = next((u for u in joint.users if self._is(u, "output_gather")), None)
        if gather is not None and len(joint.users) != 1:
            raise _OtherFormError
        output = joint if gather is None else gather
        if gather is None and cat is None and convs[0].norm is not None:
            # An ordinary BatchNorm behind one convolution stays where it is.
            convs, output = [_Piece(convs[0].module, convs[0].part, None)], self.first
        width = max(piece.part.stop for piece in convs)
        in_channels = self._width(source, width)
        inputs = tuple(range(in_channels))
        if gathered is not source:
            inputs = _indices(self.root.get_submodule(str(gathered.target)), width)
        plan = self._plan(inputs, in_channels, convs, constants, gather)
        return _Frozen(reader, output, tuple(convs), constants, norm, plan, in_channels)

    def _width(self, source: fx.Node, width: int) -> int:
        """Channels that come in; what is neither sliced nor picked from is read as it is."""
        shape = self.shapes.get(source, (0, width))
        if len(shape) < 2:
            raise _OtherFormError
        return int(shape[1])

    def _is(self, node: fx.Node, name: str) -> bool:
        return node.op == "call_module" and str(node.target) == joined(self.home, name)

    def _behind(self, conv: fx.Node) -> tuple[fx.Node, str | None]:
        """The convolution, or the BatchNorm that belongs to it alone, and its path."""
        users = list(conv.users)
        if len(users) == 1 and is_batchnorm(users[0], self.root):
            return users[0], str(users[0].target)
        return conv, None

    def _cat_of(self, value: fx.Node) -> fx.Node | None:
        if self._is(self.first, "conv") and not self._has("constants"):
            return None
        # The constant channels take their batch and size from the first value.
        users = [user for user in value.users if not self._is(user, "constants")]
        if len(users) != 1 or cat_values(users[0]) is None:
            raise _OtherFormError
        return users[0]

    def _has(self, name: str) -> bool:
        try:
            self.root.get_submodule(joined(self.home, name))
        except AttributeError:
            return False
        return True

    def _constants(self, value: fx.Node) -> tuple[ConstantChannels | None, str | None]:
        """The channels that hold one value each, if they are what `value` is, and their norm."""
        norm = None
        if is_batchnorm(value, self.root):
            value, norm = _only_argument(value), str(value.target)
        if not self._is(value, "constants"):
            return None, None
        found = self.root.get_submodule(str(value.target))
        assert isinstance(found, ConstantChannels)
        return found, norm

    def _piece(self, value: fx.Node, gathered: fx.Node) -> _Piece:
        norm = None
        conv = value
        if is_batchnorm(value, self.root):
            conv, norm = _only_argument(value), str(value.target)
        if conv.op != "call_module":
            raise _OtherFormError
        module = self.root.get_submodule(str(conv.target))
        plain = _UNMASKED.get(type(module), type(module))
        if plain not in CONV_TYPES or not getattr(module, FROZEN_MARK, False) or changed(module):
            raise _OtherFormError
        assert isinstance(module, _ConvNd)
        data = _only_argument(conv)
        if data is gathered:
            return _Piece(module, Slice(0, module.in_channels), norm)
        found = sliced(data)
        if found is None or found[0] is not gathered or len(found[1]) != module.in_channels:
            raise _OtherFormError
        return _Piece(module, found[1], norm)

    def _plan(
        self,
        inputs: tuple[int, ...],
        in_channels: int,
        pieces: Sequence[_Piece],
        constants: ConstantChannels | None,
        output_gather: fx.Node | None,
    ) -> FormPlan:
        extra = 0 if constants is None else len(constants.bias)
        result = sum(piece.module.out_channels for piece in pieces) + extra
        outputs = tuple(range(result))
        if output_gather is not None:
            outputs = _indices(self.root.get_submodule(str(output_gather.target)), result)
        rows: dict[int, int] = {place: channel for channel, place in enumerate(outputs)}
        plans, place = [], 0
        for piece in pieces:
            plans.append(_conv_plan(piece, inputs, rows, place))
            place += piece.module.out_channels
        return FormPlan(
            form="bucketed",
            input_gather=plan_gather(inputs, in_channels),
            convs=tuple(plans),
            constants=tuple(rows[place + k] for k in range(extra)),
            output_gather=plan_gather(outputs, result),
        )


def _only_argument(node: fx.Node) -> fx.Node:
    if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
        raise _OtherFormError
    return node.args[0]


def _indices(module: nn.Module, width: int) -> tuple[int, ...]:
    """What a gather module reads: `y = x[:, indices]`."""
    if isinstance(module, ChannelGather):
        return module.channels
    if isinstance(module, ChannelShuffle):
        return shuffle_permutation(width, module.groups)
    if isinstance(module, ChannelTranspose):
        order = np.arange(width).reshape(module.shape).transpose(module.axes).ravel()
        return tuple(order.tolist())
    raise _OtherFormError


def _conv_plan(
    piece: _Piece, inputs: Sequence[int], rows: Mapping[int, int], place: int
) -> ConvPlan:
    """The plan of one convolution; padding is known by the mask, which is 0 there."""
    module = piece.module
    groups = module.groups
    size, height = module.in_channels // groups, module.out_channels // groups
    read = [inputs[channel] for channel in range(piece.part.start, piece.part.stop)]
    mask = getattr(module, "mask", None)
    columns = []
    for group in range(groups):
        chosen: list[int | None] = list(read[group * size : (group + 1) * size])
        if mask is not None:
            held = (mask[group * height : (group + 1) * height] != 0).any(dim=0).tolist()
            chosen = [c if keep else None for c, keep in zip(chosen, held, strict=True)]
        known = [channel for channel in chosen if channel is not None]
        if len(known) != len(set(known)):
            raise _OtherFormError
        columns.append(tuple(chosen))
    found = tuple(rows.get(place + row) for row in range(module.out_channels))
    return ConvPlan(piece.part, found, tuple(columns))


def _dense(call: _Frozen) -> nn.Module:
    """One convolution with the weight of all pieces, zeros elsewhere."""
    first = call.pieces[0].module
    weight, bias = _dense_tensors(call)
    spec = _spec(first)
    whole = replace(spec, bias=bias is not None)
    whole = whole.with_channels(weight.shape[1], weight.shape[0], groups=1)
    module = module_from_spec(whole)
    module.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias, requires_grad=False)
    module.training = first.training
    return module


def _spec(module: _ConvNd) -> ConvSpec:
    dims, transposed = CONV_TYPES[_UNMASKED.get(type(module), type(module))]
    return fields_of(module, dims, transposed)


def _dense_tensors(call: _Frozen) -> tuple[Tensor, Tensor | None]:
    out_channels = len(call.plan.output_gather.indices)
    first = call.pieces[0].module.weight.detach()
    weight = first.new_zeros((out_channels, call.in_channels, *first.shape[2:]))
    has_bias = call.pieces[0].module.bias is not None
    bias = first.new_zeros(out_channels) if has_bias or call.constants is not None else None
    for piece, plan in zip(call.pieces, call.plan.convs, strict=True):
        own = _masked_weight(piece.module)
        height = plan.out_channels // plan.groups
        for group, columns in enumerate(plan.columns):
            kept = [k for k, column in enumerate(columns) if column is not None]
            for row in range(group * height, (group + 1) * height):
                channel = plan.rows[row]
                if channel is None:
                    continue
                weight[channel, [columns[k] for k in kept]] = own[row, kept]
        if bias is not None and piece.module.bias is not None:
            _put_rows(bias, plan.rows, piece.module.bias.detach())
    if bias is not None and call.constants is not None:
        bias[list(call.plan.constants)] = call.constants.bias.detach().to(bias.dtype)
    return weight, bias


def _masked_weight(module: _ConvNd) -> Tensor:
    weight = module.weight.detach()
    mask = getattr(module, "mask", None)
    return weight if mask is None else weight * mask[(..., *(None,) * (weight.dim() - 2))]


def _put_rows(target: Tensor, rows: Sequence[int | None], values: Tensor) -> None:
    known = [(row, channel) for row, channel in enumerate(rows) if channel is not None]
    target[[channel for _, channel in known]] = values[[row for row, _ in known]]


def _merged_norm(root: fx.GraphModule, calls: Sequence[_Frozen]) -> tuple[str, nn.Module] | None:
    """The BatchNorm whose pieces lie inside the region, in the order of the output."""
    first_call = calls[0]
    plan = first_call.plan
    norms = [piece.norm for piece in first_call.pieces]
    rows = [conv.rows for conv in plan.convs]
    if first_call.constants is not None:
        norms.append(first_call.constants_norm)
        rows.append(plan.constants)
    paths = [norm for norm in norms if norm is not None]
    if not paths:
        return None
    if len(calls) > 1 or len(paths) != len(norms):
        raise _OtherFormError
    home = paths[0] if len(paths) == 1 else paths[0].rpartition(".")[0]
    modules = [root.get_submodule(path) for path in paths]
    first = modules[0]
    channels = len(plan.output_gather.indices)
    tensors: dict[str, Tensor | None] = {}
    for name in (*first._parameters, *first._buffers):
        own = getattr(first, name)
        if own is None or not own.dim():
            tensors[name] = own
            continue
        whole = own.detach().new_zeros(channels)
        for module, chosen in zip(modules, rows, strict=True):
            _put_rows(whole, chosen, getattr(module, name).detach())
        tensors[name] = nn.Parameter(whole, requires_grad=False) if _is_param(own) else whole
    return home, rebuild(first, tensors, num_features=channels)


def _is_param(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter)
