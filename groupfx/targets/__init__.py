"""What a target is: the passes that it needs, and what it would say of a convolution.

Every other file of this folder is one target, in a constant `TARGET`. Adding a target is adding a
file: the command line, its help and completion, the reports and the library find it here. Nothing
here imports torch when it is read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Literal

from ..errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from ..convs.spec import ConvSpec
    from ..running.inputs import ExampleInputs
    from ..toolchains import Obstacle


@dataclass(frozen=True)
class Opinion:
    """A word for the table, and what it means."""

    word: str
    text: str


_UNKNOWN = Opinion("?", "its numbers are not constants of the model")


@dataclass(frozen=True)
class Target:
    """A toolchain or runtime that models are rewritten for.

    `place` orders them; the first is what runs where neither a target nor a pass is named.

    `passes` run in this order, each a name with its options after a colon. `opinion` is what the
    target makes of a convolution as it is, None where it has nothing to say. Learned
    groups are exported in the `forms` that the rewrite planned, or in those that are expected to be
    fastest, site by site. `obstacles` tells what it would refuse in a model that was rewritten.
    """

    name: str
    place: int
    passes: tuple[str, ...]
    opinion: "Callable[[ConvSpec], Opinion] | None" = None
    forms: Literal["planned", "fastest"] = "planned"
    obstacles: "Callable[[nn.Module, ExampleInputs], tuple[Obstacle, ...]] | None" = None

    def says(self, conv: "ConvSpec | None") -> Opinion:
        """The opinion of `conv`, which is None where its numbers are not constants."""
        return _UNKNOWN if conv is None or self.opinion is None else self.opinion(conv)


@cache
def _all() -> tuple[Target, ...]:
    found = (import_module(f"{__name__}.{entry.name}").TARGET for entry in iter_modules(__path__))
    return tuple(sorted(found, key=lambda target: target.place))


def targets() -> tuple[Target, ...]:
    """Those that a user may name, in the order in which they are listed."""
    return _all()[1:]


def target_named(name: str | None) -> Target:
    """The target `name`, the first for None; UsageError with the nearest if there is none."""
    if name is None:
        return _all()[0]
    for target in _all():
        if target.name == name:
            return target
    names = [target.name for target in targets()]
    near = get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(f"there is no target {name!r}: {hint}choose one of {', '.join(names)}")
