"""`discover-groups`: zeros in any dense layer become blocks, masks that parameters make included.

The oracle is the model itself in float64 with its zeros in place, run by torch, and block sizes
that the tests know because they put the zeros there. The trained layers of DGConv, CondenseNet and
CondenseNetV2 are written here from their descriptions.
"""

import copy
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import groupfx
from groupfx import Pipeline
from groupfx.errors import MismatchError, RewriteError, UsageError
from groupfx.nn import ChannelGather, ChannelShuffle, ChannelTranspose, ConstantChannels
from groupfx.passes import DiscoverGroups, SplitGroupedConv, make_pass
from groupfx.rewriting import Rewritten, Site
from groupfx.testing import check_pass

Groups = Sequence[tuple[Sequence[int], Sequence[int]]]

# 11 inputs and 13 filters, primes both; input 4 is dead, filter 6 reads nothing.
UNEQUAL: Groups = [
    ((0, 5, 7), (1, 2, 9, 12)),
    ((1, 2), (0, 3, 8)),
    ((3, 6, 8, 9, 10), (4, 5, 7, 10, 11)),
]
EQUAL: Groups = [((0, 4, 6), (1, 5)), ((1, 3, 8), (0, 4)), ((2, 5, 7), (2, 3))]


def keep(layer: nn.Module, groups: Groups) -> Any:
    """`layer` with zeros in its weight everywhere but in the blocks."""
    weight = layer.get_parameter("weight")
    mask = torch.zeros(weight.shape[:2], dtype=torch.bool)
    for inputs, outputs in groups:
        mask[np.ix_(outputs, inputs)] = True
    with torch.no_grad():
        weight[~mask] = 0
    return layer


def macs_of(groups: Groups) -> int:
    return sum(len(inputs) * len(outputs) for inputs, outputs in groups)


def oracle(model: nn.Module, rewritten: nn.Module, *inputs: Tensor) -> None:
    """Both in float64 and eval mode, on inputs that the rewrite has not seen."""
    for module in model.modules():  # a pruned weight has a history, which cannot be copied
        vars(module).update({k: v.detach() for k, v in vars(module).items() if torch.is_tensor(v)})
    before, after = (copy.deepcopy(m).double().eval() for m in (model, rewritten))
    with torch.no_grad():
        expected = before(*(x.double() for x in inputs))
        found = after(*(x.double() for x in inputs))
    assert float((found - expected).abs().max()) <= 1e-13 * float(expected.abs().max())


def reasons(model: nn.Module, x: Tensor, **options: Any) -> list[str]:
    report = Pipeline([DiscoverGroups(**options)])(model, (x,)).report
    assert not report.sites
    return [site.reason for site in report.skipped]


CONVS: dict[str, Callable[[Groups], tuple[nn.Module, Tensor]]] = {
    "1d": lambda g: (keep(nn.Conv1d(11, 13, 3, stride=2, padding=1), g), torch.randn(2, 11, 17)),
    "2d": lambda g: (keep(nn.Conv2d(11, 13, 3), g), torch.randn(2, 11, 7, 5)),
    "3d": lambda g: (keep(nn.Conv3d(11, 13, 2), g), torch.randn(2, 11, 5, 3, 4)),
    "pointwise": lambda g: (keep(nn.Conv2d(11, 13, 1), g), torch.randn(2, 11, 3, 2)),
    "no-bias": lambda g: (keep(nn.Conv2d(11, 13, 3, bias=False), g), torch.randn(2, 11, 7, 5)),
    "edges": lambda g: (
        keep(nn.Conv2d(11, 13, (3, 2), padding=(1, 0), dilation=(2, 1), padding_mode="reflect"), g),
        torch.randn(2, 11, 9, 5),
    ),
    "same": lambda g: (keep(nn.Conv2d(11, 13, 3, padding="same"), g), torch.randn(2, 11, 7, 5)),
    "channels-last": lambda g: (
        keep(nn.Conv2d(11, 13, 3), g).to(memory_format=torch.channels_last),
        torch.randn(2, 11, 7, 5).to(memory_format=torch.channels_last),
    ),
    "double": lambda g: (keep(nn.Conv2d(11, 13, 3), g).double(), torch.randn(2, 11, 7, 5).double()),
    "frozen": lambda g: (
        keep(nn.Conv2d(11, 13, 3), g).requires_grad_(False),
        torch.randn(2, 11, 7, 5),
    ),
}


