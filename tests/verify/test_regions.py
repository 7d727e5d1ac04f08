"""Right splits pass, bit for bit; and how a region is run."""

import copy
import itertools
import operator
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations

from groupfx.errors import InternalError
from groupfx.state import Part, Picked, Rows
from groupfx.verify import Fingerprint, Region, RegionCopy, compare_regions, run_region
from tests.step_counts import steps_of
from tests.verify.hand_split import Pair, chain, split

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

ARGUMENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_bias": {"bias": False},
    "stride": {"stride": 2},
    "dilation": {"dilation": 3},
    "padding": {"padding": 2},
    "stride_padding_dilation": {"stride": 3, "padding": 1, "dilation": 2},
}
ONLY_PLAIN: dict[str, dict[str, Any]] = {
    "same": {"padding": "same"},
    "valid": {"padding": "valid"},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "replicate": {"padding": 2, "padding_mode": "replicate"},
    "circular": {"padding": 2, "padding_mode": "circular"},
    "zeros": {"padding": 1, "padding_mode": "zeros"},
}
ONLY_TRANSPOSED: dict[str, dict[str, Any]] = {
    "output_padding": {"stride": 3, "output_padding": 1},
}
WIDTHS = {
    "grouped": (6, 9, 3),
    "depthwise": (5, 5, 5),
    "multiplier": (3, 6, 3),
    "narrowing": (8, 4, 2),
}


def grid() -> Iterator[Any]:
    for rank, kinds in itertools.product((1, 2, 3), (CONVS, TRANSPOSED)):
        own = ONLY_PLAIN if kinds is CONVS else ONLY_TRANSPOSED
        for name, options in {**ARGUMENTS, **own}.items():
            yield pytest.param(
                kinds[rank], rank, "grouped", options, id=f"{kinds[rank].__name__}-{name}"
            )
        for width in WIDTHS:
            yield pytest.param(kinds[rank], rank, width, {}, id=f"{kinds[rank].__name__}-{width}")


@pytest.mark.parametrize("norm", [False, True], ids=["alone", "norm"])
@pytest.mark.parametrize(("kind", "rank", "width", "options"), list(grid()))
def test_a_right_split_passes(
    kind: type[nn.Module], rank: int, width: str, options: dict[str, Any], norm: bool
) -> None:
    inputs, outputs, groups = WIDTHS[width]
    conv = kind(inputs, outputs, (3, 2, 4)[:rank], groups=groups, **options)
    verdict = split(conv, NORMS[rank](outputs) if norm else None).compare()
    assert verdict.ok, verdict.reason
    assert verdict.identical
    assert verdict.max_error == 0
    assert verdict.train_ok
    assert verdict.gradients_ok


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_right_split_in_another_dtype_passes(dtype: torch.dtype) -> None:
    pair = split(nn.Conv2d(4, 6, 3, groups=2).to(dtype), nn.BatchNorm2d(6).to(dtype))
    assert pair.compare().ok


def test_sizes_are_prime_different_and_reach_every_tap() -> None:
    """Dilation 7 on a 5-wide kernel: smaller inputs would only ever meet its middle tap."""
    conv = nn.Conv2d(4, 4, (1, 5), padding=(0, 14), dilation=(1, 7), groups=2)
    verdict = split(conv).compare()
    (small,), (large,) = verdict.shapes
    assert small == (2, 4, 2, 29)
    assert large == (3, 4, 3, 31)


def test_sizes_that_the_site_fixes_are_kept() -> None:
    """A view with numbers in it: only the example's own size is possible."""

    def fixed() -> Region:
        region = chain({"conv": nn.Conv1d(4, 4, 3, groups=2)})
        graph = region.module.graph
        with graph.inserting_after(region.output):
            flat = graph.call_method("view", (region.output, 2, 44))
        return Region(region.module, region.inputs, flat)

    region = fixed()
    verdict = compare_regions(region, copy_of(region), [(2, 4, 13)], rows={})
    assert verdict.ok, verdict.reason
    assert set(verdict.shapes) == {((2, 4, 13),)}


def test_sizes_below_a_window_are_not_the_sites_own() -> None:
    """Windows of 8: of the smallest sizes there are none, and a size is divided by their number."""

    def windows() -> Region:
        region = chain({"conv": nn.Conv1d(4, 4, 1, groups=2)})
        graph = region.module.graph
        with graph.inserting_after(region.output):
            size = graph.call_method("size", (region.output, 2))
        with graph.inserting_after(size):
            count = graph.call_function(operator.floordiv, (size, 8))
        with graph.inserting_after(count):
            window = graph.call_function(operator.floordiv, (size, count))
        with graph.inserting_after(window):
            parted = graph.call_method("unflatten", (region.output, 2, (count, window)))
        return Region(region.module, region.inputs, parted)

    region = windows()
    verdict = compare_regions(region, copy_of(region), [(2, 4, 24)], rows={})
    assert verdict.ok, verdict.reason


def copy_of(region: Region) -> Region:
    module = copy.deepcopy(region.module)
    nodes = {node.name: node for node in module.graph.nodes}
    return Region(module, tuple(nodes[n.name] for n in region.inputs), nodes[region.output.name])


