"""Is a quantised file the network that it was made of, to the noise that its steps explain?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ....errors import ModelError, first_line, kind_and_line
from ...graph.metadata import mark_of
from ...quantised.tensors import dequantised, is_dequantize
from ...running.runtime import Session
from ..opinions import EVALUATOR, runtimes_of
from ..output_checks import OutputCheck, require_outputs
from ..sides import OnnxSide, Side, Values, paired
from ..site_checks import SiteCheck, first_and_worst
from ..verdict import QUANTISATION, Validation, Verdict
from .belonging import Fault
from .feeds import Given, quantised_feeds
from .judging import Judged, activation_ends, bias_fault, range_fault, weight_states
from .noise import FACTOR, Noise, decibels, names_of, noise_of
from .pairs import PairFault, bad_scales, described, disagreements
from .site_noise import SiteNoise
from .sites import paired_sites
from .steps import relative_noise

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
Progress = Callable[[int, int], None]

_WHOLE = frozenset({"ConvInteger", "MatMulInteger", "QGemm", "QLinearConv", "QLinearMatMul"})


def is_quantised(model: ir.Model) -> bool:
    """Whether a file holds weights in whole numbers.

    Pairs of QuantizeLinear and DequantizeLinear around what is computed in floating point are
    operators as others, such as those of a network that is trained to be quantised.
    """
    return any(node.op_type in _WHOLE or _is_weight(node) for node in model.graph)


def _is_weight(node: ir.Node) -> bool:
    """Whether a node makes reals of whole numbers that are stored, a matrix at least."""
    held = dequantised(node.outputs[0]) if is_dequantize(node) else None
    numbers = None if held is None else held.tensor
    return numbers is not None and len(numbers.shape) > 1


def validate_quantised(
    reference: Side, candidate: OnnxSide, given: Given, progress: Progress | None = None
) -> Validation:
    """Compare a quantised file with the network that it was made of.

    Raises what `validate_sides` does.
    """
    # A scale that is no number is a fault to be named.
    with np.errstate(all="ignore"):
        return _QuantisedComparison(reference, candidate, given).run(progress)


@dataclass(frozen=True)
class _Output:
    """One output in one run: powers of the signal, the error, and what is allowed of it."""

    run: str
    signal: float
    error: float
    allowed: float
    expected: Array
    found: Array

    @property
    def ratio(self) -> float:
        """The error by what is allowed."""
        if not np.isfinite(self.found[np.isfinite(self.expected)]).all():
            return math.inf
        if not self.error:
            return 0.0
        return math.sqrt(self.error / self.allowed) if self.allowed else math.inf


class _QuantisedComparison:
    def __init__(self, reference: Side, candidate: OnnxSide, given: Given) -> None:
        self.reference, self.candidate = reference, candidate
        self.inputs = paired(reference.inputs, candidate.inputs, "input")
        self.atol = given.atol
        self.feeds = quantised_feeds(reference, candidate, self.inputs, given)
        functions, left = reference.site_functions()
        sites, notes = paired_sites(candidate.model, functions)
        self.notes = [*self.feeds.notes, *map(str, left), *notes]
        self.judged = {each.site.name: each for each in weight_states(sites, functions)}
        self.bounds = activation_ends(reference)
        self.noises: dict[str, list[tuple[Noise, ...]]] = {name: [] for name in self.judged}
        self.outputs: dict[tuple[str, str], list[_Output]] = {}
        self.failed: list[str] = []

    def run(self, progress: Progress | None) -> Validation:
        if any(judged.site.misfit is not None for judged in self.judged.values()):
            self.notes.append("the file was not run: its scales do not fit")
            return self._verdict(())
        found, _ = runtimes_of(self.candidate, self.candidate.dtype)
        runtimes = {name: call for name, call in found.items() if name != EVALUATOR}
        names = self._inner_names()
        session = Session(self.candidate.model, "off", source=self.candidate.source, also=names)
        for number, (name, feeds) in enumerate(self.feeds.runs):
            own = {other: feeds[mine] for mine, other in self.inputs.items()}
            wide = self.reference.wide(feeds)
            given = self.candidate.own(own)
            try:
                inner = session.run(given, names)
            except ModelError as error:
                self.failed.append(f"on {name}: {first_line(error)}")
                continue
            share = self._look({**given, **inner})
            for runtime, call in runtimes.items():
                try:
                    self._note(runtime, name, wide, call(own), share)
                except Exception as error:
                    self.failed.append(f"{runtime} fails on {name}: {kind_and_line(error)}")
            if progress is not None:
                progress(number + 1, len(self.feeds.runs))
        return self._verdict(tuple(runtimes))

    def _inner_names(self) -> list[str]:
        """All values inside of the file that are looked at."""
        parts = [part for each in self.judged.values() for part in each.site.parts]
        wanted = {name for part in parts for name in names_of(part)}
        for node in self.candidate.model.graph:
            if node.op_type == "QuantizeLinear" and node.inputs[0] is not None:
                wanted.add(node.inputs[0].name or "")
            if node.op_type == "DynamicQuantizeLinear":
                wanted |= {value.name or "" for value in node.outputs[:2]}
            if node.op_type.startswith(("QLinear", "QGemm")):
                wanted.add(node.outputs[0].name or "")
        held = self.candidate.model.graph.initializers
        return sorted(wanted - set(self.candidate.inputs) - set(held))

    def _look(self, values: Mapping[str, Array]) -> float:
        """What each site does in a run; all that is explained of an output, by its power."""
        cut = 0.0
        for name, judged in self.judged.items():
            if judged.weight is None:
                continue
            bounds = self.bounds(name)
            found = tuple(
                noise_of(part, values, bounds, folded=judged.folded) for part in judged.site.parts
            )
            self.noises[name].append(found)
            cut += sum(noise.relative_cut for noise in found)
        return relative_noise(self.candidate.model, values) + cut

    def _note(self, runtime: str, run: str, wide: Values, found: Values, share: float) -> None:
        for name, other in paired(tuple(wide), tuple(found), "output").items():
            expected, value = (np.asarray(a, np.float64) for a in (wide[name], found[other]))
            if expected.shape != value.shape:
                shapes = f"{list(value.shape)} instead of {list(expected.shape)}"
                self.failed.append(f"{other} has the shape {shapes} on {run}")
                continue
            usable = np.isfinite(expected) & np.isfinite(value)
            error = float(((value - expected)[usable] ** 2).sum())
            signal = float((expected[usable] ** 2).sum())
            self.outputs.setdefault((other, runtime), []).append(
                _Output(run, signal, error, FACTOR * share * signal, expected, value)
            )

    # The verdict

    def _verdict(self, runtimes: tuple[str, ...]) -> Validation:
        by_site, loose = self._pairs()
        found = {name: self._site(judged, by_site) for name, judged in self.judged.items()}
        stated = bool(loose) or any(_is_stated(site.fault) for site in found.values())
        # What a site does wrong may come of what another one states: of that alone one is sure.
        sites = [
            replace(site, fault=None) if stated and not _is_stated(site.fault) else site
            for site in found.values()
        ]
        checks = tuple(map(_as_check, sites))
        require_outputs(self.atol, self.candidate.outputs)
        outputs = tuple(
            _as_output(name, runtime, max(runs, key=lambda run: run.ratio), self.atol.get(name))
            for (name, runtime), runs in sorted(self.outputs.items())
        )
        blames = [*(f"{s.name}: {s.fault.text}" for s in sites if s.fault), *loose, *self.failed]
        far = [check for check in outputs if not check.ok]
        if far and not blames:
            blames = [f"{far[0].name} {far[0].reason}, and no convolution explains it"]
        verdict: Verdict = "different" if blames else "same"
        blame = "; ".join(blames[:_SHOWN]) if blames else None
        unseen: tuple[str, ...] = ()
        if not blames and not any(run.signal > 0 for runs in self.outputs.values() for run in runs):
            verdict, blame = "not comparable", "the float network gives nothing but zeros"
            unseen = ("no output varies",)
        first, worst = first_and_worst(checks)
        return Validation(
            verdict=verdict,
            reference=self.reference.source,
            candidate=self.candidate.source,
            dtype="whole numbers",
            outputs=outputs,
            sites=checks,
            first_site=first,
            worst_site=worst,
            blame=blame,
            unseen=unseen,
            runs=tuple(name for name, _ in self.feeds.runs) if runtimes else (),
            runtimes=runtimes,
            notes=(*self.notes, *self.reference.notes, *self.candidate.notes),
            guessed=self.feeds.guessed,
            yardstick=QUANTISATION,
            # Of several faults, those behind the first may come of it.
            noise=tuple(sorted(sites, key=lambda site: (site.ok, -site.ratio if site.ok else 0))),
        )

    def _pairs(self) -> tuple[Mapping[str, Fault], tuple[str, ...]]:
        """Faults of scales and zero points by the site that reads them, and those of no site."""
        graph = self.candidate.model.graph
        nodes = {
            part.conv.conv.node: name
            for name, judged in self.judged.items()
            for part in judged.site.parts
        }
        by_site: dict[str, Fault] = {}
        loose: list[str] = []
        found: list[PairFault] = [*bad_scales(graph), *disagreements(graph)]
        for each in found:
            mark = mark_of(each.node)
            name = nodes.get(each.node) or (None if mark is None else mark.site)
            if name in self.judged:
                by_site.setdefault(name or "", each.fault)
            else:
                loose.append(f"{described(each.node)}: {each.fault.text}")
        return by_site, tuple(loose)

    def _site(self, judged: Judged, by_site: Mapping[str, Fault]) -> SiteNoise:
        pair = by_site.get(judged.site.name)
        site, weight, runs = judged.site, judged.weight, self.noises[judged.site.name]
        first = site.parts[0]
        every = [noise for run in runs for noise in run]
        worst = max(every, key=lambda noise: noise.ratio, default=None)
        made = SiteNoise(
            name=site.name,
            layout=first.conv.layout,
            bits=first.bits,
            snr_db=None if worst is None else worst.snr,
            least_snr_db=None if worst is None else worst.least_snr,
            saturated=max((noise.saturated for noise in every), default=0.0),
            not_finite=sum(noise.not_finite for noise in every),
            weight_steps=None if weight is None else weight.steps,
            weight_saturated=0.0 if weight is None else weight.saturated,
            ratio=0.0 if worst is None else worst.ratio,
        )
        return replace(made, fault=self._fault(judged, pair, worst, made))

    def _fault(
        self, judged: Judged, pair: Fault | None, worst: Noise | None, made: SiteNoise
    ) -> Fault | None:
        """What is the matter with a site: what is known without running it comes first."""
        if judged.site.misfit is not None:
            return Fault("shape", judged.site.misfit)
        if judged.weight is not None and judged.weight.fault is not None:
            return judged.weight.fault
        if pair is not None:
            return pair
        if worst is None:
            return None
        runs = self.noises[judged.site.name]
        typical = min(max(noise.typical for noise in run) for run in runs)
        ranges = range_fault(judged.site, runs) if self.feeds.own else None
        found = bias_fault(judged, typical) or ranges
        if found is not None:
            return found
        if made.not_finite:
            return Fault(
                "not finite", f"{made.not_finite} of its values are not finite", stated=False
            )
        if worst.ratio > 1:
            return Fault(
                "noise",
                f"{worst.snr:.1f} dB of signal to noise, and its steps explain no less than "
                f"{worst.least_snr:.1f} dB",
                stated=False,
            )
        return None


_SHOWN = 3


def _is_stated(fault: Fault | None) -> bool:
    """Whether a fault is in what the file says, and not only in what it does."""
    return fault is not None and fault.stated


def _as_check(site: SiteNoise) -> SiteCheck:
    """A site as other validations tell it: it fails where anything does not belong."""
    ratio = site.ratio if site.ok else max(site.ratio, math.nextafter(1.0, 2.0))
    reason = None if site.fault is None else site.fault.text
    return SiteCheck(site.name, site.ok, ratio, seen=True, reason=reason)


def _as_output(name: str, runtime: str, run: _Output, atol: float | None) -> OutputCheck:
    off = np.abs(run.found - run.expected)
    largest = float(np.nanmax(off, initial=0.0))
    peak = float(np.nanmax(np.abs(run.expected), initial=0.0))
    count = max(run.expected.size, 1)
    snr, least = decibels(run.signal, run.error), decibels(run.signal, run.allowed)
    ok = run.ratio <= 1 if atol is None else largest <= atol
    place = np.unravel_index(int(np.nan_to_num(off, nan=np.inf).argmax()), off.shape)
    norms = float(np.linalg.norm(run.found)) * float(np.linalg.norm(run.expected))
    cosine = float((run.found * run.expected).sum()) / norms if norms > 0 else 1.0
    reason = f"has {snr:.1f} dB of signal to noise, and {least:.1f} are expected at least"
    if atol is not None:
        reason = f"is off by {largest:.3g}, and atol is {atol:g}"
    return OutputCheck(
        name=name,
        runtime=runtime,
        ok=ok,
        run=run.run,
        max_abs=largest,
        max_rel=largest / peak if peak > 0 else 0.0,
        mean_abs=float(np.nanmean(off)) if off.size else 0.0,
        quantile_999=float(np.nanquantile(off, 0.999)) if off.size else 0.0,
        cosine=cosine,
        snr_db=snr,
        rms=math.sqrt(run.error / count),
        limit=math.sqrt(run.allowed / count) if atol is None else atol,
        limit_is_absolute=atol is not None,
        index=tuple(int(k) for k in place),
        expected=float(run.expected[place]),
        found=float(run.found[place]),
        reason=None if ok else reason,
    )
