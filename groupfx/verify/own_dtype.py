"""A site in the model's own dtype: large numbers, large sizes, and values that are not finite.

A cast to a narrower type and back, a factor in one precision alone, a limit that small values never
meet, a case for a batch or a width beyond the usual one: float64 on small inputs sees none of them.

Whole numbers are exact in any dtype as long as sums stay below its mantissa. There the inputs are
large, and in a dtype of few bits so sparse that each sum has few terms, and every bit must agree.
What is no polynomial is held to the rule of `yardstick`, with the weights that there are, or, where
it does not run in float64, to the bound of `rounded`.

Infinities and NaN reach an output through a product with their channel, and a product with 0 is
NaN. So a split, which computes the products of the original and no others, must give the same kinds
of values at the same places. A form that leaves out products with 0 must give the original's values
wherever that one is not NaN, and may give a number for a NaN only where the output does not depend
on the input that was not finite. One that is padded multiplies some channels by 0 once more, so
that it may give NaN for an infinity. This is compared in float64: kernels for narrow types multiply
zeros of their own (a depthwise bfloat16 convolution takes channels in pairs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..running.float64 import widen
from ..running.unchanged import seed_torch
from .bounds import ConvCalls, Magnitudes
from .carry import Carrier
from .exact import WholeFill, whole
from .measures import identical, real
from .mismatch import TOLERANCE, RegionMismatchError, failing, require_identical
from .polynomial import Polynomial
from .region import RegionCopy
from .rounded import RoundedComparison, magnitudes_of
from .samples import Draw, Sampler, Size, Values
from .whole import mantissa
from .yardstick import kind_mismatch, rms, rms_limit

# Of the bits of the mantissa, how many the largest input takes.
_LARGE = 0.75
_PARAMETERS = 2
_THINNINGS = 8
_POISON = (float("nan"), float("inf"), float("-inf"))
_POISONED_CHANNELS = 8
_LARGE_REALS = 1e4
_LARGE_HALVES = 64.0


@dataclass(frozen=True)
class OwnDtype:
    """Two regions compared in the dtypes of their model.

    The copies become narrow. `polynomial` is None where whole numbers prove nothing of the
    original; `strict` asks for the same kinds of values where an input is not finite, as an exact
    form gives them. `is_known` says that nothing in either asks for a size, so that one that is
    large on one side will do.
    """

    original: RegionCopy
    rewritten: RegionCopy
    carrier: Carrier | None
    examples: Sequence[Any]
    polynomial: Polynomial | None
    calls: ConvCalls
    dtype: torch.dtype
    strict: bool
    seed: int
    kept: frozenset[int] = frozenset()
    is_known: bool = False

    def compare(self, small: Size) -> bool | None:
        """Whether the two agree; None where the original cannot be run in its dtype.

        `small` is a size that the original takes. Raises RegionMismatchError where they do not.
        """
        sampler = Sampler(self.examples, self.seed, self.dtype, self.kept)
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            if self.polynomial is None or self.carrier is None:
                if self.carrier is not None:
                    self.carrier.restore()
                judged = self._compare_rounded if self.original.wide else self._compare_bounded
                return judged(sampler, self._draws(generator))
            if not self.dtype.is_complex:
                wide = torch.float64 if self.original.wide else self.dtype
                self._compare_poisoned(sampler, small, wide, generator)
            self.original.narrow()
            self.rewritten.narrow()
            reach = _PARAMETERS if mantissa(self.dtype) >= mantissa(torch.float32) else 1
            self.carrier.fill(WholeFill(self.polynomial, reach, generator))
            for size in sampler.large_sizes(self.calls, all_sides=not self.is_known):
                values = self._large_values(sampler, size, reach, generator)
                if values is not None:
                    break
            else:
                return None
            self._compare_large(values)
        return True

    def _large_values(
        self, sampler: Sampler, size: Size, reach: int, generator: torch.Generator
    ) -> Values | None:
        """Inputs as large as the dtype lets them be, and so sparse that no sum is rounded.

        None where the original does not take this size, or where nothing is left of them.
        """
        assert self.polynomial is not None
        limit = 2.0 ** mantissa(self.dtype)
        others = float(reach) ** (self.polynomial.degree - 1)
        large = int(min(limit**_LARGE, limit / 4 / others))
        # What only moves numbers sums none.
        share = limit / (2 * max(self.polynomial.forward, 1) * max(large, 1) * others)
        for _ in range(_THINNINGS if large else 0):
            values = sampler.values(size, _sparse(self.dtype, large, min(share, 1.0), generator))
            with Magnitudes() as magnitudes:
                if _taken(self.original, magnitudes_of(values)) is None:
                    return None
            if magnitudes.largest < limit:
                return values
            share /= 2
        return None

    def _compare_large(self, values: Values) -> None:
        when = f"in {_name(self.dtype)}, with large numbers and sizes,"
        before = self.original.run(values, training=False)
        with failing(when):
            after = self.rewritten.run(values, training=False)
        require_identical(f"{when} the output", before, after)

    def _compare_poisoned(
        self, sampler: Sampler, small: Size, dtype: torch.dtype, generator: torch.Generator
    ) -> None:
        """Values that are not finite at half of the places: in all channels, or in one a sample.

        All tensors are positive, so that infinities of different channels do not cancel.
        """
        assert self.polynomial is not None
        assert self.carrier is not None
        when = "with an input that is not finite"
        self.carrier.fill(WholeFill(self.polynomial, 1, generator, positive=True))
        samples = len(_POISON) * (1 if self.strict else _POISONED_CHANNELS)
        for size in (replace(small, batch=samples), small):
            ordinary = sampler.values(size, lambda shape: whole(shape, dtype, 1, generator))
            poisoned = self._changed(ordinary, lambda old, kind: torch.full_like(old, kind))
            before = _taken(self.original, poisoned)
            if before is not None:
                break
        else:
            return
        with failing(when):
            after = self.rewritten.run(poisoned, training=False)
        if self.strict or identical(before, after):
            require_identical(f"{when} the output", before, after)
            return
        if before.shape != after.shape or before.dtype != after.dtype:
            raise RegionMismatchError(f"{when} the output has another shape or dtype")
        told = ~before.isnan()
        if self.carrier.has_padding():
            told &= torch.isfinite(before) | ~after.isnan()
        require_identical(f"{when} the output", before[told], after[told])
        moved = self._changed(ordinary, lambda old, _: old + 1)
        plain = [self.original.run(values, training=False) for values in (ordinary, moved)]
        hidden = int(((plain[0] != plain[1]) & before.isnan() & torch.isfinite(after)).sum())
        if hidden:
            raise RegionMismatchError(f"{when} {hidden} outputs that depend on it are finite")

    def _changed(self, values: Values, change: Callable[[Tensor, float], Tensor]) -> Values:
        """Floating inputs with each sample changed at the same places in every call."""
        generator = torch.Generator().manual_seed(self.seed)
        made = []
        for value in values:
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1:
                value = value.clone()
                for number, sample in enumerate(value.flatten(2) if value.dim() > 2 else value):
                    channels = sample if sample.dim() > 1 else sample[:, None]
                    chosen = torch.rand(channels.shape[1], generator=generator) < 0.5
                    if not self.strict:
                        one = int(torch.randint(len(channels), (1,), generator=generator))
                        channels = channels[one : one + 1]
                    kind = _POISON[number % len(_POISON)]
                    channels[:, chosen] = change(channels[:, chosen], kind)
            made.append(value)
        return tuple(made)

    def _draws(self, generator: torch.Generator) -> dict[str, Draw]:
        """Ordinary and large inputs."""
        halves = mantissa(self.dtype) < mantissa(torch.float32)
        return {
            f"of about {scale:g}": _normal(self.dtype, scale, generator)
            for scale in (1.0, _LARGE_HALVES if halves else _LARGE_REALS)
        }

    def _compare_bounded(self, sampler: Sampler, draws: Mapping[str, Draw]) -> bool | None:
        """By the bound of rounding in the dtype itself, for what does not run in float64."""
        sides = (self.original, self.rewritten, self.carrier)
        rounded = RoundedComparison(*sides, self.calls.terms, self.seed, self.dtype)
        for size in sampler.large_sizes(self.calls):
            inputs = {name: sampler.values(size, draw) for name, draw in draws.items()}
            if any(_taken(self.original, values) is None for values in inputs.values()):
                continue
            for name, values in inputs.items():
                rounded.compare_eval(values, f"in {_name(self.dtype)}, with inputs {name},")
            return True
        return None

    def _compare_rounded(self, sampler: Sampler, draws: Mapping[str, Draw]) -> bool | None:
        """By the rule for lower precision, with ordinary and with large inputs."""
        found = self._wide_runs(sampler, draws)
        if found is None:
            return None
        self.original.narrow()
        self.rewritten.narrow()
        for inputs, (values, truth) in found.items():
            when = f"in {_name(self.dtype)}, with inputs {inputs},"
            seed_torch(self.seed)
            try:
                before = self.original.run(values, training=False)
            except Exception:  # a kernel that this dtype does not have
                return None
            seed_torch(self.seed)
            with failing(when):
                after = self.rewritten.run(values, training=False)
            _require_in_yardstick(f"{when} the output", truth, before, after)
        return True

    def _wide_runs(
        self, sampler: Sampler, draws: Mapping[str, Draw]
    ) -> dict[str, tuple[Values, Tensor]] | None:
        """For each draw the inputs, of the first size that is taken, and the float64 output."""
        for size in sampler.large_sizes(self.calls):
            try:
                found = {}
                for name, draw in draws.items():
                    values = sampler.values(size, draw)
                    seed_torch(self.seed)
                    truth = self.original.run([widen(v) for v in values], training=False)
                    found[name] = values, truth
                return found
            except Exception:
                continue  # a size that the original does not take
        return None


def _require_in_yardstick(what: str, truth: Tensor, before: Tensor, after: Tensor) -> None:
    if not isinstance(after, Tensor) or before.shape != after.shape or before.dtype != after.dtype:
        raise RegionMismatchError(f"{what} is of another kind, shape or dtype")
    truth, before, after = real(truth), real(before), real(after)
    if identical(before, after) or not before.is_floating_point():
        require_identical(what, before, after)
        return
    wide, own, other = (t.detach().double().numpy() for t in (truth, before, after))
    reason = kind_mismatch(wide, own, other, before.dtype)
    if reason is not None:
        raise RegionMismatchError(f"{what} {reason}")
    finite = torch.isfinite(truth) & torch.isfinite(before) & torch.isfinite(after)
    inside = finite.numpy()
    peak = float(abs(wide[inside]).max()) if inside.any() else 0.0
    limit = rms_limit(rms((own - wide)[inside]), peak, before.dtype, ordinary=True)
    found = rms((other - wide)[inside])
    if found > max(limit, TOLERANCE * peak):
        raise RegionMismatchError(f"{what} is off by {found:.3g}, where {limit:.3g} is allowed")


def _taken(original: RegionCopy, values: Values) -> Tensor | None:
    """What the original gives for these values; None where it is nothing, or does not run."""
    try:
        found = original.run(values, training=False)
    except Exception:
        return None
    return found if isinstance(found, Tensor) and found.numel() else None


def _sparse(dtype: torch.dtype, reach: int, share: float, generator: torch.Generator) -> Draw:
    def draw(shape: tuple[int, ...]) -> Tensor:
        made = whole(shape, dtype, reach, generator)
        return made if share >= 1 else made * (torch.rand(shape, generator=generator) < share)

    return draw


def _normal(dtype: torch.dtype, scale: float, generator: torch.Generator) -> Draw:
    wide = torch.complex128 if dtype.is_complex else torch.float64

    def draw(shape: tuple[int, ...]) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=wide) * scale).to(dtype)

    return draw


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
