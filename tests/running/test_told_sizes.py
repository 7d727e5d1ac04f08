"""The size of an input: told by the model, found by what fails, or a guess that says so."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from groupfx.running.guess import Declared, infer_inputs, inputs_for
from groupfx.running.inputs import ExampleInputs
from groupfx.running.totals import totals


class Says(nn.Module):
    """One convolution, and settings as models of other libraries have them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        vars(self).update(settings)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Patches(nn.Module):
    """The start of a vision transformer; `interpolate` takes any size."""

    def __init__(self, rows: int, patch: int, extra: int, *, interpolate: bool = False) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, 8, patch, patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, rows + extra, 8))
        self.extra, self.interpolate = extra, interpolate

    def forward(self, x: Tensor) -> Tensor:
        rows = self.proj(x).flatten(2).transpose(1, 2)
        rows = torch.cat([rows[:, : self.extra], rows], 1)
        places = self.pos_embed
        if self.interpolate:
            places = nn.functional.interpolate(places.transpose(1, 2), rows.shape[1]).transpose(
                1, 2
            )
        return rows + places


class Raises(Says):
    """A setting that cannot be read."""

    @property
    def img_size(self) -> int:
        raise RuntimeError("not built yet")


def flat(features: int, channels: int = 3) -> nn.Module:
    """A linear layer behind a flatten: of (n / 2 - 2) / 2 rows and columns, rounded down."""
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 3),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(features, 10),
    )


def pooled() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


TOLD: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "img_size": (lambda: Says(img_size=40), (40, 40), "as img_size tells"),
    "a pair": (lambda: Says(image_size=(40, 56)), (40, 56), "as image_size tells"),
    "timm": (
        lambda: Says(pretrained_cfg={"input_size": (3, 31, 33)}),
        (31, 33),
        "as pretrained_cfg.input_size tells",
    ),
    "lightning": (
        lambda: Says(example_input_array=torch.zeros(1, 3, 9, 11)),
        (9, 11),
        "the model's example_input_array",
    ),
    "wrapped": (lambda: nn.Sequential(Says(img_size=40)), (40, 40), "as 0.img_size tells"),
    "position embedding": (lambda: Patches(64, 4, 1), (32, 32), "as pos_embed tells"),
    "no class token": (lambda: Patches(81, 5, 0), (45, 45), "as pos_embed tells"),
    "two tokens": (lambda: Patches(36, 3, 2), (18, 18), "as pos_embed tells"),
    "interpolated": (
        lambda: Patches(64, 4, 0, interpolate=True),
        (32, 32),
        "as pos_embed tells",
    ),
    "28x28": (lambda: flat(16 * 6 * 6, 1), (28, 28), "the only usual size that it takes"),
    "48x48": (lambda: flat(16 * 11 * 11), (48, 48), "a size that 5 takes"),
    "100x100": (lambda: flat(16 * 24 * 24), (100, 100), "a size that 5 takes"),
    "norm over an area": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.LayerNorm([8, 12, 12])),
        (48, 48),
        "a size that 1 takes",
    ),
    "one dimension": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(4 * 198, 3)),
        (200,),
        "a size that 2 takes",
    ),
    "pooled by 8": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, 4, 1), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(8, 3)
        ),
        (32, 32),
        "the only usual size that it takes",
    ),
}


@pytest.mark.parametrize(("make", "sizes", "told"), TOLD.values(), ids=TOLD.keys())
def test_a_size_that_the_model_tells_is_no_guess(
    make: Callable[[], nn.Module], sizes: tuple[int, ...], told: str
) -> None:
    found = infer_inputs(make())
    assert next(found.inputs.tensors()).shape[2:] == sizes
    assert found.told == told
    assert found.inputs.guessed is None


GUESSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "global pooling": (pooled, "224x224"),
    "one dimension": (lambda: nn.Conv1d(2, 3, 3), "128"),
    "three dimensions": (lambda: nn.Conv3d(1, 2, 3), "32x32x32"),
    "a size without sense": (lambda: Says(img_size=10**9), "224x224"),
    "a size that it does not take": (lambda: nn.Sequential(Says(img_size=0)), "224x224"),
    "a setting that is text": (lambda: Says(img_size="large"), "224x224"),
    "a setting that raises": (Raises, "224x224"),
}


@pytest.mark.parametrize(("make", "sizes"), GUESSED.values(), ids=GUESSED.keys())
def test_a_guess_is_one_through_all_that_is_made_of_it(
    make: Callable[[], nn.Module], sizes: str
) -> None:
    model = make()
    found = infer_inputs(model)
    assert found.told is None
    generator = torch.Generator().manual_seed(0)
    for made in (found.inputs, found.inputs.with_batch(3), found.inputs.randomized(generator)):
        assert made.guessed == sizes
    assert totals(model, found.inputs).guessed == sizes
    again = ExampleInputs.from_description(found.inputs.describe())
    assert again.guessed == sizes


def test_given_inputs_and_vectors_are_no_guess() -> None:
    assert infer_inputs(nn.Linear(5, 3)).inputs.guessed is None
    given = ExampleInputs.of(torch.zeros(2, 3, 32, 32))
    assert totals(pooled(), given).guessed is None


def test_what_a_file_declares_is_taken() -> None:
    found = inputs_for(pooled(), None, [Declared("x", torch.float32, (1, 3, 32, 40))])
    assert [tuple(t.shape) for t in found.inputs.tensors()] == [(1, 3, 32, 40)]
    assert found.inputs.guessed is None
    known = ExampleInputs.of(torch.randn(2, 3, 8, 8))
    fitted = inputs_for(pooled(), known, [Declared("x", torch.float32, (None, 3, 32, 8))]).inputs
    assert [tuple(t.shape) for t in fitted.tensors()] == [(2, 3, 32, 8)]
    assert known.fitted([(None, None)]) is None
    assert known.fitted([]) is None


def test_open_sizes_of_a_file_are_guessed() -> None:
    found = inputs_for(pooled(), None, [Declared("x", torch.float32, (None, 3, None, 40))])
    assert [tuple(t.shape) for t in found.inputs.tensors()] == [(2, 3, 224, 40)]
    assert found.inputs.guessed == "224"


def test_a_file_tells_inputs_that_nothing_else_would() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.conv = nn.Embedding(7, 3), nn.Conv2d(3, 3, 3)

        def forward(self, x: Tensor, step: Tensor, scale: Tensor) -> Tensor:
            return (self.conv(x) + self.embed(step)[:, :, None, None]) * scale

    declared = [
        Declared("x", torch.float32, (2, 3, 8, 9)),
        Declared("step", torch.int64, (2,)),
        Declared("scale", torch.float32, ()),
    ]
    inputs = inputs_for(Two(), None, declared).inputs
    assert sorted(inputs.kwargs) == ["scale", "step", "x"]
    assert inputs.kwargs["step"].dtype == torch.int64
    assert int(inputs.kwargs["step"].max()) < 7
    other = [entry._replace(name=f"in_{k}") for k, entry in enumerate(declared)]
    assert len(inputs_for(Two(), None, other).inputs.args) == 3
