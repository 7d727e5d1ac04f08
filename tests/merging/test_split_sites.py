"""Branches that look like a split site, and are one or not: what is exported is what they say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import groupfx
from groupfx.deploy.export.exporting import SlowExportWarning
from groupfx.merging.sites import merge_sites
from groupfx.running.inputs import ExampleInputs
from tests.deploy.exported_model import assert_clean, assert_computes, convs_of, operators
from tests.thinning import long_unless

Forward = Callable[[nn.Module, Tensor], Tensor]


class HandSplit(nn.Module):
    """Three convolutions of 2 inputs and 3 outputs, a BatchNorm each, and rows of one weight."""

    def __init__(self, forward: Forward, change: Callable[[nn.Module], None] | None) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(2, 3, 3) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm1d(3) for _ in range(3))
        self.weight = nn.Parameter(torch.randn(9, 2, 3))
        self.bias = nn.Parameter(torch.randn(9))
        for norm in self.norms:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.running_mean, -1, 1)
        self._forward = forward
        if change is not None:
            change(self)

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def part(x: Tensor, group: int) -> Tensor:
    return x[:, 2 * group : 2 * group + 2]


def right(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.norms[k](m.convs[k](part(x, k))) for k in range(3)], 1)


def plain(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.convs[k](part(x, k)) for k in range(3)], dim=1)


def swapped(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.convs[k](part(x, (1, 0, 2)[k])) for k in range(3)], 1)


def swapped_result(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.convs[k](part(x, k)) for k in (0, 2, 1)], 1)


def overlapping(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.convs[k](x[:, k : k + 2]) for k in range(3)], 1)


def first_two(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.convs[k](part(x, k)) for k in range(2)], 1)


def last_two(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.convs[k](part(x, k)) for k in (1, 2)], 1)


def from_the_end(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.convs[0](x[:, :2]), m.convs[1](x[:, 2:4]), m.convs[2](x[:, -2:])], 1)


def used_twice(m: Any, x: Tensor) -> Tensor:
    values = [m.convs[k](part(x, k)) for k in range(3)]
    return torch.cat(values, 1) + values[1].sum(1, keepdim=True)


def called_again(m: Any, x: Tensor) -> Tensor:
    return plain(m, x) + m.convs[1](part(x, 0)).mean(1, keepdim=True)


def one_twice(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.convs[k](part(x, j)) for j, k in enumerate((0, 1, 0))], 1)


def along_the_length(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.convs[k](part(x, k)) for k in range(3)], 2)


def with_the_input(m: Any, x: Tensor) -> Tensor:
    return torch.cat([*(m.convs[k](part(x, k)) for k in range(3)), x[:, :, 1:-1]], 1)


def two_inputs(m: Any, x: Tensor) -> Tensor:
    y = x.flip(0) + 1
    return torch.cat([m.convs[k](part(y if k == 1 else x, k)) for k in range(3)], 1)


def one_norm_missing(m: Any, x: Tensor) -> Tensor:
    values = [m.convs[k](part(x, k)) for k in range(3)]
    return torch.cat([m.norms[0](values[0]), values[1], m.norms[2](values[2])], 1)


def norms_swapped(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.norms[(0, 2, 1)[k]](m.convs[k](part(x, k))) for k in range(3)], 1)


def weight_read(m: Any, x: Tensor) -> Tensor:
    return plain(m, x) * m.convs[1].weight.square().sum()


def twice(m: Any, x: Tensor) -> Tensor:
    return torch.cat([plain(m, x), plain(m, x.flip(1))], 1)


def rows(m: Any, x: Tensor) -> Tensor:
    parts = [slice(3 * k, 3 * k + 3) for k in range(3)]
    return torch.cat([F.conv1d(part(x, k), m.weight[p], m.bias[p]) for k, p in enumerate(parts)], 1)


def rows_swapped(m: Any, x: Tensor) -> Tensor:
    parts = [slice(3 * k, 3 * k + 3) for k in (0, 2, 1)]
    return torch.cat([F.conv1d(part(x, k), m.weight[p], m.bias[p]) for k, p in enumerate(parts)], 1)


def rows_left_over(m: Any, x: Tensor) -> Tensor:
    parts = [slice(2 * k, 2 * k + 2) for k in range(3)]
    return torch.cat([F.conv1d(part(x, k), m.weight[p], m.bias[p]) for k, p in enumerate(parts)], 1)


def rows_in_groups(m: Any, x: Tensor) -> Tensor:
    held, parts = m.weight[:, :1], [slice(2 * k, 2 * k + 2) for k in range(3)]
    values = [F.conv1d(part(x, k), held[p], m.bias[p], groups=2) for k, p in enumerate(parts)]
    return torch.cat(values, 1)


def rows_padded_with_five(m: Any, x: Tensor) -> Tensor:
    parts = [slice(3 * k, 3 * k + 3) for k in range(3)]
    values = [F.pad(part(x, k), [1, 2], "constant", value=5.0) for k in range(3)]
    weights = zip(values, parts, strict=True)
    return torch.cat([F.conv1d(v, m.weight[p], m.bias[p]) for v, p in weights], 1)


def rows_with_more_channels(m: Any, x: Tensor) -> Tensor:
    parts = [slice(3 * k, 3 * k + 3) for k in range(3)]
    values = [F.pad(x[:, k : k + 1], [0, 0, 0, 1], "constant") for k in range(3)]
    weights = zip(values, parts, strict=True)
    return torch.cat([F.conv1d(v, m.weight[p], m.bias[p]) for v, p in weights], 1)


def change_eps(m: Any) -> None:
    m.norms[1].eps = 0.5


def change_stride(m: Any) -> None:
    m.convs[1] = nn.Conv1d(2, 3, 5, padding=1)


def change_bias(m: Any) -> None:
    m.convs[2] = nn.Conv1d(2, 3, 3, bias=False)


def change_width(m: Any) -> None:
    m.convs[1] = nn.Conv1d(2, 5, 3)


def add_hook(m: Any) -> None:
    m.convs[1].register_forward_hook(lambda module, args, output: output * 3)


def tie(m: Any) -> None:
    m.convs[2].weight = m.convs[0].weight


SITES: dict[str, tuple[Forward, Callable[[Any], None] | None]] = {
    "right": (right, None),
    "plain": (plain, None),
    "tied": (plain, tie),
    "twice": (twice, None),
    "rows": (rows, None),
    "with-the-input": (with_the_input, None),
}
OTHERS: dict[str, tuple[Forward, Callable[[Any], None] | None]] = {
    "swapped": (swapped, None),
    "swapped-result": (swapped_result, None),
    "overlapping": (overlapping, None),
    "first-two": (first_two, None),
    "last-two": (last_two, None),
    "from-the-end": (from_the_end, None),
    "used-twice": (used_twice, None),
    "called-again": (called_again, None),
    "one-twice": (one_twice, None),
    "along-the-length": (along_the_length, None),
    "two-inputs": (two_inputs, None),
    "one-norm-missing": (one_norm_missing, None),
    "norms-swapped": (norms_swapped, None),
    "eps": (right, change_eps),
    "kernel": (plain, change_stride),
    "bias": (plain, change_bias),
    "width": (plain, change_width),
    "hook": (plain, add_hook),
    "rows-swapped": (rows_swapped, None),
    "rows-left-over": (rows_left_over, None),
    "rows-in-groups": (rows_in_groups, None),
    "rows-padded-with-five": (rows_padded_with_five, None),
    "rows-with-more-channels": (rows_with_more_channels, None),
}


QUICK = ("swapped", "first-two", "eps", "rows-left-over")


def traced(forward: Forward, change: Callable[[Any], None] | None) -> fx.GraphModule:
    return fx.symbolic_trace(HandSplit(forward, change).eval())


@pytest.mark.parametrize(("forward", "change"), long_unless(("right", "rows"), SITES))
def test_a_site_of_branches_is_split_again(
    forward: Forward, change: Callable[[Any], None] | None, tmp_path: Path
) -> None:
    model, x, path = traced(forward, change), torch.randn(2, 6, 13), tmp_path / "m.onnx"
    export = groupfx.export(model, x, path)
    assert {site.form for site in export.sites} == {"split into 3"}
    for convs in convs_of(path).values():
        assert [(conv.groups, conv.position) for conv in convs] == [(1, 0), (1, 1), (1, 2)]
    assert "BatchNormalization" not in operators(path)
    assert_clean(path)
    assert_computes(path, model, x)


@pytest.mark.parametrize(("forward", "change"), long_unless(QUICK, OTHERS))
def test_what_is_no_site_stays_as_it_is(
    forward: Forward, change: Callable[[Any], None] | None, tmp_path: Path
) -> None:
    model, x, path = traced(forward, change), torch.randn(2, 6, 13), tmp_path / "m.onnx"
    export = groupfx.export(model, x, path)
    assert not [site for site in export.sites if site.form.startswith("split")]
    assert all(conv.position is None for convs in convs_of(path).values() for conv in convs)
    assert_clean(path)
    assert_computes(path, model, x)


def joined_along(forward: Forward, dim: int) -> fx.GraphModule:
    """The last concatenation of a hand-made split along another axis."""
    model = traced(forward, None)
    cat = next(node for node in reversed(model.graph.nodes) if node.target is torch.cat)
    cat.args, cat.kwargs = cat.args[:1], {"dim": dim}
    model.recompile()
    return model


@pytest.mark.parametrize("forward", [right, plain, rows])
@pytest.mark.parametrize(("dim", "sites"), [(1, 1), (-2, 1), (-1, 0), (-3, 0), (0, 0), (2, 0)])
def test_the_axis_of_channels_may_be_counted_from_the_end(
    forward: Forward, dim: int, sites: int
) -> None:
    merged = merge_sites(joined_along(forward, dim), ExampleInputs.of(torch.randn(2, 6, 13)))
    assert len(merged.planned) == sites


class SlicesOfTheLength(nn.Module):
    """Three pointwise convolutions on thirds of a value without a batch: [2, 6] has 2 channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convs, self.dim = nn.ModuleList(nn.Conv1d(2, 3, 1) for _ in range(3)), dim

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([conv(part(x, k)) for k, conv in enumerate(self.convs)], self.dim)


