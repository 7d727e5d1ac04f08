"""What a site computes: a convolution, and the BatchNorm behind it, in float64.

    y = s (W * x + b - mean) + beta,   s = gamma / sqrt(var + eps)

and how far rounding may take another way to compute it from there. A sum of K products, in any
order, is off by about sqrt(K) u times the sum of their magnitudes (Higham and Mary, A new approach
to probabilistic rounding error analysis, 2019), and never by more than g_K times it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...convs.calls import ConvCall
from ...convs.sources import in_running_order
from ...convs.spec import ConvSpec
from ...learned.groups import deciding_tensors
from ...merging.sites import merge_sites
from ...plan.channel_order import AS_THEY_WERE, ChannelOrders
from ...plan.channels import group_slices
from ...running.float64 import Float64, named_state, widen
from ...running.inputs import ExampleInputs, in_order
from ..export.graph_sites import GraphSite, graph_sites, tensor_at
from ..export.known_outputs import exported_program
from ..export.torch_export import site_names
from ..graph.pads import Window
from ..quantised.grids import Grid
from ..running.float64_windows import convolve, convolve_transposed

# Roundings besides those of the sum: the bias, the scale and its own two, the offset.
_MORE_TERMS = 5
_LEAST_FACTOR = 4.0
# Sums of magnitudes beyond it are not left to float32.
_MOST_FLOAT = 1e30


@dataclass(frozen=True)
class Affine:
    """What a BatchNorm in eval mode does to each channel, in float64: `[channels]` each."""

    scale: Tensor
    mean: Tensor
    beta: Tensor

    @classmethod
    def of(
        cls, gamma: Tensor | None, beta: Tensor | None, mean: Tensor, variance: Tensor, eps: float
    ) -> Affine:
        """From the parameters of a BatchNorm."""
        wide = variance.double()
        scale = (torch.ones_like(wide) if gamma is None else gamma.double()) / (wide + eps).sqrt()
        offset = torch.zeros_like(wide) if beta is None else beta.double()
        return cls(scale, mean.double(), offset)


@dataclass(frozen=True)
class SiteFunction:
    """A site of the reference. `weight` and `bias` are in float64.

    `sizes` are what the rounding of a weight that is computed is relative to, where that is more
    than its magnitudes. `window` says where its windows lie; `norms` are the BatchNorms behind it.
    The orders are those of its input's and its output's channels, where a fold has changed them in
    the reference.

    `data` is the grid of what goes in where that are whole numbers, and so is then what comes out.
    `result` is the grid that this is rounded to, behind activations that may follow.
    """

    name: str
    spec: ConvSpec
    weight: Tensor
    bias: Tensor | None
    window: Window
    norms: tuple[Affine, ...] = ()
    orders: ChannelOrders = AS_THEY_WERE
    data: Grid | None = None
    result: Grid | None = None
    sizes: Tensor | None = None

    @property
    def terms(self) -> int:
        """How many roundings one output value passes through at most."""
        spec = self.spec
        inputs = spec.in_channels // spec.groups
        return math.prod(spec.kernel_size) * inputs + _MORE_TERMS * max(len(self.norms), 1)

    def value(self, x: Tensor) -> Tensor:
        """The site's output for a float64 input."""
        result = self._convolve(x, self.weight, self.bias)
        for norm in self.norms:
            scale, mean, beta = (_channels(v, result) for v in _fields(norm))
            # What the convolution gave is nobody else's.
            result = result.sub_(mean).mul_(scale).add_(beta)
        return result

    def magnitudes(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """|s| (|W| * |x| + |b| + |mean|) + |beta|: what rounding errors are relative to.

        In float32, for nothing cancels, unless it does not hold them or `dtype` is finer.
        """
        weight = self.weight.abs() if self.sizes is None else self.sizes
        sizes = [x.abs(), weight, *([] if self.bias is None else [self.bias.abs()])]
        large = math.prod(float(size.max()) if size.numel() else 0.0 for size in sizes[:2])
        coarse = dtype != torch.float64 and large * self.terms < _MOST_FLOAT
        narrow = [size.float() for size in sizes] if coarse else sizes
        result = self._convolve(narrow[0], narrow[1], narrow[2] if sizes[2:] else None).double()
        for norm in self.norms:
            scale, mean, beta = (_channels(v.abs(), result) for v in _fields(norm))
            result = result.add_(mean).mul_(scale).add_(beta)
        return result

    def group(self, number: int) -> SiteFunction:
        """One group of a grouped convolution, as a convolution on that group's channels."""
        spec = self.spec
        inputs = group_slices(spec.in_channels, spec.groups)[number]
        outputs = group_slices(spec.out_channels, spec.groups)[number]
        rows = slice(outputs.start, outputs.stop)
        held = slice(inputs.start, inputs.stop) if spec.transposed else rows
        return replace(
            self,
            spec=spec.with_channels(len(inputs), len(outputs), groups=1),
            weight=self.weight[held],
            sizes=None if self.sizes is None else self.sizes[held],
            bias=None if self.bias is None else self.bias[rows],
            norms=tuple(Affine(*(v[rows] for v in _fields(norm))) for norm in self.norms),
        )

    def factor(self) -> float:
        """Limit of the root-mean-square error, in units of u times the magnitudes."""
        return max(_LEAST_FACTOR, math.sqrt(self.terms))

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        form = convolve_transposed if self.spec.transposed else convolve
        return form(x, weight, bias, self.window, self.spec.groups)


@dataclass(frozen=True)
class Unchecked:
    """A site that is not looked at on its own, and why; without a `name`, all of them."""

    reason: str
    name: str | None = None

    def __str__(self) -> str:
        return self.reason if self.name is None else f"{self.name}: {self.reason}"


def _fields(norm: Affine) -> tuple[Tensor, Tensor, Tensor]:
    return norm.scale, norm.mean, norm.beta


def _channels(vector: Tensor, like: Tensor) -> Tensor:
    return vector.reshape(1, -1, *(1,) * (like.dim() - 2))


def torch_site_functions(
    model: nn.Module,
    inputs: ExampleInputs,
    known: Callable[[], torch.export.ExportedProgram],
) -> tuple[tuple[SiteFunction, ...], tuple[Unchecked, ...]]:
    """The sites of a torch model, in the order of its graph, and why others cannot be computed.

    `known` gives what `torch.export` makes of the model as it stands.

    Names are those of the exported file: sites that a rewrite split count as one. Raises
    `CannotTrace` where `torch.export` does not take the model.
    """
    merged = merge_sites(model, inputs)
    own = merged.model
    shared = own is model
    program = known() if shared else exported_program(own, in_order(own, inputs), lambda _: ())
    graph = program.module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    state = named_state(own)
    native = [state[name] for name in deciding_tensors(own)]
    found: list[SiteFunction] = []
    left: list[Unchecked] = []
    values = _WideValues(graph, native)
    for site in graph_sites(graph, site_names(merged.planned)):
        function = _function(site, values)
        if isinstance(function, str):
            left.append(Unchecked(function, site.name))
            continue
        orders = merged.orders.get(site.path, AS_THEY_WERE)
        found.append(replace(function, orders=orders))
    return tuple(found), tuple(left)


class _WideValues:
    """Values of nodes that depend on parameters alone, in float64."""

    def __init__(self, graph: fx.GraphModule, native: list[Tensor]) -> None:
        self._graph = graph
        self._native = native
        self._values: dict[fx.Node, Any] = {}

    def of(self, node: fx.Node) -> Tensor | None:
        """The value in float64, None where it depends on an input."""
        order = list(in_running_order(node))
        if any(n.op == "placeholder" for n in order):
            return None
        with torch.no_grad(), Float64(None, self._native):
            for n in order:
                if n not in self._values:
                    self._values[n] = self._compute(n, self._values)
        value = self._values[node]
        return widen(value.detach()) if isinstance(value, Tensor) else None

    def sizes(self, node: fx.Node) -> Tensor | None:
        """What a computed value's rounding is relative to; None where that is its magnitudes.

        A difference, such as `w - mean(w)` of a standardised weight, may be small beside what it is
        the difference of. How much that is shows in what the model's own dtype makes of it: the
        worst error there, by the largest magnitude of its row, is taken for every row.
        """
        wide = self.of(node)
        if wide is None or node.op == "get_attr":
            return None
        values: dict[fx.Node, Any] = {}
        with torch.no_grad():
            for n in in_running_order(node):
                values[n] = self._compute(n, values)
        native = values[node]
        if native.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return None
        error, unit = (native.double() - wide).abs(), torch.finfo(native.dtype).eps / 2
        if bool((error <= _LEAST_FACTOR * unit * wide.abs()).all()):
            return None
        rows = wide.abs().flatten(1).amax(1)
        worst = (error.flatten(1).amax(1) / rows)[rows > 0].max()
        largest = (worst / unit * rows).reshape(-1, *(1,) * (wide.dim() - 1))
        return torch.maximum(wide.abs(), largest)

    def _compute(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        if node.op == "get_attr":
            return tensor_at(self._graph, node)
        assert callable(node.target)
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
        return node.target(*args, **kwargs)


def _function(site: GraphSite, values: _WideValues) -> SiteFunction | str:
    call = site.call
    if not isinstance(call, ConvCall):
        return call.reason
    weight = values.of(call.node.args[1])  # type: ignore[arg-type]
    if weight is None:
        return "its weight depends on the input"
    held = call.node.args[2] if len(call.node.args) > 2 else None
    bias = values.of(held) if isinstance(held, fx.Node) else None
    if isinstance(held, fx.Node) and bias is None:
        return "its bias depends on the input"
    norms = tuple(_affine(values, node) for node in site.norms)
    window, sizes = Window.of(call.spec), values.sizes(call.node.args[1])  # type: ignore[arg-type]
    return SiteFunction(site.name, call.spec, weight, bias, window, norms, sizes=sizes)


def _affine(values: _WideValues, norm: fx.Node) -> Affine:
    found = [values.of(node) if isinstance(node, fx.Node) else None for node in norm.args[1:5]]
    gamma, beta, mean, variance = found
    assert mean is not None
    assert variance is not None
    eps = norm.args[7]
    assert isinstance(eps, float)
    return Affine.of(gamma, beta, mean, variance, eps)
