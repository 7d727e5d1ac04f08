"""Channels that nothing reads go, back to where they are made, in both realms; or they are kept."""

import copy
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import groupfx
from groupfx.api.onnx import rewrite_onnx
from groupfx.errors import UsageError
from groupfx.folding.fold import Dead
from groupfx.nn import Flgc2d
from groupfx.passes import FoldPermutations
from groupfx.rewriting import Pipeline, Result
from tests.folding.pruned import INPUT, PrunedChain, PrunedStream, pruned, randomised, without
from tests.thinning import one_in

MODELS = pruned()


def folded(model: nn.Module, way: str = "trace", **options: str) -> Result:
    """The model folded, and checked in float64 beside what the pipeline checks."""
    x = torch.randn(INPUT, dtype=torch.float64)
    model = copy.deepcopy(model).double().eval()
    result = Pipeline([FoldPermutations(**options)])(model, x, way=way)  # type: ignore[arg-type]
    with torch.no_grad():
        for found, expected in zip(outputs(result.model(x)), outputs(model(x)), strict=True):
            assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()
    return result


def outputs(given: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return given if isinstance(given, tuple) else (given,)


@pytest.mark.parametrize("way", ["trace", "export"])
@pytest.mark.parametrize("name", MODELS)
def test_they_go_back_to_where_they_are_made(name: str, way: str) -> None:
    model, filters, inputs = MODELS[name]
    result = folded(model, way)
    (fold,) = result.report.folds
    assert fold.dead == Dead(filters, inputs)
    again = Pipeline([FoldPermutations()])(result.model, torch.randn(INPUT).double())
    assert not again.report.folds[0].changes


@pytest.mark.parametrize("name", MODELS)
def test_modules_say_what_they_have(name: str) -> None:
    """A copy built from the fields alone has the shapes of the state_dict."""
    for module in folded(MODELS[name][0]).model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            twin = type(module)(module.in_channels, module.out_channels, 1, groups=module.groups)
            assert twin.weight.shape[:2] == module.weight.shape[:2]
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.shape == (module.num_features,)
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)


@pytest.mark.parametrize("name", one_in(4, [name for name in MODELS if name != "flat by view"]))
def test_they_go_in_a_file(name: str, tmp_path: Path) -> None:
    model, filters, inputs = MODELS[name]
    groupfx.export(model, torch.randn(INPUT), tmp_path / "whole.onnx")
    made = rewrite_onnx(
        tmp_path / "whole.onnx", tmp_path / "folded.onnx", passes=["fold-permutations"]
    )
    assert made.rewrite.folds[0].dead == Dead(filters, inputs)
    onnx.checker.check_model(onnx.load(tmp_path / "folded.onnx"), full_check=True)
    found = groupfx.validate(model, tmp_path / "folded.onnx", torch.randn(INPUT))
    assert found.ok, found.blame
    assert {check.name for check in found.sites} >= {"first"} & dict(model.named_modules()).keys()


def test_a_file_that_lost_a_channel_that_is_read_is_not_the_same(tmp_path: Path) -> None:
    """What a file says of channels that are gone is checked, not believed."""
    model = randomised(PrunedStream())
    result = Pipeline([FoldPermutations()])(model, torch.randn(INPUT))
    with torch.no_grad():
        model.last.weight[:, 1] = 1  # type: ignore[index, operator]
    groupfx.export(result.model, torch.randn(INPUT), tmp_path / "folded.onnx")
    found = groupfx.validate(model, tmp_path / "folded.onnx", torch.randn(INPUT))
    assert not found.ok
    assert found.worst_site is not None
    assert found.worst_site.name == "last"


def test_they_are_kept_if_asked() -> None:
    assert not folded(randomised(PrunedChain()), dead="keep").report.folds[0].changes


def test_the_report_counts_them() -> None:
    (fold,) = folded(randomised(PrunedChain())).report.folds
    assert "dead channels: 8 filters and 5 inputs are gone" in fold.describe()
    assert fold.to_dict()["dead"] == {"filters": 8, "inputs": 5}


