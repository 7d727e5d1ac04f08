"""The check of one site: first that it catches what is wrong, then that it passes what is right."""

import copy
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from groupfx.running.inputs import ExampleInputs
from groupfx.state import Part, Picked, Rows
from groupfx.verify import Region, compare_models, compare_regions
from tests.verify.hand_split import Pair, chain, split


def trained_norm(channels: int, **options: Any) -> nn.BatchNorm2d:
    """A BatchNorm whose statistics and weights are not at their defaults."""
    norm = nn.BatchNorm2d(channels, **options)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.copy_(torch.randn(channels))
        norm.running_var.copy_(torch.rand(channels) + 0.5)
    return norm


def small_pair(norm: bool = True) -> Pair:
    conv = nn.Conv2d(6, 9, (3, 5), stride=(2, 1), padding=(1, 2), groups=3)
    return split(conv, trained_norm(9) if norm else None)


# What is wrong on purpose. Each changes the rewritten side, and returns what the reason must say.


def swapped_groups(pair: Pair) -> str:
    first, second = pair.node("conv.0"), pair.node("conv.1")
    first.target, second.target = "conv.1", "conv.0"
    return "not bit-identical"


def swapped_slices(pair: Pair) -> str:
    first, second = pair.node("getitem"), pair.node("getitem_1")
    first.args, second.args = second.args, first.args
    return "not bit-identical"


def swapped_outputs(pair: Pair) -> str:
    parts = pair.right.output.args[0]
    pair.right.output.args = ([parts[1], parts[0], parts[2]],)
    return "not bit-identical"


def lost_bias(pair: Pair) -> str:
    pair.branch("conv.1").bias = None
    return "row 3 of conv.bias is not in the rewritten model"


def doubled_output(pair: Pair) -> str:
    replace_output(pair, lambda graph, node: graph.call_function(operator.mul, (node, 2)))
    return "not bit-identical"


def dropped_stride(pair: Pair) -> str:
    for group in range(3):
        pair.branch(f"conv.{group}").stride = (1, 1)
    return "has shape"


def dropped_padding(pair: Pair) -> str:
    for group in range(3):
        pair.branch(f"conv.{group}").padding = (0, 0)
    return "has shape"


def other_padding_mode(pair: Pair) -> str:
    conv = pair.branch("conv.2")
    replacement = nn.Conv2d(2, 3, (3, 5), stride=(2, 1), padding=(1, 2), padding_mode="replicate")
    replacement.load_state_dict(conv.state_dict())
    pair.put("conv.2", replacement)
    return "not bit-identical"


def other_dilation(pair: Pair) -> str:
    """Of the same output shape: what it misses lies outside of small inputs."""
    conv = pair.branch("conv.2")
    conv.dilation, conv.padding = (1, 2), (1, 4)
    return "not bit-identical"


def one_float32_step(pair: Pair) -> str:
    nudge(pair.branch("conv.1").weight)
    return "conv.1.weight does not hold the values of conv.weight[3:6]"


def nan_weight(pair: Pair) -> str:
    with torch.no_grad():
        pair.branch("conv.1").weight[0, 0, 0, 0] = float("nan")
    return "conv.1.weight does not hold the values of conv.weight[3:6]"


def infinite_output(pair: Pair) -> str:
    replace_output(pair, lambda graph, node: graph.call_function(operator.truediv, (node, 0.0)))
    return "that are finite"


def other_statistics(pair: Pair) -> str:
    norm = pair.branch("bn.1")
    norm.running_mean.zero_()
    return "bn.1.running_mean does not hold the values of bn.running_mean[3:6]"


def other_eps(pair: Pair) -> str:
    pair.branch("bn.1").eps = 2e-5
    return "not bit-identical"


def other_momentum(pair: Pair) -> str:
    """Nothing differs in eval mode, and in train mode only what is left behind."""
    pair.branch("bn.1").momentum = 0.2
    return "after a step in train mode bn.1.running_mean"


def lost_batch_count(pair: Pair) -> str:
    pair.branch("bn.2").num_batches_tracked.add_(5)
    return "bn.2.num_batches_tracked does not hold the values"


def detached_branch(pair: Pair) -> str:
    node = pair.node("bn.1")
    with pair.right.module.graph.inserting_before(node):
        node.args = (pair.right.module.graph.call_method("detach", (node.args[0],)),)
    return "gradient of input 0"


