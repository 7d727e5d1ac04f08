"""Traits of hooks, and of what Python code does around a forward."""

import io
import threading
import types
from typing import Any

import torch
from torch import Tensor, nn

from tests.traits.trait import One, grouped, trait

KEPT = (
    "which would be lost; remove them first, or open the model with way='modules', which keeps them"
)


@trait(
    left={"conv": f"it has hooks (forward hooks: <lambda> (HERE)), {KEPT}"},
    unsaved="the model cannot be written: it has a hook on the module conv",
)
def hook_on_conv() -> nn.Module:
    model = One()
    model.conv.register_forward_hook(lambda module, args, output: output * 2)
    return model


@trait("modules")
def hook_on_root() -> nn.Module:
    model = One()
    model.register_forward_hook(lambda module, args, output: output * 2)
    return model


@trait("modules")
def pre_hook_on_block() -> nn.Module:
    model = nn.Sequential(nn.Sequential(grouped()), nn.ReLU())
    model[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    return model


@trait("modules")
def features_by_hook() -> nn.Module:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Sequential(grouped()), nn.ReLU(), nn.Conv2d(6, 4, 1))
            self.body[0].register_forward_hook(self.keep)
            self.kept: list[Tensor] = []

        def keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
            self.kept.append(output)

        def forward(self, x: Tensor) -> list[Tensor]:
            self.kept.clear()
            self.body(x)
            return list(self.kept)

    return Features()


@trait("modules")
def backward_hook() -> nn.Module:
    model = nn.Sequential(nn.Sequential(grouped()), nn.ReLU())
    model[0].register_full_backward_hook(
        lambda module, gi, go: tuple(g if g is None else g * 2 for g in gi)
    )
    return model


@trait(
    left={"conv": "it has hooks (gradient hook on weight), which would be lost; remove them first"},
    unsaved="the model cannot be written: it has a gradient hook on conv.weight",
)
def gradient_hook() -> nn.Module:
    model = One()
    model.conv.weight.register_hook(lambda gradient: gradient * 2)
    return model


@trait()
def state_dict_hook() -> nn.Module:
    model = One()
    model.register_state_dict_post_hook(lambda *_: None)
    return model


@trait("modules")
def own_forward() -> nn.Module:
    model = One()
    model.forward = types.MethodType(lambda self, x: self.conv(x) * 2, model)
    return model


@trait(refused="One holds a function that calls its own modules by their objects")
def forward_of_instance() -> nn.Module:
    model = One()
    conv = model.conv
    model.forward = lambda x: conv(x) + 1
    return model


@trait()
def patched_block() -> nn.Module:
    model = nn.Sequential(nn.Sequential(grouped()), nn.ReLU())
    block = model[0]
    block.forward = types.MethodType(lambda self, x: self[0](x) * 3, block)
    return model


@trait(refused="One holds a function that calls its own modules by their objects")
def patched_conv() -> nn.Module:
    model = One()
    old = model.conv.forward
    model.conv.forward = lambda x: old(x) * 2
    return model


@trait("modules")
class OwnCall(One):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) * 2


@trait()
class OwnCallInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        class Called(One):
            def __call__(self, x: Tensor) -> Tensor:
                return super().__call__(x * 2)

        self.block = Called()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


@trait("modules")
class NoForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = grouped()

    def __call__(self, x: Tensor) -> Tensor:
        return self.conv(x)


@trait()
class OwnGetAttr(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = One()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@trait("modules")
class OwnEval(One):
    def eval(self) -> "OwnEval":
        raise RuntimeError("this model has one mode")


@trait("modules")
class OwnTrain(One):
    def train(self, mode: bool = True) -> "OwnTrain":
        super().train(mode)
        self.scale = 2.0 if mode else 1.0
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * getattr(self, "scale", 1.0)


@trait()
class OwnStateDict(One):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        found = super().state_dict(*args, **kwargs)
        found["extra"] = torch.ones(1)
        return found

    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict({k: v for k, v in state.items() if k != "extra"}, *args)


@trait()
class ExtraState(One):
    def get_extra_state(self) -> Any:
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None:
        self.version = state["version"]


@trait()
class HasSlots(One):
    __slots__ = ("kept",)


@trait(
    refused="Uncopyable cannot be copied, because of its lock (TypeError: cannot pickle '_thread.lock' object): "
)
class Uncopyable(One):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return self.conv(x) if x.sum() > -1e9 else x


@trait(
    refused="HoldsGenerator cannot be copied, because of its numbers (TypeError: cannot pickle 'generator' object): "
)
class HoldsGenerator(One):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = (n for n in range(1000))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > -1e9 else x


@trait(
    refused="HoldsFile cannot be copied, because of its log (TypeError: cannot pickle '_io.TextIOWrapper' object): "
)
class HoldsFile(One):
    def __init__(self) -> None:
        super().__init__()
        # Such a handle cannot be copied either, and leaves no file open behind the test.
        self.log = io.TextIOWrapper(io.BytesIO())

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > -1e9 else x


@trait()
class LockedAndTraced(One):
    """A graph holds nothing of what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return self.conv(x)


@trait()
class NumbersAndTraced(One):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = (n for n in range(1000))
