"""The proof of one site: the original's region and the rewritten one, on the same numbers.

A site is looked at on its own because the end of a network can be blind to it (a BatchNorm whose
weight is zero hides everything before it). Both regions are copied to the CPU, and compared:

1. The tensors: each of the rewritten ones holds the elements of the original that the map of the
   rewrite says, bit for bit, every row of every parameter has a place, and modes are kept.
2. The function. With a map, and where the region is a polynomial of its numbers (a convolution, a
   linear layer, a mask, a BatchNorm in eval mode; moving channels), both sides get the same small
   random whole numbers as tensors and as inputs. No sum of them is rounded, so that outputs and
   gradients must be the same to the last bit; a form that differs passes with a probability below
   2^-40 (`whole` has the argument). All else is held to the rounding bound of `bounds`.
3. Train mode, where a module knows one: output, gradients and updated buffers in float64, with
   random parameters and statistics, to a relative 1e-12.
   What does not run in float64 (a fake quantisation, a custom operator) runs in its own dtype here,
   whose rounding then is the bound.
4. The model's own dtype (`own_dtype`): large numbers, a batch and a width beyond the usual ones,
   and inputs that are not finite.

What 2 to 4 find does not depend on the numbers in the tensors where the region is a polynomial, so
that of sites that are built alike one is enough (`repeated`); and of those that differ in their
channels alone, what is left is the output in whole numbers (`kinds`).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InternalError, kind_and_line
from ..running.float64 import widen
from ..running.unchanged import unchanged
from ..state import Entry
from .bounds import ConvCalls, Rounding
from .carry import Carrier, TensorMap
from .exact import NotWholeError, polynomial_of, proof_of, prove, prove_outputs
from .kinds import kind_of
from .measures import plain_number
from .mismatch import RegionMismatchError
from .own_dtype import OwnDtype
from .polynomial import Polynomial
from .recomputed import with_free_weights
from .region import Region, RegionCopy, RegionState
from .repeated import structure_of
from .rounded import RoundedComparison
from .samples import Sampler, Size, Values

_SEED = 7919
_NONE = Rounding()

# Numbers in a site's tensors from which on it is compared in float32, if it can be.
_LARGE = 2**22

WHOLE_NUMBERS = "whole numbers"
ROUNDING_BOUND = "rounding bound"


@dataclass(frozen=True)
class SiteVerdict:
    """What the comparison of one site found.

    Attributes:
        ok: everything that was asked for holds.
        identical: bit-identical in eval mode, in every run.
        max_error: the largest |d| of the eval runs, in float64.
        proof: how the function in eval mode was compared: in `whole numbers`, bit for bit, or, for
            what is no polynomial, within the `rounding bound`: that of float64, or, where the
            original does not run in it, the `rounding bound in float32`, or what its dtype is.
        chance: the probability that whole numbers do not show a difference, at most; None for the
            rounding bound.
        bound_ratio: the largest |d| / bound, at most 1 if the form is as accurate as it may be;
            None where the proof is in whole numbers.
        train_ok: output and buffers agree in train mode; None if the original has no train mode.
        gradients_ok: gradients agree in both modes; None if there is nothing to differentiate.
        own_dtype_ok: the model's own dtype agrees, with large and not finite values and with a
            large batch and width; None if the original cannot be run so.
        reason: why it is not ok, in words; None if it is.
        shapes: the input shapes that were used in float64, one tuple a size.
    """

    ok: bool
    identical: bool = False
    max_error: float = 0.0
    proof: str = ROUNDING_BOUND
    chance: float | None = None
    bound_ratio: float | None = None
    train_ok: bool | None = None
    gradients_ok: bool | None = None
    own_dtype_ok: bool | None = None
    reason: str | None = None
    shapes: tuple[tuple[tuple[int, ...], ...], ...] = ()

    @property
    def in_own_dtype(self) -> bool:
        """Whether the original does not run in float64, so that all was held to a wider bound."""
        return self.proof not in (WHOLE_NUMBERS, ROUNDING_BOUND)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: shapes are lists, a number that is not finite is None."""
        return {
            **vars(self),
            "max_error": plain_number(self.max_error),
            "bound_ratio": plain_number(self.bound_ratio),
            "shapes": [[list(shape) for shape in run] for run in self.shapes],
        }


