"""Traits of control flow, of modes and of contexts in a forward."""

import contextlib
import functools
import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from tests.traits.trait import One, Weighted, grouped, trait


@trait("modules")
class BranchOnValue(One):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > -1e9 else x


@trait("modules")
class BranchOnShape(One):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] > 3:
            x = x * 2
        return self.conv(x)


@trait("modules")
class PaddingByParity(One):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2:
            x = F.pad(x, (0, 1))
        return self.conv(x)


@trait("modules", calls=3)
class LoopOverShape(One):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(x.shape[1] // 2):
            x = self.conv(x)
        return x


@trait("modules")
class LoopOverBatch(One):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.stack([row * number for number, row in enumerate(y, 1)])


@trait("modules", calls=2)
class WhileOnValue(One):
    def forward(self, x: Tensor) -> Tensor:
        count = 0
        while count < 2 and x.abs().sum() > 0:
            x, count = self.conv(x), count + 1
        return x


@trait()
class TryOnShape(One):
    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.conv(x).view(2, -1)
        except RuntimeError:
            return self.conv(x).flatten(1)


@trait("modules")
class TryOnValue(One):
    def forward(self, x: Tensor) -> Tensor:
        try:
            size = int(x.shape[-1])
        except TypeError:
            size = 1
        return self.conv(x) / size


@trait()
class IsInstance(One):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * 2 if isinstance(self.conv, nn.Conv2d) else y


@trait("modules")
class IsInstanceTensor(One):
    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Tensor):
            x = x * 2
        return self.conv(x)


@trait("modules")
class TypeName(One):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * len(type(x).__name__)


@trait("modules")
class ReadsTrainingTrait(One):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * 2 if self.training else y


@trait("modules")
class FunctionalReadsTraining(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.weight, self.bias, groups=3)
        return y * 2 if self.training else y


@trait("modules")
class FunctionalDropoutTrait(One):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.conv(x), 0.5, training=self.training)


