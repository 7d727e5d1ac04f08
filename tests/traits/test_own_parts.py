"""A model that knows its own parts is left as it was, and its rewrite goes on with those it has."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import groupfx
from groupfx.errors import FileError, UsageError
from groupfx.verify.untouched import Fingerprint
from tests.traits.own_parts import DrawsFromItsGenerator, MadeItsLayerOnce, ReplacesItsLayer
from tests.traits.test_traits import PASSES, TRAITS, built, evaluated, run, same
from tests.traits.trait import One, image

pytestmark = pytest.mark.filterwarnings("ignore")

READS_ITSELF = [
    "sum-of-parameters",
    "detached-parameter",
    "weight-in-list",
    "weight-in-list-and-branch",
    "weight-of-groups-in-list",
    "counts-its-parameters",
    "checkpoint-wrapped",
    "checkpoint-wrapped-reentrant",
    "offload-wrapped",
    "older-names-in-checkpoints",
]


@pytest.mark.parametrize("name", READS_ITSELF)
def test_other_weights_come_through_the_map(name: str) -> None:
    """Nothing of the old ones is left: as a constant, in a list, under another name."""
    model, inputs = built(TRAITS[name])
    result = groupfx.rewrite(model, inputs, passes=PASSES)
    state = {key: torch.randn_like(tensor) for key, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    result.state_dict_map.load_original(state)
    same(run(model, inputs), run(evaluated(result.model), inputs))
    back = result.state_dict_map.to_original()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize(
    "name", ["checkpoint-wrapped", "offload-wrapped", "older-names-in-checkpoints"]
)
def test_a_checkpoint_of_something_else_is_refused_under_its_names(name: str) -> None:
    model, inputs = built(TRAITS[name])
    result = groupfx.rewrite(model, inputs, passes=PASSES)
    key = next(iter(model.state_dict()))
    with pytest.raises(UsageError, match=f"1 missing .*{key}"):
        result.state_dict_map.load_original(
            {k: v for k, v in model.state_dict().items() if k != key}
        )


class Follows(nn.Module):
    """A second network whose weights follow the first's in each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = One(), One()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for own, other in zip(self.second.parameters(), self.first.parameters(), strict=True):
                own.copy_(own * 0.9 + other * 0.1)
        return self.first(x) * self.second(x)


@pytest.mark.parametrize("make", [Follows, MadeItsLayerOnce, ReplacesItsLayer])
def test_a_forward_that_changes_its_model_changes_nothing_here(make: Callable[[], Any]) -> None:
    model = make().eval()
    before = Fingerprint.of(model)
    groupfx.find(model, image(), passes=PASSES)
    assert before.changes(model) == ()


class TrainsByMode(One):
    def forward(self, x: Tensor) -> Tensor:
        self.conv.weight.requires_grad_(self.training)
        return self.conv(x)


def test_what_is_trained_stays_trained() -> None:
    model = TrainsByMode().eval()
    result = groupfx.rewrite(model, image(), passes=PASSES).model
    for side in (model, result):
        assert all(parameter.requires_grad for parameter in side.parameters())


def test_what_is_read_in_inference_mode_can_be_trained(tmp_path: Path) -> None:
    groupfx.rewrite(One(), image(), passes=PASSES).save(tmp_path / "model.pt")
    with torch.inference_mode():
        loaded = groupfx.load(tmp_path / "model.pt").model
    loaded(image()).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_a_generator_of_its_own_draws_the_same_on_both_sides() -> None:
    model = DrawsFromItsGenerator().eval()
    state = model.generator.get_state()
    result = groupfx.rewrite(model, image(), passes=PASSES)
    assert result.report.verified
    assert torch.equal(model.generator.get_state(), state)
    x = image()
    same(model(x), result.model.eval()(x))


def test_a_copy_has_the_checkpoint_of_what_it_is_a_copy_of() -> None:
    model, inputs = built(TRAITS["numpy-constant"])
    result = groupfx.rewrite(model, inputs, passes=PASSES).model
    assert "_tensor_constant0" in dict(result.named_buffers())
    for twin in (copy.deepcopy(result), copy.deepcopy(copy.deepcopy(result))):
        assert twin.state_dict().keys() == result.state_dict().keys() == model_keys(model)
        same(run(result, inputs), run(twin, inputs))


def model_keys(model: nn.Module) -> set[str]:
    return {f"{key[:5]}{n}.{key[5:]}" for key in model.state_dict() for n in range(3)}


def test_a_class_name_outlasts_pickling() -> None:
    model, inputs = built(TRAITS["class-name-in-forward"])
    result = groupfx.rewrite(model, inputs, passes=PASSES).model
    same(run(model, inputs), run(pickle.loads(pickle.dumps(result)), inputs))


def test_nothing_is_written_that_cannot_be_read(tmp_path: Path) -> None:
    model, inputs = built(TRAITS["field-of-named-tuple"])
    result = groupfx.rewrite(model, inputs, passes=PASSES)
    with pytest.raises(FileError, match="attribute 'first'"):
        result.save(tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


class TakesAMask(One):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.conv(x) if mask is None else self.conv(x) * mask


def test_a_pickled_trace_spoils_no_later_one() -> None:
    """With a function of torch's own for what was left out, it did: in the whole process."""
    x = image()
    result = groupfx.rewrite(TakesAMask(), x, passes=PASSES, way="trace").model.eval()
    twin = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(result))))
    assert torch.fx.symbolic_trace(One())
    same(result(x), twin(x))
    for each in (result, twin):
        with pytest.raises(AssertionError, match="mask has been specialized to have value None"):
            each(x, x)


class CalledBesideItself(nn.Module):
    """Two calls of the same numbers: one of the layer, one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1, groups=3)

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        y = self.conv(x)
        return F.conv2d(y, self.conv.weight, self.conv.bias, padding=1, groups=3)


OUTSIDE = nn.Conv2d(6, 6, 3, padding=1, groups=3)


class CallsALayerOutside(CalledBesideItself):
    """A layer that is not in the model, with the numbers of one that is."""

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return OUTSIDE(self.conv(x))


@pytest.mark.parametrize("kind", [CalledBesideItself, CallsALayerOutside])
def test_a_call_beside_a_layer_of_the_same_numbers_is_a_site_of_its_own(
    kind: type[CalledBesideItself],
) -> None:
    model, x = kind().eval(), image()
    result = groupfx.rewrite(model, x, passes=PASSES)
    assert (result.report.way, len(result.report.sites), result.report.skipped) == (
        "modules",
        2,
        (),
    )
    same(model(x), result.model.eval()(x))