@dataclass
class Proved:
    """The verdicts of sites that were proved in whole numbers.

    By how they are built (`repeated`), and the first ones of each kind (`kinds`).
    """

    built: dict[Hashable, SiteVerdict] = field(default_factory=dict)
    kinds: dict[Hashable, SiteVerdict] = field(default_factory=dict)


def compare_regions(
    original: Region,
    rewritten: Region,
    examples: Sequence[Any],
    *,
    exact: bool = True,
    rows: Mapping[str, Entry] | None = None,
    native: Collection[str] = (),
    seed: int = _SEED,
    proved: Proved | None = None,
    modes: bool = True,
    kept: frozenset[int] = frozenset(),
    rounding: Rounding = _NONE,
) -> SiteVerdict:
    """Prove that two regions compute the same function; see the text of this module.

    Args:
        original: the region of the reference graph, which is not changed.
        rewritten: the region between the nodes that correspond. Its inputs stand in the same order.
        examples: for each input the shape of a floating tensor (a tuple), or a tensor like the one
            that the site gets, or a constant.
        exact: the form computes the products of the original and no others, as a split does: it
            must be a polynomial in whole numbers where the original is one, and give the same kinds
            of values for inputs that are not finite.
        rows: the map of the rewrite, as `StateDictMap.entries` (rewritten name -> elements of an
            original tensor; a name that is missing stands for itself). None where there is no such
            map: then the parameters are those that there are, within the bound of rounding, and
            gradients are compared for the inputs alone.
        native: full names of tensors that keep their own dtype; see `Float64`.
        seed: of everything random.
        proved: what earlier calls with the same `seed` proved, to which this one adds: of a site
            that is built like one of them only the tensors are compared, and of one of its kind
            also the outputs in whole numbers.
        modes: whether there is a train mode to compare in, which an exported graph has not.
        kept: axes of the inputs that have no other sizes than those of `examples`; 0 is the batch.
        rounding: what may be rounded besides the sums of the original.

    Raises InternalError where a region is not closed: a value comes from outside its inputs.
    """
    if len(original.inputs) != len(rewritten.inputs):
        raise InternalError(
            f"the original region has {len(original.inputs)} inputs, "
            f"the rewritten one {len(rewritten.inputs)}"
        )
    before, after = RegionState(original), RegionState(rewritten)
    free = None if rows is None else with_free_weights(before, after, rows)
    if free is not None:
        one, other, entries = free
        whole = _Site(one, other, examples, exact, entries, native, seed, modes, kept, rounding)
        found = whole.verdict()
        if found.ok and found.proof == WHOLE_NUMBERS:
            return found
    site = _Site(before, after, examples, exact, rows, native, seed, modes, kept, rounding)
    if proved is None or rows is None:
        return site.verdict()
    asked = (exact, seed, modes, kept, rounding)
    built = structure_of(before, after, examples, rows, native)
    known = proved.built.get((built, asked))
    if known is not None and TensorMap(before, after, rows, native).problem() is None:
        return known
    kind = kind_of(before, after, examples, rows, native)
    site.is_known = kind is not None
    like = proved.kinds.get((kind, asked))
    verdict = None if like is None else site.verdict_like(like)
    if verdict is None:
        verdict = site.verdict()
    if verdict.ok and verdict.proof == WHOLE_NUMBERS:
        if built is not None:
            proved.built[built, asked] = verdict
        if kind is not None:
            proved.kinds.setdefault((kind, asked), verdict)
    return verdict


