"""The zoo is what its table says, and the ground truth counts right."""

import inspect
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from tests.models import zoo
from tests.models import zoo_models as zm
from tests.models.zoo import CASES, Case, Inputs
from tests.thinning import one_in

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def tensors(output: Any) -> list[Tensor]:
    """Every floating point tensor of an output, however it is nested."""
    leaves = tree_leaves(dict(output) if hasattr(output, "to_tuple") else output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def outputs(model: nn.Module, inputs: Inputs, seed: int = 1) -> list[Tensor]:
    random.seed(seed)
    with torch.no_grad():
        return tensors(zoo.run(model, inputs))


def identical(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# The counter


class Calls(nn.Module):
    """A module around a function, to be counted."""

    def __init__(self, call: Callable[[Tensor], Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.call = call
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def weight(*shape: int) -> Tensor:
    return torch.randn(shape)


def over(*modules: nn.Module) -> Calls:
    return Calls(nn.Sequential(*modules), *modules)


shared = nn.Conv1d(6, 6, 3, groups=3)

COUNTED: dict[str, tuple[nn.Module, tuple[int, ...], dict[str, int]]] = {
    "dense": (over(nn.Conv1d(6, 9, 3), nn.ConvTranspose1d(9, 6, 3)), (2, 6, 13), {}),
    "linear": (over(nn.Linear(13, 7)), (2, 6, 13), {}),
    "module": (over(nn.Conv1d(6, 9, 3, groups=3)), (2, 6, 13), {"grouped": 1}),
    "module-twice": (over(shared, shared), (2, 6, 13), {"grouped": 2}),
    "not-called": (Calls(torch.relu, shared), (2, 6, 13), {}),
    "unbatched": (over(nn.Conv1d(6, 9, 3, groups=3)), (6, 13), {"grouped": 1}),
    "same-even": (
        over(nn.Conv2d(6, 9, (2, 4), padding="same", groups=3)),
        (2, 6, 7, 11),
        {"grouped": 1},
    ),
    "circular": (
        over(nn.Conv2d(6, 9, 3, padding=2, padding_mode="circular", groups=3)),
        (2, 6, 7, 11),
        {"grouped": 1},
    ),
    "transposed": (over(nn.ConvTranspose2d(6, 9, 3, groups=3)), (2, 6, 5, 7), {"transposed": 1}),
    "transposed-3d": (
        over(nn.ConvTranspose3d(6, 4, 2, groups=2), nn.Conv3d(4, 4, 1, groups=4)),
        (2, 6, 3, 5, 7),
        {"transposed": 1, "depthwise": 1},
    ),
    "multiplier": (
        over(nn.Conv1d(6, 12, 3, groups=6)),
        (2, 6, 13),
        {"depthwise-multiplier": 1},
    ),
    "F.conv2d": (
        Calls(lambda x: F.conv2d(x, weight(9, 2, 3, 3), groups=3)),
        (2, 6, 7, 11),
        {"grouped": 1},
    ),
    "torch.conv1d": (
        Calls(lambda x: torch.conv1d(x, weight(6, 1, 3), None, 1, 0, 1, 6)),
        (2, 6, 13),
        {"depthwise": 1},
    ),
    "torch.convolution": (
        Calls(lambda x: torch.convolution(x, weight(9, 2, 3), None, [1], [0], [1], False, [0], 3)),
        (2, 6, 13),
        {"grouped": 1},
    ),
    "F.conv_transpose1d": (
        Calls(lambda x: F.conv_transpose1d(x, weight(6, 5, 3), groups=2)),
        (2, 6, 13),
        {"transposed": 1},
    ),
    "aten": (
        Calls(lambda x: torch.ops.aten.conv1d.padding(x, weight(9, 2, 3), groups=3)),
        (2, 6, 13),
        {"grouped": 1},
    ),
    "parametrised": (
        over(parametrizations.weight_norm(nn.Conv1d(6, 9, 3, groups=3))),
        (2, 6, 13),
        {"grouped": 1},
    ),
}


@pytest.mark.parametrize(("model", "shape", "kinds"), COUNTED.values(), ids=COUNTED)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_grouped_calls_are_counted(
    model: nn.Module, shape: tuple[int, ...], kinds: dict[str, int], training: bool
) -> None:
    seen = zoo.count_grouped_calls(model.train(training), (torch.randn(shape),))
    assert seen == Counter(kinds)


def test_grouped_calls_are_counted_in_a_forward_that_records_gradients() -> None:
    conv = nn.Conv1d(6, 9, 3, groups=3)
    x = torch.randn(2, 6, 13, requires_grad=True)
    with zoo.GroupedCalls() as seen:
        conv(x).sum().backward()
    assert seen.kinds == Counter(grouped=1)  # the backward is no second call


def test_modules_alone_would_miss_functional_calls() -> None:
    model = CASES["positional"].build()
    assert zoo.grouped_modules(model) == {}
    assert zoo.count_grouped_calls(model, CASES["positional"].inputs()).total() == 1


def test_a_module_with_two_names_is_listed_under_both() -> None:
    assert zoo.grouped_modules(zm.TwoNames()) == {"head": 2, "tail": 2}


def test_negated_convolutions_change_the_output() -> None:
    conv = nn.Conv1d(6, 9, 3, groups=3)
    x = torch.randn(2, 6, 13)
    with torch.no_grad(), zoo.GroupedCalls(negate=True):
        negated = conv(x)
    assert torch.equal(negated, -conv(x))


# The table


@each_case
def test_table_agrees_with_what_is_executed(case: Case) -> None:
    model = case.build()
    kinds = zoo.count_grouped_calls(model, case.inputs())
    if case.calls is None:
        assert kinds == Counter(case.sites)
    else:
        assert kinds.total() == case.calls < sum(case.sites.values())
        # What these inputs do not reach is a module, so that it can be counted as one.
        assert len(zoo.grouped_modules(model)) == sum(case.sites.values())
    assert 0 <= case.left <= sum(case.sites.values())


@each_case
def test_cases_are_the_same_each_time(case: Case) -> None:
    first, second = case.build(), case.build()
    assert not first.training
    assert first is not second
    assert identical(list(first.state_dict().values()), list(second.state_dict().values()))
    assert identical(outputs(first, case.inputs()), outputs(second, case.inputs()))


@each_case
def test_grouped_convolutions_are_observable_but_in_blind_models(case: Case) -> None:
    model, inputs = case.build(), case.inputs()
    plain = outputs(model, inputs)
    assert all(bool(output.isfinite().all()) for output in plain)
    with zoo.GroupedCalls(negate=True):
        negated = outputs(model, inputs)
    assert identical(plain, negated) == (case.blind or not case.sites)


@each_case
def test_batchnorms_are_not_trivial(case: Case) -> None:
    for module in case.build().modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if module.running_mean is not None:
            assert module.running_mean.any()
            assert (module.running_var != 1).all()
        if module.affine and not case.blind:
            assert (module.weight != 1).all()
            assert module.bias.any()


# The way in, measured with nothing but torch


class CaseTracer(torch.fx.Tracer):
    """The stock tracer, with a case's leaves, and with asserts taken for true where that is all."""

    proxy_buffer_attributes = True  # else what forward does to a buffer is done while tracing

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = module_qualified_name in self.case.leaves
        return leaf or super().is_leaf_module(m, module_qualified_name)

    def to_bool(self, obj: torch.fx.Proxy) -> bool:
        return True if self.case.asserts else super().to_bool(obj)


def trace(model: nn.Module, case: Case) -> torch.fx.GraphModule | None:
    """The traced model, or None where tracing fails."""
    try:
        graph = CaseTracer(case).trace(model)
    except Exception:
        return None
    return torch.fx.GraphModule(model, graph)


def variants(model: nn.Module, case: Case) -> list[str]:
    """The code traced in both modes, with and without gradients, and with several seeds."""
    found = []
    for training in (False, True):
        for grad in (True, False):
            random.seed(2 * training + grad)
            with torch.set_grad_enabled(grad):
                traced = trace(model.train(training), case)
            found.append("" if traced is None else traced.code)
    model.eval()
    return found


def calls(model: nn.Module, inputs: Inputs) -> list[Inputs]:
    """`inputs`, and those without the arguments that the model can do without."""
    if not isinstance(inputs, dict):
        return [inputs]
    optional = {
        name
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    required = {name: value for name, value in inputs.items() if name not in optional}
    return [inputs, required] if required else [inputs]


def gradients(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Gradients of all parameters, by name: a traced model has them in another order."""
    parameters = dict(sorted(model.named_parameters()))
    loss = sum((output * output).sum() for output in tensors(zoo.run(model, inputs)))
    if not parameters:
        return []
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return [gradient for gradient in found if gradient is not None]


def can_be_traced(case: Case) -> bool:
    """Whether a symbolic trace has the model's outputs, gradients and state, in every mode."""
    model, traced, inputs = case.build(), trace(case.build(), case), case.inputs()
    if traced is None or len(set(variants(case.build(), case))) > 1:
        return False
    try:
        same = all(
            identical(outputs(model, some), outputs(traced, some)) for some in calls(model, inputs)
        )
        same = same and identical(gradients(model, inputs), gradients(traced, inputs))
    except TypeError:  # what a None that became a value ends in
        return False
    # A trace drops what it does not use, and the second of two names.
    state, kept = model.state_dict(), traced.state_dict()
    return same and all(torch.equal(state[name], kept[name]) for name in kept)


class GroupedFunctions(TorchFunctionMode):
    """Counts grouped convolutions that are called as functions of torch, by a module or not."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if "conv" in getattr(func, "__name__", ""):
            place = 7 if "convolution" in func.__name__ else 6
            self.count += (args[place] if len(args) > place else named.get("groups", 1)) != 1
        return func(*args, **named)


def all_grouped_calls_are_functions(case: Case) -> bool:
    """Whether each of them can be taken where it is called, the model's class kept."""
    model, inputs = case.build(), case.inputs()
    with GroupedFunctions() as seen, torch.no_grad():
        zoo.run(model, inputs)
    return zoo.count_grouped_calls(model, inputs).total() == seen.count


@pytest.mark.parametrize("case", one_in(2, CASES))
def test_way_is_the_first_that_does_not_change_the_model(case: Case) -> None:
    assert case.way == ("trace" if can_be_traced(case) else "modules")
    assert can_be_traced(case) or all_grouped_calls_are_functions(case)


@pytest.mark.parametrize("name", [case.id for case in CASES.values() if case.asserts])
def test_asserts_stop_the_stock_tracer(name: str) -> None:
    with pytest.raises(torch.fx.proxy.TraceError, match="control flow"):
        torch.fx.symbolic_trace(CASES[name].build())
