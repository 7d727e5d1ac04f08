"""The validator is shown wrong files first: what it says of right ones is worth no more than this.

Each corrupted file is checked beforehand, without the validator, to move the output of its site by
ten times what rounding explains (`corruption_draws`). 200 of six models are the long tests.
"""

import copy
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import groupfx
from groupfx.deploy import Validation
from tests.deploy.validate.corruption_draws import (
    LEAST_MOVE,
    NORM_CHANGES,
    Draws,
    WrongResult,
    locked,
)
from tests.deploy.validate.corruption_models import MODELS, TINY
from tests.deploy.validate.onnx_corruptions import CORRUPTIONS, MarkedSite, attribute

NUMBER = 200
LEAST_NAMED = 198


# A small model, in every run of the tests


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Draws:
    return Draws(TINY, tmp_path_factory.mktemp("tiny"))


def test_the_honest_file_passes(tiny: Draws) -> None:
    verdict = tiny.verdict(tiny.honest)
    assert verdict.ok, verdict.blame
    assert [check.name for check in verdict.sites] == ["0", "2", "5"]
    assert all(check.seen for check in verdict.sites)


def test_each_kind_of_corruption_is_named(tiny: Draws) -> None:
    wrong = [tiny.draw(kind, number) for number, kind in enumerate(tiny.kinds)]
    assert len(wrong) >= 12
    verdicts = [tiny.verdict(file.proto) for file in wrong]
    assert [name_of(verdict) for verdict in verdicts] == [file.site for file in wrong]
    assert not any(verdict.ok for verdict in verdicts)
    assert all(map(agrees, wrong, verdicts))


def test_validate_says_the_same(tiny: Draws, tmp_path: Path) -> None:
    wrong = tiny.draw("swapped-outputs", 0)
    path = tmp_path / "wrong.onnx"
    onnx.save(wrong.proto, path)
    verdict = groupfx.validate(tiny.model, path, TINY.inputs())
    assert not verdict.ok
    assert verdict.first_site == tiny.verdict(wrong.proto).first_site
    assert verdict.blame is not None
    assert verdict.blame.startswith(f"the site {wrong.site}: its output is off by ")


def test_what_moves_nothing_is_drawn_again(tiny: Draws, monkeypatch: pytest.MonkeyPatch) -> None:
    """The corruption does nothing at first, then too little, then enough."""
    steps = iter([0.0, 1e-6, 1e-2])

    def larger(site: MarkedSite, random: np.random.Generator) -> str:
        name = site.convs[0].input[2]
        site.put(name, site.array(name) + np.float32(next(steps, 0.0)))
        return "its bias is larger"

    monkeypatch.setitem(CORRUPTIONS, "bias-element", larger)
    assert tiny.kinds["bias-element"]
    wrong = tiny.draw("bias-element", 0)
    assert wrong.redraws == 2
    assert wrong.moved >= LEAST_MOVE


def name_of(verdict: Validation) -> str | None:
    """The site that is said to be wrong."""
    return None if verdict.first_site is None else verdict.first_site.name


def agrees(wrong: WrongResult, verdict: Validation) -> bool:
    """Whether the validator finds the site at least as far off as it was seen to be beforehand.

    The honest file itself may be off by 1; the validator looks at more inputs than one.
    """
    return verdict.first_site is not None and verdict.first_site.ratio >= wrong.moved - 1


# What is wrong between the sites: the outputs tell of it


