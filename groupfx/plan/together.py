"""The forms of all sites of a model, chosen together: each is weighed beside its neighbours' forms.

Every site has options, the first of them what is there. From two starts, what is there and the
options that gain most by themselves, one site after the other takes what is best beside the others,
and pairs that can gather for each other do so together, as long as that helps. What counts is the
sum over the batches of the time by that of what is there. In the end each site must save enough
beside its neighbours, in every batch, or stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from .around import Around
from .blocks import BlockStructure
from .choice import Choice, absorbable, group_recipes, learned_recipes, pays, prices, shrunk
from .cost import OnnxRuntime, Work
from .forms import FormPlan
from .machine import Machine
from .recipes import recipe_plan
from .streams import Stream

# What each of several sites saves only beside the others, all of them must save by themselves.
_LEAST_TOGETHER = 0.03


@dataclass(frozen=True)
class Option:
    """One way to execute a site, and what the nodes of it alone take, in microseconds.

    `inside` has a number for each batch, `joined` those without the gather behind; `products` are
    the convolutions alone. The others are what `groupfx.plan.streams.Side` says.
    """

    recipe: str
    plan: FormPlan
    inside: tuple[float, ...]
    joined: tuple[float, ...]
    products: tuple[float, ...]
    reads_blocked: bool
    gathers: bool
    is_gathered: bool
    fuses: bool
    blocked: tuple[bool, bool]
    convolves: tuple[bool, bool]

    @classmethod
    def of(
        cls, recipe: str, plan: FormPlan, prices: Sequence[OnnxRuntime], channels: int
    ) -> Option:
        """The option of a plan that reads so many `channels`."""
        inside, joined = (
            tuple(price.inside(plan, channels, joined=own) for price in prices)
            for own in (False, True)
        )
        first, gathers = prices[0], plan.output_gather.kind != "identity"
        return cls(
            recipe,
            plan,
            inside,
            joined,
            products=tuple(price.products(plan) for price in prices),
            reads_blocked=first.reads_as_it_is(plan),
            gathers=_only_gathers(plan),
            is_gathered=plan.output_gather.kind == "gather" and not plan.by_product,
            fuses=plan.ends_in_conv,
            blocked=(first.gives_blocked(plan), first.gives_blocked(plan, joined=True)),
            convolves=(not plan.constants and not gathers, not plan.constants),
        )

    def gives_blocked(self, joined: bool) -> bool:
        """Whether it gives the blocked layout."""
        return self.blocked[joined]

    def activates(self, joined: bool) -> bool:
        """Whether it gives what convolutions give, one or several joined."""
        return self.convolves[joined]


def site_options(
    structure: BlockStructure,
    works: Sequence[Work],
    machine: Machine | None = None,
    around: Around | None = None,
    *,
    learned: bool,
) -> tuple[Option, ...]:
    """What may be taken at a site, from what is there on: for groups that were `learned` dense, the
    mask folded into the weight, else the groups as an author wrote them.
    """
    channels, there = structure.in_channels, prices(structure, works, machine)
    own = shrunk(structure, there) if learned else there
    block = there[0].block
    found = learned_recipes(structure, own) if learned else group_recipes(structure, block)
    is_there = "dense" if learned else "grouped"
    options = [Option.of(is_there, recipe_plan(is_there, structure), there, channels)]
    options += [Option.of(recipe, plan, own, channels) for recipe, plan in found.items()]
    for absorbed in absorbable(structure, block, around):
        assert around is not None
        layout = absorbed.layout(structure)
        plan = layout.in_order(around.order(layout))
        option = Option.of(str(absorbed), plan, own, len(layout.inputs))
        more = [around.beside(price, structure, layout) for price in own]
        inside, joined = (
            tuple(map(sum, zip(times, more, strict=True)))
            for times in (option.inside, option.joined)
        )
        options.append(replace(option, plan=absorbed.plan(structure), inside=inside, joined=joined))
    return tuple(options)


def _only_gathers(plan: FormPlan) -> bool:
    """Whether a gather reads for every convolution."""
    if plan.cuts or (len(plan.convs) == 1 and plan.convs[0].source is None):
        return plan.input_gather.kind == "gather"
    return all(conv.source is not None and conv.source.kind == "gather" for conv in plan.convs)


@dataclass(frozen=True)
class Together:
    """The choice of each site, and what all streams and sites take in the first batch, as chosen
    and as they are.
    """

    choices: Mapping[str, Choice]
    time: float
    untouched: float


PricedStream = tuple[Stream, Sequence[OnnxRuntime]]
"""With a price for each batch."""


def choose_together(
    options: Mapping[str, Sequence[Option]], streams: Sequence[PricedStream]
) -> Together:
    """The best of the `options` of each site, the first of which is what is there.

    A site that gives none of the `streams` stays as it is.
    """
    if not streams:
        alone = {name: own[0] for name, own in options.items()}
        choices = {n: Choice(o.recipe, o.plan, o.inside[0], o.inside[0]) for n, o in alone.items()}
        return Together(choices, 0.0, 0.0)
    given = {end.site for stream, _ in streams for end in stream.writers}
    search = _Search(
        {name: own if name in given else own[:1] for name, own in options.items()}, streams
    )
    there = dict.fromkeys(search.options, 0)
    best = min((search.descended(start) for start in (there, search.eager)), key=search.total)
    taken = search.sure(best)
    choices = {name: search.choice(taken, name) for name in taken}
    return Together(choices, *(search.microseconds(own)[0] for own in (taken, there)))


Taken = dict[str, int]
"""The places of the options that are taken."""


class _Search:
    def __init__(
        self,
        options: Mapping[str, Sequence[Option]],
        streams: Sequence[PricedStream],
    ) -> None:
        self.options = options
        self.streams = streams
        self._beside = {
            name: [at for at, (stream, _) in enumerate(streams) if name in stream.sites]
            for name in options
        }
        self._known: dict[tuple[int, ...], tuple[float, ...]] = {}
        there = self.microseconds(dict.fromkeys(options, 0))
        self._weights = [1 / max(time, 1e-9) for time in there]

    @property
    def eager(self) -> Taken:
        """What gains most at each site by itself, other than what is there where there is more."""
        return {
            name: min(
                range(min(1, len(own) - 1), len(own)), key=lambda k: self._scored(own[k].joined)
            )
            for name, own in self.options.items()
        }

    def microseconds(self, taken: Taken, places: Sequence[int] | None = None) -> tuple[float, ...]:
        """Of all streams, or of those at `places`, and the sites that give them: for each batch."""
        chosen = range(len(self.streams)) if places is None else places
        parts = [self._stream(at, taken) for at in chosen]
        return tuple(map(sum, zip(*parts, strict=True)))

    def total(self, taken: Taken, places: Sequence[int] | None = None) -> float:
        """Times by those of what is there, summed over the batches."""
        return self._scored(self.microseconds(taken, places))

    def descended(self, taken: Taken) -> Taken:
        """With no other option of a site, or of a pair, that is better."""
        best = self._one_by_one(taken)
        while True:
            found = self._one_by_one(self._in_pairs(best))
            if self.total(found) >= self.total(best) - 1e-9:
                return best
            best = found

    def sure(self, taken: Taken) -> Taken:
        """Without what saves too little to be sure of, by itself or with all that it depends on."""
        kept = dict(taken)
        while True:
            doubtful = [name for name in kept if kept[name] and not self._pays(kept, name)]
            if doubtful:
                # One after the other: it may pay for its neighbour then.
                kept[min(doubtful, key=lambda name: self._saved(kept, name))] = 0
                continue
            # Of two that gather for each other each may pay only beside the other, and both not.
            together = [stream.pair for stream, _ in self.streams if stream.pair is not None]
            groups: list[tuple[str, ...]] = [
                pair for pair in together if all(kept[name] for name in pair)
            ]
            groups += self._clusters(kept)
            lost = next((names for names in groups if not self._save_together(kept, names)), ())
            if not lost:
                return kept
            kept |= dict.fromkeys(lost, 0)

    def choice(self, taken: Taken, name: str) -> Choice:
        """What is taken at a site, and the times of it and of what is there beside the others."""
        own = self.options[name]
        option, there = own[taken[name]], own[0]
        untouched = there.inside[0]
        saved = self._savings(taken, [name])[0]
        return Choice(option.recipe, option.plan, untouched - saved, untouched)

    def _stream(self, at: int, taken: Taken) -> tuple[float, ...]:
        stream, prices = self.streams[at]
        key = (at, *(taken[name] for name in stream.sites))
        if key not in self._known:
            sides = {name: self.options[name][taken[name]] for name in stream.sites}
            joined = stream.joined(sides)
            writers = [sides[end.site] for end in stream.writers if end.site is not None]
            self._known[key] = tuple(
                stream.cost(price, sides)
                + sum((own.joined if joined else own.inside)[batch] for own in writers)
                for batch, price in enumerate(prices)
            )
        return self._known[key]

    def _scored(self, times: Sequence[float]) -> float:
        return sum(time * weight for time, weight in zip(times, self._weights, strict=True))

    def _one_by_one(self, taken: Taken) -> Taken:
        best, moved = dict(taken), True
        while moved:
            moved = False
            for name, own in self.options.items():
                near = self._beside[name]
                tried = [self.total({**best, name: place}, near) for place in range(len(own))]
                place = min(range(len(own)), key=tried.__getitem__)
                if tried[place] < tried[best[name]] - 1e-9:
                    best[name], moved = place, True
        return best

    def _in_pairs(self, taken: Taken) -> Taken:
        best = dict(taken)
        for stream, _ in self.streams:
            if stream.pair is None:
                continue
            near = sorted({at for name in stream.pair for at in self._beside[name]})
            places = product(*(range(len(self.options[name])) for name in stream.pair))
            tried = [{**best, **dict(zip(stream.pair, own, strict=True))} for own in places]
            found = min(tried, key=lambda own: self.total(own, near))
            if self.total(found, near) < self.total(best, near) - 1e-9:
                best = found
        return best

    def _clusters(self, taken: Taken) -> Iterable[tuple[str, ...]]:
        """The sites that are not left as they are, those together that streams connect."""
        cluster = {name: [name] for name, place in taken.items() if place}
        for stream, _ in self.streams:
            first, *others = [name for name in stream.sites if name in cluster] or [""]
            for other in others:
                if cluster[other] is not cluster[first]:
                    cluster[first] += cluster[other]
                    cluster |= dict.fromkeys(cluster[other], cluster[first])
        return {id(names): tuple(names) for names in cluster.values()}.values()

    def _savings(self, taken: Taken, names: Sequence[str]) -> list[float]:
        """Microseconds that sites save beside their neighbours, for each batch."""
        near = sorted({at for name in names for at in self._beside[name]})
        as_it_is = {**taken, **dict.fromkeys(names, 0)}
        now, before = (self.microseconds(own, near) for own in (taken, as_it_is))
        return [old - new for old, new in zip(before, now, strict=True)]

    def _saved(self, taken: Taken, name: str) -> float:
        return self._scored(self._savings(taken, [name]))

    def _save_together(self, taken: Taken, names: Sequence[str]) -> bool:
        """Whether sites of which each pays beside the others are faster in every batch."""
        there = [self.options[name][0].inside for name in names]
        saved = self._savings(taken, names)
        least = (_LEAST_TOGETHER * sum(times) for times in zip(*there, strict=True))
        return all(own >= enough for own, enough in zip(saved, least, strict=True))

    def _pays(self, taken: Taken, name: str) -> bool:
        own = self.options[name]
        option, there = own[taken[name]], own[0]
        rows = zip(self._savings(taken, [name]), there.inside, option.products, strict=True)
        return all(pays(old - saved, old, old - saved - products) for saved, old, products in rows)
