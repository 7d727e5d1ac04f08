"""Numbers and words: differences, kinds, the yardstick for lower precision, the rounding bound."""

import itertools
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groupfx.verify import difference
from groupfx.verify.bounds import ConvRecorder, Magnitudes, bound_ratio, rounding_bound
from groupfx.verify.measures import identical

INF, NAN = float("inf"), float("nan")


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_difference_has_a_scale() -> None:
    found = difference(doubles(1, -4, 2), doubles(1, -3, 2))
    assert (found.error, found.scale, found.relative, found.reason) == (1.0, 4.0, 0.25, None)
    assert difference(doubles(0, 0), doubles(0, 0)).relative == 0.0
    assert difference(doubles(0, 0), doubles(0, 1e-300)).relative == INF
    assert difference(doubles(), doubles()).relative == 0.0


def test_what_no_number_can_say() -> None:
    assert difference(torch.ones(2, 3), torch.ones(3, 2)).reason == (
        "has shape [3, 2] instead of [2, 3]"
    )
    assert difference(torch.ones(2), torch.ones(2).double()).reason == (
        "has dtype torch.float64 instead of torch.float32"
    )
    found = difference(torch.tensor([1, 2, 3]), torch.tensor([1, 5, 4]))
    assert found.reason == "differs in 2 of 3 values, which are torch.int64"
    assert difference(torch.tensor([True]), torch.tensor([True])).reason is None


KINDS = {
    "nan_appears": ([1.0, 2.0], [1.0, NAN], "has NaN in 1 of 2 values that are finite"),
    "infinity_appears": ([1.0, 2.0], [INF, 2.0], "has infinity in 1 of 2 values"),
    "nan_vanishes": ([NAN, 2.0], [1.0, 2.0], "has finite instead of NaN in 1 of 2 values"),
    "sign_turns": ([INF, 2.0], [-INF, 2.0], "has -infinity instead of infinity"),
    "nan_for_infinity": ([INF, 2.0], [NAN, 2.0], "has NaN instead of infinity"),
}


@pytest.mark.parametrize(("before", "after", "reason"), KINDS.values(), ids=KINDS.keys())
def test_kinds_must_agree(before: list[float], after: list[float], reason: str) -> None:
    assert reason in str(difference(doubles(*before), doubles(*after)).reason)


def test_the_same_kinds_agree() -> None:
    values = doubles(NAN, INF, -INF, 3.0)
    found = difference(values, values.clone())
    assert (found.error, found.scale, found.reason) == (0.0, 3.0, None)
    assert identical(values, values.clone())
    assert not identical(values, doubles(NAN, INF, INF, 3.0))
    assert not identical(values, doubles(0.0, INF, -INF, 3.0))


# The bound of rounding


