"""Whole numbers: what is exact, how many trials it takes, and which regions are polynomials."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groupfx.state import Part, Picked
from groupfx.verify import Region, RegionCopy, compare_regions
from groupfx.verify.carry import Carrier
from groupfx.verify.exact import polynomial_of
from groupfx.verify.polynomial import Polynomial
from groupfx.verify.samples import Sampler, Size
from groupfx.verify.whole import (
    CHANCE,
    chance_of,
    fill_whole,
    is_whole,
    largest_reach,
    mantissa,
    trials_needed,
)
from tests.verify.hand_split import chain, split

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64, torch.complex128], ids=str)
def test_the_mantissa_ends_where_whole_numbers_stop_being_exact(dtype: torch.dtype) -> None:
    real = torch.empty(0, dtype=dtype).abs().dtype
    last = torch.tensor(2 ** mantissa(dtype), dtype=torch.int64)
    assert int((last - 1).to(real)) == int(last - 1)
    assert int((last + 1).to(real)) != int(last + 1)


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
@pytest.mark.parametrize("reach", [8, 100, 2**10, 2**21, 2**45])
def test_as_many_trials_as_needed_and_no_more(degree: int, reach: int) -> None:
    trials, one = trials_needed(degree, reach), degree / (2 * reach + 1)
    assert one**trials < 2.0**-40
    assert trials == 1 or one ** (trials - 1) >= 2.0**-40
    assert CHANCE == 2.0**-40


def test_numbers_that_say_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="whole numbers up to 1 say nothing of a polynomial of 3"):
        trials_needed(3, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize("magnitude", [1.0, 9.0, 577.0, 1e5])
def test_the_reach_is_the_largest_that_stays_in_the_mantissa(
    dtype: torch.dtype, degree: int, magnitude: float
) -> None:
    reach, limit = largest_reach(degree, magnitude, dtype), 2.0 ** mantissa(dtype)
    least = 2 * degree
    if reach:
        assert reach >= least
        assert magnitude * reach**degree < limit <= magnitude * (reach + 1) ** degree
    else:
        assert magnitude * float(least) ** degree >= limit


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_drawn_stays_in_the_mantissa_where_a_function_makes_little_of_it(
    dtype: torch.dtype,
) -> None:
    assert largest_reach(1, 1e-3, dtype) < 2.0 ** mantissa(dtype)


@pytest.mark.parametrize("magnitude", [0.0, math.inf, math.nan])
def test_there_is_no_reach_for_no_magnitude(magnitude: float) -> None:
    assert largest_reach(2, magnitude, torch.float64) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64], ids=str)
def test_all_numbers_of_the_range_are_drawn(dtype: torch.dtype) -> None:
    tensor = torch.empty(4000, dtype=dtype)
    fill_whole(tensor, 3, torch.Generator().manual_seed(1))
    assert is_whole(tensor)
    parts = torch.view_as_real(tensor).unbind(-1) if dtype.is_complex else (tensor,)
    for part in parts:
        values, counts = part.unique(return_counts=True)
        assert values.tolist() == [-3, -2, -1, 0, 1, 2, 3]
        assert int(counts.min()) > 4000 / 7 * 0.8
    assert not is_whole(tensor + 0.5)
    assert not is_whole(tensor / 0)


def test_a_difference_is_missed_as_rarely_as_it_is_said() -> None:
    """(x - 1)(x + 2) is 0 at two of the nine numbers -4 ... 4: as often as the bound allows."""
    x = torch.empty(20000, dtype=torch.float64)
    fill_whole(x, 4, torch.Generator().manual_seed(2))
    missed = float(((x - 1) * (x + 2) == 0).double().mean())
    assert chance_of(2, 4) == 2 / 9
    assert abs(missed - 2 / 9) < 0.01


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_forms_of_one_convolution_are_the_same_bits(dtype: torch.dtype, threads: int) -> None:
    """Grouped, split and dense; real numbers differ in the last bits in some of these."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for rank, groups in itertools.product((1, 2, 3), (2, 4)):
            conv = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
            x = torch.empty(2, 16, *(7, 5, 3)[:rank], dtype=dtype)
            weight = torch.empty(24, 16 // groups, *(3, 3, 2)[:rank], dtype=dtype)
            for tensor in (x, weight):
                fill_whole(tensor, 32, torch.Generator().manual_seed(rank))
            whole = conv(x, weight, groups=groups)
            parts = zip(x.chunk(groups, 1), weight.chunk(groups), strict=True)
            assert torch.equal(whole, torch.cat([conv(a, b) for a, b in parts], 1))
            full = weight.new_zeros(24, 16, *weight.shape[2:])
            for group in range(groups):
                rows, columns = 24 // groups, 16 // groups
                place = slice(group * rows, group * rows + rows)
                full[place, group * columns : (group + 1) * columns] = weight[place]
            assert torch.equal(whole, conv(x, full))
    finally:
        torch.set_num_threads(before)


# What polynomial a region is


class ConvThen(nn.Module):
    """A convolution with `change` behind it."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, groups=2)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.change(self.conv(x))
        return result


def polynomial(region: Region) -> Polynomial:
    copy = RegionCopy(region)
    sampler = Sampler([(2, 4, 5, 5)], 1, torch.float64)
    return polynomial_of(copy, Carrier(copy, copy, {}), sampler, Size())


def test_a_convolution_has_degree_2_and_the_magnitude_of_its_terms() -> None:
    found = polynomial(chain({"conv": nn.Conv2d(4, 6, 3, groups=2)}))
    assert (found.problem, found.degree) == (None, 2)
    assert found.forward == 2 * 9 + 1
    # Each weight meets 2 samples of 3 x 3 positions; each input 9 taps of 3 filters.
    assert found.backward == 9 * 3


def test_a_norm_adds_a_degree_and_two_convolutions_multiply() -> None:
    found = polynomial(chain({"conv": nn.Conv2d(4, 6, 3), "bn": nn.BatchNorm2d(6, eps=1e-3)}))
    assert (found.problem, found.degree) == (None, 3)
    assert found.forward == (4 * 9 + 1) + 1 + 1
    assert found.epsilons == {"bn.running_var": 1e-3}
    assert found.offsets == {"bn.bias": "bn.running_var"}
    assert found.ends_in_norm
    convs = {"a": nn.Conv2d(4, 5, 1), "bn": nn.BatchNorm2d(5), "b": nn.Conv2d(5, 3, 1)}
    found = polynomial(chain(convs))
    assert (found.problem, found.degree) == (None, 4)
    assert found.forward == (4 + 1 + 1 + 1) * 5 + 1
    assert not found.ends_in_norm


def test_constants_have_no_degree_and_count_by_their_magnitude() -> None:
    found = polynomial(chain({"conv": ConvThen(lambda y: y * -3 + torch.full_like(y, -2.0))}))
    assert (found.problem, found.degree) == (None, 2)
    assert found.forward == (2 * 9 + 1) * 3 + 2


POLYNOMIALS = {
    "slices": lambda y: torch.cat([y[:, 3:], y[:, :3]], 1),
    "permuted": lambda y: y.index_select(1, torch.tensor([5, 4, 3, 2, 1, 0])),
    "shuffled": lambda y: y.view(y.shape[0], 2, 3, *y.shape[2:]).transpose(1, 2).flatten(1, 2),
    "padded": lambda y: F.pad(y, (1, 1)),
    "reads its shape": lambda y: y if y.shape[1] == 6 and y.dim() == 4 else -y,
}
OTHERS = {
    "relu": (F.relu, "relu is no sum of products"),
    "clamp": (lambda y: y.clamp(-30, 30), "clamp is no sum of products"),
    "nan_to_num": (torch.nan_to_num, "nan_to_num is no sum of products"),
    "quotient": (lambda y: y / 2, "is no sum of products"),
    "difference": (lambda y: y - y.flip(1), "is no sum of products"),
    "alpha": (lambda y: torch.add(y, y, alpha=-1), "add with alpha=-1"),
    "fraction": (lambda y: y * torch.full_like(y, 0.5), "of what is no whole number"),
    "reads its values": (lambda y: y if y.sum() > 3 else y[:, :], "is no sum of products"),
    "instance norm": (F.instance_norm, "is no sum of products"),
    "batch statistics": (
        lambda y: F.batch_norm(y, None, None, training=True),
        "a norm by the statistics of its input",
    ),
}


@pytest.mark.parametrize("change", POLYNOMIALS.values(), ids=POLYNOMIALS)
def test_what_moves_elements_keeps_a_polynomial(change: Any) -> None:
    assert polynomial(chain({"conv": ConvThen(change)})).problem is None


@pytest.mark.parametrize(("change", "problem"), OTHERS.values(), ids=OTHERS)
def test_what_is_no_polynomial_is_told(change: Any, problem: str) -> None:
    assert problem in str(polynomial(chain({"conv": ConvThen(change)})).problem)


def test_what_is_no_polynomial_keeps_the_bound_and_says_so() -> None:
    region = chain({"conv": ConvThen(torch.tanh)})
    verdict = compare_regions(region, region, [(2, 4, 5, 5)], rows={})
    assert verdict.ok, verdict.reason
    assert verdict.proof == "rounding bound"
    assert verdict.chance is None
    assert verdict.bound_ratio == 0
    assert verdict.own_dtype_ok


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64, torch.complex128], ids=str)
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_a_split_is_proved_in_whole_numbers(dtype: torch.dtype) -> None:
    verdict = split(nn.Conv2d(4, 6, 3, groups=2).to(dtype)).compare()
    assert verdict.ok, verdict.reason
    assert verdict.identical
    assert verdict.proof == "whole numbers"
    assert verdict.chance is not None
    assert 0 < verdict.chance < 2.0**-40
    assert verdict.gradients_ok
    assert verdict.own_dtype_ok


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_a_complex_convolution_whose_imaginary_part_is_lost_is_caught() -> None:
    pair = split(nn.Conv2d(4, 6, 3, groups=2).to(torch.complex64))
    pair.put("conv.1", RealWeight(pair.branch("conv.1")))
    verdict = pair.compare()
    assert not verdict.ok
    assert "in whole numbers the output is off by" in str(verdict.reason)


class RealWeight(nn.Module):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        real = self.weight.real.to(self.weight.dtype)
        return F.conv2d(x, real, self.bias)


def test_a_padded_form_is_proved_in_whole_numbers() -> None:
    """Two blocks of unequal width in one grouped convolution; the smaller one is padded."""
    conv = nn.Conv2d(3, 4, 1, bias=False)
    with torch.no_grad():
        conv.weight[:2, 2:] = 0
        conv.weight[2:, :2] = 0
    rows = {
        "form.conv.weight": Picked(
            "conv.weight", (Part((0, 1), (0, 1)), Part((2, 3), (2, None))), (4, 3)
        )
    }
    left, right = chain({"conv": conv}), chain({"form": PaddedBlocks(conv)})
    verdict = compare_regions(left, right, [(2, 3, 5, 5)], exact=False, rows=rows)
    assert verdict.ok, verdict.reason
    assert (verdict.identical, verdict.proof) == (True, "whole numbers")


class PaddedBlocks(nn.Module):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1, groups=2, bias=False)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[:2] = conv.weight[:2, :2]
            self.conv.weight[2:, :1] = conv.weight[2:, 2:]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(torch.cat([x, x[:, 2:]], 1))
        return result


@pytest.mark.long
def test_a_large_site_is_proved_in_float32() -> None:
    """Half the memory; fewer bits, so that it takes more trials to the same certainty."""
    conv = nn.Conv2d(1024, 1024, 3, groups=2, bias=False)
    pair = split(conv, shape=(2, 1024, 5, 5))
    verdict = pair.compare()
    assert verdict.ok, verdict.reason
    assert verdict.proof == "whole numbers"
    assert verdict.chance is not None
    assert 2.0**-60 < verdict.chance < 2.0**-40
    assert verdict.gradients_ok
    first, second = pair.node("conv.0"), pair.node("conv.1")
    first.target, second.target = second.target, first.target
    assert "in whole numbers the output is off by" in str(pair.compare().reason)


@pytest.mark.long
def test_a_large_site_that_is_no_polynomial_is_compared_in_float64() -> None:
    region = chain({"conv": nn.Conv2d(1024, 2048, 2, groups=2), "tanh": nn.Tanh()})
    verdict = compare_regions(region, region, [(2, 1024, 3, 3)], rows={})
    assert verdict.ok, verdict.reason
    assert verdict.proof == "rounding bound"


def test_a_number_beside_a_value_tells_no_batch() -> None:
    """As a weight of a sum, which comes first: the batch is that of the value."""
    sampler = Sampler([(), (2, 4, 5, 5)], 1, torch.float64)
    assert [tuple(value.shape) for value in sampler.values(Size(3))] == [(), (3, 4, 5, 5)]
    (alone,) = Sampler([()], 1, torch.float64).values(Size(3))
    assert alone.shape == ()


def test_a_value_with_many_axes_is_not_tried_at_every_size() -> None:
    """193 positions along each of four axes were 1.4e9 numbers a try."""
    tried: list[int] = []

    class Never:
        def run(self, values: Any, *, training: bool) -> Tensor:
            tried.extend(value.numel() for value in values)
            raise RuntimeError("no size")

    with pytest.raises(RuntimeError, match="no size"):
        Sampler([(2, 3, 1, 1, 1, 1)], 1, torch.float64).sizes(Never())  # type: ignore[arg-type]
    assert max(tried) < 2**23
    assert len(tried) > 3
