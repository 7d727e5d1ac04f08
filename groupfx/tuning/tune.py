"""Find the fastest recipe of each site of a model, measured in the whole model.

    probe the machine -> plan by the cost model -> profile about ten variants of the whole model
    -> each site takes the recipe whose own nodes were fastest -> race against the untouched model

Swapping one site at a time in place was tried, and ends worse than it starts: effects of a percent
drown, and wins by chance add up.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import nn

from ..errors import GroupfxError, ModelError, UsageError, first_line
from ..plan.machine import Machine
from ..rewriting import Pipeline
from ..running.inputs import ExampleInputs
from ..running.stages import Stages
from .backends import (
    Backend,
    Profile,
    backend_named,
    require_dimensions,
    runs_torch,
    session_text,
)
from .backends.backend import Feeds, Program
from .cache import Cache, Key, PastRace, cache_folder, open_cache
from .modules import ModuleSubject
from .plan_file import PlannedRecipe, TuningPlan, applied
from .probe import is_machine, machine_of, probe
from .processor import require_threads
from .race import Clock, least_seconds, race
from .ratios import UNTOUCHED, Ratio, compare
from .result import Tuning
from .sites import TunedSite
from .subject import GraphSubject, Subject
from .variants import SiteChoices, expected_recipes, model_variants

Progress = Callable[[int, int], None]

DEFAULT_BUDGET, _MOST_BUDGET = 60.0, 1e9
# What a recipe must save of a site's time to be taken there.
_MARGIN = 0.04
# Shares of the budget.
_OF_PROFILING, _OF_RACING = 0.6, 0.35
_MOST_SECONDS_A_VARIANT, _MOST_SECONDS_OF_A_RACE = 1.0, 15.0
# Where every site was measured before, a user waits for the race alone.
_MOST_SECONDS_FROM_CACHE = 7.0
_BUSY = (
    "intervals are too wide to tell: tune again with less going on beside it or with a larger "
    "budget (what was measured is kept), or write what is expected to be fastest: 'groupfx export'"
)
_RACED_BEFORE = (
    "this file was raced before, as it is and on this machine: --no-cache (cache=False) races again"
)
_ASSEMBLED, _VARIANT, _EXPECTED = "assembled", "best variant", "by the cost model"


def _quiet(done: int, total: int) -> None:
    """Where nobody looks."""


@dataclass(frozen=True)
class TuningOptions:
    """Seconds that tuning may take, without the export and the check of the file; see
    `groupfx.tune`. Times are kept in the folder `cache`, or not where it is None.

    Raises UsageError for what is no positive number, an unknown backend or an option that it does
    not have, and MissingDependencyError for one that is not installed.
    """

    budget: float = DEFAULT_BUDGET
    threads: int = 1
    backend: str = "onnxruntime"
    plan: TuningPlan | None = None
    session: object = None
    cache: Path | None = field(default_factory=cache_folder)
    wall: Clock = field(default=time.perf_counter, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.budget, (int, float)) or not 0 < self.budget <= _MOST_BUDGET:
            raise UsageError(f"budget={self.budget!r}: give seconds, such as 60")
        require_threads(self.threads)
        self.runtime()

    def runtime(self) -> Backend:
        """The backend, with the options of the user's session."""
        return backend_named(self.backend).with_session(self.session, self.threads)


def tune_graph(
    model: ir.Model,
    feeds: Feeds,
    options: TuningOptions,
    progress: Progress = _quiet,
    stages: Stages | None = None,
) -> Tuning:
    """Tune `model`, which is not changed, for inputs like `feeds`; `stages` are told what it takes.

    Raises ModelError for a model that gives other outputs on the same inputs, or does not run.
    """
    if runs_torch(options.backend):
        raise UsageError(
            f"the backend {options.backend} runs torch models, and this is an ONNX graph"
        )
    backend = options.runtime()
    require_dimensions(backend.session, model, feeds)
    told = stages or Stages()
    with told("find sites"):
        subject, unknown = GraphSubject.of(model, feeds)
    return _tuned(subject, unknown, options, backend, progress, told)


