"""The proof of one site: the original's region and the rewritten one, on the same random inputs.

A site is looked at on its own because the end of a network can be blind to it (a BatchNorm whose
weight is zero hides everything before it). Both regions are run in float64 on the CPU:

1. in eval mode, with the weights that they have, at two batch and spatial sizes just above the
   kernel's reach: bit-identical for an exact form, else within the rounding bound of `bounds`;
2. the tensors themselves: each of the rewritten ones holds the rows of the original that the map
   of the rewrite says, bit for bit, and every row of every parameter has a place;
3. with random parameters and statistics carried over by that map, so that nothing is hidden by a
   weight that happens to be zero or a statistic that is still at its default: eval mode again,
   gradients, then train mode: output, gradients and updated buffers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InternalError, kind_and_line
from ..running.unchanged import unchanged
from ..state import Entry
from .aligned import AlignedConvs
from .bounds import Magnitudes, bound_ratio, rounding_bound
from .carry import Carrier, placed
from .gradients import Derivatives, differentiate
from .measures import difference, identical, plain_number
from .region import Float64Copy, Region
from .samples import Sample, Sampler, Values

TOLERANCE = 1e-12
_SEED = 7919


@dataclass(frozen=True)
class SiteVerdict:
    """What the comparison of one site found.

    Attributes:
        ok: everything that was asked for holds.
        identical: bit-identical in eval mode, in every run.
        max_error: the largest |d| of the eval runs, in float64.
        bound_ratio: the largest |d| / bound, at most 1 if the form is as accurate as it may be;
            None where an exact form was asked for.
        train_ok: output and buffers agree in train mode; None if the original has no train mode.
        gradients_ok: gradients agree in both modes; None if there is nothing to differentiate.
        reason: why it is not ok, in words; None if it is.
        shapes: the input shapes that were used, one tuple a run.
    """

    ok: bool
    identical: bool = False
    max_error: float = float("inf")
    bound_ratio: float | None = None
    train_ok: bool | None = None
    gradients_ok: bool | None = None
    reason: str | None = None
    shapes: tuple[tuple[tuple[int, ...], ...], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data: shapes are lists, a number that is not finite is None."""
        return {
            **vars(self),
            "max_error": plain_number(self.max_error),
            "bound_ratio": plain_number(self.bound_ratio),
            "shapes": [[list(shape) for shape in run] for run in self.shapes],
        }


def compare_regions(
    original: Region,
    rewritten: Region,
    examples: Sequence[Any],
    *,
    exact: bool = True,
    rows: Mapping[str, Entry] | None = None,
    native: Collection[str] = (),
    seed: int = _SEED,
) -> SiteVerdict:
    """Prove that two regions compute the same function; see the text of this module.

    Args:
        original: the region of the reference graph, which is not changed.
        rewritten: the region between the nodes that correspond. Its inputs stand in the same order.
        examples: for each input the shape of a floating tensor (a tuple), or a tensor like the one
            that the site gets, or a constant.
        exact: demand the same bits in eval mode, as a split gives them.
        rows: the map of the rewrite, as `StateDictMap.entries` (rewritten name -> elements of an
            original tensor; a name that is missing stands for itself). None where there is no such
            map: then step 2 is left out, step 3 keeps the parameters that there are, and gradients
            are compared for the inputs alone.
        native: full names of tensors that keep their own dtype; see `Float64`.
        seed: of everything random.

    Raises InternalError where a region is not closed: a value comes from outside its inputs.
    """
    if len(original.inputs) != len(rewritten.inputs):
        raise InternalError(
            f"the original region has {len(original.inputs)} inputs, "
            f"the rewritten one {len(rewritten.inputs)}"
        )
    with unchanged(), torch.enable_grad(), _one_thread():
        sides = (Float64Copy(original, native), Float64Copy(rewritten, native))
        sampler = Sampler(examples, seed)
        try:
            samples, calls = sampler.samples(sides[0])
        except InternalError:
            raise
        except Exception as error:
            reason = f"the original cannot be run on its own: {kind_and_line(error)}"
            return SiteVerdict(ok=False, reason=reason)
        carrier = None if rows is None else Carrier(*sides, rows, native)
        comparison = _Comparison(*sides, carrier, exact, calls.terms, seed)
        mismatch = comparison.run(samples)
    return SiteVerdict(
        ok=mismatch is None,
        identical=comparison.identical,
        max_error=comparison.max_error,
        bound_ratio=None if exact else comparison.ratio,
        train_ok=comparison.train_ok,
        gradients_ok=comparison.gradients_ok,
        reason=mismatch,
        shapes=tuple(_shapes(sample.values) for sample in samples),
    )


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: over several, BLAS may add up the same products in another order.

    A grouped 3-d convolution of 128 channels was seen to differ from its split by 6e-15 on two
    threads, and by nothing on one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _MismatchError(Exception):
    """The two sides differ; the message is the reason."""


