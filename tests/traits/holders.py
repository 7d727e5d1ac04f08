"""Traits of what holds a layer, how it is called there, and under what name."""

import torch
from torch import Tensor, nn

from tests.traits.trait import One, grouped, trait


@trait(calls=2)
class CalledTwiceHere(One):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x).relu())


@trait(calls=3)
class CalledInLoop(One):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.conv(x)
        return x


@trait("modules", calls=2)
class InModuleDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"a b": grouped(), "class": grouped()})

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts.values():
            x = part(x)
        return x


@trait(calls=2)
class InModuleList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([grouped(), grouped()])

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[0](x) + self.parts[-1](x)


@trait(calls=2)
def in_sequential() -> nn.Module:
    return nn.Sequential(grouped(), nn.ReLU(), nn.Sequential(grouped()))


@trait()
def bare_conv() -> nn.Module:
    return grouped()


@trait(calls=2)
def twice_in_sequential() -> nn.Module:
    conv = grouped()
    return nn.Sequential(conv, nn.ReLU(), conv)


@trait("modules")
class InPythonList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = [grouped()]

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[0](x)


@trait("modules")
class InPythonDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = {"conv": grouped()}
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.parts["conv"](x))


@trait("modules")
class InTuple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(6, 4, 1)
        self.parts = (grouped(), self.head)

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[1](self.parts[0](x))


@trait("modules")
def in_closure() -> nn.Module:
    conv = grouped()

    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(conv(x))

    return Closed()


@trait()
class BoundMethod(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = grouped()
        self.call = self.conv.forward

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


@trait()
class CallsForward(One):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv.forward(x)


@trait()
class CallsConvForward(One):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv._conv_forward(x, self.conv.weight, self.conv.bias)


@trait()
class ByName(One):
    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, "co" + "nv")(x)


@trait()
class BySubmoduleName(One):
    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule("conv")(x)


@trait(calls=2)
class IteratesOverModules(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = grouped(), grouped()

    def forward(self, x: Tensor) -> Tensor:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                x = module(x)
        return x


@trait()
class ChildrenInForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = grouped(), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return x


@trait("modules")
class NotModuleHolder(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        class Plain:
            conv = grouped()

        self.plain = Plain()
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.plain.conv(x))


@trait(calls=2)
class TiedWeightsTrait(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = grouped(), grouped()
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


@trait(calls=2)
class TwoNamesHere(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = grouped()
        self.two = self.one

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


@trait(left={"spare": "it is not called in this forward"})
class UncalledConv(One):
    def __init__(self) -> None:
        super().__init__()
        self.spare = grouped()


@trait("modules")
class NameOfGraph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.graph = grouped()

    def forward(self, x: Tensor) -> Tensor:
        return self.graph(x)


@trait("modules", calls=2)
class NameOfCode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.code = grouped()
        self.meta = grouped()

    def forward(self, x: Tensor) -> Tensor:
        return self.meta(self.code(x))


@trait("modules", calls=2)
class NameOfMethods(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recompile = grouped()
        self.print_readable = nn.Sequential(grouped())

    def forward(self, x: Tensor) -> Tensor:
        return self.print_readable(self.recompile(x))


@trait("modules", calls=2)
class NamesOfModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.add_module("graph", nn.Sequential(grouped()))
        self.add_module("delete_all_unused_submodules", grouped())
        self.register_buffer("code_", torch.ones(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.delete_all_unused_submodules(self.graph(x) * self.code_)


@trait("modules")
class KeywordNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.add_module("class", grouped())
        self.add_module("lambda", nn.Conv2d(6, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, "lambda")(getattr(self, "class")(x))


@trait(calls=2)
class NumberNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.add_module("0", grouped())
        self.add_module("0a-b", grouped())

    def forward(self, x: Tensor) -> Tensor:
        return self._modules["0a-b"](self._modules["0"](x))


@trait()
class ChildNamedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"weight": grouped(), "training_": nn.ReLU()})

    def forward(self, x: Tensor) -> Tensor:
        return self.block["training_"](self.block["weight"](x))
