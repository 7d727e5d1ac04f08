"""The forms that an export takes by itself: never one that is expected to be slower than dense."""

from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import given
from torch import Tensor, nn

import groupfx
from groupfx.nn import Flgc2d
from groupfx.plan.blocks import BlockStructure
from groupfx.plan.forms import FORMS, plan
from tests.deploy.exported_model import assert_computes, convs_of
from tests.plan.test_forms import Ints, cover, masks


class Two(nn.Module):
    """A wide 3x3 layer, which gains, and a narrow 1x1 layer, which does not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 96, 1)
        self.wide = Flgc2d(96, 128, 3, padding=1, group_num=4)
        self.norm = nn.BatchNorm2d(128)
        self.narrow = Flgc2d(128, 24, 1, group_num=4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(torch.relu(self.norm(self.wide(self.stem(x)))))


def two() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Two().eval(), torch.randn(2, 3, 14, 14)


def test_each_site_gets_what_is_fastest_there(tmp_path: Path) -> None:
    (model, x), path = two(), tmp_path / "m.onnx"
    export = groupfx.export(model, x, path, target="onnxruntime")
    convs = convs_of(path)
    assert len(convs["wide"]) > 1
    assert [conv.groups for conv in convs["narrow"]] == [1]
    assert [(site.name, site.convs) for site in export.sites] == [
        (name, len(convs[name])) for name in ("wide", "narrow")
    ]
    assert export.expected is not None
    assert 0.3 < export.expected < 0.9
    assert export.summary is not None
    assert export.summary.startswith(f"expected {export.expected:.2f} x the time of masked dense; ")
    assert "1 site dense, 1 in " in export.summary
    assert_computes(path, model, x)
    verdict = groupfx.validate(model, path, x)
    assert verdict.ok, verdict.blame
    assert verdict.worst_site is not None


def test_forms_that_were_asked_for_stay(tmp_path: Path) -> None:
    (model, x), path = two(), tmp_path / "m.onnx"
    export = groupfx.export(model, x, path, passes=["freeze-learned-groups:form=split"])
    assert len(convs_of(path)["narrow"]) == 4
    assert (export.expected, export.summary) == (None, None)


def test_open_sizes_leave_sites_dense(tmp_path: Path) -> None:
    (model, x), path = two(), tmp_path / "m.onnx"
    export = groupfx.export(model, x, path, target="onnxruntime", dynamic_sizes=True)
    assert {len(convs_of(path)[name]) for name in ("wide", "narrow")} == {1}
    assert export.summary == "sizes are open, so no form is known to be faster: 2 sites dense"


def channels(structure: BlockStructure) -> set[tuple[frozenset[int], frozenset[int]]]:
    return {(frozenset(b.inputs), frozenset(b.outputs)) for b in structure.blocks}


@given(masks())
def test_blocks_of_a_plan_are_those_it_was_made_of(mask: Ints) -> None:
    structure = cover(mask)
    for form in FORMS:
        if form == "dense" or (form == "grouped" and not structure.equal):
            continue
        found = plan(structure, form).blocks(structure.in_channels)
        assert channels(found) == channels(structure)
        assert (found.bias_only, found.dead_inputs) == (structure.bias_only, structure.dead_inputs)
