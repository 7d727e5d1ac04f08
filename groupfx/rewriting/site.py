"""A site: one place where a convolution is called, and the editing that a pass does there.

A pass plans in integers and then asks its site for branches. How the weights get there is decided
here, once: rows of the stored tensors become modules of their own, or, where the weight is
computed in each forward or shared with something that keeps it whole, the tensor is sliced in the
graph and stays trainable as it is.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import fx, nn

from ..convs.calls import Computed, ConvCall, Source, Stored, attribute, function_of
from ..convs.names import joined
from ..convs.norms import is_batchnorm
from ..convs.spec import (
    BATCHNORMS,
    ConvSpec,
    module_from_spec,
    norm_channels,
    rebuild,
)
from ..nn import HookedWeight
from ..nn.marks import FROZEN_MARK
from ..plan.channels import Slice
from ..plan.site_plan import site_of
from ..state.map import Part, Picked
from ..tracing.program import Fragment, Shapes
from .store import Store

Emit = Callable[[fx.Node], fx.Node]


@dataclass(frozen=True)
class BatchNorm:
    """The BatchNorm that follows a convolution and belongs to it alone."""

    node: fx.Node
    path: str
    channels: int


@dataclass
class Site:
    """A convolution call in the working graph of a fragment.

    `name` is the one of `convs.names`, in the whole model. `calls` counts the calls of the same
    module. `shapes` are those of the example run, None where none was made.
    """

    name: str
    fragment: Fragment
    call: ConvCall
    store: Store
    calls: int = 1
    shapes: Shapes | None = None
    whole_weights: str | None = None

    @property
    def local_name(self) -> str:
        """The name inside the graph's own module: empty for a module that is the site itself."""
        return self.name.removeprefix(self.fragment.path).removeprefix(".")

    @property
    def spec(self) -> ConvSpec:
        """The convolution's fields."""
        return self.call.spec

    @property
    def kind(self) -> str:
        """Kind of the convolution, or `learned` for a layer that learns its groups."""
        return "learned" if self.call.learned else self.spec.kind

    @property
    def graph(self) -> fx.Graph:
        """Graph that is being rewritten."""
        return self.fragment.working.graph

    @property
    def root(self) -> fx.GraphModule:
        """Module that owns the graph."""
        return self.fragment.working

    @property
    def module(self) -> nn.Module | None:
        """The convolution module, None for a function call."""
        return None if self.call.path is None else self.root.get_submodule(self.call.path)

    @property
    def frozen(self) -> bool:
        """Whether freezing learned groups made the convolution."""
        return bool(getattr(self.module, FROZEN_MARK, False))

    @property
    def branch_of(self) -> str | None:
        """The site that was split into this convolution and others."""
        return None if self.frozen else site_of(self.call.node.meta)

    def weight_array(self) -> npt.NDArray[Any] | None:
        """The stored weight, `[out, in / groups, *kernel]`; None if it is computed."""
        if not isinstance(self.call.weight, Stored):
            return None
        found: npt.NDArray[Any] = attribute(self.root, self.call.weight.key).detach().cpu().numpy()
        return found

    @property
    def batched(self) -> bool:
        """Whether the input has a batch axis (PyTorch also takes one sample without it)."""
        return self.shapes is None or len(self.shapes.input) == self.spec.dims + 2

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of one call for one sample, None where no shape is known."""
        return (
            None if self.shapes is None else self.spec.macs(self.shapes.input, self.shapes.output)
        )

    def hooks(self) -> list[str]:
        """Kinds of the user's hooks on the module, or on the gradients of the stored tensors."""
        if self.module is not None:
            return self.store.hooks(self.module)
        sources = (self.call.weight, self.call.bias)
        keys = [source.key for source in sources if isinstance(source, Stored)]
        return self.store.gradient_hooks(attribute(self.root, key) for key in keys)

    def used_elsewhere(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor that the graph reads serves anything but the site's convolution."""
        places = [
            (id(module), name)
            for module in self.store.program.result.modules()
            for name, own in (*module._parameters.items(), *module._buffers.items())
            if own is tensor
        ]
        if len(places) != 1:
            return True
        reached: set[fx.Node] = {self.call.node}
        pending = [
            node
            for node in self.graph.nodes
            if node.op == "get_attr" and attribute(self.root, str(node.target)) is tensor
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

    def following_batchnorm(self) -> BatchNorm | str | None:
        """The BatchNorm that may move with the convolution, why it may not, or None."""
        node = self.call.node
        norms = [user for user in node.users if is_batchnorm(user, self.root)]
        if not norms:
            return None
        norm, path = norms[0], str(norms[0].target)
        module = self.root.get_submodule(path)
        if len(node.users) > 1:
            others = len(node.users) - 1
            return f"the output of the convolution has {others} other user(s) besides {path}"
        if nn.utils.parametrize.is_parametrized(module):
            return f"{path} is parametrised"
        if self.store.hooks(module):
            return f"{path} has hooks ({', '.join(self.store.hooks(module))})"
        if BATCHNORMS[type(module)] != self.spec.dims or not self.batched:
            return (
                f"{path} ({type(module).__name__}) is not for {self.spec.dims} spatial dimensions"
            )
        if norm_channels(module) != self.spec.out_channels:
            return f"{path} has {norm_channels(module)} channels, not {self.spec.out_channels}"
        if len(self.store.call_nodes(module)) > 1:
            return f"{path} is called elsewhere too"
        if not self.store.owns_alone(module):
            return f"{path} shares its parameters with another module"
        return BatchNorm(norm, path, self.spec.out_channels)

    def may_have_hidden_batchnorm(self) -> bool:
        """Whether a BatchNorm of the model could follow where the graph ends at the site."""
        channels = self.store.batchnorm_channels
        return self.fragment.is_module and self.spec.out_channels in channels

    # What a pass emits. Every method adds nodes in front of the convolution.

    def channels(self, value: fx.Node, part: Slice, axis: int = 1) -> fx.Node:
        """`value[:, start:stop]`."""
        index = (*(slice(None),) * axis, slice(part.start, part.stop))
        return self.graph.call_function(operator.getitem, (value, index))

    def concat(self, values: Sequence[fx.Node], axis: int = 1) -> fx.Node:
        """`torch.cat([...], dim=1)`."""
        return self.graph.call_function(torch.cat, (list(values),), {"dim": axis})

    def conv_branches(
        self,
        weight_rows: Sequence[Slice],
        bias_rows: Sequence[Slice],
        fields: ConvSpec | Sequence[ConvSpec],
    ) -> tuple[Emit, ...]:
        """One convolution for each pair of row slices, as functions that emit its call.

        `fields` are those of each branch, or of any where they are alike. Its weights are rows of
        the site's own.
        """
        if isinstance(fields, ConvSpec):
            fields = (fields,) * len(weight_rows)
        if self.whole_weights is not None or self.call.computed:
            return self._functional_branches(weight_rows, bias_rows, fields)
        home = self._home()
        key = (id(self.fragment), home, tuple(weight_rows), tuple(bias_rows))
        if key not in self.store.placed:
            self._place_modules(home, weight_rows, bias_rows, fields)
            self.store.placed.add(key)
        extra = () if self.call.output_size is None else (self.call.output_size,)

        def emitter(position: int) -> Emit:
            target = joined(home, str(position))
            return lambda value: self.graph.call_module(target, (value, *extra))

        return tuple(emitter(position) for position in range(len(weight_rows)))

    def batchnorm_branches(self, norm: BatchNorm, rows: Sequence[Slice]) -> tuple[Emit, ...]:
        """The BatchNorm's channels `rows`, each as a BatchNorm of its own."""
        module = self.root.get_submodule(norm.path)
        branches = []
        for part in rows:
            tensors = {
                name: self.store.rows(tensor, part if tensor is not None and tensor.dim() else None)
                for name, tensor in (*module._parameters.items(), *module._buffers.items())
            }
            branches.append(rebuild(module, tensors, num_features=part.stop - part.start))
        self.store.replace(self.fragment, norm.path, norm.path, branches, {None: list(rows)})

        def emitter(position: int) -> Emit:
            return lambda value: self.graph.call_module(f"{norm.path}.{position}", (value,))

        return tuple(emitter(position) for position in range(len(rows)))

    def batchnorm_picks(
        self, norm: BatchNorm, picks: Sequence[tuple[int, ...]]
    ) -> tuple[Emit, ...]:
        """The BatchNorm's channels in another order: one BatchNorm for each of `picks`."""
        module = self.root.get_submodule(norm.path)
        branches, entries = [], []
        for chosen in picks:
            pick = Picked("", (Part(chosen),), (norm.channels,))
            tensors = {
                name: _picked(tensor, pick)
                for name, tensor in (*module._parameters.items(), *module._buffers.items())
            }
            branches.append(rebuild(module, tensors, num_features=len(chosen)))
            entries.append(pick)
        self.store.replace_picked(self.fragment, norm.path, branches, entries)

        def emitter(position: int) -> Emit:
            target = norm.path if len(picks) == 1 else f"{norm.path}.{position}"
            return lambda value: self.graph.call_module(target, (value,))

        return tuple(emitter(position) for position in range(len(picks)))

    def _home(self) -> str:
        """Path under which the branches go: the module's, or the one that held the weight."""
        if self.call.path is not None:
            return self.fragment.home(self.call.path)
        assert isinstance(self.call.weight, Stored)
        # A second call of the same tensors finds them gone: the first has cut them.
        key = (id(self.fragment), self.call.weight.key)
        if key not in self.store.homes:
            weight_key, bias_key = self.call.weight.key, self._bias_key()
            self.store.homes[key] = self.store.home_of(self.fragment, weight_key, bias_key)
        return self.store.homes[key]

    def _bias_key(self) -> str | None:
        return self.call.bias.key if isinstance(self.call.bias, Stored) else None

    def _place_modules(
        self,
        home: str,
        weight_rows: Sequence[Slice],
        bias_rows: Sequence[Slice],
        fields: Sequence[ConvSpec],
    ) -> None:
        assert isinstance(self.call.weight, Stored)
        weight = attribute(self.root, self.call.weight.key)
        bias_key = self._bias_key()
        bias = None if bias_key is None else attribute(self.root, bias_key)
        template = self.module or module_from_spec(fields[0])
        if self.call.path is None:
            template.training = self.root.training
        branches = []
        for own, rows, bias_part in zip(fields, weight_rows, bias_rows, strict=True):
            numbers: dict[str, object] = {
                "in_channels": own.in_channels,
                "out_channels": own.out_channels,
                "groups": own.groups,
            }
            # A forward reads the field `kernel_size` only for an `output_size`; then it stays.
            if self.call.output_size is None:
                numbers["kernel_size"] = own.kernel_size
            tensors = {
                "weight": self.store.rows(weight, rows),
                "bias": self.store.rows(bias, bias_part),
            }
            branches.append(_with_tensors(template, tensors, numbers))
        rows_by_name: dict[str | None, Sequence[Slice]] = {"weight": weight_rows, "bias": bias_rows}
        if self.call.path is not None:
            self.store.replace(self.fragment, self.call.path, home, branches, rows_by_name)
        else:
            keys = {self.call.weight.key: "weight"} | ({bias_key: "bias"} if bias_key else {})
            self.store.replace_tensors(self.fragment, keys, home, branches, rows_by_name)

    def _functional_branches(
        self, weight_rows: Sequence[Slice], bias_rows: Sequence[Slice], fields: Sequence[ConvSpec]
    ) -> tuple[Emit, ...]:
        if self.call.path is not None:
            self.store.expose(self.fragment, self.call.path)
        weight = self._node_of(self.call.weight)
        bias = None if self.call.bias is None else self._node_of(self.call.bias)
        first = fields[0]
        function, options = function_of(first)
        padded = None if first.padding_mode == "zeros" else _edges(first)
        if padded is not None:
            options["padding"] = 0

        def emitter(rows: Slice, bias_part: Slice, groups: int) -> Emit:
            own = options if groups == 1 else options | {"groups": groups}

            def emit(value: fx.Node) -> fx.Node:
                part = self._rows(weight, rows)
                offset = None if bias is None else self._rows(bias, bias_part)
                if padded is not None:
                    arguments = (value, padded, first.padding_mode)
                    value = self.graph.call_function(_PAD, arguments)
                return self.graph.call_function(function, (value, part, offset), dict(own))

            return emit

        return tuple(
            emitter(rows, bias_part, own.groups)
            for rows, bias_part, own in zip(weight_rows, bias_rows, fields, strict=True)
        )

    def _rows(self, value: fx.Node, part: Slice) -> fx.Node:
        index = slice(part.start, part.stop)
        return self.graph.call_function(operator.getitem, (value, index))

    def _node_of(self, source: Source) -> fx.Node:
        if isinstance(source, Computed):
            return source.node
        if isinstance(source, Stored):
            return self.graph.get_attr(self.store.current(self.fragment, source.key))
        home = self.store.expose(self.fragment, source.path)
        if home and isinstance(self.root.get_submodule(home), HookedWeight):
            return self.graph.call_module(home)
        prefix = f"{home}." if home else ""
        return self.graph.call_module(f"{prefix}parametrizations.{source.name}")


def modules_called(values: Iterable[fx.Node]) -> tuple[str, ...]:
    """The paths of the modules that give `values`; nothing for function calls."""
    return tuple(str(node.target) for node in values if node.op == "call_module")


def _picked(tensor: torch.Tensor | None, pick: Picked) -> torch.Tensor | None:
    if tensor is None or not tensor.dim():
        return None if tensor is None else tensor.detach().clone()
    value = pick.of(tensor.detach())
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(value, requires_grad=tensor.requires_grad)
    return value


def _edges(spec: ConvSpec) -> list[int]:
    """Padding of each side as `torch.nn.functional.pad` wants it, the last dimension first.

    'same' puts the odd element at the end, as `torch.nn` does.
    """
    edges: list[int] = []
    for axis in reversed(range(spec.dims)):
        if isinstance(spec.padding, str):
            total = spec.dilation[axis] * (spec.kernel_size[axis] - 1)
            total = total if spec.padding == "same" else 0
            edges += [total // 2, total - total // 2]
        else:
            edges += [spec.padding[axis]] * 2
    return edges


def _with_tensors(
    template: nn.Module, tensors: dict[str, torch.Tensor | None], numbers: dict[str, object]
) -> nn.Module:
    """`template` with other tensors, each registered as the parameter or buffer that it is."""
    names = dict.fromkeys((*template._parameters, *template._buffers))
    branch = rebuild(template, names | tensors, **numbers)
    for name, tensor in tensors.items():
        if tensor is None or isinstance(tensor, nn.Parameter) or name in branch._buffers:
            continue
        del branch._parameters[name]
        branch.register_buffer(name, tensor)
    return branch


_PAD: Callable[..., torch.Tensor] = nn.functional.pad
