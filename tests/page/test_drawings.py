"""Drawings: where the cells, the channels and the bars lie."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from groupfx.page.content import Tone
from groupfx.page.drawings import bars, graph_drawing, height_of, mask_drawing
from groupfx.plan.blocks import BlockStructure
from groupfx.report.masks import labels_after, labels_before
from groupfx.report.pieces import Piece
from tests.page.pages import SHUFFLED, TONES, site


def cells(group: ElementTree.Element) -> dict[tuple[int, int], str]:
    """The class of each cell that the paths of a panel cover."""
    found = {}
    for path in group:
        for x, y, w, h in re.findall(r"M(\d+) (\d+)h(\d+)v(\d+)h-\d+z", path.get("d", "")):
            for row in range(int(y), int(y) + int(h)):
                for column in range(int(x), int(x) + int(w)):
                    assert (row, column) not in found
                    found[row, column] = path.get("class", "")
    return found


def test_a_mask_is_drawn_as_it_is_and_in_the_order_of_its_blocks() -> None:
    root = ElementTree.fromstring(mask_drawing(SHUFFLED))
    before, after, down, right = root.findall("g")
    owner = {
        (o, i): f"b{n}"
        for n, block in enumerate(SHUFFLED.blocks)
        for o in block.outputs
        for i in block.inputs
    }
    dead = {(o, i): "dead" for o in range(5) for i in (1, 3)}
    dead |= {(2, i): "dead" for i in range(7)}
    assert cells(before) == {**dead, **owner}
    # By hand: 3 x 2 cells of the first block, then 2 x 2 of the second, and what nothing reads.
    shown = cells(after)
    assert {place for place, name in shown.items() if name == "b0"} == {
        (row, column) for row in (0, 1) for column in (0, 1, 2)
    }
    assert {place for place, name in shown.items() if name == "b1"} == {
        (row, column) for row in (2, 3) for column in (3, 4)
    }
    # Five channels that are read and two that are not, none beside its neighbour of before.
    assert sum(path.get("d", "").count("M") for path in down) == 7
    assert sum(path.get("d", "").count("M") for path in right) == 5


def test_labels_hold_what_pictures_are_made_of() -> None:
    assert labels_before(SHUFFLED).tolist() == [
        [-1, -2, 1, -2, -1, 1, -1],
        [0, -2, -1, -2, 0, -1, 0],
        [-2] * 7,
        [0, -2, -1, -2, 0, -1, 0],
        [-1, -2, 1, -2, -1, 1, -1],
    ]
    assert labels_after(SHUFFLED)[:, 5:].tolist() == [[-2, -2]] * 5


def test_large_masks_stay_small() -> None:
    assert len(mask_drawing(BlockStructure.of_groups(2048, 2048, 2048))) < 25_000


def test_branches_that_are_alike_are_one_box() -> None:
    """Ten slices, ten convolutions and a concatenation: three boxes, and their numbers."""
    pieces = [Piece("slice")] * 10
    pieces += [Piece("Conv2d 2->5, 3x3", (k,)) for k in range(10)]
    pieces += [Piece("cat", tuple(range(10, 20)))]
    root = ElementTree.fromstring(graph_drawing(pieces, "after"))
    assert [e.text for e in root.iter("text")] == [
        "in",
        "out",
        "slice ×10",
        "Conv2d 2->5, 3x3 ×10",
        "cat",
    ]
    heights = [float(e.get("y", "")) for e in root.iter("text")][2:]
    assert all(a < b for a, b in pairwise(heights))


def test_a_label_is_text_and_no_markup() -> None:
    root = ElementTree.fromstring(graph_drawing([Piece("<b>&x")], "<before>"))
    assert [e.text for e in root.iter("text")] == ["in", "out", "<b>&x"]


@pytest.mark.parametrize("ratio", [1e-9, 1e-3, 0.5, 2.0, 1e9, float("inf")])
def test_the_bound_parts_right_from_wrong(ratio: float) -> None:
    assert (height_of(ratio) > height_of(1.0)) == (ratio > 1)
    assert 0 < height_of(ratio) <= 1


def test_no_error_has_no_height() -> None:
    assert height_of(0.0) == height_of(None) == 0


@pytest.mark.parametrize("tone", TONES)
def test_a_bar_is_the_worst_of_its_sites(tone: Tone) -> None:
    sites = [site(0)] * 5000
    sites[3217] = site(3217, tone=tone, ratio=30.0)
    found = bars(sites)
    assert len(found) <= 480
    (tallest,) = [bar for bar in found if bar.height > 0] if tone not in ("left",) else [found[0]]
    assert tallest.site in ((3217,) if tone != "left" else (0,))
