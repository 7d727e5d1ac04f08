"""What a trait is: a tiny model that does one unusual thing, and what has to become of it.

A row of the table is a class, or a function that makes a model, under `@trait(...)`. Every one of
them is taken through all of `find`, `rewrite`, training, `save` and `load` by `test_traits.py`.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

SHAPE = (2, 6, 7, 11)


@dataclass(frozen=True)
class Trait:
    """One model, and what is known of it.

    `way` is how it is opened, `calls` how many grouped convolutions one forward calls, and
    `counted` how many a dispatch mode of plain torch sees of them: others where a complex one is
    three, None where it does not see them. `left` are the sites that stay as they are and the
    reason of each, in which HERE is a place in a file of traits. `refused` is what `rewrite`
    raises, `fixed` whether the result stays in eval mode, `unsaved` what `save` raises (its start).
    """

    id: str
    make: Callable[[], Any]
    example: Callable[[], Any]
    way: str
    calls: int
    counted: int | None
    left: Mapping[str, str]
    refused: str | None
    fixed: bool
    unsaved: str | None


TRAITS: dict[str, Trait] = {}
Made = TypeVar("Made", bound=Callable[[], Any])
_SAME = -1


def trait(
    way: str = "trace",
    *,
    calls: int = 1,
    counted: int | None = _SAME,
    example: Callable[[], Any] | None = None,
    left: Mapping[str, str] | None = None,
    refused: str | None = None,
    fixed: bool = False,
    unsaved: str | None = None,
) -> Callable[[Made], Made]:
    """Put what is decorated into the table, under its name."""

    def put(make: Made) -> Made:
        words = make.__name__.removesuffix("Trait").replace("_", "-")
        name = "".join(f"-{c.lower()}" if c.isupper() else c for c in words).strip("-")
        assert name not in TRAITS, name
        TRAITS[name] = Trait(
            id=name,
            make=make,
            example=example or image,
            way=way,
            calls=calls,
            counted=calls if counted == _SAME else counted,
            left=left or {},
            refused=refused,
            fixed=fixed,
            unsaved=unsaved,
        )
        return make

    return put


def image() -> Tensor:
    """What most traits take."""
    return torch.randn(SHAPE)


def grouped(channels: int = 6, out: int | None = None, **options: Any) -> nn.Conv2d:
    """A grouped convolution that keeps the size of an image."""
    return nn.Conv2d(channels, out or channels, 3, padding=1, **{"groups": 3, **options})


def quiet(make: Callable[..., Any], *args: Any) -> Any:
    """What `make` makes, whatever torch warns of while it does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*args)


class One(nn.Module):
    """A grouped convolution, which most traits call in a way of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = grouped()

    def forward(self, x: Tensor) -> Any:
        return self.conv(x)


def only(conv: nn.Module) -> nn.Module:
    """A model that calls one layer."""
    model = One()
    model.conv = conv
    return model


class Weighted(nn.Module):
    """The weight and the bias of a grouped convolution, for functional calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9, 2, 3, 3))
        self.bias = nn.Parameter(torch.randn(9))
