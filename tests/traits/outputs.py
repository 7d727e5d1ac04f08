"""Traits of what goes into a model and what comes out of it."""

import collections
import dataclasses
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.traits.trait import One, Weighted, grouped, image, trait


@trait()
class GivesTuple(One):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x), x


@trait()
class GivesList(One):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.conv(x), x * 2]


@trait()
class GivesDict(One):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.conv(x), "aux": x.mean()}


@trait("modules")
class GivesOrderedDict(One):
    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        found: OrderedDict[str, Tensor] = OrderedDict()
        found["out"] = self.conv(x)
        found["aux"] = x.mean()
        return found


@trait("modules")
class GivesDefaultDict(One):
    def forward(self, x: Tensor) -> Any:
        found = collections.defaultdict(list)
        found["out"].append(self.conv(x))
        return found


@dataclasses.dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()


@trait("modules")
class GivesDataclass(One):
    def forward(self, x: Tensor) -> Output:
        return Output(self.conv(x), (x,))


class PairOfOutputs(NamedTuple):
    first: Tensor
    second: Tensor | None


@trait("modules")
class GivesNamedTuple(One):
    def forward(self, x: Tensor) -> PairOfOutputs:
        return PairOfOutputs(self.conv(x), x.sum())


@trait("modules")
class GivesNamedTupleWithNone(One):
    def forward(self, x: Tensor) -> PairOfOutputs:
        return PairOfOutputs(self.conv(x), None)


class OwnRecord:
    def __init__(self, value: Tensor) -> None:
        self.value = value


@trait("modules")
class GivesOwnObject(One):
    def forward(self, x: Tensor) -> OwnRecord:
        return OwnRecord(self.conv(x))


@trait("modules")
class GivesModelOutput(One):
    def forward(self, x: Tensor) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        return BaseModelOutput(last_hidden_state=self.conv(x))


@trait("modules")
class GivesGenerator(One):
    def forward(self, x: Tensor) -> Iterator[Tensor]:
        return (y for y in (self.conv(x), x))


@trait()
class GivesNumber(One):
    def forward(self, x: Tensor) -> tuple[Tensor, int, str, None]:
        return self.conv(x), 3, "name", None


@trait()
class GivesItem(One):
    def forward(self, x: Tensor) -> tuple[Tensor, float]:
        y = self.conv(x)
        return y, y.mean().item()


@trait()
class GivesIntegers(One):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).argmax(1)


@trait()
class GivesInput(One):
    def forward(self, x: Tensor) -> Any:
        return x, [self.conv(x), (x, {"x": x})]


@trait()
class GivesShape(One):
    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return y, y.shape


@trait(
    unsaved="the model cannot be written: it has a call of the method numpy (node numpy) in the model"
)
class GivesArray(One):
    def forward(self, x: Tensor) -> Any:
        return self.conv(x).detach().numpy()


@trait()
class GivesSlice(One):
    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return y, slice(0, y.shape[-1])


@trait("modules")
class GivesSet(One):
    def forward(self, x: Tensor) -> Any:
        return {"out": self.conv(x), "names": {"a"}}


@trait("modules")
class GivesPackedSequence(One):
    def forward(self, x: Tensor) -> Any:
        y = self.conv(x).flatten(2)
        return nn.utils.rnn.pack_padded_sequence(y, torch.tensor([6, 4]), batch_first=True)


# Arguments


@trait(example=lambda: {"x": image()})
class KeywordOnly(One):
    def forward(self, *, x: Tensor) -> Tensor:
        return self.conv(x)


@trait("modules")
class OptionalNone(One):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        return y if mask is None else y * mask


@trait("modules", example=lambda: {"x": image(), "mask": torch.rand(2, 1, 7, 11)})
class OptionalGiven(One):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        return y if mask is None else y * mask


@trait(example=lambda: (image(), 2.0))
class FloatArgument(One):
    def forward(self, x: Tensor, scale: float) -> Tensor:
        return self.conv(x) * scale


@trait("modules", example=lambda: (image(), "relu"))
class StringArgument(One):
    def forward(self, x: Tensor, name: str) -> Tensor:
        return getattr(F, name)(self.conv(x))


@trait("modules")
class FlagArgument(One):
    def forward(self, x: Tensor, double: bool = False) -> Tensor:
        return self.conv(self.conv(x)) if double else self.conv(x)


@trait(example=lambda: ([image(), image()],))
class ListArgument(One):
    def forward(self, xs: list[Tensor]) -> Tensor:
        return self.conv(torch.cat(xs))


@trait(example=lambda: ([image(), image()],))
class ListArgumentByIndex(One):
    def forward(self, xs: list[Tensor]) -> Tensor:
        return self.conv(xs[0]) + xs[1]


@trait("modules", calls=2, example=lambda: ([image(), image()],))
class ListArgumentLooped(One):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [self.conv(x) for x in xs]


@trait(example=lambda: ({"image": image()},))
class DictArgument(One):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.conv(batch["image"])


@trait("modules", example=lambda: ({"image": image(), "mask": image()},))
class DictArgumentAsked(One):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        y = self.conv(batch["image"])
        return y * batch["mask"] if "mask" in batch else y


@dataclasses.dataclass
class Batch:
    image: Tensor


