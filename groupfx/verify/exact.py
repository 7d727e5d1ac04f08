"""The proof of a site in whole numbers: every bit of the output and of the gradients is the same.

See `whole` for why, and for the probability with which a wrong form passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .carry import Carrier
from .gradients import differentiate
from .mismatch import failing, match_gradients, require_identical
from .polynomial import Polynomial, PolynomialRecorder, least_exponent, mark_degree
from .region import RegionCopy
from .samples import Draw, Sampler, Size, Values
from .whole import chance_of, fill_whole, is_whole, largest_reach, trials_needed

# A variance is 4^k less eps; how large k may be is a matter of taste, for float64 takes up to 511.
_EXPONENTS = 128

WHEN = "in whole numbers"


@dataclass(frozen=True)
class WholeProof:
    """What was proved in whole numbers: of which polynomial, with what chance of being wrong.

    `chance` is (degree / (2 reach + 1))^trials.
    """

    polynomial: Polynomial
    reach: int
    trials: int

    @property
    def chance(self) -> float:
        """The probability with which a form that differs would have passed, at most."""
        return chance_of(self.polynomial.degree, self.reach) ** self.trials


class WholeFill:
    """Draws whole numbers for the tensors of a region, so that its norms stay exact.

    A variance is chosen so that 1 / sqrt(var + eps) is a power of two, 1 in the first trial, where
    a different eps shows, and in the others, where no later sum mixes channels, another one for
    each channel. With `positive` all other numbers are from 1 ... reach.
    """

    def __init__(
        self,
        polynomial: Polynomial,
        reach: int,
        generator: torch.Generator,
        *,
        spread: bool = False,
        positive: bool = False,
    ) -> None:
        self._polynomial = polynomial
        self._reach, self._generator = reach, generator
        self._spread = spread and polynomial.ends_in_norm
        self._positive = positive
        self._exponents: dict[str, Tensor] = {}

    def __call__(self, name: str, tensor: Tensor) -> None:
        """Fill the tensor of this name."""
        eps = self._polynomial.epsilons.get(name)
        if eps is not None:
            # 1 / sqrt(var + eps) is a power of two, and var is positive.
            exponents = self._exponents_of(name, tensor)
            tensor.copy_(torch.ldexp(torch.ones(tensor.shape, dtype=torch.float64), 2 * exponents))
            tensor.sub_(eps)
            return
        fill_whole(tensor, self._reach, self._generator)
        if self._positive:
            tensor.abs_().clamp_(min=1)
        if self._spread and name in self._polynomial.offsets:
            # In units of what its channel is multiplied by.
            exponents = self._exponents_of(self._polynomial.offsets[name], tensor)
            tensor.mul_(torch.ldexp(torch.ones_like(tensor), -exponents))

    def _exponents_of(self, name: str, like: Tensor) -> Tensor:
        if name not in self._exponents:
            least = least_exponent(self._polynomial.epsilons[name])
            highest = least + (_EXPONENTS if self._spread else 1)
            drawn = torch.randint(least, highest, like.shape, generator=self._generator)
            self._exponents[name] = drawn
        return self._exponents[name]


def polynomial_of(copy: RegionCopy, carrier: Carrier, sampler: Sampler, size: Size) -> Polynomial:
    """What `copy` computes; all its free numbers are 1 behind this. See `polynomial`."""
    with torch.no_grad():
        for name, tensor in copy.tensors.items():
            if carrier.is_free(name, tensor):
                tensor.fill_(one(tensor.dtype))
                mark_degree(tensor)
    recorder = PolynomialRecorder()
    with recorder:
        values = sampler.values(size, lambda shape: _marked_ones(shape, sampler.dtype))
        try:
            found = differentiate(copy, values, training=False, seed=0, cotangent=_ones_like)
        except Exception:  # a custom function without a backward
            recorder.found.problem = recorder.found.problem or "it cannot be differentiated"
            return recorder.found
    free = [g for name, g in found.parameters.items() if carrier.is_free(name, g)]
    return recorder.finish(copy.tensors, [*(found.inputs or ()), *free])


def proof_of(polynomial: Polynomial, dtype: torch.dtype) -> WholeProof | None:
    """The trials that a proof takes in `dtype`; None where whole numbers prove nothing."""
    if polynomial.problem is not None:
        return None
    reach = largest_reach(polynomial.degree, polynomial.magnitude, dtype)
    if not reach:
        return None
    return WholeProof(polynomial, reach, trials_needed(polynomial.degree, reach))


class NotWholeError(Exception):
    """Whole numbers do not stay whole in a region, which so can only be held to a bound."""


def prove(
    proof: WholeProof,
    original: RegionCopy,
    rewritten: RegionCopy,
    carrier: Carrier,
    sampler: Sampler,
    sizes: Sequence[Size],
    seed: int,
) -> bool | None:
    """Compare two float64 copies on all trials, and their gradients on the first.

    Returns whether gradients agree, None where there are none. Raises RegionMismatchError where a
    bit differs, and NotWholeError where the original's own numbers are not whole.
    """
    trials = _trials(proof, carrier, sampler, sizes, seed)
    gradients = _prove_first(original, rewritten, carrier, *next(trials))
    for values, _ in trials:
        _prove_output(original, rewritten, values)
    return gradients


def prove_outputs(
    proof: WholeProof,
    original: RegionCopy,
    rewritten: RegionCopy,
    carrier: Carrier,
    sampler: Sampler,
    sizes: Sequence[Size],
    seed: int,
) -> None:
    """As `prove`, without the gradients, for regions whose numbers are known to stay whole."""
    for values, _ in _trials(proof, carrier, sampler, sizes, seed):
        _prove_output(original, rewritten, values)


def _trials(
    proof: WholeProof, carrier: Carrier, sampler: Sampler, sizes: Sequence[Size], seed: int
) -> Iterator[tuple[Values, Draw]]:
    """The inputs of each trial, for which both sides are filled, and what draws more numbers."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return whole(shape, sampler.dtype, proof.reach, generator)

    for trial in range(proof.trials):
        carrier.fill(WholeFill(proof.polynomial, proof.reach, generator, spread=trial > 0))
        yield sampler.values(sizes[trial % len(sizes)], draw), draw


