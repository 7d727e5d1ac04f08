"""The check of a site that is no polynomial in whole numbers: within what rounding explains.

Outputs in float64 are held to the bound of `bounds`, with the weights that there are and with
random ones; gradients, and everything in train mode, to a relative 1e-12.

What takes its own dtype alone (a fake quantisation, a custom operator) is compared in that: outputs
to the bound with its unit roundoff, all else to the square root of its eps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..running.unchanged import seed_torch
from .bounds import Magnitudes, bound_ratio, rounding_bound
from .carry import Carrier
from .gradients import Derivatives, differentiate
from .measures import difference, identical
from .mismatch import (
    TOLERANCE,
    RegionMismatchError,
    failing,
    match_gradients,
    match_state,
    require_close,
    require_tensor,
)
from .region import RegionCopy
from .samples import Values


@dataclass
class RoundedComparison:
    """Two copies being compared, and what was found so far.

    `terms` is how many roundings one output passes through at most, `dtype` what it is computed in,
    `constants` what a kernel of torch holds its numbers in.
    Every method raises RegionMismatchError where the two sides differ.
    """

    original: RegionCopy
    rewritten: RegionCopy
    carrier: Carrier | None
    terms: int
    seed: int
    dtype: torch.dtype = torch.float64
    constants: torch.dtype | None = None
    identical: bool = True
    max_error: float = 0.0
    ratio: float = 0.0
    gradients_ok: bool | None = None
    train_ok: bool | None = None

    @property
    def tolerance(self) -> float:
        """By what of its size a gradient or a statistic may be off."""
        eps = torch.finfo(self.dtype).eps
        return TOLERANCE if eps <= torch.finfo(torch.float64).eps else math.sqrt(eps)

    def compare_eval(self, values: Values, when: str) -> None:
        """Outputs in eval mode."""
        with torch.no_grad():
            before = self._drawn_alike(self.original, values)
            with failing(when):
                after = self._drawn_alike(self.rewritten, values)
        self._judge(before, after, values, when)

    def _drawn_alike(self, side: RegionCopy, values: Values) -> Tensor:
        """What a side gives in eval mode; what it draws anew comes out as for the other."""
        seed_torch(self.seed)
        output: Tensor = side.run(values, training=False)
        return output

    def unblind(self, values: Values) -> None:
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

    def compare_gradients(self, values: Values) -> None:
        """Output and gradients in eval mode."""
        when = "in eval mode" if self.carrier is None else "in eval mode with random parameters"
        try:
            before = differentiate(self.original, values, training=False, seed=self.seed)
        except Exception:  # a custom function without a backward
            self.compare_eval(values, when)
            return
        if before.inputs is None:
            self.compare_eval(values, when)
            return
        with failing(when):
            after = differentiate(self.rewritten, values, training=False, seed=self.seed)
        self._judge(before.output, after.output, values, when)
        self._match_gradients(before, after, when)

    def compare_train(self, values: Values) -> None:
        """Output, gradients and updated buffers in train mode. Last: it moves statistics."""
        when = "in train mode"
        try:
            before = differentiate(self.original, values, training=True, seed=self.seed)
        except Exception:  # such as a BatchNorm over a single value
            return
        self.train_ok = False
        with failing(when):
            after = differentiate(self.rewritten, values, training=True, seed=self.seed)
        require_close(f"{when} the output", before.output, after.output, 0.0, self.tolerance)
        if self.carrier is not None:
            after_step = "after a step in train mode"
            match_state(self.original, self.rewritten, self.carrier, after_step, self.tolerance)
        self.train_ok = True
        if before.inputs is not None:
            self._match_gradients(before, after, when)

    def _match_gradients(self, before: Derivatives, after: Derivatives, when: str) -> None:
        self.gradients_ok = False
        held = 0.0 if self.constants is None else torch.finfo(self.constants).eps
        tolerance = max(self.tolerance, held)
        match_gradients(before, after, self.carrier, when, tolerance=tolerance)
        self.gradients_ok = True

    def _judge(self, before: Tensor, after: Tensor, values: Values, when: str) -> None:
        """Whether two outputs in eval mode are as close as they have to be."""
        require_tensor(f"{when} the output", after)
        if identical(before, after):
            return
        self.identical = False
        found = difference(before, after)
        self.max_error = max(self.max_error, found.error)
        if found.reason is not None:
            raise RegionMismatchError(f"{when} the output {found.reason}")
        with torch.no_grad(), Magnitudes():
            magnitudes = self.original.run(magnitudes_of(values), training=False)
        ratio = bound_ratio(before, after, self._bound(magnitudes))
        self.ratio = max(self.ratio, ratio)
        if ratio > 1:
            raise RegionMismatchError(
                f"{when} it is off by up to {found.error:.3g}, {ratio:.3g} times what the rounding "
                f"of {self.terms} terms explains"
            )

    def _bound(self, magnitudes: Tensor) -> Tensor:
        """What rounding explains; narrow types, whose bound says nothing soon, are summed in wider.

        (On every kernel of torch: such a sum is rounded once, at its end.)
        """
        eps = torch.finfo(self.dtype).eps
        if self.terms * eps > math.sqrt(eps):
            return magnitudes.abs() * math.sqrt(eps)
        return rounding_bound(magnitudes, self.terms, self.dtype)


def magnitudes_of(values: Values) -> Values:
    """The values with every floating one positive."""
    return tuple(value.abs() if _is_float(value) else value for value in values)


def _raise_norms(original: RegionCopy, rewritten: RegionCopy) -> None:
    weights = [norm.weight for side in (original, rewritten) for norm in side.norms()]
    if not any(bool((norm.weight == 0).any()) for norm in original.norms()):
        return
    with torch.no_grad():
        for weight in {id(weight): weight for weight in weights}.values():
            weight.add_(1)


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
