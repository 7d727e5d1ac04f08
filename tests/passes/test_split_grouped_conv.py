"""`split-grouped-conv`: what it makes of every kind of convolution, and what it leaves."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import groupfx
from groupfx.passes import SplitGroupedConv
from groupfx.testing import check_pass

CONVS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.Module]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
SIZES = {1: (13,), 2: (11, 7), 3: (7, 5, 6)}


def dense_twin(conv: Any) -> nn.Module:
    """The oracle: one dense convolution whose weight is block-diagonal."""
    transposed = isinstance(conv, tuple(TRANSPOSED.values()))
    kind = type(conv)
    extra = {"output_padding": conv.output_padding} if transposed else {}
    dense = kind(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        dilation=conv.dilation,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
        **extra,
    ).to(conv.weight.dtype)
    rows, columns = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    with torch.no_grad():
        dense.weight.zero_()
        for group in range(conv.groups):
            ins = slice(group * rows, (group + 1) * rows)
            outs = slice(group * columns, (group + 1) * columns)
            if transposed:
                dense.weight[ins, outs] = conv.weight[ins]
            else:
                dense.weight[outs, ins] = conv.weight[outs]
        if conv.bias is not None:
            dense.bias.copy_(conv.bias)
    return dense


def assert_like_dense(conv: nn.Module, x: Tensor, split: nn.Module) -> None:
    """Within rounding of the block-diagonal convolution, in float64."""
    expected = dense_twin(conv.double())(x.double())
    found = split.double()(x.double())
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()


def arguments() -> list[tuple[str, int, dict[str, Any]]]:
    """Convolution arguments, one thing at a time in every dimension, and some together."""
    cases: list[tuple[str, int, dict[str, Any]]] = []
    for dims in CONVS:
        uneven = (3, 2, 4)[:dims]
        alone: dict[str, dict[str, Any]] = {
            "plain": {},
            "no-bias": {"bias": False},
            "stride": {"stride": 2},
            "dilation": {"dilation": 2},
            "padding": {"padding": 1},
            "padding-tuple": {"padding": (2, 0, 1)[:dims]},
            "same": {"padding": "same"},
            "same-even": {"padding": "same", "kernel_size": 4, "dilation": 2},
            "valid": {"padding": "valid"},
            "rectangular": {"kernel_size": uneven},
            "pointwise": {"kernel_size": 1},
            "reflect": {"padding": 1, "padding_mode": "reflect"},
            "replicate": {"padding": 2, "padding_mode": "replicate"},
            "circular": {"padding": 1, "padding_mode": "circular"},
            "same-circular": {"padding": "same", "padding_mode": "circular"},
            "all": {
                "kernel_size": uneven,
                "stride": (2, 1, 2)[:dims],
                "padding": (1, 2, 1)[:dims],
                "dilation": (1, 2, 1)[:dims],
            },
        }
        cases += [(f"{dims}d-{name}", dims, options) for name, options in alone.items()]
    return cases


GRID = arguments()


@pytest.mark.parametrize(("dims", "options"), [c[1:] for c in GRID], ids=[c[0] for c in GRID])
def test_the_grid_of_conv_arguments(dims: int, options: dict[str, Any]) -> None:
    conv = CONVS[dims](6, 9, **{"kernel_size": 3, "groups": 3, **options})
    x = torch.randn(2, 6, *SIZES[dims])
    result = check_pass(SplitGroupedConv(), nn.Sequential(conv), (x,), sites=1, saved=False)
    assert_like_dense(conv, x, result.model)


TRANSPOSED_GRID: dict[str, dict[str, Any]] = {
    "plain": {},
    "no-bias": {"bias": False},
    "stride": {"stride": 3},
    "output-padding": {"stride": 3, "output_padding": 2, "padding": 1},
    "dilation": {"dilation": 2, "padding": 2},
}


@pytest.mark.parametrize("dims", TRANSPOSED)
@pytest.mark.parametrize("options", TRANSPOSED_GRID.values(), ids=TRANSPOSED_GRID)
def test_the_grid_of_transposed_conv_arguments(dims: int, options: dict[str, Any]) -> None:
    conv = TRANSPOSED[dims](6, 9, **{"kernel_size": 3, "groups": 3, **options})
    x = torch.randn(2, 6, *SIZES[dims])
    result = check_pass(SplitGroupedConv(), nn.Sequential(conv), (x,), sites=1, saved=False)
    assert_like_dense(conv, x, result.model)


@pytest.mark.parametrize("bias", [True, False])
def test_a_model_that_is_one_convolution(bias: bool) -> None:
    conv = nn.Conv2d(6, 9, 3, groups=3, bias=bias)
    x = torch.randn(2, 6, 11, 7)
    result = check_pass(SplitGroupedConv(), conv, (x,), sites=1)
    assert_like_dense(conv, x, result.model)


class OutputSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(6, 10, 3, stride=2, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x, output_size=(16, 11))


def test_output_size_reaches_every_branch() -> None:
    x = torch.randn(2, 6, 7, 5)
    model = OutputSize()
    result = check_pass(SplitGroupedConv(), model, (x,), sites=1)
    assert result.model(x).shape == model(x).shape == (2, 10, 16, 11)


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.spectral_norm])
def test_a_transposed_conv_whose_weight_is_made_anew_is_split_in_its_class(norm: Any) -> None:
    model = nn.Sequential(norm(nn.ConvTranspose1d(6, 10, 4, 2, groups=2))).eval()
    x = torch.randn(2, 6, 7)
    result = groupfx.rewrite(model, (x,), way="modules")
    assert len(result.report.sites) == 1
    torch.testing.assert_close(result.model(x), model(x))


class ConvFunction(nn.Module):
    """A grouped convolution as a function call, its tensors in the attributes `w` and `b`."""

    def __init__(self, call: Callable[..., Tensor], shape: tuple[int, ...], buffer: bool) -> None:
        super().__init__()
        self.call = call
        weight, bias = torch.randn(shape), torch.randn(9)
        if buffer:
            self.register_buffer("w", weight)
            self.register_buffer("b", bias)
        else:
            self.w, self.b = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, self.w, self.b)


FUNCTIONS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    "conv1d-positional": (lambda x, w, b: F.conv1d(x, w, b, 1, 1, 1, 3), (9, 2, 3)),
    "conv2d-keywords": (
        lambda x, w, b: F.conv2d(input=x, weight=w, bias=b, padding=(1, 2), groups=3),
        (9, 2, 3, 3),
    ),
    "conv2d-same": (lambda x, w, b: torch.conv2d(x, w, b, padding="same", groups=3), (9, 2, 3, 3)),
    "conv3d": (lambda x, w, b: torch.conv3d(x, w, b, groups=3), (9, 2, 3, 3, 3)),
    "transposed-1d": (
        lambda x, w, b: F.conv_transpose1d(x, w, b, 2, 1, 1, 3),
        (6, 3, 3),
    ),
    "transposed-2d": (
        lambda x, w, b: F.conv_transpose2d(x, w, b, groups=3, dilation=2),
        (6, 3, 3, 3),
    ),
    "convolution": (
        lambda x, w, b: torch.convolution(x, w, b, [1, 1], [1, 1], [1, 1], False, [0, 0], 3),
        (9, 2, 3, 3),
    ),
    "no-bias": (lambda x, w, b: F.conv2d(x, w, groups=3) + b[:, None, None], (9, 2, 3, 3)),
}


@pytest.mark.parametrize("way", ["trace", "export"])
@pytest.mark.parametrize("buffer", [False, True], ids=["parameters", "buffers"])
@pytest.mark.parametrize(("call", "shape"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_functional_calls(
    call: Callable[..., Tensor], shape: tuple[int, ...], buffer: bool, way: str
) -> None:
    model = ConvFunction(call, shape, buffer).eval()
    x = torch.randn(2, 6, *SIZES[len(shape) - 2])
    result = check_pass(SplitGroupedConv(), model, (x,), sites=1, way=way, again=0)
    assert (result.model(x) - model(x)).abs().max() <= 1e-4
    kinds = {type(module) for module in result.model.modules()}
    assert kinds & {*CONVS.values(), *TRANSPOSED.values()}, "its weights should have become modules"


# Options


def two_kinds() -> nn.Module:
    """A grouped, a depthwise, and a depthwise convolution with multiplier, in a row."""
    return nn.Sequential(
        nn.Conv2d(6, 6, 3, groups=2),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Conv2d(6, 12, 1, groups=6),
    )


X = torch.randn(2, 6, 11, 7)

OPTIONS: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "default": ({}, ["0", "3"], ["2-d depthwise is left alone"]),
    "depthwise-split": ({"depthwise": "split"}, ["0", "2", "3"], []),
    "depthwise-keep": ({"depthwise": "keep"}, ["0"], ["depthwise=keep", "depthwise=keep"]),
    "max-groups": (
        {"max_groups": 5, "depthwise": "split"},
        ["0"],
        ["6 groups would make 6 branches", "6 groups would make 6 branches"],
    ),
    "only": ({"only": ("3",)}, ["3"], ["not among only=3", "not among only=3"]),
    "skip": ({"skip": ("0", "[01]")}, ["3"], ["named by skip=0,[01]", "depthwise"]),
}


@pytest.mark.parametrize(("options", "taken", "reasons"), OPTIONS.values(), ids=OPTIONS)
def test_options(options: dict[str, Any], taken: list[str], reasons: list[str]) -> None:
    result = check_pass(
        SplitGroupedConv(**options), two_kinds(), (X,), sites=len(taken), saved=False
    )
    assert [site.name for site in result.report.sites] == taken
    for skipped, reason in zip(result.report.skipped, reasons, strict=True):
        assert reason in skipped.reason


@pytest.mark.parametrize("dims", CONVS)
def test_depthwise_is_left_alone_in_one_and_two_dimensions_only(dims: int) -> None:
    model = nn.Sequential(CONVS[dims](6, 6, 3, groups=6))
    x = torch.randn(2, 6, *SIZES[dims])
    taken = dims == 3
    check_pass(SplitGroupedConv(), model, (x,), sites=int(taken), skipped=int(not taken))


def test_batchnorm_goes_into_the_branches_or_stays_behind() -> None:
    inside = check_pass(SplitGroupedConv(), two_kinds(), (X,), sites=2)
    keys = set(inside.model.state_dict())
    assert {"1.0.running_mean", "1.1.weight"} <= keys
    assert "1.weight" not in keys
    after = check_pass(SplitGroupedConv(batchnorm="after"), two_kinds(), (X,), sites=2)
    assert "1.weight" in after.model.state_dict()
    assert isinstance(after.model.get_submodule("1"), nn.BatchNorm2d)


class ConvOfTwoUsers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(6, 6, 3, groups=2), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y


def test_a_batchnorm_that_must_stay_is_said() -> None:
    result = check_pass(SplitGroupedConv(), ConvOfTwoUsers(), (X,), sites=1)
    (note,) = result.report.sites[0].notes
    assert note.startswith("BatchNorm stays after the concat: the output of the convolution has 1")


# What survives


def test_names_and_form_of_the_emitted_graph() -> None:
    result = groupfx.rewrite(nn.Sequential(nn.Conv2d(6, 4, 3, groups=2)).eval(), (X,))
    nodes = [(node.op, node.target) for node in result.model.graph.nodes]
    import operator

    assert nodes == [
        ("placeholder", "input"),
        ("call_function", operator.getitem),
        ("call_module", "0.0"),
        ("call_function", operator.getitem),
        ("call_module", "0.1"),
        ("call_function", torch.cat),
        ("output", "output"),
    ]
    slices = [n.args[1] for n in result.model.graph.nodes if n.target is operator.getitem]
    assert slices == [(slice(None), slice(0, 3)), (slice(None), slice(3, 6))]
    cat = next(n for n in result.model.graph.nodes if n.target is torch.cat)
    assert dict(cat.kwargs) == {"dim": 1}
    branches = [result.model.get_submodule(name) for name in ("0.0", "0.1")]
    assert [type(branch) for branch in branches] == [nn.Conv2d, nn.Conv2d]
    assert [(b.in_channels, b.out_channels, b.groups) for b in branches] == [(3, 2, 1)] * 2


FORMATS = {
    "float64": lambda m: m.double(),
    "float16": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "channels-last": lambda m: m.to(memory_format=torch.channels_last),
    "frozen": lambda m: m.requires_grad_(False),
    "train": lambda m: m.train(),
}


@pytest.mark.parametrize("change", FORMATS.values(), ids=FORMATS)
def test_dtype_mode_and_format_survive(change: Callable[[nn.Module], nn.Module]) -> None:
    model = change(two_kinds().eval())
    dtype = next(model.parameters()).dtype
    result = check_pass(SplitGroupedConv(), model, (X.to(dtype),), sites=2)
    first = result.model.get_submodule("0.0").weight
    assert first.dtype == dtype
    original = model.get_submodule("0").weight
    channels_last = torch.channels_last
    assert first.is_contiguous(memory_format=channels_last) == original.is_contiguous(
        memory_format=channels_last
    )


def test_fields_that_the_user_set_survive() -> None:
    model = two_kinds()
    model[0].note = "mine"
    model[0].eval()
    branch = groupfx.rewrite(model, (X,)).model.get_submodule("0.1")
    assert branch.note == "mine"
    assert not branch.training
    assert groupfx.rewrite(model, (X,)).model.get_submodule("1.0").training


class Tied(nn.Module):
    """Two convolutions of one weight, one of them with another stride."""

    def __init__(self, second_groups: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv2d(6, 6, 3, groups=2, padding=1)
        shape = 3 * second_groups
        self.second = nn.Conv2d(shape, 6, 3, groups=second_groups, stride=2)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)[:, : self.second.in_channels])


def test_tied_weights_stay_tied() -> None:
    result = check_pass(SplitGroupedConv(), Tied(), (X,), sites=2)
    for name in "01":
        first = result.model.get_submodule(f"first.{name}").weight
        assert first is result.model.get_submodule(f"second.{name}").weight


def test_a_weight_that_is_cut_in_two_ways_stays_whole() -> None:
    class CutTwice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(6, 1, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            y = F.conv2d(x[:, :2], self.w, groups=2)
            return y + F.conv2d(x[:, :3], self.w, groups=3)

    model = CutTwice()
    result = check_pass(SplitGroupedConv(depthwise="split"), model, (X,), sites=2)
    assert list(result.model.state_dict()) == ["w"]
    notes = [note for site in result.report.sites for note in site.notes]
    assert all("cut it differently" in note for note in notes)
    assert len(notes) == 2


def test_one_module_called_twice_shares_its_branches() -> None:
    class ConvTwice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 3, groups=3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x))

    result = check_pass(SplitGroupedConv(), ConvTwice(), (X,), sites=2)
    assert [site.name for site in result.report.sites] == ["conv", "conv#2"]
    assert len(list(result.model.conv.children())) == 3
    targets = [n.target for n in result.model.graph.nodes if n.op == "call_module"]
    assert targets == ["conv.0", "conv.1", "conv.2"] * 2


# Gradients: each branch's is the slice of the original's


def test_gradients_are_slices_of_the_original_gradients() -> None:
    model = nn.Sequential(nn.Conv2d(6, 6, 3), nn.Conv2d(6, 9, 3, groups=3), nn.Conv2d(9, 2, 1))
    model.double()
    result = groupfx.rewrite(model, (X.double(),))
    for m in (model, result.model):
        m(X.double()).square().sum().backward()
    grouped = model[1]
    for group in range(3):
        branch = result.model.get_submodule(f"1.{group}")
        rows = slice(3 * group, 3 * group + 3)
        scale = grouped.weight.grad.abs().max()
        assert (branch.weight.grad - grouped.weight.grad[rows]).abs().max() <= 1e-12 * scale
        scale = grouped.bias.grad.abs().max()
        assert (branch.bias.grad - grouped.bias.grad[rows]).abs().max() <= 1e-12 * scale
    for name in ("0.weight", "0.bias", "2.weight"):
        mine, theirs = result.model.get_parameter(name).grad, model.get_parameter(name).grad
        assert (mine - theirs).abs().max() <= 1e-12 * theirs.abs().max()


def test_three_steps_of_adam_are_the_same_after_the_split() -> None:
    model = two_kinds().double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x = X.double()
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    result = groupfx.rewrite(model, (x,))
    continued = result.state_dict_map.convert_optimizer(optimizer, model)
    for _ in range(3):
        for m, o in ((model, optimizer), (result.model, continued)):
            o.zero_grad()
            m(x).square().mean().backward()
            o.step()
    back = result.state_dict_map.to_original()
    for key, value in model.state_dict().items():
        assert (back[key] - value).abs().max() <= 1e-9


@given(
    groups=st.integers(2, 7),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    transposed=st.booleans(),
    bias=st.booleans(),
)
def test_any_numbers_of_channels(
    groups: int, inputs: int, outputs: int, transposed: bool, bias: bool
) -> None:
    kind = nn.ConvTranspose1d if transposed else nn.Conv1d
    conv = kind(groups * inputs, groups * outputs, 2, groups=groups, bias=bias)
    x = torch.randn(2, groups * inputs, 5)
    pass_ = SplitGroupedConv(depthwise="split")
    result = check_pass(pass_, nn.Sequential(conv), (x,), sites=1, saved=False)
    assert result.report.sites[0].branches == groups
    assert_like_dense(conv, x, result.model)
