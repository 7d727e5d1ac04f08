"""Traits of weights that a module holds and a function reads, and of what has no float64 kernel."""

from collections import namedtuple
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.traits.trait import trait


class LentWeight(nn.Module):
    """A module that only holds the weight, as the convolutions of state space models do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 6, 3, groups=6)


@trait("modules", example=lambda: torch.randn(2, 6, 11))
class LendsItsWeight(LentWeight):
    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return F.conv1d(x, self.conv.weight, self.conv.bias, groups=6)


@trait("modules", example=lambda: torch.randn(2, 6, 11))
class LendsAViewOfIt(LentWeight):
    def forward(self, x: Tensor, **_: Any) -> Tensor:
        weight = self.conv.weight.squeeze(1)
        return F.conv1d(x, weight.unsqueeze(1), None, groups=x.shape[1])


@trait("modules", calls=2, example=lambda: torch.randn(2, 6, 11))
class CalledAndLent(LentWeight):
    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return self.conv(x) + F.conv1d(x, self.conv.weight, groups=6)


class Float32Product(torch.autograd.Function):
    """Has no kernel in float64, as grouped products of matrices have none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise RuntimeError(f"expected Float32, got {x.dtype}")
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


@trait("modules", example=lambda: torch.tensor([[1, 4, 2, 0, 3], [3, 3, 1, 2, 4]]))
class Float32TokensOnly(LentWeight):
    """Given no floating input that would say what it computes in."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 6)

    def forward(self, ids: Tensor) -> Tensor:
        return Float32Product.apply(self.conv(self.embed(ids).transpose(1, 2)))


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 6, 3, groups=3)


@trait("modules", example=lambda: torch.randn(2, 6, 11))
class LentAnotherWeight(OneLayer):
    """As meta-learning and ensembles call a layer: with parameters that are not its own."""

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        other = {"weight": self.conv.weight * 2}
        return torch.func.functional_call(self.conv, other, (x,))


@trait("modules", calls=2, example=lambda: torch.randn(2, 6, 11))
class LentAnotherWeightOnce(OneLayer):
    def forward(self, x: Tensor, **_: Any) -> Tensor:
        other = {name: value + 1 for name, value in self.conv.named_parameters()}
        return self.conv(x) + torch.func.functional_call(self.conv, other, (x,))


@trait("modules", example=lambda: torch.randn(2, 6, 11))
class NamedTupleOfEachCall(OneLayer):
    def forward(self, x: Tensor, **_: Any) -> Any:
        made = namedtuple("made", "y x")
        return made(self.conv(x), x)
