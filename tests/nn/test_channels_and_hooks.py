"""The modules that rewrites put in: shuffle, gather, and the weight of a legacy hook."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from groupfx.errors import UsageError
from groupfx.nn import ChannelGather, ChannelShuffle, HookedWeight, is_weight_hook
from groupfx.plan.channels import shuffle_permutation

SPATIAL = [(), (5,), (5, 7), (3, 5, 7)]
GATHERS = [(2, 0, 1), (1, 1, 0, 2), (2,), tuple(range(3)), (0, 2, 2, 2, 1)]
MODULES = [ChannelShuffle(3), ChannelGather((4, 4, 0, 5))]


class OwnLeafTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m.__module__.startswith("groupfx.nn")


class Around(nn.Module):
    """A module with work before and behind it, so that a trace has something to keep."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x * 2) + 1
        return result


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("spatial", SPATIAL, ids=lambda s: f"{len(s)}d")
@pytest.mark.parametrize(("groups", "size"), [(1, 5), (2, 5), (3, 7), (5, 1)])
def test_shuffle_is_numpys_transpose(groups: int, size: int, spatial: tuple[int, ...]) -> None:
    x = random(2, groups * size, *spatial)
    array = x.numpy().reshape(2, groups, size, *spatial)
    expected = np.swapaxes(array, 1, 2).reshape(x.shape)
    y = ChannelShuffle(groups)(x)
    assert np.array_equal(y.numpy(), expected)
    assert torch.equal(y, ChannelGather(shuffle_permutation(groups * size, groups))(x))


def test_shuffle_names_the_numbers() -> None:
    with pytest.raises(UsageError, match=r"10 channels cannot be cut into 3 equal groups"):
        ChannelShuffle(3)(random(2, 10, 5))
    with pytest.raises(UsageError, match="groups=0"):
        ChannelShuffle(0)


@pytest.mark.parametrize("spatial", SPATIAL, ids=lambda s: f"{len(s)}d")
@pytest.mark.parametrize("indices", GATHERS, ids=str)
def test_gather_is_numpys_indexing(indices: tuple[int, ...], spatial: tuple[int, ...]) -> None:
    x = random(2, 3, *spatial)
    assert np.array_equal(ChannelGather(indices)(x).numpy(), x.numpy()[:, list(indices)])


def test_gather_adds_the_gradients_of_repeats() -> None:
    x = random(2, 3, 5).requires_grad_()
    ChannelGather((2, 2, 0))(x).sum().backward()
    assert x.grad is not None
    assert x.grad[0, :, 0].tolist() == [1.0, 0.0, 2.0]