def tune_module(
    model: nn.Module,
    inputs: ExampleInputs,
    options: TuningOptions,
    progress: Progress = _quiet,
    stages: Stages | None = None,
) -> tuple[Tuning, Pipeline]:
    """Tune `model`, which is not changed, on the device on which it lies; and the passes that do
    what was found to be fastest. Raises as `tune_graph`.
    """
    if not runs_torch(options.backend):
        raise UsageError(
            f"the backend {options.backend} runs ONNX graphs, and this is a torch model"
        )
    backend = options.runtime()
    told = stages or Stages()
    with told("find sites"):
        subject, unknown = ModuleSubject.of(model, inputs)
    tuning = _tuned(subject, unknown, options, backend, progress, told)
    return tuning, subject.pipeline({entry.site: entry.recipe for entry in tuning.plan.sites})


def _tuned(
    subject: Subject,
    unknown: Sequence[str],
    options: TuningOptions,
    backend: Backend,
    progress: Progress,
    stages: Stages,
) -> Tuning:
    here = TuningPlan(
        backend.name,
        backend.version(),
        subject.processor,
        options.threads,
        (),
        backend.session,
    )
    notes = [f"its sizes are not known, it stays as it is: {name}" for name in unknown]
    work = _Work(subject, options, backend, here, notes, progress, stages)
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
    stage: Stages
    seen: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    totals: dict[int, float] = field(default_factory=dict)
    slowest: float = 0.0
    """seconds that the slowest model took to load"""

    one: float = 0.0
    """seconds of a run of the untouched model"""

    known: bool = False
    """whether every site was measured before"""

    cache: Cache | None = None
    dropped: dict[str, list[int]] = field(default_factory=dict)
    """variants that could not be profiled, by the reason"""

    @property
    def sites(self) -> Sequence[TunedSite]:
        return self.subject.sites

    def run(self) -> Tuning:
        self.started = self.options.wall()
        self.base = self._packed(self._made({}))
        with self.stage("first run"):
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
        cache = self.cache = self._cache()
        with self.stage("plan"):
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
        here = self.here
        key = Key(here.backend, here.version, here.cpu, here.threads, session_text(here.session))
        return open_cache(key, self.options.cache)

    def _machine(self, cache: Cache) -> Machine:
        if not is_machine(cache.machine):
            try:
                with self.stage("probe"):
                    cache.machine = probe(self.options.threads, self.backend.session)
            except (GroupfxError, OSError) as error:
                why = first_line(error)
                self.notes.append(f"this machine cannot be probed ({why}): usual rates are taken")
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
                made = self._made(variant, alone=True)
                with self.stage("profile"):
                    profile = self._profile(made, seconds)
            except (GroupfxError, OSError) as error:
                self.dropped.setdefault(str(error), []).append(place)
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
        wanted: dict[str, Mapping[str, str]] = {}
        for name, recipes in found.items():
            if recipes and recipes not in wanted.values():
                wanted[name] = recipes
        options = self.options
        most = _MOST_SECONDS_FROM_CACHE if self.known else _MOST_SECONDS_OF_A_RACE
        # Who gives more than the default wants to know more.
        most = min(most * max(options.budget / DEFAULT_BUDGET, 1.0), _OF_RACING * options.budget)
        before = self._raced_before([*wanted.values()], most)
        if before is not None:
            self.notes.append(_RACED_BEFORE)
            return self._decided(before.recipes, before.ratios)
        named: dict[str, Mapping[str, str]] = {}
        models = [self.base]
        for name, recipes in wanted.items():
            # The next one takes about as long to load as those before, and must be raced.
            needed = self.slowest + least_seconds(len(models) + 1, self.one)
            if self._spent() + needed > options.budget:
                self.notes.append(f"{name}: left out, the budget was used up before")
                continue
            try:
                made = self._packed(self._made(recipes))
                # What loads may still not run, and would end the race.
                self._load(made)()
            except GroupfxError as error:
                self.notes.append(f"{name}: dropped, {error}")
                continue
            named[name] = recipes
            models.append(made)
        if not named:
            return self.result({}, UNTOUCHED, {})
        left = max(options.budget - self._spent(), 0)
        while len(models) > 2 and least_seconds(len(models), self.one) > left:
            name, _ = named.popitem()
            models.pop()
            self.notes.append(f"{name}: left out of the race, there was no time for it")
        seconds = min(most, left)
        clock = self.backend.clock(options.threads) if self.subject.host else options.wall
        loads = [partial(self._load, model) for model in models]
        try:
            with self.stage("race"):
                heats = race(
                    loads, clock, seconds, options.wall, self.progress, run=self.one, narrow=True
                )
        except GroupfxError as error:
            self.notes.append(f"the race was broken off, and nothing is claimed: {error}")
            return self.result({}, UNTOUCHED, {})
        races = {name: compare(heats, place) for place, name in enumerate(named, 1)}
        self._remember(PastRace(seconds, named, races))
        return self._decided(named, races)

    def _decided(
        self, named: Mapping[str, Mapping[str, str]], races: Mapping[str, Ratio]
    ) -> Tuning:
        faster = [name for name, ratio in races.items() if ratio.verdict == "faster"]
        if not faster:
            if any(ratio.verdict == "cannot tell" for ratio in races.values()):
                self.notes.append(_BUSY)
            return self.result({}, UNTOUCHED, races)
        best = min(faster, key=lambda name: races[name].value)
        return self.result(named[best], races[best], races)

    @cached_property
    def _called(self) -> str | None:
        """What a race about the untouched model is known by, to the last byte.

        None for what has no bytes, as a module of torch.
        """
        if not isinstance(self.base, bytes):
            return None
        shapes = sorted((name, array.shape) for name, array in self.subject.feeds.items())
        found = hashlib.sha256(self.base)
        found.update(str(shapes).encode())
        return found.hexdigest()[:32]

    def _raced_before(self, wanted: Sequence[Mapping[str, str]], seconds: float) -> PastRace | None:
        """A race that all who are `wanted` took part in; others may have won it."""
        if self.cache is None or self._called is None:
            return None
        found = self.cache.raced(self._called, seconds)
        if found is None or any(recipes not in found.recipes.values() for recipes in wanted):
            return None
        return found if all(map(self._fits, found.recipes.values())) else None

    def _fits(self, recipes: Mapping[str, str]) -> bool:
        """Whether a cache, which anybody may have written, has recipes of these sites."""
        sites = {site.name: site for site in self.sites}
        try:
            for name, recipe in recipes.items():
                self.subject.fits(sites[name], recipe)
        except (KeyError, UsageError):
            return False
        return True

    def _remember(self, race: PastRace) -> None:
        if self.cache is not None and self._called is not None:
            self.cache.remember(self._called, race)
            self.cache.save()

    def result(
        self, recipes: Mapping[str, str], ratio: Ratio | None, races: Mapping[str, Ratio]
    ) -> Tuning:
        """The model with these recipes, and the plan of all sites."""
        plan = _planned(self.here, self.sites, recipes)
        changed = sum(recipes.get(s.name, s.untouched) != s.untouched for s in self.sites)
        made = self._made(recipes)
        notes = [f"{_variants(places)} dropped: {why}" for why, places in self.dropped.items()]
        notes += self.notes
        if self.cache is not None and self.cache.problem is not None:
            notes.append(self.cache.problem)
        return Tuning(made, plan, ratio, races, changed, tuple(notes))

    def _made(self, recipes: Mapping[str, str], *, alone: bool = False) -> Any:
        with self.stage("make variants"):
            return self.subject.made(recipes, alone=alone)

    def _packed(self, model: Any) -> Any:
        with self.stage("load"):
            return self.backend.packed(model)

    def _load(self, model: Any) -> Program:
        before = self.options.wall()
        with self.stage("load"):
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


def alike(first: Any, second: Any) -> bool:
    """Whether two outputs are the same but for the order in which threads add up.

    A sequence of ONNX is a list of arrays; what is no number must be equal.
    """
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(alike, first, second))
    if not isinstance(first, np.ndarray):
        return bool(first == second)
    if first.shape != second.shape:
        return False
    if not np.issubdtype(first.dtype, np.floating):
        return bool(np.array_equal(first, second))
    size = float(np.max(np.abs(first), initial=0, where=np.isfinite(first)))
    return bool(np.allclose(first, second, rtol=1e-3, atol=1e-3 * size, equal_nan=True))


def _variants(places: Sequence[int]) -> str:
    if len(places) == 1:
        return f"variant {places[0]} was"
    return f"variants {', '.join(map(str, places))} were"
