"""One site, one name: in every list, option, file and report, however the model was opened."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations

import groupfx
from groupfx.convs.names import numbered, split_number, unnumbered, weight_owner, with_number
from groupfx.passes import SplitGroupedConv
from tests.models.zoo_models import StandardisedConv2d
from tests.thinning import one_in

# torch says so of the old weight_norm, which assigns its weight in each call.
pytestmark = pytest.mark.filterwarnings("ignore:The tensor attribute.* assigned during export")

WAYS = ("trace", "modules", "export")
GRAPHS = ("trace", "export")
X = torch.randn(2, 6, 7, 5, generator=torch.Generator().manual_seed(3))


def grouped(kind: type[nn.Module] = nn.Conv2d) -> nn.Module:
    return kind(6, 6, 3, groups=3, padding=1)  # type: ignore[call-arg]


class Block(nn.Module):
    """Holds what it is given, and calls it."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(*inner)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block(x)
        return result


class Functional(nn.Module):
    """A convolution on a tensor that has another name than `weight`, doubled where `factor` is."""

    def __init__(self, factor: float | None = None) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 2, 3, 3) / 5)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        weight = self.kernel if self.factor is None else self.kernel * self.factor
        return F.conv2d(x, weight, groups=3, padding=1)


class Listed(nn.Module):
    """Two convolutions on a list of tensors, computed ones where `factor` is given."""

    def __init__(self, factor: float | None = None) -> None:
        super().__init__()
        self.kernels = nn.ParameterList(torch.randn(6, 2, 3, 3) / 5 for _ in range(2))
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        for kernel in self.kernels:
            weight = kernel if self.factor is None else kernel * self.factor
            x = F.conv2d(x, weight, groups=3, padding=1)
        return x