def test_a_site_that_cannot_be_run_is_not_ok() -> None:
    region = chain({"conv": nn.Conv1d(4, 4, 3, groups=2)})
    verdict = compare_regions(region, copy_of(region), [(2, 5, 13)], rows={})
    assert not verdict.ok
    assert str(verdict.reason).startswith("the original cannot be run on its own: RuntimeError")


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.abs()


class Forward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return NoBackward.apply(x) * self.scale[:, None]


def test_a_site_without_a_derivative_is_still_compared() -> None:
    left = chain({"layer": Forward()})
    verdict = compare_regions(left, copy_of(left), [(2, 3, 5)], rows={})
    assert verdict.ok
    assert verdict.gradients_ok is None
    verdict = compare_regions(left, chain({"layer": Negative()}), [(2, 3, 5)], rows={})
    assert "with random parameters it is off by" in str(verdict.reason)


class Negative(Forward):
    """What the original gives as long as its scale is zero."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


def test_a_value_that_is_no_tensor_is_a_bug_of_the_pass() -> None:
    region = chain({"lstm": nn.LSTM(4, 4)})
    with pytest.raises(InternalError, match="the value of a site is a tuple, not a tensor"):
        compare_regions(region, region, [(2, 3, 4)])


# A region's own rules


def two_step() -> tuple[Region, fx.Graph]:
    root, graph = nn.Module(), fx.Graph()
    root.conv = nn.Conv1d(3, 3, 1)
    x, scale = graph.placeholder("x"), graph.placeholder("scale")
    node = graph.call_module("conv", (x,))
    before = graph.call_function(torch.relu, (node,))
    end = graph.call_function(operator.mul, (before, scale))
    graph.output(end)
    return Region(fx.GraphModule(root, graph), (node, scale), end), graph


def test_only_the_nodes_between_are_run() -> None:
    region, _ = two_step()
    assert [node.op for node in region.nodes()] == ["call_function", "call_function"]
    value = run_region(region, [torch.tensor([-1.0, 2.0]), 3.0])
    assert value.tolist() == [0.0, 6.0]


def test_an_input_that_was_forgotten_is_named() -> None:
    region, _ = two_step()
    open_region = Region(region.module, region.inputs[:1], region.output)
    with pytest.raises(InternalError, match="depends on the model's input scale, not on conv"):
        open_region.nodes()


def test_a_wrong_number_of_values_is_refused() -> None:
    region, _ = two_step()
    with pytest.raises(InternalError, match="2 region inputs, but 1 values"):
        run_region(region, [torch.ones(2)])
    with pytest.raises(InternalError, match="has 2 inputs, the rewritten one 1"):
        compare_regions(region, Region(region.module, region.inputs[:1], region.output), [(2, 3)])


def test_a_deep_graph_needs_no_recursion() -> None:
    graph = fx.Graph()
    start = node = graph.placeholder("x")
    for _ in range(3000):
        node = graph.call_function(operator.add, (node, 1))
    graph.output(node)
    region = Region(fx.GraphModule(nn.Module(), graph), (start,), node)
    assert run_region(region, [5]) == 3005


# Nothing of the caller's is changed


def computed_weight(kind: str) -> nn.Module:
    conv = nn.Conv1d(6, 6, 3, groups=3)
    if kind == "weight_norm":
        return parametrizations.weight_norm(conv)
    if kind == "spectral_norm":
        return parametrizations.spectral_norm(conv)
    if kind == "weight_norm_old":
        conv = nn.utils.weight_norm(conv)
        conv(torch.ones(2, 6, 5))  # leaves a weight with a history, which cannot be deep-copied
        return conv
    if kind == "spectral_norm_old":
        return nn.utils.spectral_norm(conv)
    return conv


KINDS = ["plain", "weight_norm", "spectral_norm", "weight_norm_old", "spectral_norm_old"]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_regions_stay_as_they_are(kind: str, training: bool) -> None:
    region = chain({"conv": computed_weight(kind), "bn": nn.BatchNorm1d(6)})
    region.module.train(training)
    before = Fingerprint.of(region.module)
    state = torch.get_rng_state()
    verdict = compare_regions(region, region, [(2, 6, 11)], rows={})
    assert verdict.ok, verdict.reason
    assert verdict.train_ok
    assert before.changes(region.module) == ()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in region.module.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_computed_weight_that_is_off_is_caught(kind: str) -> None:
    conv = computed_weight(kind)
    wrong = computed_weight(kind)
    state = {name: value.clone() for name, value in conv.state_dict().items()}
    key = next(
        name for name in state if name.endswith(("weight", "_g", "original0", "original", "_orig"))
    )
    state[key].view(-1)[0] *= 1.001
    wrong.load_state_dict(state)
    verdict = compare_regions(chain({"conv": conv}), chain({"conv": wrong}), [(2, 6, 11)], rows={})
    assert not verdict.ok
    assert not verdict.identical


def test_tied_tensors_stay_tied_in_the_copies() -> None:
    """One weight read by two convs: each gets the gradient of both."""

    def tied() -> Region:
        first, second = nn.Conv1d(3, 3, 1), nn.Conv1d(3, 3, 1)
        second.weight = first.weight
        return chain({"first": first, "second": second})

    left = tied()
    made = RegionCopy(left)
    assert made.tensors["first.weight"] is made.tensors["second.weight"]
    untied = copy_of(left)
    untied.module.second.weight = nn.Parameter(untied.module.second.weight.detach().clone())
    verdict = compare_regions(left, untied, [(2, 3, 5)], rows={})
    assert verdict.identical
    assert verdict.gradients_ok is False


def test_values_that_are_written_to_are_copies() -> None:
    """An in-place activation at the head of the site must not reach the other side's input."""
    left = chain({"relu": nn.ReLU(inplace=True), "conv": nn.Conv1d(4, 4, 3, groups=2)})
    assert compare_regions(left, copy_of(left), [(2, 4, 9)], rows={}).ok


