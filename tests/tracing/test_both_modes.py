"""An export of both modes: it trains as the model does, and a wrong one is not believed."""

import copy
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import groupfx
from groupfx.errors import ModelError
from groupfx.nn import ByMode, TrainingMode
from groupfx.passes import SplitGroupedConv
from groupfx.running.inputs import ExampleInputs
from groupfx.tracing.both_modes import runs_alike
from tests.thinning import one_in

PASSES = [SplitGroupedConv(depthwise="split")]
X = torch.randn(2, 6, 5, 7)


class Layers(nn.Module):
    """A grouped convolution, a norm and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1, groups=3)
        self.norm, self.drop = nn.BatchNorm2d(6), nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Any:
        return self.drop(self.norm(self.conv(x)))


class AsksForItsMode(Layers):
    """Asks for its own mode, as an argument and as a number."""

    def forward(self, x: Tensor) -> Any:
        y = F.dropout(self.norm(self.conv(x)), 0.3, self.training)
        return F.dropout(y, 0.2 if self.training else 0.0)


class Auxiliary(Layers):
    """A head with a grouped convolution that is trained alone."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(6, 4, 1, groups=2)

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return (y, self.head(x)) if self.training else y


class Doubles(Layers):
    """Another operation in train mode."""

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return y * 2 if self.training else y


class DropsPaths(Layers):
    """Stochastic depth, as timm writes it."""

    def forward(self, x: Tensor) -> Any:
        y = self.norm(self.conv(x))
        if self.training:
            y = y * x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(0.8) / 0.8
        return x + y


class Modeless(Layers):
    """The same in both modes."""

    def forward(self, x: Tensor) -> Any:
        return self.conv(x).relu()


MODELS = {
    kind.__name__: kind
    for kind in (Layers, AsksForItsMode, Auxiliary, Doubles, DropsPaths, Modeless)
}
# Where the two graphs stand side by side, in each of them.
SITES = {Auxiliary: 3, Doubles: 2, DropsPaths: 2}
TRACED = {kind.__name__: kind for kind in (AsksForItsMode,)}


def run(model: nn.Module, *, train: bool) -> list[Tensor]:
    torch.manual_seed(3)
    output = model.train(train)(X.clone())
    return list(output) if isinstance(output, tuple) else [output]


def same(model: nn.Module, other: nn.Module) -> None:
    """In both modes, twice, with what they keep."""
    for train in (True, False, True, False):
        for one, two in zip(run(model, train=train), run(other, train=train), strict=True):
            torch.testing.assert_close(two, one)
    buffers = dict(other.named_buffers())
    for name, buffer in model.named_buffers():
        if name in buffers:  # else a branch has it, and what the branch gives was compared
            torch.testing.assert_close(buffers[name], buffer)


def rewritten(kind: type[nn.Module], way: str) -> tuple[nn.Module, groupfx.Result]:
    torch.manual_seed(1)
    model = kind().train()
    return model, groupfx.rewrite(model, X, passes=PASSES, way=way)


@pytest.mark.parametrize("kind", one_in(3, MODELS))
def test_an_export_is_trained_and_evaluated(kind: type[nn.Module], tmp_path: Path) -> None:
    model, result = rewritten(kind, "export")
    assert result.report.way == "export"
    assert len(result.report.sites) == SITES.get(kind, 1)
    (told,) = (note for note in result.report.notes if note.startswith("exported in both modes"))
    assert ("with a graph for each" in told) == (kind in SITES)
    result.save(tmp_path / "model.pt")
    others = [
        result.model,
        copy.deepcopy(result.model),
        pickle.loads(pickle.dumps(result.model)),
        groupfx.load(tmp_path / "model.pt").model,
        groupfx.rewrite(result.model, X, passes=PASSES).model,
    ]
    for other in others:
        same(copy.deepcopy(model), other)


@pytest.mark.parametrize("kind", TRACED.values(), ids=TRACED)
def test_a_trace_of_both_modes(kind: type[nn.Module], tmp_path: Path) -> None:
    model, result = rewritten(kind, "trace")
    result.save(tmp_path / "model.pt")
    for other in (result.model, groupfx.load(tmp_path / "model.pt").model):
        same(copy.deepcopy(model), other)


class DropsAFunction(Layers):
    """As the DenseNets write it."""

    def forward(self, x: Tensor) -> Any:
        return F.dropout(self.norm(self.conv(x)).relu(), 0.3, training=self.training)


@pytest.mark.parametrize("asked", [{"target": "plinio"}, {"passes": ["fold-permutations"]}])
def test_passes_that_need_a_graph_get_one_of_both_modes(asked: dict[str, Any]) -> None:
    torch.manual_seed(1)
    model = DropsAFunction().eval()
    result = groupfx.rewrite(model, X, **asked)
    assert result.report.way == "trace"
    same(copy.deepcopy(model), result.model)
    called = [node.target for node in result.model.graph.nodes if node.op == "call_module"]
    kinds = {type(result.model.get_submodule(str(path))) for path in called}
    assert (nn.Dropout if "target" in asked else TrainingMode) in kinds


