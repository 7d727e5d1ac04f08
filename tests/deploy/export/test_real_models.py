"""Every model of the zoo and both examples: exported, validated at batch 1, 2 and 7."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import groupfx
import groupfx.files.models
import groupfx.running.inputs
from tests.deploy.exported_model import assert_clean, assert_computes, convs_of, leaves
from tests.models import zoo
from tests.models.frozen_cases import FORMS
from tests.thinning import long_unless

SPLIT = ["split-grouped-conv"]
REAL = (
    *("shufflenet-g2", "shufflenet-g3", "plinio-chain", "plinio-groups", "plinio-pair"),
    *("regnet-x", "regnet-y", "squeezebert", "wav2vec2", "se-resnext50-2d", "se-resnext50-3d"),
)
QUICK = ("plinio-chain", "plinio-pair")
# One of each kind in the default tests; the other cases are the same code on another module.
SOME = ("resnext", "unbatched", "weight-norm-dim-2")
REFUSED = {
    "branches-on-data": "depends on values of tensors cannot be exported",
    "low-precision-part": "computes node_conv1d in bfloat16",
}
# The file has the batch of the example: there is no other.
FIXED = ("unbatched", "bn-unbatched")
# Its forward draws a number that no operator of a graph draws: two runs of it are not the same.
RANDOM = ("draws-random",)
RUNTIMES = {"onnxruntime, optimisations off", "onnxruntime, optimisations on"}
EXAMPLES = {name: zoo.EXAMPLES / f"{name}.pt" for name in ("flgc_digits", "shufflenet_v1_g3")}


def validated(reference: Any, path: Path, inputs: Any, *, fixed: bool = False) -> Any:
    """The validation of a file that is right, in all runtimes and, unless `fixed`, batches."""
    verdict = groupfx.validate(reference, path, inputs)
    assert verdict.ok, verdict.blame
    batches = {name.rpartition("batch ")[2] for name in verdict.runs if "batch " in name}
    assert not batches if fixed else batches >= {"1", "2", "7"}
    assert set(verdict.runtimes) >= RUNTIMES
    assert {check.runtime for check in verdict.outputs} >= RUNTIMES
    return verdict


def split_groups(model: nn.Module, inputs: Any) -> list[int]:
    """How many branches each executed grouped convolution has, those that are depthwise left out.

    In the order of the modules; only for models whose grouped convolutions are modules.
    """
    groups = zoo.grouped_modules(model)
    modules = {name: model.get_submodule(name) for name in groups}
    assert len(modules) == zoo.count_grouped_calls(model, inputs).total()
    return [
        number
        for name, number in groups.items()
        if number != modules[name].in_channels or number != modules[name].out_channels
    ]


@pytest.mark.parametrize("name", long_unless(QUICK, REAL))
def test_real_models_are_split_in_the_file(name: str, tmp_path: Path) -> None:
    case, path = zoo.CASES[name], tmp_path / "model.onnx"
    model, inputs = case.build(), case.inputs()
    export = groupfx.export(model, inputs, path, passes=SPLIT, way=case.way)
    sites = {entry: convs for entry, convs in convs_of(path).items() if len(convs) > 1}
    assert sorted(len(convs) for convs in sites.values()) == sorted(split_groups(model, inputs))
    for convs in sites.values():
        assert {conv.groups for conv in convs} == {1}
        assert [conv.position for conv in convs] == list(range(len(convs)))
    split = {site.name: site.convs for site in export.sites if site.form.startswith("split")}
    assert split == {entry: len(convs) for entry, convs in sites.items()}
    assert_clean(path)
    assert_same_as_torch(name, path)
    validated(case.build(), path, inputs)


@pytest.mark.parametrize("name", long_unless(QUICK[:1], REAL))
def test_real_models_as_they_are(name: str, tmp_path: Path) -> None:
    case, path = zoo.CASES[name], tmp_path / "model.onnx"
    model, inputs = case.build(), case.inputs()
    export = groupfx.export(model, inputs, path)
    assert export.inputs[0].shape[0] == "batch"
    found = [conv.groups for convs in convs_of(path).values() for conv in convs]
    expected = zoo.grouped_modules(model).values()
    assert sorted(groups for groups in found if groups > 1) == sorted(expected)
    assert_clean(path)
    assert_same_as_torch(name, path)
    validated(case.build(), path, inputs)


def assert_same_as_torch(name: str, path: Path) -> None:
    """The oracle of this file: onnxruntime against the original in float64, at another batch."""
    case = zoo.CASES[name]
    inputs = groupfx.running.inputs.ExampleInputs.of(case.inputs()).with_batch(5)
    assert_computes(path, _Called(case.build(), inputs.kwargs), *leaves(list(inputs.tensors())))


class _Called(nn.Module):
    """A model that takes by position what it is given by keyword."""

    def __init__(self, model: nn.Module, names: Any) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, *values: torch.Tensor) -> list[torch.Tensor]:
        if self.names:
            return list(leaves(dict(self.model(**dict(zip(self.names, values, strict=True))))))
        return list(leaves(self.model(*values)))


@pytest.mark.parametrize(
    "name", long_unless(SOME, [n for n in zoo.CASES if n not in (*REAL, *REFUSED)])
)
def test_every_other_model_of_the_zoo(name: str, tmp_path: Path) -> None:
    case, path = zoo.CASES[name], tmp_path / "model.onnx"
    inputs = case.inputs()
    export = groupfx.export(case.build(), inputs, path)
    grouped = [conv for convs in convs_of(path).values() for conv in convs if conv.groups > 1]
    assert len(grouped) == zoo.count_grouped_calls(case.build(), inputs).total()
    assert len(export.sites) == len(grouped)
    assert_clean(path)
    if name in RANDOM:
        found = groupfx.validate(case.build(), path, inputs)
        assert found.verdict == "not comparable"
        assert "other values each time" in str(found.blame)
        return
    validated(case.build(), path, inputs, fixed=name in FIXED)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exported_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    case = zoo.CASES[name]
    with pytest.raises(groupfx.errors.ModelError, match=REFUSED[name]):
        groupfx.export(case.build(), case.inputs(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


# The examples


@pytest.mark.long
@pytest.mark.parametrize("passes", [None, SPLIT], ids=["as-it-is", "split"])
def test_the_shufflenet_file(passes: list[str] | None, tmp_path: Path) -> None:
    model = groupfx.files.models.read_model(EXAMPLES["shufflenet_v1_g3"]).model
    x, path = torch.randn(2, 3, 32, 32), tmp_path / "model.onnx"
    groupfx.export(model, x, path, passes=passes)
    convs = [conv for found in convs_of(path).values() for conv in found]
    # 16 depthwise convolutions stay; the others are one of 54 and 30 of 3 groups.
    assert sum(conv.groups > 1 for conv in convs) == (16 if passes else 47)
    assert_clean(path)
    validated(EXAMPLES["shufflenet_v1_g3"], path, x)
    assert_computes(path, model, x)


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
def test_the_learned_digits_in_every_frozen_form(form: str, tmp_path: Path) -> None:
    model = groupfx.files.models.read_model(EXAMPLES["flgc_digits"]).model
    x, path = torch.randn(2, 1, 16, 16), tmp_path / "model.onnx"
    passes = [f"freeze-learned-groups:form={form}"]
    result = groupfx.rewrite(model, x, passes=passes)
    groupfx.export(result, None, path)
    sites = convs_of(path)
    branches = {site.name: site.branches for site in result.report.sites}
    assert len(branches) > 10
    assert {name: len(sites[name]) for name in branches} == branches
    if form == "split":
        assert {conv.groups for name in branches for conv in sites[name]} == {1}
    assert_clean(path)
    validated(model, path, x)
    assert_computes(path, model, x)


@pytest.mark.long
def test_the_learned_digits_as_they_are(tmp_path: Path) -> None:
    model = groupfx.files.models.read_model(EXAMPLES["flgc_digits"]).model
    x, path = torch.randn(2, 1, 16, 16), tmp_path / "model.onnx"
    groupfx.export(model, x, path)
    assert_clean(path)
    validated(model, path, x)
    assert_computes(path, model, x)
