"""What a validation says: the same function, a different one, or two that cannot be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...errors import MismatchError, NotComparableError
from ...plan.blocks import BlockStructure
from ...report.pieces import Piece
from .difference import Difference
from .operator_checks import OperatorCheck
from .output_checks import OutputCheck
from .quantised.site_noise import SiteNoise
from .site_checks import SiteCheck

Verdict = Literal["same", "different", "not comparable"]
SCHEMA = "groupfx.validation/1"

Pieces = Mapping[str, tuple[Piece, ...]]
"""The operations of each site, by its name."""

ROUNDING, QUANTISATION = "rounding", "quantisation noise"
"""What a difference is held against: what float64 and the candidate's dtype round to, or the noise
that the steps of a quantised file explain."""


@dataclass(frozen=True)
class Unseen:
    """Something that was not compared, in words; `decides` that without it there is no "same"."""

    text: str
    decides: bool = False


@dataclass(frozen=True)
class Validation:
    """The verdict on a candidate.

    `outputs` has one entry an output and runtime, `sites` one for each convolution that could be
    looked at on its own. `first_site` is the first wrong one in the order of the graph,
    `worst_site` the one that is furthest off by what is allowed (also where all are right).
    `yardstick` says what differences are held against, `noise` has one entry for each convolution
    of a quantised candidate, the worst first.
    `unseen` is what was not compared. `blame` says in words where a difference comes from, or why
    the two cannot be compared; None where they are the same. `guessed` are sizes of the inputs,
    such as `224x224`, that nobody gave and nothing tells. `pieces` are the operations of the sites
    in the reference and in the candidate, and `blocks` the blocks of their weights in the
    reference, for a drawing. `difference` keeps two sides that differ.
    """

    verdict: Verdict
    reference: str
    candidate: str
    dtype: str
    outputs: tuple[OutputCheck, ...]
    sites: tuple[SiteCheck, ...]
    first_site: SiteCheck | None
    worst_site: SiteCheck | None
    blame: str | None
    unseen: tuple[str, ...]
    runs: tuple[str, ...]
    runtimes: tuple[str, ...]
    notes: tuple[str, ...]
    operators: tuple[OperatorCheck, ...] = ()
    guessed: str | None = None
    pieces: tuple[Pieces, Pieces] = field(default=({}, {}), repr=False, compare=False)
    blocks: Mapping[str, BlockStructure] = field(default_factory=dict, repr=False, compare=False)
    difference: Difference | None = field(default=None, repr=False, compare=False)
    yardstick: str = ROUNDING
    noise: tuple[SiteNoise, ...] = ()

    @property
    def first_operator(self) -> OperatorCheck | None:
        """The first wrong operator in the order of the candidate."""
        return next((check for check in self.operators if not check.ok), None)

    @property
    def ok(self) -> bool:
        """Whether they are the same function: False also where they cannot be compared."""
        return self.verdict == "same"

    def require_ok(self, name: str) -> None:
        """Raise `MismatchError` or `NotComparableError`, with this as `report`, unless `ok`."""
        if self.verdict == "different":
            raise MismatchError(f"{name} is not the same function: {self.blame}", report=self)
        if self.verdict == "not comparable":
            raise NotComparableError(f"{name} cannot be compared: {self.blame}", report=self)

    def save_repro(self, folder: str | Path) -> Path | None:
        """Write the smallest part of the two that differs, its inputs and a script that shows it.

        Returns the script, which needs no groupfx: its exit code is 1 while they differ. None, and
        nothing is written, where they do not, or where no part of them does when it runs alone.
        Raises `FileError` where `folder` holds something or cannot be written.
        """
        from ..repro import save_repro

        return save_repro(self, Path(folder))

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the schema's name and version, ready for JSON."""
        first, worst = self.first_site, self.worst_site
        return {
            "schema": SCHEMA,
            "ok": self.ok,
            "verdict": self.verdict,
            "reference": self.reference,
            "candidate": self.candidate,
            "dtype": self.dtype,
            "yardstick": self.yardstick,
            "blame": self.blame,
            "not_compared": list(self.unseen),
            "outputs": [check.to_dict() for check in self.outputs],
            "first_site": None if first is None else first.to_dict(),
            "worst_site": None if worst is None else worst.to_dict(),
            "sites": [check.to_dict() for check in self.sites],
            "noise": [site.to_dict() for site in self.noise],
            "operators": [check.to_dict() for check in self.operators],
            "runs": list(self.runs),
            "guessed_sizes": self.guessed,
            "runtimes": list(self.runtimes),
            "notes": list(self.notes),
        }
