"""Code that emitted files hold: containers, layers that a rewrite puts in, and their state.

A file takes of it what it needs. Everything here is plain torch.
"""

from __future__ import annotations

from ..nn import ChannelGather, ChannelShuffle, ChannelTranspose, ConstantChannels

# In the user's own model

PART = '''\
def cut(tensor: Tensor, groups: Sequence[int]) -> Sequence[Tensor]:
    """The rows of a tensor, shared out in proportion to `groups`; a number goes to each."""
    if not tensor.dim():
        return [tensor] * len(groups)
    return tensor.split([len(tensor) * n // sum(groups) for n in groups])


def part(module: nn.Module, k: int, groups: Sequence[int]) -> nn.Module:
    """The k-th part of a convolution or a BatchNorm, with its rows of the tensors."""
    new = copy.deepcopy(module)
    for name, tensor in module.named_parameters():
        rows = cut(tensor.detach(), groups)[k].clone()
        setattr(new, name, nn.Parameter(rows, tensor.requires_grad))
    for name, tensor in module.named_buffers():
        setattr(new, name, cut(tensor, groups)[k].clone())
    for name in ("in_channels", "out_channels", "num_features", "groups"):
        if hasattr(new, name):
            setattr(new, name, getattr(new, name) * groups[k] // sum(groups))
    return new
'''

BRANCHES = '''\
class Branches(nn.Module):
    """A grouped convolution as several convolutions, each on a slice of the channels."""

    def __init__(
        self, conv: nn.Module, groups: Sequence[int], norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        # The model's own code may ask the convolution for its fields.
        vars(self).update({k: v for k, v in vars(conv).items() if not k.startswith("_")})
        count = range(len(groups))
        self.convs = nn.ModuleList([part(conv, k, groups) for k in count])
        self.norms = nn.ModuleList([part(norm, k, groups) for k in count if norm])
        self.widths = [
            c.weight.shape[0] if c.transposed else c.weight.shape[1] * c.groups for c in self.convs
        ]

    def forward(self, x: Tensor{more}) -> Tensor:
        parts, start = [], 0
        for k, (conv, width) in enumerate(zip(self.convs, self.widths)):
            y = conv(x[:, start : start + width]{given})
            parts.append(self.norms[k](y) if self.norms else y)
            start += width
        return torch.cat(parts, dim=1)
'''

# What a transposed convolution is called with beside the input: an output size.
SIZE = ", *size: object, **named: object"

TENSORS = """\

    @property
    def weight(self) -> Tensor:
        return torch.cat([conv.weight for conv in self.convs])

    @property
    def bias(self) -> Tensor | None:
        parts = [conv.bias for conv in self.convs]
        return None if parts[0] is None else torch.cat(parts)
"""

SLICED = '''\
class Sliced(nn.Module):
    """A grouped convolution whose weight stays whole, as it is computed or shared: it is sliced."""

    def __init__(
        self, conv: nn.Module, groups: Sequence[int], norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        vars(self).update(vars(conv))  # its tensors, fields and hooks, under their names
        if norm is not None:
            self.norms = nn.ModuleList([part(norm, k, groups) for k in range(len(groups))])
'''

# Lines that end in `#s` are for convolutions that were split, those in `#f` for frozen layers,
# those in `#n` for modules with several names.
REWRITE = '''\
# Where the parts of the tensors of a module lie.  #s
PLACES = {  #s
    **{path: (f"{path}.convs", n) for path, (kind, n, _) in SITES.items() if kind is Branches},  #s
    **{norm: (f"{path}.norms", n) for path, (_, n, norm) in SITES.items() if norm},  #s
}  #s
PLACES |= {  #n
    path: (f"{path}.convs", PLACES[first][1])  #n
    for path, first in NAMES.items()  #n
    if first in PLACES  #n
}  #n


def to_branches(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict of the original model as one of the rewritten model."""
    new = {}
    for place, (source, names, rows, columns) in PICKED.items():  #f
        for name in names.split():  #f
            tensor = state[f"{source}.{name}"]  #f
            tensor = tensor[rows] if tensor.dim() else tensor.clone()  #f
            if columns and tensor.dim() > 1:  #f
                parts = zip(tensor.chunk(len(columns)), columns)  #f
                tensor = torch.cat([part[:, chosen] for part, chosen in parts])  #f
            new[f"{place}.{name}"] = tensor  #f
    for key, tensor in state.items():
        if key in GONE:  #f
            continue  #f
        path, _, name = key.rpartition(".")  #s
        if path in PLACES:  #s
            place, groups = PLACES[path]  #s
            parts = enumerate(cut(tensor, groups))  #s
            new |= {f"{place}.{k}.{name}": part.clone() for k, part in parts}  #s
            continue  #s
        new[key] = tensor
    return new


def from_branches(state: dict[str, Tensor], original: dict[str, Tensor]) -> dict[str, Tensor]:  #f
    """The way back; `original` brings the groups, and the numbers that a mask hides."""  #f
def from_branches(state: dict[str, Tensor]) -> dict[str, Tensor]:  #o
    """The way back."""  #o
    paths = {place: path for path, (place, _) in PLACES.items()}  #s
    new: dict[str, list[Tensor]] = {}
    for key, tensor in state.items():
        place, _, name = key.rpartition(".")
        if place in PICKED:  #f
            continue  #f
        place = place.rpartition(".")[0]  #s
        key = f"{paths[place]}.{name}" if place in paths else key  #s
        new.setdefault(key, []).append(tensor)
    whole = {key: torch.cat(parts) if parts[0].dim() else parts[0] for key, parts in new.items()}
    whole |= {key: original[key].clone() for key in GONE}  #f
    for place, (source, names, rows, columns) in PICKED.items():  #f
        for name in names.split():  #f
            old, tensor = whole[f"{source}.{name}"], state[f"{place}.{name}"]  #f
            if columns and tensor.dim() > 1:  #f
                at = torch.tensor(rows).chunk(len(columns))  #f
                for where, part, chosen in zip(at, tensor.chunk(len(columns)), columns):  #f
                    old[where[:, None], chosen] = part  #f
            else:  #f
                old[rows if old.dim() else ...] = tensor  #f
    return whole


def rewrite(model: nn.Module) -> nn.Module:
    """Change `model` itself, its numbers taken over; returns it."""
    state = model.state_dict()  #f
    for path, (make, norm) in FROZEN.items():  #f
        old = model.get_submodule(path)  #f
        like = next(old.parameters())  #f
        new = make().to(like).requires_grad_(like.requires_grad).train(old.training)  #f
        model.set_submodule(path, new)  #f
        if norm:  #f
            model.set_submodule(norm, nn.Identity())  #f
    for path, (kind, groups, norm) in SITES.items():  #s
        moved = [model.get_submodule(norm)] if norm else []  #s
        model.set_submodule(path, kind(model.get_submodule(path), groups, *moved))  #s
        if norm:  #s
            model.set_submodule(norm, nn.Identity())  #s
    for path, first in NAMES.items():  #n
        model.set_submodule(path, model.get_submodule(first))  #n
    model.load_state_dict(to_branches(state))  #f
'''