@pytest.mark.parametrize(
    ("indices", "words"),
    [((), "no indices"), ((0, -1), "index -1 is negative")],
    ids=["empty", "negative"],
)
def test_gather_refuses(indices: tuple[int, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ChannelGather(indices)


def test_gather_wants_enough_channels() -> None:
    with pytest.raises(UsageError, match=r"reads channel 3, and its input \[2, 3, 5\] has only"):
        ChannelGather((0, 3))(random(2, 3, 5))


def test_gather_is_structure_and_survives() -> None:
    gather = ChannelGather(torch.tensor([2, 0, 2]))
    x = random(2, 3, 5)
    expected = x[:, [2, 0, 2]]
    assert gather.state_dict() == {}
    stream = io.BytesIO()
    torch.save(gather, stream)
    stream.seek(0)
    moved = copy.deepcopy(gather).to("meta").to_empty(device="cpu")
    for survivor in (copy.deepcopy(gather), torch.load(stream, weights_only=False), moved):
        assert torch.equal(survivor(x), expected)
        assert survivor.channels == (2, 0, 2)
    half = copy.deepcopy(gather).half()
    assert half.indices.dtype == torch.int64
    assert half(x.half()).dtype == torch.float16
    assert gather.to("meta").indices.device.type == "meta"


def test_reprs_stay_short() -> None:
    assert repr(ChannelShuffle(3)) == "ChannelShuffle(groups=3)"
    assert repr(ChannelGather((2, 0, 1))) == "ChannelGather(2, 0, 1)"
    long = ChannelGather(range(4095, -1, -1))
    assert repr(long) == "ChannelGather(4095, 4094, 4093, 4092, ..., 0; 4096 channels)"


@pytest.mark.parametrize("inner", MODULES, ids=lambda m: type(m).__name__)
def test_modules_are_leaves_or_are_traced_through(inner: nn.Module) -> None:
    model = Around(inner)
    x = random(2, 6, 5)
    leaf = fx.GraphModule(model, OwnLeafTracer().trace(model))
    assert [node.op for node in leaf.graph.nodes].count("call_module") == 1
    through = fx.symbolic_trace(model)
    for traced in (leaf, through):
        assert torch.equal(traced(x), model(x))
        assert torch.equal(copy.deepcopy(traced)(x[:1]), model(x[:1]))


@pytest.mark.parametrize("inner", MODULES, ids=lambda m: type(m).__name__)
def test_modules_export_with_a_dynamic_batch(inner: nn.Module) -> None:
    model = Around(inner)
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (random(2, 6, 5, 7),), dynamic_shapes=({0: batch},))
    for size in (1, 3):
        x = random(size, 6, 5, 7)
        assert torch.equal(program.module()(x), model(x))


def test_gather_is_one_gather_in_onnx() -> None:
    program = torch.onnx.export(
        ChannelGather((4, 4, 0)).eval(), (torch.randn(2, 6, 5, 7),), dynamo=True, verbose=False
    )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    assert [node.op_type for node in model.graph.node] == ["Gather"]


# The weight of a legacy hook


def pruned_twice(conv: nn.Module) -> nn.Module:
    prune.random_unstructured(conv, "weight", 0.3)
    prune.ln_structured(conv, "weight", 0.4, n=2, dim=0)
    return conv


def pruned_by(method: Callable[..., Any], **options: Any) -> Callable[[nn.Module], nn.Module]:
    def apply(conv: nn.Module) -> nn.Module:
        method(conv, "weight", **options)
        return conv

    return apply


def old_weight_norm(dim: int | None) -> Callable[[nn.Module], nn.Module]:
    return lambda conv: weight_norm(conv, dim=dim)  # type: ignore[arg-type]


HOOKS: dict[str, tuple[str, Callable[[nn.Module], nn.Module]]] = {
    "weight_norm": ("weight_norm", old_weight_norm(0)),
    "weight_norm-dim-1": ("weight_norm", old_weight_norm(1)),
    "weight_norm-one-norm": ("weight_norm", old_weight_norm(None)),
    "spectral_norm": ("spectral_norm", spectral_norm),
    "spectral_norm-3-steps": (
        "spectral_norm",
        lambda conv: spectral_norm(conv, n_power_iterations=3, eps=1e-3),
    ),
    "spectral_norm-dim-1": ("spectral_norm", lambda conv: spectral_norm(conv, dim=1)),
    "prune-unstructured": ("prune", pruned_by(prune.random_unstructured, amount=0.4)),
    "prune-structured": ("prune", pruned_by(prune.ln_structured, amount=0.4, n=2, dim=1)),
    "prune-identity": ("prune", pruned_by(prune.identity)),
    "prune-twice": ("prune", pruned_twice),
}
CONVS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor]]] = {
    "conv": (lambda: nn.Conv2d(6, 10, (3, 2), groups=2), F.conv2d),
    "no-bias": (lambda: nn.Conv2d(6, 10, (3, 2), groups=2, bias=False), F.conv2d),
    "transposed": (lambda: nn.ConvTranspose2d(6, 10, (3, 2), groups=2), F.conv_transpose2d),
}