def detached_weight(pair: Pair) -> str:
    """The output and the gradient of the input stay what they are."""
    pair.put("conv.1", DetachedWeight(pair.branch("conv.1")))
    return "gradient of conv.1.weight"


def halved_gradient(pair: Pair) -> str:
    pair.put("conv.0", HalvedGradient(pair.branch("conv.0")))
    return "gradient of conv.0.weight"


def slightly_off_gradient(pair: Pair) -> str:
    """By a ten-billionth, and the weight itself is exact."""
    pair.put("conv.0", OffGradient(pair.branch("conv.0")))
    return "gradient of conv.0.weight is off by up to"


def off_in_train_mode(pair: Pair) -> str:
    pair.put("bn.1", OffInTrainMode(pair.branch("bn.1")))
    return "in train mode the output is off by"


def frozen_branch(pair: Pair) -> str:
    pair.branch("conv.2").weight.requires_grad_(False)
    return "requires_grad=False"


def other_dtype(pair: Pair) -> str:
    pair.branch("conv.2").double()
    return "is torch.float64"


def wrong_map(pair: Pair) -> str:
    assert pair.rows is not None
    pair.rows["conv.0.weight"], pair.rows["conv.1.weight"] = (
        pair.rows["conv.1.weight"],
        pair.rows["conv.0.weight"],
    )
    return "conv.0.weight does not hold the values of conv.weight[3:6]"


def fixed_size(pair: Pair) -> str:
    replace_output(pair, lambda graph, node: graph.call_method("view", (node, 2, 9, 5, 9)))
    return "the rewritten form fails: RuntimeError"


def tuple_output(pair: Pair) -> str:
    replace_output(pair, lambda graph, node: graph.call_function(torch.chunk, (node, 2)))
    return "is a tuple, not a tensor"


WRONG = [
    swapped_groups,
    swapped_slices,
    swapped_outputs,
    lost_bias,
    doubled_output,
    dropped_stride,
    dropped_padding,
    other_padding_mode,
    other_dilation,
    one_float32_step,
    nan_weight,
    infinite_output,
    other_statistics,
    other_eps,
    other_momentum,
    lost_batch_count,
    detached_branch,
    detached_weight,
    halved_gradient,
    slightly_off_gradient,
    off_in_train_mode,
    frozen_branch,
    other_dtype,
    wrong_map,
    fixed_size,
    tuple_output,
]


class DetachedWeight(nn.Module):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.padding = conv.stride, conv.padding

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.detach()
        return nn.functional.conv2d(x, weight, self.bias, self.stride, self.padding)


class HalvedGradient(DetachedWeight):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / 2 + (self.weight / 2).detach()
        return nn.functional.conv2d(x, weight, self.bias, self.stride, self.padding)


class OffGradient(DetachedWeight):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + 1e-10 * (self.weight - self.weight.detach())
        return nn.functional.conv2d(x, weight, self.bias, self.stride, self.padding)


