"""What a message tells people to do is done here, and helps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import groupfx
from groupfx.errors import FileError, GroupfxError
from groupfx.nn import Flgc2d
from tests.thinning import one_in
from tests.traits.test_traits import PASSES, TRAITS, built, evaluated, run, same
from tests.traits.trait import One, image

pytestmark = pytest.mark.filterwarnings("ignore")

UNSAVED = {n: n for n, t in TRAITS.items() if t.unsaved}
KEPT_HOOKS = {n: n for n, t in TRAITS.items() if any("keeps them" in r for r in t.left.values())}
IN_PLACE = [
    "forward-of-instance",
    "patched-conv",
    "uncopyable",
    "holds-generator",
    "tensor-subclass",
]


def rewritten(name: str, **options: Any) -> tuple[nn.Module, Any, groupfx.Result]:
    model, inputs = built(TRAITS[name])
    result = groupfx.rewrite(model, inputs, passes=PASSES, **options)
    evaluated(result.model)
    return model, inputs, result


@pytest.mark.parametrize("name", one_in(3, UNSAVED))
def test_what_a_file_cannot_hold_is_saved_by_its_modules(name: str, tmp_path: Path) -> None:
    _, _, refused = rewritten(name)
    with pytest.raises(FileError, match="open the model with way='modules'"):
        refused.save(tmp_path / "model.pt")
    model, inputs, result = rewritten(name, way="modules")
    result.save(tmp_path / "model.pt")
    loaded = groupfx.load(tmp_path / "model.pt", model)
    same(run(result.model, inputs), run(evaluated(loaded.model), inputs))


@pytest.mark.parametrize("name", KEPT_HOOKS)
def test_hooks_are_kept_by_the_modules(name: str) -> None:
    model, inputs, result = rewritten(name, way="modules")
    assert len(result.report.sites) == 1
    assert not result.report.skipped
    same(run(model, inputs), run(result.model, inputs))
    hooks = [len(module._forward_hooks) for module in model.modules()]
    assert all(
        len(module._forward_hooks) >= number
        for module, number in zip(result.model.modules(), hooks, strict=True)
    )


@pytest.mark.parametrize("name", IN_PLACE)
def test_what_cannot_be_copied_is_rewritten_in_place(name: str) -> None:
    with pytest.raises(GroupfxError, match="inplace=True"):
        rewritten(name)
    fresh, inputs = built(TRAITS[name])
    expected = run(fresh, inputs)
    model, inputs = built(TRAITS[name])
    result = groupfx.rewrite(model, inputs, passes=PASSES, inplace=True)
    assert len(result.report.sites) == 1
    found = run(evaluated(result.model), inputs)
    # Of a class of tensors that the comparison does not know, in one of them.
    same(*(output.as_subclass(torch.Tensor) for output in (expected, found)))


@pytest.mark.parametrize("name", IN_PLACE)
def test_what_cannot_be_copied_is_found(name: str) -> None:
    model, inputs = built(TRAITS[name])
    assert [site.calls for site in groupfx.find(model, inputs, passes=PASSES)] == [1]


def test_a_batch_axis_is_added() -> None:
    model, inputs = built(TRAITS["no-batch"])
    (x,) = inputs.args
    assert not groupfx.rewrite(model, x.unsqueeze(0), passes=PASSES).report.skipped


def test_a_gradient_hook_is_removed() -> None:
    model, inputs = built(TRAITS["gradient-hook"])
    model.conv.weight._backward_hooks.clear()
    assert not groupfx.rewrite(model, inputs, passes=PASSES).report.skipped


def test_one_of_two_pruned_tensors_is_made_plain() -> None:
    model, inputs = built(TRAITS["pruned-weight-and-bias"])
    prune.remove(model.conv, "bias")
    assert not groupfx.rewrite(model, inputs, passes=PASSES).report.skipped


def test_a_weight_that_is_a_plain_tensor_is_registered() -> None:
    model, inputs = built(TRAITS["on-autograd-history"])
    weight = model.conv.weight.detach()
    del model.conv.weight
    model.conv.weight = nn.Parameter(weight)
    assert not groupfx.rewrite(model, inputs, passes=PASSES).report.skipped


def test_a_file_is_loaded_into_what_cannot_be_copied(tmp_path: Path) -> None:
    model, inputs = built(TRAITS["uncopyable"])
    result = groupfx.rewrite(model, inputs, passes=PASSES, way="modules", inplace=True)
    result.save(tmp_path / "model.pt")
    fresh, _ = built(TRAITS["uncopyable"])
    with pytest.raises(GroupfxError, match=r"because of its lock.* inplace=True"):
        groupfx.load(tmp_path / "model.pt", fresh)
    loaded = groupfx.load(tmp_path / "model.pt", fresh, inplace=True)
    with torch.no_grad():
        assert torch.equal(*(inputs.call(evaluated(m)) for m in (result.model, loaded.model)))


class HandsOutALayer(One):
    def forward(self, x: Tensor) -> Any:
        return {"output": self.conv(x), "layer": self.conv}


class HandsItselfOut(One):
    def forward(self, x: Tensor) -> Any:
        return self.conv(x), self


@pytest.mark.parametrize("kind", [HandsOutALayer, HandsItselfOut])
def test_a_module_that_is_handed_out_is_told_where(kind: Any) -> None:
    """No graph of the whole has it, so the class stays, and the site is rewritten."""
    passes = ["split-grouped-conv", "fold-permutations"]
    report = groupfx.rewrite(kind().eval(), image(), passes=passes).report
    assert report.verified
    assert [site.name for site in report.sites] == ["conv"]
    line = kind.forward.__code__.co_firstlineno
    held = "conv" if kind is HandsOutALayer else "itself"
    why = f"forward (tests/traits/test_remedies.py:{line}) hands out {held}, a module, as if it"
    assert f"not traced: {why} were data" in report.notes


class AroundItsLayer(nn.Module):
    """Calls the forward of a class, and no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Flgc2d(6, 6, 3, group_num=3)

    def forward(self, x: Tensor) -> Tensor:
        return Flgc2d.forward(self.layer, x)


def test_learned_groups_of_a_layer_that_is_not_called_are_no_silent_miss() -> None:
    report = groupfx.rewrite(AroundItsLayer().eval(), image(), target="onnxruntime").report
    (left,) = report.skipped
    assert left.name == "layer"
    assert left.reason.endswith("cannot be frozen: call the layer, as self.layer(x)")