def test_a_part_stays_in_the_mode_that_it_was_put_in() -> None:
    model, result = rewritten(Layers, "export")
    for each in (model, result.model):
        each.train()
        each.norm.eval()
    torch.manual_seed(0)
    expected = model(X)
    torch.manual_seed(0)
    torch.testing.assert_close(result.model(X), expected)
    assert result.model.norm.num_batches_tracked == model.norm.num_batches_tracked


def test_training_goes_on() -> None:
    model, result = rewritten(Layers, "export")
    own = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    other = result.state_dict_map.convert_optimizer(own, model)
    for _ in range(3):
        for each, optimizer in ((model, own), (result.model, other)):
            torch.manual_seed(2)
            optimizer.zero_grad()
            each.train()(X).square().mean().backward()
            optimizer.step()
    same(model, result.model)
    found = result.state_dict_map.to_original()
    assert found.keys() == model.state_dict().keys()
    torch.testing.assert_close(found["conv.weight"], model.conv.weight)


class Momentum(Layers):
    """A norm whose share of a batch depends on how many there were."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(6, momentum=None)


def test_what_cannot_be_had_in_train_mode_stays_in_eval_mode_and_says_so() -> None:
    _, result = rewritten(Momentum, "export")
    (told,) = [note for note in result.report.notes if "in eval mode" in note]
    assert "in train mode it cannot be exported" in told
    with pytest.raises(NotImplementedError, match="knows no other"):
        result.model.train()


def test_a_wrong_graph_is_not_believed() -> None:
    model, result = rewritten(Layers, "export")
    inputs = ExampleInputs.of(X)
    assert runs_alike(model, result.model, inputs) is None
    (leaf,) = [m for n, m in result.model.named_modules() if n == "drop.training_mode"]
    assert isinstance(leaf, TrainingMode)
    leaf.forward = lambda: False  # type: ignore[method-assign]
    assert runs_alike(model, result.model, inputs) is not None


def test_statistics_are_compared_too() -> None:
    model, result = rewritten(Layers, "export")
    leaf = result.model.get_submodule("norm.training_mode")
    momentum = [
        n for n in result.model.graph.nodes if n.target is torch.ops.aten.batch_norm.default
    ]
    momentum[0].args = (*momentum[0].args[:6], 0.2, *momentum[0].args[7:])
    result.model.recompile()
    assert isinstance(leaf, TrainingMode)
    told = runs_alike(model, result.model, ExampleInputs.of(X))
    assert told is not None


def test_both_graphs_hold_the_same_tensors() -> None:
    model, result = rewritten(Auxiliary, "export")
    assert any(isinstance(module, ByMode) for module in result.model.modules())
    assert result.model.state_dict().keys() == model.state_dict().keys()


def test_a_trace_by_name_says_what_it_depends_on_and_where() -> None:
    with pytest.raises(ModelError) as raised:
        rewritten(Doubles, "trace")
    assert "forward is built otherwise in train mode: " in str(raised.value)
    assert "test_both_modes.py:" in str(raised.value)
    assert "With way='modules' its class stays what it is" in str(raised.value)
    model, result = rewritten(Doubles, "modules")
    same(model, result.model)


class AsksForGradients(Layers):
    """Another graph where no gradient is wanted."""

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return y if torch.is_grad_enabled() else y.detach()


class DrawsNumbers(Layers):
    """Another graph each time."""

    def forward(self, x: Tensor) -> Any:
        return self.conv(x) * (1 + random.randrange(1000))


@pytest.mark.parametrize(
    ("kind", "said"),
    [(AsksForGradients, "the grad mode"), (DrawsNumbers, "random numbers")],
)
def test_a_trace_tells_what_else_it_depends_on(kind: type[nn.Module], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        rewritten(kind, "trace")


class ActsInTraining(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.5 if self.training else super().forward(x)


def test_modules_that_are_called_by_numbers_are_told_apart() -> None:
    """`0.weight` and `0_weight` are no names of arguments, or one."""
    model = nn.Sequential(ActsInTraining(6, 6, 1, groups=3))
    model.register_parameter("0_weight", nn.Parameter(torch.ones(())))
    result = groupfx.rewrite(model, X, way="export", passes=PASSES).model
    for mode in (False, True):
        model.train(mode), result.train(mode)
        torch.testing.assert_close(result(X), model(X))


def test_hooks_of_the_backward_alone_are_not_lost_in_an_export() -> None:
    model = Layers()
    model.conv.register_full_backward_pre_hook(lambda _, gradients: (gradients[0] * 2,))
    said = (
        r"^Layers cannot be exported: conv has backward pre hooks: .*, which an export would drop"
    )
    with pytest.raises(ModelError, match=said):
        groupfx.rewrite(model, X, way="export", passes=PASSES)
