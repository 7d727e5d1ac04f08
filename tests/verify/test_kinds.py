"""Behind a site of its kind, one is compared in its channels alone; what differs in more is not.

Each wrong site is of other numbers of channels than the proved one, and is found; what is no matter
of channels makes it a site of no kind, or of another one, which is compared in all respects.
"""

import operator
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import groupfx
from groupfx.nn import ChannelGather
from groupfx.state import Rows
from groupfx.verify import Proved, Region
from tests.verify.hand_split import Pair, split


def site(groups: int = 2, width: int = 2, *, norm: bool = True, **options: Any) -> Pair:
    torch.manual_seed(groups)
    channels = groups * width
    conv = nn.Conv2d(channels, channels, 3, **{"padding": 1, "groups": groups, **options})
    return split(conv, nn.BatchNorm2d(channels) if norm else None)


def proved_of(pair: Pair) -> Proved:
    proved = Proved()
    verdict = pair.compare(proved=proved)
    assert verdict.ok, verdict.reason
    assert len(proved.kinds) == 1
    return proved


def in_channels_alone(pair: Pair, proved: Proved) -> bool:
    """Whether a right site is compared at one size, as one of a kind that is known."""
    verdict = pair.compare(proved=proved)
    assert verdict.ok, verdict.reason
    assert (verdict.identical, verdict.proof) == (True, "whole numbers")
    assert verdict.chance is not None
    assert verdict.chance < 2.0**-40
    return len(verdict.shapes) == 1


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "alone"])
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2}, {"dilation": 2}, {"padding": "same"}, {"bias": False}], ids=str
)
def test_a_site_of_a_known_kind_is_compared_in_its_channels_alone(
    options: dict[str, Any], norm: bool
) -> None:
    proved = proved_of(site(norm=norm, **options))
    assert in_channels_alone(site(3, 4, norm=norm, **options), proved)
    assert len(proved.kinds) == 1
    assert len(proved.built) == 2