@trait("modules")
class FunctionalBatchNorm(One):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(6))
        self.register_buffer("var", torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(self.conv(x), self.mean, self.var, training=self.training)


@trait("modules")
class DropPath(One):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.training and random.random() < 0.5:
            return x
        return x + y


@trait("modules", calls=2)
class LayerDrop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([grouped(), grouped()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if not self.training or torch.rand(()) > 0.1:
                x = layer(x)
        return x


@trait("modules")
class ReadsGradModeTrait(One):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y if torch.is_grad_enabled() else y.detach()


@trait("modules")
class NoGradPart(One):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.abs().mean()
        return self.conv(x / scale)


@trait("modules")
class ConvUnderNoGrad(One):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.conv(x)
        return self.head(y)


@trait("modules")
class DecoratedNoGrad(One):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@trait("modules", counted=0)
class DecoratedInference(One):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@trait("modules")
class AutocastPart(One):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.conv(x)
        return y.float()


@trait()
class AutocastOff(One):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.conv(x.float())


@trait("modules")
class DecoratedAutocast(One):
    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@trait()
class OwnContext(One):
    @contextlib.contextmanager
    def scaled(self) -> Any:
        self.scale = 2.0
        yield
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        with self.scaled():
            return self.conv(x) * self.scale


@trait()
class ProfiledPart(One):
    def forward(self, x: Tensor) -> Tensor:
        with torch.profiler.record_function("part"):
            return self.conv(x)


@trait()
class CheckpointedTrait(One):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.conv, x, use_reentrant=False)


@trait("modules")
class CheckpointedReentrant(One):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.conv, x, use_reentrant=True)


@trait(calls=2)
class CheckpointedSequential(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(grouped(), nn.ReLU(), grouped(), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint_sequential(self.parts, 2, x, use_reentrant=False)


@trait()
class CheckpointedInTraining(One):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return checkpoint(self.conv, x, use_reentrant=False)
        return self.conv(x)


@trait()
class AssertsTrait(One):
    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 4, "an image"
        assert x.shape[1] == 6
        return self.conv(x)


@trait("modules")
class RaisesTrait(One):
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise ValueError(f"an image has 4 axes, not {x.dim()}")
        return self.conv(x)


@trait("modules")
class Prints(One):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.seen = f"{y.shape}"
        return y


@trait("modules")
class CountsCallsTrait(One):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.conv(x)


@trait("modules")
class BufferCounts(One):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.conv(x) * self.count


@trait("modules")
class BufferReplaced(One):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(2, 6, 7, 11))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x) + self.last
        self.last = y.detach()
        return y


@trait("modules")
class CachesByShape(One):
    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[Any, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        key = tuple(x.shape[-2:])
        if key not in self.cache:
            self.cache[key] = torch.ones(key)
        return self.conv(x) + self.cache[key]


@trait()
class AppendsToList(One):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.seen.append(y.shape)
        return y


@trait("modules")
class LruCached(One):
    @functools.lru_cache(maxsize=4)  # noqa: B019 - as people write it
    def grid(self, height: int, width: int) -> Tensor:
        return torch.ones(height, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.grid(x.shape[-2], x.shape[-1])


@trait("modules")
class FreezesInTraining(One):
    """No gradient in train mode: an encoder that is not trained."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.training):
            return self.conv(x) + 0 * x


class TwoBranches(nn.Module):
    """Two convolutions, of which forward calls the second while somebody looks on."""

    def __init__(self) -> None:
        super().__init__()
        self.alone, self.watched = grouped(), grouped(groups=2)

    def looked_at(self, x: Tensor) -> bool:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.watched(x) if self.looked_at(x) else self.alone(x)


_NOT_CALLED = "it is not called in this forward"


@trait("modules", left={"watched": _NOT_CALLED})
class AsksForFunctionModes(TwoBranches):
    def looked_at(self, x: Tensor) -> bool:
        return torch.overrides.has_torch_function((x,))


@trait("modules", left={"watched": _NOT_CALLED})
class AsksForTheModeItself(TwoBranches):
    def looked_at(self, x: Tensor) -> bool:
        return torch._C._is_torch_function_mode_enabled()


@trait("modules")
class AsksForTheClass(TwoBranches):
    def looked_at(self, x: Tensor) -> bool:
        return type(x) is not torch.Tensor


@trait("modules")
class AsksForProxy(TwoBranches):
    def looked_at(self, x: Tensor) -> bool:
        return isinstance(x, torch.fx.Proxy)


@trait(left={"watched": _NOT_CALLED})
class AsksForTracing(TwoBranches):
    def looked_at(self, x: Tensor) -> bool:
        return torch.jit.is_tracing() or torch.compiler.is_compiling()


@trait(
    refused="AsksForOperatorModes computes something else while its operators are watched (output is",
    counted=None,
)
class AsksForOperatorModes(TwoBranches):
    def looked_at(self, x: Tensor) -> bool:
        return torch._C._len_torch_dispatch_stack() > 0


_OTHERWISE = (
    "convolution with 3 groups runs here (HERE) in a forward that does something else while "
    "torch's functions are watched (it asks torch.overrides.has_torch_function or the like): call "
    "a module there, or do not ask"
)


@trait("modules", calls=2, left={"convolution": _OTHERWISE})
class AsksForAnotherWay(One):
    """The same numbers either way, of which one takes no convolution with groups."""

    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones(6, 2, 1, 1)
        if torch.overrides.has_torch_function_unary(x):
            parts = [F.conv2d(part, ones[:2]) for part in x.chunk(3, 1)]
            return self.conv(torch.cat(parts, 1))
        summed = F.conv2d(x, ones, groups=3)
        return self.conv(summed) if x.sum() > -1e9 else x


@trait(
    "modules",
    left={
        "alone": _NOT_CALLED,
        "watched": _NOT_CALLED,
        "convolution": _OTHERWISE,
    },
)
class AsksBesideFunctions(TwoBranches):
    def forward(self, x: Tensor) -> Tensor:
        if torch.overrides.has_torch_function_unary(x):
            return F.conv2d(x, self.watched.weight, padding=1, groups=2)
        return F.conv2d(x, self.alone.weight, padding=1, groups=3)
