"""A target: a toolchain or runtime, what it takes, and the passes that a model needs for it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import UsageError
from .facts import OPERATION_TOPICS, Fact, Judged, Kind, Numbers, Subject, Topic

if TYPE_CHECKING:
    from torch import nn

    from ..convs.spec import ConvSpec
    from ..running.inputs import ExampleInputs
    from ..toolchains import Obstacle

Forms = Literal["planned", "fastest"]


@dataclass(frozen=True)
class Opinion:
    """A word for the table, and what it means."""

    word: str
    text: str


_UNKNOWN = Opinion("?", "its numbers are not constants of the model")


@dataclass(frozen=True)
class Target:
    """A toolchain or runtime that models are rewritten for.

    `place` orders them; the first is what runs where neither a target nor a pass is named. `passes`
    run in this order, each a name with its options after a colon. `facts` say what it takes.
    `methods` are its parts that differ in that. Learned groups are exported in the `forms` that the
    rewrite planned, or in those that are expected to be fastest, site by site. `grammar` names what
    in `groupfx.toolchains` judges every operation of a torch model. `column` says whether tables of
    convolutions have a column for it. `path` is the file that says all this, `date` when it was
    last gone through.
    """

    name: str
    title: str
    place: int
    passes: tuple[str, ...]
    date: date
    path: Path = field(compare=False)
    facts: tuple[Fact, ...] = ()
    methods: tuple[str, ...] = ()
    forms: Forms = "planned"
    grammar: str | None = None
    column: bool = False

    def says(self, conv: "ConvSpec | None") -> Opinion:
        """The opinion of `conv`, which is None where its numbers are not constants."""
        if conv is None or not self.facts:
            return _UNKNOWN
        judged = self.judge(Subject("", "", "", numbers=numbers_of(conv)))
        return Opinion(judged.word, judged.reason)

    def judge(self, subject: Subject, methods: Sequence[str] = ()) -> Judged:
        """What the facts say of `subject` to these methods, or to all."""
        asked = tuple(methods) or self.methods
        if subject.unread is not None:
            return Judged(subject, (self._silence("groups", subject.unread),), asked)
        found: dict[int, Fact] = {}
        for topic in dict.fromkeys(fact.topic for fact in self.facts):
            for method in asked or ("",):
                fact = self._first(topic, subject, method)
                if fact is not None:
                    found[id(fact)] = fact
        silent = self._silences(subject, tuple(found.values()), asked)
        return Judged(subject, (*found.values(), *silent), asked)

    def _first(self, topic: Topic, subject: Subject, method: str) -> Fact | None:
        if subject.operation != (topic if topic in OPERATION_TOPICS else None):
            return None
        return next(
            (
                fact
                for fact in self.facts
                if fact.topic == topic and fact.is_of(method) and fact.where.fits(subject)
            ),
            None,
        )

    def _silences(
        self, subject: Subject, found: Sequence[Fact], asked: Sequence[str]
    ) -> Iterator[Fact]:
        """What must be known of a subject and is not, for each method."""
        needed: list[Topic] = []
        if subject.numbers is not None and subject.numbers.groups > 1:
            needed.append("groups")
        if subject.layout != "float":
            needed.append("quantised")
        for topic in needed:
            said = [fact for fact in found if fact.topic == topic]
            open_ = [m for m in asked or ("",) if not any(fact.is_of(m) for fact in said)]
            if open_:
                fact = self._silence(topic, "no fact is about it")
                yield fact if open_ == list(asked or ("",)) else replace(fact, methods=tuple(open_))

    def _silence(self, topic: Topic, text: str) -> Fact:
        """What the facts leave open."""
        return Fact(topic, "unknown", text, self.path.name, self.name, self.date)

    def methods_named(self, names: Sequence[str]) -> tuple[str, ...]:
        """The methods of these names, or that begin with them, in any case; all without names.

        Raises `UsageError` for a name of none.
        """
        found: list[str] = []
        for name in names:
            meant = [m for m in self.methods if m.lower() == name.lower()]
            meant = meant or [m for m in self.methods if m.lower().startswith(f"{name.lower()} ")]
            if not meant:
                has = ", ".join(self.methods) or "no methods"
                raise UsageError(f"{self.name} has no method {name!r}: it has {has}")
            found += meant
        return tuple(dict.fromkeys(found)) or self.methods

    def obstacles(self, model: "nn.Module", inputs: "ExampleInputs") -> "tuple[Obstacle, ...]":
        """The operations of a torch model that it would refuse or get wrong, as far as is known."""
        from ..toolchains import grammar

        return () if self.grammar is None else grammar(self.grammar)(model, inputs)


def numbers_of(conv: "ConvSpec") -> Numbers:
    """What facts need to know of a convolution."""
    kind: Kind = conv.kind
    return Numbers(
        kind=kind,
        dims=conv.dims,
        transposed=conv.transposed,
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        groups=conv.groups,
        dilation=max(conv.dilation, default=1),
        padding_mode=conv.padding_mode,
        output_padding=any(conv.output_padding),
    )
