"""No false alarm: what was exported honestly passes, whatever the model.

The models are drawn (`random_models`); 200 of them are the long tests.
"""

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import nn

import groupfx
from groupfx.deploy import Validation
from tests.deploy.validate.random_models import (
    MOST_NODES,
    TARGETS,
    RandomModel,
    Target,
    number_of_nodes,
    random_model,
)
from tests.models import zoo

NUMBER = 200
_CHUNK = 10
_FEW = (1002, 1006, 1007, 1017, 1022, 1024)


def validated(drawn: RandomModel, path: Path) -> Validation:
    """Rewritten, exported, validated; a warning would be an error of the test."""
    model: nn.Module | groupfx.Result = drawn.model
    if drawn.target != "none":
        target = None if drawn.target == "default" else drawn.target
        model = groupfx.rewrite(drawn.model, drawn.inputs, target=target, verify=False)
    groupfx.export(
        model,
        drawn.inputs,
        path,
        dtype="float16" if drawn.half else None,
        dynamic_sizes=drawn.dynamic_sizes,
        overwrite=True,
    )
    return groupfx.validate(drawn.model, path, drawn.inputs)


def alarms(seeds: Iterable[int], folder: Path) -> dict[int, str]:
    """Seed -> what is said to be wrong with its export."""
    found = {}
    for seed in seeds:
        drawn = random_model(seed)
        verdict = validated(drawn, folder / "model.onnx")
        assert verdict.outputs, f"nothing was compared for seed {seed}"
        if not verdict.ok:
            found[seed] = str(verdict.blame)
    return found


def test_a_few_random_models_pass(tmp_path: Path) -> None:
    assert alarms(_FEW, tmp_path) == {}


@pytest.mark.long
@pytest.mark.parametrize("start", range(0, NUMBER, _CHUNK))
def test_random_models_pass(start: int, tmp_path: Path) -> None:
    assert alarms(range(start, start + _CHUNK), tmp_path) == {}


def test_the_models_are_what_they_should_be() -> None:
    """Of the size that was asked for, and of every kind; their number is that of the long tests."""
    drawn = [random_model(seed) for seed in range(NUMBER)]
    sizes = [number_of_nodes(entry.model) for entry in drawn]
    assert max(sizes) <= MOST_NODES
    assert max(sizes) >= MOST_NODES - 4
    assert {entry.target for entry in drawn} == set(TARGETS)
    assert {entry.inputs[0].dim() for entry in drawn} == {3, 4, 5}
    assert {(entry.half, entry.dynamic_sizes) for entry in drawn} == {
        (half, sizes) for half in (False, True) for sizes in (False, True)
    }
    kinds = {type(module).__name__ for entry in drawn for module in entry.model.modules()}
    assert {"Flgc2d", "ConvTranspose1d", "BatchNorm3d", "SqueezeExcite", "Shuffle"} <= kinds


def test_a_model_is_the_same_each_time() -> None:
    first, again = random_model(3), random_model(3)
    with torch.no_grad():
        assert torch.equal(first.model(*first.inputs), again.model(*again.inputs))
    assert not torch.equal(random_model(4).inputs[0].flatten()[:3], first.inputs[0].flatten()[:3])


# What drawing models brought to light


def _same() -> nn.Module:
    """An odd number of zeros in all: torch.export pads in a node of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said once a process of an even kernel
        return nn.Sequential(nn.Conv2d(6, 8, (4, 3), padding="same", groups=2), nn.ReLU())


def _two_norms() -> nn.Module:
    """Both BatchNorms are folded into the convolution."""
    model = nn.Sequential(nn.Conv2d(6, 8, 3, groups=2), nn.BatchNorm2d(8), nn.BatchNorm2d(8))
    zoo.give_statistics(model)
    return model


def _cancelling_norms() -> nn.Module:
    """What the first BatchNorm adds, the second takes away; the rounding in between stays."""
    model = _two_norms()
    with torch.no_grad():
        model[1].bias.fill_(3e3)
        model[2].running_mean.fill_(3e3)
    return model


def _pooled() -> nn.Module:
    """A pool that the evaluator of onnx stumbles over."""
    return nn.Sequential(nn.Conv2d(6, 8, 3, groups=2), nn.Flatten(2), nn.MaxPool1d(3, 1, 1))


@pytest.mark.parametrize(
    ("make", "target"),
    [
        pytest.param(_same, "none", id="same"),
        pytest.param(_same, "default", id="same-split"),
        pytest.param(_two_norms, "none", id="two-norms"),
        pytest.param(_two_norms, "default", id="two-norms-split"),
        pytest.param(_cancelling_norms, "none", id="cancelling-norms"),
        pytest.param(_pooled, "none", id="pooled"),
    ],
)
def test_a_model_that_once_raised_a_false_alarm(
    make: Callable[[], nn.Module], target: Target, tmp_path: Path
) -> None:
    inputs = (torch.randn(2, 6, 7, 6),)
    drawn = RandomModel(make().eval(), inputs, target, half=False, dynamic_sizes=False)
    verdict = validated(drawn, tmp_path / "model.onnx")
    assert verdict.ok, verdict.blame
    assert [check.name for check in verdict.sites] == ["0"]