@trait("modules", example=lambda: (Batch(image()), torch.ones(1)))
class DataclassArgument(One):
    def forward(self, batch: Batch, scale: Tensor) -> Tensor:
        return self.conv(batch.image) * scale


@trait(example=lambda: (PairOfOutputs(image(), image()),))
class NamedTupleArgument(One):
    def forward(self, pair: PairOfOutputs) -> Tensor:
        first, second = pair
        return self.conv(first) + second


@trait("modules", calls=2, example=lambda: (image(), image()))
class VariableArguments(One):
    def forward(self, *xs: Tensor) -> list[Tensor]:
        return [self.conv(x) for x in xs]


@trait("modules", example=lambda: {"x": image(), "y": image()})
class VariableKeywords(One):
    def forward(self, **named: Tensor) -> Tensor:
        return self.conv(named["x"]) + named["y"]


@trait(example=lambda: (image(), torch.randint(0, 5, (2,))))
class IntegerArgument(One):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 6)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.conv(x + self.embed(label)[:, :, None, None])


@trait(example=lambda: (image(), torch.rand(2, 1, 7, 11) > 0.5))
class BoolArgument(One):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.conv(x).masked_fill(mask, 0)


@trait("modules", example=lambda: (image(), None))
class NoneArgument(One):
    def forward(self, x: Tensor, other: Tensor | None) -> Tensor:
        return self.conv(x) if other is None else self.conv(other)


@trait(example=lambda: (image(), torch.tensor(3.0)))
class ScalarTensor(One):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.conv(x) * scale


@trait("modules", example=lambda: (image(), nn.ReLU()))
class ModuleArgument(One):
    def forward(self, x: Tensor, act: nn.Module) -> Tensor:
        return act(self.conv(x))


@trait("modules", example=lambda: (image(), torch.relu))
class FunctionArgument(One):
    def forward(self, x: Tensor, act: Any) -> Tensor:
        return act(self.conv(x))


@trait(example=lambda: (image(), torch.device("cpu")))
class DeviceArgument(One):
    def forward(self, x: Tensor, device: torch.device) -> Tensor:
        return self.conv(x.to(device))


@trait(example=lambda: (image(), (14, 22)))
class SizeArgument(One):
    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(self.conv(x), size)


@trait("modules")
class FunctionalWithOptional(Weighted):
    """A functional convolution and an optional argument."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = F.conv2d(x, self.weight, self.bias, groups=3)
        return y if mask is None else y * mask


@trait("modules")
class UnusedArgument(One):
    def forward(self, x: Tensor, _: Tensor | None = None) -> Tensor:
        return self.conv(x)


@trait("modules")
class DefaultConstant(One):
    def forward(self, x: Tensor, eps: float = 1e-3) -> Tensor:
        return self.conv(x) + eps


@trait()
class Reshapes(One):
    """Rearrangements as einops makes them: of sizes read from the input."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = x.view(b, 2, c // 2, h, w).permute(0, 2, 1, 3, 4).reshape(b, c, h, w)
        return self.conv(y).flatten(2).transpose(1, 2)


@trait()
class ShapeUnpacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 9, 3, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        b, c, *rest = x.shape[0], x.shape[1], -1
        return self.conv(x.reshape(b, c, *rest))


@trait()
class Einsum(One):
    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,bdhw->bcd", self.conv(x), x)


@trait()
class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = grouped(6, 12)
        self.attend = nn.MultiheadAttention(12, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).flatten(2).transpose(1, 2)
        return self.attend(y, y, y, need_weights=False)[0]


@trait()
class RecurrentTrait(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = grouped()
        self.lstm = nn.LSTM(6, 5, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(self.conv(x).mean(2).transpose(1, 2))[0]


@trait()
class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = grouped()
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.conv(x).flatten(2).transpose(1, 2))


@trait(counted=3, example=lambda: torch.randn(2, 6, 7, 11, dtype=torch.complex64))
def complex_conv() -> nn.Module:
    model = One()
    model.conv = nn.Conv2d(6, 9, 3, groups=3, dtype=torch.complex64)
    return model


@trait(counted=3)
class ComplexInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 9, 3, groups=3, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.fft.fft2(x)).abs()


@trait()
class SpectralSide(One):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + torch.fft.irfft2(torch.fft.rfft2(x), s=(7, 11))


@trait()
class MixedDtypes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = grouped().bfloat16()
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x.bfloat16()).float())


@trait()
class CastsWeight(One):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight.to(torch.float64)
        return F.conv2d(x.double(), weight, groups=3).float()


@trait("modules")
class InPlaceOperations(One):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y += x
        y[:, 0] = 0
        y.mul_(2).clamp_(min=-1)
        return y


@trait()
class InPlaceOnInput(One):
    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        return self.conv(x)


@trait()
class ViewWritten(One):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y[:, 1:3].zero_()
        return y


@trait()
class OutArgument(One):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        torch.add(y, x, out=y)
        return y


@trait()
class Random(One):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x + torch.rand_like(x))


@trait("modules")
class TensorsMade(One):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros(x.shape[0], 1, 1, 1, device=x.device) + torch.arange(11).float()
        return self.conv(x) + y


@trait("modules")
class ClassOfEachForward(One):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.as_subclass(type("Made", (Tensor,), {})))
