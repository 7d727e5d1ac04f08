"""Which layers are frozen, which are refused, and what the report says of them."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import groupfx
from groupfx.errors import UsageError
from groupfx.nn import Flgc2d
from groupfx.passes import FreezeLearnedGroups
from groupfx.testing import check_pass
from tests.models.frozen_cases import (
    INPUT_MAP,
    OUTPUT_MAP,
    Layer,
    assert_close,
    mask_of,
    masked_conv,
    run64,
)
from tests.passes.foreign_flgc import ForeignFlgc, WithTemperature

IN, OUT = tuple("bacabcb"), tuple("abbcabcaabc")
CASE = Layer(IN, OUT)
X = CASE.example()


def foreign(kind: type[ForeignFlgc] = ForeignFlgc, **conv: Any) -> ForeignFlgc:
    layer = kind(7, 11, 3, 5, **conv)
    CASE.assign(layer)
    return layer.eval()


@pytest.mark.parametrize("form", ["auto", "dense", "padded", "split"])
def test_a_class_that_groupfx_never_saw_is_frozen(form: Any) -> None:
    layer = foreign(stride=2, padding=1)
    result = check_pass(FreezeLearnedGroups(form=form), nn.Sequential(layer), X, sites=1)
    assert_close(run64(result.model, X), CASE.expected(layer, X))


def test_a_subclass_is_frozen_and_the_tensors_of_its_own_are_required_as_they_were() -> None:
    layer = foreign(WithTemperature)
    model = nn.Sequential(layer)
    result = check_pass(FreezeLearnedGroups(), model, X, sites=1)
    assert_close(run64(result.model, X), CASE.expected(layer, X))
    other = copy.deepcopy(model.state_dict())
    other["0.temperature"].fill_(2)
    with pytest.raises(UsageError, match=r"0\.temperature|0: its values"):
        result.state_dict_map.load_original(other)


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_a_padding_mode_that_forward_ignores_is_ignored(mode: str) -> None:
    layer = foreign(padding=2, padding_mode=mode)
    result = check_pass(FreezeLearnedGroups(), nn.Sequential(layer), X, sites=1)
    conv = copy.deepcopy(layer.conv)
    conv.padding_mode = "zeros"
    assert_close(run64(result.model, X), masked_conv(conv, mask_of(IN, OUT), X))
    (site,) = result.report.sites
    assert f"padded with zeros, as its forward does (its conv says '{mode}')" in site.notes


class Louder(ForeignFlgc):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + 2**-21)


class Softer(ForeignFlgc):
    """A mask that is not binary: the probabilities themselves."""

    def mask(self) -> Tensor:
        maps = (getattr(self, name).softmax(1) for name in (OUTPUT_MAP, INPUT_MAP))
        outputs, inputs = maps
        return (outputs @ inputs.T)[:, :, None, None]


class GatedPerSample(ForeignFlgc):
    """Each sample has groups of its own."""

    def forward(self, x: Tensor) -> Tensor:
        gate = (x.mean((2, 3), keepdim=True) > 0).to(x.dtype)
        return super().forward(x * gate)


class NoisyMask(ForeignFlgc):
    def mask(self) -> Tensor:
        return super().mask() * torch.bernoulli(torch.full((11, 7, 1, 1), 0.5))


class NoisyInTraining(NoisyMask):
    def mask(self) -> Tensor:
        return super().mask() if self.training else ForeignFlgc.mask(self)


class Fails(ForeignFlgc):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != X.shape[-1]:
            raise ValueError("expected images of 8 columns")
        return super().forward(x)


COMPUTES: dict[str, tuple[type[ForeignFlgc], str]] = {
    "louder": (Louder, "computes something else: its output differs .* by 4.8e-07 of its largest"),
    "mask-not-binary": (Softer, r"computes something else: its output differs .* by 0\.\d+ of"),
    "per-sample": (
        GatedPerSample,
        r"its mask depends on the input.* by 0\.\d+ of its largest value",
    ),
    "random": (NoisyMask, r"its mask is not static.* by \d+\.?\d* of its largest value"),
    "random-in-training": (NoisyInTraining, "something else in train mode: its output differs"),
    "fails": (Fails, "it cannot be run on .*: ValueError: expected images of 8 columns"),
}


@pytest.mark.parametrize(("kind", "reason"), COMPUTES.values(), ids=COMPUTES)
def test_a_layer_that_computes_something_else_is_left_with_the_reason(
    kind: type[ForeignFlgc], reason: str
) -> None:
    model = nn.Sequential(foreign(kind))
    # A file of ours holds no foreign class.
    result = check_pass(FreezeLearnedGroups(), model, X, sites=0, skipped=1, saved=False)
    assert_reason(result, reason)
    assert type(result.model.get_submodule("0")).__name__ == kind.__name__


def assert_reason(result: groupfx.Result, reason: str) -> None:
    (skipped,) = result.report.skipped
    assert re.search(reason, skipped.reason), skipped.reason
    assert not skipped.reason.startswith(skipped.name), "the report names the layer already"


def with_map(name: str, *shape: int) -> nn.Module:
    layer = CASE.build()
    layer.register_parameter(name, nn.Parameter(torch.randn(shape)))
    return Unchecked(layer)


class Unchecked(nn.Module):
    """Learned-group attributes and a forward that does not look at them."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.conv = layer.conv
        for name in (INPUT_MAP, OUTPUT_MAP):
            self.register_parameter(name, layer.get_parameter(name))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def grouped_inside() -> nn.Module:
    layer = CASE.build()
    layer.conv = nn.Conv2d(7, 14, 3, groups=7)
    layer.out_channels_in_group_assignment_map = nn.Parameter(torch.randn(14, 5))
    return Unchecked(layer)


