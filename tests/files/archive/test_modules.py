"""Way `modules`: fragments and weights that are put into a model built anew."""

import copy
import operator
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

import groupfx
from groupfx.errors import FileError
from groupfx.files.archive import Archive, apply, read, write
from tests.models.model_comparison import differences


class BranchingConvs(nn.Module):
    """Control flow that no trace takes, and grouped convolutions as modules."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"a": nn.Conv2d(6, 6, 3, padding=1, groups=3)})
        self.b = nn.Conv2d(6, 6, 3, padding=1, groups=3, bias=False)
        self.dense = nn.Conv2d(6, 6, 1)
        if tied:
            self.b.weight = self.inner["a"].weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner["a"](x)
        return self.dense(y) if y.sum() > 0 else self.dense(self.b(y))


def fragment_of(conv: nn.Conv2d, weight: nn.Parameter | None = None) -> fx.GraphModule:
    """A graph that slices the weight, as a rewrite of a computed weight does."""
    root = nn.Module()
    root.weight = conv.weight if weight is None else weight
    root.bias = conv.bias
    graph = fx.Graph()
    x, w = graph.placeholder("input"), graph.get_attr("weight")
    parts = []
    for i in range(conv.groups):
        rows = slice(2 * i, 2 * i + 2)
        part = graph.call_function(operator.getitem, (x, (slice(None), rows)))
        kernel = graph.call_function(operator.getitem, (w, (rows,)))
        parts.append(graph.call_function(torch.conv2d, (part, kernel), {"padding": conv.padding}))
    out = graph.call_function(torch.cat, (parts, 1))
    if conv.bias is not None:
        bias = graph.call_method("reshape", (graph.get_attr("bias"), 1, -1, 1, 1))
        out = graph.call_function(operator.add, (out, bias))
    graph.output(out)
    return fx.GraphModule(root, graph, class_name="Conv2d")


def swapped(model: BranchingConvs) -> tuple[BranchingConvs, Archive]:
    fragments = {"inner.a": fragment_of(model.inner["a"]), "b": fragment_of(model.b)}
    changed = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    changed.inner["a"] = fragments["inner.a"]
    changed.b = fragments["b"]
    return changed, Archive.of_modules(fragments, changed.state_dict())


MODULES: dict[str, Callable[[BranchingConvs], nn.Module]] = {
    "float": lambda m: m,
    "half": lambda m: m.half(),
    "channels_last": lambda m: m.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("convert", MODULES.values(), ids=MODULES.keys())
def test_swapped_modules_come_back_the_same(
    convert: Callable[[BranchingConvs], nn.Module], tied: bool, tmp_path: Path
) -> None:
    model = BranchingConvs(tied)
    convert(model)
    changed, archive = swapped(model)
    assert isinstance(changed, BranchingConvs)
    path = tmp_path / "model.pt"
    write(path, archive, overwrite=False)
    loaded = read(path)
    fresh = BranchingConvs(tied)
    before = copy.deepcopy(fresh.state_dict())
    restored = apply(loaded, fresh)
    assert type(restored) is BranchingConvs
    assert type(fresh.b) is nn.Conv2d
    assert all(torch.equal(before[key], value) for key, value in fresh.state_dict().items())
    assert differences(changed, restored) == []
    # A second model is one of its own.
    other = apply(loaded, fresh)
    other.get_parameter("b.weight").data.zero_()
    assert differences(changed, restored) == []


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_new_model_with_a_weight_that_has_a_history(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.utils.weight_norm(nn.Conv1d(6, 6, 3, groups=2)))

    x = torch.randn(2, 6, 9)
    result = groupfx.rewrite(build(), (x,), way="modules")
    result.save(tmp_path / "m.pt")
    assert torch.equal(groupfx.load(tmp_path / "m.pt", build()).model(x), result.model(x))


def test_a_module_under_two_names_is_replaced_under_both(tmp_path: Path) -> None:
    def build() -> BranchingConvs:
        model = BranchingConvs()
        model.add_module("again", model.inner["a"])
        return model

    x = torch.randn(2, 6, 5, 5)
    result = groupfx.rewrite(build(), (x,), way="modules")
    result.save(tmp_path / "m.pt")
    restored = groupfx.load(tmp_path / "m.pt", build()).model
    assert restored.again is restored.inner["a"]
    assert torch.equal(restored(x), result.model(x))


def test_a_weight_shared_with_the_rest_of_the_model_stays_shared(tmp_path: Path) -> None:
    class Reader(BranchingConvs):
        def forward(self, x: Tensor) -> Tensor:
            return functional.conv2d(self.inner["a"](x), self.kernel, groups=3)

    def build() -> Reader:
        model = Reader()
        model.kernel = model.inner["a"].weight
        return model

    changed, archive = swapped(build())
    write(tmp_path / "m.pt", archive)
    restored = apply(read(tmp_path / "m.pt"), build())
    assert restored.get_parameter("kernel") is restored.get_parameter("inner.a.weight")
    assert differences(changed, restored) == []


def test_a_fragment_takes_the_mode_of_what_it_replaces() -> None:
    _, archive = swapped(BranchingConvs())
    restored = apply(archive, BranchingConvs().eval())
    assert not any(module.training for module in restored.modules())


OTHER_MODELS = {
    "missing_module": (lambda: nn.Sequential(nn.Conv2d(6, 6, 1)), "replaces the module inner.a"),
    "missing_key": (
        lambda: without(BranchingConvs(), "dense"),
        "2 unexpected: dense.weight, dense.bias",
    ),
    "more_keys": (lambda: more(BranchingConvs()), "1 missing: extra.weight"),
    "shape": (lambda: more(BranchingConvs(), nn.Conv2d(6, 5, 1)), "1 missing: extra.weight"),
}


def without(model: nn.Module, name: str) -> nn.Module:
    delattr(model, name)
    return model


def more(model: nn.Module, dense: nn.Module | None = None) -> nn.Module:
    model.extra = nn.PReLU()
    if dense is not None:
        model.dense = dense
    return model


@pytest.mark.parametrize(("make", "message"), OTHER_MODELS.values(), ids=OTHER_MODELS.keys())
def test_another_architecture_is_refused(make: Callable[[], nn.Module], message: str) -> None:
    _, archive = swapped(BranchingConvs())
    with pytest.raises(FileError, match=message):
        apply(archive, make())


def test_a_wrong_shape_is_named() -> None:
    _, archive = swapped(BranchingConvs())
    model = BranchingConvs()
    model.dense = nn.Conv2d(6, 5, 1)
    with pytest.raises(FileError, match=r"2 of another shape: dense.weight \[6, 6, 1, 1\] for \[5"):
        apply(archive, model)
