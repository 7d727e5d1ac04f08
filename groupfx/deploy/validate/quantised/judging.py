"""What of a site does not belong to the float one: weight, bias, range of what it gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...graph.conv_nodes import conv_names
from ...graph.metadata import mark_of
from ..sides import OnnxSide, Side
from ..site_functions import SiteFunction
from .belonging import Fault, WeightCheck, check_weight, listed
from .noise import Noise, activation_bounds, zero_of
from .rows import FloatRows, float_rows
from .sites import QuantisedSite

FloatVector = npt.NDArray[np.float64]
Bounds = Callable[[str], tuple[float, float] | None]

_MOST_SATURATED = 0.05
_LEAST_USED = 1 / 8
"""How much of what is calibrated may be cut off on every run, and how little of a range used: of 50
honest files, none has a site that is cut off by more than 0.01, or that uses less than 0.4."""

_NOISES = 4.0
"""A bias that is off by less than so many times the noise of its site is not told from noise."""

_SAME = 0.02

_TELLING = 8
"""How many steps apart two biases are that are not taken for one another."""


@dataclass(frozen=True)
class Judged:
    """A site, the check of its weight, and whether the norms behind are in it."""

    site: QuantisedSite
    weight: WeightCheck | None
    folded: bool
    own: FloatRows


def weight_states(
    sites: Sequence[QuantisedSite], functions: Sequence[SiteFunction]
) -> tuple[Judged, ...]:
    """Each site with the check of its weight."""
    others = [float_rows(f, fold=fold) for f in functions for fold in {False, bool(f.norms)}]
    return tuple(_judged(site, others) for site in sites)


def _judged(site: QuantisedSite, others: Sequence[FloatRows]) -> Judged:
    rows = site.rows
    choices = (True, False) if site.function.norms else (False,)
    owns = [float_rows(site.function, fold=fold) for fold in choices]
    if rows is None:
        return Judged(site, None, folded=False, own=owns[-1])
    tried = [
        (check_weight(rows, own, others), fold, own)
        for own, fold in zip(owns, choices, strict=True)
    ]
    # A norm that scales by 1 is seen in the bias alone.
    bias = site.bias
    off = [0.0 if bias is None else float(np.abs(bias - own.bias).sum()) for own in owns]
    place = min(range(len(tried)), key=lambda k: (tried[k][0].fault is not None, off[k]))
    check, folded, own = tried[place]
    return Judged(site, check, folded, own)


def bias_fault(judged: Judged, typical: float) -> Fault | None:
    """A bias that is another one by more than the noise of the site, `typical` of a value."""
    bias, own = judged.site.bias, judged.own.bias
    if bias is None:
        return None
    if not np.isfinite(bias).all():
        return Fault("not finite", "the bias is not finite")
    off, steps = np.abs(bias - own), judged.site.bias_steps
    far = off > np.maximum(_NOISES * typical, steps)
    elsewhere = [_held_by(k, bias, own, steps) for k in range(len(own))]
    moved = np.array([place is not None for place in elsewhere])
    wrong = np.flatnonzero(far | moved)
    if not len(wrong):
        return None
    factors = _factors(bias, own, _NOISES * typical)
    if len(factors) > 1 and np.ptp(factors) < _SAME * abs(factors.mean()):
        return Fault(
            "scale",
            f"the bias is {factors.mean():.3g} times the float one: its scale",
            stated=False,
        )
    first = int(wrong[0])
    text = f"{listed(wrong)}: the bias is {bias[first]:.4g}, and the float one {own[first]:.4g}"
    if elsewhere[first] is not None:
        text += f"; it is that of channel {elsewhere[first]}"
    return Fault("bias", text, tuple(wrong.tolist()))


def _held_by(channel: int, bias: FloatVector, own: FloatVector, steps: FloatVector) -> int | None:
    """The other channel whose float bias a channel has to the number, where that tells."""
    step = float(steps[channel])
    if np.abs(bias[channel] - own[channel]) <= _TELLING * step:
        return None
    near = np.abs(own - bias[channel]) <= step
    apart = np.abs(own - own[channel]) > _TELLING * max(step, 1e-6 * float(np.abs(own).max()))
    places = np.flatnonzero(near & apart)
    return int(places[0]) if len(places) and step > 0 else None


def _factors(bias: FloatVector, own: FloatVector, least: float) -> FloatVector:
    """The bias by the float one, where that is more than `least`."""
    telling = np.abs(own) > least
    return bias[telling] / own[telling]


def range_fault(site: QuantisedSite, runs: Sequence[Sequence[Noise]]) -> Fault | None:
    """A range of what a site gives that does not fit its values, in any run.

    The branches of a split site share a range, which one of them may use little of.
    """
    if not runs:
        return None
    least = min(runs, key=_saturated)
    share, below = _saturated(least), sum(n.below for n in least) > sum(n.above for n in least)
    if share > _MOST_SATURATED:
        told = f"{share:.1%} of what it gives is beyond the range of its scale"
        result = site.parts[0].conv.result
        zero = 0.0 if result is None else zero_of(result)
        if below and zero == least[0].lowest:
            return Fault(
                "zero point",
                f"{told}, below: its zero point, {zero:g}, leaves no room for negative values",
                stated=False,
            )
        return Fault("range", f"{told}, {'below' if below else 'above'}", stated=False)
    most = max(noise.used for run in runs for noise in run)
    if 0 < most < _LEAST_USED:
        return Fault(
            "range",
            f"what it gives takes up {most:.1%} of the range of its scale at most: "
            f"{-math.log2(most):.1f} bits are lost",
            stated=False,
        )
    return None


def _saturated(run: Sequence[Noise]) -> float:
    return sum(noise.saturated for noise in run) / len(run)


def activation_ends(reference: Side) -> Bounds:
    """The bounds of the activations right behind a convolution of the float network, by its name.

    None of a torch model, whose sites are known without what is behind them.
    """
    if not isinstance(reference, OnnxSide):
        return lambda name: None
    found: Mapping[str, tuple[float, float]] = {
        _site(node, name): _bounds(node) for node, name in conv_names(reference.model.graph).items()
    }
    return lambda name: found.get(name)


def _site(node: ir.Node, name: str) -> str:
    mark = mark_of(node)
    return name if mark is None else mark.site


def _bounds(node: ir.Node) -> tuple[float, float]:
    low, high = -math.inf, math.inf
    value = node.outputs[0]
    while len(value.uses()) == 1 and not value.is_graph_output():
        (use,) = value.uses()
        if use.node.op_type in ("Relu", "Clip"):
            least, most = activation_bounds(use.node)
            low, high = min(max(low, least), most), max(min(high, most), least)
        elif use.node.op_type != "BatchNormalization":
            break
        value = use.node.outputs[0]
    return low, high
