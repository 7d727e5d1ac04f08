"""Optimisers carried from an original to its split form and back: the next steps are the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from groupfx.errors import RewriteError, UsageError
from groupfx.state.map import Rows, StateDictMap
from groupfx.state.optimizer import Piece, split_optimizer


class WholeParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(10, 3, 3, 3))
        self.bias = nn.Parameter(torch.empty(10))
        self.scale = nn.Parameter(torch.empty(()))
        self.linear = nn.Parameter(torch.empty(7, 5))
        self.frozen = nn.Parameter(torch.empty(11), requires_grad=False)


class SplitParameters(nn.Module):
    """The rows of `weight` and `bias` in two parts, of 3 and of 7 rows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.ParameterList([torch.empty(3, 3, 3, 3), torch.empty(7, 3, 3, 3)])
        self.bias = nn.ParameterList([torch.empty(3), torch.empty(7)])
        self.scale = nn.Parameter(torch.empty(()))
        self.linear = nn.Parameter(torch.empty(7, 5))
        self.frozen = nn.Parameter(torch.empty(11), requires_grad=False)


ENTRIES = {
    "weight.0": Rows("weight", 0, 3),
    "weight.1": Rows("weight", 3, 10),
    "bias.0": Rows("bias", 0, 3),
    "bias.1": Rows("bias", 3, 10),
    "scale": Rows("scale"),
    "linear": Rows("linear"),
    "frozen": Rows("frozen"),
}
Build = Callable[[Any], optim.Optimizer]
OPTIMIZERS: dict[str, Build] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1, weight_decay=0.01),
    "sgd-momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1),
    "sgd-nesterov": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "sgd-maximize": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, maximize=True),
    "adam": lambda p: optim.Adam(p, lr=0.01, betas=(0.8, 0.95), eps=1e-5),
    "adam-amsgrad": lambda p: optim.Adam(p, lr=0.01, amsgrad=True, weight_decay=0.1),
    "adam-tensor-lr": lambda p: optim.Adam(p, lr=torch.tensor(0.01)),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw-amsgrad": lambda p: optim.AdamW(p, lr=0.01, amsgrad=True, foreach=True),
    "nadam": lambda p: optim.NAdam(p, lr=0.01, decoupled_weight_decay=True, weight_decay=0.1),
    "radam": lambda p: optim.RAdam(p, lr=0.01),
    "adamax": lambda p: optim.Adamax(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, alpha=0.9),
    "rmsprop-centered": lambda p: optim.RMSprop(p, lr=0.01, centered=True, momentum=0.9),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.1, lr_decay=0.1, initial_accumulator_value=0.3),
    "adadelta": lambda p: optim.Adadelta(p, lr=0.5),
    "asgd": lambda p: optim.ASGD(p, lr=0.1, t0=1.0),
    "rprop": lambda p: optim.Rprop(p, lr=0.1),
}
STATELESS = {"sgd"}


def pair(
    dtype: torch.dtype = torch.float32,
) -> tuple[WholeParameters, SplitParameters, StateDictMap]:
    """An original with random values, and its split form that holds the same."""
    torch.manual_seed(0)
    original, split = WholeParameters().to(dtype), SplitParameters().to(dtype)
    for parameter in original.parameters():
        nn.init.normal_(parameter)
    mapping = StateDictMap(ENTRIES, model=split)
    mapping.load_original(original.state_dict())
    return original, split, mapping


def gradients(original: WholeParameters, number: int) -> dict[str, Tensor]:
    """Random gradients of the original's parameters, the same for the same number."""
    generator = torch.Generator().manual_seed(number)
    return {
        name: torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        for name, parameter in original.named_parameters()
        if parameter.requires_grad
    }


def step(
    model: WholeParameters | SplitParameters, optimizer: optim.Optimizer, given: dict[str, Tensor]
) -> None:
    """One step on the given gradients of the original, or on their rows."""
    for name, parameter in model.named_parameters():
        rows = Rows(name) if isinstance(model, WholeParameters) else ENTRIES[name]
        if rows.key in given:
            whole = given[rows.key]
            parameter.grad = (whole if rows.stop is None else whole[rows.start : rows.stop]).clone()
    optimizer.step()


def disagreement(original: WholeParameters, split: SplitParameters) -> list[str]:
    """The split parameters that are not, bit for bit, rows of the original's."""
    expected = StateDictMap(ENTRIES).convert(original.state_dict())
    return [key for key, value in split.state_dict().items() if not value.equal(expected[key])]


def state_of(optimizer: optim.Optimizer) -> list[dict[str, Any]]:
    return [copy.deepcopy(state) for state in optimizer.state.values()]


