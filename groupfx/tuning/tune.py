"""Find the fastest recipe of each site of a model, measured in the whole model.

    probe the machine -> plan by the cost model -> profile about ten variants of the whole model
    -> each site takes the recipe whose own nodes were fastest -> race against the untouched model

Swapping one site at a time in place was tried, and ends worse than it starts: effects of a percent
drown, and wins by chance add up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import nn

from ..errors import GroupfxError, ModelError, UsageError
from ..plan.machine import Machine
from ..rewriting import Pipeline
from ..running.inputs import ExampleInputs
from .backends import Backend, Profile, backend_named, runs_torch
from .backends.backend import Feeds, Program
from .cache import Cache, Key, cache_folder, open_cache
from .modules import ModuleSubject
from .plan_file import PlannedRecipe, TuningPlan, applied
from .probe import machine_of, probe
from .race import Clock, least_seconds, race
from .ratios import UNTOUCHED, Ratio, compare
from .sites import TunedSite
from .subject import GraphSubject, Subject
from .variants import SiteChoices, expected_recipes, model_variants

Progress = Callable[[int, int], None]

# What a recipe must save of a site's time to be taken there.
_MARGIN = 0.04
# Shares of the budget.
_OF_PROFILING, _OF_RACING = 0.6, 0.35
_MOST_SECONDS_A_VARIANT, _MOST_SECONDS_OF_A_RACE = 1.0, 15.0
# Where every site was measured before, a user waits for the race alone.
_MOST_SECONDS_FROM_CACHE = 7.0
_ASSEMBLED, _VARIANT, _EXPECTED = "assembled", "best variant", "by the cost model"


def _quiet(done: int, total: int) -> None:
    """Where nobody looks."""


@dataclass(frozen=True)
class TuningOptions:
    """Seconds that tuning may take, without the export and the check of the file; see
    `groupfx.tune`. Times are kept in the folder `cache`, or not where it is None.

    Raises UsageError for a number that is not positive or an unknown backend, and
    MissingDependencyError for one that is not installed.
    """

    budget: float = 60.0
    threads: int = 1
    backend: str = "onnxruntime"
    plan: TuningPlan | None = None
    cache: Path | None = field(default_factory=cache_folder)
    wall: Clock = field(default=time.perf_counter, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.budget < math.inf:
            raise UsageError(f"budget={self.budget}: give seconds, such as 60")
        if self.threads < 1:
            raise UsageError(f"threads={self.threads}: it must be at least 1")
        backend_named(self.backend)


@dataclass(frozen=True)
class Tuning:
    """A tuned model: its plan, and what it takes by the time of the untouched one.

    `model` is an ONNX graph, or a module of torch for backends that run those. `ratio` is None
    where a plan was applied and nothing measured. `races` has every model that ran against the
    untouched one. `changed` counts the sites that are not as they were.
    """

    model: Any
    plan: TuningPlan
    ratio: Ratio | None
    races: Mapping[str, Ratio]
    changed: int
    notes: tuple[str, ...]

    @property
    def untouched(self) -> bool:
        """Whether no site was changed."""
        return not self.changed

    @property
    def summary(self) -> str:
        """Such as `0.93 (0.92 to 0.94) x the time of the untouched model (...); 9 of 17 sites`."""
        plan = self.plan
        where = f"{plan.backend} {plan.version}, {_threads(plan.threads)}"
        changed = f"{self.changed} of {_sites(len(plan.sites))} changed"
        if self.ratio is None:
            return f"a plan was applied, nothing was measured; {changed}"
        if not self.untouched:
            return f"{self.ratio} x the time of the untouched model ({where}); {changed}"
        if not plan.sites:
            return "untouched: no site can be executed in another way"
        told = [f"{name} {ratio}: {ratio.verdict}" for name, ratio in self.races.items()]
        why = f" ({'; '.join(told)})" if told else ""
        return f"untouched: nothing is provably faster{why} ({where})"


def tune_graph(
    model: ir.Model, feeds: Feeds, options: TuningOptions, progress: Progress = _quiet
) -> Tuning:
    """Tune `model`, which is not changed, for inputs like `feeds`.

    Raises ModelError for a model that gives other outputs on the same inputs, or does not run.
    """
    if runs_torch(options.backend):
        raise UsageError(
            f"the backend {options.backend} runs torch models, and this is an ONNX graph"
        )
    backend = backend_named(options.backend)
    return _tuned(*GraphSubject.of(model, feeds), options, backend, progress)


def tune_module(
    model: nn.Module, inputs: ExampleInputs, options: TuningOptions, progress: Progress = _quiet
) -> tuple[Tuning, Pipeline]:
    """Tune `model`, which is not changed, on the device on which it lies; and the passes that do
    what was found to be fastest. Raises as `tune_graph`.
    """
    if not runs_torch(options.backend):
        raise UsageError(
            f"the backend {options.backend} runs ONNX graphs, and this is a torch model"
        )
    backend = backend_named(options.backend)
    subject, unknown = ModuleSubject.of(model, inputs)
    tuning = _tuned(subject, unknown, options, backend, progress)
    return tuning, subject.pipeline({entry.site: entry.recipe for entry in tuning.plan.sites})


def _tuned(
    subject: Subject,
    unknown: Sequence[str],
    options: TuningOptions,
    backend: Backend,
    progress: Progress,
) -> Tuning:
    here = TuningPlan(backend.name, backend.version(), subject.processor, options.threads, ())
    notes = [f"its sizes are not known, it stays as it is: {name}" for name in unknown]
    work = _Work(subject, options, backend, here, notes, progress)
    if options.plan is None:
        return work.run()
    found = applied(options.plan, subject.sites, here, subject.fits)
    notes += found.notes
    return work.result(found.recipes, None, {})


@dataclass
class _Work:
    subject: Subject
    options: TuningOptions
    backend: Backend
    here: TuningPlan
    notes: list[str]
    progress: Progress
    seen: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    totals: dict[int, float] = field(default_factory=dict)
    slowest: float = 0.0
    """seconds that the slowest model took to load"""

    one: float = 0.0
    """seconds of a run of the untouched model"""

    known: bool = False
    """whether every site was measured before"""

    @property
    def sites(self) -> Sequence[TunedSite]:
        return self.subject.sites

    def run(self) -> Tuning:
        self.started = self.options.wall()
        self.base = self.subject.made({})
        self.one = self._once(self._load(self.base))
        if not self.sites:
            return self.result({}, UNTOUCHED, {})
        least = least_seconds(2, self.one)
        if least > self.options.budget:
            self.notes.append(
                f"the budget of {self.options.budget:g} s is too small to compare anything: one "
                f"run takes {self.one:.3g} s; give at least {math.ceil(least * 2)}"
            )
            return self.result({}, UNTOUCHED, {})
        cache = self._cache()
        choices = self.subject.choices(partial(self._machine, cache))
        variants = model_variants(choices)
        expected = {_EXPECTED: expected_recipes(choices)}
        # The last of them are left out where there is no time to race all.
        if self._profiled(cache, variants):
            found = {_ASSEMBLED: self._assembled(cache, choices), **expected}
            self.known = not self.totals
            if self.totals:
                found[_VARIANT] = variants[min(self.totals, key=lambda place: self.totals[place])]
        else:
            # Nobody says what a site takes: the variants themselves are raced.
            numbered = {f"variant {place}": v for place, v in enumerate(variants[1:], 1)}
            found = expected | numbered
        return self._raced(found)

    def _once(self, base: Program) -> float:
        """Seconds of one run; ModelError where a second one gives something else."""
        first, start = base(), self.options.wall()
        second = base()
        took = max(self.options.wall() - start, 1e-6)
        if not all(alike(a, b) for a, b in zip(first, second, strict=True)):
            raise ModelError(
                "the model gives other outputs on the same inputs: it is not deterministic, and a "
                "faster form of it cannot be compared; take what is random out of it"
            )
        return took

    def _cache(self) -> Cache:
        key = Key(self.here.backend, self.here.version, self.here.cpu, self.here.threads)
        return open_cache(key, self.options.cache)

    def _machine(self, cache: Cache) -> Machine:
        if not cache.machine:
            cache.machine = probe(self.options.threads)
            cache.save()
        return machine_of(cache.machine)

    def _profiled(self, cache: Cache, variants: Sequence[Mapping[str, str]]) -> bool:
        """Measure what the cache does not know; False where the runtime has no profile."""
        seconds = min(
            _MOST_SECONDS_A_VARIANT, _OF_PROFILING * self.options.budget / max(len(variants), 1)
        )
        for place, variant in enumerate(variants):
            self.progress(place, len(variants) + 1)
            if self._known(cache, variant):
                continue
            if self._spent() > _OF_PROFILING * self.options.budget:
                self.notes.append(
                    f"the budget was used up after {place} of {len(variants)} variants"
                )
                break
            try:
                made = self.subject.made(variant)
                profile = self._profile(made, seconds)
            except GroupfxError as error:
                self.notes.append(f"variant {place} was dropped: {error}")
                continue
            if profile is None:
                return False
            self.totals[place] = profile.total
            self._learn(cache, variant, self.subject.times(made, profile))
        return True

    def _profile(self, made: Any, seconds: float) -> Profile | None:
        return self.backend.profile(made, self.subject.feeds, self.options.threads, seconds)

    def _known(self, cache: Cache, variant: Mapping[str, str]) -> bool:
        """Whether every site was measured as it is in this variant."""
        sites = self.sites
        return all(self._recipe(s, variant) in cache.times.get(s.signature, {}) for s in sites)

    def _learn(self, cache: Cache, variant: Mapping[str, str], times: Mapping[str, float]) -> None:
        """Write down what each kind of site took: the mean over sites of one signature, and over
        variants.
        """
        machine = machine_of(cache.machine)
        for site in self.sites:
            if site.name in times:
                recipe = self._recipe(site, variant)
                time = times[site.name] + site.beside(recipe, machine)
                self.seen.setdefault((site.signature, recipe), []).append(time)
        for (signature, recipe), own in self.seen.items():
            cache.times.setdefault(signature, {})[recipe] = round(sum(own) / len(own), 3)
        cache.save()

    def _recipe(self, site: TunedSite, variant: Mapping[str, str]) -> str:
        return variant.get(site.name, site.untouched)

    def _assembled(self, cache: Cache, choices: Sequence[SiteChoices]) -> Mapping[str, str]:
        """For each site the recipe that took least, if that saves enough."""
        found = {}
        for choice in choices:
            site, known = choice.site, cache.times.get(choice.site.signature, {})
            tried = [(known[r], r) for r in (*choice.recipes, choice.expected) if r in known]
            if site.untouched not in known or not tried:
                continue
            best = min(tried)
            if best[0] < known[site.untouched] * (1 - _MARGIN):
                found[site.name] = best[1]
        return found

    def _raced(self, found: Mapping[str, Mapping[str, str]]) -> Tuning:
        """The fastest of all that is provably faster than the untouched model."""
        named: dict[str, Mapping[str, str]] = {}
        models = [self.base]
        for name, recipes in found.items():
            if recipes and recipes not in named.values():
                # The next one takes about as long to load as those before, and must be raced.
                needed = self.slowest + least_seconds(len(models) + 1, self.one)
                if self._spent() + needed > self.options.budget:
                    self.notes.append(f"{name}: left out, the budget was used up before")
                    continue
                try:
                    made = self.subject.made(recipes)
                    self._load(made)
                except GroupfxError as error:
                    self.notes.append(f"{name}: dropped, {error}")
                    continue
                named[name] = recipes
                models.append(made)
        if not named:
            return self.result({}, UNTOUCHED, {})
        options = self.options
        left = max(options.budget - self._spent(), 0)
        most = _MOST_SECONDS_FROM_CACHE if self.known else _MOST_SECONDS_OF_A_RACE
        seconds = min(most, left, _OF_RACING * options.budget)
        while len(models) > 2 and least_seconds(len(models), self.one) > left:
            name, _ = named.popitem()
            models.pop()
            self.notes.append(f"{name}: left out of the race, there was no time for it")
        clock = self.backend.clock(options.threads) if self.subject.host else options.wall
        loads = [partial(self._load, model) for model in models]
        heats = race(loads, clock, seconds, options.wall, self.progress, run=self.one)
        races = {name: compare(heats, place) for place, name in enumerate(named, 1)}
        faster = [name for name, ratio in races.items() if ratio.verdict == "faster"]
        if not faster:
            return self.result({}, UNTOUCHED, races)
        best = min(faster, key=lambda name: races[name].value)
        return self.result(named[best], races[best], races)

    def result(
        self, recipes: Mapping[str, str], ratio: Ratio | None, races: Mapping[str, Ratio]
    ) -> Tuning:
        """The model with these recipes, and the plan of all sites."""
        plan = _planned(self.here, self.sites, recipes)
        changed = sum(recipes.get(s.name, s.untouched) != s.untouched for s in self.sites)
        made = self.subject.made(recipes)
        return Tuning(made, plan, ratio, races, changed, tuple(self.notes))

    def _load(self, model: Any) -> Program:
        before = self.options.wall()
        program = self.backend.load(model, self.subject.feeds, self.options.threads)
        self.slowest = max(self.slowest, self.options.wall() - before)
        return program

    def _spent(self) -> float:
        return self.options.wall() - self.started


def _planned(
    here: TuningPlan, sites: Sequence[TunedSite], recipes: Mapping[str, str]
) -> TuningPlan:
    entries = (
        PlannedRecipe(site.name, site.signature, recipes.get(site.name, site.untouched))
        for site in sites
    )
    return replace(here, sites=tuple(entries))


def alike(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> bool:
    """Whether two outputs are the same but for the order in which threads add up."""
    if first.shape != second.shape:
        return False
    if not np.issubdtype(first.dtype, np.floating):
        return bool(np.array_equal(first, second))
    size = float(np.max(np.abs(first), initial=0, where=np.isfinite(first)))
    return bool(np.allclose(first, second, rtol=1e-3, atol=1e-3 * size, equal_nan=True))


def _threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"


def _sites(number: int) -> str:
    return "1 site" if number == 1 else f"{number} sites"