class OffInTrainMode(nn.BatchNorm2d):
    """A BatchNorm that multiplies by a little more than 1 while it is trained."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features)
        self._parameters, self._buffers = norm._parameters, norm._buffers

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + 1e-10 * self.training)


def nudge(weight: Tensor) -> None:
    """Move one weight by one unit in the last place."""
    with torch.no_grad():
        flat = weight.view(-1)
        flat[2] = torch.nextafter(flat[2], torch.tensor(9.0, dtype=flat.dtype))


def replace_output(pair: Pair, make: Callable[[fx.Graph, fx.Node], fx.Node]) -> None:
    graph, old = pair.right.module.graph, pair.right.output
    with graph.inserting_after(old):
        new = make(graph, old)
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    pair.right = Region(pair.right.module, pair.right.inputs, new)


@pytest.mark.parametrize("damage", WRONG, ids=lambda damage: damage.__name__)
def test_a_wrong_rewrite_is_caught(damage: Callable[[Pair], str]) -> None:
    pair = small_pair()
    assert pair.compare().ok, "the split is right before it is damaged"
    expected = damage(pair)
    pair.recompile()
    verdict = pair.compare()
    assert not verdict.ok
    assert expected in str(verdict.reason)


def test_one_step_in_float64_is_caught() -> None:
    conv = nn.Conv2d(6, 9, 3, groups=3).double()
    pair = split(conv)
    assert pair.compare().identical
    nudge(pair.branch("conv.1").weight)
    verdict = pair.compare()
    assert not verdict.ok
    assert verdict.reason == "conv.1.weight does not hold the values of conv.weight[3:6]"


def test_a_missing_branch_is_named() -> None:
    """The bias is zero, so that its absence does not show in any value."""
    conv = nn.Conv1d(4, 4, 3, groups=2)
    nn.init.zeros_(conv.bias)
    pair = split(conv)
    pair.branch("conv.1").bias = None
    verdict = pair.compare()
    assert not verdict.ok
    assert verdict.reason == "row 2 of conv.bias is not in the rewritten model"


def test_a_parameter_from_nowhere_is_named() -> None:
    pair = split(nn.Conv1d(4, 4, 3, groups=2, bias=False))
    pair.branch("conv.0").bias = nn.Parameter(torch.zeros(2))
    assert pair.compare().reason == "parameter conv.0.bias comes from no parameter of the original"


def blind_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    nn.init.zeros_(norm.weight)
    return norm


@pytest.mark.parametrize("mapped", [True, False], ids=["map", "no_map"])
def test_a_norm_that_hides_everything_is_seen_through(mapped: bool) -> None:
    """Conv and its BatchNorm are one site, and the weight of the BatchNorm is zero."""
    pair = split(nn.Conv2d(4, 8, 3, groups=2), blind_norm(8))
    if not mapped:
        pair.rows = None
    assert pair.compare().ok
    first, second = pair.node("conv.0"), pair.node("conv.1")
    first.target, second.target = second.target, first.target
    verdict = pair.compare()
    assert not verdict.ok
    assert verdict.max_error > 0.1


def test_swapped_default_norms_are_caught() -> None:
    """All statistics are at their defaults: no value shows it, a checkpoint loaded later would."""
    pair = split(nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8))
    first, second = pair.node("bn.0"), pair.node("bn.1")
    first.target, second.target = second.target, first.target
    verdict = pair.compare()
    assert not verdict.ok
    assert "in whole numbers the output is off by" in str(verdict.reason)


class BlindBlock(nn.Module):
    """A residual block whose last BatchNorm has weight zero: its branch adds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.conv = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.relu = nn.ReLU()
        self.last = nn.Conv2d(6, 6, 1)
        self.bn = blind_norm(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return y + self.bn(self.last(self.relu(self.conv(y))))


def test_a_wrong_split_in_a_blind_network_is_caught_at_its_site() -> None:
    model = BlindBlock().eval()
    wrong = copy.deepcopy(model)
    halves = split(model.conv)
    with torch.no_grad():
        wrong.conv.weight.copy_(torch.cat([model.conv.weight[3:], model.conv.weight[:3]]))
    first, second = halves.node("conv.0"), halves.node("conv.1")
    first.target, second.target = second.target, first.target

    blind = compare_models(model, wrong, ExampleInputs.of(torch.randn(2, 3, 11, 13)))
    assert blind.ok
    assert blind.identical
    verdict = halves.compare()
    assert not verdict.ok
    assert "not bit-identical" in str(verdict.reason)


# Forms that are not bit-identical


class Permuted(nn.Module):
    """The same function as a convolution, summed in another order, its weights off by `factor`."""

    def __init__(self, conv: nn.Conv2d, factor: float = 1.0) -> None:
        super().__init__()
        self.conv = copy.deepcopy(conv)
        order = torch.randperm(conv.in_channels)
        self.register_buffer("order", order)
        with torch.no_grad():
            self.conv.weight.copy_(conv.weight[:, order] * factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.index_select(x, 1, self.order))


def wide_conv() -> nn.Conv2d:
    return nn.Conv2d(64, 96, 3, padding=1)


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "alone"])
def test_an_inexact_form_is_held_to_the_rounding_bound(norm: bool) -> None:
    conv = wide_conv()
    after = {"bn": trained_norm(96)} if norm else {}
    left, right = chain({"conv": conv, **after}), chain({"conv": Permuted(conv), **after})
    verdict = compare_regions(left, right, [(2, 64, 9, 9)], exact=False)
    assert verdict.ok, verdict.reason
    assert not verdict.identical
    assert verdict.bound_ratio is not None
    assert 0 < verdict.bound_ratio < 0.1


def test_a_permuted_form_with_its_map_is_bit_identical_in_whole_numbers() -> None:
    conv, norm = wide_conv(), trained_norm(96)
    permuted = Permuted(conv)
    left, right = chain({"conv": conv, "bn": norm}), chain({"conv": permuted, "bn": norm})
    rows = {"conv.conv.weight": picked(conv, permuted), "conv.conv.bias": Rows("conv.bias")}
    for exact in (True, False):
        verdict = compare_regions(left, right, [(2, 64, 9, 9)], exact=exact, rows=rows)
        assert verdict.ok, verdict.reason
        assert verdict.identical
        assert verdict.proof == "whole numbers"
        assert verdict.bound_ratio is None


