"""Layers that learn their groups: values and gradients, and what the layer survives.

The reference is written here from the description of the method, with a custom autograd function as
the public code has one. How an assignment is read as integers is in `test_learned.py`.
"""

import copy
import io
import itertools
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import groupfx
from groupfx.errors import UsageError
from groupfx.learned.groups import groups_of
from groupfx.nn import Flgc1d, Flgc2d, Flgc3d
from groupfx.nn.flgc import group_assignment

LAYERS = {1: Flgc1d, 2: Flgc2d, 3: Flgc3d}
CONVS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
MAPS = ("in_channels_in_group_assignment_map", "out_channels_in_group_assignment_map")


class PassChosen(torch.autograd.Function):
    """The straight-through step: 1 at each maximum, and there the gradient passes."""

    @staticmethod
    def forward(ctx: Any, probabilities: Tensor) -> Tensor:
        chosen = (probabilities == probabilities.max(1, keepdim=True).values).float()
        ctx.save_for_backward(chosen)
        return chosen

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (chosen,) = ctx.saved_tensors
        return torch.where(chosen == 1, gradient, torch.zeros_like(gradient))


def reference_mask(layer: nn.Module) -> Tensor:
    inputs, outputs = (PassChosen.apply(getattr(layer, name).softmax(1)) for name in MAPS)
    return torch.mm(outputs, inputs.t())


class Reference(nn.Module):
    """The method as its description has it, on the parameters of a layer of ours."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.conv = copy.deepcopy(layer.conv)
        for name in MAPS:
            self.register_parameter(name, copy.deepcopy(layer.get_parameter(name)))

    def forward(self, x: Tensor) -> Tensor:
        conv: Any = self.conv
        weight = conv.weight * reference_mask(self)[(..., *(None for _ in conv.kernel_size))]
        convolve = CONVS[len(conv.kernel_size)]
        return convolve(x, weight, conv.bias, conv.stride, conv.padding, conv.dilation)


def give_ties(layer: nn.Module) -> None:
    """Make two input channels and two filters belong to the groups 0 and 1 at once."""
    with torch.no_grad():
        for name in MAPS:
            layer.get_parameter(name)[:2] = torch.tensor([2.0, 2.0, *(-1.0,) * 3])


def run(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, and the gradients of input and parameters, for a loss that weighs all outputs."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
    gradients = {f"gradient of {name}": p.grad for name, p in layer.named_parameters()}
    return {"y": y.detach(), "gradient of x": x.grad} | gradients  # type: ignore[dict-item]


def unequal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Names of what is not bit-identical."""
    assert found.keys() == expected.keys()
    return [name for name in expected if not torch.equal(found[name], expected[name])]


ARGUMENTS: dict[str, tuple[int, dict[str, Any]]] = {
    "1d": (1, {"kernel_size": 3}),
    "1d-all": (1, {"kernel_size": 3, "stride": 2, "padding": 4, "dilation": 3}),
    "2d-pointwise": (2, {"kernel_size": 1, "bias": False}),
    "2d": (2, {"kernel_size": 3, "padding": 1}),
    "2d-rectangular": (2, {"kernel_size": (3, 2), "stride": (1, 2), "padding": (2, 0)}),
    "2d-same": (2, {"kernel_size": (3, 4), "padding": "same", "dilation": (2, 1)}),
    "2d-valid": (2, {"kernel_size": 2, "padding": "valid"}),
    "3d": (3, {"kernel_size": (1, 2, 3), "padding": (0, 1, 1), "dilation": (1, 2, 1)}),
}


def make(dims: int, arguments: dict[str, Any], **more: Any) -> tuple[nn.Module, Tensor]:
    layer = LAYERS[dims](7, 11, **arguments, **{"group_num": 5} | more)
    return layer, torch.randn(2, 7, *(9, 8, 6)[:dims])


