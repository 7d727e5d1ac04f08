"""Any model: every trait of the table is found, rewritten and proved, or refused with a reason."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import groupfx
from groupfx.convs.names import unnumbered
from groupfx.errors import FileError, GroupfxError
from groupfx.passes import SplitGroupedConv
from groupfx.running.inputs import ExampleInputs
from groupfx.verify.measures import paired_leaves
from tests.models.zoo import GroupedCalls
from tests.thinning import long_unless, one_in
from tests.traits import (  # noqa: F401 - they fill the table
    control,
    foreign,
    functional,
    holders,
    hooks,
    layers,
    lent,
    operators,
    outputs,
    own_parts,
    python,
    quantised,
    regions,
    renamed,
    speech,
    subclasses,
    weights,
)
from tests.traits.trait import TRAITS, Trait, quiet

# What torch warns of a trait (old interfaces, quantisation) is not what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore")
PASSES = [SplitGroupedConv(depthwise="split")]
_PLACE = re.compile(r"tests/traits/(\w+)\.py:(\d+)")


def evaluated(model: Any) -> Any:
    """In eval mode by its flags, for some models refuse `eval()`."""
    for module in model.modules() if isinstance(model, nn.Module) else ():
        module.training = False
    return model


def built(trait: Trait) -> tuple[Any, ExampleInputs]:
    torch.manual_seed(5)
    return evaluated(trait.make()), ExampleInputs.of(trait.example())


def run(model: nn.Module, inputs: ExampleInputs, *, train: bool = False) -> Any:
    torch.manual_seed(11)
    with torch.set_grad_enabled(train):
        return inputs.map(torch.clone).call(model)


def counted(model: nn.Module, inputs: ExampleInputs) -> int:
    with GroupedCalls() as seen, torch.no_grad():
        run(model, inputs)
    return seen.kinds.total()


def same(before: Any, after: Any) -> None:
    for path, one, other in paired_leaves(before, after):
        torch.testing.assert_close(other, one, msg=lambda text, path=path: f"{path}: {text}")


def reasons(sites: Any) -> dict[str, str]:
    """Name -> reason, with HERE for a place whose line holds what is said to be there."""
    return {site.name: _PLACE.sub(_here, site.reason) for site in sites}


def _here(place: re.Match[str]) -> str:
    lines = Path(__file__).with_name(f"{place[1]}.py").read_text(encoding="utf-8").splitlines()
    # A call in several lines is known by its first or by its last.
    around = "\n".join(lines[int(place[2]) - 1 : int(place[2]) + 2])
    assert "conv" in around, f"{place[0]} is no convolution: {around}"
    return "HERE"


def gradients(model: nn.Module, inputs: ExampleInputs) -> bool | str:
    """Whether anything is trained by a backward from all outputs; what torch says if it cannot."""
    model.zero_grad()
    try:
        leaves = tree_leaves(run(model, inputs, train=True))
    except RuntimeError as error:
        return str(error)
    floats = [t for t in leaves if isinstance(t, Tensor) and t.requires_grad]
    if floats:
        sum(t.abs().sum() for t in floats).backward()
    return any(parameter.grad is not None for parameter in model.parameters())


# The quantiser of graphs takes seconds to be imported.
LATE = {name: trait for name, trait in TRAITS.items() if name.startswith("prepared-by-fx")}
SOON = {name: trait for name, trait in TRAITS.items() if name not in LATE}
# torch compiles what calls these operators.
COMPILED = {name: SOON[name] for name in SOON if "cond" in name or "while-loop" in name}
QUICK = {name: SOON[name] for name in SOON if name not in COMPILED}


@pytest.mark.parametrize("trait", [*one_in(4, QUICK), *long_unless((), LATE | COMPILED)])
def test_a_trait_is_found_and_rewritten_or_refused(trait: Trait, tmp_path: Path) -> None:
    model, inputs = built(trait)
    if trait.counted is not None:
        assert counted(model, inputs) == trait.counted
    if trait.refused is not None:
        with pytest.raises(GroupfxError) as raised:
            groupfx.rewrite(model, inputs, passes=PASSES)
        assert str(raised.value).startswith(trait.refused)
        return
    found = groupfx.find(model, inputs, passes=PASSES)
    assert sum({unnumbered(site.name): site.calls for site in found}.values()) == trait.calls
    result = groupfx.rewrite(model, inputs, passes=PASSES)
    assert result.report.way == trait.way
    assert result.report.ok
    assert result.report.verified
    assert reasons(result.report.skipped) == trait.left
    assert {site.name for site in found if not site.taken} == trait.left.keys()
    assert bool(result.report.sites) == (trait.calls > 0 and any(site.taken for site in found))
    original = model if isinstance(model, nn.Module) else model.module(check_guards=False)
    same(run(original, inputs), run(evaluated(result.model), inputs))
    if trait.counted is not None:
        left = sum(site.calls for site in found if not site.taken)
        expected = trait.counted - (trait.calls - left) if left else 0
        assert counted(result.model, inputs) == expected
    holds_to_its_file(trait, model, result, inputs, tmp_path / "model.pt")
    holds_to_its_modes(trait, original, result.model, inputs)


def holds_to_its_modes(
    trait: Trait, original: nn.Module, rewritten: nn.Module, inputs: ExampleInputs
) -> None:
    if trait.fixed:
        with pytest.raises(NotImplementedError):
            rewritten.train()
        return
    trained = gradients(original, inputs)
    assert isinstance(trained, str) or gradients(rewritten, inputs) == trained
    for module in rewritten.modules():
        module.training = True
    run(rewritten, inputs)


def holds_to_its_file(
    trait: Trait, model: Any, result: groupfx.Result, inputs: ExampleInputs, path: Path
) -> None:
    if trait.unsaved is not None:
        with pytest.raises(FileError) as raised:
            result.save(path)
        assert str(raised.value).startswith(trait.unsaved)
        return
    result.save(path)
    loaded = groupfx.load(path, model if trait.way == "modules" else None)
    same(run(result.model, inputs), run(evaluated(loaded.model), inputs))
    if trait.counted is not None:
        assert counted(loaded.model, inputs) == counted(result.model, inputs)


@pytest.mark.parametrize("name", ["lends-its-weight", "lends-a-view-of-it"])
def test_a_module_that_lends_its_weight_is_no_site_of_its_own(name: str) -> None:
    model, inputs = built(TRAITS[name])
    result = groupfx.rewrite(model, inputs, passes=PASSES)
    assert [site.name for site in result.report.sites] == ["forward"]
    assert result.model.state_dict().keys() == model.state_dict().keys()


def test_what_torch_converts_afterwards_is_what_it_would_have_converted() -> None:
    model, inputs = built(TRAITS["prepared-2d-norm-relu"])
    result = groupfx.rewrite(model, inputs, passes=PASSES).model
    whole, split = (quiet(torch.ao.quantization.convert, side) for side in (model, result))
    assert str(split) == str(whole)
    same(run(whole, inputs), run(split, inputs))


def test_the_table_is_large() -> None:
    assert len(TRAITS) > 440
