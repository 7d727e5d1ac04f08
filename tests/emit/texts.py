"""Three small models, and the very text that they are written as."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from tests.models import zoo_models as zm


class Small(nn.Module):
    """A bottleneck block, an assertion and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.block = zm.ResNeXtBlock(6, 64, 32)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.size(1) == 6, "wants 6 channels")
        return self.fc(self.block(x).mean((2, 3)))


MODEL = '''\
import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def cut(tensor: Tensor, groups: Sequence[int]) -> list[Tensor]:
    """Copies of the rows of a tensor, in proportion to `groups`; a number goes to each."""
    if not tensor.dim():
        return [tensor.clone() for _ in groups]
    size = len(tensor) // sum(groups)
    return [rows.clone() for rows in tensor.split([size * n for n in groups])]


def in_parts(
    module: nn.Module, groups: Sequence[int], known: dict[Tensor, list[Tensor]]
) -> list[nn.Module]:
    """A convolution or a BatchNorm as several; `known` are the rows of what was cut before."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    parts = [copy.deepcopy(module, {id(t): t for _, t in tensors}) for _ in groups]
    for name, tensor in tensors:
        if tensor not in known:
            known[tensor] = cut(tensor.detach(), groups)
            if isinstance(tensor, nn.Parameter):
                known[tensor] = [nn.Parameter(row, tensor.requires_grad) for row in known[tensor]]
        for part, row in zip(parts, known[tensor], strict=True):
            setattr(part, name, row)
    for part, n in zip(parts, groups, strict=True):
        for name in vars(part).keys() & {"in_channels", "out_channels", "num_features", "groups"}:
            setattr(part, name, getattr(part, name) * n // sum(groups))
    return parts


class Branches(nn.Module):
    """A grouped convolution as several convolutions, each on a slice of the channels."""

    def __init__(self, conv: nn.Module, convs: list[nn.Module], norms: list[nn.Module]) -> None:
        super().__init__()
        # The model's own code may ask the convolution for its fields.
        vars(self).update({k: v for k, v in vars(conv).items() if not k.startswith("_")})
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(norms or [nn.Identity() for _ in convs])
        for c in self.convs:
            c.in_channels = c.weight.shape[0] if c.transposed else c.weight.shape[1] * c.groups

    def forward(self, x: Tensor) -> Tensor:
        parts, start = [], 0
        for conv, norm in zip(self.convs, self.norms):
            stop = start + conv.in_channels
            parts.append(norm(conv(x[:, start:stop])))
            start = stop
        return torch.cat(parts, dim=1)


# Each convolution, the groups of its branches, the BatchNorm that goes along.
SITES = {
    "block.conv2": (Branches, [1] * 32, "block.bn2"),
}
# Where the parts of the tensors of a module lie.
PLACES = {
    **{path: (f"{path}.convs", n) for path, (kind, n, _) in SITES.items() if kind is Branches},
    **{norm: (f"{path}.norms", n) for path, (_, n, norm) in SITES.items() if norm},
}


def to_branches(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict of the original model as one of the rewritten model."""
    new = {}
    for key, tensor in state.items():
        path, _, name = key.rpartition(".")
        if path in PLACES:
            place, groups = PLACES[path]
            new |= {f"{place}.{k}.{name}": part for k, part in enumerate(cut(tensor, groups))}
            continue
        new[key] = tensor
    return new


def from_branches(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back."""
    paths = {place: path for path, (place, _) in PLACES.items()}
    new: dict[str, list[Tensor]] = {}
    for key, tensor in state.items():
        path, _, name = key.rpartition(".")
        path = paths.get(path.rpartition(".")[0], path)
        key = f"{path}.{name}" if path else name
        new.setdefault(key, []).append(tensor)
    return {key: torch.cat(parts) if parts[0].dim() else parts[0] for key, parts in new.items()}


def rewrite(model: nn.Module) -> nn.Module:
    """Change `model` itself, its numbers taken over; returns it."""
    known: dict[Tensor, list[Tensor]] = {}
    for path, (kind, groups, norm) in SITES.items():
        conv = model.get_submodule(path)
        norms = in_parts(model.get_submodule(norm), groups, known) if norm else []
        model.set_submodule(path, kind(conv, in_parts(conv, groups, known), norms))
        if norm:
            model.set_submodule(norm, nn.Identity())
    return model
'''

GRAPH = '''\
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Parts(nn.Module):
    """Holds modules and tensors under their names."""

    def __init__(self, /, **parts: nn.Module | Tensor) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def in_branches(x: Tensor, convs: Sequence[nn.Conv2d], norms: Sequence[nn.Module] = ()) -> Tensor:
    """Each convolution on the next channels of `x`, with the norm behind it, put together."""
    parts, start = [], 0
    for conv in convs:
        stop = start + conv.in_channels
        parts.append(conv(x[:, start:stop]))
        start = stop
    parts = [norm(part) for norm, part in zip(norms, parts, strict=True)] if len(norms) else parts
    return torch.cat(parts, dim=1)


class ResNeXtBlock(Parts):
    """`block`, and what is like it."""

    def forward(self, x):
        y = self.conv1(x)
        y = self.bn1(y)
        y = self.relu(y)
        y = in_branches(y, self.conv2, self.bn2)
        y = self.relu(y)
        y = self.conv3(y)
        y = self.bn3(y)
        y = y + x
        return self.relu(y)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = ResNeXtBlock(
            conv1=nn.Conv2d(6, 64, 1, bias=False),
            bn1=nn.BatchNorm2d(64),
            relu=nn.ReLU(inplace=True),
            conv2=nn.ModuleList([nn.Conv2d(2, 2, 3, padding=1, bias=False) for _ in range(32)]),
            bn2=nn.ModuleList([nn.BatchNorm2d(2) for _ in range(32)]),
            conv3=nn.Conv2d(64, 6, 1, bias=False),
            bn3=nn.BatchNorm2d(6),
        )
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        y = x.size(1)
        y = y == 6
        torch._assert(y, "wants 6 channels")
        x = self.block(x)
        x = x.mean((2, 3))
        return self.fc(x)
'''

FUNCTIONAL = '''\
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def in_slices(
    conv: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: Sequence[int],
    sizes: tuple[int, int, int],
    norms: Sequence[nn.Module] = (),
    **options: object,
) -> Tensor:
    """A convolution for each entry of `groups`, on slices of the input and of what is one weight.

    `sizes` are those of one group: channels of `x`, rows of the weight, rows of the bias.
    """
    parts, start = [], 0
    for n in groups:
        own, rows, offsets = (slice(start * size, (start + n) * size) for size in sizes)
        given = (x[:, own], weight[rows], None if bias is None else bias[offsets])
        parts.append(conv(*given, groups=n, **options))
        start += n
    parts = [norm(part) for norm, part in zip(norms, parts, strict=True)] if len(norms) else parts
    return torch.cat(parts, dim=1)


class MaskedConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(9, 2, 3))
        self.bias = nn.Parameter(torch.zeros(9))
        self.mask = nn.Buffer(torch.zeros(9, 2, 1))

    def forward(self, x):
        y = self.weight * self.mask
        return in_slices(F.conv1d, x, y, self.bias, [1] * 3, (2, 3, 3))
'''


# Model, its inputs, and the file below its docstring.
TEXTS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], str]] = {
    "model": (Small, (torch.ones(2, 6, 5, 5),), MODEL),
    "graph": (lambda: fx.symbolic_trace(Small()), (torch.ones(2, 6, 5, 5),), GRAPH),
    "functional": (zm.MaskedConv, (torch.ones(2, 6, 13),), FUNCTIONAL),
}
