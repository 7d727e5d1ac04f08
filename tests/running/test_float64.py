"""Running a model in float64 as it is: the same bits as its float64 copy, and nothing changed."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from groupfx.errors import ModelError
from groupfx.running.inputs import ExampleInputs
from groupfx.verify import Fingerprint, Float64
from tests.models import zoo

IMAGE = torch.randn(2, 6, 9, 7, generator=torch.Generator().manual_seed(3))
SEQUENCE = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(5))


def pruned() -> nn.Module:
    return prune.l1_unstructured(nn.Conv2d(6, 12, 3, groups=3), "weight", 0.3)


def exported() -> nn.Module:
    plain = nn.Sequential(nn.Conv2d(6, 12, 3, groups=3), nn.BatchNorm2d(12), nn.ReLU()).eval()
    module: nn.Module = torch.export.export(plain, (IMAGE,)).module()
    return module


class CustomFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.softmax(weight, 0)


class UsesCustomFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(7))

    def forward(self, x: Tensor) -> Tensor:
        return CustomFunction.apply(x, self.weight) + torch.vmap(lambda row: row * self.weight)(x)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "weight_norm": (
        lambda: parametrizations.weight_norm(nn.Conv2d(6, 12, 3, groups=3)),
        (IMAGE,),
    ),
    "weight_norm_old": (lambda: nn.utils.weight_norm(nn.Conv2d(6, 12, 3, groups=3)), (IMAGE,)),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Conv2d(6, 6, 3)), (IMAGE,)),
    "pruned": (pruned, (IMAGE,)),
    "lstm": (lambda: nn.LSTM(8, 5, 2, bidirectional=True), (SEQUENCE,)),
    "gru": (lambda: nn.GRU(8, 5), (SEQUENCE,)),
    "attention": (lambda: nn.MultiheadAttention(8, 2), (SEQUENCE, SEQUENCE, SEQUENCE)),
    "graph_module": (
        lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(inplace=True))),
        (IMAGE,),
    ),
    "exported": (exported, (IMAGE,)),
    "custom_function": (UsesCustomFunction, (IMAGE,)),
    "half": (lambda: nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8)).half(), (IMAGE,)),
    "bfloat16": (lambda: nn.Conv2d(6, 8, 3).bfloat16(), (IMAGE,)),
    "mixed": (lambda: nn.Sequential(nn.Conv2d(6, 8, 3).half(), nn.Conv2d(8, 4, 1)), (IMAGE,)),
}
FROM_ZOO = ("regnet-y", "squeezebert", "wav2vec2", "se-resnext50-3d", "shufflenet-g3")


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors(part)


def check_same_bits(model: nn.Module, inputs: ExampleInputs) -> None:
    wide = inputs.map(lambda t: t.double() if t.is_floating_point() else t)
    before = Fingerprint.of(model)
    with torch.no_grad():
        with Float64(model):
            found = list(tensors(wide.call(model)))
        assert before.changes(model) == ()
        expected = list(tensors(wide.call(copy.deepcopy(model).double())))
    assert found
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    for left, right in zip(found, expected, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize(("make", "args"), MODELS.values(), ids=MODELS.keys())
def test_the_same_bits_as_a_float64_copy(
    make: Callable[[], nn.Module], args: tuple[Tensor, ...]
) -> None:
    with torch.no_grad():  # the legacy hooks leave a weight that could not be copied otherwise
        model = make()
        if "Exported" not in type(model).__name__ and not hasattr(model, "_guards_fn"):
            model.eval()
        model(*(a.to(next(model.parameters())) for a in args)) if is_legacy(model) else None
    check_same_bits(model, ExampleInputs(args))


def is_legacy(model: nn.Module) -> bool:
    return bool(model._forward_pre_hooks)


@pytest.mark.parametrize("name", FROM_ZOO)
def test_the_same_bits_on_real_models(name: str) -> None:
    case = zoo.CASES[name]
    check_same_bits(case.build(), ExampleInputs.of(case.inputs()))


class Rounds(nn.Module):
    """Asks for low precision in every way there is."""

    def forward(self, x: Tensor) -> list[Tensor]:
        low = torch.float16
        written = torch.zeros(x.shape)
        written[0] = x[0] / 3
        torch.mul(x[1], 1 / 3, out=written[1])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            product = x @ x.transpose(-1, -2)
        return [
            x.float(),
            x.half(),
            x.bfloat16(),
            x.to(low),
            x.to(torch.ones(1, dtype=low)),
            x.to("cpu", low),
            x.to(dtype=low),
            x.type(low),
            x.type(torch.FloatTensor),
            x.type("torch.HalfTensor"),
            x.type_as(torch.ones(1, dtype=low)),
            torch.softmax(x, 1, dtype=torch.float32),
            F.softmax(x, 1, dtype=torch.float32),
            x.sum(1, dtype=torch.float32),
            torch.full((3,), 1 / 3, dtype=low),
            torch.tensor([1, 2], dtype=low) / 3,
            torch.arange(5, dtype=low) / 3,
            x.new_full((3,), 1 / 3, dtype=low),
            torch.ones_like(x, dtype=low) / 3,
            torch.view_as_real(torch.fft.fft(x).to(torch.complex64)),
            torch.ops.aten._to_copy.default(x, dtype=low),
            written,
            product,
        ]


def test_nothing_is_rounded_on_the_way() -> None:
    x = torch.rand(2, 3, 5, dtype=torch.float64) + 0.5
    with Float64():
        found = Rounds()(x)
    third = torch.tensor(1 / 3, dtype=torch.float64)
    for position, value in enumerate(found):
        assert value.dtype == torch.float64, position
        rounded = value.float().double()
        if value.numel() > 5:
            assert not torch.equal(value, rounded), position
    for position in range(11):
        assert torch.equal(found[position], x), position
    assert torch.equal(found[14], third.expand(3))
    assert torch.equal(found[17], third.expand(3))
    assert torch.equal(found[-1], x @ x.transpose(-1, -2))
    assert torch.equal(found[-2], torch.stack([x[0] / 3, x[1] * (1 / 3)]))


@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "plain"])
def test_a_norm_without_an_eps_keeps_that_of_its_own_dtype(weighted: bool) -> None:
    """That of float64 is smaller by nine digits, which shows on what is small."""
    model = nn.Sequential(nn.Linear(6, 6), nn.RMSNorm(6, elementwise_affine=weighted))
    x = torch.randn(2, 6) * 1e-4
    with torch.no_grad(), Float64(model):
        y = F.linear(x, model[0].weight, model[0].bias * 1e-4)
        found = model[1](y)
    eps = torch.finfo(torch.float32).eps
    y = F.linear(x.double(), model[0].weight.double(), model[0].bias.double() * 1e-4)
    torch.testing.assert_close(found.double(), y / (y.square().mean(-1, True) + eps).sqrt())


def test_infinity_becomes_the_largest_number_of_its_own_dtype() -> None:
    model = nn.Linear(1, 1)
    x = torch.tensor([torch.inf, -torch.inf, torch.nan])
    limits = torch.finfo(torch.float32)
    with torch.no_grad(), Float64(model):
        found = [torch.nan_to_num(x), x.nan_to_num(0.5, None, 2.0), x.clone().nan_to_num_(neginf=3)]
        whole = torch.nan_to_num(torch.arange(3))
    assert found[0].tolist() == [limits.max, limits.min, 0.0]
    assert found[1].tolist() == [limits.max, 2.0, 0.5]
    assert found[2].tolist() == [limits.max, 3.0, 0.0]
    assert whole.tolist() == [0, 1, 2]


def test_integers_bools_and_questions_stay_what_they_are() -> None:
    weight = nn.Parameter(torch.randn(3, 4))
    with Float64():
        assert weight.dtype == torch.float64
        assert weight.shape == (3, 4)
        assert weight.is_floating_point()
        assert weight.argmax(1).dtype == torch.int64
        assert (weight > 0).dtype == torch.bool
        assert weight.to(torch.int32).dtype == torch.int32
        assert torch.arange(3).float().dtype == torch.float64
        assert weight.T.dtype == torch.float64
        assert weight.data.dtype == torch.float64
    assert weight.dtype == torch.float32


# Writing in place


class Writes(nn.Module):
    def __init__(self, write: Callable[[Tensor], Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.write = write
        self.register_buffer("state", torch.arange(1.0, 4.0).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        self.write(self.state)
        return x * self.state


FOLLOWED: dict[str, Callable[[Tensor], Any]] = {
    "method": lambda t: t.mul_(3),
    "twice": lambda t: t.add_(1).mul_(3),
    "function": lambda t: torch.relu_(t.neg_()),
    "item": lambda t: t.__setitem__(0, 7.0),
    "items": lambda t: t.__setitem__(slice(1, 3), 7.0),
    "operator": lambda t: t.__imul__(3),
    "out": lambda t: torch.add(t, 1, out=t),
    "aten": lambda t: torch.ops.aten.add_.Tensor(t, t),
    "norm": lambda t: F.batch_norm(torch.eye(3).double(), t, torch.ones(3).to(t), training=True),
    "activation": lambda t: F.relu(t, inplace=True),
}
REFUSED: dict[str, Callable[[Tensor], Any]] = {
    "item_of_item": lambda t: t[1:].mul_(3),
    "view": lambda t: t.view(3, 1).mul_(3),
    "view_of_view": lambda t: t.view(3, 1)[0].mul_(3),
    "data": lambda t: t.data.mul_(3),
    "detached": lambda t: t.detach().mul_(3),
    "set_data": lambda t: setattr(t, "data", torch.ones(3)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("write", FOLLOWED.values(), ids=FOLLOWED.keys())
def test_a_write_is_followed_and_dropped(
    write: Callable[[Tensor], Any], dtype: torch.dtype
) -> None:
    model = Writes(write, dtype)
    expected = copy.deepcopy(model).double()
    before = Fingerprint.of(model)
    x = torch.randn(3, dtype=torch.float64)
    with torch.no_grad(), Float64(model):
        first, second = model(x), model(x)
    with torch.no_grad():
        wanted = expected(x), expected(x)
    torch.testing.assert_close((first, second), wanted, rtol=1e-7, atol=0)
    assert before.changes(model) == ()


def test_what_was_written_is_dropped_at_the_end() -> None:
    model = Writes(lambda t: t.mul_(3), torch.float32)
    mode, x = Float64(model), torch.ones(3, dtype=torch.float64)
    found = []
    for _ in range(2):
        with torch.no_grad(), mode:
            found.append(model(x).tolist())
    assert found == [[3.0, 6.0, 9.0]] * 2


def test_a_buffer_that_is_assigned_to_stays_the_buffer() -> None:
    """`self.state += x` assigns what the addition returns."""

    class Counts(Writes):
        def forward(self, x: Tensor) -> Tensor:
            self.state += x
            return x * self.state

    model = Counts(torch.relu, torch.float32)
    before = Fingerprint.of(model)
    with torch.no_grad(), Float64(model):
        found = model(torch.ones(3, dtype=torch.float64))
    assert found.tolist() == [2.0, 3.0, 4.0]
    assert before.changes(model) == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("write", REFUSED.values(), ids=REFUSED.keys())
def test_a_write_through_a_view_is_refused(
    write: Callable[[Tensor], Any], dtype: torch.dtype
) -> None:
    model = Writes(write, dtype)
    before = Fingerprint.of(model)
    x = torch.randn(3, dtype=torch.float64)
    expected = pytest.raises(ModelError, match="writes into a view of its own state")
    with expected, torch.no_grad(), Float64(model):
        model(x)
    assert before.changes(model) == ()


def test_a_view_as_float32_is_none_of_half_a_number() -> None:
    """It only moves numbers, and is called as it is, unless it is given a dtype."""
    x = torch.ones(3, dtype=torch.float64)
    with Float64():
        assert x.view(torch.float32).dtype == torch.float64
        assert x.view(3, 1).dtype == torch.float64


def test_gradients_arrive_in_the_parameter_s_own_dtype() -> None:
    conv = nn.Conv1d(2, 3, 3)
    with Float64(conv):
        conv(torch.randn(2, 2, 7, dtype=torch.float64)).square().sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.dtype == torch.float32


def test_slices_of_a_weight_do_not_widen_all_of_it() -> None:
    """Thousands of branches each take a slice of one stored weight."""
    weight = nn.Parameter(torch.randn(4096, 64))
    with Float64():
        part = weight[3:5]
    assert part.dtype == torch.float32
    assert part.data_ptr() == weight[3].data_ptr()


def test_native_tensors_keep_their_dtype_until_they_meet_another() -> None:
    scores = nn.Parameter(torch.tensor([0.0, 1e-9]))
    with Float64(native=[scores]):
        shares = torch.softmax(scores, 0)
        tie = shares == shares.max()
        met = shares * torch.ones(2, dtype=torch.float64)
    assert tie.tolist() == [True, True]
    assert met.dtype == torch.float64
    with Float64():
        shares = torch.softmax(scores, 0)
        assert (shares == shares.max()).tolist() == [False, True]


def test_weights_that_take_turns_in_one_place_do_not_meet() -> None:
    """Two of one size: one is widened where the other was, and results stay."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 5, 3), nn.Linear(9, 15, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            first, turned = self.a(x), self.a.weight.flatten(1)
            second = self.b(turned[:, :9])
            return first.sum() + second.sum() * 3 + self.a(x * 2).sum() + turned.sum()

    model, x = Two(), torch.randn(2, 3, 7, 7, dtype=torch.float64)
    wide = copy.deepcopy(model).double()
    for grad in (False, True):
        with torch.set_grad_enabled(grad), Float64(model):
            found = model(x)
        assert torch.equal(found, wide(x))
    found.backward()
    wide(x).backward()
    assert model.b.weight.grad is not None
    assert torch.equal(model.b.weight.grad, wide.b.weight.grad.float())


def test_a_weight_that_was_written_to_is_read_as_it_is_now() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 1)
            self.register_buffer("kernel", torch.ones(2, 5, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            self.kernel.mul_(1.1)
            return F.conv2d(self.conv(x), self.kernel)

    model, x = Writes(), torch.randn(2, 3, 7, 7, dtype=torch.float64)
    wide = copy.deepcopy(model).double()
    with torch.no_grad(), Float64(model):
        found = model(x)
    assert torch.allclose(found, wide(x), rtol=1e-12, atol=0)
    assert torch.equal(model.kernel, torch.ones(2, 5, 1, 1))
