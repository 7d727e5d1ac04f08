"""Traits of the Python in which a forward is written."""

import abc
import asyncio
import collections
import dataclasses
import enum
import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.traits.trait import One, Weighted, grouped, image, trait


class TwoParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([grouped(), grouped()])


@trait("modules")
class MatchesShape(One):
    def forward(self, x: Tensor) -> Tensor:
        match tuple(x.shape):
            case (_, 6, _, _):
                return self.conv(x)
            case _:
                raise ValueError("no image")


@trait("modules")
class Walrus(One):
    def forward(self, x: Tensor) -> Tensor:
        if (channels := x.shape[1]) == 6:
            return self.conv(x) * channels
        return x


@trait()
class CachedPropertyTrait(One):
    @functools.cached_property
    def scale(self) -> Tensor:
        return torch.full((6, 1, 1), 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.scale


class Inner:
    def __get__(self, owner: Any, kind: type) -> Any:
        return self if owner is None else owner.inner


@trait()
class Descriptor(nn.Module):
    conv = Inner()

    def __init__(self) -> None:
        super().__init__()
        self.inner = grouped()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Tagging(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        made.tag = 2.0
        return made


@trait()
class WithMetaclass(One, metaclass=Tagging):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.tag


@trait()
@dataclasses.dataclass(eq=False)
class DataclassModule(nn.Module):
    width: int = 6

    def __post_init__(self) -> None:
        super().__init__()
        self.conv = grouped(self.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class AddsItsInput(nn.Module, abc.ABC):
    @abc.abstractmethod
    def body(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + x


@trait()
class AbstractBase(AddsItsInput):
    def __init__(self) -> None:
        super().__init__()
        self.conv = grouped()

    def body(self, x: Tensor) -> Tensor:
        return self.conv(x)


@trait()
class PartialModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(6, 6, 3, stride=2, padding=1, groups=3)
        self.call = functools.partial(self.up, output_size=[7, 11])

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x[:, :, ::2, ::2])


@trait()
class PartialFunction(Weighted):
    def __init__(self) -> None:
        super().__init__()
        self.call = functools.partial(F.conv2d, groups=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, self.weight, self.bias)


@trait("modules")
class PartialForward(One):
    def scaled(self, x: Tensor, factor: int) -> Tensor:
        return self.conv(x) * factor

    forward = functools.partialmethod(scaled, factor=2)  # type: ignore[assignment]


@trait("modules")
class DispatchesOnType(One):
    @functools.singledispatchmethod
    def run(self, x: Any) -> Tensor:
        raise TypeError(f"not a {type(x).__name__}")

    @run.register
    def _(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


class Activation(enum.Enum):
    GELU = "gelu"


@trait()
class ChosenByEnum(One):
    kind = Activation.GELU

    def forward(self, x: Tensor) -> Tensor:
        return getattr(F, self.kind.value)(self.conv(x))


@trait("modules")
class DefaultList(One):
    def forward(self, x: Tensor, seen: list[int] = []) -> Tensor:  # noqa: B006 - as people do
        seen.append(1)
        return self.conv(x)


@trait(calls=2)
class Reduced(TwoParts):
    def forward(self, x: Tensor) -> Tensor:
        return functools.reduce(lambda value, part: part(value), self.parts, x)


@trait(calls=2)
class YieldsInside(TwoParts):
    def stages(self, x: Tensor) -> Iterator[Tensor]:
        for part in self.parts:
            x = part(x)
            yield x

    def forward(self, x: Tensor) -> Tensor:
        *_, last = self.stages(x)
        return last


@trait()
class Awaits(One):
    async def later(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def forward(self, x: Tensor) -> Tensor:
        return asyncio.run(self.later(x))


@trait(calls=2)
class IteratesOverItself(TwoParts):
    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self:
            x = part(x)
        return x


@trait("modules")
class Falsy(One):
    def __bool__(self) -> bool:
        return False

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > -1e9 else x


@trait("modules")
class NothingCanBeSet(One):
    def __init__(self) -> None:
        super().__init__()
        self.done = True

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("done") and name != "training":
            raise AttributeError(f"{name} cannot be set any more")
        super().__setattr__(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > -1e9 else x


class Acts:
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()  # type: ignore[misc]


@trait()
class MixedIn(Acts, One):
    pass


@trait("modules")
def decorated_without_its_name() -> nn.Module:
    def doubled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def inner(*args: Any, **kwargs: Any) -> Tensor:
            return function(*args, **kwargs) * 2

        return inner

    class Decorated(One):
        forward = doubled(One.forward)  # type: ignore[assignment]

    return Decorated()


@trait("modules", calls=1)
class RaisesAndCatches(TwoParts):
    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.parts[0](x[:, :5])
        except RuntimeError:
            return self.parts[1](x)


@trait("modules", calls=2)
class RecursesOnSize(One):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.shape[-1] < 4 else self.forward(self.conv(x)[..., ::2])


@trait()
class NumpyConstantTrait(One):
    table = np.arange(1, 7, dtype=np.float32)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * torch.from_numpy(self.table)[:, None, None]


@trait("modules")
class KeywordsBeside(One):
    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return self.conv(x) * options.get("scale", 1.0)


@trait()
class Evaluated(One):
    def forward(self, x: Tensor) -> Tensor:
        return eval("self.conv(x) * 2", {"self": self, "x": x})


@trait("modules", calls=2)
class NewSequential(TwoParts):
    def forward(self, x: Tensor) -> Tensor:
        return nn.Sequential(*self.parts)(x) if x.sum() > -1e9 else x


@trait()
class ModuleAsKey(One):
    def __init__(self) -> None:
        super().__init__()
        self.scales = {self.conv: 2.0}

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.scales[self.conv]


@trait("modules")
class ClassNameInForward(One):
    def forward(self, x: Tensor) -> Tensor:
        known = type(self.conv).__name__ == "Conv2d"
        return self.conv(x) * (2 if known else 1) if x.sum() > -1e9 else x


@trait("modules")
class ReadsItsNumbers(One):
    def forward(self, x: Tensor) -> Tensor:
        numbers = self.conv.out_channels + self.conv.stride[0] + len(self.conv.extra_repr())
        return self.conv(x) / numbers if x.sum() > -1e9 else x


@trait()
class ByAttributeName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(grouped())

    def forward(self, x: Tensor) -> Tensor:
        return operator.attrgetter("block")(self)[0](x)


@trait("modules")
class InDeque(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = collections.deque([grouped()])
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.parts[0](x))


class Bag(dict[str, Any]):
    """A dict whose keys are attributes, as configurations are."""

    __getattr__ = dict.__getitem__


@trait("modules", example=lambda: (Bag(x=image()), torch.ones(1)))
class OwnDictArgument(One):
    def forward(self, batch: Bag, scale: Tensor) -> Tensor:
        return self.conv(batch.x) * scale


@trait(unsaved="the model cannot be written: it has a call of the method pop (node pop)",
       example=lambda: ([image()],))  # fmt: skip
class PopsItsInput(One):
    def forward(self, xs: list[Tensor]) -> Tensor:
        return self.conv(xs.pop())


@trait(example=lambda: (image(), torch.Generator().manual_seed(1)))
class GeneratorArgument(One):
    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.conv(x) + torch.rand(6, 1, 1, generator=generator)


@trait(unsaved="the model cannot be written: a graph reads an attribute 'first' that is not one",
       example=lambda: (collections.namedtuple("Both", "first second")(image(), image()),))  # fmt: skip
class FieldOfNamedTuple(One):
    def forward(self, both: Any) -> Tensor:
        return self.conv(both.first) + both.second


@trait()
class FieldsOfTopk(One):
    """A named tuple of torch's."""

    def forward(self, x: Tensor) -> Tensor:
        found = self.conv(x).flatten(2).topk(5)
        return found.values * found.indices


@trait()
class GivesKeysOfTwo(One):
    def forward(self, x: Tensor) -> Any:
        return {0: self.conv(x), (2, "a"): x}


@trait(calls=2)
class UnderscoredNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"_": grouped(), "__init": grouped()})

    def forward(self, x: Tensor) -> Tensor:
        return self.parts["__init"](self.parts["_"](x))


@dataclasses.dataclass(unsafe_hash=True)
class EqualBlock(nn.Module):
    width: int = 6

    def __post_init__(self) -> None:
        super().__init__()
        self.conv = grouped(self.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@trait(
    counted=2,
    refused="0 (EqualBlock (tests/traits/python.py:407)) is compared by value, with an __eq__ of "
    "its class: torch takes 1 and 0 for one, as they are equal; compare by identity",
)
def two_equal_blocks() -> nn.Module:
    return nn.Sequential(EqualBlock(), EqualBlock())