@dataclass
class _Comparison:
    """Two copies being compared, and what was found so far."""

    original: Float64Copy
    rewritten: Float64Copy
    carrier: Carrier | None
    exact: bool
    terms: int
    seed: int
    identical: bool = True
    max_error: float = 0.0
    ratio: float = 0.0
    train_ok: bool | None = None
    gradients_ok: bool | None = None

    def run(self, samples: Sequence[Sample]) -> str | None:
        """Compare everything; the reason why the two sides differ, None if they do not."""
        try:
            self._run(samples)
        except _MismatchError as mismatch:
            return str(mismatch)
        return None

    def _run(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            self._compare_eval(sample, "in eval mode")
        problem = None if self.carrier is None else self.carrier.problem()
        if problem is not None:
            raise _MismatchError(problem)
        values = samples[0].values
        self._unblind(values)
        self._compare_eval_gradients(values)
        self._compare_train(values)

    def _compare_eval(self, sample: Sample, when: str) -> None:
        with torch.no_grad(), _failing(when):
            after = self.rewritten.run(sample.values, training=False)
        self._judge(sample.output, after, sample.values, when)

    def _judge(self, before: Tensor, after: Tensor, values: Values, when: str) -> None:
        """Whether two outputs in eval mode are as close as they have to be."""
        if not isinstance(after, Tensor):
            raise _MismatchError(f"{when} the output is a {type(after).__name__}, not a tensor")
        if identical(before, after) or (self.exact and self._identical_by_group(before, values)):
            return
        self.identical = False
        found = difference(before, after)
        self.max_error = max(self.max_error, found.error)
        if found.reason is not None:
            raise _MismatchError(f"{when} the output {found.reason}")
        if self.exact:
            raise _MismatchError(
                f"{when} it is not bit-identical: off by up to {found.error:.3g}, where the output "
                f"reaches {found.scale:.3g}"
            )
        positive = [value.abs() if _is_float(value) else value for value in values]
        with torch.no_grad(), Magnitudes():
            magnitudes = self.original.run(positive, training=False)
        ratio = bound_ratio(before, after, rounding_bound(magnitudes, self.terms))
        self.ratio = max(self.ratio, ratio)
        if ratio > 1:
            raise _MismatchError(
                f"{when} it is off by up to {found.error:.3g}, {ratio:.3g} times what the rounding "
                f"of {self.terms} terms explains"
            )

    def _identical_by_group(self, before: Tensor, values: Values) -> bool:
        """Whether both sides are bit-identical where no group depends on where its operands lie.

        They must also give what was found before, but for rounding: else the mode is not the site.
        """
        with torch.no_grad(), AlignedConvs():
            try:
                own = self.original.run(values, training=False)
                other = self.rewritten.run(values, training=False)
            except Exception:  # such as an operator that takes no keywords
                return False
        return identical(own, other) and difference(before, own).relative <= TOLERANCE

    def _unblind(self, values: Values) -> None:
        """Change the parameters of both sides alike, so that nothing hides behind a zero.

        With a map of the rewrite, everything becomes random. Without one, norms whose weight holds
        zeros get 1 added, which commutes with any slice, permutation or repeat.
        """
        if self.carrier is None:
            _raise_norms(self.original, self.rewritten)
            return
        self.carrier.randomize(torch.Generator().manual_seed(self.seed + 1))
        try:
            with torch.no_grad():
                usable = bool(torch.isfinite(self.original.run(values, training=False)).all())
        except Exception:
            usable = False
        if not usable:  # such as a logarithm of a parameter: then its own values have to do
            self.carrier.restore()

    def _compare_eval_gradients(self, values: Values) -> None:
        when = "in eval mode" if self.carrier is None else "in eval mode with random parameters"
        try:
            before = differentiate(self.original, values, training=False, seed=self.seed)
        except Exception:  # a custom function without a backward
            with torch.no_grad():
                before = Derivatives(self.original.run(values, training=False))
        if before.inputs is None:
            self._compare_eval(Sample(values, before.output), when)
            return
        with _failing(when):
            after = differentiate(self.rewritten, values, training=False, seed=self.seed)
        self._judge(before.output, after.output, values, when)
        self.gradients_ok = False
        self._match_gradients(before, after, when)
        self.gradients_ok = True

    def _compare_train(self, values: Values) -> None:
        """Last, because it moves running statistics."""
        try:
            before = differentiate(self.original, values, training=True, seed=self.seed)
        except Exception:  # such as a BatchNorm over a single value
            return
        self.train_ok = False
        with _failing("in train mode"):
            after = differentiate(self.rewritten, values, training=True, seed=self.seed)
        _require_close("in train mode the output", before.output, after.output)
        for name, entry in () if self.carrier is None else self.carrier.pairs():
            tensor = self.rewritten.tensors[name]
            if not isinstance(tensor, nn.Parameter):
                source = self.original.tensors[entry.key]
                what = f"after a step in train mode {name}"
                _require_close(what, *_where_placed(entry, source, entry.of(source), tensor))
        self.train_ok = True
        if before.inputs is not None:
            self.gradients_ok = False
            self._match_gradients(before, after, "in train mode")
            self.gradients_ok = True

    def _match_gradients(self, before: Derivatives, after: Derivatives, when: str) -> None:
        scale = before.scale()
        if after.inputs is None:
            raise _MismatchError(f"{when} the output lost its gradient")
        for position, pair in enumerate(zip(before.inputs or (), after.inputs, strict=True)):
            _require_close(f"{when} the gradient of input {position}", *pair, scale)
        for name, entry in () if self.carrier is None else self.carrier.pairs():
            if name in after.parameters and entry.key in before.parameters:
                source = before.parameters[entry.key]
                expected, found = entry.gradient_of(source), after.parameters[name]
                what = f"{when} the gradient of {name}"
                _require_close(what, *_where_placed(entry, source, expected, found), scale)


@contextlib.contextmanager
def _failing(when: str) -> Iterator[None]:
    try:
        yield
    except (InternalError, _MismatchError):
        raise
    except Exception as error:
        raise _MismatchError(f"{when} the rewritten form fails: {kind_and_line(error)}") from error


def _require_close(what: str, before: Tensor, after: Tensor, scale: float = 0.0) -> None:
    if identical(before, after):
        return
    found = difference(before, after)
    if found.reason is not None:
        raise _MismatchError(f"{what} {found.reason}")
    limit = TOLERANCE * max(scale, found.scale)
    if found.error > limit:
        raise _MismatchError(
            f"{what} is off by up to {found.error:.3g}, and at most {limit:.3g} is rounding"
        )


def _where_placed(
    entry: Entry, source: Tensor, expected: Tensor, found: Tensor
) -> tuple[Tensor, Tensor]:
    """Both tensors without padding, which nothing in the original stands for."""
    place = placed(entry, source)
    if place is None or found.shape != expected.shape:
        return expected, found
    return expected[place], found[place]


def _raise_norms(original: Float64Copy, rewritten: Float64Copy) -> None:
    weights = [norm.weight for side in (original, rewritten) for norm in side.norms()]
    if not any(bool((norm.weight == 0).any()) for norm in original.norms()):
        return
    with torch.no_grad():
        for weight in {id(weight): weight for weight in weights}.values():
            weight.add_(1)


def _shapes(values: Values) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(value.shape) for value in values if isinstance(value, Tensor))


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
