"""What was done at each site, what was skipped and why, and what it cost: plain, frozen records."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..convs.spec import ConvSpec
from ..folding.fold import Fold
from ..plan.choice import Choice, expectation
from ..running.totals import Complexity
from ..state import Entry
from ..toolchains import Obstacle
from ..tracing.program import Fragment
from ..verify import Change, ModelVerdict, SiteVerdict
from .operation_pass import Respelled
from .report_text import report_text

SCHEMA = "groupfx.report/1"


@dataclass(frozen=True)
class SkippedSite:
    """A site that a pass left as it is. `kind` is `unknown` where its numbers are not constants."""

    name: str
    kind: str
    pass_name: str
    reason: str


@dataclass(frozen=True)
class RewrittenSite:
    """A site that a pass rewrote.

    `macs` and `macs_after` are multiply-accumulates of one call for one sample, before and after;
    None where no shape is known. `verdict` is None until the site was checked; `observable` says
    whether its weights reach the model's output (None: not told). `conv`, `start` and `end` name
    nodes of the reference graph: the convolution, what goes into it, and what was replaced last.
    `brief` is `after` without what `before` says as well, for narrow tables.
    `zeroed` are the entries of the original's tensors that a rewrite with a threshold set to 0.
    `joined` says, where tensors were put together, what of the rewritten model's each of the
    original's is.
    `choice` is what the form is expected to take, where it was chosen by that.
    """

    name: str
    kind: str
    pass_name: str
    before: str
    after: str
    branches: int
    macs: int | None
    macs_after: int | None
    notes: tuple[str, ...]
    fragment: Fragment = field(repr=False, compare=False)
    spec: ConvSpec = field(repr=False)
    exact: bool = True
    input_shape: tuple[int, ...] | None = None
    conv: str | None = None
    start: str | None = None
    end: str | None = None
    verdict: SiteVerdict | None = None
    observable: bool | None = None
    zeroed: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    brief: str = ""
    joined: Mapping[str, Entry] = field(default_factory=dict, repr=False, compare=False)
    choice: Choice | None = field(default=None, repr=False, compare=False)

    @property
    def starts(self) -> tuple[str, ...]:
        """What goes into it; nothing where nothing in the original stands for that."""
        return () if self.start is None else (self.start,)

    @property
    def replaces(self) -> bool:
        """Whether something in the original stands for both of its ends."""
        return self.start is not None and self.end is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in the JSON report."""
        return {
            "name": self.name,
            "kind": self.kind,
            "pass": self.pass_name,
            "before": self.before,
            "after": self.after,
            "branches": self.branches,
            "macs": self.macs,
            "macs_after": self.macs_after,
            "notes": [str(note) for note in self.notes],
            "verdict": None if self.verdict is None else self.verdict.to_dict(),
            "observable": self.observable,
        }


@dataclass(frozen=True)
class PassSummary:
    """A pass that ran: its name, its options, and how many sites it rewrote and skipped."""

    name: str
    options: Mapping[str, Any]
    rewritten: int
    skipped: int


@dataclass(frozen=True)
class Report:
    """The whole story of one rewrite.

    `way` is how the model was opened and `notes` why. `changes` is what was changed that a rewrite
    must keep, such as all that is outside the sites, and `model` the end-to-end verdict; None where
    no check was made. `folds` are what passes over the whole graph did, and `respelled` what passes
    over operations did.
    """

    way: str
    notes: tuple[str, ...]
    inputs: tuple[Mapping[str, Any], ...]
    passes: tuple[PassSummary, ...]
    sites: tuple[RewrittenSite, ...]
    skipped: tuple[SkippedSite, ...]
    complexity: Complexity | None = None
    model: ModelVerdict | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    changes: tuple[Change, ...] | None = None
    folds: tuple[Fold, ...] = field(default=(), repr=False)
    respelled: tuple[Respelled, ...] = ()
    obstacles: tuple[Obstacle, ...] | None = None

    @property
    def judged(self) -> tuple[RewrittenSite | Respelled, ...]:
        """All that a check is about besides the whole model."""
        return *self.sites, *self.respelled

    @property
    def verified(self) -> bool:
        """Whether a check was made, at each site and end to end."""
        judged = [each for each in self.judged if not isinstance(each, Respelled) or each.valued]
        return self.model is not None and all(each.verdict is not None for each in judged)

    @property
    def ok(self) -> bool:
        """Whether nothing that was checked differed."""
        sites_ok = all(each.verdict is None or each.verdict.ok for each in self.judged)
        return sites_ok and not self.changes and (self.model is None or self.model.ok)

    @property
    def expected(self) -> str | None:
        """What to expect of learned groups whose form was chosen by its time in eager PyTorch.

        Such as `expected 0.93 x the time of masked dense; 9 sites dense, 8 in 2-3 bins`.
        """
        choices = [site.choice for site in self.sites if site.choice is not None]
        return expectation(choices) if choices else None

    def without_notes_on(self, topic: str) -> "Report":
        """The same without the notes on one topic, where it is decided anew by somebody else."""
        sites = [
            replace(site, notes=tuple(n for n in site.notes if getattr(n, "topic", n) != topic))
            for site in self.sites
        ]
        return replace(self, sites=tuple(sites))

    def in_forms(self, forms: Mapping[str, tuple[str, int]]) -> "Report":
        """The same with its sites in other forms: what stands there, and in how many convolutions.

        What was expected of the forms that they had, and the size of the model, are left out.
        """
        sites = [
            replace(s, after=forms[s.name][0], brief=forms[s.name][0], branches=forms[s.name][1])
            if s.name in forms
            else s
            for s in self.sites
        ]
        told = [replace(site, choice=None) for site in sites]
        return replace(self, sites=tuple(told), complexity=None if told else self.complexity)

    def __str__(self) -> str:
        """The table that the command line prints, and the verdict."""
        return report_text(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the schema's name and version, ready for JSON."""
        size = self.complexity
        return {
            "schema": SCHEMA,
            "way": self.way,
            "notes": list(self.notes),
            "inputs": [dict(entry) for entry in self.inputs],
            "passes": [
                {
                    "name": entry.name,
                    "options": dict(entry.options),
                    "rewritten": entry.rewritten,
                    "skipped": entry.skipped,
                }
                for entry in self.passes
            ],
            "sites": [site.to_dict() for site in self.sites],
            "expected": self.expected,
            "skipped": [
                {"name": s.name, "kind": s.kind, "pass": s.pass_name, "reason": s.reason}
                for s in self.skipped
            ],
            "complexity": None
            if size is None
            else {"before": vars(size.before), "after": vars(size.after)},
            "changes": None if self.changes is None else [vars(change) for change in self.changes],
            "model": None if self.model is None else self.model.to_dict(),
            "folds": [fold.to_dict() for fold in self.folds],
            "respelled": [each.to_dict() for each in self.respelled],
            "obstacles": None
            if self.obstacles is None
            else [each.to_dict() for each in self.obstacles],
            "versions": dict(self.versions),
        }
