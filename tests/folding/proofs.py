"""The identity that each rule states, for every permutation of a small number of channels.

The oracle is torch, on whole numbers in float64 where sums have an order, so that both sides must
be the same.
"""

from collections.abc import Callable, Iterator
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

Identity = Callable[[list[int], list[int]], tuple[Tensor, Tensor]]


def whole(*shape: int) -> Tensor:
    """Whole numbers, the same for the same shape."""
    generator = torch.Generator().manual_seed(sum(k * n for k, n in enumerate(shape, 1)))
    return torch.randint(-5, 6, shape, generator=generator).double()


X, W, B = whole(2, 4, 3, 5), whole(4, 4, 3, 3), whole(4)


def grouped(s: list[int], t: list[int], *, transposed: bool = False) -> tuple[Tensor, Tensor]:
    """`s` and `t` made orders of four channels that keep two groups, and move them alike."""
    inputs, outputs = keeping(s), keeping(t, first=keeping(s)[0] // 2)
    weight = whole(4, 2, 3, 3)
    rows, columns = (inputs, outputs) if transposed else (outputs, inputs)
    parts = [weight[rows[k : k + 2]][:, [c % 2 for c in columns[k : k + 2]]] for k in (0, 2)]
    call = F.conv_transpose2d if transposed else F.conv2d
    made = call(X[:, inputs], torch.cat(parts), B[outputs], groups=2)
    return made, call(X, weight, B, groups=2)[:, outputs]


def keeping(s: list[int], first: int | None = None) -> list[int]:
    """The order nearest to `s` with two whole groups of two channels, or with `first` in front."""
    lead = s[0] // 2 if first is None else first
    return [c for c in s if c // 2 == lead] + [c for c in s if c // 2 != lead]


def blocks(s: list[int], size: int, outer: int = 1) -> list[int]:
    """Each channel of `s` as `size` positions inside, `outer` times."""
    return [o * len(s) * size + c * size + k for o in range(outer) for c in s for k in range(size)]


def _pick(x: Tensor, p: list[int], s: list[int], t: list[int]) -> tuple[Tensor, Tensor]:
    """A gather p between orders s and t reads position `s^-1[p[t]]`."""
    place = [s.index(p[c]) for c in t]
    return x[:, s][:, place], x[:, p][:, t]


def _heads(s: list[int], t: list[int]) -> tuple[Tensor, Tensor]:
    """Two heads of two channels: q and k in one order, v in another with the same heads."""
    inner, outer = keeping(s), keeping(t, first=keeping(s)[0] // 2)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (2, 2)).transpose(1, 2) for x in (q, k, v))
        return (q @ k.mT @ v).transpose(1, 2).flatten(2)

    q, k, v = X[..., 0].mT, X[..., 1].mT, X[..., 2].mT
    return attend(q[..., inner], k[..., inner], v[..., outer]), attend(q, k, v)[..., outer]


PROOFS: dict[str, Identity] = {
    "barrier": lambda s, t: (X[:, s][:, [s.index(c) for c in range(4)]].cumsum(1), X.cumsum(1)),
    "size": lambda s, t: (torch.tensor(X[:, s].shape), torch.tensor(X.shape)),
    "elementwise": lambda s, t: (F.avg_pool2d(X[:, s], 2), F.avg_pool2d(X, 2)[:, s]),
    "normalise": lambda s, t: (X[:, s].sum(1, keepdim=True) * X[:, s], (X.sum(1, True) * X)[:, s]),
    "reduce": lambda s, t: (X[:, s].sum(1), X.sum(1)),
    "binary": lambda s, t: (X[:, s] * B[s].view(1, 4, 1, 1), (X * B.view(4, 1, 1))[:, s]),
    "per channel": lambda s, t: (
        F.batch_norm(X[:, s], B[s], B[s] ** 2 + 1, B[s], B[s]),
        F.batch_norm(X, B, B**2 + 1, B, B)[:, s],
    ),
    "prelu": lambda s, t: (F.prelu(X[:, s], B[s]), F.prelu(X, B)[:, s]),
    "layer norm": lambda s, t: (
        (X[:, s] - X[:, s].sum(1, True)) * B[s].view(4, 1, 1),
        ((X - X.sum(1, True)) * B.view(4, 1, 1))[:, s],
    ),
    "group norm": lambda s, t: (
        X[:, keeping(s)].view(2, 2, 2, 3, 5).sum((2, 3, 4)),
        X.view(2, 2, 2, 3, 5).sum((2, 3, 4))[:, [keeping(s)[0] // 2, keeping(s)[2] // 2]],
    ),
    "convolution": lambda s, t: (
        torch.cat([F.conv2d(X[:, s], W[t][:, s], B[t]).ravel(),
                   F.conv_transpose2d(X[:, s], W[s][:, t], B[t]).ravel()]),
        torch.cat([F.conv2d(X, W, B)[:, t].ravel(), F.conv_transpose2d(X, W, B)[:, t].ravel()]),
    ),
    "depthwise": lambda s, t: (
        F.conv2d(X[:, s], W[s, :1], B[s], groups=4), F.conv2d(X, W[:, :1], B, groups=4)[:, s]
    ),
    "grouped": lambda s, t: (
        torch.cat([grouped(s, t)[0].ravel(), grouped(s, t, transposed=True)[0].ravel()]),
        torch.cat([grouped(s, t)[1].ravel(), grouped(s, t, transposed=True)[1].ravel()]),
    ),
    "linear": lambda s, t: (
        F.linear(X.mT.transpose(1, 3)[..., s], W[t][:, s, 0, 0], B[t]),
        F.linear(X.mT.transpose(1, 3), W[..., 0, 0], B)[..., t],
    ),
    "constant": lambda s, t: (
        B[s].view(1, 4, 1).expand(2, 4, 3), B.view(1, 4, 1).expand(2, 4, 3)[:, s]
    ),
    "concat": lambda s, t: (
        torch.cat([X[:, s], X[:, t]], 1), torch.cat([X, X], 1)[:, [*s, *(4 + c for c in t)]]
    ),
    "select": lambda s, t: _pick(X, [2, 0, 0, 3], s, t),
    "pick": lambda s, t: (X.view(2, 2, 2, 3, 5)[:, :, 1], X[:, [1, 3]]),
    "quantize": lambda s, t: (
        torch.fake_quantize_per_channel_affine(X[:, s].float(), W[s, 0, 0, 0].abs().float() + 1,
                                               torch.tensor(s).int(), 1, -8, 7),
        torch.fake_quantize_per_channel_affine(X.float(), W[:, 0, 0, 0].abs().float() + 1,
                                               torch.arange(4).int(), 1, -8, 7)[:, s],
    ),
    "product": lambda s, t: (
        X[..., 0].mT[..., s] @ X[..., 1][:, s] @ X[..., 2].mT[..., t],
        (X[..., 0].mT @ X[..., 1] @ X[..., 2].mT)[..., t],
    ),
    "attention": lambda s, t: _heads(s, t),
    "attention layer": lambda s, t: (
        (X[..., 0].mT[..., s] @ W[:, s, 0, 0].mT) @ W[t][..., 1, 1].mT,
        ((X[..., 0].mT @ W[..., 0, 0].mT) @ W[..., 1, 1].mT)[..., t],
    ),
    "transpose": lambda s, t: (X[:, s].permute(0, 2, 1, 3), X.permute(0, 2, 1, 3)[:, :, s]),
    "reshape": lambda s, t: (
        torch.cat([X[:, s].flatten(1), X[:, s].permute(0, 2, 3, 1).flatten(1)], 1),
        torch.cat([X.flatten(1)[:, blocks(s, 15)],
                   X.permute(0, 2, 3, 1).flatten(1)[:, blocks(s, 1, outer=15)]], 1),
    ),
    "pixel shuffle": lambda s, t: (
        F.pixel_shuffle(whole(2, 16, 3, 5)[:, blocks(s, 4)], 2),
        F.pixel_shuffle(whole(2, 16, 3, 5), 2)[:, s],
    ),
}  # fmt: skip


def orders() -> Iterator[tuple[list[int], list[int]]]:
    """Every order of four channels, with another one."""
    every = [list(order) for order in permutations(range(4))]
    for place, order in enumerate(every):
        yield order, every[(7 * place + 5) % len(every)]
