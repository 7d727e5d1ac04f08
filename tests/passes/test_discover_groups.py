"""`discover-groups`: zeros in any dense layer become blocks.

The oracle is the model itself in float64 with its zeros in place, run by torch, and block sizes
that the tests know because they put the zeros there.
"""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import groupfx
from groupfx import Pipeline
from groupfx.errors import RewriteError, UsageError
from groupfx.nn import ChannelGather, ConstantChannels
from groupfx.passes import DiscoverGroups, SplitGroupedConv, make_pass
from groupfx.testing import check_pass
from tests.passes.sparse_layers import CONVS, EQUAL, UNEQUAL, keep, macs_of, oracle


def reasons(model: nn.Module, x: Tensor, **options: Any) -> list[str]:
    report = Pipeline([DiscoverGroups(**options)])(model, (x,)).report
    assert not report.sites
    return [site.reason for site in report.skipped]


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
    assert site.notes[0] == "3 blocks: 2->3, 3->4, 5->5"
    notes = " ".join(site.notes)
    assert "70% of the MACs are products with 0" in notes
    assert "1 input is read by no filter" in notes
    assert "1 filter is without inputs: bias alone" in notes
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
    class FlipsBySign(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(12, 8, 3, groups=2)
            with torch.no_grad():
                self.conv.weight[::2, :3] = 0
                self.conv.weight[1::2, 3:] = 0

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x if float(x.sum()) > 0 else -x)

    model, x = FlipsBySign(), torch.randn(2, 12, 7, 5)
    result = check_pass(DiscoverGroups(), model, (x,), sites=1, saved=False)
    assert result.report.way == "modules"
    oracle(model, result.model, x)


def test_a_module_that_is_called_twice() -> None:
    class ConvNormConv(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = keep(nn.Conv2d(6, 6, 3, padding=1), [((0, 2, 4), (1, 2, 3)), ((1,), (0,))])
            self.norm = nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(torch.relu(self.norm(self.conv(x))))

    model = ConvNormConv()
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
    class ConvAndLinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = keep(nn.Conv2d(9, 6, 3), EQUAL).weight
            self.bias = nn.Parameter(torch.randn(6))
            self.head = keep(nn.Linear(6, 4, bias=False), [((0, 2), (1,)), ((1, 3), (0, 2))]).weight

        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(x, self.weight, self.bias, padding=1)
            return F.linear(x.mean((2, 3)), self.head)

    model = ConvAndLinear()
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


def test_options() -> None:
    image = torch.randn(2, 9, 5, 3)
    model = nn.Sequential(keep(nn.Conv2d(9, 6, 1), EQUAL), keep(nn.Conv2d(6, 9, 1), [((0,), (0,))]))
    given = make_pass("discover-groups:form=split,only=0,min_saving=0.5,max_blocks=3")
    assert given == DiscoverGroups(form="split", only=("0",), min_saving=0.5, max_blocks=3)
    result = check_pass(given, model, (image,), sites=1, skipped=1)
    assert len(result.model.get_submodule("0.convs")) == 3
    assert reasons(nn.Sequential(model[0]), image, min_saving=0.7)[0].endswith(
        "save 66.7% of its MACs, less than min_saving=0.7"
    )
    assert reasons(nn.Sequential(model[0]), image, skip=("0",)) == ["named by skip=0"]
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