def hooked_conv(hook: str, conv: str) -> nn.Module:
    """The same convolution at each call, hook and all."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return HOOKS[hook][1](CONVS[conv][0]())


def differences(legacy: nn.Module, weight: HookedWeight, function: Callable[..., Tensor]) -> int:
    """Run both for three training steps and one evaluation; count what is not bit-identical."""
    found = 0
    for step in range(4):
        legacy.train(step < 3)
        weight.train(step < 3)
        x = random(2, 6, 7, 5)
        outputs = legacy.double()(x), function(x, weight.double()(), weight.bias, groups=2)
        found += not torch.equal(*outputs)
        for output in outputs:
            output.square().sum().backward()
        ours = dict(weight.named_parameters())
        for name, parameter in legacy.named_parameters():
            assert parameter.grad is not None
            found += not torch.equal(parameter.grad, ours[name].grad)  # type: ignore[arg-type]
        for name, buffer in legacy.named_buffers():
            found += not torch.equal(buffer, weight.get_buffer(name))
        with torch.no_grad():
            for parameter in (*legacy.parameters(), *weight.parameters()):
                assert parameter.grad is not None
                parameter.sub_(parameter.grad, alpha=0.01)
                parameter.grad = None
    return found


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("hook", HOOKS)
def test_hooked_weight_is_the_hooks_weight(hook: str, conv: str) -> None:
    weight = HookedWeight.from_module(hooked_conv(hook, conv))
    assert weight is not None
    assert weight.kind == HOOKS[hook][0]
    assert differences(hooked_conv(hook, conv), weight, CONVS[conv][1]) == 0


@pytest.mark.parametrize(
    ("hook", "field", "value"),
    [
        ("weight_norm", "dim", -1),
        ("spectral_norm", "n_power_iterations", 2),
        ("spectral_norm-3-steps", "eps", 1e6),
    ],
)
def test_a_wrong_field_would_be_seen(hook: str, field: str, value: int) -> None:
    weight = HookedWeight.from_module(hooked_conv(hook, "conv"))
    assert weight is not None
    setattr(weight, field, value)
    assert differences(hooked_conv(hook, "conv"), weight, F.conv2d) > 0


@pytest.mark.parametrize("hook", HOOKS)
def test_hooked_weight_keeps_objects_keys_and_mode(hook: str) -> None:
    conv = hooked_conv(hook, "conv").eval()
    conv.get_parameter("bias").requires_grad_(False)
    weight = HookedWeight.from_module(conv)
    assert weight is not None
    assert set(weight.state_dict()) == set(conv.state_dict())
    for name, tensor in (*conv.named_parameters(), *conv.named_buffers()):
        assert getattr(weight, name) is tensor
    assert not weight.training
    assert len(conv._forward_pre_hooks) == 1

    other = hooked_conv(hook, "conv")
    other.load_state_dict(weight.state_dict())
    weight.load_state_dict(other.state_dict())


@pytest.mark.parametrize("hook", HOOKS)
def test_hooked_weight_can_be_copied_saved_and_rebuilt(hook: str) -> None:
    conv = hooked_conv(hook, "conv")
    conv(torch.randn(2, 6, 7, 5))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(conv)
    weight = HookedWeight.from_module(conv)
    assert weight is not None
    weight.eval()
    stream = io.BytesIO()
    torch.save(weight, stream)
    stream.seek(0)
    rebuilt = HookedWeight(
        weight.kind,
        dict(weight.named_parameters()),
        dict(weight.named_buffers()),
        name=weight.name,
        dim=weight.dim,
        n_power_iterations=weight.n_power_iterations,
        eps=weight.eps,
    ).eval()
    for again in (copy.deepcopy(weight), torch.load(stream, weights_only=False), rebuilt):
        assert torch.equal(again(), weight())
        assert repr(again) == repr(weight)


def test_hooked_weight_is_one_node_of_a_graph_and_exports_in_eval_mode() -> None:
    class CallsHookedWeight(nn.Module):
        def __init__(self, weight: HookedWeight) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight(), self.weight.bias, groups=2)  # type: ignore[arg-type]

    for hook in ("weight_norm", "spectral_norm", "prune-twice"):
        conv = hooked_conv(hook, "conv").eval()
        weight = HookedWeight.from_module(conv)
        assert weight is not None
        x = torch.randn(2, 6, 7, 5)
        model = CallsHookedWeight(weight).eval()
        traced = fx.GraphModule(model, OwnLeafTracer().trace(model))
        assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["weight"]
        assert torch.equal(copy.deepcopy(traced)(x), conv(x))
        exported = torch.export.export(model, (x,)).module()
        assert torch.equal(exported(x), conv(x))


class DoublingPrune(prune.Identity):
    def apply_mask(self, module: nn.Module) -> Tensor:
        result: Tensor = 2 * super().apply_mask(module)  # type: ignore[no-untyped-call]
        return result


def not_taken() -> dict[str, nn.Module]:
    plain = nn.Conv2d(6, 10, 3, groups=2)
    both_pruned = pruned_twice(nn.Conv2d(6, 10, 3, groups=2))
    prune.random_unstructured(both_pruned, "bias", 0.5)
    subclass = nn.Conv2d(6, 10, 3, groups=2)
    DoublingPrune.apply(subclass, "weight")  # type: ignore[no-untyped-call]
    only_bias = nn.Conv2d(6, 10, 3, groups=2)
    prune.random_unstructured(only_bias, "bias", 0.5)
    extra = spectral_norm(nn.Conv2d(6, 10, 3, groups=2))
    extra.register_buffer("calls", torch.tensor(0))
    return {
        "plain": plain,
        "new-style": parametrizations.weight_norm(nn.Conv2d(6, 10, 3, groups=2)),
        "bias-pruned-too": both_pruned,
        "only-bias-pruned": only_bias,
        "subclass": subclass,
        "extra-tensor": extra,
    }


@pytest.mark.parametrize("case", not_taken())
def test_hooked_weight_leaves_alone_what_it_cannot_stand_in_for(case: str) -> None:
    assert HookedWeight.from_module(not_taken()[case]) is None


def test_is_weight_hook_knows_torchs_hooks_only() -> None:
    for hook in HOOKS:
        (registered,) = hooked_conv(hook, "conv")._forward_pre_hooks.values()
        assert is_weight_hook(registered)
        assert not is_weight_hook(registered, "bias")
    (subclass,) = not_taken()["subclass"]._forward_pre_hooks.values()
    assert not is_weight_hook(subclass)
    assert not is_weight_hook(lambda module, args: None)


def test_hooked_weight_names_what_is_missing() -> None:
    with pytest.raises(UsageError, match="needs the tensors weight_g, weight_v"):
        HookedWeight("weight_norm", {}, {})
    with pytest.raises(UsageError, match="needs the tensors weight_mask"):
        HookedWeight("prune", {"weight_orig": nn.Parameter(torch.ones(2))}, {})
    with pytest.raises(UsageError, match="'batch_norm'; it can be one of weight_norm, spectral"):
        HookedWeight("batch_norm", {}, {})  # type: ignore[arg-type]
