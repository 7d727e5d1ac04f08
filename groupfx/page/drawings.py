"""Drawings as SVG text: a mask and where its channels go, the operations of a site, the strip.

Their colours are classes of the page's style, so that they follow light and dark. Everything that
comes from a model is escaped here.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from ..plan.blocks import BlockStructure
from ..report.masks import (
    BACKGROUND,
    BLOCK_COLOURS,
    UNREAD,
    Labels,
    input_order,
    labels_after,
    labels_before,
    output_order,
)
from ..report.pieces import Piece
from .content import SiteRow, Tone

# Masks. More cells than these cannot be told apart, and make the page heavy.
_MOST_CELLS = 48
_MOST_RIBBONS = 96
_WIDTH, _HEIGHT, _FLOW = 300.0, 170.0, 64.0

# Strip: so many bars at most, and so many decades on either side of the bound.
_MOST_BARS = 480
_LOWEST, _HIGHEST = -6.0, 3.0

# Operations.
_BOX, _GAP, _ACROSS, _LETTER = 30.0, 26.0, 14.0, 7.4
_MOST_LETTERS = 34
_MOST_STEPS = 400


def number(value: float) -> str:
    """A coordinate with as few digits as do."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


# Masks


def mask_drawing(structure: BlockStructure) -> str:
    """The mask as it is, below it the mask in the order of its blocks, and the channels' ways.

    Input channels go down from their places to those in the order of the blocks; filters go right,
    from there back to their own.
    """
    before, after = labels_before(structure), labels_after(structure)
    inputs, outputs = input_order(structure), output_order(structure)
    down = _HEIGHT + _FLOW
    owner_in, owner_out = _owners(structure)
    parts = [
        _panel(before, 0, 0),
        _panel(after, 0, down),
        f'<g transform="translate(0 {number(_HEIGHT)})">'
        + _ribbons(inputs, structure.in_channels, owner_in, _WIDTH, across=False)
        + "</g>",
        f'<g transform="translate({number(_WIDTH)} {number(down)})">'
        + _ribbons(outputs, structure.out_channels, owner_out, _HEIGHT, across=True)
        + "</g>",
    ]
    size = f"{number(_WIDTH + _FLOW)} {number(down + _HEIGHT)}"
    label = (
        f"Mask of {structure.in_channels} input channels and {structure.out_channels} filters in "
        f"{len(structure.blocks)} blocks: as it is above, in the order of its blocks below"
    )
    return f'<svg class="mask" viewBox="0 0 {size}" role="img"><title>{label}</title>' + (
        "".join(parts) + "</svg>"
    )


def _owners(structure: BlockStructure) -> tuple[list[int], list[int]]:
    """The block of each place of the two orders."""
    inputs = [n for n, block in enumerate(structure.blocks) for _ in block.inputs]
    outputs = [n for n, block in enumerate(structure.blocks) for _ in block.outputs]
    return (
        inputs + [UNREAD] * len(structure.dead_inputs),
        outputs + [UNREAD] * len(structure.bias_only),
    )


def _panel(labels: Labels, x: float, y: float) -> str:
    """A mask in a frame, a path for each colour."""
    small = _reduced(labels)
    rows, columns = small.shape
    paths: dict[str, list[str]] = defaultdict(list)
    for row, column, height, width, label in _rectangles(small):
        paths[_block_class(label)].append(f"M{column} {row}h{width}v{height}h-{width}z")
    scale = f"{number(_WIDTH / columns)} {_HEIGHT / rows:.4f}"
    drawn = "".join(f'<path class="{name}" d="{"".join(d)}"/>' for name, d in sorted(paths.items()))
    frame = f'<rect class="frame" x="{number(x)}" y="{number(y)}" '
    frame += f'width="{number(_WIDTH)}" height="{number(_HEIGHT)}"/>'
    scale = f"{_WIDTH / columns:.4f} {_HEIGHT / rows:.4f}"
    place = f"translate({number(x)} {number(y)}) scale({scale})"
    return f'{frame}<g transform="{place}">{drawn}</g>'


def _block_class(label: int) -> str:
    return "dead" if label == UNREAD else f"b{label % len(BLOCK_COLOURS)}"


