"""The check end to end, and what it leaves behind: nothing."""

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from groupfx.errors import ModelError
from groupfx.running.inputs import ExampleInputs
from groupfx.verify import Fingerprint, compare_models, observable_sites
from tests.models import zoo

IMAGES = ExampleInputs.of(torch.randn(2, 4, 11, 13, generator=torch.Generator().manual_seed(3)))
# The next float64 number after 1.
STEP = 1 + 2.0**-52


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1)
    ).eval()


# Wrong on purpose


def swapped_rows(model: nn.Sequential) -> str:
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight.flip(0))
    return "is off by"


def lost_bias(model: nn.Sequential) -> str:
    model[0].bias = None
    return "is off by"


def one_float32_step(model: nn.Sequential) -> str:
    with torch.no_grad():
        weight = model[0].weight.view(-1)
        weight[1] = torch.nextafter(weight[1], torch.tensor(9.0))
    return "of its largest value"


def doubled(model: nn.Sequential) -> str:
    model.append(Apply(lambda y: y * 2))
    return "is off by"


def other_shape(model: nn.Sequential) -> str:
    model[3].stride = (2, 2)
    return "has shape"


def other_dtype(model: nn.Sequential) -> str:
    model.append(Apply(lambda y: y > 0))
    return "has dtype torch.bool"


def nan_somewhere(model: nn.Sequential) -> str:
    model.append(Apply(lambda y: y.masked_fill(y == y.max(), float("nan"))))
    return "values that are finite"


def in_a_tuple(model: nn.Sequential) -> str:
    model.append(Apply(lambda y: (y,)))
    return "output is a tuple instead of a Tensor"


def fails(model: nn.Sequential) -> str:
    model.append(Apply(lambda y: y.view(2, -1, 7)))
    return "the rewritten model fails where the original runs: RuntimeError"


def only_for_one_batch_size(model: nn.Sequential) -> str:
    model.append(Apply(lambda y: y if y.shape[0] == 2 else y + 1))
    return "is off by"


def only_for_the_given_inputs(model: nn.Sequential) -> str:
    model.append(Apply(lambda y: y + 1 if y.shape[0] == 2 else y))
    return "is off by"


def only_for_one_spatial_size(model: nn.Sequential) -> str:
    model.append(Apply(lambda y: y if y.shape[2] == 11 else y + 1))
    return "is off by"


WRONG = [
    swapped_rows,
    lost_bias,
    one_float32_step,
    doubled,
    other_shape,
    other_dtype,
    nan_somewhere,
    in_a_tuple,
    fails,
    only_for_one_batch_size,
    only_for_the_given_inputs,
    only_for_one_spatial_size,
]


class Apply(nn.Module):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, value: Any) -> Any:
        return self.function(value)


@pytest.mark.parametrize("damage", WRONG, ids=lambda damage: damage.__name__)
def test_a_wrong_model_is_caught(damage: Callable[[nn.Sequential], str]) -> None:
    model = network()
    wrong = copy.deepcopy(model)
    assert compare_models(model, wrong, IMAGES).identical, "it is right before it is damaged"
    expected = damage(wrong)
    verdict = compare_models(model, wrong, IMAGES)
    assert not verdict.ok
    assert expected in str(verdict.reason)


def test_a_model_that_was_changed_itself_is_caught() -> None:
    """Both sides agree then, because they share the damage; the fingerprint does not."""
    model = network()
    before = Fingerprint.of(model)
    assert before.changes(model) == ()
    with torch.no_grad():
        model[0].weight.view(-1)[3] += 1e-6
    assert compare_models(model, copy.deepcopy(model), IMAGES).ok
    assert before.changes(model) == ("0.weight",)