class Twice(nn.Module):
    """One module, called twice."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(torch.relu(self.conv(x)))
        return result


class Lent(nn.Module):
    """A part without tensors convolves with one that the model computes."""

    class Part(nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return F.conv2d(x, weight, groups=3, padding=1)

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 2, 3, 3) / 5)
        self.part = self.Part()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.part(x, self.kernel * 2)
        return result


Make = Callable[[], nn.Module]

MODELS: dict[str, tuple[Make, tuple[str, ...], tuple[str, ...]]] = {
    "module": (lambda: Block(grouped()), WAYS, ("block.0",)),
    "module-at-the-root": (grouped, GRAPHS, ("weight",)),
    "module-called-twice": (lambda: Twice(grouped()), WAYS, ("conv", "conv#2")),
    "old-weight-norm": (
        lambda: Block(torch.nn.utils.weight_norm(grouped())),
        WAYS,
        ("block.0",),
    ),
    "new-weight-norm": (
        lambda: Block(parametrizations.weight_norm(grouped())),
        WAYS,
        ("block.0",),
    ),
    "weight-norm-twice": (
        lambda: Twice(parametrizations.weight_norm(grouped())),
        GRAPHS,
        ("conv", "conv#2"),
    ),
    "standardised": (lambda: Block(grouped(StandardisedConv2d)), WAYS, ("block.0",)),
    "standardised-twice": (
        lambda: Twice(grouped(StandardisedConv2d)),
        GRAPHS,
        ("conv", "conv#2"),
    ),
    "standardised-at-the-root": (lambda: grouped(StandardisedConv2d), GRAPHS, ("weight",)),
    "function": (lambda: Block(Functional()), GRAPHS, ("block.0.kernel",)),
    "function-of-computed": (lambda: Block(Functional(2.0)), GRAPHS, ("block.0",)),
    "function-at-the-root": (Functional, GRAPHS, ("kernel",)),
    "function-of-computed-at-the-root": (lambda: Functional(2.0), GRAPHS, ("kernel",)),
    "list": (lambda: Block(Listed()), GRAPHS, ("block.0.kernels.0", "block.0.kernels.1")),
    "list-of-computed": (lambda: Block(Listed(2.0)), GRAPHS, ("block.0", "block.0#2")),
    "list-of-computed-at-the-root": (lambda: Listed(2.0), GRAPHS, ("kernels.0", "kernels.1")),
    "lent": (Lent, GRAPHS, ("part",)),
}


Case = tuple[nn.Module, tuple[str, ...], tuple[str, ...]]


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> Case:
    make, ways, names = MODELS[request.param]
    torch.manual_seed(5)
    return make().eval(), ways, names


def site_names(sites: Iterable[Any]) -> tuple[str, ...]:
    return tuple(site.name for site in sites)


def test_the_lists_and_the_options(case: Case) -> None:
    model, ways, names = case
    bases = tuple(dict.fromkeys(map(unnumbered, names)))
    for way in ways:
        # By its modules, each is listed once, with the number of its calls.
        expected = bases if way == "modules" else names
        found = groupfx.find(model, (X,), passes=["split-grouped-conv"], way=way)
        assert site_names(found) == expected, way
        for option, taken, left in (("only", expected, ()), ("skip", (), expected)):
            split = SplitGroupedConv(**{option: bases})
            report = groupfx.rewrite(model, (X,), passes=[split], way=way, verify=False).report
            assert (site_names(report.sites), site_names(report.skipped)) == (taken, left), way
            assert [site["name"] for site in report.to_dict()["sites"]] == list(taken)


@pytest.mark.parametrize("case", one_in(4, list(MODELS)), indirect=True)
def test_the_file_of_the_model(case: Case, tmp_path: Path) -> None:
    model, _, names = case
    path = tmp_path / "model.onnx"
    assert site_names(groupfx.export(model, (X,), path).sites) == names
    assert site_names(groupfx.find_onnx(path)) == names
    assert site_names(groupfx.validate(model, path, (X,)).sites) == names


@pytest.mark.parametrize("case", one_in(5, list(MODELS)), indirect=True)
def test_the_file_of_a_rewrite(case: Case, tmp_path: Path) -> None:
    model, ways, names = case
    for way in ways:
        result = groupfx.rewrite(model, (X,), passes=["split-grouped-conv"], way=way)
        path = tmp_path / f"{way}.onnx"
        assert site_names(groupfx.export(result, (X,), path).sites) == names, way
        check = groupfx.validate(model, path, (X,))
        assert check.ok
        assert site_names(check.sites) == names, way


def test_branches_of_a_second_call_belong_to_it() -> None:
    model = Twice(grouped()).eval()
    split = groupfx.rewrite(model, (X,), passes=["split-grouped-conv"]).model
    check = groupfx.validate(model, split, (X,))
    assert site_names(check.sites) == tuple(
        with_number(f"conv.{group}", call) for call in (1, 2) for group in range(3)
    )
    assert not [note for note in check.notes if "no such site" in note]


def test_a_kernel_that_another_convolution_makes_is_not_of_that_one() -> None:
    """As in a tracker: the features of the template are the kernel for those of the search."""
    graph = fx.Graph()
    image, weight = graph.placeholder("image"), graph.get_attr("backbone.weight")
    features = graph.call_function(torch.conv2d, (image, weight))
    kernel = graph.call_method("view", (features, -1, 1, 3, 3))
    graph.call_function(torch.conv2d, (image, kernel))
    assert weight_owner(kernel) is None
    doubled = graph.call_function(torch.mul, (weight, 2))
    graph.call_function(torch.conv2d, (image, doubled))
    assert weight_owner(doubled) == "backbone"


def test_a_number_behind_a_name() -> None:
    names = list(numbered(["a", "b", "a", "a"]))
    assert names == ["a", "b", "a#2", "a#3"]
    assert [split_number(name) for name in names] == [("a", 1), ("b", 1), ("a", 2), ("a", 3)]
    assert [with_number(*split_number(name)) for name in names] == names
    assert split_number("c#") == ("c#", 1)
    assert split_number("c#d") == ("c#d", 1)