def _reduced(labels: Labels) -> Labels:
    """In at most as many cells as can be told apart.

    A cell shows one of its entries: which one goes on from cell to cell, so that blocks that lie
    mixed are seen as mixed.
    """
    rows, columns = labels.shape
    tall, wide = math.ceil(rows / _MOST_CELLS), math.ceil(columns / _MOST_CELLS)
    if tall * wide == 1:
        return labels
    small = np.full((math.ceil(rows / tall), math.ceil(columns / wide)), BACKGROUND, np.int32)
    for i, j in np.ndindex(*small.shape):
        cell = labels[i * tall : (i + 1) * tall, j * wide : (j + 1) * wide]
        entries = cell[cell >= 0]
        if entries.size:
            small[i, j] = entries[(i * 7 + j * 13) % entries.size]
        elif (cell == UNREAD).all():
            small[i, j] = UNREAD
    return small


def _rectangles(labels: Labels) -> Iterator[tuple[int, int, int, int, int]]:
    """`row, column, height, width, label` of runs of one label, alike rows together."""
    row = 0
    while row < len(labels):
        height = 1
        while row + height < len(labels) and (labels[row + height] == labels[row]).all():
            height += 1
        edges = np.flatnonzero(np.diff(labels[row])) + 1
        starts = [0, *edges.tolist()]
        for start, end in zip(starts, [*starts[1:], labels.shape[1]], strict=True):
            label = int(labels[row, start])
            if label != BACKGROUND:
                yield row, start, height, end - start, label
        row += height


def _ribbons(
    order: Sequence[int], channels: int, owners: Sequence[int], length: float, *, across: bool
) -> str:
    """The way of each run of channels between its own place and its place in `order`.

    Down from its own place, or `across` to it. Many single channels are drawn as some of them.
    """
    runs = list(_runs(order, owners))
    step = math.ceil(len(runs) / _MOST_RIBBONS)
    paths: dict[str, list[str]] = defaultdict(list)
    one, other = length / max(len(order), 1), length / max(channels, 1)
    for place, channel, count in runs[::step]:
        own = (channel * other, (channel + count) * other)
        there = (place * one, (place + count) * one)
        shape = _ribbon(there, own, across=True) if across else _ribbon(own, there, across=False)
        paths[_block_class(owners[place])].append(shape)
    return "".join(
        f'<path class="flow {name}" d="{"".join(d)}"/>' for name, d in sorted(paths.items())
    )