OTHERS: dict[str, Callable[[], Pair]] = {
    "stride": lambda: site(3, stride=2),
    "padding": lambda: site(3, padding=2),
    "dilation": lambda: site(3, dilation=2),
    "no bias": lambda: site(3, bias=False),
    "no norm": lambda: site(3, norm=False),
    "kernel": lambda: split(nn.Conv2d(6, 6, 5, padding=1, groups=3), nn.BatchNorm2d(6)),
    "rank": lambda: split(nn.Conv1d(6, 6, 3, padding=1, groups=3), nn.BatchNorm1d(6)),
    "transposed": lambda: split(nn.ConvTranspose2d(6, 6, 3, padding=1, groups=3)),
    "dtype": lambda: split(nn.Conv2d(6, 6, 3, padding=1, groups=3).half()),
    "momentum": lambda: split(
        nn.Conv2d(6, 6, 3, padding=1, groups=3), nn.BatchNorm2d(6, momentum=0.2)
    ),
    "eps": lambda: split(nn.Conv2d(6, 6, 3, padding=1, groups=3), nn.BatchNorm2d(6, eps=1e-3)),
    "reflected": lambda: site(3, padding_mode="reflect"),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_site_of_another_kind_is_compared_in_all_respects(other: Callable[[], Pair]) -> None:
    assert not in_channels_alone(other(), proved_of(site()))


# What is wrong in the channels, in the tensors, or in what a kind leaves open


def _wrong_value(pair: Pair) -> None:
    with torch.no_grad():
        pair.branch("conv.1").weight[1, 0, 2, 2] += 1


def _wrong_row(pair: Pair) -> None:
    assert pair.rows is not None
    rows = pair.rows
    rows["conv.0.weight"], rows["conv.1.weight"] = rows["conv.1.weight"], rows["conv.0.weight"]


def _lost_bias(pair: Pair) -> None:
    pair.branch("conv.1").bias = None


def _swapped_branches(pair: Pair) -> None:
    first, second = pair.node("conv.0"), pair.node("conv.1")
    first.target, second.target = "conv.1", "conv.0"


def _swapped_norms(pair: Pair) -> None:
    first, second = pair.node("bn.1"), pair.node("bn.2")
    first.target, second.target = "bn.2", "bn.1"


def _other_slice(pair: Pair) -> None:
    pair.node("getitem_1").args = pair.node("getitem").args


def _shifted_slice(pair: Pair) -> None:
    """By one channel of one branch."""
    pair.node("getitem_1").args = (
        pair.node("getitem_1").args[0],
        (slice(None), slice(1, 3)),
    )


def _swapped_outputs(pair: Pair) -> None:
    parts = pair.right.output.args[0]
    assert isinstance(parts, list)
    pair.right.output.args = ([parts[2], parts[1], parts[0]],)


def _inserted(pair: Pair, module: nn.Module, before: str = "bn.1") -> None:
    node, graph = pair.node(before), pair.right.module.graph
    pair.right.module.add_module("extra", module)
    with graph.inserting_before(node):
        node.args = (graph.call_module("extra", (node.args[0],)),)


def _reordered_branch(pair: Pair) -> None:
    _inserted(pair, ChannelGather([1, 0]))


def _called(
    pair: Pair, name: str, function: Callable[..., Any], *arguments: Any, method: bool = False
) -> None:
    """`function` between a branch and its norm."""
    node, graph = pair.node(name), pair.right.module.graph
    with graph.inserting_before(node):
        call = graph.call_method if method else graph.call_function
        node.args = (call(function, (node.args[0], *arguments)),)  # type: ignore[operator]


def _other_geometry(pair: Pair) -> None:
    """Of the same size of output: wrong at the borders alone where weights are small inside."""
    conv = pair.branch("conv.1")
    conv.dilation, conv.padding = (2, 2), (2, 2)


def _other_padding_mode(pair: Pair) -> None:
    old = pair.branch("conv.1")
    conv = nn.Conv2d(2, 2, 3, padding=1, padding_mode="replicate")
    conv.load_state_dict(old.state_dict())
    pair.put("conv.1", conv)


def _one_pixel(pair: Pair) -> None:
    def first_pixel(y: Tensor) -> Tensor:
        return torch.where(torch.arange(y.shape[-1]) == 0, y * 2, y)

    _called(pair, "bn.1", first_pixel)


def _beyond_40(pair: Pair) -> None:
    """Right on inputs of 40 columns and fewer."""
    _called(pair, "bn.1", lambda y: y if y.shape[-1] <= 40 else y * 2)


def _cut_beyond_40(pair: Pair) -> None:
    everywhere, columns = slice(None), slice(0, 40)
    _called(pair, "bn.1", operator.getitem, (everywhere, everywhere, everywhere, columns))


def _batch_above_2(pair: Pair) -> None:
    _called(pair, "bn.1", operator.getitem, (slice(0, 2),))


def _through_half(pair: Pair) -> None:
    _called(pair, "bn.1", "half", method=True)
    _called(pair, "bn.1", "float", method=True)


def _no_nan(pair: Pair) -> None:
    _called(pair, "bn.1", torch.nan_to_num)


def _clamped(pair: Pair) -> None:
    _called(pair, "bn.1", torch.clamp, -1e30, 1e30)


def _detached(pair: Pair) -> None:
    _called(pair, "bn.1", "detach", method=True)


def _frozen(pair: Pair) -> None:
    pair.branch("conv.1").weight.requires_grad_(False)


def _other_momentum(pair: Pair) -> None:
    pair.branch("bn.1").momentum = 0.2


def _other_mode(pair: Pair) -> None:
    pair.branch("bn.1").eval()


def _without_statistics(pair: Pair) -> None:
    norm = pair.branch("bn.1")
    norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None


def _hook(pair: Pair) -> None:
    pair.branch("conv.1").register_forward_hook(lambda _, given, found: found * 2)


def _other_forward(pair: Pair) -> None:
    forward = pair.branch("conv.1").forward
    pair.branch("conv.1").forward = lambda x: forward(x) * 2


def _subclass(pair: Pair) -> None:
    class OnlySmall(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * (1 if len(input) < 5 else 2)

    pair.branch("conv.1").__class__ = OnlySmall


def _one_norm_twice(pair: Pair) -> None:
    """Statistics of the first are updated twice: no output in eval mode shows it."""
    node, graph = pair.node("bn.0"), pair.right.module.graph
    with graph.inserting_after(node):
        again = graph.call_module("bn.0", node.args)
    parts = pair.right.output.args[0]
    assert isinstance(parts, list)
    with graph.inserting_before(pair.right.output):
        both = graph.call_function(torch.cat, ([node, again],), {"dim": 1})
        half = graph.call_function(operator.getitem, (both, (slice(None), slice(0, 2))))
    pair.right.output.args = ([half, *parts[1:]],)


def _zeros_beside(pair: Pair) -> None:
    """A branch sees a channel of zeros more, and has weights for it from elsewhere."""
    root, graph = pair.right.module, pair.right.module.graph
    root.register_buffer("zeros", torch.zeros(2, 1, 9, 9))
    node = pair.node("conv.1")
    with graph.inserting_before(node):
        zeros = graph.get_attr("zeros")
        wide = graph.call_function(torch.cat, ([node.args[0], zeros],), {"dim": 1})
        node.args = (graph.call_function(operator.getitem, (wide, (slice(None), slice(1, 3)))),)


WRONG = [
    *(_wrong_value, _wrong_row, _lost_bias, _swapped_branches, _swapped_norms, _other_slice),
    *(_shifted_slice, _swapped_outputs, _reordered_branch, _other_geometry, _other_padding_mode),
    *(_one_pixel, _beyond_40, _cut_beyond_40, _batch_above_2, _through_half, _no_nan, _clamped),
    *(_detached, _frozen, _other_momentum, _other_mode, _without_statistics, _hook),
    *(_other_forward, _subclass, _one_norm_twice, _zeros_beside),
]


@pytest.mark.parametrize("spoil", WRONG, ids=lambda spoil: spoil.__name__)
def test_a_wrong_site_behind_one_of_its_kind_is_found(spoil: Callable[[Pair], None]) -> None:
    proved = proved_of(site())
    wrong = site(3)
    spoil(wrong)
    assert not wrong.compare(proved=proved).ok
    assert len(proved.built) == 1


@pytest.mark.long
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "alone"])
def test_every_wrong_wiring_of_two_channels_is_found(norm: bool, stride: int) -> None:
    """All 36 ways in which three branches may read two following channels of six each, but one."""
    proved = proved_of(site(norm=norm, stride=stride))
    for starts in product((0, 2, 4), (0, 1, 2), (2, 3, 4)):
        pair = site(3, norm=norm, stride=stride)
        names = ("getitem", "getitem_1", "getitem_2")
        for name, start in zip(names, starts, strict=True):
            node = pair.node(name)
            node.args = (node.args[0], (slice(None), slice(start, start + 2)))
        assert pair.compare(proved=proved).ok is (starts == (0, 2, 4))


