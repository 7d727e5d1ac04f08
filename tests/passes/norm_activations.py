"""Layers that normalise and activate in one, as libraries write them, and some that do not."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BatchNormAct2d(nn.BatchNorm2d):
    """A subclass of a BatchNorm that reads its mode, asserts, counts and activates (as timm's)."""

    def __init__(self, channels: int, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` to the same."""
        torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D input)")
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            momentum,
            self.eps,
        )
        return self.act(self.drop(x))


class ABN(nn.Module):
    """The four tensors of a BatchNorm, an activation by name, and no counter (as in-place ABN)."""

    def __init__(self, channels: int, activation: str = "leaky_relu") -> None:
        super().__init__()
        self.eps, self.momentum, self.activation = 1e-5, 0.1, activation
        self.activation_param = 0.02
        self.weight = nn.Parameter(torch.rand(channels) + 0.5)
        self.bias = nn.Parameter(torch.randn(channels))
        self.register_buffer("running_mean", torch.randn(channels))
        self.register_buffer("running_var", torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` to the same."""
        x = F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )
        return F.leaky_relu(x, self.activation_param) if self.activation == "leaky_relu" else x


class Scaled(BatchNormAct2d):
    """Wrong: it computes something else than its parts."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` to the same."""
        return super().forward(x) * 1.5


class StatisticsKept(ABN):
    """A BatchNorm of stored statistics in both modes: in train mode it is another function."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` to the same."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class ActFirst(BatchNormAct2d):
    """The activation in front of the norm."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` to the same."""
        return F.batch_norm(
            self.act(x),
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            0.1,
            self.eps,
        )


class Normed(nn.Module):
    """A grouped convolution and its norm."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 10, 3, groups=2, bias=False)
        self.norm = norm
        self.last = nn.Conv2d(10, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 6, H, W]` to `[N, 3, H - 2, W - 2]`."""
        return self.last(self.norm(self.conv(x)))
