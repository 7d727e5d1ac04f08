"""Traits of convolutions that an operator runs: under no_grad or autocast, on a condition, again."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.traits.trait import One, Weighted, grouped, image, trait

_HIGHER = torch._higher_order_ops


def exported(model: nn.Module) -> Any:
    """As somebody wrote it to a file."""
    return torch.export.export(model.eval(), (image(),))


class HeadBehind(nn.Module):
    """A grouped convolution that a head follows, which alone is trained in some of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = grouped(), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)


@trait("export", counted=None, fixed=True)
def exported_no_grad() -> Any:
    class Frozen(HeadBehind):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = self.norm(self.conv(x)).relu()
            return self.head(y)

    return exported(Frozen())


@trait("export", counted=None, fixed=True, calls=2)
def exported_no_grad_twice() -> Any:
    """The same layer inside of the region and outside of it."""

    class Twice(One):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = self.conv(x)
            return self.conv(y)

    return exported(Twice())


@trait("export", counted=None, fixed=True)
def exported_decorated_no_grad() -> Any:
    class Encoder(One):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    return exported(nn.Sequential(Encoder(), nn.Conv2d(6, 4, 1)))


@trait("export", counted=None, fixed=True)
def exported_autocast() -> Any:
    class Narrow(HeadBehind):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = self.conv(x)
            return self.head(y.float())

    return exported(Narrow())


@trait("export", counted=None, fixed=True)
def exported_autocast_in_no_grad() -> Any:
    class Both(HeadBehind):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                y = self.conv(x)
            return self.head(y.float())

    return exported(Both())


@trait("export", counted=None, fixed=True)
def exported_checkpoint() -> Any:
    class Spares(HeadBehind):
        def forward(self, x: Tensor) -> Tensor:
            y = checkpoint(lambda x: self.conv(x).relu(), x, use_reentrant=False)
            return self.head(y)

    return exported(Spares())


@trait("export", counted=None, fixed=True)
def exported_cond() -> Any:
    """Grouped in one branch, which runs, and in the other, which does not."""

    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = grouped(), grouped(groups=2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > -1e9, self.one, self.two, (x,))

    return exported(Chooses())


@trait("export", counted=None, fixed=True)
def exported_cond_in_cond() -> Any:
    class Chooses(One):
        def forward(self, x: Tensor) -> Tensor:
            def inner(x: Tensor) -> Tensor:
                return torch.cond(x.max() > -1e9, self.conv, lambda x: x * 2, (x,))

            return torch.cond(x.sum() > -1e9, inner, lambda x: x + 1, (x,))

    return exported(Chooses())


@trait("export", counted=None, fixed=True, calls=3)
def exported_while_loop() -> Any:
    class Repeats(One):
        def forward(self, x: Tensor) -> Tensor:
            def more(n: Tensor, x: Tensor) -> Tensor:
                return n < 3

            def step(n: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
                return n + 1, self.conv(x)

            return _HIGHER.while_loop(more, step, (torch.tensor(0), x))[1]

    return exported(Repeats())


@trait("export", counted=None, calls=1)
class CondComputedWeight(Weighted):
    """A standardised weight in a branch, in a model that nobody has exported."""

    def forward(self, x: Tensor) -> Tensor:
        def yes(x: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(x, weight, self.bias, padding=1, groups=3)

        def no(x: Tensor) -> Tensor:
            return torch.cat([x, x[:, :3]], 1)

        return torch.cond(x.sum() > -1e9, yes, no, (x,))


@trait("export", counted=None, calls=2)
class CondBehindDropout(Weighted):
    """With layers of two modes around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = grouped(), nn.BatchNorm2d(6), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        def yes(x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight, self.bias, padding=1, groups=3)

        def no(x: Tensor) -> Tensor:
            return torch.cat([x, x[:, :3]], 1)

        x = self.drop(self.norm(self.conv(x)))
        return torch.cond(x.sum() > -1e9, yes, no, (x,))
