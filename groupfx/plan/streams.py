"""What lies between convolutions: sums and activations, and the layouts in which they find tensors.

A stream is all tensors that such operations connect, a residual stream or what is between two
convolutions. Where one site leaves the blocked layout of the runtime, its neighbours find the
tensor in the plain one: the next that gathers has nothing to bring there, and one that does not
must bring it back. A sum is in the blocked layout where both of its sides are. So what a form costs
depends on those beside it, and a stream is priced as a whole: every change of the layout, once a
tensor, and every operation that no convolution takes along.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

from .cost import OnnxRuntime


@dataclass(frozen=True)
class Step:
    """An operation channel by channel on one tensor, or on two of one size; tensors are numbers.

    `stays` says whether the runtime does it in the blocked layout also where no convolution takes
    it along. One does with an activation: each of those that are joined in front of it, or
    `blocked` ones only; one alone does with a sum, none with anything else. By itself it takes so
    many `passes`. What `convolves` is made a convolution in the blocked layout, which takes along
    what follows, as a norm is.
    """

    reads: tuple[int, ...]
    gives: int
    stays: bool = True
    along: Literal["each", "blocked", "one", "none"] = "each"
    passes: int = 1
    convolves: bool = False


@dataclass(frozen=True)
class End:
    """Who gives or reads a tensor: a site by its name, or something else, and its layout there.

    `fuses` is whether it is a convolution, which takes along what follows. It `interpolates` so
    many values a sample out of what it reads.
    """

    tensor: int
    site: str | None = None
    blocked: bool = False
    fuses: bool = False
    interpolates: int = 0


class Side(Protocol):
    """What a stream asks of the form of a site."""

    @property
    def reads_blocked(self) -> bool:
        """Whether it reads the blocked layout."""

    @property
    def gathers(self) -> bool:
        """Whether all that it reads is gathered, so that it can gather for the site before too."""

    @property
    def is_gathered(self) -> bool:
        """Whether a gather stands behind it."""

    @property
    def fuses(self) -> bool:
        """Whether it gives what one convolution gives."""

    def gives_blocked(self, joined: bool) -> bool:
        """Whether it gives the blocked layout."""

    def activates(self, joined: bool) -> bool:
        """Whether an activation behind it goes into each of its convolutions."""


@dataclass(frozen=True)
class Stream:
    """Tensors of so many `channels` and `positions` a sample, in the order of `steps`.

    `blocked` is whether the runtime has a blocked layout for them.
    """

    channels: int
    positions: int
    blocked: bool
    steps: tuple[Step, ...]
    writers: tuple[End, ...]
    readers: tuple[End, ...]

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """Those that give or read it."""
        found = (end.site for end in (*self.writers, *self.readers))
        return tuple(dict.fromkeys(name for name in found if name is not None))

    @cached_property
    def pair(self) -> tuple[str, str] | None:
        """The only site that gives it and the only one that reads it, where nothing else does."""
        if len(self.writers) != 1 or len(self.readers) != 1:
            return None
        first, second = self.writers[0].site, self.readers[0].site
        if first is None or second is None:
            return None
        # A gather does not pass a sum, nor a norm, which has numbers for each channel.
        if any(len(step.reads) > 1 or step.convolves for step in self.steps):
            return None
        return first, second

    def joined(self, sides: Mapping[str, Side]) -> bool:
        """Whether the site that reads it gathers for the one that gives it as well."""
        if self.pair is None:
            return False
        first, second = (sides[name] for name in self.pair)
        return first.is_gathered and second.gathers

    def cost(self, price: OnnxRuntime, sides: Mapping[str, Side]) -> float:
        """Microseconds of what is not the sites' own, with a price of this size and some batch."""
        values = self.channels * self.positions * price.work.batch
        into_plain, copy = price.leaves(values, self.positions), price.copy(values)
        joined, total = self.joined(sides), 0.0
        blocked: dict[int, bool] = {}
        fuses, activates = set[int](), set[int]()
        for end in self.writers:
            side = None if end.site is None else sides[end.site]
            blocked[end.tensor] = end.blocked if side is None else side.gives_blocked(joined)
            if end.fuses if side is None else side.fuses:
                fuses.add(end.tensor)
            if side is not None and side.activates(joined):
                activates.add(end.tensor)
        plain = {end.tensor for end in self.readers if not _reads_blocked(end, sides)}
        for step in self.steps:
            together = all(blocked[tensor] for tensor in step.reads)
            alone = [tensor for tensor in step.reads if self._uses[tensor] == 1]
            fused = step.along != "none" and any(tensor in fuses for tensor in alone)
            if step.along == "blocked":
                fused = fused and together
            if len(step.reads) > 1:
                # A matrix product takes no sum along.
                fused, inside = fused and together, together
                fuses |= {step.gives} if fused else set()
            else:
                fused |= step.along == "each" and any(tensor in activates for tensor in alone)
                inside = together and (fused or step.stays)
            if step.convolves and inside:
                fuses.add(step.gives)
            if not inside:
                plain |= {tensor for tensor in step.reads if blocked[tensor]}
            total += 0 if fused else step.passes * copy
            blocked[step.gives] = inside
        total += into_plain * sum(blocked[tensor] for tensor in plain)
        slow = sum(end.interpolates for end in self.readers if not blocked[end.tensor])
        total += price.interpolates(slow * price.work.batch)
        back = {end.tensor for end in self.readers if _reads_blocked(end, sides)}
        return total + price.enters(values) * sum(not blocked[tensor] for tensor in back)

    @cached_property
    def _uses(self) -> Mapping[int, int]:
        read = [tensor for step in self.steps for tensor in step.reads]
        read += [end.tensor for end in self.readers]
        return {tensor: read.count(tensor) for tensor in read}


def _reads_blocked(end: End, sides: Mapping[str, Side]) -> bool:
    return end.blocked if end.site is None else sides[end.site].reads_blocked
