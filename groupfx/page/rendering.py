"""From the records of a page to one HTML file that needs nothing else.

Rows beyond the first are data in the page, and drawings that are alike stand in it once: thousands
of sites stay small, and open fast. A page of one result has the same bytes each time: it knows no
clock, no path and no order but that of the records.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from ..plan.blocks import BlockStructure
from ..report.prose import digits, shown
from ..version import __version__
from .content import Page, SiteRow, Size, Time
from .drawings import (
    BOUND_HEIGHT,
    bars,
    graph_drawing,
    height_of,
    mask_drawing,
    number,
)

MOST_BYTES = 2_000_000
"""A page is smaller: what is drawn is left out from the last site on, and then rows."""

NOT_KNOWN, LEFT_OUT = -1, -2
"""In the place of a drawing: there is none, or there was no room for it. The script knows them."""

_FIRST_ROWS = 60
# Of few sites, none is a wall.
_LEAST_SLOTS = 40
_ROOM = MOST_BYTES - 150_000
# The rest is for drawings, those of what is wrong first.
_ROOM_OF_ROWS = 0.85 * _ROOM
_TEMPLATES = ("page.html", "page.css", "page.js")


def render(page: Page) -> str:
    """The whole page as HTML text."""
    data = _data(page)
    style, script = (_source(name).strip() for name in ("page.css", "page.js"))
    shown_bars = bars(page.sites)
    counts: dict[str, int] = dict.fromkeys(dict(page.words.tones), 0)
    for site in page.sites:
        counts[site.tone] += 1
    return (
        _environment()
        .get_template("page.html")
        .render(
            page=page,
            version=__version__,
            style=Markup(style),
            script=Markup(script),
            style_hash=_hash(style),
            script_hash=_hash(script),
            data=Markup(_island(data.to_plain())),
            rows=[_server_row(site) for site in page.sites[:_FIRST_ROWS]],
            more=len(page.sites) - _FIRST_ROWS,
            left_out=len(page.sites) - len(data.rows),
            not_drawn=sum(LEFT_OUT in row[-1] for row in data.rows),
            bars=shown_bars,
            slots=max(len(shown_bars), _LEAST_SLOTS),
            bars_each=math.ceil(len(page.sites) / max(len(shown_bars), 1)),
            bound=BOUND_HEIGHT,
            tones=[(tone, word, counts[tone]) for tone, word in page.words.tones if counts[tone]],
            sizes=list(map(_size_row, page.sizes)),
            times=_time_rows(page.times),
        )
    )


def _island(plain: Any) -> str:
    """Data inside a script element: no `<` ends it, and no line separator ends a line."""
    text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


@cache
def _source(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


@cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.DictLoader({name: _source(name) for name in _TEMPLATES}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: shown(value) if type(value) is str else value,
    )
    made.filters["thousands"] = lambda value: f"{value:,}"
    return made


# The sites, as data


class _Data:
    """Rows as lists of numbers and texts; texts and drawings stand once each in a table.

    `size` is about how many bytes that is.
    """

    def __init__(self) -> None:
        self.rows: list[list[Any]] = []
        self.size = 0
        self._texts: list[str] = []
        self._places: dict[str, int] = {}

    def text(self, text: str) -> int:
        """The place of a text in the table."""
        place = self._places.get(text)
        if place is None:
            place = self._places[text] = len(self._texts)
            self._texts.append(text)
            self.size += len(_island(text).encode("utf-8")) + 1
        return place

    def mark(self) -> tuple[int, int]:
        """Where the table is now, to go back to."""
        return len(self._texts), self.size

    def back(self, mark: tuple[int, int]) -> None:
        """Forget the texts since then."""
        for text in self._texts[mark[0] :]:
            del self._places[text]
        del self._texts[mark[0] :]
        self.size = mark[1]

    def to_plain(self) -> Mapping[str, Any]:
        return {"texts": self._texts, "rows": self.rows}


def _data(page: Page) -> _Data:
    """As many rows as there is room for, with their drawings while there is room for these.

    The worst first: what is left out is what nobody looks for.
    """
    drawings, data = _Drawings(), _Data()
    order = sorted(range(len(page.sites)), key=lambda k: page.sites[k].tone != "bad")
    rows: dict[int, list[Any]] = {}
    for place in order:
        mark = data.mark()
        row = _plain_row(page.sites[place], data)
        data.size += len(_island(row).encode("utf-8")) + 12
        if data.size > _ROOM_OF_ROWS:
            data.back(mark)
            break
        rows[place] = row
    for place in order[: len(rows)]:
        mark = data.mark()
        drawn = [data.text(text) if text else NOT_KNOWN for text in drawings.of(page.sites[place])]
        if data.size > _ROOM:
            data.back(mark)
            drawn = [LEFT_OUT if k >= 0 else k for k in drawn]
        rows[place].append(drawn)
    data.rows = [rows[place] for place in sorted(rows)]
    return data


def _plain_row(site: SiteRow, data: _Data) -> list[Any]:
    """As the script of the page reads it."""
    ratio = "" if site.ratio is None else digits(site.ratio)
    return [
        shown(site.name),
        data.text(site.kind),
        site.tone,
        data.text(site.verdict),
        data.text(shown(site.before.text)),
        data.text(shown(site.after.text or "; ".join(site.notes))),
        data.text(site.done),
        ratio,
        height_of(site.ratio),
        [_macs(number) for number in site.macs],
        [[data.text(shown(title)), data.text(shown(text))] for title, text in site.facts],
        [data.text(shown(note)) for note in site.notes],
    ]


def _server_row(site: SiteRow) -> Mapping[str, Any]:
    return {
        "site": site,
        "ratio": "" if site.ratio is None else digits(site.ratio),
        "height": height_of(site.ratio),
        "after": site.after.text or "; ".join(site.notes),
    }


class _Drawings:
    """Drawings of sites; those of one structure are made once."""

    def __init__(self) -> None:
        self._masks: dict[BlockStructure, str] = {}
        self._graphs: dict[Any, str] = {}

    def of(self, site: SiteRow) -> tuple[str, str, str]:
        """The mask, the operations before, and those after; nothing for what is not known."""
        return (
            self._mask(site.structure),
            self._graph(site.before.pieces, "operations before"),
            self._graph(site.after.pieces, "operations after"),
        )

    def _mask(self, structure: BlockStructure | None) -> str:
        if structure is None or len(structure.blocks) < 2:
            return ""
        if structure not in self._masks:
            self._masks[structure] = mask_drawing(structure)
        return self._masks[structure]

    def _graph(self, pieces: Sequence[Any], title: str) -> str:
        if not pieces:
            return ""
        key = (tuple(pieces), title)
        if key not in self._graphs:
            self._graphs[key] = graph_drawing(pieces, title)
        return self._graphs[key]


# Numbers


def _macs(value: int | None) -> str:
    return "" if value is None else short(value)


def short(value: float) -> str:
    """`12345` as `12.3k`."""
    for letter in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5 or letter == "T":
            break
        value /= 1000
    return f"{value:.3g}{letter}"


def _with_unit(text: str) -> str:
    """With a space in front of its letter, or behind the number."""
    return f"{text[:-1]} {text[-1]}" if text[-1].isalpha() else f"{text} "


def _size_row(size: Size) -> Mapping[str, Any]:
    def text(value: int | None) -> str:
        if value is None:
            return "-"
        return f"{_with_unit(short(value))}B" if size.of_bytes else f"{value:,}"

    share = None
    if size.before and size.after is not None:
        share = size.after / size.before
    return {
        "title": size.title,
        "before": text(size.before),
        "after": text(size.after),
        "share": "" if share is None else "same" if share == 1 else f"{share:.3g} ×",
        "bar": None if share is None else number(min(share, 2.0) * 50),
    }


def _time_rows(times: Sequence[Time]) -> list[Mapping[str, Any]]:
    """Each with the places of its mark and of its interval on an axis around 1, in per cent."""
    ends = [e for t in times for e in (t.ratio, t.low, t.high) if e > 0 and math.isfinite(e)]
    reach = max([math.log(1.1), *(abs(math.log(end)) for end in ends)]) * 1.08

    def place(value: float) -> float:
        if value <= 0 or not math.isfinite(value):
            return 0.0 if value <= 0 else 100.0
        return round(50 * (1 + math.log(value) / reach), 2)

    return [
        {
            "time": time,
            "text": f"{time.ratio:.2f}",
            "interval": f"{time.low:.2f} to {time.high:.2f}" if math.isfinite(time.high) else "-",
            "at": place(time.ratio),
            "from": place(time.low),
            "wide": round(max(place(time.high) - place(time.low), 0.6), 2),
        }
        for time in times
    ]
