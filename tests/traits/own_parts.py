"""Traits of models that know their own parts: by their objects, their ids, their parameters."""

import functools
import math
import weakref
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint import checkpoint_wrapper as wrapping
from torch.nn.utils import prune

from tests.traits.trait import One, Weighted, grouped, only, trait


@trait()
class CallsByLambda(One):
    """A copy would call the convolution of the original."""

    def __init__(self) -> None:
        super().__init__()
        self.call = lambda x: self.conv(x) * 2

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


@trait()
class WeakReference(One):
    def __init__(self) -> None:
        super().__init__()
        self.reference = weakref.ref(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.reference()(x)


@trait(
    refused="WeakReferenceAndBranch holds a function that calls its own modules by their objects (a function or a reference that it keeps): a copy"
)
class WeakReferenceAndBranch(WeakReference):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > -1e9 else x


@trait()
class KnownById(One):
    """A copy does not even run."""

    def __init__(self) -> None:
        super().__init__()
        self.names = {id(self.conv): "conv"}

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * len(self.names[id(self.conv)])


@trait("modules")
class HoldsPython(One):
    """A module of Python's as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.math = math

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.math.sqrt(2) if x.sum() > -1e9 else x


@trait()
class InNamespace(One):
    def __init__(self) -> None:
        super().__init__()
        self.parts = SimpleNamespace(conv=self.conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.parts.conv(x)


@trait("modules")
class SumOfParameters(One):
    """Of real tensors: a trace would hold the sum of today."""

    def forward(self, x: Tensor) -> Any:
        return self.conv(x), sum(p.abs().sum() for p in self.parameters())


@trait("modules")
class DetachedParameter(One):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * next(self.parameters()).detach().abs().mean()


@trait("modules")
class WeightInList(One):
    """What takes the place of the convolution must not leave an old weight in the list."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = [self.conv.weight]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.weights[0].abs().mean()


@trait("modules")
class WeightInListAndBranch(WeightInList):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > -1e9 else x


@trait("modules")
class WeightOfGroupsInList(One):
    def __init__(self) -> None:
        super().__init__()
        self.groups = [{"params": [self.conv.weight], "lr": 0.1}]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.groups[0]["params"][0].sum()


@trait("modules")
class CountsItsParameters(One):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * len(list(self.parameters())) if x.sum() > -1e9 else x


@trait("modules")
class CountsItsModules(One):
    def forward(self, x: Tensor) -> Tensor:
        number = sum(isinstance(module, nn.Conv2d) for module in self.modules())
        return self.conv(x) * number if x.sum() > -1e9 else x


class ReplacesItsLayer(One):
    """Its own copy, which is gone behind the forward that made it."""

    def forward(self, x: Tensor) -> Tensor:
        made = grouped()
        made.load_state_dict(self.conv.state_dict())
        self.conv = made
        return self.conv(x)


@trait()
class MadeItsLayerOnce(nn.Module):
    """The test has run it before."""

    def __init__(self) -> None:
        super().__init__()
        self.conv: nn.Module | None = None
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is None:
            torch.manual_seed(3)
            self.conv = grouped(x.shape[1])
        return self.head(self.conv(x))


class DrawsFromItsGenerator(One):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + torch.randn(y.shape, generator=self.generator)


@trait()
class DrawnWeight(Weighted):
    """As a Bayesian layer, in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + torch.randn_like(self.weight)
        return F.conv2d(x, weight, self.bias, groups=3)


@trait(unsaved="the model cannot be written: it has a tensor that is sparse, quantised or nested")
class SparseBuffer(One):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keep", torch.eye(11).to_sparse(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * 2


class MaskedBeforeItRuns(nn.Conv2d):
    """The whole model is a layer that writes its weight."""

    def __init__(self) -> None:
        super().__init__(6, 9, 3, padding=1, groups=3)
        mask = torch.ones(9, 2, 3, 3)
        mask[:, :, 2:] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


trait("modules")(MaskedBeforeItRuns)


@trait()
def pruned_bias() -> nn.Module:
    conv = grouped()
    prune.random_unstructured(conv, "bias", amount=0.5)
    return only(conv)


@trait()
def pruned_bias_of_circular() -> nn.Module:
    conv = grouped(padding_mode="circular")
    prune.random_unstructured(conv, "bias", amount=0.5)
    return only(conv)


@trait(
    left={
        "conv": "hooks recompute its weight and its bias, one of which alone can be taken over; "
        "make the bias plain first, such as by torch.nn.utils.prune.remove"
    }
)
def pruned_weight_and_bias() -> nn.Module:
    conv = grouped()
    for name in ("weight", "bias"):
        prune.random_unstructured(conv, name, amount=0.5)
    return only(conv)


@trait()
def bias_of_its_norm() -> nn.Module:
    conv, norm = grouped(), nn.BatchNorm2d(6)
    conv.bias = norm.bias
    return nn.Sequential(conv, norm)


@trait()
def transposed_weight() -> nn.Module:
    conv = grouped()
    conv.weight = nn.Parameter(torch.randn(2, 6, 3, 3).transpose(0, 1))
    return only(conv)


@trait()
def expanded_weight() -> nn.Module:
    conv = grouped(groups=6)
    conv.weight = nn.Parameter(torch.randn(1, 1, 3, 3).expand(6, 1, 3, 3), requires_grad=False)
    return only(conv)


@trait()
def checkpoint_wrapped() -> nn.Module:
    return nn.Sequential(wrapping.checkpoint_wrapper(One()), nn.ReLU())


@trait("modules")
def checkpoint_wrapped_reentrant() -> nn.Module:
    kind = wrapping.CheckpointImpl.REENTRANT
    return nn.Sequential(wrapping.checkpoint_wrapper(One(), kind), nn.ReLU())


@trait()
def offload_wrapped() -> nn.Module:
    return nn.Sequential(wrapping.offload_wrapper(One()), nn.ReLU())


def older_names(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    for key in [key for key in state if "conv" in key]:
        state[key.replace("conv", "layer")] = state.pop(key)


def newer_names(state: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state if "layer" in key]:
        state[key.replace("layer", "conv")] = state.pop(key)


@trait()
def older_names_in_checkpoints() -> nn.Module:
    model = One()
    model._register_state_dict_hook(older_names)
    model._register_load_state_dict_pre_hook(newer_names)
    return model


@trait("modules")
class ByUnboundForward(One):
    def forward(self, x: Tensor) -> Tensor:
        return nn.Conv2d.forward(self.conv, x) if x.sum() > -1e9 else x


@trait("modules")
class ByPartialOfItself(One):
    def __init__(self) -> None:
        super().__init__()
        self.call = functools.partial(nn.Conv2d.__call__, self.conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x) if x.sum() > -1e9 else x


@trait("modules")
class CachesItsKernel(Weighted):
    """In which no value of a trace may be found later."""

    @functools.lru_cache  # noqa: B019 - as people write it
    def kernel(self) -> Tensor:
        return self.weight * 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel(), self.bias, groups=3)


@trait("modules")
class SumOfBuffers(One):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + sum(b.float().mean() for b in self.buffers())


class ItsOwnCopy(One):
    def __deepcopy__(self, memo: Any) -> "ItsOwnCopy":
        return self


@trait()
def its_own_copy() -> nn.Module:
    return nn.Sequential(ItsOwnCopy(), nn.ReLU())


@trait(
    refused="ItsOwnCopyAndBranch cannot be copied: it gives itself where a copy is asked for (its __deepcopy__)"
)
class ItsOwnCopyAndBranch(ItsOwnCopy):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > -1e9 else x
