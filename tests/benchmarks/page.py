"""Pages: how large they are, how long they take to write, and to open in a browser.

The models are the shipped examples, an ONNX file of 5,000 nodes, and 5,000 sites of which each has
notes of its own. `opened` is what the page itself measures, from the start of its loading to the
end of its script; the browser's own start is not in it.
"""

import re
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from onnx import helper
from rich.console import Console
from rich.table import Table

import groupfx
from groupfx.api.onnx import rewrite_onnx
from groupfx.page import Page, page_of, write_page
from tests.deploy.validate.small_files import numbers, value, write
from tests.page import browser
from tests.page.pages import mixed

from .files import timed

_EXAMPLES = ("examples/shufflenet_v1_g3.pt", "examples/flgc_digits.pt")


def deep_file(path: Path, convs: int) -> Path:
    """A chain of grouped convolutions and activations, two nodes each."""
    nodes = []
    for k in range(convs):
        nodes.append(helper.make_node("Conv", [f"x{k}", "w"], [f"c{k}"], f"layer{k}", group=2))
        nodes.append(helper.make_node("Relu", [f"c{k}"], [f"x{k + 1}"], f"relu{k}"))
    ends = [value("x0", [1, 4, 3, 3])], [value(f"x{convs}", [1, 4, 3, 3])]
    return write(path, nodes, *ends, {"w": numbers(4, 2, 1, 1)})


def pages(folder: Path, quick: bool) -> Iterator[tuple[str, Page]]:
    """Each with what it is called here."""
    for name in _EXAMPLES:
        loaded = groupfx.load(name)
        (x,) = loaded.inputs.tensors() if loaded.inputs else ()
        yield Path(name).name, page_of(groupfx.rewrite(loaded.model, (x,), target="plinio"))
    file = deep_file(folder / "deep.onnx", 50 if quick else 2500)
    yield "ONNX, 5,000 nodes", page_of(rewrite_onnx(file, None, verify=False))
    yield "5,000 sites, mixed", mixed(50 if quick else 5000)


def opened(path: Path, rounds: int) -> float | None:
    """Milliseconds, the median; None without a browser."""
    if browser.BROWSER is None:
        return None
    texts = [browser.dom(path) for _ in range(rounds)]
    return statistics.median(
        int(found[1]) for text in texts if (found := re.search(r'data-opened-ms="(\d+)"', text))
    )


def run(console: Console, quick: bool) -> None:
    table = Table(title="Pages")
    for title in ("result", "sites", "kB", "written, ms", "opened, ms"):
        table.add_column(title, justify="left" if title == "result" else "right")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "page.html"
        for name, page in pages(Path(folder), quick):
            taken = timed(lambda page=page: write_page(page, place))  # type: ignore[misc]
            shown = opened(place, 1 if quick else 7)
            cells = (name, f"{len(page.sites):,}", f"{place.stat().st_size / 1000:,.0f}")
            text = "-" if shown is None else f"{shown:,.0f}"
            table.add_row(*cells, f"{1000 * taken:,.0f}", text)
    console.print(table)