def equal_states(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> bool:
    def equal(a: Any, b: Any) -> bool:
        return a.equal(b) if isinstance(a, Tensor) else a == b

    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
        for a, b in zip(left, right, strict=True)
    )


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """Two groups with options of their own: the convolution's parameters, and the rest."""
    named = list(model.named_parameters())
    conv = [parameter for name, parameter in named if name.startswith(("weight", "bias"))]
    rest = [parameter for name, parameter in named if not name.startswith(("weight", "bias"))]
    return [{"params": conv}, {"params": rest, "lr": 0.03, "weight_decay": 0.2, "tag": "rest"}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_steps_are_the_same_there_and_back(name: str, dtype: torch.dtype) -> None:
    original, split, mapping = pair(dtype)
    optimizer = OPTIMIZERS[name](groups_of(original))
    for number in range(4):
        step(original, optimizer, gradients(original, number))
    mapping.load_original(original.state_dict())
    before = state_of(optimizer)
    converted = mapping.convert_optimizer(optimizer, original)
    assert type(converted) is type(optimizer)
    for number in range(4, 7):
        step(split, converted, gradients(original, number))
    assert equal_states(state_of(optimizer), before)
    for number in range(4, 7):
        step(original, optimizer, gradients(original, number))
    assert disagreement(original, split) == []

    again = WholeParameters().to(dtype)
    again.load_state_dict(mapping.to_original())
    back = mapping.optimizer_to_original(converted, again)
    assert equal_states(state_of(back), state_of(optimizer))
    for number in range(7, 10):
        step(original, optimizer, gradients(original, number))
        step(again, back, gradients(original, number))
    assert all(a.equal(b) for a, b in zip(original.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.keys() - STATELESS))
def test_a_fresh_optimiser_would_be_seen(name: str) -> None:
    original, split, mapping = pair()
    optimizer = OPTIMIZERS[name](groups_of(original))
    for number in range(4):
        step(original, optimizer, gradients(original, number))
    mapping.load_original(original.state_dict())
    fresh = OPTIMIZERS[name](groups_of(split))
    for number in range(4, 7):
        step(original, optimizer, gradients(original, number))
        step(split, fresh, gradients(original, number))
    assert disagreement(original, split) != []


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW, optim.Adagrad])
def test_fused_kernels_agree_to_rounding(kind: Callable[..., optim.Optimizer]) -> None:
    # On the CPU they handle the last few elements of a tensor by other instructions.
    options = {"momentum": 0.9} if kind is optim.SGD else {"weight_decay": 0.2}
    original, split, mapping = pair()
    optimizer = kind(original.parameters(), lr=0.1, fused=True, **options)
    step(original, optimizer, gradients(original, 0))
    mapping.load_original(original.state_dict())
    converted = mapping.convert_optimizer(optimizer, original)
    for number in range(1, 4):
        step(original, optimizer, gradients(original, number))
        step(split, converted, gradients(original, number))
    for key, value in mapping.to_original().items():
        expected = original.state_dict()[key]
        bound = 4 * torch.finfo(value.dtype).eps * expected.abs().max()
        assert (value - expected).abs().max() <= bound, key


def test_groups_keep_their_options_and_frozen_parameters() -> None:
    original, split, mapping = pair()
    optimizer = optim.AdamW(groups_of(original), lr=0.01, weight_decay=0.1)
    step(original, optimizer, gradients(original, 0))
    optimizer.param_groups[0]["lr"] = 0.007  # as a scheduler would
    converted = mapping.convert_optimizer(optimizer, original)
    conv, rest = converted.param_groups
    assert [id(p) for p in conv["params"]] == [id(p) for p in (*split.weight, *split.bias)]
    assert [id(p) for p in rest["params"]] == [
        id(p) for p in (split.scale, split.linear, split.frozen)
    ]
    for new, old in zip(converted.param_groups, optimizer.param_groups, strict=True):
        assert {**new, "params": 0} == {**old, "params": 0}
    assert split.frozen not in converted.state
    assert converted.defaults == optimizer.defaults


def test_parameters_that_the_optimiser_never_had_stay_out() -> None:
    original, split, mapping = pair()
    optimizer = optim.Adam([original.bias], lr=0.01)
    (group,) = mapping.convert_optimizer(optimizer, original).param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in split.bias]


