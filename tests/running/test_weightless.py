"""Models without values, on meta or fake: found, planned, rewritten, never vouched for."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import groupfx
from groupfx.errors import MismatchError, ModelError
from groupfx.nn import Flgc2d
from groupfx.passes import SplitGroupedConv
from groupfx.running.weightless import WHY
from tests.verify.test_wrong_rewrites import (
    DoubledOutput,
    DroppedStride,
    FrozenBranch,
    LostBias,
    LostGradient,
    SpoiledSplit,
    SwappedBranches,
    SwappedInputs,
    WrongMomentum,
    strided,
)

SHAPE = (2, 4, 7, 11)


class Empty(nn.Module):
    """Grouped, transposed and functional, with a BatchNorm and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)
        self.up = nn.ConvTranspose2d(6, 4, 3, groups=2)
        self.weight = nn.Parameter(torch.randn(8, 2, 3, 3))
        self.head = nn.Conv2d(8, 4, 1)
        self.again = self.conv

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.norm(self.conv(x)).relu())
        return self.head(F.conv2d(x, self.weight * 2, groups=2)) + self.again(x).sum()


class Branching(Empty):
    """Cannot be traced, so that its class is kept."""

    def forward(self, x: Tensor, twice: bool = False) -> Tensor:
        return super().forward(x * 2 if twice else x)


def on_meta(kind: type[nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return kind().eval()


def fake(kind: type[nn.Module]) -> nn.Module:
    with FakeTensorMode():
        return kind().eval()


def buffers_alone(kind: type[nn.Module]) -> nn.Module:
    """As libraries make large models: parameters on meta, buffers with values."""
    model = kind().eval()
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and not parameter.is_meta:
                    module._parameters[name] = nn.Parameter(parameter.to("meta"))
    return model


MADE = {"meta": on_meta, "fake": fake, "buffers": buffers_alone}


@pytest.mark.parametrize("kind", [Empty, Branching])
@pytest.mark.parametrize("made", MADE)
def test_it_is_rewritten_and_filled_later(made: str, kind: type[nn.Module]) -> None:
    model = MADE[made](kind)
    x = torch.randn(SHAPE)
    found = groupfx.find(model, x)
    assert [site.groups for site in found] == [2] * len(found)
    assert sum(site.calls for site in found) >= 3
    result = groupfx.rewrite(model, x)
    assert result.report.ok
    assert not result.report.verified, "no number of the model was compared"
    assert result.report.model is None
    assert WHY in result.report.notes
    assert len(result.report.sites) == len(found)
    assert all(site.verdict is not None and site.verdict.ok for site in result.report.sites)
    assert "the model has no values to compare" in str(result.report)
    assert all(parameter.is_meta for parameter in result.model.parameters())

    torch.manual_seed(3)
    filled = kind().eval()
    result.state_dict_map.load_original(filled.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(result.model(x), filled(x))


WRONG = [
    SwappedBranches,
    SwappedInputs,
    LostBias,
    DoubledOutput,
    DroppedStride,
    LostGradient,
    FrozenBranch,
    WrongMomentum,
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_rewrite_is_caught_without_values(wrong: type[SpoiledSplit]) -> None:
    model = strided().to("meta")
    assert groupfx.rewrite(model, torch.randn(2, 5, 11, 7)).report.ok
    with pytest.raises(MismatchError, match=r"^1 does not compute what it did"):
        groupfx.rewrite(model, torch.randn(2, 5, 11, 7), passes=[wrong()])


def test_inside_of_the_mode() -> None:
    with FakeTensorMode():
        report = groupfx.rewrite(Empty().eval(), torch.randn(SHAPE)).report
    assert report.ok
    assert not report.verified


def test_what_decides_by_values_is_left() -> None:
    with torch.device("meta"):
        model = nn.Sequential(Flgc2d(4, 4, 3, group_num=2), nn.Conv2d(4, 4, 1, groups=2)).eval()
    report = groupfx.rewrite(model, torch.randn(SHAPE)).report
    assert [site.name for site in report.sites] == ["1"]
    assert [site.name for site in report.skipped] == ["0"]
    assert "has no values (device meta); load the weights first" in report.skipped[0].reason


REFUSED: dict[str, Callable[[nn.Module, Path], object]] = {
    "discover-groups looks at the numbers of the weights, and Empty has none": lambda model, _: (
        groupfx.rewrite(model, torch.randn(SHAPE), passes=["discover-groups"])
    ),
    r"Empty has no values .*, and an ONNX file holds them: load them first": lambda model, folder: (
        groupfx.export(model, (torch.randn(SHAPE),), folder / "net.onnx")
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_needs_values_says_so(message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        REFUSED[message](on_meta(Empty), tmp_path)


def test_nothing_of_it_is_touched() -> None:
    model = on_meta(Empty).train()
    before = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    result = groupfx.rewrite(model, torch.randn(SHAPE), passes=[SplitGroupedConv()])
    assert {n: id(t) for n, t in model.state_dict(keep_vars=True).items()} == before
    assert model.training
    assert result.model.training


def test_one_tensor_without_values_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2))
    model.register_buffer("unused", torch.empty(3, device="meta"))
    report = groupfx.rewrite(model, torch.randn(SHAPE)).report
    assert not report.verified
    (note,) = report.notes
    assert note.startswith("unused in the model: no values (on the device meta), so that each site")
    assert "take it out if nothing reads it" in note
    del model.unused
    assert groupfx.rewrite(model, torch.randn(SHAPE)).report.verified
