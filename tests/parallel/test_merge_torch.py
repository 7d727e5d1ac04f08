"""`merge-parallel-conv` in torch graphs: however branches are written, and what is no branch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import groupfx
import groupfx.rewriting.parallel as carried_out
from groupfx.errors import MismatchError, UsageError
from groupfx.passes import MergeParallelConv, SplitGroupedConv
from groupfx.rewriting import Pipeline
from groupfx.testing import check_pass
from tests.parallel.torch_branches import Parts, SideBySide, X, three

SPELLINGS: dict[str, Parts] = {
    "slice": lambda x: [x[:, 0:4], x[:, 4:8], x[:, 8:12]],
    "slice-to-the-end": lambda x: [x[:, :4], x[:, 4:-4], x[:, 8:]],
    "all-axes": lambda x: [x[:, 4 * k : 4 * k + 4, :, :] for k in range(3)],
    "chunk": lambda x: [x.chunk(3, 1)[k] for k in range(3)],
    "torch-chunk": lambda x: [torch.chunk(x, 3, dim=1)[k] for k in range(3)],
    "split": lambda x: [x.split(4, 1)[k] for k in range(3)],
    "split-sizes": lambda x: [torch.split(x, [4, 4, 4], dim=1)[k] for k in range(3)],
    "tensor-split": lambda x: [torch.tensor_split(x, 3, dim=1)[k] for k in range(3)],
    "narrow": lambda x: [x.narrow(1, 4 * k, 4) for k in range(3)],
    "torch-narrow": lambda x: [torch.narrow(x, 1, 4 * k, 4) for k in range(3)],
    "list": lambda x: [x[:, [4 * k, 4 * k + 1, 4 * k + 2, 4 * k + 3]] for k in range(3)],
    "slice-of-slice": lambda x: [x[:, :8][:, :4], x[:, :8][:, 4:], x[:, 8:]],
    "unflatten": lambda x: [x.unflatten(1, (3, 4))[:, k] for k in range(3)],
    "unbind": lambda x: [x.unflatten(1, (3, 4)).unbind(1)[k] for k in range(3)],
    "view": lambda x: [x.view(x.size(0), 3, 4, x.size(2), -1).select(1, k) for k in range(3)],
    "padded-first": lambda x: [F.pad(x[:, 4 * k : 4 * k + 4], (1, 0, 2, 1)) for k in range(3)],
}


def norms() -> list[nn.Module]:
    made = [nn.BatchNorm2d(6) for _ in range(3)]
    for norm in made:
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.weight, 0.5, 2)
    return list(made)


def merged(model: nn.Module, x: Tensor = X, **options: Any) -> groupfx.Result:
    return check_pass(MergeParallelConv(), model.eval(), (x,), sites=1, **options)


@pytest.mark.parametrize("parts", SPELLINGS.values(), ids=SPELLINGS)
def test_however_the_parts_are_written(parts: Parts) -> None:
    model = SideBySide(parts, three(groups=2))
    result = merged(model)
    conv = result.model.get_submodule("convs")
    assert isinstance(conv, nn.Conv2d)
    assert (conv.in_channels, conv.out_channels, conv.groups) == (12, 18, 6)
    assert torch.equal(conv.weight, torch.cat([c.weight for c in model.convs]))


VIEWS = {"unflatten", "unbind", "view"}
"""An export says the sizes of a view: those of one input."""
EXPORTED = {name: parts for name, parts in SPELLINGS.items() if name not in VIEWS}


@pytest.mark.parametrize("parts", EXPORTED.values(), ids=EXPORTED)
def test_in_an_exported_graph_too(parts: Parts) -> None:
    model = SideBySide(parts, three()).eval()
    result = groupfx.rewrite(model, X, passes=[MergeParallelConv()], way="export")
    assert [site.name for site in result.report.sites] == ["convs"]
    assert result.report.ok


KINDS: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "1-d": (lambda: [nn.Conv1d(4, 6, 3, padding=1) for _ in range(3)], (9,)),
    "3-d": (lambda: [nn.Conv3d(4, 6, 3, stride=2) for _ in range(3)], (7, 5, 6)),
    "transposed": (lambda: [nn.ConvTranspose2d(4, 6, 3, stride=2) for _ in range(3)], (5, 4)),
    "no-bias": (lambda: three(bias=False), (9, 7)),
    "circular": (lambda: three(padding=1, padding_mode="circular"), (9, 7)),
    "same": (lambda: three(padding="same", dilation=2), (9, 7)),
    "depthwise": (lambda: [nn.Conv2d(4, 4, 3, groups=4) for _ in range(3)], (9, 7)),
    "float64": (lambda: [c.double() for c in three()], (9, 7)),
}


@pytest.mark.parametrize(("convs", "sizes"), KINDS.values(), ids=KINDS)
def test_every_kind_of_convolution(
    convs: Callable[[], list[nn.Module]], sizes: tuple[int, ...]
) -> None:
    made = convs()
    dtype = next(made[0].parameters()).dtype
    merged(SideBySide(SPELLINGS["narrow"], made), torch.randn(2, 12, *sizes, dtype=dtype))


@pytest.mark.parametrize(
    "parts",
    [
        lambda x: [x.view(2, 3, 4, 9, 7).select(1, k) for k in range(3)],
        lambda x: [x.unflatten(1, (4, 3))[:, :, k] for k in range(3)],
        lambda x: [x.unflatten(2, (3, 3))[:, :, k] for k in range(3)],
    ],
    ids=["of-one-size", "every-third-channel", "of-rows"],
)
def test_views_of_something_else_are_left(parts: Parts) -> None:
    convs = three() if parts(X)[0].shape[1] == 4 else [nn.Conv2d(12, 6, (1, 3)) for _ in range(3)]
    model = SideBySide(parts, convs).eval()
    result = groupfx.rewrite(model, X, passes=[MergeParallelConv()])
    assert result.report.ok
    assert not result.report.sites


def test_norms_and_activations_go_along() -> None:
    behind = [nn.Sequential(norm, nn.ReLU()) for norm in norms()]
    result = merged(SideBySide(SPELLINGS["chunk"], three(), behind))
    kinds = [type(m) for m in result.model.modules() if not list(m.children())]
    assert kinds.count(nn.Conv2d) == kinds.count(nn.BatchNorm2d) == 1
    assert sum(node.op == "call_module" for node in result.model.graph.nodes) == 3


def test_functions_of_stored_weights_are_merged() -> None:
    class ConvFunctions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Parameter(torch.randn(6, 4, 3, 3))
            self.second = nn.Parameter(torch.randn(6, 4, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            one, other = x.chunk(2, 1)
            return torch.cat([F.conv2d(one, self.first), F.conv2d(other, self.second)], 1).relu()

    model = ConvFunctions().eval()
    result = check_pass(MergeParallelConv(), model, (X[:, :8],), sites=1)
    (conv,) = [m for m in result.model.modules() if isinstance(m, nn.Conv2d)]
    assert torch.equal(conv.weight, torch.cat([model.first, model.second]))


def test_another_order_leaves_a_gather() -> None:
    def parts(x: Tensor) -> list[Tensor]:
        return [x[:, 8:], x[:, :4], x[:, 4:8]]

    result = merged(SideBySide(parts, three()))
    assert "a gather stays" in result.report.sites[0].notes[0]


def test_a_split_comes_back_with_its_names_and_weights() -> None:
    model = nn.Sequential(
        nn.Conv2d(12, 18, 3, groups=3), nn.BatchNorm2d(18), nn.ReLU(), nn.Conv2d(18, 8, 1, groups=2)
    ).eval()
    split = groupfx.rewrite(model, X)
    back = check_pass(MergeParallelConv(), split.model, (X,), sites=2)
    state, before = back.model.state_dict(), model.state_dict()
    assert state.keys() == before.keys()
    assert all(torch.equal(state[key], value) for key, value in before.items())


def test_a_merge_is_split_into_what_it_was() -> None:
    model = SideBySide(SPELLINGS["chunk"], three(), norms()).eval()
    there = groupfx.rewrite(model, X, passes=[MergeParallelConv()])
    back = groupfx.rewrite(there.model, X, passes=[SplitGroupedConv()])
    state = back.model.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_checkpoints_and_optimisers_both_ways() -> None:
    model = SideBySide(SPELLINGS["chunk"], three(), norms())
    result = groupfx.rewrite(model, X, passes=[MergeParallelConv()])
    other = copy.deepcopy(model)
    optimizer = torch.optim.Adam(other.parameters(), lr=0.1)
    other(X).square().mean().backward()
    optimizer.step()
    result.state_dict_map.load_original(other.state_dict())
    assert torch.allclose(result.model(X), other(X), atol=1e-6)
    back = result.state_dict_map.to_original()
    for key, value in other.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(back[key], value) or "running" in key
    going = result.state_dict_map.convert_optimizer(optimizer, other)
    for each, opt in ((other, optimizer), (result.model, going)):
        opt.zero_grad()
        each.eval()(X).square().mean().backward()
        opt.step()
    final = result.state_dict_map.to_original()
    for key, value in other.named_parameters():
        assert torch.allclose(final[key], value, atol=1e-5), key
    returned = result.state_dict_map.optimizer_to_original(going, other)
    moment = returned.state[other.convs[1].weight]["exp_avg"]
    expected = optimizer.state[other.convs[1].weight]["exp_avg"]
    assert torch.allclose(moment, expected, atol=1e-6)


def test_a_checkpoint_of_another_model_is_refused() -> None:
    model = SideBySide(SPELLINGS["chunk"], three()).eval()
    state_map = groupfx.rewrite(model, X, passes=[MergeParallelConv()]).state_dict_map
    state = model.state_dict()
    with pytest.raises(UsageError, match="unexpected"):
        state_map.load_original({**state, "more": torch.zeros(1)})
    with pytest.raises(UsageError, match="missing or of the wrong shape"):
        state_map.load_original({k: v for k, v in state.items() if k != "convs.1.weight"})
    assert state_map.load_original({**state, "more": X}, strict=False).unexpected == ("more",)


def hooked(model: Any) -> None:
    model.convs[1].register_forward_hook(lambda *_: None)


def tied(model: Any) -> None:
    model.convs[1].weight = model.convs[0].weight


def frozen(model: Any) -> None:
    model.convs[1].weight.requires_grad_(False)


def normed(model: Any) -> None:
    nn.utils.parametrizations.weight_norm(model.convs[1])


def other_epsilon(model: Any) -> None:
    model.behind[1].eps = 1e-3


def other_count(model: Any) -> None:
    model.behind[1].num_batches_tracked += 1


def other_mode(model: Any) -> None:
    model.behind[1].train()


def other_stride(model: Any) -> None:
    model.convs[1].padding, model.convs[1].dilation = (2, 2), (2, 2)
    for conv in (model.convs[0], model.convs[2]):
        conv.padding = (1, 1)


CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "hooks": (hooked, "input 1 of cat comes from no convolution"),
    "tied": (tied, "convs.0.weight is used more than once"),
    "requires-grad": (frozen, "the convolutions differ: convs.0 and convs.1"),
    "weight-norm": (normed, "input 1 of cat comes from no convolution"),
    "epsilon": (other_epsilon, "what stands behind them differ: behind.0 and behind.1"),
    "counter": (other_count, "what stands behind them differ: behind.0 and behind.1"),
    "mode": (other_mode, "what stands behind them differ: behind.0 and behind.1"),
    "dilation": (other_stride, "the convolutions differ: convs.0 and convs.1"),
}


@pytest.mark.parametrize(("change", "reason"), CHANGES.values(), ids=CHANGES)
def test_what_differs_is_left_with_its_reason(change: Callable[[Any], None], reason: str) -> None:
    model = SideBySide(SPELLINGS["narrow"], three(), norms()).eval()
    change(model)
    result = groupfx.rewrite(model, X, passes=[MergeParallelConv()])
    assert not result.report.sites
    (left,) = result.report.skipped
    assert reason in left.reason


def inception(m: Any, x: Tensor) -> list[Tensor]:
    return [conv(x) for conv in m.convs]


NEAR: dict[str, tuple[Callable[[Any, Tensor], Tensor], str | None]] = {
    "overlap": (
        lambda m, x: torch.cat([m.convs[k](x[:, 3 * k : 3 * k + 4]) for k in range(3)], 1),
        "channel 3 of x is read by two of them",
    ),
    "gap": (
        lambda m, x: torch.cat([m.convs[k](x[:, s : s + 4]) for k, s in ((0, 0), (1, 8))], 1),
        "channel 4 of x is read by none of them",
    ),
    "used": (
        lambda m, x: torch.cat([y := m.convs[0](x[:, :4]), m.convs[1](x[:, 4:8])], 1) * y.mean(),
        "what convs.0 gives is used elsewhere too",
    ),
    "axis": (
        lambda m, x: torch.cat([m.convs[k](x[:, 4 * k : 4 * k + 4]) for k in range(3)], 2),
        "concatenates along axis 2, not channels",
    ),
    "called-twice": (
        lambda m, x: torch.cat([m.convs[0](x[:, :4]), m.convs[0](x[:, 4:8])], 1),
        "is used more than once",
    ),
    "two-values": (
        lambda m, x: torch.cat(
            [m.convs[0](x[:, :4]), m.convs[1](x[:, 4:8]), m.convs[2](x.softmax(1)[:, 8:])], 1
        ),
        "they do not all read one value",
    ),
    "dropout": (
        lambda m, x: torch.cat(
            [F.dropout(m.convs[k](x[:, 4 * k : 4 * k + 4]), 0.5, False) for k in range(3)], 1
        ),
        "may not be merged",
    ),
    "other-slope": (
        lambda m, x: torch.cat(
            [F.leaky_relu(m.convs[k](x[:, 4 * k : 4 * k + 4]), 0.1 * (k + 1)) for k in range(3)], 1
        ),
        "what stands behind them differ",
    ),
    "whole": (lambda m, x: torch.cat(inception(m, x[:, :4].exp()), 1), None),
}


class WrittenBranches(nn.Module):
    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(three(padding=1))
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


@pytest.mark.parametrize(("forward", "reason"), NEAR.values(), ids=NEAR)
def test_near_patterns_are_left(
    forward: Callable[[Any, Tensor], Tensor], reason: str | None
) -> None:
    result = groupfx.rewrite(WrittenBranches(forward).eval(), X, passes=[MergeParallelConv()])
    assert not result.report.sites
    reasons = [left.reason for left in result.report.skipped if "parallel" in left.kind]
    assert all((reason or "") in found for found in reasons)
    assert bool(reasons) == (reason is not None)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_drawn_branches_are_merged_rightly_or_left(data: st.DataObject) -> None:
    """Any starts and widths: what is merged is proved, and what is left has a reason."""
    count = data.draw(st.integers(2, 4))
    starts = [data.draw(st.integers(0, 8)) for _ in range(count)]
    width = data.draw(st.sampled_from([2, 4]))
    unequal: Any = data.draw(st.sampled_from(["keep", "bucketed", "padded"]))
    order = data.draw(st.permutations(range(count)))
    convs = [
        nn.Conv2d(width, 2 * width, 1, groups=data.draw(st.sampled_from([1, 2]))) for _ in starts
    ]

    def parts(x: Tensor) -> list[Tensor]:
        return [x[:, starts[k] : starts[k] + width] for k in order]

    pass_ = MergeParallelConv(unequal=unequal)
    result = groupfx.rewrite(SideBySide(parts, convs).eval(), X, passes=[pass_])
    assert result.report.ok
    ranges = sorted((s, s + width) for s in starts)
    fits = all(a[1] == b[0] for a, b in pairwise(ranges))
    kinds = len({conv.groups for conv in convs})
    most = {"keep": 1, "bucketed": max(1, len(convs) - 1), "padded": len(convs)}[unequal]
    assert bool(result.report.sites) == (fits and kinds <= most)
    back = result.state_dict_map.to_original()
    before = SideBySide(parts, convs).state_dict()
    assert all(torch.equal(back[key], value) for key, value in before.items())


def swapped_weights(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def cat(self: Any, keys: Sequence[str], new: str) -> Tensor:
        made = original(self, keys, new)
        if new.endswith("weight") and made.dim() > 1:
            made.data = made.data.flip(0)
        return made

    return cat


def lost_note(original: Callable[..., None]) -> Callable[..., None]:
    def note(self: Any, keys: Sequence[str], new: str, rows: Sequence[Any]) -> None:
        original(self, keys, new, list(reversed(rows)))

    return note


@pytest.mark.parametrize(
    ("name", "wrong"), [("_cat", swapped_weights), ("_note", lost_note)], ids=["weights", "map"]
)
def test_a_wrong_merge_is_caught(
    name: str, wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(carried_out._Merging, name)
    monkeypatch.setattr(carried_out._Merging, name, wrong(original))
    model = SideBySide(SPELLINGS["chunk"], three()).eval()
    with pytest.raises(MismatchError, match="convs does not compute what it did"):
        groupfx.rewrite(model, X, passes=[MergeParallelConv()])


def test_it_stands_alone_in_a_pipeline() -> None:
    with pytest.raises(UsageError, match="merge-parallel-conv beside other passes"):
        Pipeline([MergeParallelConv(), SplitGroupedConv()])