def test_rows_that_two_hold_are_no_site_of_a_kind() -> None:
    """Train mode would update both."""
    proved, pair = proved_of(site()), site(3)
    assert pair.rows is not None
    extra = pair.branch("bn.0")
    pair.right.module.get_submodule("bn").add_module("3", nn.BatchNorm2d(2))
    pair.branch("bn.3").load_state_dict(extra.state_dict())
    pair.rows |= {
        name.replace("bn.0", "bn.3"): Rows(rows.key, rows.start, rows.stop)
        for name, rows in list(pair.rows.items())
        if name.startswith("bn.0")
    }
    graph, parts = pair.right.module.graph, pair.right.output.args[0]
    assert isinstance(parts, list)
    first: fx.Node = pair.node("bn.0")
    with graph.inserting_before(pair.right.output):
        other = graph.call_module("bn.3", first.args)
        both = graph.call_function(torch.cat, ([first, other],), {"dim": 1})
        half = graph.call_function(operator.getitem, (both, (slice(None), slice(0, 2))))
    pair.right.output.args = ([half, *parts[1:]],)
    pair.right = Region(pair.right.module, pair.right.inputs, pair.right.output)
    verdict = pair.compare(proved=proved)
    assert len(verdict.shapes) == 2


def test_sites_that_are_alike_share_a_verdict_in_every_rewrite() -> None:
    convs = [nn.Conv2d(4, 4, 3, padding=1, groups=2) for _ in range(3)]
    model = nn.Sequential(*convs, nn.Conv2d(4, 8, 3, padding=1, groups=2)).eval()
    for passes in (["split-grouped-conv"], ["spell-calls", "split-grouped-conv"]):
        report = groupfx.rewrite(model, (torch.randn(2, 4, 9, 9),), passes=passes).report
        assert len({id(site.verdict) for site in report.sites[:3]}) == 1
        sizes = [len(site.verdict.shapes) for site in report.sites if site.verdict]
        assert sizes == [2, 2, 2, 1]