# In a graph, and in frozen layers

PARTS = '''\
class Parts(nn.Module):
    """Holds modules and tensors under their names."""

    def __init__(self, /, **parts: nn.Module | Tensor) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
'''

BLOCKS = '''\
class Blocks(Parts):
    """Convolutions side by side, each on the next channels of the input, with norms behind them."""

    def forward(self, x: Tensor, norms: Sequence[nn.Module] = ()) -> Tensor:
        x = self.input_gather(x) if hasattr(self, "input_gather") else x
        norms = getattr(self, "norms", norms)
        parts, start = [], 0
        for conv in self.convs:
            parts.append(conv(x[:, start : start + conv.in_channels]))
            start += conv.in_channels
        if hasattr(self, "constants"):
            parts.append(self.constants(parts[0]))
        parts = [norm(part) for norm, part in zip(norms, parts)] if len(norms) else parts
        y = torch.cat(parts, dim=1)
        return self.output_gather(y) if hasattr(self, "output_gather") else y
'''

# What a rewrite puts into a model, as the classes of a file that stands alone.
LAYERS = {
    ChannelGather: '''\
class ChannelGather(nn.Module):
    """Channels in another order; some may be left out, or be there several times."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.register_buffer("channels", torch.tensor(channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.channels)
''',
    ChannelShuffle: '''\
class ChannelShuffle(nn.Module):
    """Channels laid out as (groups, n) in the order (n, groups)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
''',
    ChannelTranspose: '''\
class ChannelTranspose(nn.Module):
    """Channels laid out as `shape`, with their axes in another order."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.axes = shape, axes

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, self.shape)
        last = len(self.shape)
        order = [0, *(1 + axis for axis in self.axes), *range(last + 1, x.dim())]
        return x.permute(order).flatten(1, last)
''',
    ConstantChannels: '''\
class ConstantChannels(nn.Module):
    """Channels that hold one number each, for the batch and the size of another tensor."""

    def __init__(self, channels: int, bias: bool = True) -> None:
        super().__init__()
        zeros = torch.zeros(channels)
        if bias:
            self.bias = nn.Parameter(zeros)
        else:
            self.register_buffer("bias", zeros, persistent=False)

    def forward(self, like: Tensor) -> Tensor:
        y = self.bias.reshape(1, -1, *[1] * (like.dim() - 2)).to(like.dtype)
        return y.expand(like.shape[0], -1, *like.shape[2:])
''',
}
MASKED_LAYER = '''\
class Masked{kind}(nn.{kind}):
    """A convolution whose weight is 0 where the mask is, and stays so in training."""

    def masked(self, mask: Tensor) -> "Masked{kind}":
        self.register_buffer("mask", mask, persistent=False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        mask = self.mask.reshape(*self.mask.shape, *[1] * (self.weight.dim() - 2))
        return self._conv_forward(x, self.weight * mask, self.bias)
'''

FIXED = '''\
def fixed(module: nn.Module) -> nn.Module:
    """The parameters of a layer as buffers: they are stored, and not trained."""
    for name, parameter in list(module.named_parameters()):
        delattr(module, name)
        module.register_buffer(name, parameter.detach())
    return module
'''