CASES = [(kind, "auto") for kind in CONVS]
CASES += [(kind, form) for kind in ("2d", "no-bias") for form in ("padded", "split", "dense")]
CASES += [("channels-last", "padded"), ("edges", "dense"), ("2d", "bucketed")]


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_zeros_of_a_convolution_become_blocks(kind: str, form: Any) -> None:
    conv, x = CONVS[kind](UNEQUAL)
    model = nn.Sequential(conv)
    result = check_pass(DiscoverGroups(form=form), model, (x,), sites=1)
    oracle(model, result.model, x[:, :, 1:])
    (site,) = result.report.sites
    assert site.macs is not None
    assert site.macs_after is not None
    share = {"padded": 3 * 5 * 5, "dense": 11 * 13}.get(form, macs_of(UNEQUAL))
    assert site.macs_after * 11 * 13 == site.macs * share
    held = [m.weight for m in result.model.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    taps = conv.get_parameter("weight")[0, 0].numel()
    assert sum(weight.numel() for weight in held) == share * taps
    assert not any(0 in weight.shape for weight in held)


def test_what_the_report_says() -> None:
    conv, x = CONVS["2d"](UNEQUAL)
    report = Pipeline([DiscoverGroups()])(nn.Sequential(conv), (x,)).report
    (site,) = report.sites
    assert site.before == "Conv2d 11->13, kernel 3x3"
    assert site.after == "bucketed: 2->3, 3->4, 5->5; input gather; output gather"
    assert site.notes[0] == "blocks: 2->3, 3->4, 5->5"
    notes = " ".join(site.notes)
    assert "70% of the MACs are products with 0" in notes
    assert "1 inputs are read by no filter" in notes
    assert "1 filters read nothing" in notes
    assert "likely slower" in notes
    assert report.notes == ()


def test_equal_blocks_are_one_grouped_convolution_with_batchnorm_behind_it() -> None:
    conv = keep(nn.Conv2d(9, 6, 3), EQUAL)
    norm = nn.BatchNorm2d(6)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    model = nn.Sequential(conv, norm, nn.ReLU())
    x = torch.randn(2, 9, 7, 5)
    model(x)  # statistics that differ from channel to channel
    result = check_pass(DiscoverGroups(), model, (x,), sites=1)
    oracle(model, result.model, x.flip(2))
    order = [str(n.target) for n in result.model.graph.nodes if n.op == "call_module"]
    assert order == ["0.input_gather", "0.conv", "1", "0.output_gather", "2"]
    made = result.model.get_submodule("0.conv")
    assert (type(made), made.groups) == (nn.Conv2d, 3)


def test_the_default_pipeline_leaves_its_grouped_convolution_alone() -> None:
    model = nn.Sequential(keep(nn.Conv2d(9, 6, 3), EQUAL))
    x = torch.randn(2, 9, 7, 5)
    result = groupfx.rewrite(model, (x,), passes=["discover-groups"])
    again = groupfx.rewrite(result.model, (x,))
    assert not again.report.sites
    split = groupfx.rewrite(result.model, (x,), passes=["split-grouped-conv"])
    assert len(split.report.sites) == 1
    oracle(model, split.model, x)


def test_padded_rows_are_dropped_before_batchnorm() -> None:
    conv, x = CONVS["2d"](UNEQUAL)
    model = nn.Sequential(conv, nn.BatchNorm2d(13))
    nn.init.uniform_(model[1].bias, 1, 2)
    result = check_pass(DiscoverGroups(form="padded"), model, (x,), sites=1)
    order = [str(n.target) for n in result.model.graph.nodes if n.op == "call_module"]
    assert order[-2:] == ["0.output_gather", "1"]
    oracle(model, result.model, x)


def test_batchnorm_behind_unequal_blocks_and_constants() -> None:
    conv, x = CONVS["2d"](UNEQUAL)
    model = nn.Sequential(conv, nn.BatchNorm2d(13))
    nn.init.uniform_(model[1].weight, 0.5, 2)
    nn.init.normal_(model[1].bias)
    result = check_pass(DiscoverGroups(), model, (x,), sites=1)
    oracle(model, result.model, x)
    assert isinstance(result.model.get_submodule("0.constants"), ConstantChannels)
    assert len(result.model.get_submodule("1")) == 4


# Edge cases of the weight


def test_taps_that_are_0_do_not_make_an_entry_0() -> None:
    conv = keep(nn.Conv2d(9, 6, 3), EQUAL)
    with torch.no_grad():
        conv.weight[:, :, 1:, :2] = 0
        conv.weight[1, 0] = 0  # one pair of channels inside a block, all taps
    model = nn.Sequential(conv)
    x = torch.randn(2, 9, 7, 5)
    result = check_pass(DiscoverGroups(), model, (x,), sites=1)
    oracle(model, result.model, x)
    made = result.model.get_submodule("0.conv")
    # Zeros inside a block are ordinary weights, which may be trained.
    assert type(made) is nn.Conv2d
    assert made.weight.shape == (6, 3, 3, 3)
    result.model(x).square().sum().backward()
    assert int((made.weight.grad != 0).sum()) == made.weight.numel()


def test_blocks_of_one_channel() -> None:
    conv = keep(nn.Conv2d(7, 7, 3), [([(3 * i) % 7], [i]) for i in range(7)])
    model = nn.Sequential(conv)
    x = torch.randn(2, 7, 7, 5)
    result = check_pass(DiscoverGroups(), model, (x,), sites=1)
    oracle(model, result.model, x)
    made = result.model.get_submodule("0.conv")
    assert made.groups == 7
    assert made.weight.shape == (7, 1, 3, 3)


def test_hundreds_of_blocks() -> None:
    order = torch.randperm(514).tolist()
    groups = [((2 * i, 2 * i + 1), (order[2 * i], order[2 * i + 1])) for i in range(257)]
    model = nn.Sequential(keep(nn.Conv1d(514, 514, 1), groups))
    x = torch.randn(2, 514, 3)
    result = check_pass(DiscoverGroups(), model, (x,), sites=1, saved=False)
    assert result.model.get_submodule("0.conv").groups == 257
    oracle(model, result.model, x)


def test_dead_inputs_are_not_read() -> None:
    conv = keep(nn.Conv2d(11, 5, 3), [((1, 4, 9), range(5))])
    model = nn.Sequential(conv)
    x = torch.randn(2, 11, 7, 5)
    result = check_pass(DiscoverGroups(), model, (x,), sites=1)
    x[:, [0, 2, 3, 5, 6, 7, 8, 10]] = torch.nan
    assert torch.isfinite(result.model(x)).all()
    assert torch.isnan(model(x)).any()


def test_filters_that_read_nothing_cost_nothing() -> None:
    conv = keep(nn.Conv2d(5, 7, 3, padding=1), [(range(5), (0, 3, 6))])
    model = nn.Sequential(conv, nn.ReLU())
    x = torch.randn(2, 5, 7, 5)
    result = check_pass(DiscoverGroups(), model, (x,), sites=1)
    oracle(model, result.model, x)
    assert result.model.get_submodule("0.conv").out_channels == 3
    assert result.model.get_submodule("0.constants").bias.shape == (4,)


def test_groups_inside_a_grouped_convolution() -> None:
    conv = nn.Conv2d(12, 8, 3, groups=2)
    with torch.no_grad():
        mask = torch.zeros(8, 6, dtype=torch.bool)
        mask[0:4:2, [0, 3, 5]] = True
        mask[1:4:2, [1, 2, 4]] = True
        mask[4:6, :2] = True
        mask[6:, 2:] = True
        conv.weight[~mask] = 0
    model = nn.Sequential(conv)
    x = torch.randn(2, 12, 7, 5)
    result = check_pass(DiscoverGroups(), model, (x,), sites=1)
    oracle(model, result.model, x)
    (site,) = result.report.sites
    assert site.macs * int(mask.sum()) == site.macs_after * mask.numel()
    assert "3->2" in site.notes[0]
    assert "2->2" in site.notes[0]
    assert "4->2" in site.notes[0]


def test_a_grouped_convolution_in_a_model_that_cannot_be_traced() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(12, 8, 3, groups=2)
            with torch.no_grad():
                self.conv.weight[::2, :3] = 0
                self.conv.weight[1::2, 3:] = 0

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x if float(x.sum()) > 0 else -x)

    model, x = Branching(), torch.randn(2, 12, 7, 5)
    result = check_pass(DiscoverGroups(), model, (x,), sites=1, saved=False)
    assert result.report.way == "modules"
    oracle(model, result.model, x)


