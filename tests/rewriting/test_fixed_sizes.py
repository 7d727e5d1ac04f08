"""What a forward computes of the sizes of images is a constant where a target wants constants."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import groupfx
from groupfx.tracing.places import operation_of

X = torch.randn(2, 4, 9, 12)


def alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-6)


class PaddedByItsSize(nn.Module):
    """As the ports of TensorFlow's models pad."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, stride=2, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        down = 1 if height % 2 == 0 else max(3 - height % 2, 0)
        right = 1 if width % 2 == 0 else max(3 - width % 2, 0)
        padding = (right // 2, right - right // 2, down // 2, down - down // 2)
        return self.conv(F.pad(x, padding)).relu()


class PaddedWithoutBranches(PaddedByItsSize):
    """The same in arithmetic alone, through which a trace goes."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        down, right = 1 + height % 2, 1 + width % 2
        padding = (right // 2, right - right // 2, down // 2, down - down // 2)
        return self.conv(F.pad(x, padding)).relu()


@pytest.mark.long
@pytest.mark.parametrize("kind", [PaddedByItsSize, PaddedWithoutBranches])
def test_a_padding_of_the_size_is_a_constant_for_plinio(kind: type[PaddedByItsSize]) -> None:
    model = kind().eval()
    result = groupfx.rewrite(model, X, target="plinio")
    assert result.report.ok
    assert not [each for each in result.report.obstacles or () if each.refused]
    assert alike(result.model(X), model(X))
    assert any("size" in note and "fixed" in note for note in result.report.notes)
    other = torch.randn(2, 4, 10, 13)
    assert not alike(result.model(other), model(other))  # which is what the note is for


def upsampled(m: nn.Module, x: Tensor) -> Tensor:
    return F.interpolate(m.conv(x), size=x.shape[2:], mode="nearest")


def pooled(m: nn.Module, x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(m.conv(x), x.size(2) // 2)


def pooled_as_a_deeper_map(m: nn.Module, x: Tensor) -> Tensor:
    """Layers stand between the two, and are read for their size alone."""
    y = m.conv(x)
    return F.adaptive_avg_pool2d(y, (m.next(y).relu().size(2), 2))


def padded_with_a_value(m: nn.Module, x: Tensor) -> Tensor:
    """What else it takes is no tensor either, and no size."""
    return F.pad(m.conv(x), (0, x.size(2)), value=x.max().item())


def halved(m: nn.Module, x: Tensor) -> Tensor:
    """One pixel more is the same half."""
    return F.adaptive_avg_pool2d(m.conv(x), (1, x.size(3) // 2))


def padded_by_positions(m: nn.Module, x: Tensor) -> Tensor:
    """As in a transformer, positions come before channels."""
    positions = x.flatten(2).transpose(1, 2)
    return F.pad(m.conv(x), (0, positions.size(1) // 36))


def inverted(m: nn.Module, x: Tensor) -> Tensor:
    """What goes into it is complex."""
    found = torch.stft(m.conv(x).flatten(1), 8, window=torch.ones(8), return_complex=True)
    return torch.istft(found, 8, window=torch.ones(8), length=x.size(3) * 2)


def cropped(m: nn.Module, x: Tensor) -> Tensor:
    return m.conv(x)[:, :, : x.size(2) - 3, :]


def padded_by_channels(m: nn.Module, x: Tensor) -> Tensor:
    return F.pad(m.conv(x), (0, x.size(1) // 4))


class Sized(nn.Module):
    def __init__(self, body: object) -> None:
        super().__init__()
        self.conv, self.body = nn.Conv2d(4, 6, 3, stride=2), body
        self.next = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)  # type: ignore[operator]


class Pooled(nn.Module):
    """A view that makes rows of the positions that a larger image leaves behind a pool."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1, groups=2)
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(x), (9, 12)).view(self.rows, 4)


def test_a_view_that_leaves_its_rows_open_is_fixed_to_the_size() -> None:
    model = Pooled(-1).eval()
    result = groupfx.rewrite(model, X, passes=["flatten-views"])
    assert result.report.respelled[0].after == "torch.flatten"
    assert any("fixed to the size of the example" in str(note) for note in result.report.notes)
    assert torch.equal(result.model(X[:1]), model(X[:1]))
    other = torch.randn(2, 4, 18, 12)
    assert result.model(other).shape != model(other).shape


@pytest.mark.parametrize(
    ("body", "operation", "fixed"),
    [
        (upsampled, "F.interpolate", True),
        (pooled, "F.adaptive_avg_pool2d", True),
        (pooled_as_a_deeper_map, "F.adaptive_avg_pool2d", True),
        (padded_with_a_value, "F.pad", True),
        (halved, "F.adaptive_avg_pool2d", True),
        (padded_by_positions, "F.pad", True),
        (inverted, "torch.istft", True),
        (cropped, "getitem", True),
        (padded_by_channels, "F.pad", False),
    ],
)
def test_numbers_of_sizes_become_numbers(body: object, operation: str, *, fixed: bool) -> None:
    model = Sized(body)
    result = groupfx.rewrite(model, X, passes=["fix-sizes"])
    (done,) = result.report.respelled
    assert done.before == operation
    called = [n for n in result.model.graph.nodes if n.op.startswith("call")]
    assert operation_of(called[-1], result.model) == operation
    assert not any(n.target in ("size", getattr) for n in called)
    told = [note for note in result.report.notes if "fixed to the size of the example" in note]
    assert bool(told) == fixed
    assert all(f"{operation} (" in note and "test_fixed_sizes.py:" in note for note in told)
    same = torch.equal(result.model(X[:1]), model(X[:1]))
    assert same
    other = torch.randn(2, 4, 15, 20)
    assert (result.model(other).shape == model(other).shape) != fixed


@pytest.mark.parametrize(
    "rows", [lambda x: x.size(0), lambda x: x.transpose(0, 1).size(1)], ids=["first", "second"]
)
def test_numbers_of_the_batch_stay(rows: Callable[[Tensor], int]) -> None:
    model = Sized(lambda m, x: F.pad(m.conv(x), (0, rows(x))))
    result = groupfx.rewrite(model, X, passes=["fix-sizes"])
    assert result.report.way == "trace"
    assert not result.report.respelled
    assert result.model(X[:1]).shape == model(X[:1]).shape