@dataclass
class _Site:
    """One comparison: its question, and what was found so far.

    `is_known` says that the two are of a kind, in which nothing asks for a size (`kinds`).
    """

    original: RegionState
    rewritten: RegionState
    examples: Sequence[Any]
    exact: bool
    rows: Mapping[str, Entry] | None
    native: Collection[str]
    seed: int
    modes: bool = True
    kept: frozenset[int] = frozenset()
    rounding: Rounding = _NONE
    is_known: bool = False
    found: SiteVerdict = field(default_factory=lambda: SiteVerdict(ok=False))

    def verdict(self) -> SiteVerdict:
        """Compare everything that there is to compare."""
        try:
            with unchanged(), torch.enable_grad():
                self._compare()
        except RegionMismatchError as mismatch:
            worst = max(self.found.max_error, mismatch.error)
            return replace(self.found, ok=False, reason=str(mismatch), max_error=worst)
        return self.found

    def verdict_like(self, like: SiteVerdict) -> SiteVerdict | None:
        """That of a proved site of the same kind, if the channels are wired alike; else None."""
        assert self.rows is not None
        own = _own_dtype(self.original, self.native)
        wide = not self._is_large or own != torch.float32
        sides = self._copies(wide=wide)
        dtype = widen(own) if wide else own
        sampler = Sampler(self.examples, self.seed, dtype, self.kept)
        carrier = Carrier(*sides, self.rows, self.native)
        ((batch, _, *spatial), *_) = like.shapes[0]
        size = Size(batch, tuple(spatial))
        if carrier.problem() is not None:
            return None
        with unchanged(), torch.no_grad():
            proof = proof_of(polynomial_of(sides[0], carrier, sampler, size), sampler.dtype)
            if proof is None:
                return None
            try:
                prove_outputs(proof, *sides, carrier, sampler, [size], self.seed)
            except (RegionMismatchError, NotWholeError):
                return None
        shapes = (_shapes(sampler.values(size)),)
        return replace(like, chance=proof.chance, shapes=shapes)

    def _copies(self, *, wide: bool) -> tuple[RegionCopy, RegionCopy]:
        return (
            RegionCopy(self.original, self.native, wide=wide),
            RegionCopy(self.rewritten, self.native, wide=wide),
        )

    @property
    def _is_large(self) -> bool:
        return self.original.count() >= _LARGE

    def _note(self, **fields: Any) -> None:
        self.found = replace(self.found, **fields)

    def _compare(self) -> None:
        """A large site in float32, which takes half the memory and some more trials.

        And what does not run in float64 in the dtype that it has.
        """
        if not (self._is_large and self._compare_in(wide=False)):
            self.found = SiteVerdict(ok=False)
            if not self._compare_in(wide=True):
                self._compare_in(wide=False, bounded=True)

    def _compare_in(self, *, wide: bool, bounded: bool = False) -> bool:
        """Compare in float64, or in float32 if that is what there is and it proves everything.

        `bounded` takes any dtype, and its rounding bound where there is no proof. False where
        nothing was compared.
        """
        sides = self._copies(wide=wide)
        own = _own_dtype(self.original, self.native)
        if not (wide or bounded) and (
            self.rows is None
            or own != torch.float32
            or sides[0].has_modes()
            or sides[1].has_modes()
        ):
            return False
        dtype = widen(own) if wide else own
        try:
            sampler, sizes, calls = self._sampled(sides[0], dtype)
        except InternalError:
            raise
        except Exception as error:
            reason = f"the original cannot be run on its own: {kind_and_line(error)}"
            self._note(reason=reason)
            return False
        self._note(
            ok=True, reason=None, shapes=tuple(_shapes(sampler.values(size)) for size in sizes)
        )
        carrier = None if self.rows is None else Carrier(*sides, self.rows, self.native)
        problem = None if carrier is None else carrier.problem()
        if problem is not None:
            raise RegionMismatchError(problem)
        polynomial = None
        if carrier is not None:
            polynomial = self._prove_whole(*sides, carrier, sampler, sizes)
        if polynomial is None and not wide:
            if not bounded:
                return False
            self._note(proof=f"{ROUNDING_BOUND} in {str(own).removeprefix('torch.')}")
        terms, constants = calls.terms + self.rounding.terms, self.rounding.constants
        rounded = RoundedComparison(*sides, carrier, terms, self.seed, sampler.dtype, constants)
        try:
            self._compare_rounded(rounded, sampler, sizes, whole=polynomial is not None)
        finally:
            self._take(rounded, whole=polynomial is not None)
        if own.is_complex and not sampler.dtype.is_complex:
            own = own.to_real()
        narrow = OwnDtype(
            *sides,
            carrier=carrier,
            examples=self.examples,
            polynomial=polynomial,
            calls=calls,
            dtype=own,
            strict=self.exact,
            seed=self.seed,
            kept=self.kept,
            is_known=self.is_known,
        )
        self._note(own_dtype_ok=False)
        self._note(own_dtype_ok=narrow.compare(sizes[0]))
        return True

    def _sampled(
        self, original: RegionCopy, dtype: torch.dtype
    ) -> tuple[Sampler, list[Size], ConvCalls]:
        """Inputs that the original takes: complex ones where its first weight is complex."""
        sampler = Sampler(self.examples, self.seed, dtype, self.kept)
        if dtype.is_complex:
            try:
                return sampler, *sampler.sizes(original, any_size=self.is_known)
            except Exception:  # it makes them complex itself
                sampler = Sampler(self.examples, self.seed, torch.float64, self.kept)
        return sampler, *sampler.sizes(original, any_size=self.is_known)

    def _prove_whole(
        self,
        original: RegionCopy,
        rewritten: RegionCopy,
        carrier: Carrier,
        sampler: Sampler,
        sizes: Sequence[Size],
    ) -> Polynomial | None:
        """Prove it in whole numbers; None where it is no polynomial in them."""
        polynomial = polynomial_of(original, carrier, sampler, sizes[0])
        proof = proof_of(polynomial, sampler.dtype)
        if proof is not None:
            try:
                gradients = prove(proof, original, rewritten, carrier, sampler, sizes, self.seed)
                self._note(
                    proof=WHOLE_NUMBERS,
                    chance=proof.chance,
                    identical=True,
                    max_error=0.0,
                    gradients_ok=gradients,
                )
                return polynomial
            except NotWholeError:
                pass
            except RegionMismatchError as mismatch:
                other = polynomial_of(rewritten, carrier, sampler, sizes[0])
                if self.exact or proof_of(other, sampler.dtype) is not None:
                    same, gradients = (
                        mismatch.in_gradients,
                        False if mismatch.in_gradients else None,
                    )
                    self._note(proof=WHOLE_NUMBERS, identical=same, gradients_ok=gradients)
                    raise
        carrier.restore()
        return None

    def _compare_rounded(
        self,
        rounded: RoundedComparison,
        sampler: Sampler,
        sizes: Sequence[Size],
        *,
        whole: bool,
    ) -> None:
        """What whole numbers do not prove: train mode, and all of what is no polynomial."""
        if whole and not (rounded.original.has_modes() or rounded.rewritten.has_modes()):
            rounded.train_ok = True
            return
        if whole and not self.modes:
            return
        values = sampler.values(sizes[0])
        if not whole:
            for size in sizes:
                rounded.compare_eval(sampler.values(size), "in eval mode")
        rounded.unblind(values)
        if not whole:
            rounded.compare_gradients(values)
        if self.modes:
            rounded.compare_train(values)

    def _take(self, rounded: RoundedComparison, *, whole: bool) -> None:
        """Bring what the comparison within rounding found into the verdict."""
        self._note(train_ok=rounded.train_ok)
        if rounded.gradients_ok is not None:
            self._note(gradients_ok=rounded.gradients_ok)
        if not whole:
            self._note(
                identical=rounded.identical,
                max_error=rounded.max_error,
                bound_ratio=rounded.ratio,
            )


def _own_dtype(state: RegionState, native: Collection[str]) -> torch.dtype:
    """The dtype of the first tensor that takes part in the computation."""
    for name, tensor in state.originals.items():
        number = tensor.is_complex() or (tensor.is_floating_point() and tensor.itemsize > 1)
        if name not in native and number:
            return tensor.dtype
    return torch.float32


def _shapes(values: Values) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(value.shape) for value in values if isinstance(value, Tensor))