def test_an_optimiser_checkpoint_goes_through_an_optimiser() -> None:
    original, split, mapping = pair()
    optimizer = optim.Adam(original.parameters(), lr=0.01)
    for number in range(3):
        step(original, optimizer, gradients(original, number))
    checkpoint = copy.deepcopy({"net": original.state_dict(), "opt": optimizer.state_dict()})

    later, split, mapping = pair()
    reloaded = optim.Adam(later.parameters())
    reloaded.load_state_dict(checkpoint["opt"])
    mapping.load_original(checkpoint["net"])
    converted = mapping.convert_optimizer(reloaded, later)
    step(original, optimizer, gradients(original, 3))
    step(split, converted, gradients(original, 3))
    assert disagreement(original, split) == []


def test_a_scheduler_goes_on() -> None:
    def schedule(optimizer: optim.Optimizer) -> optim.lr_scheduler.LambdaLR:
        return optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))

    original, _, mapping = pair()
    optimizer = optim.SGD(original.parameters(), lr=0.1)
    scheduler = schedule(optimizer)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    converted = mapping.convert_optimizer(optimizer, original)
    following = schedule(converted)
    following.load_state_dict(scheduler.state_dict())
    for new, old in zip(converted.param_groups, optimizer.param_groups, strict=True):
        new["lr"] = old["lr"]
    for _ in range(3):
        assert converted.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        for each in (optimizer, converted, scheduler, following):
            each.step()


