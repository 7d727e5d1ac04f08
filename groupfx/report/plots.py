"""Pictures of learned groups. The one place that needs matplotlib, which is an extra."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import MissingDependencyError, UsageError
from ..files.atomic import whole_file
from ..learned.layers import LearnedLayer
from ..learned.tracking import Side, Step
from .masks import UNREAD, Labels, labels_after, labels_before, placed_blocks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")
# Beyond this, panels are too many to be looked at, and a picture too large for its format.
MAX_LAYERS = 60

Image = npt.NDArray[np.uint8]

_BACKGROUND = (255, 255, 255)
_UNREAD = (224, 224, 224)
_INK = "#333333"
_DPI = 150
_SIDE_NAMES = {"inputs": "input channels", "filters": "filters"}


_TOP, _BOTTOM = 0.62, 0.2
_LEGEND = "one colour a block; grey: inputs that no filter reads, and filters that read no input"


@dataclass(frozen=True)
class _Layout:
    """Sizes of a layer's two panels, in inches, and the letters that its name may have.

    Fixed: to fit 40 panels to their texts is slow.
    """

    pair: float
    row: float
    panel: tuple[float, float]
    name: int

    def axes(self, figure: Figure, row: int, column: int, side: int) -> Axes:
        """Panel `side` of the layer in a row and column of layers."""
        whole_width, whole_height = figure.get_size_inches()
        width, height = self.panel
        left = column * self.pair + 0.5 + side * (width + self.pair / 2 - width)
        below = whole_height - _TOP - row * self.row - 0.25 - height
        place = (left / whole_width, below / whole_height)
        return figure.add_axes((*place, width / whole_width, height / whole_height))

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of a panel."""
        return int(self.panel[1] * _DPI), int(self.panel[0] * _DPI)


_LARGE = _Layout(pair=9.4, row=3.5, panel=(4.05, 2.65), name=50)
_SMALL = _Layout(pair=5.8, row=2.15, panel=(2.3, 1.55), name=26)


@dataclass(frozen=True)
class MaskPicture:
    """A layer's mask as it was learned, and as it is with its channels in the order of blocks.

    Both are colours, uint8 `[filters, input channels, 3]`. A channel that several blocks read
    stands in each of them in `after`, as a gather with repeats has it.
    """

    before: Image
    after: Image


def require_matplotlib() -> None:
    """Raise MissingDependencyError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError.of("pictures need", "matplotlib", "plot") from error


def plot_groups(layers: Sequence[LearnedLayer], path: Path, *, title: str = "") -> None:
    """Draw each layer's mask, `[filters, input channels]`, before and after its permutation.

    A block has one colour in both, darker where filter and channel share several groups. What is
    never read, and filters that read nothing, are grey. `path` ends in .png or .svg. Raises
    UsageError for another ending, for no layers and for more than `MAX_LAYERS`,
    MissingDependencyError without matplotlib, and FileError where `path` cannot be written.
    """
    _require(path, layers)
    if len(layers) > MAX_LAYERS:
        raise UsageError(f"{len(layers)} layers are too many for one picture: at most {MAX_LAYERS}")
    across = 1 if len(layers) <= 3 else 2 if len(layers) <= 8 else 3
    down = math.ceil(len(layers) / across)
    large = len(layers) <= 3
    layout = _LARGE if large else _SMALL
    figure = _figure(across * layout.pair, _TOP + down * layout.row + _BOTTOM)
    height = figure.get_figheight()
    figure.suptitle(title, fontsize=10, color=_INK, y=1 - 0.12 / height, va="top", parse_math=False)
    figure.text(0.5, 1 - 0.45 / height, _LEGEND, fontsize=8, color=_INK, ha="center")
    for place, layer in enumerate(layers):
        row, column = divmod(place, across)
        axes = [layout.axes(figure, row, column, side) for side in range(2)]
        _draw_layer(axes, layer, layout, last=large or place + across >= len(layers))
    _save(figure, path)


def plot_changes(
    steps: Sequence[Step], epochs: Sequence[int] | None, path: Path, *, side: Side, title: str = ""
) -> None:
    """Draw how many channels changed groups from each checkpoint to the next, layer by layer.

    `epochs` are those of the checkpoints, one more than `steps`; None numbers them. Raises as
    `plot_groups` does, with no limit of layers.
    """
    _require(path, steps)
    names = [layer.name or "the model" for layer in steps[0].layers]
    width = max(7.0, min(16.0, 4.0 + 0.8 * len(steps)))
    figure = _figure(width, min(2.9 + 0.24 * len(names), 60.0))
    figure.set_layout_engine("constrained")
    if title:
        figure.suptitle(title, fontsize=10, color=_INK, parse_math=False)
    rows = [1.6, max(0.24 * len(names), 0.8)]
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=rows)
    edges = list(epochs) if epochs is not None else list(range(1, len(steps) + 2))
    _draw_totals(upper, steps, edges, side)
    _draw_layers(figure, lower, steps, edges, names)
    lower.set_xlabel("checkpoint" if epochs is None else "epoch", fontsize=8, color=_INK)
    lower.set_xticks(_ticks(edges))
    _save(figure, path)


def _require(path: Path, things: Sequence[object]) -> None:
    require_format(path)
    require_matplotlib()
    if not things:
        raise UsageError("there is nothing to draw")


def require_format(path: Path) -> None:
    """Raise UsageError for a file whose name ends neither in .png nor in .svg."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path}: a picture's name must end in {' or '.join(FORMATS)}")