def test_a_module_that_is_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = keep(nn.Conv2d(6, 6, 3, padding=1), [((0, 2, 4), (1, 2, 3)), ((1,), (0,))])
            self.norm = nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(torch.relu(self.norm(self.conv(x))))

    model = Twice()
    x = torch.randn(2, 6, 7, 5)
    result = check_pass(DiscoverGroups(), model, (x,), sites=2)
    oracle(model, result.model, x)
    assert [site.name for site in result.report.sites] == ["conv", "conv#2"]


# Linear layers


@pytest.mark.parametrize("shape", [(2, 11), (2, 3, 11), (2, 3, 2, 11)], ids=["2", "3", "4"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_zeros_of_a_linear_layer(shape: tuple[int, ...], bias: bool) -> None:
    model = nn.Sequential(keep(nn.Linear(11, 13, bias), UNEQUAL), nn.ReLU())
    x = torch.randn(shape)
    result = check_pass(DiscoverGroups(), model, (x,), sites=1)
    oracle(model, result.model, x.flip(0) + 1)
    parts = [m for m in result.model.modules() if isinstance(m, nn.Linear)]
    # The filter without inputs is in the smallest block.
    assert [(m.in_features, m.out_features) for m in parts] == [(2, 4), (3, 4), (5, 5)]
    (site,) = result.report.sites
    assert site.before == "Linear 11->13"
    assert site.macs == 11 * 13 * int(np.prod(shape[1:-1]))
    assert site.macs_after == (macs_of(UNEQUAL) + 2) * int(np.prod(shape[1:-1]))


def test_contiguous_blocks_of_a_linear_layer_need_no_gather() -> None:
    model = nn.Sequential(keep(nn.Linear(5, 7), [((0, 1), (0, 1, 2)), ((2, 3, 4), (3, 4, 5, 6))]))
    result = check_pass(DiscoverGroups(), model, (torch.randn(2, 5),), sites=1)
    assert not any(isinstance(m, ChannelGather) for m in result.model.modules())


def test_batchnorm_behind_a_linear_layer_stays() -> None:
    model = nn.Sequential(keep(nn.Linear(11, 13), UNEQUAL), nn.BatchNorm1d(13))
    nn.init.uniform_(model[1].weight, 0.5, 2)
    x = torch.randn(5, 11)
    result = check_pass(DiscoverGroups(), model, (x,), sites=1)
    oracle(model, result.model, x)


def test_many_blocks_of_a_linear_layer_are_left_unless_asked_for() -> None:
    model = nn.Sequential(keep(nn.Linear(65, 65), [([i], [i]) for i in range(65)]))
    x = torch.randn(2, 65)
    (reason,) = reasons(model, x)
    assert "65 blocks would be 65 Linear layers" in reason
    result = check_pass(DiscoverGroups(form="split"), model, (x,), sites=1, saved=False)
    oracle(model, result.model, x)


def test_functions_of_stored_weights_and_export() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = keep(nn.Conv2d(9, 6, 3), EQUAL).weight
            self.bias = nn.Parameter(torch.randn(6))
            self.head = keep(nn.Linear(6, 4, bias=False), [((0, 2), (1,)), ((1, 3), (0, 2))]).weight

        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(x, self.weight, self.bias, padding=1)
            return F.linear(x.mean((2, 3)), self.head)

    model = Functional()
    x = torch.randn(2, 9, 7, 5)
    result = check_pass(DiscoverGroups(), model, (x,), sites=2)
    oracle(model, result.model, x)
    assert set(result.model.state_dict()) == {
        "weight.conv.weight",
        "weight.conv.bias",
        *(f"head.linears.{i}.weight" for i in range(2)),
    }
    plain = nn.Sequential(keep(nn.Conv2d(9, 6, 3), EQUAL), nn.Flatten(2))
    exported = check_pass(DiscoverGroups(), plain, (x,), sites=1, way="export", saved=False)
    assert exported.report.way == "export"


# Layers that learn zeros, in their trained form


def dgconv_mask(gates: Tensor, size: int) -> Tensor:
    mask = torch.ones(1, 1)
    for k in range(size):
        mask = torch.kron(mask, gates[k] * torch.ones(2, 2) + (1 - gates[k]) * torch.eye(2))
    return mask


class Binary(torch.autograd.Function):
    """1 where positive, 0 where negative, 0.5 at 0; its gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor) -> Tensor:  # type: ignore[override]
        return (torch.sign(gates) + 1) / 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class DgConv(nn.Module):
    """A convolution under the Kronecker product of binary gates; out = in = 2 ** gates."""

    def __init__(self, gates: Sequence[float], *, straight_through: bool) -> None:
        super().__init__()
        self.size = len(gates)
        self.straight_through = straight_through
        self.conv = nn.Conv2d(2**self.size, 2**self.size, 3, padding=1)
        self.gates = nn.Parameter(torch.tensor(gates))

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gates
        gates = Binary.apply(gates) if self.straight_through else (torch.sign(gates) + 1) / 2
        weight = self.conv.weight * dgconv_mask(gates, self.size)[:, :, None, None]
        return F.conv2d(x, weight, self.conv.bias, padding=1)


DGCONV = {
    "outer": ((-0.3, 0.2, 0.1), 2, ()),
    "inner": ((0.3, 0.2, -0.1), 2, (ChannelShuffle, ChannelShuffle)),
    "middle": ((0.3, -0.2, 0.1), 2, (ChannelShuffle, ChannelShuffle)),
    "one-whole": ((-0.3, 0.2, -0.1), 4, (ChannelShuffle, ChannelShuffle)),
    "alternating": (
        (-0.1, 0.1, -0.1, 0.1, -0.1),
        8,
        (ChannelTranspose, ChannelTranspose),
    ),
    "depthwise": ((-1.0, -1.0, -1.0), 8, ()),
    "fraction": ((0.0, -0.2, 0.1), 2, (ChannelShuffle, ChannelShuffle)),
}


@pytest.mark.parametrize("straight_through", [False, True], ids=["in-the-graph", "leaf"])
@pytest.mark.parametrize(("gates", "groups", "moves"), DGCONV.values(), ids=DGCONV)
def test_dgconv_becomes_a_grouped_convolution_between_transposes(
    gates: Sequence[float], groups: int, moves: tuple[type[nn.Module], ...], straight_through: bool
) -> None:
    layer = DgConv(gates, straight_through=straight_through)
    channels = 2 ** len(gates)
    model = nn.Sequential(layer, nn.BatchNorm2d(channels), nn.ReLU())
    nn.init.uniform_(model[1].weight, 0.5, 2)
    x = torch.randn(2, channels, 5, 3)
    result = check_pass(DiscoverGroups(), model, (x,), sites=1)
    oracle(model, result.model, x.flip(3))
    convs = [m for m in result.model.modules() if isinstance(m, nn.Conv2d)]
    assert [(type(conv), conv.groups) for conv in convs] == [(nn.Conv2d, groups)]
    assert not any(isinstance(m, ChannelGather) for m in result.model.modules())
    shuffles = (ChannelShuffle, ChannelTranspose)
    assert tuple(type(m) for m in result.model.modules() if isinstance(m, shuffles)) == moves
    assert not any("gates" in key for key in result.model.state_dict())


def test_a_checkpoint_with_other_gates_is_refused() -> None:
    model = nn.Sequential(DgConv((-0.3, 0.2), straight_through=False))
    result = Pipeline([DiscoverGroups()])(model, (torch.randn(2, 4, 5, 3),))
    fine_tuned = {key: value + 0.5 * ("conv" in key) for key, value in model.state_dict().items()}
    result.state_dict_map.load_original(fine_tuned)
    model.load_state_dict(fine_tuned)
    oracle(model, result.model, torch.randn(2, 4, 5, 3))
    with pytest.raises(UsageError, match=r"0: its values .* are not those"):
        result.state_dict_map.load_original({**fine_tuned, "0.gates": torch.tensor([0.3, 0.2])})


def test_dgconv_whose_gates_are_all_1_stays() -> None:
    model = nn.Sequential(DgConv((0.3, 0.2), straight_through=True))
    assert reasons(model, torch.randn(2, 4, 5, 3)) == ["its weight holds no zeros"]


def condensed(inputs: int, outputs: int, groups: int, kept: int) -> nn.Conv2d:
    """CondenseNet's learned 1x1 after pruning: the rows i::groups share a set of inputs."""
    conv = nn.Conv2d(inputs, outputs, 1, bias=False)
    with torch.no_grad():
        for group in range(groups):
            chosen = torch.randperm(inputs)[:kept]
            mask = torch.zeros(inputs, dtype=torch.bool)
            mask[chosen] = True
            conv.weight[group::groups, ~mask] = 0
    return conv


def test_condensenet_becomes_a_gather_with_repeats_and_a_grouped_convolution() -> None:
    conv = condensed(12, 20, 4, 5)
    model = nn.Sequential(nn.BatchNorm2d(12), nn.ReLU(), conv)
    x = torch.randn(2, 12, 5, 3)
    result = check_pass(DiscoverGroups(), model, (x,), sites=1)
    oracle(model, result.model, x)
    made = result.model.get_submodule("2.conv")
    assert (made.in_channels, made.groups) == (20, 4)
    gather = result.model.get_submodule("2.input_gather")
    assert isinstance(gather, ChannelGather)
    assert len(gather.channels) == 20 > len(set(gather.channels))
    # Rows i::4 are put back in their places by a shuffle.
    assert isinstance(result.model.get_submodule("2.output_gather"), ChannelShuffle)
    assert any("several blocks" in note for note in result.report.sites[0].notes)


def test_condensenet_with_its_index_layer() -> None:
    """The mask as a buffer that is multiplied in each forward, as while it is trained."""

    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(12, 20, 1, bias=False)
            mask = (condensed(12, 20, 4, 5).weight != 0).float().detach()
            self.register_buffer("_mask", mask)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.conv.weight * self._mask)

    model = nn.Sequential(Learned())
    x = torch.randn(2, 12, 5, 3)
    result = check_pass(DiscoverGroups(), model, (x,), sites=1)
    oracle(model, result.model, x)
    assert list(result.model.state_dict()) == ["0.conv.conv.weight"]


@pytest.mark.parametrize("overlap", [False, True], ids=["apart", "overlapping"])
def test_condensenetv2_column_classes(overlap: bool) -> None:
    """Sparse feature reactivation: the inputs i::groups write to a set of outputs."""
    conv = nn.Conv2d(12, 15, 1, bias=False)
    order = torch.randperm(15)
    with torch.no_grad():
        for group in range(3):
            chosen = order[5 * group : 5 * group + 5 + 2 * overlap]
            mask = torch.zeros(15, dtype=torch.bool)
            mask[chosen] = True
            conv.weight[~mask, group::3] = 0
    model = nn.Sequential(conv)
    x = torch.randn(2, 12, 5, 3)
    result = check_pass(DiscoverGroups(), model, (x,), sites=1)
    oracle(model, result.model, x)
    (site,) = result.report.sites
    entries = int((conv.weight != 0).sum())
    assert site.macs_after == entries * 5 * 3


# Masks that are kept beside the weight


def blocks_mask(*shape: int) -> Tensor:
    mask = torch.zeros(shape)
    mask[:2, :4] = 1
    mask[2:, 4:] = 1
    return mask


class Masked(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def pruned(layer: nn.Module, mask: Tensor) -> nn.Module:
    prune.custom_from_mask(layer, "weight", mask)
    return layer


def parametrized(layer: nn.Module, mask: Tensor) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Masked(mask))
    return layer


@pytest.mark.parametrize("hold", [pruned, parametrized], ids=["pruned", "parametrized"])
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_masks_that_hooks_and_parametrisations_multiply(
    hold: Callable[[nn.Module, Tensor], nn.Module], kind: str
) -> None:
    if kind == "conv":
        layer = hold(nn.Conv2d(7, 5, 3, padding_mode="reflect", padding=1), blocks_mask(5, 7, 3, 3))
        x = torch.randn(2, 7, 5, 4)
    else:
        layer, x = hold(nn.Linear(7, 5), blocks_mask(5, 7)), torch.randn(2, 7)
    model = nn.Sequential(layer, nn.ReLU())
    result = check_pass(DiscoverGroups(), model, (x,), sites=1)
    oracle(model, result.model, x)
    keys = list(result.model.state_dict())
    assert not any("mask" in key or "orig" in key for key in keys)
    with pytest.raises(UsageError, match="fill"):
        result.state_dict_map.to_original()


# Refusals

Refused = tuple[Callable[[], nn.Module], Tensor, str]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = keep(nn.Conv2d(9, 9, 1), EQUAL)
        self.two = nn.Conv2d(9, 9, 1)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.two(x)


class PerSample(nn.Module):
    """Dynamic groups: each sample has a mask of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        mask = (x.mean((0, 2, 3)) > 0).float()
        return F.conv2d(x, self.conv.weight * mask[None, :, None, None])


class ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(9, 6, 1)
        keep(self.conv, EQUAL)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.conv2d(x, self.conv.weight), self.conv.weight.square().sum()


def hooked() -> nn.Module:
    conv = keep(nn.Conv2d(9, 6, 1), EQUAL)
    conv.weight.register_hook(lambda gradient: 2 * gradient)
    return nn.Sequential(conv)


IMAGE = torch.randn(2, 9, 5, 3)
REFUSED: dict[str, Refused] = {
    "no-zeros": (lambda: nn.Sequential(nn.Conv2d(9, 6, 1)), IMAGE, "holds no zeros"),
    "all-zero": (lambda: nn.Sequential(keep(nn.Conv2d(9, 6, 1), [])), IMAGE, "all its weights"),
    "one-block": (
        lambda: nn.Sequential(keep(nn.Conv2d(9, 6, 1), [(range(9), range(6)), ([0], [0])])),
        IMAGE,
        "holds no zeros",
    ),
    "scattered": (
        lambda: nn.Sequential(
            prune.remove(prune.random_unstructured(nn.Conv2d(9, 6, 3), "weight", 0.3), "weight")
        ),
        IMAGE,
        "no channel can be left out",
    ),
    "too-little": (
        lambda: nn.Sequential(keep(nn.Conv2d(9, 12, 1), [(range(9), range(1, 12)), ([8], [0])])),
        IMAGE,
        "no channel can be left out",
    ),
    "one-dead-input": (
        lambda: nn.Sequential(keep(nn.Conv2d(9, 6, 1), [(range(1, 9), range(6))])),
        IMAGE,
        r"zeros \(11% of the weight\) save 11\.1% of its MACs, less than min_saving=0\.2",
    ),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(9, 6, 1)), IMAGE, "transposed"),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(9, 18, 1, groups=9)), IMAGE, "depthwise"),
    "tied": (Tied, IMAGE, "its weight is shared with another module"),
    "hooked": (hooked, IMAGE, "it has hooks .*remove them"),
    "per-sample": (PerSample, IMAGE[:, :6], "its weight depends on the input"),
    "read-twice": (ReadTwice, IMAGE, "its weight is used elsewhere too"),
    "unbatched": (
        lambda: nn.Sequential(keep(nn.Conv2d(9, 6, 1), EQUAL)),
        IMAGE[0],
        r"no batch axis; add one with unsqueeze\(0\)",
    ),
    "weight-norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(9, 6, 1))),
        IMAGE,
        "no stored tensor times a fixed mask",
    ),
    "mask-by-tap": (
        lambda: nn.Sequential(pruned(nn.Conv2d(9, 6, 3), (torch.rand(6, 9, 3, 3) > 0.5).float())),
        IMAGE,
        r"differs from tap to tap .*prune\.remove",
    ),
    "linear-mask-inside-blocks": (
        lambda: nn.Sequential(
            pruned(
                nn.Linear(7, 5),
                blocks_mask(5, 7) - F.one_hot(torch.tensor([9, 9, 5, 9, 9]), 10)[:, :7],
            )
        ),
        torch.randn(2, 7),
        "which a Linear cannot keep",
    ),
}


@pytest.mark.parametrize(("make", "x", "words"), REFUSED.values(), ids=REFUSED)
def test_sites_that_are_left_say_why(make: Callable[[], nn.Module], x: Tensor, words: str) -> None:
    found = reasons(make(), x, min_saving=0.2)
    assert found
    assert all(re.search(words, reason) for reason in found), found


def test_options() -> None:
    model = nn.Sequential(keep(nn.Conv2d(9, 6, 1), EQUAL), keep(nn.Conv2d(6, 9, 1), [((0,), (0,))]))
    given = make_pass("discover-groups:form=split,only=0,min_saving=0.5,max_blocks=3")
    assert given == DiscoverGroups(form="split", only=("0",), min_saving=0.5, max_blocks=3)
    result = check_pass(given, model, (IMAGE,), sites=1, skipped=1)
    assert len(result.model.get_submodule("0.convs")) == 3
    assert reasons(nn.Sequential(model[0]), IMAGE, min_saving=0.7)[0].endswith(
        "save 66.7% of its MACs, less than min_saving=0.7"
    )
    assert reasons(nn.Sequential(model[0]), IMAGE, skip=("0",)) == ["named by skip=0"]
    with pytest.raises(RewriteError, match="1 cannot be rewritten: form=dense"):
        groupfx.rewrite(
            nn.Sequential(nn.Flatten(), keep(nn.Linear(9, 6), EQUAL)),
            (torch.randn(2, 9),),
            passes=["discover-groups:form=dense,only=1"],
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": -1.0}, "threshold=-1.0"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"min_saving": 1.0}, "min_saving=1.0"),
        ({"max_blocks": 0}, "max_blocks=0"),
    ],
    ids=["negative", "nan", "all", "none"],
)
def test_options_out_of_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        DiscoverGroups(**options)


# State


def test_a_checkpoint_that_has_weights_where_there_were_zeros_is_refused() -> None:
    conv, x = CONVS["2d"](UNEQUAL)
    model = nn.Sequential(conv)
    result = Pipeline([DiscoverGroups()])(model, (x,))
    state = {key: 3 * value for key, value in model.state_dict().items()}
    result.state_dict_map.load_original(state)
    model.load_state_dict(state)
    oracle(model, result.model, x)
    assert torch.equal(result.state_dict_map.to_original()["0.weight"], state["0.weight"])
    # Zeros of its own inside a block are no matter, entries outside are.
    state["0.weight"][1, 0] = 0
    result.state_dict_map.load_original(state)
    state["0.weight"][6, 4, 0, 0] = 1e-9
    with pytest.raises(UsageError, match=r"0\.weight: 1 elements are not 0"):
        result.state_dict_map.load_original(state)


def test_after_another_pass() -> None:
    conv = nn.Conv2d(12, 8, 3, groups=2)
    with torch.no_grad():
        conv.weight[::2, :3] = 0
        conv.weight[1::2, 3:] = 0
    model = nn.Sequential(conv, keep(nn.Conv2d(8, 6, 1), [((0, 3), (1,)), ((2, 4), (5, 0))]))
    x = torch.randn(2, 12, 7, 5)
    result = Pipeline([SplitGroupedConv(), DiscoverGroups()])(model, (x,))
    assert [site.name for site in result.report.sites] == ["0", "1"]
    assert [site.name for site in result.report.skipped] == ["0.0", "0.1"]
    assert all("run discover-groups first" in site.reason for site in result.report.skipped)
    oracle(model, result.model, x)
    back = result.state_dict_map.to_original()
    assert all(torch.equal(back[key], value) for key, value in model.state_dict().items())


# A threshold


def nearly(noise: float) -> tuple[nn.Module, Tensor]:
    conv, x = CONVS["2d"](UNEQUAL)
    with torch.no_grad():
        small = (2 * torch.rand_like(conv.weight) - 1) * noise
        conv.weight.copy_(torch.where(conv.weight == 0, small, conv.weight))
    return nn.Sequential(conv, nn.ReLU()), x


def test_small_weights_are_kept_by_default() -> None:
    model, x = nearly(1e-6)
    assert reasons(model, x) == ["its weight holds no zeros"]


def test_a_threshold_reports_the_error_that_it_introduces() -> None:
    model, x = nearly(1e-4)
    result = Pipeline([DiscoverGroups(threshold=1e-4)])(model, (x,))
    (site,) = result.report.sites
    assert site.notes[0] == "blocks: 2->3, 3->4, 5->5"
    # The same, computed here.
    zeroed = copy.deepcopy(model)
    keep(zeroed[0], UNEQUAL)
    oracle(zeroed, result.model, x)
    weight = model[0].weight.detach().double()
    lost = weight - zeroed[0].weight.detach().double()
    share = float(lost.norm() / weight.norm())
    worst = float(lost.abs().flatten(1).sum(1).max())
    count = int((lost != 0).sum())
    note = site.notes[-1]
    assert note.startswith(f"threshold=0.0001: {count} entries of up to ")
    assert f" are set to 0, {share:.3g} of the weight's norm" in note
    assert f"by more than {worst:.3g} times" in note
    with torch.no_grad():
        before, after = model(x).double(), zeroed(x).double()
    error = float((after - before).abs().max() / before.abs().max())
    assert 0 < error < 1e-2
    assert f"by at most {error:.3g} of their largest value" in result.report.notes[-1]
    assert float((after - before).abs().max()) <= worst * float(x.abs().max()) * (1 + 1e-6)
    # The original itself is no checkpoint of the rewritten model any more.
    with pytest.raises(UsageError, match=f"{count} elements are not 0"):
        result.state_dict_map.load_original(model.state_dict())
    result.state_dict_map.load_original(zeroed.state_dict())
    assert not torch.equal(model[0].weight, zeroed[0].weight), "the model given is not changed"


def test_a_threshold_changes_nothing_where_there_are_only_zeros() -> None:
    conv, x = CONVS["2d"](UNEQUAL)
    result = check_pass(DiscoverGroups(threshold=1e-9), nn.Sequential(conv), (x,), sites=1)
    assert result.report.notes == ()
    assert not any("threshold" in note for note in result.report.sites[0].notes)


# Negative controls: the check must see these


@dataclasses.dataclass(frozen=True)
class Sloppy(DiscoverGroups):
    """Takes small weights for zeros and does not say so."""

    def rewrite(self, site: Site, description: Any) -> Rewritten:
        return super().rewrite(site, dataclasses.replace(description, zeroed={}))


@dataclasses.dataclass(frozen=True)
class Excuse(DiscoverGroups):
    """Says that it set everything to 0, which would excuse anything."""

    def rewrite(self, site: Site, description: Any) -> Rewritten:
        zeroed = {key: torch.ones_like(mask) for key, mask in description.zeroed.items()}
        return super().rewrite(site, dataclasses.replace(description, zeroed=zeroed))


@dataclasses.dataclass(frozen=True)
class Shifted(DiscoverGroups):
    """Reads the neighbours of the channels that it should read."""

    def rewrite(self, site: Site, description: Any) -> Rewritten:
        picks = description.picks
        gather = picks.form.input_gather
        moved = tuple((channel + 1) % site.spec.in_channels for channel in gather.indices)
        form = dataclasses.replace(
            picks.form, input_gather=dataclasses.replace(gather, indices=moved)
        )
        picks = dataclasses.replace(picks, form=form)
        return super().rewrite(site, dataclasses.replace(description, picks=picks))


@pytest.mark.parametrize("wrong", [Sloppy, Excuse, Shifted])
def test_wrong_rewrites_are_caught(wrong: type[DiscoverGroups]) -> None:
    model, x = nearly(1e-6)
    with pytest.raises(MismatchError, match="0 does not compute what it did"):
        Pipeline([wrong(threshold=1e-4)])(model, (x,))