def _prove_output(original: RegionCopy, rewritten: RegionCopy, values: Values) -> None:
    with torch.no_grad():
        before = original.run(values, training=False)
        with failing(WHEN):
            after = rewritten.run(values, training=False)
    require_identical(f"{WHEN} the output", before, after)


def _prove_first(
    original: RegionCopy, rewritten: RegionCopy, carrier: Carrier, values: Values, draw: Draw
) -> bool | None:
    def cotangent(output: Tensor) -> Tensor:
        return drawn.setdefault(tuple(output.shape), draw(tuple(output.shape)))

    drawn: dict[tuple[int, ...], Tensor] = {}
    before = differentiate(original, values, training=False, seed=0, cotangent=cotangent)
    if not is_whole(before.output):
        raise NotWholeError
    with failing(WHEN):
        after = differentiate(rewritten, values, training=False, seed=0, cotangent=cotangent)
    require_identical(f"{WHEN} the output", before.output, after.output)
    if before.inputs is None:
        return None
    match_gradients(before, after, carrier, WHEN, tolerance=None)
    return True


def whole(
    shape: tuple[int, ...], dtype: torch.dtype, reach: int, generator: torch.Generator
) -> Tensor:
    """A new tensor of random whole numbers."""
    made = torch.empty(shape, dtype=dtype)
    fill_whole(made, reach, generator)
    return made


def one(dtype: torch.dtype) -> complex | float:
    """1, of a complex dtype in both parts."""
    return 1 + 1j if dtype.is_complex else 1.0


def _marked_ones(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    made = torch.full(shape, one(dtype), dtype=dtype)
    mark_degree(made)
    return made


def _ones_like(output: Tensor) -> Tensor:
    return torch.full_like(output, one(output.dtype))
