"""What people do with a model, they can do with its rewrite: train, copy, load and export it."""

import copy
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

import groupfx
from groupfx.running.inputs import ExampleInputs
from groupfx.verify.measures import paired_leaves
from tests.thinning import one_in
from tests.traits.test_traits import PASSES, SOON, built, evaluated
from tests.traits.trait import Trait

pytestmark = pytest.mark.filterwarnings("ignore")

# Their results stay in eval mode, or there is none.
TRAINABLE = {n: t for n, t in SOON.items() if t.refused is None and not t.fixed and n != "lazy"}
OPTIMIZERS = {
    "sgd": lambda parameters: optim.SGD(parameters, lr=1e-2, momentum=0.9),
    "adam": lambda parameters: optim.Adam(parameters, lr=1e-3),
}
STEPS = 3
# Those whose tensors come with the first forward are rewritten before they have them.
LATE = {"made-its-layer-once"}
# A constant that forward makes is a buffer of its trace: a cast of the model casts it along.
CAST_ALONG = {"quantised-with-scales-of-its-own"}
# bfloat16 inside, where the model does not run in float64.
EXACT, ROUGH = 1e-9, 1e-2


def seeded(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)


def tensors(output: Any) -> list[Tensor]:
    return [leaf for _, leaf, _ in paired_leaves(output, output) if isinstance(leaf, Tensor)]


def losses(
    model: nn.Module, inputs: ExampleInputs, optimizer: optim.Optimizer, first: int
) -> list[float]:
    """Those of some steps, each on data of its own."""
    found = []
    for step in range(first, first + STEPS):
        scale = 1 + 0.1 * step
        given = inputs.map(lambda t, s=scale: t * s if t.is_floating_point() else t.clone())
        optimizer.zero_grad()
        seeded(step)
        try:
            terms = [t.abs().square().mean() for t in tensors(given.call(model)) if t.requires_grad]
            loss = sum(terms, torch.zeros(()))
            if terms:
                loss.backward()
        except RuntimeError as error:
            if first:
                raise
            pytest.skip(f"the original cannot be trained: {error}")
        if not terms:
            pytest.skip("no output of it is trained")
        optimizer.step()
        found.append(loss.item())
    return found


def widened(model: nn.Module, inputs: ExampleInputs) -> tuple[nn.Module, ExampleInputs, float]:
    """The model and its inputs in float64, where it runs in that, and how exact it is then."""
    wide = inputs.map(lambda t: t.double() if t.is_floating_point() else t)
    try:
        with torch.no_grad():
            wide.map(torch.clone).call(doubled(copy.deepcopy(model)))
    except Exception:
        return model, inputs, ROUGH
    return doubled(model), wide, EXACT


def doubled(model: nn.Module) -> nn.Module:
    """In float64, and complex numbers, which `double` leaves as they are, in twice their width."""
    for parameter in model.double().parameters():
        if parameter.is_complex():
            parameter.data = parameter.data.to(torch.complex128)
    return model


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("trait", one_in(24, {n: TRAINABLE[n] for n in list(TRAINABLE)[::3]}))
def test_training_goes_on_where_the_original_was(trait: Trait, kind: str) -> None:
    if trait.id in LATE:
        pytest.skip("its layer is made by its first forward")
    model, inputs = built(trait)
    seeded(1)
    result = groupfx.rewrite(model, inputs, passes=PASSES)
    model = getattr(model, "_orig_mod", model)
    if trait.id in CAST_ALONG:
        bound = ROUGH
    else:
        model, inputs, bound = widened(model, inputs)
    rewritten = doubled(result.model) if bound == EXACT else result.model
    for module in (*model.modules(), *rewritten.modules()):
        module.training = True
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        pytest.skip("nothing of it is trained")
    own = OPTIMIZERS[kind](trained)
    losses(model, inputs, own, 0)
    state = result.state_dict_map
    state.load_original(model.state_dict())
    other = state.convert_optimizer(own, model)
    expected = losses(model, inputs, own, STEPS)
    found = losses(rewritten, inputs, other, STEPS)
    assert found == pytest.approx(expected, rel=bound, abs=bound)
    if "observed" in trait.id:
        return  # a histogram is made anew where one number is rounded otherwise
    back = state.to_original(fill=model.state_dict())
    assert back.keys() == model.state_dict().keys()
    for key, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            torch.testing.assert_close(back[key], tensor, rtol=10 * bound, atol=10 * bound)
    again = state.optimizer_to_original(other, model)
    for parameter in trained:
        for name, value in own.state[parameter].items():
            there = again.state[parameter][name]
            torch.testing.assert_close(there, value, rtol=10 * bound, atol=10 * bound)


def outputs(model: nn.Module, inputs: ExampleInputs) -> Any:
    seeded(11)
    with torch.no_grad():
        return inputs.map(torch.clone).call(model)


def narrow(model: nn.Module, inputs: ExampleInputs) -> Any:
    fits = inputs.map(lambda t: t.bfloat16() if t.is_floating_point() else t)
    return outputs(model.to(torch.bfloat16), fits)


def averaged(model: nn.Module, inputs: ExampleInputs) -> Any:
    average = optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    return outputs(average, inputs)


