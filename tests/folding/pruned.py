"""Small models with channels that nothing reads: columns of weights are zero, or groups empty.

Each comes with how many filters and inputs must go, counted by hand.
"""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

INPUT = (2, 3, 5, 5)


def without(conv: nn.Module, inputs: Sequence[int]) -> None:
    """Let a dense convolution read nothing of these inputs."""
    with torch.no_grad():
        conv.weight[:, list(inputs)] = 0  # type: ignore[index, operator]


class PrunedChain(nn.Module):
    """conv -> norm -> depthwise -> conv -> conv.

    The last reads neither 0 nor 9, and input 5 of the one before is read for 0 alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.middle, self.last = nn.Conv2d(8, 10, 1), nn.Conv2d(10, 5, 1)
        without(self.middle, (1, 4, 5))
        without(self.last, (0, 9))
        with torch.no_grad():
            self.middle.weight[0, 5] = 1

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.depthwise(torch.relu(self.norm(self.first(x)))))
        return self.last(torch.relu(self.middle(y)))


class PrunedGroups(nn.Module):
    """Outputs 2 and 3 of four groups are not read: a group goes. So does an input of each other."""

    def __init__(self, kind: type[nn.Conv2d] | type[nn.ConvTranspose2d] = nn.Conv2d) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.grouped = kind(12, 8, 3, padding=1, groups=4)
        self.norm, self.last = nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1)
        without(self.last, (0, 2, 3))
        with torch.no_grad():
            weight = self.grouped.weight
            if kind is nn.Conv2d:
                weight[:, 1] = 0
            else:
                weight[1::3] = 0

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.grouped(torch.relu(self.first(x)))))
        return self.last(y)


class PrunedFlat(nn.Module):
    """conv -> transposed conv -> one of the ways to flatten -> linear."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.up = nn.Conv2d(3, 6, 3, padding=1), nn.ConvTranspose2d(6, 7, 2)
        self.last = nn.Linear(7 * 6 * 6, 4)
        with torch.no_grad():
            self.last.weight.view(4, 7, 36)[:, [2, 5]] = 0
            self.up.weight[3] = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(torch.relu(self.first(x)))
        if self.how == "flatten":
            y = torch.flatten(y, 1)
        elif self.how == "view":
            y = y.view(y.size(0), -1)
        elif self.how == "explicit":
            y = y.reshape(-1, 252)
        else:
            y = y.reshape(y.shape[0], 252)
        return self.last(y)


class PrunedStream(nn.Module):
    """A residual stream with a gate, of which nobody reads 1 and 6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(2))
        self.norm, self.last = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        for conv in (*self.blocks, self.last, self.down):
            without(conv, (1, 6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for block in self.blocks:
            y = y + block(torch.relu(y))
        y = self.norm(y)
        gate = self.up(torch.relu(self.down(y.mean((2, 3), keepdim=True))))
        return self.last(y * gate.sigmoid())


class PrunedParts(nn.Module):
    """A concatenation, and a split, each with dead channels in both parts."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 5, 1)
        self.middle = nn.Conv2d(11, 9, 1)
        self.upper, self.lower = nn.Conv2d(4, 4, 1), nn.Conv2d(5, 4, 1)
        without(self.middle, (0, 7))
        without(self.upper, (1,))
        without(self.lower, (3,))

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(torch.relu(torch.cat([self.left(x), self.right(x)], 1)))
        upper, lower = torch.split(y, [4, 5], 1)
        return self.upper(torch.relu(upper)) + self.lower(lower)


class ReadByTwo(nn.Module):
    """Two readers of one tensor: only what neither reads may go."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.one, self.other = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 6, 1, groups=2)
        without(self.one, (0, 1, 2, 7))
        with torch.no_grad():
            self.other.weight[:3, 1:3] = 0
            self.other.weight[3:, 3] = 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.first(x)
        return self.one(torch.relu(y)), self.other(y)


def randomised(model: nn.Module) -> nn.Module:
    """`model` in eval mode, its BatchNorms as after a training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in chain(module.parameters(), module.buffers()):
                if tensor.is_floating_point():
                    tensor.data.uniform_(0.5, 1.5)
    return model.eval()


def pruned() -> dict[str, tuple[nn.Module, int, int]]:
    """Name -> model, filters that go, inputs that go."""
    found: dict[str, tuple[nn.Module, int, int]] = {
        "chain": (PrunedChain(), 3 + 3 + 2, 3 + 2),
        "grouped": (PrunedGroups(), 6 + 2, 1 * 6 + 2),
        "transposed grouped": (PrunedGroups(nn.ConvTranspose2d), 6 + 2, 1 * 6 + 2),
        "stream": (PrunedStream(), 4 * 2, 4 * 2),
        "parts": (PrunedParts(), 1 + 1 + 2, 2 + 2),
        # Input 1 goes; the grouped convolution keeps three of each group, 0 is kept for it.
        "read twice": (ReadByTwo(), 2, 2 + 2),
    }
    flat = {f"flat by {how}": PrunedFlat(how) for how in ("flatten", "view", "explicit", "shape")}
    found |= {name: (model, 1 + 2, 1 + 2 * 36) for name, model in flat.items()}
    return {name: (randomised(model), *counts) for name, (model, *counts) in found.items()}