def hooked(target: Callable[[nn.Module], Any]) -> nn.Module:
    layer = CASE.build()
    target(layer)
    return layer


class OtherConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


def other_conv() -> nn.Module:
    layer = CASE.build()
    layer.conv = OtherConv(7, 11, 3)
    return layer


def parametrized() -> nn.Module:
    layer = CASE.build()
    nn.utils.parametrize.register_parametrization(layer.conv, "weight", nn.Identity())
    return layer


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "map-of-other-rows": (
        lambda: with_map(INPUT_MAP, 6, 5),
        r"in_channels_in_group_assignment_map has the shape \[6, 5\].*must be \[7, groups\]",
    ),
    "map-not-2d": (lambda: with_map(OUTPUT_MAP, 11), r"has the shape \[11\]"),
    "maps-of-different-groups": (lambda: with_map(INPUT_MAP, 7, 4), "has 4 groups .* 5; give both"),
    "maps-without-groups": (lambda: with_map(INPUT_MAP, 7, 0), r"shape \[7, 0\]"),
    "grouped-already": (grouped_inside, "its conv has groups=7; groups are learned on a dense"),
    "forward-hook": (
        lambda: hooked(lambda m: m.register_forward_hook(lambda *_: None)),
        "it has hooks .*remove them",
    ),
    "gradient-hook": (
        lambda: hooked(lambda m: m.conv.weight.register_hook(lambda g: g)),
        "it has hooks .gradient hook on weight",
    ),
    "other-conv": (other_conv, "conv is a OtherConv, which may compute something else"),
    "parametrized-weight": (parametrized, "is not simply stored"),
}


