"""Traits of where a weight comes from: parametrisations, buffers, lists, other layers."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.traits.trait import One, Weighted, grouped, image, only, trait


@trait()
def weight_norm() -> nn.Module:
    return only(parametrizations.weight_norm(grouped()))


@trait()
def spectral_norm() -> nn.Module:
    return only(parametrizations.spectral_norm(grouped()))


@trait()
def orthogonal() -> nn.Module:
    return only(parametrizations.orthogonal(grouped()))


@trait()
def legacy_weight_norm() -> nn.Module:
    return only(legacy(nn.utils.weight_norm, grouped()))


@trait()
def legacy_spectral_norm() -> nn.Module:
    return only(legacy(nn.utils.spectral_norm, grouped()))


def legacy(norm: Any, conv: nn.Module) -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return norm(conv)


@trait()
def pruned() -> nn.Module:
    conv = grouped()
    prune.l1_unstructured(conv, "weight", amount=0.5)
    return only(conv)


@trait()
def pruned_for_good() -> nn.Module:
    conv = grouped()
    prune.l1_unstructured(conv, "weight", amount=0.5)
    prune.remove(conv, "weight")
    return only(conv)


class MaskOfWeights(nn.Module):
    """A user's parametrisation."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", (torch.rand(6, 2, 3, 3) > 0.5).float())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


@trait(
    unsaved="the model cannot be written: it has the module conv.parametrizations.weight.0 of the class tests.traits.weights.MaskOfWeights"
)
def own_parametrisation() -> nn.Module:
    conv = grouped()
    parametrize.register_parametrization(conv, "weight", MaskOfWeights())
    return only(conv)


@trait(
    unsaved="the model cannot be written: it has the module conv.parametrizations.weight.0 of the class tests.traits.weights.own_parametrisation_with_parameter.<locals>.Scaled"
)
def own_parametrisation_with_parameter() -> nn.Module:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.randn(6, 1, 1, 1))

        def forward(self, weight: Tensor) -> Tensor:
            return weight * self.scale

    conv = grouped()
    parametrize.register_parametrization(conv, "weight", Scaled())
    return only(conv)


