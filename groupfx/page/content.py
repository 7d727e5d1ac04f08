"""What a page shows, as plain records; nothing here knows a model, a file or HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..plan.blocks import BlockStructure
from ..report.pieces import Piece

Tone = Literal["good", "close", "bad", "open", "left"]
"""How something fared: proved identical, within its bound, wrong, not told, or left as it is."""

Cells = tuple[str, ...]

_TOLD = 4


@dataclass(frozen=True)
class Side:
    """A site before or after: in words, and the operations that compute it where they are known."""

    text: str = ""
    pieces: tuple[Piece, ...] = ()

    @classmethod
    def of(cls, pieces: tuple[Piece, ...]) -> Side:
        """In the words of its operations, as far as they are few."""
        counts = Counter(piece.label for piece in pieces)
        told = [f"{count} x {label}" if count > 1 else label for label, count in counts.items()]
        more = [f"{len(told) - _TOLD} more kinds"] if len(told) > _TOLD else []
        return cls(" + ".join([*told[:_TOLD], *more]), pieces)


@dataclass(frozen=True)
class SiteRow:
    """One site: what it was and is, how it fared, and what is said of it.

    `done` names the pass or the form. `ratio` is its error by what is allowed: 0 where it is
    identical, infinite where nothing is finite or the shape is another, None where nobody measured.
    `facts` are pairs of a label and a value. `structure` are the blocks of its mask.
    """

    name: str
    kind: str
    tone: Tone
    verdict: str
    before: Side = Side()
    after: Side = Side()
    done: str = ""
    ratio: float | None = None
    macs: tuple[int | None, int | None] = (None, None)
    facts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    structure: BlockStructure | None = None


@dataclass(frozen=True)
class Size:
    """A number of the whole model before and after; None where it is not known."""

    title: str
    before: int | None
    after: int | None
    of_bytes: bool = False


@dataclass(frozen=True)
class Time:
    """A measured time by that of a reference, with its interval; infinite ends are unknown."""

    title: str
    ratio: float
    low: float
    high: float
    verdict: str
    note: str = ""


@dataclass(frozen=True)
class Grid:
    """A table of plain cells; the tones are those of its rows, where they have some.

    The columns at `numbers` hold numbers.
    """

    title: str
    titles: Cells
    rows: Sequence[Cells]
    tones: Sequence[Tone] = ()
    numbers: frozenset[int] = frozenset()
    text: str = ""


@dataclass(frozen=True)
class Words:
    """What the rows of a page are, and what their columns and the strip above them show."""

    title: str = "Sites"
    columns: tuple[str, str, str, str, str, str] = (
        "site", "kind", "before", "after", "error / allowed", "check",
    )  # fmt: skip
    strip: str = (
        "Error by what is allowed, logarithmic; the line is the bound, and the lowest bars are no "
        "error at all."
    )
    empty: str = "There is no site to show."
    tones: tuple[tuple[Tone, str], ...] = (
        ("good", "identical"),
        ("close", "within bound"),
        ("open", "not told"),
        ("bad", "mismatch"),
        ("left", "left as it is"),
    )


@dataclass(frozen=True)
class Page:
    """One result.

    `kind` is what was done (`Rewrite`, `Validation`), `name` what it was done to. `verdict` is the
    one sentence to remember, `lines` what it rests on.
    """

    kind: str
    name: str
    tone: Tone
    verdict: str
    lines: tuple[str, ...] = ()
    sites: tuple[SiteRow, ...] = ()
    sizes: tuple[Size, ...] = ()
    times: tuple[Time, ...] = ()
    grids: tuple[Grid, ...] = ()
    notes: tuple[str, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    words: Words = Words()