class TwoHeads(nn.Module):
    """Two convolutions, the second padded by reflection, and two outputs of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.reflected = nn.Conv2d(6, 6, 3, padding=1, groups=2, padding_mode="reflect")
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.conv(x))
        x = x + torch.sigmoid(self.reflected(x))
        pooled = x.mean((2, 3))
        return self.fc(pooled), pooled


Between = Callable[[onnx.ModelProto], None]


def first(proto: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    """The first node of a kind."""
    return next(node for node in proto.graph.node if node.op_type == kind)


def change(proto: onnx.ModelProto, name: str, by: Callable[[Any], Any]) -> None:
    """Change a tensor."""
    (tensor,) = (held for held in proto.graph.initializer if held.name == name)
    changed = by(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(changed, name))


def lost_relu(proto: onnx.ModelProto) -> None:
    first(proto, "Relu").op_type = "Identity"


def gemm_weight(proto: onnx.ModelProto) -> None:
    change(proto, first(proto, "Gemm").input[1], lambda weight: weight * np.float32(1.0001))


def gemm_bias(proto: onnx.ModelProto) -> None:
    first(proto, "Gemm").input.pop()


def subtracted(proto: onnx.ModelProto) -> None:
    first(proto, "Add").op_type = "Sub"


def exchanged_outputs(proto: onnx.ModelProto) -> None:
    """Each output gets what belongs to the other, under its own name."""
    names = [value.name for value in proto.graph.output]
    other = dict(zip(names, reversed(names), strict=True))
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = other.get(name, name)
        for place, name in enumerate(node.output):
            node.output[place] = other.get(name, name)


def padded_with_zeros(proto: onnx.ModelProto) -> None:
    del first(proto, "Pad").attribute[:]


def shifted_pad(proto: onnx.ModelProto) -> None:
    def shift(pads: Any) -> Any:
        pads[2] += 1
        pads[6] -= 1
        return pads

    change(proto, first(proto, "Pad").input[1], shift)


_BOTH = {"output_0", "output_1"}

# What is done, what the verdict says is wrong, and which outputs tell.
BETWEEN: dict[str, tuple[Between, str, set[str]]] = {
    "lost-relu": (lost_relu, "the operator Identity", _BOTH),
    "padded-with-zeros": (padded_with_zeros, "the operator Pad", _BOTH),
    "shifted-pad": (shifted_pad, "the operator Pad", _BOTH),
    "add-as-sub": (subtracted, "the operator Sub", _BOTH),
    "outputs-exchanged": (exchanged_outputs, "the operator ReduceMean", _BOTH),
    "gemm-weight": (gemm_weight, "the operator Gemm", {"output_0"}),
    "gemm-bias": (gemm_bias, "the operator Gemm", {"output_0"}),
}


@dataclass(frozen=True)
class HonestFile:
    model: nn.Module
    inputs: tuple[Tensor, ...]
    proto: onnx.ModelProto


@pytest.fixture(scope="module")
def two_heads(tmp_path_factory: pytest.TempPathFactory) -> HonestFile:
    torch.manual_seed(7)
    model, inputs = TwoHeads().eval(), (torch.randn(2, 3, 7, 5),)
    path = tmp_path_factory.mktemp("heads") / "model.onnx"
    result = groupfx.rewrite(model, inputs, passes=["split-grouped-conv"], verify=False)
    groupfx.export(result, inputs, path)
    proto = onnx.load(path)
    assert attribute(first(proto, "Pad"), "mode", None) == b"reflect"
    return HonestFile(model, inputs, proto)


def validated(honest: HonestFile, proto: onnx.ModelProto, folder: Path) -> Validation:
    onnx.checker.check_model(proto, full_check=True)
    path = folder / "candidate.onnx"
    onnx.save(proto, path)
    return groupfx.validate(honest.model, path, honest.inputs)


def test_two_heads_pass(two_heads: HonestFile, tmp_path: Path) -> None:
    verdict = validated(two_heads, two_heads.proto, tmp_path)
    assert verdict.ok, verdict.blame


@pytest.mark.parametrize("name", BETWEEN)
def test_between_the_sites_the_outputs_tell(
    name: str, two_heads: HonestFile, tmp_path: Path
) -> None:
    proto = copy.deepcopy(two_heads.proto)
    spoil, place, outputs = BETWEEN[name]
    spoil(proto)
    verdict = validated(two_heads, proto, tmp_path)
    assert not verdict.ok
    assert verdict.first_site is None, "each convolution computes what it should"
    assert verdict.blame is not None
    assert verdict.blame.startswith(place)
    assert {check.name for check in verdict.outputs if not check.ok} == outputs


# 200 corruptions over six models


@dataclass(frozen=True)
class Outcome:
    """What the validator said of one model's files. `silent`: all outputs were said to be right."""

    honest: bool
    count: int
    detected: int
    named: int
    agreed: int
    silent: int
    redraws: int
    least_move: float
    kinds: list[str]
    missed: list[str]


def outcome_of(draws: Draws) -> Outcome:
    wrong = draws.wrong_files()
    verdicts = [draws.verdict(file.proto) for file in wrong]
    pairs = list(zip(wrong, verdicts, strict=True))
    named = [name_of(verdict) == file.site for file, verdict in pairs]
    return Outcome(
        honest=draws.verdict(draws.honest).ok,
        count=len(wrong),
        detected=sum(not verdict.ok for verdict in verdicts),
        named=sum(named),
        agreed=sum(map(agrees, wrong, verdicts)),
        silent=sum(all(check.ok for check in verdict.outputs) for verdict in verdicts),
        redraws=sum(file.redraws for file in wrong),
        least_move=min(file.moved for file in wrong),
        kinds=sorted({file.kind for file in wrong}),
        missed=[
            f"{file.kind} in {file.site}: {file.text}; {name_of(verdict)} was named"
            for right, (file, verdict) in zip(named, pairs, strict=True)
            if not right
        ],
    )


Outcomes = Callable[[str], Outcome]


@pytest.fixture
def outcomes(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Outcomes:
    """The outcome of a model, worked out by whichever test asks first, in whatever process."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def outcome(name: str) -> Outcome:
        kept = shared / f"wrong-files-{name}.json"
        with locked(kept.with_suffix(".lock")):
            if not kept.exists():
                found = outcome_of(Draws(MODELS[name], tmp_path_factory.mktemp(name)))
                kept.write_text(json.dumps(dataclasses.asdict(found)))
            return Outcome(**json.loads(kept.read_text()))

    return outcome


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_every_wrong_file_is_detected_and_named(name: str, outcomes: Outcomes) -> None:
    outcome = outcomes(name)
    assert outcome.honest
    assert outcome.count == MODELS[name].count
    assert outcome.detected == outcome.count
    assert outcome.missed == []
    assert outcome.agreed == outcome.named
    assert outcome.least_move >= LEAST_MOVE


@pytest.mark.long
def test_two_hundred_wrong_files(outcomes: Outcomes) -> None:
    found = {name: outcomes(name) for name in MODELS}
    assert len(found) == 6
    assert sum(outcome.count for outcome in found.values()) == NUMBER
    assert sum(outcome.detected for outcome in found.values()) == NUMBER
    assert sum(outcome.named for outcome in found.values()) >= LEAST_NAMED
    kinds = {kind for outcome in found.values() for kind in outcome.kinds}
    assert kinds == {*CORRUPTIONS, *NORM_CHANGES}


@pytest.mark.long
def test_outputs_alone_miss_most_of_the_blind_model(outcomes: Outcomes) -> None:
    (name,) = (case.id for case in MODELS.values() if case.blind)
    outcome = outcomes(name)
    assert outcome.silent > outcome.count / 2
    assert outcome.detected == outcome.count