@trait(
    unsaved="the model cannot be written: it has the module conv.parametrizations.weight.0 of the class tests.traits.weights.own_parametrisation_that_branches.<locals>.Bounded"
)
def own_parametrisation_that_branches() -> nn.Module:
    class Bounded(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            if weight.abs().max() > 0.1:
                weight = weight / weight.abs().max()
            return weight

    conv = grouped()
    parametrize.register_parametrization(conv, "weight", Bounded())
    return only(conv)


@trait(
    unsaved="the model cannot be written: it has the module conv.parametrizations.weight.1 of the class tests.traits.weights.two_parametrisations.<locals>.Negated"
)
def two_parametrisations() -> nn.Module:
    class Negated(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return -weight

    conv = parametrizations.weight_norm(grouped())
    parametrize.register_parametrization(conv, "weight", Negated())
    return only(conv)


@trait(
    unsaved="the model cannot be written: it has the module conv.parametrizations.bias.0 of the class tests.traits.weights.parametrised_bias.<locals>.Clipped"
)
def parametrised_bias() -> nn.Module:
    class Clipped(nn.Module):
        def forward(self, bias: Tensor) -> Tensor:
            return bias.clamp(-0.1, 0.1)

    conv = grouped()
    parametrize.register_parametrization(conv, "bias", Clipped())
    return only(conv)


@trait(
    unsaved="the model cannot be written: it has the module 0.parametrizations.weight.0 of the class tests.traits.weights.MaskOfWeights"
)
def shared_parametrisation() -> nn.Module:
    mask = MaskOfWeights()
    one, two = grouped(), grouped()
    parametrize.register_parametrization(one, "weight", mask)
    return nn.Sequential(one, nn.Identity()) if two is None else nn.Sequential(one)


@trait()
class LowRankWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = grouped()
        self.left = nn.Parameter(torch.randn(6, 2))
        self.right = nn.Parameter(torch.randn(2, 18))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight + (self.left @ self.right).view(6, 2, 3, 3)
        return F.conv2d(x, weight, self.conv.bias, padding=1, groups=3)


@trait(calls=0)
def lazy_that_ran() -> nn.Module:
    model = nn.Sequential(nn.LazyConv2d(6, 1), nn.ReLU())
    model(image())
    return model


@trait()
def lazy_grouped_that_ran() -> nn.Module:
    model = only(nn.LazyConv2d(9, 3, groups=3))
    model(image())
    return model


@trait()
def lazy() -> nn.Module:
    return only(nn.LazyConv2d(9, 3, groups=3))


@trait()
class BufferWeight(nn.Module):
    """A fixed blur, whose kernel is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.randn(6, 2, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, padding=1, groups=3)


@trait()
class BufferInConv(One):
    def __init__(self) -> None:
        super().__init__()
        weight = self.conv.weight.detach()
        del self.conv.weight
        self.conv.register_buffer("weight", weight)


@trait()
class PlainTensorWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = torch.randn(6, 2, 3, 3)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.conv2d(x, self.kernel, padding=1, groups=3))


@trait(calls=2)
class ParameterListWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(6, 2, 3, 3), torch.randn(6, 2, 1, 1)])

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = F.conv2d(x, weight, padding="same", groups=3)
        return x


@trait()
class ParameterDictWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({"k": torch.randn(6, 2, 3, 3), "b": torch.randn(6)})

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weights["k"], self.weights["b"], groups=3)


@trait()
class HyperNetwork(nn.Module):
    """The weight is made of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Linear(6, 6 * 2 * 3 * 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.make(x.mean((0, 2, 3))).view(6, 2, 3, 3)
        return F.conv2d(x, weight, padding=1, groups=3)


@trait(
    left={
        "conv2d": "its groups: computed in forward (HERE), and another for other inputs, so that no plan made once would hold"
    }
)
class BatchAsGroups(nn.Module):
    """A kernel for each sample, as StyleGAN and CondConv have it."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Linear(6, 4 * 6 * 3 * 3)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        weight = self.make(x.mean((2, 3))).view(b * 4, c, 3, 3)
        y = F.conv2d(x.reshape(1, b * c, h, w), weight, padding=1, groups=b)
        return y.view(b, 4, h, w)


@trait()
class CorrelationOfTwo(nn.Module):
    """Depthwise correlation of a template, as trackers have it."""

    def __init__(self) -> None:
        super().__init__()
        self.neck = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        template = self.neck(x[:1, :, :3, :3]).transpose(0, 1)
        return F.conv2d(x, template, groups=6)


@trait(calls=2)
class CopiedLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.Sequential(grouped(), nn.BatchNorm2d(6))
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


_WHOLE = (
    "its weight holds whole numbers (torch.int64), which cannot be trained, so that no proof takes "
    "them: hold it as float64, cast the input to that and the output back, which is exact below "
    "2**53"
)


@trait(calls=2, left={"kernel": _WHOLE})
class WholeNumberKernel(One):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.arange(12).reshape(6, 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + F.conv2d((x * 9).long(), self.kernel, groups=3)


@trait(left={"conv": _WHOLE.replace("int64", "int32")})
class WholeNumberLayer(One):
    def __init__(self) -> None:
        super().__init__()
        kernel = torch.arange(12, dtype=torch.int32).reshape(6, 2, 1, 1)
        self.conv = nn.Conv2d(6, 6, 1, groups=3, bias=False)
        self.conv.weight = nn.Parameter(kernel, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv((x * 9).int()) / 7


@trait(calls=2, left={"scores": _WHOLE})
class WholeNumberSigns(One):
    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.randn(6, 2, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        signs = (self.scores > 0).long()
        return self.conv(x) + F.conv2d((x > 0).long(), signs, padding=1, groups=3)


@trait("modules", calls=2)
class WholeNumberKernelInABranch(WholeNumberKernel):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > -1e9 else x


@trait(calls=2)
class OneMemory(nn.Module):
    """Two parameters, and one memory: a step on either moves both."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = grouped(), grouped()
        self.other.weight.data = self.one.weight.data

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) * self.other(x)


@trait(calls=2)
class ViewOfAParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.randn(12, 2, 3, 3))
        self.conv = grouped(bias=False)
        self.conv.weight = nn.Parameter(self.base.data[3:9])

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + F.conv2d(x, self.base[6:], padding=1, groups=3)


@trait("modules")
class MarkedWeight(One):
    """Reads a mark that optimisers look for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv.weight.decays = 2.0  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * getattr(self.conv.weight, "decays", 5.0)


@trait("modules")
class TrainedAttribute(nn.Module):
    """A tensor that is trained, and that the model does not know of."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(6, 6, 1)
        self.kernel = torch.randn(6, 2, 3, 3, requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.head(x), self.kernel, padding=1, groups=3)


class WithItsNegative(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return torch.cat([weight, -weight])


@trait(unsaved="the model cannot be written: it has the module conv.parametrizations.weight.0")
def more_rows_than_it_says() -> nn.Module:
    conv = grouped(6, 3, bias=False)
    parametrize.register_parametrization(conv, "weight", WithItsNegative(), unsafe=True)
    return only(conv)


@trait(example=lambda: (image(), torch.tensor([3])))
class LooksItsWeightUp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.Embedding(4, 108)

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        return F.conv2d(x, self.kernels(number).view(6, 2, 3, 3), padding=1, groups=3)


@trait(counted=3)
class MadeComplex(nn.Module):
    """A complex weight, out of real parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Parameter(torch.randn(6, 2, 3, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.view_as_complex(self.parts)
        return F.conv2d(x.to(torch.complex64), weight, padding=1, groups=3).abs()


@trait()
class GroupsInABuffer(Weighted):
    """A tensor, where a number is expected: no input has a say in it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("groups", torch.tensor(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, groups=self.groups.sum())


@trait(
    left={
        "weight": "its groups: computed in forward (HERE), and another for other inputs, so that no "
        "plan made once would hold"
    },
    counted=1,
)
class GroupsOfItsInput(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        groups = (x[0, 0, 0, 0] > -99).sum() + 2
        return F.conv2d(x, self.weight, self.bias, groups=groups)


@trait(unsaved="the model cannot be written: it has a call of torch._VariableFunctionsClass.fake")
class QuantisedWithScalesOfItsOwn(Weighted):
    """Of another dtype than a float64 run would give them."""

    def forward(self, x: Tensor) -> Tensor:
        scales, zeros = torch.full((9,), 0.05), torch.zeros(9)
        weight = torch.fake_quantize_per_channel_affine(self.weight, scales, zeros, 0, -128, 127)
        return F.conv2d(x, weight, self.bias, groups=3)