CHANGES: dict[str, tuple[Callable[[nn.Sequential], Any], tuple[str, ...]]] = {
    "buffer": (lambda m: m[1].running_mean.add_(1), ("1.running_mean",)),
    "mode": (lambda m: m[1].train(), ("1",)),
    "frozen": (lambda m: m[3].bias.requires_grad_(False), ("3.bias",)),
    "hook": (lambda m: m[2].register_forward_hook(lambda *_: None), ("2",)),
    "dtype": (lambda m: m[3].half(), ("3.bias", "3.weight")),
    "replaced": (lambda m: setattr(m[0], "bias", nn.Parameter(m[0].bias.detach())), ("0.bias",)),
    "removed": (lambda m: setattr(m[0], "bias", None), ("0.bias",)),
    "module": (lambda m: m.append(nn.ReLU()), ("4",)),
}


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES.keys())
def test_a_fingerprint_sees(
    change: Callable[[nn.Sequential], Any], expected: tuple[str, ...]
) -> None:
    model = network()
    before = Fingerprint.of(model)
    change(model)
    assert before.changes(model) == expected


# Outputs of every build


class NamedPair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass
class Record:
    first: Tensor
    rest: dict[str, Tensor]


class Plain:
    def __init__(self, cache: list[Tensor], steps: int) -> None:
        self.cache, self.steps = cache, steps


BUILDS: dict[str, Callable[[Tensor, float], Any]] = {
    "tuple": lambda x, d: (x, (x * 2 + d, 3)),
    "list": lambda x, d: [x, x + d],
    "dict": lambda x, d: {"a": x, "b": {"c": x + d}},
    "named_tuple": lambda x, d: NamedPair(x, x + d),
    "dataclass": lambda x, d: Record(x, {"deep": x + d}),
    "object": lambda x, d: Plain([x + d], 3),
    "float": lambda x, d: (x, float(x.sum()) + d),
    "numpy": lambda x, d: (x + d).numpy(),
    "complex": lambda x, d: torch.complex(x, x + d),
    "sparse": lambda x, d: (x[0, 0] + d).to_sparse(),
    "integers": lambda x, d: torch.round(x * 10 + d * 1e10).long(),
    "bools": lambda x, d: x + d * 1e12 > 0.5,
    "text": lambda x, d: (x, "wrong" if d else "right"),
    "number": lambda x, d: (x, 1 if d else 2),
    "none": lambda x, d: (x, None if d else 0),
    "length": lambda x, d: [x] * (2 if d else 3),
    "keys": lambda x, d: {"a" if d else "b": x},
}


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())
def test_every_output_is_compared(build: Callable[[Tensor, float], Any]) -> None:
    """The wrong side is off by 1e-9 in one part, or differs in what is not a number."""
    right, same, wrong = (Apply(lambda x, d=d: build(x, d)) for d in (0.0, 0.0, 1e-9))
    assert compare_models(right, same, IMAGES).ok
    verdict = compare_models(right, wrong, IMAGES)
    assert not verdict.ok
    assert str(verdict.reason).startswith("output")


def test_values_that_are_not_finite_must_agree_in_kind() -> None:
    def values(first: float, second: float) -> nn.Module:
        return Apply(lambda x: torch.cat([x.flatten(), x.new_tensor([first, second])]))

    inf, nan = float("inf"), float("nan")
    assert compare_models(values(inf, nan), values(inf, nan), IMAGES).ok
    for first, second in ((-inf, nan), (inf, inf), (1.0, nan), (inf, 0.0)):
        verdict = compare_models(values(inf, nan), values(first, second), IMAGES)
        assert "instead of" in str(verdict.reason), (first, second)


def test_rounding_is_let_through() -> None:
    right, rounded = Apply(lambda x: x.sum((2, 3))), Apply(lambda x: x.sum((2, 3)) * STEP)
    verdict = compare_models(right, rounded, IMAGES)
    assert verdict.ok
    assert not verdict.identical
    assert 0 < verdict.relative_error < 1e-14
    assert not compare_models(right, rounded, IMAGES, tolerance=0.0).ok


def test_one_run_that_is_rounded_is_not_identical() -> None:
    right = Apply(lambda x: x.sum((2, 3)))
    once = Apply(lambda x: x.sum((2, 3)) * (STEP if x.shape[0] == 2 else 1))
    verdict = compare_models(right, once, IMAGES)
    assert verdict.ok
    assert not verdict.identical


