"""What is known of a toolchain: facts, each with its source and its date, and when one applies.

A fact is data. Its condition is a conjunction of a few plain comparisons, so that a file of facts
says all there is to say of a target, runs nothing, and can be written by whoever knows the tool.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from math import gcd
from typing import Literal, get_args

Verdict = Literal["accepted", "slow", "unknown", "wrong", "elsewhere", "refused"]
"""From good to bad:

- `accepted`: taken as it is;
- `slow`: taken, and slower than it could be;
- `unknown`: nobody has found out;
- `wrong`: taken for something else, without a word;
- `elsewhere`: runs, but not on the device that the toolchain is for;
- `refused`: an error.
"""

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
ACCEPTABLE: frozenset[Verdict] = frozenset({"accepted", "slow"})

ConvTopic = Literal[
    "groups", "dimensions", "transposed", "dilation", "channels", "padding", "branch", "quantised"
]
OperationTopic = Literal["reshape", "gather", "slice", "concat"]
Topic = ConvTopic | OperationTopic

CONV_TOPICS: tuple[ConvTopic, ...] = get_args(ConvTopic)
OPERATION_TOPICS: tuple[OperationTopic, ...] = get_args(OperationTopic)

Kind = Literal["dense", "grouped", "depthwise", "depthwise-multiplier", "transposed"]
Layout = Literal["float", "qdq", "weight only", "QLinearConv", "ConvInteger"]
Scales = Literal["tensor", "channel", "block"]


@dataclass(frozen=True)
class Numbers:
    """The numbers of a convolution that facts are about; those of a `ConvSpec` are taken over."""

    kind: Kind
    dims: int
    transposed: bool
    in_channels: int
    out_channels: int
    groups: int
    dilation: int
    padding_mode: str
    output_padding: bool = False

    @property
    def depthwise(self) -> bool:
        """Whether each channel is a group of its own, on both sides, and there are several."""
        return self.groups == self.in_channels == self.out_channels > 1

    @property
    def unit(self) -> int:
        """What both sides of a group are multiples of; of a depthwise one, all its channels."""
        if self.kind == "depthwise":
            return self.out_channels
        return gcd(self.in_channels // self.groups, self.out_channels // self.groups)


@dataclass(frozen=True)
class Subject:
    """What is judged: a convolution, or an operation on channels between convolutions.

    `site` is the site of the original that it comes from. `numbers` are None for an operation, and
    for a convolution whose numbers are not constants of the model; `unread` says why. `rank` is the
    largest number of dimensions that an operation works on, `parts` how many values are joined.
    """

    name: str
    site: str
    text: str
    operation: OperationTopic | None = None
    numbers: Numbers | None = None
    layout: Layout = "float"
    scales: Scales | None = None
    rank: int = 0
    parts: int = 0
    unread: str | None = None


@dataclass(frozen=True)
class Where:
    """When a fact applies; what is None, or empty, does not matter."""

    kind: tuple[Kind, ...] = ()
    """kinds of convolutions; `transposed` are those that have groups"""

    depthwise: bool | None = None
    """whether each channel is a group of its own, on both sides, transposed or not"""

    dims: tuple[int, ...] = ()
    """numbers of spatial dimensions"""

    transposed: bool | None = None
    """whether the convolution is transposed, with groups or without"""

    dilated: bool | None = None
    """whether its taps stand apart"""

    output_padding: bool | None = None
    """whether a transposed one pads its output"""

    padding_mode: tuple[str, ...] = ()
    """how it is padded: zeros, reflect, replicate, circular"""

    groups_above: int | None = None
    """more groups than this"""

    multiple_of: int | None = None
    """both sides of each group are multiples of this; of a depthwise one, all its channels"""

    channels_above: int | None = None
    """more input channels, or more output channels, than this"""

    out_channels_above: int | None = None
    """more output channels than this"""

    reach_above: int | None = None
    """dilation times input channels is more than this"""

    layout: tuple[Layout, ...] = ()
    """how its weight is stored"""

    scales: tuple[Scales, ...] = ()
    """how a quantised weight is scaled: as a whole, each channel, or blocks of positions"""

    rank_above: int | None = None
    """of an operation: more dimensions than this"""

    parts_above: int | None = None
    """of a concatenation: more parts than this"""

    def fits(self, subject: Subject) -> bool:
        """Whether all of it is so of `subject`."""
        if not _one_of(self.layout, subject.layout) or not _one_of(self.scales, subject.scales):
            return False
        if _below(self.rank_above, subject.rank) or _below(self.parts_above, subject.parts):
            return False
        conv = subject.numbers
        return self._about_nothing if conv is None else self._fits_conv(conv)

    def _fits_conv(self, conv: Numbers) -> bool:
        most = max(conv.in_channels, conv.out_channels)
        return not (
            not _one_of(self.kind, conv.kind)
            or not _one_of(self.dims, conv.dims)
            or not _one_of(self.padding_mode, conv.padding_mode)
            or self.depthwise not in (None, conv.depthwise)
            or self.transposed not in (None, conv.transposed)
            or self.dilated not in (None, conv.dilation > 1)
            or self.output_padding not in (None, conv.output_padding)
            or _below(self.groups_above, conv.groups)
            or (self.multiple_of is not None and conv.unit % self.multiple_of != 0)
            or _below(self.channels_above, most)
            or _below(self.out_channels_above, conv.out_channels)
            or _below(self.reach_above, conv.dilation * conv.in_channels)
        )

    @property
    def _about_nothing(self) -> bool:
        """Whether it asks for no numbers of a convolution."""
        kept = {"layout", "scales", "rank_above", "parts_above"}
        none = Where()
        return all(getattr(self, n) == getattr(none, n) for n in vars(none) if n not in kept)


def _one_of(wanted: tuple[object, ...], found: object) -> bool:
    return not wanted or found in wanted


def _below(limit: int | None, number: int) -> bool:
    return limit is not None and number <= limit


@dataclass(frozen=True)
class Fact:
    """One thing that a toolchain does.

    `word` stands for it in a table, `text` says it in a sentence. `methods` are the parts of the
    toolchain that it is about; all, where it names none. `fix` are passes, with their options, that
    may make it acceptable, in the order in which they are tried. `source` says where it was read,
    or how it was measured, `version` of what, and `date` when.
    """

    topic: Topic
    verdict: Verdict
    text: str
    source: str
    version: str
    date: date
    word: str = ""
    where: Where = Where()
    methods: tuple[str, ...] = ()
    fix: tuple[str, ...] = ()

    @property
    def acceptable(self) -> bool:
        """Whether it speaks for what it is about."""
        return self.verdict in ACCEPTABLE

    def is_of(self, method: str) -> bool:
        """Whether it is about a method of the toolchain."""
        return not self.methods or method in self.methods

    @property
    def badness(self) -> int:
        """Its place from good to bad."""
        return VERDICTS.index(self.verdict)

    def to_dict(self) -> dict[str, object]:
        """Plain data, without the condition."""
        return {
            "topic": self.topic,
            "verdict": self.verdict,
            "text": self.text,
            "methods": list(self.methods),
            "source": self.source,
            "version": self.version,
            "date": self.date.isoformat(),
        }


@dataclass(frozen=True)
class Judged:
    """A subject, and the facts that apply to it, the first of each topic and method."""

    subject: Subject
    facts: tuple[Fact, ...]
    methods: tuple[str, ...] = field(default=(), repr=False)

    @property
    def verdict(self) -> Verdict:
        """The worst of them; `accepted` where nothing is said against it."""
        return VERDICTS[max((fact.badness for fact in self.facts), default=0)]

    @property
    def acceptable(self) -> bool:
        """Whether nothing speaks against it, and nothing is unknown."""
        return self.verdict in ACCEPTABLE

    @property
    def against(self) -> tuple[Fact, ...]:
        """The facts for which it is not acceptable, the worst first."""
        found = [fact for fact in self.facts if not fact.acceptable]
        return tuple(sorted(found, key=lambda fact: -fact.badness))

    @property
    def word(self) -> str:
        """The word of the worst; of those as bad as it, of the last that has one."""
        words = [fact.word for fact in self.facts if fact.word and fact.verdict == self.verdict]
        plain = "ok" if self.verdict == "accepted" else self.verdict
        return words[-1] if words else plain

    @property
    def reason(self) -> str:
        """All that speaks against it, or the worst that is said of it, in one line."""
        told = self.against or tuple(fact for fact in self.facts if fact.verdict == self.verdict)
        lines = {f"{_by(fact)}{fact.text}": None for fact in told}
        return "; ".join(lines) or "nothing is said against it"

    @property
    def by_method(self) -> Mapping[str, Verdict]:
        """The verdict of each method; of targets without, nothing."""
        return {
            method: VERDICTS[max((f.badness for f in self.facts if f.is_of(method)), default=0)]
            for method in self.methods
        }


def _by(fact: Fact) -> str:
    return f"{', '.join(fact.methods)}: " if fact.methods else ""