def test_what_the_graph_reads_directly_is_compared_too() -> None:
    """A functional convolution with stored weights, split in the graph: the weight stays whole."""
    weight, bias = nn.Parameter(torch.randn(6, 2, 3)), nn.Parameter(torch.randn(6))

    def region(groups: bool) -> Region:
        root, graph = nn.Module(), fx.Graph()
        root.weight, root.bias = weight, bias
        x = graph.placeholder("x")
        w, b = graph.get_attr("weight"), graph.get_attr("bias")
        if groups:
            end = graph.call_function(F.conv1d, (x, w, b), {"groups": 2})
        else:
            parts = [graph.call_function(F.conv1d, operands(graph, x, w, b, g)) for g in (0, 1)]
            end = graph.call_function(torch.cat, (parts, 1))
        graph.output(end)
        return Region(fx.GraphModule(root, graph), (x,), end)

    verdict = compare_regions(region(True), region(False), [(2, 4, 9)], rows={})
    assert verdict.ok, verdict.reason
    assert verdict.identical
    assert verdict.gradients_ok


def operands(graph: fx.Graph, x: fx.Node, w: fx.Node, b: fx.Node, group: int) -> tuple[Any, ...]:
    rows, columns = slice(group * 3, group * 3 + 3), slice(group * 2, group * 2 + 2)
    return (
        graph.call_function(operator.getitem, (x, (slice(None), columns))),
        graph.call_function(operator.getitem, (w, rows)),
        graph.call_function(operator.getitem, (b, rows)),
    )


def test_names_of_the_whole_model_are_used_where_given() -> None:
    """A graph that is a part of a model: the map of the rewrite speaks of the whole."""
    pair = split(nn.Conv1d(4, 4, 3, groups=2))
    left, right = (
        Region(side.module, side.inputs, side.output, lambda name: f"body.{name}")
        for side in (pair.left, pair.right)
    )
    assert pair.rows is not None
    rows = {f"body.{new}": Rows(f"body.{r.key}", r.start, r.stop) for new, r in pair.rows.items()}
    assert compare_regions(left, right, [(2, 4, 9)], rows=rows).ok
    assert not compare_regions(left, right, [(2, 4, 9)], rows=pair.rows).ok


class Tie(nn.Module):
    """Its mask is decided by an exact tie between float32 values, which float64 would break."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 2, 1, bias=False)
        self.map = nn.Parameter(torch.tensor([[0.0, 1e-9], [3.0, 0.0]]))

    def forward(self, x: Tensor) -> Tensor:
        shares = torch.softmax(self.map, 1)
        mask = (shares == shares.max(1, keepdim=True).values).float()
        return F.conv1d(x, self.conv.weight * mask[:, :, None])


def test_tensors_that_decide_in_their_own_dtype_keep_it() -> None:
    layer = Tie()
    frozen = nn.Conv1d(2, 2, 1, bias=False)
    with torch.no_grad():
        frozen.weight.copy_(layer.conv.weight * torch.tensor([[1.0, 1.0], [1.0, 0.0]])[:, :, None])
    left, right = chain({"layer": layer}), chain({"conv": frozen})
    parts = (Part((0,), (0, 1)), Part((1,), (0, None)))
    rows = {"conv.weight": Picked("layer.conv.weight", parts, (2, 2))}
    for given in (None, rows):
        verdict = compare_regions(
            left, right, [(2, 2, 5)], exact=False, rows=given, native=["layer.map"]
        )
        assert verdict.ok, verdict.reason
        assert verdict.gradients_ok
        assert not compare_regions(left, right, [(2, 2, 5)], exact=False, rows=given).ok


def depthwise(branches: int) -> Pair:
    """A convolution with a multiplier of 2, and its norm, in as many branches."""
    conv = nn.Conv2d(branches, 2 * branches, 3, padding=1, groups=branches)
    return split(conv, nn.BatchNorm2d(2 * branches))


def test_a_branch_costs_no_more_among_many() -> None:
    assert depthwise(2).compare().ok
    few, many = depthwise(64), depthwise(256)
    assert steps_of(many.compare) <= 4 * steps_of(few.compare)


@pytest.mark.long
def test_thousands_of_branches_are_checked() -> None:
    assert depthwise(4096).compare().ok