def test_a_size_that_the_original_refuses_does_not_change_how_it_is_run() -> None:
    """Both sides in float64 throughout, though the first size to be tried is none for it."""

    def picky(x: Tensor) -> Tensor:
        if x.shape[2] != 11:
            raise ValueError("11 rows")
        return x.float() * 1.1

    right = Apply(picky)
    assert compare_models(right, Apply(picky), IMAGES, once=True).identical
    wrong = Apply(lambda x: picky(x) * (1 + 2e-9))
    assert not compare_models(right, wrong, IMAGES, once=True).ok


@pytest.mark.parametrize(
    ("shape", "multiple", "expected"),
    [
        ((2, 1, 64, 48), 1, (1, 1, 24, 12)),
        ((2, 1, 64, 64), 8, (1, 1, 24, 16)),
        ((2, 1, 64, 96), 32, (1, 1, 32, 32)),
        ((2, 1, 32, 32, 32), 32, (1, 1, 32, 32, 32)),
    ],
)
def test_one_run_is_of_the_smallest_size_that_the_original_takes(
    shape: tuple[int, ...], multiple: int, expected: tuple[int, ...]
) -> None:
    ran = []

    def strided(x: Tensor) -> Tensor:
        if any(size % multiple for size in x.shape[2:]):
            raise ValueError(f"multiples of {multiple}")
        if not x.is_meta:
            ran.append(tuple(x.shape))
        return x.mean(1)

    model = Apply(strided)
    verdict = compare_models(model, model, ExampleInputs.of(torch.ones(shape)), once=True)
    assert verdict.ok
    assert verdict.runs == ((expected,),)
    assert ran == [expected] * 2, "no other size is computed with"


def test_what_a_model_keeps_for_its_next_call_is_not_of_meta() -> None:
    class Keeps(nn.Module):
        table: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.ones(1, device=x.device)
            return x * self.table

    model = Keeps()
    assert compare_models(model, Keeps(), ExampleInputs.of(torch.ones(2, 1, 64, 64)), once=True).ok
    assert model(torch.ones(1, 1, 3, 3)).sum() == 9


def test_models_in_train_mode_are_compared_in_eval_mode() -> None:
    """Dropout and batch statistics would differ at random, or hide what differs."""
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 4, 1)).train()
    same, wrong = copy.deepcopy(model).eval(), copy.deepcopy(model)
    assert compare_models(model, same, IMAGES).identical
    wrong[0].running_mean += 1
    assert not compare_models(model, wrong, IMAGES).ok
    assert model.training


def test_sizes_vary_as_far_as_the_original_goes() -> None:
    model = network()
    shapes = [run[0] for run in compare_models(model, model, IMAGES).runs]
    assert [shape[0] for shape in shapes] == [2, 3, 1]
    assert shapes[0] == (2, 4, 11, 13)
    assert shapes[2][2] < 11
    assert shapes[2][2] != shapes[2][3]

    fixed = nn.Sequential(network(), nn.Flatten(), nn.Linear(6 * 11 * 13, 2))
    shapes = [run[0] for run in compare_models(fixed, fixed, IMAGES).runs]
    assert shapes == [(2, 4, 11, 13), (3, 4, 11, 13), (1, 4, 11, 13)]

    runs = compare_models(model, model, IMAGES, vary=False).runs
    assert runs == (((2, 4, 11, 13),),) * 3


def test_an_original_that_does_not_run_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"Sequential does not run in float64 .* \[2, 5, 7, 7\]"):
        compare_models(network(), network(), ExampleInputs.of(torch.randn(2, 5, 7, 7)))


