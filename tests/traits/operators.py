"""Traits of autograd functions, of torch.func and of higher-order operators in a forward."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.traits.trait import One, Weighted, grouped, trait


@trait("modules")
class CustomFunctionTrait(One):
    def forward(self, x: Tensor) -> Tensor:
        return DoubledFunction.apply(self.conv(x))


class DoubledFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 3


@trait(
    refused="CustomFunctionInside does not run on an input of shape [2, 6, 7, 11] (TypeError: Module.do",
    counted=None,
)
class CustomFunctionInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        class Doubles(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return DoubledFunction.apply(x)

        self.conv, self.double = grouped(), Doubles()

    def forward(self, x: Tensor) -> Tensor:
        return self.double(self.conv(x))


class ConvAsFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, groups=3)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return (
            nn.grad.conv2d_input(x.shape, weight, gradient, groups=3),
            nn.grad.conv2d_weight(x, weight.shape, gradient, groups=3),
        )


@trait("modules")
class ConvInCustomFunction(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        return ConvAsFunction.apply(x, self.weight)


@trait()
class StraightThrough(One):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + (y.round() - y).detach()


@trait("modules")
class Backward(One):
    """A gradient inside forward."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.conv(x).square().sum()
            return torch.autograd.grad(energy, x, create_graph=self.training)[0]


@trait("modules")
class Vmapped(One):
    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(self.conv)(x[None])[0]


_PER_SAMPLE = (
    "convolution with 6 groups runs here (HERE), made by torch.vmap of samples with a weight each: "
    "call it in a loop over the samples, and not under torch.vmap"
)


@trait("modules", calls=2, left={"convolution": _PER_SAMPLE})
class KernelPerSample(One):
    def forward(self, x: Tensor) -> Tensor:
        kernels = self.conv.weight.mean() + torch.arange(2.0).reshape(2, 1, 1, 1, 1).expand(
            2, 6, 2, 1, 1
        )
        convolved = torch.vmap(lambda x, w: F.conv2d(x[None], w, groups=3)[0])
        return convolved(self.conv(x), kernels)


@trait("modules", left={"convolution": _PER_SAMPLE.replace("6 groups", "2 groups")})
class DenseKernelPerSample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.Parameter(torch.randn(2, 6, 6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(lambda x, w: F.conv2d(x[None], w))(x, self.kernels)[:, 0]


@trait("modules", left={"conv": _PER_SAMPLE})
class LayerPerSample(One):
    def forward(self, x: Tensor) -> Tensor:
        scales = torch.arange(1.0, 3)

        def called(x: Tensor, scale: Tensor) -> Tensor:
            state = {"weight": self.conv.weight * scale, "bias": self.conv.bias * scale}
            return torch.func.functional_call(self.conv, state, (x[None],))[0]

        return torch.vmap(called)(x, scales)


@trait("modules", left=dict.fromkeys(["members.1"], "it is not called in this forward"))
class StackedEnsemble(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList([grouped(), grouped()])

    def forward(self, x: Tensor) -> Tensor:
        state = torch.func.stack_module_state(self.members)
        called = torch.vmap(lambda *s: torch.func.functional_call(self.members[0], s, (x,)))
        return called(*state).sum(0)


@trait("modules")
class FunctionalCall(One):
    def forward(self, x: Tensor) -> Tensor:
        state = {name: value * 2 for name, value in self.conv.named_parameters()}
        return torch.func.functional_call(self.conv, state, (x,))


@trait("modules")
class FunctionalCallOfBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(grouped(), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        state = {name: value * 2 for name, value in self.block.named_parameters()}
        return torch.func.functional_call(self.block, state, (x,))


@trait("modules", counted=3)
class Jvp(One):
    def forward(self, x: Tensor) -> Tensor:
        return torch.func.jvp(self.conv, (x,), (torch.ones_like(x),))[1]


@trait("modules", counted=None)
class Cond(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = grouped(), nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > -1e9, lambda x: self.one(x), lambda x: self.two(x), (x,))


@trait("export", counted=None)
class CondFunctional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 2, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        def yes(x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight, padding=1, groups=3)

        def no(x: Tensor) -> Tensor:
            return x * 2

        return torch.cond(x.sum() > -1e9, yes, no, (x,))


@trait("modules", calls=3, counted=None)
class WhileLoop(One):
    def forward(self, x: Tensor) -> Tensor:
        def more(n: Tensor, x: Tensor) -> Tensor:
            return n < 3

        def step(n: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            return n + 1, self.conv(x)

        return torch._higher_order_ops.while_loop(more, step, (torch.tensor(0), x))[1]


@trait("modules", counted=0)
class RunsThreads(One):
    def forward(self, x: Tensor) -> Tensor:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(self.conv, x).result()


@trait("modules", calls=2)
class Recursive(One):
    def forward(self, x: Tensor, depth: int = 2) -> Tensor:
        return x if depth == 0 else self.forward(self.conv(x), depth - 1)


@trait("modules")
class ImageNetCheck(One):
    """A forward that checks its input with torch._check and numbers of it."""

    def forward(self, x: Tensor) -> Tensor:
        torch._check(x.shape[0] > 0)
        y = self.conv(x)
        return y / float(x.shape[1])


@trait(calls=2)
class ReplacesItself(nn.Module):
    """A model that re-parametrises itself in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = grouped(), grouped()

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.two(x) if True else x


@trait("modules")
class EarlyExit(One):
    def __init__(self) -> None:
        super().__init__()
        self.second = grouped()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if y.abs().max() < 1e9:
            return y
        return self.second(y)


@trait()
class WarnsOnce(One):
    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "warned"):
            self.warned = True
        return self.conv(x)


@trait("modules")
class NumpyInside(One):
    def forward(self, x: Tensor) -> Tensor:
        scale = float(x.detach().double().numpy().std())
        return self.conv(x) * scale


@trait("modules")
class Experts(nn.Module):
    """A mixture of experts, chosen by the data."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 2)
        self.experts = nn.ModuleList([grouped(), nn.Conv2d(6, 6, 1)])

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.gate(x.mean((0, 2, 3))).argmax() * 0
        return self.experts[int(chosen)](x)


@trait(unsaved="the model cannot be written: it has a call of torch._C._sparse._sparse_mm")
class SparseConstant(One):
    """A constant of a trace that has no `torch.equal`."""

    def forward(self, x: Tensor) -> Tensor:
        once = torch.eye(11).to_sparse()
        return torch.sparse.mm(once, self.conv(x).flatten(0, 2).t())


@trait("modules")
class GradientInside(One):
    """`torch.export` leaves the input out of what it makes of this."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.grad(lambda value: self.conv(value).square().sum())(x)
