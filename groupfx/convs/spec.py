"""A convolution's fields, read from a module or from a call, and modules rebuilt from all of them.

A `ConvSpec` is integers only. It says what a convolution does, whoever calls it: a module, a
function of `torch.nn.functional`, or an `aten` operator that `torch.export` left.
"""

import copy
import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..plan.branches import Branches

Kind = Literal["dense", "grouped", "depthwise", "depthwise-multiplier", "transposed"]

# Only these exact types compute what their fields say: a subclass may override `forward`.
CONV_TYPES: Mapping[type[nn.Module], tuple[int, bool]] = {
    nn.Conv1d: (1, False),
    nn.Conv2d: (2, False),
    nn.Conv3d: (3, False),
    nn.ConvTranspose1d: (1, True),
    nn.ConvTranspose2d: (2, True),
    nn.ConvTranspose3d: (3, True),
}


_COPIED = (dict, list, set, OrderedDict)


@dataclass(frozen=True)
class ConvSpec:
    """What one convolution computes, without its weights.

    `in_channels` and `out_channels` count all groups together. The weight has the shape
    `[out_channels, in_channels / groups, *kernel_size]`, or, where `transposed`,
    `[in_channels, out_channels / groups, *kernel_size]`.
    """

    dims: int
    transposed: bool
    in_channels: int
    out_channels: int
    groups: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    padding_mode: str
    bias: bool

    @property
    def kind(self) -> Kind:
        """One of `dense`, `grouped`, `depthwise`, `depthwise-multiplier`, `transposed`."""
        if self.groups == 1:
            return "dense"
        if self.transposed:
            return "transposed"
        if self.groups != self.in_channels:
            return "grouped"
        return "depthwise" if self.out_channels == self.in_channels else "depthwise-multiplier"

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        rows, columns = self.out_channels, self.in_channels // self.groups
        return rows * columns * math.prod(self.kernel_size) + (
            self.out_channels if self.bias else 0
        )

    def macs(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> int:
        """Multiply-accumulates for one sample, the bias not counted.

        A convolution does `in_channels / groups * taps` of them for each output element, a
        transposed one `out_channels / groups * taps` for each input element.
        """
        taps = math.prod(self.kernel_size)
        if self.transposed:
            positions = math.prod(input_shape[-self.dims :])
        else:
            positions = math.prod(output_shape[-self.dims :])
        return positions * taps * self.in_channels * self.out_channels // self.groups

    def with_channels(self, in_channels: int, out_channels: int, *, groups: int) -> "ConvSpec":
        """The same convolution on other channels."""
        return replace(self, in_channels=in_channels, out_channels=out_channels, groups=groups)

    def branches(self, shared: Branches) -> tuple["ConvSpec", ...]:
        """The convolution of each branch, where its groups are shared out to them."""
        sides = zip(shared.slices(self.in_channels), shared.slices(self.out_channels), strict=True)
        return tuple(
            self.with_channels(len(i), len(o), groups=groups)
            for (i, o), groups in zip(sides, shared.groups, strict=True)
        )

    @property
    def type_name(self) -> str:
        """Name of the `torch.nn` class, such as `Conv2d`."""
        return f"Conv{'Transpose' if self.transposed else ''}{self.dims}d"

    def channels(self) -> str:
        """What goes in and out, such as `64->32`."""
        return f"{self.in_channels}->{self.out_channels}"

    def brief(self) -> str:
        """The channels, and the groups if there are several, such as `64->64 /32`."""
        return self.channels() + (f" /{self.groups}" if self.groups > 1 else "")

    def describe(self) -> str:
        """One line, such as `Conv2d 64->64, kernel 3x3, groups 32`."""
        kernel = "x".join(map(str, self.kernel_size))
        groups = f", groups {self.groups}" if self.groups > 1 else ""
        return f"{self.type_name} {self.channels()}, kernel {kernel}{groups}"


def describe_branches(texts: Iterable[str]) -> str:
    """`2 x Conv2d 32->32, kernel 3x3`: the texts of branches, alike ones as one with a count."""
    return " + ".join(f"{number} x {text}" for text, number in Counter(texts).items())


@dataclass(frozen=True)
class LinearSpec(ConvSpec):
    """A linear layer as a convolution without spatial dimensions. Channels are the last axis."""

    @classmethod
    def of(cls, in_features: int, out_features: int, bias: bool) -> "LinearSpec":
        """The fields of such a layer."""
        none = ((),) * 5
        return cls(0, False, in_features, out_features, 1, *none, "zeros", bias)

    def macs(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> int:
        """Multiply-accumulates for one sample: the first axis is the batch."""
        return math.prod(output_shape[1:-1]) * self.in_channels * self.out_channels

    @property
    def type_name(self) -> str:
        """`Linear`."""
        return "Linear"

    def describe(self) -> str:
        """One line, such as `Linear 64->10`."""
        return f"Linear {self.channels()}"


def original_type(module: nn.Module) -> type[nn.Module]:
    """Class of `module` before a parametrisation put a generated subclass in its place."""
    kind = type(module)
    if nn.utils.parametrize.is_parametrized(module):
        return kind.__bases__[0]
    return kind


def is_plain(module: nn.Module) -> bool:
    """Whether `module` computes what its fields say: of torch's own class, forward as it is."""
    own = vars(module).keys() & {"forward", "_conv_forward"}
    return original_type(module) in CONV_TYPES and not own


def has_users_parametrization(module: nn.Module) -> bool:
    """Whether a class of the user's computes a tensor of `module`."""
    parametrized = nn.utils.parametrize.is_parametrized(module)
    held = module._modules["parametrizations"] if parametrized else None
    return held is not None and any(
        not type(each).__module__.startswith("torch.") for each in held.modules()
    )


def written_class(module: nn.Module) -> type[nn.Module]:
    """Class of `module` as it was written: each `GraphModule` has a generated one of its own."""
    kinds = type(module).__mro__
    return next(kind for kind in kinds if not kind.__qualname__.endswith("GraphModuleImpl"))


def spec_of_module(module: nn.Module) -> ConvSpec | None:
    """Fields of a plain convolution module (parametrised or not); None for anything else."""
    found = CONV_TYPES.get(original_type(module))
    if found is None or not isinstance(module, _ConvNd) or not is_plain(module):
        return None
    dims, transposed = found
    return fields_of(module, dims, transposed)


def fields_of(module: _ConvNd, dims: int, transposed: bool) -> ConvSpec:
    """Fields of a convolution module, whatever its class does with them.

    Channels and kernel are those of the weight, which torch's forward reads. It never looks at
    `in_channels`, `out_channels` and `kernel_size`: who prunes a model by putting smaller weights
    into it may leave them as they were.
    """
    rows, columns, *kernel = shape_of_weight(module)
    groups = int(module.groups)  # some configurations are numbers of NumPy's
    padding = module.padding if isinstance(module.padding, str) else sizes(module.padding, dims)
    return ConvSpec(
        dims=dims,
        transposed=transposed,
        in_channels=rows if transposed else columns * groups,
        out_channels=columns * groups if transposed else rows,
        groups=groups,
        kernel_size=tuple(kernel),
        stride=sizes(module.stride, dims),
        padding=padding,
        dilation=sizes(module.dilation, dims),
        output_padding=sizes(module.output_padding, dims),
        padding_mode=module.padding_mode,
        bias=module.bias is not None,
    )


def sizes(value: int | Iterable[int], dims: int) -> tuple[int, ...]:
    """One integer a dimension: an int, or a list of one, counts for all of them."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


def shape_of_weight(module: nn.Module) -> tuple[int, ...]:
    """Shape of the weight of a convolution or a linear layer, as its forward sees it."""
    if not nn.utils.parametrize.is_parametrized(module, "weight"):
        return tuple(module.weight.shape)  # type: ignore[arg-type]
    said = _shape_said(module)
    held: Any = module.parametrizations
    if not held.weight.unsafe and any(
        tuple(tensor.shape) == said for tensor in held.weight.parameters(recurse=False)
    ):
        return said
    # On a copy: a parametrisation may keep count of its calls, as a spectral norm does.
    with torch.no_grad():
        return tuple(copy.deepcopy(held.weight).eval()().shape)


def _shape_said(module: nn.Module) -> tuple[int, ...]:
    """The shape that the weight has by what the module says of itself."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    assert isinstance(module, _ConvNd)
    rows, columns = module.out_channels, module.in_channels
    sides = (columns, rows) if module.transposed else (rows, columns)
    return sides[0], sides[1] // module.groups, *module.kernel_size


def norm_channels(norm: nn.Module) -> int:
    """Channels of a BatchNorm: of its tensors, which its forward reads, where it has any."""
    tensors = (*norm._buffers.values(), *norm._parameters.values())
    held = (len(t) for t in tensors if t is not None and t.dim())
    said: Any = norm.num_features
    return next(held, int(said))


def module_from_spec(spec: ConvSpec) -> nn.Module:
    """A module with the fields of `spec` and no memory for weights (they lie on `meta`)."""
    if isinstance(spec, LinearSpec):
        return nn.Linear(spec.in_channels, spec.out_channels, spec.bias, device="meta")
    types = {fields: kind for kind, fields in CONV_TYPES.items()}
    options: dict[str, Any] = {"output_padding": spec.output_padding} if spec.transposed else {}
    return types[spec.dims, spec.transposed](
        spec.in_channels,
        spec.out_channels,
        spec.kernel_size,
        stride=spec.stride,
        padding=spec.padding,
        dilation=spec.dilation,
        groups=spec.groups,
        bias=spec.bias,
        padding_mode=spec.padding_mode,
        device="meta",
        **options,
    )


def rebuild(
    module: nn.Module, tensors: Mapping[str, torch.Tensor | None], **fields: object
) -> nn.Module:
    """A module of the same class with all fields of `module`, but for `fields` and `tensors`.

    The constructor is not called: what the user set on the module later (a flag, a mode) is a
    field too, and initialising thousands of branches that are overwritten at once would cost
    more than the rewrite. `tensors` names every parameter and buffer of the new module.
    """
    twin = type(module).__new__(type(module))
    for key, value in module.__dict__.items():
        twin.__dict__[key] = _own(value)
    twin.__dict__.update(fields)
    for name in list(twin._parameters):
        twin._parameters[name] = tensors[name]  # type: ignore[assignment]
    for name in list(twin._buffers):
        twin._buffers[name] = tensors[name]
    return twin


def _own(value: object) -> object:
    """What can be changed in place must not be shared; most fields are numbers and tuples."""
    if type(value) in _COPIED:  # `copy.copy` takes 100 times as long of an `OrderedDict`
        return value.copy()  # type: ignore[attr-defined]
    return copy.copy(value) if isinstance(value, (dict, list, set)) else value


def rows_of(tensor: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """A copy of rows `[start, stop)`, a leaf: class, memory format and `requires_grad` kept."""
    rows = tensor.detach()[start:stop].clone(memory_format=torch.preserve_format)
    if isinstance(tensor, nn.Parameter):
        return marked_like(tensor, nn.Parameter(rows, requires_grad=tensor.requires_grad))
    return rows


def marked_like(parameter: torch.Tensor, made: nn.Parameter) -> nn.Parameter:
    """`made`, with the marks of `parameter`, such as of what an optimiser is not to decay."""
    marks = {k: v for k, v in vars(parameter).items() if not isinstance(v, torch.Tensor)}
    vars(made).update(marks)
    return made


BATCHNORMS: dict[type[nn.Module], int] = {
    nn.BatchNorm1d: 1,
    nn.BatchNorm2d: 2,
    nn.BatchNorm3d: 3,
}