@pytest.mark.parametrize("dim", [1, -2])
def test_without_a_batch_axis_1_is_no_axis_of_channels(dim: int) -> None:
    model = fx.symbolic_trace(SlicesOfTheLength(dim))
    assert not merge_sites(model, ExampleInputs.of(torch.randn(2, 6))).planned


@pytest.mark.long
def test_weights_that_are_read_elsewhere(tmp_path: Path) -> None:
    model, x, path = traced(weight_read, None), torch.randn(2, 6, 13), tmp_path / "m.onnx"
    groupfx.export(model, x, path)
    assert_clean(path)
    assert_computes(path, model, x)


class SplitByHand(nn.Module):
    """A user's own module: nothing is traced before, so that it is exported as it is."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(1, 2, 1) for _ in range(groups))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([conv(x[:, k : k + 1]) for k, conv in enumerate(self.convs)], 1)


@pytest.mark.long
def test_a_model_that_is_split_by_hand_warns_and_is_exported(tmp_path: Path) -> None:
    model, x, path = SplitByHand(64).eval(), torch.randn(2, 64, 5), tmp_path / "m.onnx"
    with pytest.warns(SlowExportWarning, match="64 convolutions read slices: the model is split"):
        export = groupfx.export(model, x, path)
    assert [note for note in export.notes if "64 convolutions" in note]
    assert operators(path).count("Conv") == 64
    assert_computes(path, model, x)


def test_a_few_branches_by_hand_do_not_warn(tmp_path: Path) -> None:
    model, x, path = SplitByHand(5).eval(), torch.randn(2, 5, 7), tmp_path / "m.onnx"
    assert groupfx.export(model, x, path).notes == ()
    assert list(convs_of(path)) == [f"convs.{k}" for k in range(5)]
    assert_computes(path, model, x)


class PadsByShape(nn.Conv2d):
    """TensorFlow's padding: a branch on the sizes, which no trace takes."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2:
            x = F.pad(x, (0, 1, 0, 1))
        return F.conv2d(x, self.weight, self.bias, self.stride, groups=self.groups)


def test_a_layer_that_calls_its_own_convolution_is_exported_whole(tmp_path: Path) -> None:
    model, x = nn.Sequential(PadsByShape(6, 9, 2, 2, groups=3)).eval(), torch.randn(2, 6, 7, 7)
    result = groupfx.rewrite(model, x)
    merged = merge_sites(result.model, ExampleInputs.of(x))
    assert [(site.path, site.name) for site in merged.planned] == [("0", "0")]
    torch.testing.assert_close(merged.model(x), model(x))
    assert len(result.report.sites) == 1  # and is as it was
    path = tmp_path / "m.onnx"
    (site,) = groupfx.export(result, x, path).sites
    assert site.form == "split into 3"
    assert_computes(path, model, x)