class Noisy(nn.Module):
    """Draws from all three generators."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand_like(x) + random.random() + float(np.random.rand())


def test_random_models_get_the_same_numbers() -> None:
    assert compare_models(Noisy(), Noisy(), IMAGES).identical
    assert not compare_models(Noisy(), Apply(lambda x: x), IMAGES).ok


class Restless(nn.Module):
    """Writes to its buffers and replaces them in eval mode, and its input."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv = nn.utils.weight_norm(nn.Conv2d(4, 4, 1)).to(dtype)
        self.register_buffer("sums", torch.zeros(4, dtype=dtype))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("last", None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.sums += y.mean((0, 2, 3))
        self.calls.add_(1)
        self.last = y.amax((2, 3))
        if not torch.is_grad_enabled():
            x.mul_(0)
        return y + self.sums[:, None, None]

    def eval(self) -> "Restless":
        raise NotImplementedError("as an exported module")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_everything_is_left_as_it_was(dtype: torch.dtype) -> None:
    model, twin = Restless(dtype), Restless(dtype)
    twin.load_state_dict(model.state_dict())
    model.conv.train()
    given = torch.randn(2, 4, 5, 7, dtype=dtype)
    kept, weight = given.clone(), model.conv.weight
    before, other = Fingerprint.of(model), Fingerprint.of(twin)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()

    verdict = compare_models(model, twin, ExampleInputs.of(given))
    assert verdict.ok, verdict.reason
    seen = observable_sites(model, ExampleInputs.of(given), {"conv": ["conv.weight_v"]})
    assert seen == {"conv": True}

    assert before.changes(model) == ()
    assert other.changes(twin) == ()
    assert model.last is None
    assert model.conv.weight is weight
    assert torch.equal(given, kept)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_a_torchscript_model_is_compared_in_a_copy() -> None:
    model = torch.jit.script(network())
    wrong = network()
    wrong.load_state_dict(model.state_dict())
    assert compare_models(model, wrong, IMAGES).ok
    lost_bias(wrong)
    assert not compare_models(model, wrong, IMAGES).ok


# What can be seen at the end


def test_blind_networks_are_told() -> None:
    for name, expected in (("resnext", True), ("resnext-blind", False)):
        model = zoo.CASES[name].build()
        sites = {path: [f"{path}.weight"] for path, groups in zoo.grouped_modules(model).items()}
        inputs = ExampleInputs.of(zoo.CASES[name].inputs())
        assert sites
        assert set(observable_sites(model, inputs, sites).values()) == {expected}


class SeenAndHidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in ("seen", "hidden", "cut", "unused", "tied"):
            setattr(self, name, nn.Conv1d(2, 2, 1))
        self.tied.weight = self.seen.weight
        self.again = self.seen  # a module under two names
        self.rnn = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.again(x) + self.hidden(x) * 0 + self.cut(x).detach()
        return self.rnn(y)[0]


def test_what_cannot_be_told_is_none() -> None:
    model = SeenAndHidden()
    model.seen.weight.requires_grad_(False)
    names = ("seen", "hidden", "cut", "unused", "tied", "again")
    sites = {name: [f"{name}.weight"] for name in names}
    sites |= {"lstm": ["rnn.weight_ih_l0"], "nothing": [], "several": ["cut.bias", "seen.bias"]}
    before = Fingerprint.of(model)
    flat = list(model.rnn._flat_weights)
    seen = observable_sites(model, ExampleInputs.of(torch.randn(3, 2, 4)), sites)
    assert seen == {
        "seen": True,
        "hidden": False,
        "cut": None,
        "unused": None,
        "tied": True,
        "again": True,
        "lstm": True,
        "nothing": None,
        "several": True,
    }
    assert before.changes(model) == ()
    assert all(a is b for a, b in zip(flat, model.rnn._flat_weights, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_outputs_without_a_derivative_tell_nothing() -> None:
    conv = nn.Conv1d(2, 2, 1)
    inputs = ExampleInputs.of(torch.randn(2, 2, 5))
    site = {"conv": ["0.weight"]}
    for end in (Apply(lambda y: y.argmax(1)), Apply(lambda y: y.detach()), Apply(lambda y: y / 0)):
        assert observable_sites(nn.Sequential(conv, end), inputs, site) == {"conv": None}
    assert observable_sites(nn.Sequential(nn.Conv1d(5, 2, 1)), inputs, site) == {"conv": None}


def test_no_copy_is_made_for_sizes_that_a_model_refuses() -> None:
    copies = []

    class Square(nn.Conv2d):
        def __deepcopy__(self, memo: object) -> nn.Module:
            copies.append(self)
            return self

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[2:] != (64, 64):
                raise ValueError("64 x 64 alone")
            return super().forward(x)

    model = Square(3, 3, 1)
    verdict = compare_models(model, model, ExampleInputs.of(torch.randn(2, 3, 64, 64)), once=True)
    assert verdict.ok
    assert verdict.runs == (((1, 3, 64, 64),),)
    assert not copies