class Lion(optim.Optimizer):
    """Element by element, with a state of the parameter's shape; not a class of torch."""

    def __init__(self, params: Any, lr: float = 0.1, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    mean.lerp_(p.grad, 1 - group["beta"])
                    p.sub_(mean.sign(), alpha=group["lr"])


class RowNorm(Lion):
    """Has state of another shape than its parameter's."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        for parameter, state in self.state.items():
            state["norm"] = parameter.flatten(1).norm(dim=1) if parameter.dim() > 1 else 0.0


def test_another_class_needs_someone_to_vouch_for_it() -> None:
    original, split, mapping = pair()
    optimizer = Lion(original.parameters(), lr=0.05)
    step(original, optimizer, gradients(original, 0))
    mapping.load_original(original.state_dict())
    with pytest.raises(RewriteError, match=r"Lion cannot be carried over: .*elementwise=True"):
        mapping.convert_optimizer(optimizer, original)
    converted = mapping.convert_optimizer(optimizer, original, elementwise=True)
    with pytest.raises(RewriteError, match="Lion cannot be carried over"):
        mapping.optimizer_to_original(converted, original)
    step(original, optimizer, gradients(original, 1))
    step(split, converted, gradients(original, 1))
    assert disagreement(original, split) == []
    back = mapping.optimizer_to_original(converted, original, elementwise=True)
    assert equal_states(state_of(back), state_of(optimizer))


def refused() -> dict[str, tuple[Build, str]]:
    def shared_state(params: Any) -> optim.Optimizer:
        optimizer = Lion(params)
        optimizer.state["history"] = [1, 2]  # type: ignore[index]
        return optimizer

    return {
        "adafactor": (lambda p: optim.Adafactor(p), "Adafactor .* whole rows and columns"),
        "lbfgs": (lambda p: optim.LBFGS(p), "LBFGS .* one history"),
        "muon": (lambda p: optim.Muon([q for q in p if q.dim() == 2]), "Muon .* orthogonalises"),
        "sparse-adam": (lambda p: optim.SparseAdam(list(p)), "SparseAdam .* sparse gradients"),
        "shared-state": (shared_state, "Lion .* 'history' belongs to no parameter"),
    }


@pytest.mark.parametrize("name", refused())
def test_optimisers_that_mix_elements_are_refused_by_name(name: str) -> None:
    build, words = refused()[name]
    original, split, mapping = pair()
    with pytest.raises(RewriteError, match=words):
        mapping.convert_optimizer(build(original.parameters()), original, elementwise=True)
    with pytest.raises(RewriteError, match=words):
        mapping.optimizer_to_original(build(split.parameters()), original, elementwise=True)


def test_state_of_another_shape_is_refused_even_if_vouched_for() -> None:
    original, _, mapping = pair()
    optimizer = RowNorm(original.parameters())
    step(original, optimizer, gradients(original, 0))
    words = r"RowNorm .* its state 'norm' of 'weight' is \[10\], neither a scalar nor of the param"
    with pytest.raises(RewriteError, match=words):
        mapping.convert_optimizer(optimizer, original, elementwise=True)


def test_a_class_that_cannot_be_built_again_is_refused() -> None:
    class Picky(Lion):
        def __init__(self, params: Any, *, secret: int) -> None:
            super().__init__(params)

    original, _, mapping = pair()
    optimizer = Picky(original.parameters(), secret=1)
    with pytest.raises(RewriteError, match=r"Picky could not be built .*secret"):
        mapping.convert_optimizer(optimizer, original, elementwise=True)


def test_parameters_of_another_model_are_refused() -> None:
    original, split, mapping = pair()
    other = optim.Adam([*original.parameters(), torch.ones(13, requires_grad=True)])
    with pytest.raises(UsageError, match=r"1 of 6 parameters in group 0 .* shape \[13\]"):
        mapping.convert_optimizer(other, original)
    with pytest.raises(UsageError, match=r"7 of 7 parameters .* not those of the original model"):
        mapping.convert_optimizer(optim.Adam(split.parameters()), original)
    with pytest.raises(UsageError, match=r"5 of 5 parameters .* not those of the rewritten model"):
        mapping.optimizer_to_original(optim.Adam(original.parameters()), original)
    with pytest.raises(UsageError, match=r"no parameter 'scale', which 'scale' comes from"):
        mapping.convert_optimizer(optim.Adam(original.parameters()), nn.Linear(2, 3))
    wide = copy.deepcopy(original)
    wide.weight = nn.Parameter(torch.ones(10, 4, 3, 3))
    with pytest.raises(UsageError, match=r"'weight' of the model given is \[10, 4, 3, 3\]"):
        mapping.convert_optimizer(optim.Adam(wide.parameters()), wide)


def test_dropped_parameters_are_left_out() -> None:
    original, split, _ = pair()
    rest = {key: rows for key, rows in ENTRIES.items() if key != "linear"}
    mapping = StateDictMap(rest, dropped=["linear"], model=split)
    optimizer = optim.Adam(original.parameters())
    converted = mapping.convert_optimizer(optimizer, original)
    assert len(converted.param_groups[0]["params"]) == len(rest)


def test_parts_that_went_apart_cannot_be_joined() -> None:
    original, split, mapping = pair()

    def trained() -> optim.Optimizer:
        optimizer = optim.Adam(split.parameters())
        for parameter in split.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        optimizer.step()
        return optimizer

    steps = trained()
    steps.state[split.bias[1]]["step"] += 1
    with pytest.raises(RewriteError, match=r"'step' differs .* 'bias' \(\[1.0, 2.0\]\)"):
        mapping.optimizer_to_original(steps, original)
    untrained = trained()
    del untrained.state[split.bias[0]]
    with pytest.raises(RewriteError, match="parts of 'bias' hold different state"):
        mapping.optimizer_to_original(untrained, original)
    apart = optim.Adam([{"params": split.weight[:1]}, {"params": split.weight[1:]}])
    with pytest.raises(RewriteError, match=r"2 parts of 'weight' are in different .*\[0, 1\]"):
        mapping.optimizer_to_original(apart, original)
    half = optim.Adam(split.weight[:1])
    with pytest.raises(RewriteError, match=r"2 parts of 'weight' are in different .*\[0, None\]"):
        mapping.optimizer_to_original(half, original)


def test_tied_parameters_stay_one() -> None:
    original, split, _ = pair()
    original.twin = original.weight
    split.twin = split.weight
    twins = {key.replace("weight", "twin"): rows for key, rows in ENTRIES.items() if "w" in key}
    mapping = StateDictMap(
        {**ENTRIES, **{key: Rows("twin", rows.start, rows.stop) for key, rows in twins.items()}},
        model=split,
    )
    optimizer = optim.Adam(original.parameters(), lr=0.01)
    for number in range(2):
        step(original, optimizer, gradients(original, number))
    mapping.load_original(original.state_dict())
    converted = mapping.convert_optimizer(optimizer, original)
    assert len(converted.param_groups[0]["params"]) == len(ENTRIES)
    step(original, optimizer, gradients(original, 2))
    step(split, converted, gradients(original, 2))
    assert original.weight[:3].equal(split.weight[0])
    assert original.weight[3:].equal(split.weight[1])
    back = mapping.optimizer_to_original(converted, original)
    assert equal_states(state_of(back), state_of(optimizer))


def test_a_parameter_in_two_untied_copies_is_refused() -> None:
    whole = nn.Parameter(torch.ones(4, 3))
    copies = [nn.Parameter(torch.ones(4, 3)) for _ in range(2)]
    for pieces in (
        [Piece(whole, each, Rows("w")) for each in copies],
        [
            Piece(whole, copies[0], Rows("w", 0, 4)),
            Piece(whole, nn.Parameter(whole[1:3]), Rows("w", 1, 3)),
        ],
    ):
        with pytest.raises(RewriteError, match=r"'w' .* not tied"):
            split_optimizer(optim.SGD([whole]), pieces)