@pytest.mark.parametrize(("build", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_frozen_is_left_with_the_reason(
    build: Callable[[], nn.Module], reason: str
) -> None:
    model = nn.Sequential(nn.Identity(), build()).eval()
    result = groupfx.rewrite(model, (X,), passes=["freeze-learned-groups"])
    assert not result.report.sites
    assert_reason(result, reason)
    assert torch.equal(result.model(X), model(X))


class CallsAsTold(nn.Module):
    """Calls a learned-group layer in ways that the tests choose."""

    def __init__(self, call: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def shared_weight() -> CallsAsTold:
    first, second = CASE.build(), CASE.build()
    second.conv.weight = first.conv.weight
    return CallsAsTold(lambda net, x: net.a(x) - net.b(x), a=first, b=second)


def shared_map() -> CallsAsTold:
    first, second = CASE.build(), CASE.build()
    second.in_channels_in_group_assignment_map = first.in_channels_in_group_assignment_map
    return CallsAsTold(lambda net, x: net.a(x) - net.b(x), a=first, b=second)


PARTS_IN_USE: dict[str, tuple[Callable[[], CallsAsTold], str, int]] = {
    "weight-shared": (shared_weight, "its conv.weight is shared with another module", 2),
    "map-shared": (shared_map, "is shared with another module", 2),
    "map-read": (
        lambda: CallsAsTold(
            lambda net, x: net.a(x) * net.a.in_channels_in_group_assignment_map.sum(),
            a=CASE.build(),
        ),
        "is read elsewhere in the graph",
        1,
    ),
    "conv-called": (
        lambda: CallsAsTold(lambda net, x: net.a(x) + net.a.conv(x), a=CASE.build()),
        "its conv is called on its own as well",
        1,
    ),
    "keyword": (
        lambda: CallsAsTold(lambda net, x: net.a(x=x), a=CASE.build()),
        "more than one value",
        1,
    ),
    "keyword-once": (
        lambda: CallsAsTold(lambda net, x: net.a(x) + net.a(x=x), a=CASE.build()),
        "more than one value",
        2,
    ),
    "no-batch-once": (
        lambda: CallsAsTold(lambda net, x: net.a(x) + net.a(x[0]), a=CASE.build()),
        "no batch axis",
        2,
    ),
}


@pytest.mark.parametrize(("build", "reason", "count"), PARTS_IN_USE.values(), ids=PARTS_IN_USE)
def test_a_layer_of_which_something_else_uses_a_part_is_left(
    build: Callable[[], CallsAsTold], reason: str, count: int
) -> None:
    model = build().eval()
    result = groupfx.rewrite(model, (X,), passes=["freeze-learned-groups"])
    assert [len(result.report.sites), len(result.report.skipped)] == [0, count]
    assert all(reason in skipped.reason for skipped in result.report.skipped)
    assert torch.equal(result.model(X), model(X))


def twice() -> CallsAsTold:
    return CallsAsTold(lambda net, x: net.a(x) + net.a(x * 2), a=CASE.build()).eval()


def under_two_names() -> CallsAsTold:
    layer = CASE.build()
    return CallsAsTold(lambda net, x: net.a(x) - net.b(x + 1), a=layer, b=layer).eval()


# Padded, three groups of at most 4 filters have 4 each; no other form has more than the layer's 11.
@pytest.mark.parametrize(("form", "filters"), [("auto", 11), ("dense", 11), ("padded", 12)])
@pytest.mark.parametrize("build", [twice, under_two_names])
def test_a_layer_that_is_called_twice_is_frozen_once(
    build: Callable[[], CallsAsTold], form: Any, filters: int
) -> None:
    model = build()
    result = check_pass(FreezeLearnedGroups(form=form), model, X, sites=2)
    weights = [p for p in result.model.parameters() if p.dim() == 4]
    assert sum(weight.shape[0] for weight in weights) == filters
    expected = model.double()(X.double()).detach()
    assert_close(run64(result.model, X), expected)


def test_a_layer_with_two_names_is_chosen_by_either() -> None:
    result = check_pass(FreezeLearnedGroups(only=("b",)), under_two_names(), X, sites=2)
    assert result.report.ok
    result = groupfx.rewrite(under_two_names(), (X,), passes=[FreezeLearnedGroups(skip=("b",))])
    assert [skipped.reason for skipped in result.report.skipped] == ["named by skip=b"] * 2


def test_only_and_skip_choose_layers() -> None:
    model = CallsAsTold(lambda net, x: net.a(x) + net.b(x), a=CASE.build(), b=CASE.build()).eval()
    result = check_pass(FreezeLearnedGroups(only=("a",)), model, X, sites=1, skipped=1)
    assert result.report.skipped[0].reason == "not among only=a"
    result = check_pass(FreezeLearnedGroups(skip=("a*",)), model, X, sites=1, skipped=1)
    assert result.report.skipped[0].reason == "named by skip=a*"


def test_a_row_of_nan_is_said() -> None:
    case = Layer(("-", *IN[1:]), ("-", "-", *OUT[2:]))
    result = check_pass(FreezeLearnedGroups(), nn.Sequential(case.build()), X, sites=1)
    notes = result.report.sites[0].notes
    assert "1 input is in no group, because of NaN or infinity in the map" in notes
    assert "2 filters are in no group, because of NaN or infinity in the map" in notes
    assert "1 input is read by no filter" in notes
    assert "2 filters are without inputs: bias alone" in notes


def test_a_foreign_layer_in_half_precision_that_ties_is_left_with_the_remedy() -> None:
    layer = foreign()
    with torch.no_grad():
        layer.in_channels_in_group_assignment_map[0] = torch.tensor([0.001, 0.0012, -4, -4, -4])
    model = nn.Sequential(layer.half())
    result = groupfx.rewrite(model, (X.half(),), passes=["freeze-learned-groups"])
    assert_reason(result, r"differs .* in half precision, where scores tie: call .float\(\) first")
    check_pass(FreezeLearnedGroups(), model.float(), X, sites=1)


class Untraceable(nn.Module):
    """Control flow that depends on a value: the modules alone can be taken out."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 1)
        self.block = layer
        self.norm = nn.BatchNorm2d(11)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if x.sum() > 1e9:
            return x
        return F.relu(self.norm(self.block(x)))


@pytest.mark.parametrize("form", ["auto", "dense", "padded", "split"])
@pytest.mark.parametrize("build", [CASE.build, foreign], ids=["ours", "foreign"])
def test_a_model_that_cannot_be_traced(build: Callable[[], nn.Module], form: Any) -> None:
    model = Untraceable(build()).eval()
    x = torch.randn(2, 3, 9, 8)
    result = check_pass(FreezeLearnedGroups(form=form), model, x, sites=1)
    assert result.report.way == "modules"
    assert isinstance(result.model, Untraceable)
    assert_close(run64(result.model, x), run64(model, x))


def test_an_ordinary_layer_with_a_conv_is_no_site() -> None:
    class ConvWithOneMap(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(7, 11, 3)
            self.in_channels_in_group_assignment_map = nn.Parameter(torch.randn(7, 5))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    check_pass(FreezeLearnedGroups(), nn.Sequential(ConvWithOneMap()), X, sites=0, skipped=0)


def test_maps_that_are_no_part_of_the_state_dict() -> None:
    layer = Flgc2d(7, 11, 3, group_num=5)
    CASE.assign(layer)
    for name in (INPUT_MAP, OUTPUT_MAP):
        values = layer.get_parameter(name).detach()
        delattr(layer, name)
        layer.register_buffer(name, values, persistent=False)
    result = check_pass(FreezeLearnedGroups(), nn.Sequential(layer.eval()), X, sites=1)
    assert_close(run64(result.model, X), CASE.expected(layer, X))