def picked(conv: nn.Conv2d, permuted: Permuted) -> Picked:
    columns = tuple(permuted.order.tolist())
    rows = tuple(range(conv.out_channels))
    return Picked("conv.weight", (Part(rows, columns),), tuple(conv.weight.shape[:2]))


def test_gradients_of_picked_elements_are_compared() -> None:
    """A form that takes the weight's columns in another order, and says so in its map."""
    conv = wide_conv()
    permuted = Permuted(conv)
    left, right = chain({"conv": conv}), chain({"conv": permuted})
    rows = {"conv.conv.weight": picked(conv, permuted), "conv.conv.bias": Rows("conv.bias")}
    verdict = compare_regions(left, right, [(2, 64, 9, 9)], exact=False, rows=rows)
    assert verdict.ok, verdict.reason
    assert verdict.gradients_ok
    permuted.order.copy_(permuted.order.flip(0))
    assert not compare_regions(left, right, [(2, 64, 9, 9)], exact=False, rows=rows).ok
    wrong = {**rows, "conv.conv.weight": picked(conv, permuted)}
    permuted.order.copy_(permuted.order.flip(0))
    verdict = compare_regions(left, right, [(2, 64, 9, 9)], exact=False, rows=wrong)
    assert "conv.conv.weight does not hold the values" in str(verdict.reason)


class Blocks(nn.Module):
    """Two blocks of a masked convolution as one grouped one; the smaller block is padded."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1, groups=2, bias=False)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[:2] = conv.weight[:2, :2]
            self.conv.weight[2:, :1] = conv.weight[2:, 2:]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.cat([x, x[:, :1]], 1))


def test_padding_has_no_gradient_to_compare_and_zeros_stay_zeros() -> None:
    """The original's zeros outside of its blocks are what the form rests on."""
    conv = nn.Conv2d(3, 4, 1, bias=False)
    with torch.no_grad():
        conv.weight[:2, 2:] = 0
        conv.weight[2:, :2] = 0
    parts = (Part((0, 1), (0, 1)), Part((2, 3), (2, None)))
    rows = {"conv.conv.weight": Picked("conv.weight", parts, (4, 3))}
    left, right = chain({"conv": conv}), chain({"conv": Blocks(conv)})
    verdict = compare_regions(left, right, [(2, 3, 5, 5)], exact=False, rows=rows)
    assert verdict.ok, verdict.reason
    assert verdict.gradients_ok


def test_an_inexact_form_beyond_rounding_is_caught() -> None:
    """Computed as if in a precision between float32 and float64."""
    conv = wide_conv().double()
    left, right = chain({"conv": conv}), chain({"conv": Permuted(conv, factor=1 + 1e-11)})
    verdict = compare_regions(left, right, [(2, 64, 9, 9)], exact=False)
    assert not verdict.ok
    assert verdict.bound_ratio is not None
    assert 1 < verdict.bound_ratio < float("inf")
    # 9 taps, 64 inputs, and the bias
    assert "times what the rounding of 577 terms explains" in str(verdict.reason)


def test_a_float32_step_is_beyond_the_bound_of_an_inexact_form() -> None:
    conv = nn.Conv2d(8, 8, 3, groups=2)
    wrong = copy.deepcopy(conv)
    nudge(wrong.weight)
    verdict = compare_regions(
        chain({"conv": conv}), chain({"conv": wrong}), [(2, 8, 9, 9)], exact=False
    )
    assert not verdict.ok


def test_a_channel_that_nothing_feeds_must_stay_exactly_zero() -> None:
    """Where weights and bias are zero the bound is zero too."""
    conv = nn.Conv2d(4, 4, 1, bias=False)
    nn.init.zeros_(conv.weight)
    wrong = copy.deepcopy(conv)
    with torch.no_grad():
        wrong.weight[1, 1] = 1e-30
    left, right = chain({"conv": conv}), chain({"conv": wrong})
    assert compare_regions(left, copy.deepcopy(left), [(2, 4, 5, 5)], exact=False).bound_ratio == 0
    assert compare_regions(left, right, [(2, 4, 5, 5)], exact=False).bound_ratio == float("inf")