def test_checkpoints_need_the_zeros_and_the_way_back_what_is_gone() -> None:
    model = randomised(PrunedChain()).double()
    result = folded(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    state_map = result.state_dict_map
    state_map.load_original(other.state_dict())
    x = torch.randn(INPUT).double()
    assert torch.allclose(result.model.eval()(x), other.eval()(x), rtol=1e-12)
    with pytest.raises(UsageError, match="give `fill`"):
        state_map.to_original()
    back = state_map.to_original(fill=other.state_dict())
    assert all(torch.equal(back[key], value) for key, value in other.state_dict().items())
    with torch.no_grad():
        other.last.weight[0, 9] = 1  # type: ignore[index, operator]
    with pytest.raises(UsageError, match=r"last\.weight: 1 elements are not 0"):
        state_map.load_original(other.state_dict())


def test_it_trains_as_the_original_does() -> None:
    model = randomised(PrunedStream()).double()
    result = folded(model)
    x = torch.randn(INPUT).double()
    before = copy.deepcopy(model.state_dict())
    for side in (model.train(), result.model.train()):
        optimizer = torch.optim.SGD(side.parameters(), lr=0.1)
        side(x).square().mean().backward()
        optimizer.step()
    back = result.state_dict_map.to_original(fill=before)
    entries = result.state_dict_map.entries
    for new, value in result.model.state_dict().items():
        assert torch.allclose(value, entries[new].of(model.state_dict()[entries[new].key]))
    assert back.keys() == before.keys()


class LearnedDead(nn.Module):
    """Groups 1 of three have inputs and no filters, 2 filters and no inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 9, 3), nn.BatchNorm2d(9)
        self.depthwise = nn.Conv2d(9, 9, 3, padding=1, groups=9)
        self.learned, self.last = Flgc2d(9, 8, 1, group_num=3), nn.Conv2d(8, 4, 1)
        sides = self.learned.in_channels_in_group_assignment_map, (0, 1, 0, 1, 1, 0, 0, 1, 0)
        others = self.learned.out_channels_in_group_assignment_map, (0, 2, 2, 0, 0, 2, 0, 0)
        for scores, homes in (sides, others):
            scores.data = 3 * nn.functional.one_hot(torch.tensor(homes), 3).float()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.depthwise(torch.relu(self.norm(self.stem(x)))))
        return self.last(torch.relu(self.learned(y)))


def test_inputs_of_no_group_go(tmp_path: Path) -> None:
    model = randomised(LearnedDead())
    x = torch.randn(INPUT)
    passes = ["freeze-learned-groups", "fold-permutations"]
    result = groupfx.rewrite(model, x, passes=passes)
    (fold,) = result.report.folds
    assert fold.dead == Dead(4 + 4, 0)
    assert result.model.stem.out_channels == 5  # type: ignore[union-attr]
    result.save(tmp_path / "folded.pt")
    loaded = groupfx.load(tmp_path / "folded.pt")
    assert torch.equal(loaded.model(x), result.model(x))
    groupfx.export(result, x, tmp_path / "folded.onnx")
    found = groupfx.validate(model, tmp_path / "folded.onnx", x)
    assert found.ok, found.blame


def test_many_layers_keep_their_own_tensors() -> None:
    """A module that was replaced once lent its address to the next, which got its tensors."""
    convs = [nn.Conv2d(3 if k == 0 else 5 + k % 3, 5 + (k + 1) % 3, 1) for k in range(60)]
    for conv in convs[1:]:
        without(conv, (1,))
    model = nn.Sequential(*(layer for conv in convs for layer in (conv, nn.ReLU())))
    (fold,) = folded(model).report.folds
    assert fold.dead == Dead(59, 59)


def test_what_no_output_comes_of_reads_nothing() -> None:
    class Unused(PrunedChain):
        def forward(self, x: Tensor) -> Tensor:
            self.last(torch.zeros(2, 10, 5, 5) + self.middle(self.first(x))).relu()
            return super().forward(x)

    (fold,) = folded(randomised(Unused())).report.folds
    assert fold.dead == Dead(8, 5)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_outputs_is_no_fault() -> None:
    model = nn.Sequential(nn.Conv2d(6, 6, 1, groups=2), nn.Flatten(), nn.Linear(24, 0))
    x = torch.randn(2, 6, 2, 2)
    for passes in (["fold-permutations"], ["split-grouped-conv", "fold-permutations:dead=keep"]):
        assert groupfx.rewrite(model, x, passes=passes).model(x).shape == (2, 0)
