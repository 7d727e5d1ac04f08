"""Traits of models that are quantised, or on their way there."""

from collections.abc import Callable

import torch
import torch.ao.nn.intrinsic.qat as fused
import torch.ao.nn.qat as qat
from torch import Tensor, nn
from torch.ao import quantization

from tests.traits.hooks import KEPT
from tests.traits.trait import SHAPE, grouped, image, only, quiet, trait


@trait(
    refused="1 (torch.ao.nn.quantized.modules.conv.Conv2d) runs on whole numbers: quantised con",
    counted=None,
    example=lambda: torch.randn(SHAPE),
)
def quantised_static() -> nn.Module:
    model = nn.Sequential(torch.ao.quantization.QuantStub(), grouped(), nn.ReLU())
    model.append(torch.ao.quantization.DeQuantStub())
    model.eval().qconfig = torch.ao.quantization.get_default_qconfig("x86")
    prepared = quiet(torch.ao.quantization.prepare, model)
    prepared(image())
    return quiet(torch.ao.quantization.convert, prepared)


@trait("modules")
def quantisation_aware() -> nn.Module:
    model = nn.Sequential(torch.ao.quantization.QuantStub(), grouped(), nn.ReLU())
    model.append(torch.ao.quantization.DeQuantStub())
    model.train().qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
    prepared = quiet(torch.ao.quantization.prepare_qat, model)
    prepared(image())
    return prepared


@trait(
    left={
        "0": f"it has hooks (forward hooks: torch.ao.quantization.quantize._observer_forward_hook), {KEPT}"
    },
    unsaved="the model cannot be written: it has a hook on the module 0",
)
def observed() -> nn.Module:
    model = nn.Sequential(grouped(), nn.ReLU())
    model.eval().qconfig = torch.ao.quantization.get_default_qconfig("x86")
    prepared = quiet(torch.ao.quantization.prepare, model)
    prepared(image())
    return prepared


@trait()
def fused_conv_bn() -> nn.Module:
    model = nn.Sequential(grouped(), nn.BatchNorm2d(6), nn.ReLU()).eval()
    return torch.ao.quantization.fuse_modules(model, ["0", "1", "2"])


@trait()
def fused_conv_bn_training() -> nn.Module:
    model = nn.Sequential(grouped(), nn.BatchNorm2d(6), nn.ReLU()).train()
    return torch.ao.quantization.fuse_modules_qat(model, ["0", "1", "2"])


SHAPES = {1: (2, 6, 11), 2: SHAPE, 3: (2, 6, 3, 5, 7)}
QCONFIG = quantization.get_default_qat_qconfig("fbgemm")


def example(dims: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(SHAPES[dims])


def observed_once(model: nn.Module, dims: int) -> nn.Module:
    """A fake quantiser that saw nothing has no scale."""
    model.train()(example(dims)())
    return model


def put(name: str, make: Callable[[], nn.Module], dims: int) -> None:
    make.__name__ = name
    trait("modules", example=example(dims))(make)


def layer(kind: Callable[..., nn.Module], dims: int) -> Callable[[], nn.Module]:
    """A layer that is trained for quantisation, in a model that nobody prepared."""
    return lambda: observed_once(only(kind(6, 9, 3, groups=3, qconfig=QCONFIG)), dims)


for kind in (qat.Conv1d, qat.Conv2d, qat.Conv3d, fused.ConvReLU1d, fused.ConvReLU2d,
             fused.ConvReLU3d, fused.ConvBn1d, fused.ConvBn2d, fused.ConvBn3d,
             fused.ConvBnReLU1d, fused.ConvBnReLU2d, fused.ConvBnReLU3d):  # fmt: skip
    dims = int(kind.__name__[-2])
    put(f"fake_quantised_{kind.__name__.lower()}", layer(kind, dims), dims)


def parts(dims: int, *, norm: bool, activation: bool) -> list[nn.Module]:
    found = [getattr(nn, f"Conv{dims}d")(6, 9, 3, groups=3)]
    found += [getattr(nn, f"BatchNorm{dims}d")(9)] if norm else []
    return found + ([nn.ReLU()] if activation else [])


def prepared(dims: int, *, norm: bool, activation: bool) -> nn.Module:
    """Fused where there is something to fuse, then prepared, as torch.ao's tutorial does."""
    held = parts(dims, norm=norm, activation=activation)
    model = nn.Sequential(quantization.QuantStub(), *held, quantization.DeQuantStub()).train()
    if len(held) > 1:
        names = [str(position) for position in range(1, len(held) + 1)]
        model = quantization.fuse_modules_qat(model, names)
    model.qconfig = QCONFIG
    return observed_once(quiet(quantization.prepare_qat, model), dims)


def prepared_by_fx(dims: int, *, norm: bool, activation: bool) -> nn.Module:
    from torch.ao.quantization import quantize_fx

    model = nn.Sequential(*parts(dims, norm=norm, activation=activation)).train()
    mapping = quantization.get_default_qat_qconfig_mapping("fbgemm")
    made = quiet(quantize_fx.prepare_qat_fx, model, mapping, (example(dims)(),))
    return observed_once(made, dims)


def with_parts(make: Callable[..., nn.Module], dims: int, **fused: bool) -> Callable[[], nn.Module]:
    return lambda: make(dims, **fused)


for dims in SHAPES:
    for norm, activation in ((False, False), (False, True), (True, False), (True, True)):
        words = f"{dims}d{'_norm' if norm else ''}{'_relu' if activation else ''}"
        for make in (prepared, prepared_by_fx):
            fuses = with_parts(make, dims, norm=norm, activation=activation)
            put(f"{make.__name__}_{words}", fuses, dims)


@trait("modules")
class QuantisesByItself(nn.Module):
    """A layer of the user's with fake quantisers of torch's in it."""

    def __init__(self) -> None:
        super().__init__()

        class Quantised(nn.Conv2d):
            def __init__(self) -> None:
                super().__init__(6, 9, 3, groups=3)
                self.steps = QCONFIG.weight()

            def forward(self, x: Tensor) -> Tensor:
                return self._conv_forward(x, self.steps(self.weight), self.bias)

        self.conv = Quantised()
        self.conv.steps(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)