def _figure(width: float, height: float) -> Figure:
    # Not pyplot: nothing global is touched, and no window system is asked for.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI)


def _save(figure: Figure, path: Path) -> None:
    import matplotlib

    kind = path.suffix.lower().removeprefix(".")
    # Without a date or random names, the same picture is the same file.
    metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "groupfx"}):
        figure.savefig(buffer, format=kind, metadata=metadata)
    with whole_file(path) as file:
        file.write(buffer.getvalue())


# Masks


def _draw_layer(axes: Sequence[Axes], layer: LearnedLayer, layout: _Layout, *, last: bool) -> None:
    groups, structure = layer.groups, layer.structure
    picture = mask_picture(layer)
    share = structure.exact_macs / structure.dense_macs
    count = len(structure.blocks)
    name = _shortened(layer.name or "the model", layout.name)
    titles = (
        f"{name}   {groups.in_channels} → {groups.out_channels}",
        f"{count} block{'' if count == 1 else 's'}, {share:.1%} of the MACs",
    )
    for ax, image, title in zip(axes, (picture.before, picture.after), titles, strict=True):
        ax.imshow(
            _reduced(image, layout.pixels),
            aspect="auto",
            extent=(0, image.shape[1], image.shape[0], 0),
            interpolation="nearest",
        )
        ax.set_title(title, fontsize=8, loc="left", color=_INK, parse_math=False)
        ax.tick_params(labelsize=6.5, length=2, color=_INK, labelcolor=_INK)
        ax.locator_params(nbins=5, integer=True)
        for spine in ax.spines.values():
            spine.set_color("#999999")
            spine.set_linewidth(0.6)
    axes[0].set_ylabel("filter", fontsize=7.5, color=_INK)
    if layout is _LARGE:
        axes[1].set_ylabel("filter, in the order of blocks", fontsize=7.5, color=_INK)
    if last:
        axes[0].set_xlabel("input channel", fontsize=7.5, color=_INK)
        axes[1].set_xlabel("input channel, in the order of blocks", fontsize=7.5, color=_INK)


def _shortened(name: str, letters: int) -> str:
    """The end of a path tells layers apart."""
    return name if len(name) <= letters else f"…{name[1 - letters :]}"


def mask_picture(layer: LearnedLayer) -> MaskPicture:
    """Colour `layer`'s mask; see `plot_groups` for what the colours mean."""
    structure = layer.structure
    mask = layer.groups.mask().numpy()
    before, after = (
        _picture(labels) for labels in (labels_before(structure), labels_after(structure))
    )
    for placed in placed_blocks(structure):
        block = placed.block
        entries = mask[np.ix_(block.outputs, block.inputs)]
        colours = _shades(entries, placed.colour)
        shown = before[np.ix_(block.outputs, block.inputs)]
        before[np.ix_(block.outputs, block.inputs)] = np.where(entries[..., None], colours, shown)
        height, width = entries.shape
        rows = slice(placed.row, placed.row + height)
        after[rows, placed.column : placed.column + width] = colours
    return MaskPicture(before, after)


