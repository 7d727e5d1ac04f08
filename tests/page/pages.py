"""Results to show, and what a page says of them, read from the page alone."""

import json
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

from groupfx.page.content import Grid, Page, Side, SiteRow, Size, Time, Tone
from groupfx.plan.blocks import Block, BlockStructure
from groupfx.report.pieces import Piece

TONES: tuple[Tone, ...] = ("good", "close", "open", "bad", "left")
SHUFFLED = BlockStructure(
    7, 5, (Block((4, 0, 6), (3, 1)), Block((2, 5), (0, 4))), bias_only=(2,), dead_inputs=(1, 3)
)


def site(number: int, **fields: Any) -> SiteRow:
    """A site with all that can be said of one."""
    plain: dict[str, Any] = {
        "name": f"layer{number}.conv",
        "kind": "grouped",
        "tone": "good",
        "verdict": "identical",
        "before": Side.of((Piece("Conv2d 8->8 /4, 3x3"),)),
        "after": Side.of((Piece("slice"), Piece("slice"), Piece("cat", (0, 1)))),
        "done": "split-grouped-conv",
        "ratio": 0.0,
        "macs": (4608, 4608),
        "facts": (("branches", "4"),),
        "structure": BlockStructure.of_groups(8, 8, 4),
    }
    return SiteRow(**{**plain, **fields})


def page(sites: Sequence[SiteRow] = (), **fields: Any) -> Page:
    """A page of these sites."""
    plain: dict[str, Any] = {
        "kind": "Rewrite",
        "name": "net.pt",
        "tone": "good",
        "verdict": "Same function, checked in float64.",
    }
    return Page(**{**plain, "sites": tuple(sites), **fields})


def mixed(count: int) -> Page:
    """Sites that fared in every way, with names of any alphabet."""
    ratios = (0.0, 0.31, None, 41.5, None)
    sites = [
        site(
            k,
            name=f"段{k}.層.conv",
            tone=TONES[k % 5],
            verdict=("identical", "within bound", "not checked", "MISMATCH", "left")[k % 5],
            ratio=ratios[k % 5],
            notes=("it is hooked",) if k % 5 == 4 else (),
            structure=SHUFFLED if k % 2 else BlockStructure.of_groups(8, 8, 4),
        )
        for k in range(count)
    ]
    return page(
        sites,
        tone="bad",
        verdict="NOT the same function.",
        lines=("to blame: the site 段3.層.conv",),
        sizes=(Size("parameters", 1200, 900), Size("the file", None, 6072, of_bytes=True)),
        times=(
            Time("assembled", 0.94, 0.91, 0.97, "faster", "9 rounds"),
            Time("split", 1.2, 0.0, math.inf, "cannot tell"),
        ),
        grids=(
            Grid(
                "Outputs", ("output", "check"), [("y", "ok"), ("z", "MISMATCH")], ["close", "bad"]
            ),
        ),
        notes=("the model is in train mode",),
    )


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def tags_of(text: str) -> list[tuple[str, dict[str, str | None]]]:
    """Every element of a page, with its attributes."""
    reader = _Reader()
    reader.feed(text)
    return reader.tags


def data_of(text: str) -> dict[str, Any]:
    """What the script of a page reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    loaded: dict[str, Any] = json.loads(found[1])
    return loaded