def exact_conv1d(x: Tensor, w: Tensor, b: Tensor, groups: int) -> list[Fraction]:
    """A grouped convolution in rational arithmetic: what no rounding has touched."""
    outputs, width, taps = w.shape
    rows = outputs // groups
    values = []
    for n, o, t in itertools.product(
        range(x.shape[0]), range(outputs), range(x.shape[2] - taps + 1)
    ):
        first = (o // rows) * width
        total = Fraction(b[o].item())
        for i, k in itertools.product(range(width), range(taps)):
            total += Fraction(x[n, first + i, t + k].item()) * Fraction(w[o, i, k].item())
        values.append(total)
    return values


def test_real_errors_stay_within_the_bound() -> None:
    x = torch.randn(2, 6, 7, dtype=torch.float64) * 10 ** torch.randn(2, 6, 7).double()
    w, b = torch.randn(4, 3, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    with ConvRecorder() as recorder:
        found = F.conv1d(x, w, b, groups=2)
    with Magnitudes():
        magnitudes = F.conv1d(x, w, b, groups=2)
    assert recorder.calls.terms == 3 * 3 + 1
    errors = [
        float(abs(Fraction(value) - exact))
        for value, exact in zip(found.flatten().tolist(), exact_conv1d(x, w, b, 2), strict=True)
    ]
    bound = rounding_bound(magnitudes, recorder.calls.terms).flatten()
    zero = torch.zeros_like(bound)
    assert 0 < bound_ratio(zero, doubles(*errors), bound) < 0.5
    assert bound_ratio(zero, bound * 1.5, bound) == pytest.approx(1.5)


TERMS: dict[str, tuple[Any, int, tuple[int, ...]]] = {
    "conv1d": (nn.Conv1d(4, 6, 5, dilation=3, groups=2), 5 * 2 + 1, (13,)),
    "stride": (nn.Conv1d(4, 6, 5, stride=3), 5 * 4 + 1, (7,)),
    "conv2d": (nn.Conv2d(4, 6, (1, 3), stride=(2, 1), dilation=(1, 2)), 3 * 4 + 1, (2, 5)),
    "transposed": (nn.ConvTranspose1d(4, 6, 5, stride=2, groups=2), 5 * 2 + 1, (4,)),
    "with_norm": (nn.Sequential(nn.Conv1d(4, 6, 1), nn.BatchNorm1d(6)), 4 + 1 + 5, (1,)),
    "two": (nn.Sequential(nn.Conv1d(4, 6, 3), nn.Conv1d(6, 2, 3)), 3 * 4 + 1 + 3 * 6 + 1, (6,)),
    "linear": (nn.Linear(4, 3), 4 + 1, ()),
    "none": (nn.ReLU(), 0, ()),
}


@pytest.mark.parametrize(("module", "terms", "reach"), TERMS.values(), ids=TERMS.keys())
def test_terms_and_reach(module: nn.Module, terms: int, reach: tuple[int, ...]) -> None:
    shape = {"linear": (2, 4), "conv2d": (2, 4, 9, 9)}
    sizes = (2, 4, 9, 9) if len(reach) == 2 else (2, 4, 17)
    with ConvRecorder() as recorder, torch.no_grad():
        module.eval()(torch.randn(shape["linear"] if isinstance(module, nn.Linear) else sizes))
    assert recorder.calls.terms == terms
    assert recorder.calls.reach == reach


# Padding in front of a large kernel, which needs no data; a small one is met by its whole window.
PADDED: dict[str, tuple[nn.Module, int]] = {
    "half": (nn.Conv1d(1, 1, 64, padding=32, bias=False), 32),
    "some": (nn.Conv1d(1, 1, 64, padding=20, bias=False), 44),
    "same": (nn.Conv1d(1, 1, 65, padding="same", bias=False), 33),
    "stride": (nn.Conv1d(1, 1, 80, stride=7, padding=40, bias=False), 46),
    "dilation": (nn.Conv1d(1, 1, 9, dilation=10, padding=40, bias=False), 41),
    "small": (nn.Conv1d(1, 1, 9, padding=4, bias=False), 9),
}


@pytest.mark.parametrize(("conv", "reach"), PADDED.values(), ids=PADDED.keys())
def test_every_tap_meets_data_at_the_reach(conv: nn.Conv1d, reach: int) -> None:
    with ConvRecorder() as recorder, torch.no_grad():
        conv(torch.ones(1, 1, 97))
    assert recorder.calls.reach == (reach,)
    assert _taps_met(conv, reach) == conv.weight.numel()
    if reach > 32 and conv.stride == (1,):
        assert _taps_met(conv, reach - 1) < conv.weight.numel()


def _taps_met(conv: nn.Conv1d, size: int) -> int:
    conv.zero_grad()
    conv(torch.ones(1, 1, size)).sum().backward()
    assert conv.weight.grad is not None
    return int((conv.weight.grad != 0).sum())


def test_magnitudes_of_a_norm() -> None:
    norm = nn.BatchNorm1d(2).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([-2.0, 3.0]))
        norm.bias.copy_(torch.tensor([-1.0, 0.5]))
        norm.running_mean.copy_(torch.tensor([4.0, -5.0]))
        norm.running_var.copy_(torch.tensor([4.0, 9.0]) - norm.eps)
        with Magnitudes():
            found = norm(torch.tensor([[-6.0, 1.0]]))
    # (6 + 4) * 2 / 2 + 1 and (1 + 5) * 3 / 3 + 0.5
    torch.testing.assert_close(found, torch.tensor([[11.0, 6.5]]))