def _reduced(image: Image, room: tuple[int, int]) -> Image:
    """`image` in at most as many pixels as there is room for; the darkest stand for the others.

    Their mean would be so pale where dots are few that nothing is seen of them.
    """
    height, width = image.shape[:2]
    tall, wide = (
        math.ceil(size / limit) for size, limit in zip((height, width), room, strict=True)
    )
    if tall * wide <= 1:
        return image
    padded = np.pad(image, ((0, -height % tall), (0, -width % wide), (0, 0)), mode="edge")
    cells = padded.reshape(padded.shape[0] // tall, tall, padded.shape[1] // wide, wide, 3)
    cells = cells.swapaxes(1, 2).reshape(*cells.shape[:1], cells.shape[2], tall * wide, 3)
    darkest = cells.sum(-1, dtype=np.int64).argmin(-1)
    return np.take_along_axis(cells, darkest[..., None, None], axis=2)[:, :, 0]


def _picture(labels: Labels) -> Image:
    """Nothing but what no block reads, in the size of a mask."""
    unread = (labels == UNREAD)[..., None]
    return np.where(unread, _UNREAD, _BACKGROUND).astype(np.uint8)


def _shades(entries: npt.NDArray[Any], colour: str) -> Image:
    """`colour` for an entry of 1, darker for more, the background for 0; `[rows, columns, 3]`."""
    base = np.array([int(colour[start : start + 2], 16) for start in (0, 2, 4)])
    times = np.maximum(entries, 1)[..., None]
    return np.where(entries[..., None] == 0, _BACKGROUND, base / times**0.8).astype(np.uint8)


# Changes


def _draw_totals(ax: Axes, steps: Sequence[Step], edges: list[int], side: Side) -> None:
    moved = [step.moved for step in steps]
    ax.stairs(moved, edges, fill=True, color="#4e79a7", alpha=0.85)
    ax.set_ylabel("moved, all layers", fontsize=8, color=_INK)
    ax.set_ylim(0, max(*moved, 1) * 1.2)
    ax.locator_params(axis="y", nbins=6, integer=True)
    ax.set_title(
        f"{_SIDE_NAMES[side]} that changed groups, of {steps[0].channels:,}",
        fontsize=9,
        loc="left",
        color=_INK,
    )
    if len(steps) <= 16:
        for value, left, right in zip(moved, edges, edges[1:], strict=False):
            ax.annotate(
                f"{value:,}",
                ((left + right) / 2, value),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
    ax.tick_params(labelsize=7)
    for where in ("top", "right"):
        ax.spines[where].set_visible(False)


def _draw_layers(
    figure: Figure, ax: Axes, steps: Sequence[Step], edges: list[int], names: list[str]
) -> None:
    moved = np.array([[len(layer.moved) for layer in step.layers] for step in steps]).T
    channels = np.array([layer.channels for layer in steps[0].layers])[:, None]
    shares = 100 * moved / channels
    rows = np.arange(len(names) + 1) - 0.5
    top = max(float(shares.max()), 1.0)
    style: dict[str, Any] = {"cmap": "Blues", "vmin": 0, "vmax": top}
    style |= {"edgecolors": "#e6e6e6", "linewidth": 0.4}
    mesh = ax.pcolormesh(edges, rows, shares, **style)
    ax.set_yticks(range(len(names)), names, fontsize=7, parse_math=False)
    ax.invert_yaxis()
    ax.set_ylabel("layer", fontsize=8, color=_INK)
    ax.tick_params(axis="x", labelsize=7)
    bar = figure.colorbar(mesh, ax=ax, aspect=30, pad=0.01)
    bar.set_label("% of its channels", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    if len(steps) <= 16:
        for (row, column), number in np.ndenumerate(moved):
            middle = (edges[column] + edges[column + 1]) / 2
            dark = shares[row, column] > 0.6 * top
            colour = "white" if dark else _INK if number else "#bbbbbb"
            ax.text(middle, row, str(number), ha="center", va="center", fontsize=7, color=colour)


def _ticks(edges: list[int]) -> list[int]:
    """The epochs of checkpoints, thinned out where they would overlap."""
    return edges[:: math.ceil(len(edges) / 20)]