def _runs(order: Sequence[int], owners: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """`place, channel, count` of channels that lie side by side in both, in one block."""
    start = 0
    for k in range(1, len(order) + 1):
        if k < len(order) and order[k] == order[k - 1] + 1 and owners[k] == owners[k - 1]:
            continue
        yield start, order[start], k - start
        start = k


def _ribbon(first: tuple[float, float], last: tuple[float, float], *, across: bool) -> str:
    """From the side `first` to the side `last` of the flow, with a bend."""
    half = number(_FLOW / 2)
    a, b, c, d = (number(value) for value in (*first, *last))
    end = number(_FLOW)
    if across:
        return f"M0 {a}C{half} {a} {half} {c} {end} {c}V{d}C{half} {d} {half} {b} 0 {b}z"
    return f"M{a} 0C{a} {half} {c} {half} {c} {end}H{d}C{d} {half} {b} {half} {b} 0z"


# Operations


@dataclass(frozen=True)
class _Step:
    """Operations of one label at one distance from the start: how many there are."""

    label: str
    level: int
    count: int


def graph_drawing(pieces: Sequence[Piece], title: str) -> str:
    """The operations from top to bottom; alike ones side by side are one box with their number."""
    steps, edges = _steps(pieces)
    rows: dict[int, list[int]] = defaultdict(list)
    for index, step in enumerate(steps):
        rows[step.level].append(index)
    texts = [_step_text(step) for step in steps]
    widths = [len(text) * _LETTER + 20 for text in texts]
    needed = [sum(widths[k] for k in row) + _ACROSS * (len(row) - 1) for row in rows.values()]
    width = max(needed, default=80.0) + 12
    height = (len(rows) + 2) * (_BOX + _GAP) - _GAP + 4
    centre: dict[int, tuple[float, float]] = {}
    for level, row in sorted(rows.items()):
        x = (width - sum(widths[k] for k in row) - _ACROSS * (len(row) - 1)) / 2
        for k in row:
            centre[k] = (x + widths[k] / 2, (level + 1) * (_BOX + _GAP) + _BOX / 2 + 2)
            x += widths[k] + _ACROSS
    top, bottom = (width / 2, _BOX / 2 + 2), (width / 2, height - _BOX / 2 - 2)
    lines = [(centre[a], centre[b]) for a, b in edges]
    fed, read = {b for _, b in edges}, {a for a, _ in edges}
    lines += [(top, centre[k]) for k in centre if k not in fed]
    lines += [(centre[k], bottom) for k in centre if k not in read]
    drawn = [f'<path class="edge" d="{"".join(_edge(a, b) for a, b in lines)}"/>']
    drawn += [_end(*top, "in"), _end(*bottom, "out")]
    for k, (x, y) in centre.items():
        drawn.append(_box(x, y, widths[k], texts[k], stacked=steps[k].count > 1))
    view = f"0 0 {number(width)} {number(height)}"
    size = f'width="{number(width)}" height="{number(height)}"'
    return (
        f'<svg class="graph" viewBox="{view}" {size} role="img"><title>{escape(title)}</title>'
        f"{''.join(drawn)}</svg>"
    )


def _steps(pieces: Sequence[Piece]) -> tuple[list[_Step], list[tuple[int, int]]]:
    """The boxes, and which reads which."""
    levels: list[int] = []
    for piece in pieces:
        levels.append(1 + max((levels[k] for k in piece.reads), default=-1))
    places: dict[tuple[int, str], int] = {}
    counts: list[int] = []
    for piece, level in zip(pieces, levels, strict=True):
        place = places.setdefault((level, piece.label), len(places))
        counts += [0] * (place + 1 - len(counts))
        counts[place] += 1
    steps = [_Step(label, level, counts[k]) for (level, label), k in places.items()]
    box = [places[level, piece.label] for piece, level in zip(pieces, levels, strict=True)]
    edges = dict.fromkeys(
        (box[source], box[k]) for k, piece in enumerate(pieces) for source in piece.reads
    )
    return steps[:_MOST_STEPS], [edge for edge in edges if max(edge) < _MOST_STEPS]


def _step_text(step: _Step) -> str:
    label = step.label
    if len(label) > _MOST_LETTERS:
        label = f"{label[: _MOST_LETTERS - 1]}…"
    return f"{label} ×{step.count:,}" if step.count > 1 else label


def _edge(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x0, y0), (x1, y1) = start, end
    y0, y1 = y0 + _BOX / 2, y1 - _BOX / 2
    middle = number((y0 + y1) / 2)
    a, b, c, d = (number(value) for value in (x0, y0, x1, y1))
    return f"M{a} {b}C{a} {middle} {c} {middle} {c} {d}"


def _end(x: float, y: float, text: str) -> str:
    return f'<text class="end" x="{number(x)}" y="{number(y + 4)}">{text}</text>'


def _box(x: float, y: float, width: float, text: str, *, stacked: bool) -> str:
    left, top = x - width / 2, y - _BOX / 2
    size = f'width="{number(width)}" height="{number(_BOX)}" rx="6"'
    behind = "".join(
        f'<rect class="box" x="{number(left + off)}" y="{number(top - off)}" {size}/>'
        for off in ((6.0, 3.0) if stacked else ())
    )
    return (
        f'{behind}<rect class="box" x="{number(left)}" y="{number(top)}" {size}/>'
        f'<text x="{number(x)}" y="{number(y + 4)}">{escape(text)}</text>'
    )


# The strip


@dataclass(frozen=True)
class Bar:
    """One bar of the strip: how high, of which tone, and for which site it stands."""

    height: float
    tone: Tone
    site: int


def height_of(ratio: float | None) -> float:
    """Where an error by its bound lies on the scale of the strip: 0 for none at all, 1 for the top.

    The scale is logarithmic, from 1e-6 to 1e3 of what is allowed.
    """
    if ratio is None or ratio <= 0:
        return 0.0
    if not math.isfinite(ratio):
        return 1.0
    share = (math.log10(ratio) - _LOWEST) / (_HIGHEST - _LOWEST)
    return round(min(max(share, 0.04), 1.0), 3)


BOUND_HEIGHT = height_of(1.0)

_RANK: Mapping[Tone, int] = {"left": 0, "good": 1, "close": 2, "open": 3, "bad": 4}


def bars(sites: Sequence[SiteRow]) -> list[Bar]:
    """The bars, in order; of many sites, each stands for the worst of several."""
    step = math.ceil(len(sites) / _MOST_BARS) or 1
    found = []
    for start in range(0, len(sites), step):
        part = range(start, min(start + step, len(sites)))
        worst = max(part, key=lambda k: (_RANK[sites[k].tone], height_of(sites[k].ratio), -k))
        found.append(Bar(height_of(sites[worst].ratio), sites[worst].tone, worst))
    return found
