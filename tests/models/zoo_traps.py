"""Models whose forward a symbolic trace refuses, or records as something else without an error."""

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class ReadsTraining(nn.Module):
    """A second grouped conv that runs in train mode only, as an auxiliary head does."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(6, 10, 3, groups=2)
        self.aux = nn.Conv2d(10, 15, 1, groups=5)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.body(x))
        if self.training:
            return x, self.aux(x)
        return x


class FunctionalDropout(nn.Module):
    """`F.dropout` reads `self.training`: a trace in eval mode never drops again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 9, 3, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.conv(x), 0.5, self.training)


class DrawsRandom(nn.Module):
    """A Python random number: the same seed gives the same output, another seed another."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 10, 3, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * (1 + random.random())


class ReadsGradMode(nn.Module):
    """The output depends on whether gradients are recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 9, 5, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + 1 if torch.is_grad_enabled() else y


class Round(torch.autograd.Function):
    """Rounds to quarters; the gradient goes straight through (the true one is 0)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Rounding(nn.Module):
    """A small module around a custom `autograd.Function`: it can stay a leaf of a trace."""

    def forward(self, x: Tensor) -> Tensor:
        return Round.apply(x)


class RoundedNet(nn.Module):
    """A grouped conv on each side of a module with a custom backward."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(6, 10, 3, groups=2)
        self.rounding = Rounding()
        self.b = nn.Conv1d(10, 15, 3, groups=5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.rounding(self.a(x)))


class RoundedRoot(nn.Module):
    """The custom backward is called by the model itself, which cannot be a leaf."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 9, 3, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        return Round.apply(self.conv(x))


class OptionalMask(nn.Module):
    """A trace takes `mask` for a value that is never None, and multiplies by it ever after."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 10, 3, padding=1, groups=2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        if mask is not None:
            y = y * mask
        return torch.tanh(y)


class BranchesOnData(nn.Module):
    """The values of the input decide which grouped conv is called."""

    def __init__(self) -> None:
        super().__init__()
        self.warm = nn.Conv2d(6, 10, 3, groups=2)
        self.cold = nn.Conv2d(6, 10, (1, 5), groups=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:
            return self.warm(x)
        return self.cold(x)


class BranchesOnShape(nn.Module):
    """A functional grouped conv behind a question that only an export can answer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9, 2, 3, 2))
        self.conv = nn.Conv2d(9, 6, 1, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != 6:
            raise ValueError("wants [N, 6, H, W]")
        y = F.conv2d(x, self.weight, groups=3)
        if y.shape[2] > y.shape[3]:
            y = y.transpose(2, 3)
        return self.conv(y)


class ReadsFields(nn.Module):
    """Control flow, and a forward that reads fields of the grouped conv, not only its output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 9, 3, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.conv.in_channels:
            raise ValueError("wants [N, 6, L]")
        y = self.conv(x.to(self.conv.weight.dtype))
        return y.reshape(y.shape[0], self.conv.groups, -1).softmax(1)


class FrozenPart(nn.Module):
    """A trace loses the `no_grad`, and the frozen conv gets gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Conv1d(6, 10, 3, groups=2)
        self.head = nn.Conv1d(10, 15, 3, groups=5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.frozen(x)
        return self.head(x)


class LowPrecisionPart(nn.Module):
    """A trace loses the `autocast`, and computes in another precision."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 10, 3, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.conv(x)
        return x.float()


class Checkpointed(nn.Module):
    """A grouped conv that is run again in the backward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 9, 3, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.conv, x, use_reentrant=False)


class CountsCalls(nn.Module):
    """A buffer that each call changes, and that the output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 9, 3, groups=3)
        self.register_buffer("calls", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(x) / self.calls


class CountsCallsInPlace(CountsCalls):
    """The same without an assignment: nothing uses the result, so that it looks like dead code."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x) / self.calls.clone()
        self.calls.add_(1)
        return y


class Asserts(nn.Module):
    """Python asserts on traced values: two of one statement, and a negated one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 4 and x.size(1) % 3 == 0, "channels"  # noqa: PT018
        assert not x.size(2) == 1  # noqa: SIM201
        return self.conv(x)