@pytest.mark.parametrize("ties", [False, True], ids=["no-ties", "ties"])
@pytest.mark.parametrize(("dims", "arguments"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_values_and_gradients_are_the_references(
    dims: int, arguments: dict[str, Any], ties: bool
) -> None:
    layer, x = make(dims, arguments)
    if ties:
        give_ties(layer)
    expected = run(Reference(layer), x)
    assert unequal(run(layer, x), expected) == []
    assert all(expected[f"gradient of {name}"].any() for name in MAPS)
    assert bool((reference_mask(layer) == 2).any()) is ties


def test_the_comparison_sees_a_wrong_backward() -> None:
    layer, x = make(2, {"kernel_size": 3})
    wrong = Reference(layer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PassChosen, "backward", staticmethod(lambda ctx, gradient: gradient))
        found = run(wrong, x)
    assert unequal(found, run(layer, x)) == [f"gradient of {name}" for name in MAPS]


def test_a_shared_pair_of_groups_counts_twice() -> None:
    layer, x = make(2, {"kernel_size": 3})
    give_ties(layer)
    rows = [layer.get_parameter(name).tolist() for name in MAPS]
    chosen = [[{g for g, v in enumerate(row) if v == max(row)} for row in table] for table in rows]
    inputs, outputs = chosen
    weight = torch.zeros(11, 7, 3, 3)
    for o, i in itertools.product(range(11), range(7)):
        weight[o, i] = layer.conv.weight[o, i] * len(outputs[o] & inputs[i])
    assert torch.equal(layer(x), F.conv2d(x, weight, layer.conv.bias))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_padding_mode(dims: int, mode: str) -> None:
    layer, x = make(dims, {"kernel_size": 3, "padding": (1, 2, 1)[:dims], "padding_mode": mode})
    around = [size for size in reversed((1, 2, 1)[:dims]) for _ in range(2)]
    plain = Reference(layer)
    plain.conv.padding = (0,) * dims
    assert torch.equal(layer(x), plain(F.pad(x, around, mode=mode)))


def test_more_groups_than_channels() -> None:
    layer, x = make(2, {"kernel_size": 3}, group_num=257)
    assert unequal(run(layer, x), run(Reference(layer), x)) == []


def test_behind_a_batch_norm_filters_feel_no_pull_to_another_group() -> None:
    # The gradient of a chosen score is that of scaling the filter, which the BatchNorm undoes.
    layer, x = make(2, {"kernel_size": 3})
    run(layer, x)
    alone = [layer.get_parameter(name).grad.abs().max() for name in MAPS]
    run(nn.Sequential(layer, nn.BatchNorm2d(11, eps=1e-20)), x)
    normed = [layer.get_parameter(name).grad.abs().max() for name in MAPS]
    assert alone[1] > alone[0] / 10
    assert normed[1] < normed[0] * 11 * 7 * 9 * torch.finfo(torch.float32).eps


# How the groups are decided


def near_ties(groups: int) -> Tensor:
    """Rows whose two greatest scores are 0 ... 5 steps of float32 apart."""
    scores = torch.randn(600, groups)
    top, place = scores.max(1)
    steps = torch.arange(600) % 6
    for step in range(5):
        top = torch.where(steps > step, torch.nextafter(top, torch.tensor(-9.0)), top)
    scores[torch.arange(600), (place + 1) % groups] = top
    return scores


def test_a_tie_that_saturation_makes_is_a_tie() -> None:
    scores = near_ties(3)
    assignment = group_assignment(scores)
    tied = assignment.sum(1) > 1
    different = scores.topk(2).values.diff().flatten() != 0
    assert (tied & different).any()  # an argmax of the scores would miss these
    assert (~tied & different).any()
    probabilities = scores.softmax(1)
    assert torch.equal(assignment, PassChosen.apply(probabilities))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_lower_precision_decides_in_float32(dtype: torch.dtype) -> None:
    scores = (torch.randn(600, 31) / 10).to(dtype)
    here = scores.softmax(1)
    assert ((here == here.amax(1, keepdim=True)).sum(1) > 1).any()  # a tie in that dtype alone
    expected = PassChosen.apply(scores.float().softmax(1))
    assert torch.equal(group_assignment(scores), expected)

    layer = Flgc2d(7, 11, 3, group_num=5, dtype=dtype)
    x = torch.randn(2, 7, 9, 8, dtype=dtype)
    weight = layer.conv.weight * reference_mask(copy.deepcopy(layer).float())[:, :, None, None]
    y = layer(x)
    assert y.dtype == dtype
    assert torch.equal(y, F.conv2d(x, weight.to(dtype), layer.conv.bias))
    y.float().square().sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == dtype
        assert parameter.grad.any()


def test_a_layer_in_float64_keeps_its_groups() -> None:
    layer = Flgc2d(600, 600, 1, group_num=3)
    with torch.no_grad():
        for name in MAPS:
            layer.get_parameter(name).copy_(near_ties(3))
    before = groups_of(layer)
    assert groups_of(layer.double()) == before
    in_float64 = layer.get_parameter(MAPS[0]).softmax(1)
    assert not torch.equal(
        group_assignment(layer.get_parameter(MAPS[0])),
        (in_float64 == in_float64.amax(1, keepdim=True)).float(),
    )


def test_rows_with_nan_belong_to_no_group() -> None:
    layer, x = make(2, {"kernel_size": 3})
    with torch.no_grad():
        layer.get_parameter(MAPS[0])[3, 1] = torch.nan
        layer.get_parameter(MAPS[1])[5, 4] = torch.nan
    y = layer(x)
    assert torch.equal(y, Reference(layer)(x))
    assert torch.equal(y[:, 5], layer.conv.bias[5].expand_as(y[:, 5]))
    other = x.clone()
    other[:, 3] += 1
    assert torch.equal(layer(other), y)


# What the layer survives


def test_it_has_the_state_of_the_public_code() -> None:
    layer = Flgc2d(7, 11, (3, 5), group_num=4)
    shapes = {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}
    assert shapes == {
        "in_channels_in_group_assignment_map": (7, 4),
        "out_channels_in_group_assignment_map": (11, 4),
        "conv.weight": (11, 7, 3, 5),
        "conv.bias": (11,),
    }


def test_repr_and_group_num() -> None:
    layer = Flgc2d(7, 11, 3, group_num=4, padding_mode="reflect", padding=1, bias=False)
    assert layer.group_num == 4
    assert repr(layer) == (
        "Flgc2d(\n  group_num=4\n  (conv): Conv2d(7, 11, kernel_size=(3, 3), stride=(1, 1), "
        "padding=(1, 1), bias=False, padding_mode=reflect)\n)"
    )


@pytest.mark.parametrize("number", [0, -3])
def test_it_needs_a_group(number: int) -> None:
    with pytest.raises(UsageError, match=rf"Flgc1d\(group_num={number}\)"):
        Flgc1d(7, 11, 3, group_num=number)


def test_it_can_be_built_without_memory() -> None:
    layer = Flgc2d(7, 11, 3, group_num=4, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float64)}
    layer.to_empty(device="cpu")
    with torch.no_grad():
        for name in MAPS:
            layer.get_parameter(name).zero_()
    layer.reset_parameters()
    assert all(layer.get_parameter(name).std() > 0.5 for name in MAPS)


def test_copies_and_pickles_compute_the_same() -> None:
    layer, x = make(2, {"kernel_size": 3, "padding_mode": "reflect", "padding": 1})
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    expected = run(layer, x)
    for twin in (copy.deepcopy(layer), torch.load(stream, weights_only=False)):
        assert unequal(run(twin, x), expected) == []
        assert repr(twin) == repr(layer)


# Gradients and traces


def gradients_by_tail(model: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    """Gradients of the maps, by the end of their name, in float64."""
    model.zero_grad()
    model(x).square().sum().backward()
    return {
        name.rpartition(".")[2]: p.grad for name, p in model.named_parameters() if "_map" in name
    }


def between(layer: nn.Module) -> nn.Module:
    """A layer behind a grouped convolution, so that a rewrite has something to do."""
    return nn.Sequential(nn.Conv2d(7, 7, 3, groups=7), nn.Conv2d(7, 7, 1), layer, nn.ReLU())


def test_a_trace_loses_the_gradients_of_a_custom_backward() -> None:
    layer, x = make(2, {"kernel_size": 3})
    model = between(Reference(layer))
    assert all(g is not None and g.any() for g in gradients_by_tail(model, x).values())
    traced = fx.symbolic_trace(model)
    assert torch.equal(traced(x), model(x))
    assert gradients_by_tail(traced, x) == dict.fromkeys(MAPS)
    exported = torch.export.export(model, (x,)).module()
    assert gradients_by_tail(exported, x) == dict.fromkeys(MAPS)


@pytest.mark.parametrize("wrap", [lambda layer: layer, Reference], ids=["ours", "public"])
def test_a_rewrite_keeps_the_gradients(wrap: Callable[[nn.Module], nn.Module]) -> None:
    layer, x = make(2, {"kernel_size": 3})
    model = between(wrap(layer))
    result = groupfx.rewrite(model, (x,), passes=["split-grouped-conv:depthwise=split"])
    assert isinstance(result.model, fx.GraphModule)
    assert "2" in {node.target for node in result.model.graph.nodes if node.op == "call_module"}
    assert len(result.report.sites) == 1
    expected = gradients_by_tail(model.double(), x.double())
    found = gradients_by_tail(result.model.double(), x.double())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("way", ["symbolic_trace", "export"])
def test_ours_survives_a_trace_even_where_it_is_no_leaf(way: str) -> None:
    layer, x = make(2, {"kernel_size": 3, "padding": 1, "padding_mode": "circular"})
    if way == "export":
        program = torch.export.export(layer, (x,))
        called = {node.target for node in program.graph.nodes if node.op == "call_function"}
        # Nothing of ours is in the graph, or an ONNX export would not know it.
        assert {target.namespace for target in called} == {"aten"}
        twin = program.module()
    else:
        twin = fx.symbolic_trace(layer)
    expected = run(layer, x)
    assert unequal(run(twin, x), expected) == []


def test_it_is_saved_in_a_file_of_ours(tmp_path: Any) -> None:
    layer, x = make(2, {"kernel_size": 3})
    result = groupfx.rewrite(between(layer), (x,), passes=["split-grouped-conv"])
    result.save(tmp_path / "model.groupfx.pt")
    loaded = groupfx.load(tmp_path / "model.groupfx.pt").model
    assert torch.equal(loaded(x), result.model(x))
    (twin,) = (module for module in loaded.modules() if isinstance(module, Flgc2d))
    assert repr(twin) == repr(layer)


def compiled_differences(backend: str, groups: int) -> tuple[bool, float]:
    """Whether the outputs are equal, and the greatest difference of a gradient by its own size."""
    layer = Flgc2d(600, 600, 1, group_num=groups)
    with torch.no_grad():
        for name in MAPS:
            layer.get_parameter(name).copy_(near_ties(groups))
        # Whole numbers add up to the same in any order, and a compiler may choose another one.
        for parameter in layer.conv.parameters():
            parameter.copy_(torch.randint(-3, 4, parameter.shape))
    x = torch.randint(-3, 4, (2, 600, 3, 5)).float()
    expected = run(layer, x)
    torch.compiler.reset()
    found = run(torch.compile(layer, backend=backend, fullgraph=True), x)
    found = {name.replace("_orig_mod.", ""): tensor for name, tensor in found.items()}
    worst = max(
        float((found[name] - expected[name]).abs().max() / expected[name].abs().max())
        for name in expected
        if name != "y"
    )
    return torch.equal(found["y"], expected["y"]), worst


def test_compiled_graphs_are_exact() -> None:
    assert compiled_differences("aot_eager", 5) == (True, 0.0)


@pytest.mark.long
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("groups", [3, 8])
def test_compiled_kernels_are_exact(groups: int) -> None:
    same, worst = compiled_differences("inductor", groups)
    assert same
    assert worst < 600 * torch.finfo(torch.float32).eps
