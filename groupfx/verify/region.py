"""A piece of a graph, from a few input nodes to one output node, run on its own.

`Region` says which piece, `run_region` runs it where it stands, and `RegionCopy` holds copies, on
the CPU, of just the modules and tensors that the piece uses, so that it can be run in any mode,
forward and backward, while the graph that it was taken from stays as it is. The copies are in
float64, or in the dtypes that the model has.
"""

from __future__ import annotations

import contextlib
import copy
import operator
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from ..convs.sources import in_running_order
from ..errors import InternalError
from ..nn.channel_gather import ChannelGather
from ..nn.channel_shuffle import ChannelShuffle
from ..running.float64 import Float64, widen
from ..running.unchanged import set_mode


class HeldWeight(nn.Module):
    """A parameter, in place of a module that computes a weight."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self) -> Tensor:
        return self.weight


_WITHOUT_MODES = frozenset(
    [
        *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
        *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        *(nn.Linear, nn.Identity, ChannelGather, ChannelShuffle, HeldWeight),
    ]
)
_NORMS = frozenset([nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
_KEEP_DTYPE = frozenset(
    ("call_function", function)
    for function in (operator.getitem, torch.cat, torch.index_select, torch.narrow, torch.chunk)
)
# What a copy of a module may share with it: it does not change, or it is empty.
_VALUES = frozenset([bool, int, float, str, tuple, type(None)])
_CONTAINERS = frozenset([dict, OrderedDict, set, list])


def _same_name(path: str) -> str:
    return path


@dataclass(frozen=True, eq=False)
class Region:
    """The nodes of `module`'s graph that `output` depends on, up to `inputs`.

    `full_name` turns the path of a tensor in `module` into its name in the whole model, for a
    graph that is only a part of one.
    """

    module: fx.GraphModule
    inputs: tuple[fx.Node, ...]
    output: fx.Node
    full_name: Callable[[str], str] = _same_name

    def nodes(self) -> tuple[fx.Node, ...]:
        """The nodes to run, each behind those that it reads; `inputs` are not among them.

        Raises InternalError, naming it, for a placeholder that is not in `inputs`.
        """
        order: list[fx.Node] = []
        for node in in_running_order(self.output, given=self.inputs):
            if node.op == "placeholder":
                raise InternalError(
                    f"the value of {self.output.name} depends on the model's input {node.name}, "
                    f"not on {', '.join(n.name for n in self.inputs) or 'nothing'} alone"
                )
            order.append(node)
        return tuple(order)


def run_region(
    region: Region,
    values: Sequence[Any],
    parts: Mapping[str, Any] | None = None,
    nodes: Sequence[fx.Node] | None = None,
) -> Any:
    """The value of `region.output`, given one value for each of `region.inputs`.

    `parts` replaces the modules and tensors that the graph's targets name, which otherwise are
    those of `region.module`, in their own dtype and mode. `nodes` is `region.nodes()`, for a
    caller that runs a region many times.

    Raises InternalError for a placeholder that is not an input, or a wrong number of values.
    """
    if len(values) != len(region.inputs):
        raise InternalError(f"{len(region.inputs)} region inputs, but {len(values)} values")
    found: dict[fx.Node, Any] = dict(zip(region.inputs, values, strict=True))

    def read(argument: Any) -> Any:
        return fx.node.map_arg(argument, found.__getitem__)

    for node in region.nodes() if nodes is None else nodes:
        target: Any = node.target
        if node.op in ("get_attr", "call_module"):
            target = _part(region.module, target) if parts is None else parts[target]
        if node.op == "get_attr":
            found[node] = target
            continue
        args, kwargs = read(node.args), read(node.kwargs)
        if node.op == "call_method":
            found[node] = getattr(args[0], target)(*args[1:], **kwargs)
        else:
            found[node] = target(*args, **kwargs)
    return found[region.output]


class RegionState:
    """The modules and tensors that a region uses, as they are.

    `parts` has them by the targets that name them, `originals` every parameter and buffer by its
    full name, and `modes` the `training` flag that its module has (None: it has no module).
    """

    def __init__(self, region: Region) -> None:
        self.region = region
        self.nodes = region.nodes()
        targets = dict.fromkeys(
            str(node.target) for node in self.nodes if node.op in ("get_attr", "call_module")
        )
        self._take({target: _part(region.module, target) for target in targets})

    def _take(self, parts: Mapping[str, Any]) -> None:
        self.parts = parts
        state = list(_state(self.region, parts))
        self.originals = {name: tensor for name, tensor, _ in state}
        self.modes = {name: mode for name, _, mode in state}

    def with_parts(self, parts: Mapping[str, Any]) -> RegionState:
        """The same region over other modules and tensors, by the same targets."""
        twin = copy.copy(self)
        twin._take(parts)
        return twin

    def count(self) -> int:
        """How many numbers the tensors hold."""
        return sum({id(t): t.numel() for t in self.originals.values()}.values())


class RegionCopy:
    """Copies, on the CPU, of the modules and tensors that a region uses.

    Tied tensors and shared modules stay tied and shared. Everything is float64, but for the tensors
    that `native` names, as in `Float64`, until `narrow` gives every tensor the dtype that it has in
    the region; without `wide`, it has that from the start. All parameters ask for gradients. The
    copies live as long as this object.

    `tensors` has every parameter and buffer by its full name, `originals` what it is a copy of, and
    `state` all of what the region itself has.
    """

    def __init__(
        self, region: Region | RegionState, native: Collection[str] = (), *, wide: bool = True
    ) -> None:
        state = region if isinstance(region, RegionState) else RegionState(region)
        self.state, self.originals = state, state.originals
        self._region, self._nodes = state.region, state.nodes
        self.wide = wide
        memo: dict[int, Any] = {}
        kept = {id(tensor) for name, tensor in self.originals.items() if name in native}
        for part in state.parts.values():
            for tensor in _every_tensor(part):
                narrow = not wide or id(tensor) in kept
                memo.setdefault(id(tensor), _copied(tensor, narrow=narrow))
        self.tensors: dict[str, Tensor] = {
            name: memo[id(tensor)] for name, tensor in self.originals.items()
        }
        self._parts = {target: _twin(part, memo) for target, part in state.parts.items()}
        self._kept = [memo[id(t)] for name, t in self.originals.items() if name in native]

    def run(self, values: Sequence[Any], *, training: bool) -> Any:
        """The region's value, every module in train mode or every module in eval mode.

        `values` are not written to. In train mode running statistics and the like move on, in the
        copies; in eval mode they do not, and those of an observer, which would, are put back.
        """
        for module in self.modules:
            set_mode(module, training)
        own = [value.clone() if isinstance(value, Tensor) else value for value in values]
        if self._keeps_dtype:
            return run_region(self._region, own, self._parts, self._nodes)
        with Float64(native=self._kept) if self.wide else contextlib.nullcontext():
            with contextlib.nullcontext() if training else self._buffers_kept():
                found = run_region(self._region, own, self._parts, self._nodes)
            return widen(found) if self.wide else found

    @contextlib.contextmanager
    def _buffers_kept(self) -> Iterator[None]:
        buffers = [t for t in self.tensors.values() if not isinstance(t, nn.Parameter)]
        before = [tensor.detach().clone() for tensor in buffers]
        try:
            yield
        finally:
            for tensor, value in zip(buffers, before, strict=True):
                tensor.data = value  # not written into: a backward may need what was there

    def narrow(self) -> None:
        """Give every tensor its own dtype, and leave what is computed as it is from now on."""
        self.wide = False
        for name, tensor in self.tensors.items():
            if tensor.dtype != self.originals[name].dtype:
                tensor.data = tensor.data.to(self.originals[name].dtype)

    @cached_property
    def _keeps_dtype(self) -> bool:
        """Whether what is float64 stays so by itself: no operator here makes or asks for a dtype.

        Each call goes through the many lines of `Float64` otherwise.
        """
        plain = all(
            node.op == "call_module" or (node.op, node.target) in _KEEP_DTYPE
            for node in self._nodes
        )
        return plain and all(map(is_plain, self.modules))

    @cached_property
    def modules(self) -> tuple[nn.Module, ...]:
        """Every copied module, submodules included."""
        parts = (part for part in self._parts.values() if isinstance(part, nn.Module))
        return tuple(module for part in parts for module in part.modules())

    def has_modes(self) -> bool:
        """Whether some module may compute something else, or remember something, in train mode."""
        return any(
            type(module) not in _WITHOUT_MODES or module._forward_hooks or module._forward_pre_hooks
            for module in self.modules
        )

    def norms(self) -> Iterator[_NormBase]:
        """The batch and instance norms that have a weight."""
        for module in self.modules:
            if isinstance(module, _NormBase) and module.weight is not None:
                yield module


def is_plain(module: nn.Module) -> bool:
    """Whether nothing in a module makes or asks for a dtype, and no hook does."""
    known = type(module) in _WITHOUT_MODES or type(module) in _NORMS
    return known and not (module._forward_hooks or module._forward_pre_hooks)


def _part(module: nn.Module, target: str) -> Any:
    path, _, name = target.rpartition(".")
    try:
        return getattr(module.get_submodule(path), name)
    except AttributeError as error:
        raise InternalError(f"the graph reads {target}, which the model does not have") from error


def _state(region: Region, parts: Mapping[str, Any]) -> Iterator[tuple[str, Tensor, bool | None]]:
    """Every parameter, buffer and constant that the parts hold: full name, itself, and the mode.

    The mode is the `training` flag of the module that it belongs to; None for what a node reads.
    """
    for target, part in parts.items():
        if isinstance(part, Tensor):
            yield region.full_name(target), part, None
        if not isinstance(part, nn.Module):
            continue
        for path, module in part.named_modules(remove_duplicate=False):
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    full = ".".join(word for word in (target, path, name) if word)
                    yield region.full_name(full), tensor, getattr(module, "training", None)


def _every_tensor(part: Any) -> Iterator[Tensor]:
    """Parameters, buffers and plain tensor attributes, those with a history included.

    A legacy `weight_norm` leaves its last weight on the module, and Python cannot copy that.
    """
    if isinstance(part, Tensor):
        yield part
    if not isinstance(part, nn.Module):
        return
    for module in part.modules():
        yield from (tensor for tensor in module._parameters.values() if tensor is not None)
        yield from (tensor for tensor in module._buffers.values() if tensor is not None)
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))


def _twin(part: Any, memo: dict[int, Any]) -> Any:
    """`copy.deepcopy(part, memo)`, without its many steps for a module that holds plain values."""
    if id(part) in memo or not (isinstance(part, nn.Module) and is_plain(part)):
        return copy.deepcopy(part, memo)
    held = (part._parameters, part._buffers)
    fields = {key: value for key, value in vars(part).items() if all(value is not h for h in held)}
    # An empty one may be shared: nothing here registers a hook or a module on a copy.
    if not all(type(v) in _VALUES or (type(v) in _CONTAINERS and not v) for v in fields.values()):
        return copy.deepcopy(part, memo)
    twin = memo[id(part)] = object.__new__(type(part))
    copies = [{name: memo.get(id(t)) for name, t in tensors.items()} for tensors in held]
    vars(twin).update(fields, _parameters=copies[0], _buffers=copies[1])
    return twin


def drawn(tensor: Tensor) -> Tensor:
    """Numbers for a tensor that has none: the same for the same shape."""
    generator = torch.Generator().manual_seed(tensor.numel())
    if tensor.is_floating_point() or tensor.is_complex():
        # Positive, for it may be a variance.
        return torch.rand(tensor.shape, generator=generator).add_(0.5).to(tensor.dtype)
    return torch.zeros(tensor.shape, dtype=tensor.dtype)


def _copied(tensor: Tensor, *, narrow: bool) -> Tensor:
    value = drawn(tensor) if tensor.is_meta else tensor.detach().cpu()
    value = value.clone() if narrow or widen(value) is value else widen(value)
    if not isinstance(tensor, nn.Parameter):
        return value
    differentiable = value.is_floating_point() or value.is_complex()
    return nn.Parameter(value, requires_grad=differentiable)
