"""Pictures of learned groups: what they show, not how they look."""

import itertools
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from groupfx.errors import FileError, UsageError
from groupfx.learned.groups import LearnedGroups
from groupfx.learned.layers import LearnedLayer, learned_layers
from groupfx.learned.tracking import track
from groupfx.nn import Flgc2d
from groupfx.report.plots import MAX_LAYERS, mask_picture, plot_changes, plot_groups

pytest.importorskip("matplotlib")

WHITE, GREY = (255, 255, 255), (224, 224, 224)


def layers(count: int, *, groups: int = 3) -> tuple[LearnedLayer, ...]:
    return learned_layers(
        torch.nn.ModuleList(Flgc2d(11, 7, 1, group_num=groups) for _ in range(count))
    )


def tied() -> LearnedLayer:
    """Input 0 in both groups, input 3 and filter 4 in none; filters 0 and 1 in one group each."""
    layer = Flgc2d(4, 5, 1, group_num=2)
    nan = torch.nan
    with torch.no_grad():
        layer.in_channels_in_group_assignment_map.copy_(
            torch.tensor([[1.0, 1], [1, 0], [0, 1], [nan, 0]])
        )
        layer.out_channels_in_group_assignment_map.copy_(
            torch.tensor([[1.0, 0], [0, 1], [1, 0], [1, 1], [nan, 0]])
        )
    (found,) = learned_layers(layer)
    return found


def layer_of(groups: LearnedGroups) -> LearnedLayer:
    return LearnedLayer("mid", (1, 1), groups)


def colours(image: np.ndarray) -> list[list[tuple[int, ...]]]:
    return [[tuple(pixel) for pixel in row] for row in image.tolist()]


@pytest.mark.parametrize("layer", [*layers(3), *layers(2, groups=20), tied()])
def test_a_picture_shows_the_mask_and_its_blocks(layer: LearnedLayer) -> None:
    picture = mask_picture(layer)
    before, after = colours(picture.before), colours(picture.after)
    mask = layer.groups.mask().tolist()
    dead, lone = layer.groups.dead_inputs, layer.groups.bias_only_filters
    for o, row in enumerate(mask):
        for i, entry in enumerate(row):
            unread = i in dead or o in lone
            if not entry:
                assert before[o][i] == (GREY if unread else WHITE)
            else:
                assert before[o][i] not in (GREY, WHITE)
    # The same dots in another order: of each colour as many, but the columns that are repeated.
    dots = sum(pixel not in (GREY, WHITE) for row in after for pixel in row)
    assert dots == sum(entry > 0 for row in mask for entry in row)
    # On the diagonal: the colour of a row begins where that of the row above ended, or is the same.
    spans = []
    for row in after:
        places = [i for i, pixel in enumerate(row) if pixel not in (GREY, WHITE)]
        spans.append((min(places), max(places) + 1, len(places)) if places else None)
    filled = [span for span in spans if span is not None]
    assert all(end - start == count for start, end, count in filled)
    assert all(b in (a, (a[1], *b[1:])) for a, b in itertools.pairwise(filled))
    assert spans == filled + [None] * len(lone)


def test_an_entry_of_two_is_darker() -> None:
    before = mask_picture(tied()).before
    # Filter 3 is in both groups, and so is input 0: they share two, filter 3 and input 1 one.
    assert before[3, 0].sum() < before[3, 1].sum()
    assert tied().groups.mask()[3].tolist() == [2, 1, 1, 0]


@pytest.mark.parametrize("count", [2, 17])
def test_pictures_of_few_and_of_many_layers(tmp_path: Path, count: int) -> None:
    path = tmp_path / "groups.svg"
    plot_groups(layers(count), path, title="a $name$ of a file")
    tree = ElementTree.parse(path)
    panels = [e for e in tree.iter() if re.fullmatch(r"axes_\d+", e.get("id", ""))]
    images = [e for e in tree.iter() if e.tag.endswith("}image")]
    assert (len(panels), len(images)) == (2 * count, 2 * count)
    # matplotlib keeps each text as a comment.
    written = path.read_text(encoding="utf-8")
    assert "<!-- a $name$ of a file -->" in written
    for layer in range(count):
        assert f"<!-- {layer}   11 → 7 -->" in written


def test_no_dot_of_a_large_mask_is_lost(tmp_path: Path) -> None:
    # 19 blocks of one dot each, far apart, in a mask of many more channels than pixels.
    inputs = tuple((100 + 151 * place,) for place in range(19))
    outputs = tuple((100 + 101 * place,) for place in range(19))
    layer = layer_of(LearnedGroups(3001, 2003, inputs, outputs))
    plot_groups([layer], tmp_path / "groups.png")
    picture = np.asarray(Image.open(tmp_path / "groups.png").convert("RGB"))
    left = picture[:, : picture.shape[1] // 2].reshape(-1, 3)
    before = mask_picture(layer).before
    seen = {
        tuple(dot): int((left == dot).all(1).sum())
        for dot in before[[o for (o,) in outputs], [i for (i,) in inputs]]
    }
    assert sum(seen.values()) >= 19


def test_a_png_and_the_same_again(tmp_path: Path) -> None:
    found = layers(2)
    for name in ("a.png", "b.PNG"):
        plot_groups(found, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.PNG").read_bytes()


@pytest.mark.parametrize("epochs", [(4, 8, 20), None])
def test_a_picture_of_changes(tmp_path: Path, epochs: tuple[int, ...] | None) -> None:
    steps = track([layers(2), layers(2), layers(2)])
    plot_changes(steps, epochs, tmp_path / "changes.svg", side="inputs")
    text = (tmp_path / "changes.svg").read_text()
    numbers = [step.moved for step in steps]
    numbers += [len(layer.moved) for step in steps for layer in step.layers]
    for number in numbers:
        assert f"<!-- {number} -->" in text
    assert ("<!-- epoch -->" in text) == (epochs is not None)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.png or \.svg"):
        plot_groups(layers(1), tmp_path / "groups.pdf")
    with pytest.raises(UsageError, match="nothing to draw"):
        plot_groups((), tmp_path / "groups.png")
    with pytest.raises(UsageError, match="nothing to draw"):
        plot_changes((), None, tmp_path / "groups.png", side="inputs")
    with pytest.raises(UsageError, match=f"61 layers are too many .* at most {MAX_LAYERS}"):
        plot_groups(layers(1) * 61, tmp_path / "groups.png")
    with pytest.raises(FileError, match="cannot be written"):
        plot_groups(layers(1), tmp_path / "none" / "groups.png")