def loaded(model: nn.Module, inputs: ExampleInputs) -> Any:
    model.load_state_dict(copy.deepcopy(model.state_dict()), strict=True)
    return outputs(model, inputs)


def compiled(model: nn.Module, inputs: ExampleInputs) -> Any:
    torch._dynamo.reset()
    return outputs(torch.compile(model, backend="eager"), inputs)


def exported(model: nn.Module, inputs: ExampleInputs) -> Any:
    program = torch.export.export(model, inputs.args, dict(inputs.kwargs), strict=False)
    return outputs(program.module(check_guards=False), inputs)


def traced(model: nn.Module, inputs: ExampleInputs) -> Any:
    assert not inputs.kwargs
    example = inputs.map(torch.clone).args
    return outputs(torch.jit.trace(model, example, check_trace=False), inputs)


def called_with_its_state(model: nn.Module, inputs: ExampleInputs) -> Any:
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    given = inputs.map(torch.clone)
    seeded(11)
    with torch.no_grad():
        return torch.func.functional_call(model, state, given.args, dict(given.kwargs))


USES: dict[str, Callable[[nn.Module, ExampleInputs], Any]] = {
    "copied": lambda model, inputs: outputs(copy.deepcopy(model), inputs),
    "pickled": lambda model, inputs: outputs(pickle.loads(pickle.dumps(model)), inputs),
    "bfloat16": narrow,
    "averaged": averaged,
    "loaded": loaded,
    "compiled": compiled,
    "exported": exported,
    "traced": traced,
    "called-with-its-state": called_with_its_state,
}
# torch.fx reads a pickled graph back with its buffers as constants, on which methods of values
# are not called, and writes a type of None that it cannot import.
KNOWN = {
    ("pickled", "blur-by-expand"): (TypeError, AttributeError),
    ("pickled", "gives-number"): (TypeError, AttributeError),
    **{("bfloat16", name): RuntimeError for name in CAST_ALONG},
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("trait", one_in(40, {n: TRAINABLE[n] for n in list(TRAINABLE)[::12]}))
def test_what_the_original_survives_the_result_does(trait: Trait, use: str) -> None:
    model, inputs = built(trait)
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        pytest.skip("a copy of TorchScript is not what was compiled")
    result = evaluated(groupfx.rewrite(model, inputs, passes=PASSES).model)
    try:
        expected = USES[use](model, inputs)
    except Exception as error:
        pytest.skip(f"not even the original: {type(error).__name__}")
    if (use, trait.id) in KNOWN:
        with pytest.raises(KNOWN[use, trait.id]):
            USES[use](result, inputs)
        return
    for path, one, other in paired_leaves(expected, USES[use](result, inputs)):
        if isinstance(one, Tensor) and (one.is_floating_point() or one.is_complex()):
            close = {"rtol": 2e-2, "atol": 2e-2, "equal_nan": True}
            torch.testing.assert_close(other, one, msg=lambda t, p=path: f"{p}: {t}", **close)


LOADS = """
import sys, torch, groupfx
for path in sys.argv[1:]:
    loaded = groupfx.load(path)
    expected = torch.load(path + ".out", weights_only=True)
    assert not any(name.startswith("tests") for name in sys.modules)
    given = expected["given"]
    with torch.no_grad():
        found = loaded.model.eval()(*given)
    assert torch.equal(found, expected["found"]), path
    if expected["trains"]:
        loaded.model(*given).abs().sum().backward()
    sites = groupfx.find(loaded.model, tuple(given))
    again = groupfx.rewrite(loaded.model, tuple(given))
    assert again.report.ok and not any(site.taken for site in sites), (path, sites)
    again.save(path, overwrite=True)
    groupfx.load(path)
"""


def trains(model: nn.Module, inputs: ExampleInputs) -> bool:
    """Whether the original has a gradient to follow."""
    try:
        loss = inputs.map(torch.clone).call(model).abs().sum()
    except RuntimeError:  # `out=` and the like
        return False
    return bool(loss.requires_grad)


@pytest.mark.long
def test_a_program_that_knows_nothing_of_the_class_reads_the_file(tmp_path: Path) -> None:
    """To the bit; it trains what it read, finds nothing to do, and writes it again."""
    paths = []
    for trait in list(TRAINABLE.values())[::4]:
        model, inputs = built(trait)
        tensor = all(isinstance(value, Tensor) for value in inputs.args) and not inputs.kwargs
        if (
            trait.way != "trace"
            or trait.unsaved
            or trait.left
            or not tensor
            or trait.id in {"random", *LATE}
        ):
            continue
        result = groupfx.rewrite(model, inputs)
        found = outputs(evaluated(result.model), inputs)
        # What assigns a field in its first forward keeps its class until it has it.
        if isinstance(found, Tensor) and result.report.way == "trace":
            paths.append(str(tmp_path / f"{trait.id}.pt"))
            result.save(paths[-1])
            given = list(inputs.map(torch.clone).args)
            told = {"given": given, "found": found, "trains": trains(model, inputs)}
            torch.save(told, f"{paths[-1]}.out")
    assert len(paths) > 20
    done = subprocess.run(
        [sys.executable, "-c", LOADS, *paths], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
