"""Models that go through our own file come back the same: values, gradients, ties, formats."""

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

import groupfx.nn
from groupfx.errors import FileError
from groupfx.files.archive import Archive, decode_graph, encode_graph, read, write
from groupfx.nn import (
    ByMode,
    ChannelGather,
    ChannelShuffle,
    ChannelTranspose,
    ConstantChannels,
    Flgc2d,
    HookedWeight,
    MaskedConv2d,
    TrainingMode,
)
from tests.models.model_comparison import differences

SHAPE = (2, 6, 7, 5)


def split_conv() -> fx.GraphModule:
    """The form of a split: slice the channels, one convolution a branch, concatenate."""
    root = nn.Module()
    root.conv = nn.ModuleList(nn.Conv2d(2, 3, 3, padding=1) for _ in range(3))
    root.bn = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(3))
    graph = fx.Graph()
    x = graph.placeholder("x")
    branches = []
    for i in range(3):
        channels = (slice(None, None, None), slice(2 * i, 2 * i + 2, None))
        part = graph.call_function(operator.getitem, (x, channels))
        branches.append(graph.call_module(f"bn.{i}", (graph.call_module(f"conv.{i}", (part,)),)))
    graph.output(graph.call_function(torch.cat, (branches,), {"dim": 1}))
    return fx.GraphModule(root, graph)


class Arguments(nn.Module):
    """Arguments of every kind that a graph holds, and outputs in a structure."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((5,), 0.7))
        self.register_buffer("shift", torch.arange(5.0), persistent=False)
        self.register_buffer("count", torch.tensor(3), persistent=True)

    def forward(self, x: Tensor) -> dict[str, Any]:
        size = x.shape[-2:]
        picked = x[:, 1:4, ..., ::2]
        z = functional.pad(x, (1, 1, 0, 2), mode="constant", value=float("inf"))
        y = torch.relu(x * self.scale + self.shift).to(torch.float64).contiguous()
        y = y.to(memory_format=torch.channels_last)
        return {
            "picked": (picked, picked.mean(dim=(2, 3), keepdim=True)),
            "y": [y, y.reshape(x.size(0), -1).permute(1, 0)],
            "size": size,
            "padded": torch.isinf(z).sum(),
            "split": torch.split(x, [1, 2, 3], dim=1)[2],
            "count": self.count + operator.floordiv(x.size(1), 4),
            "clamped": x.clamp(min=-0.5).mT,
        }


class Defaults(nn.Module):
    def forward(self, x: Tensor, alpha: float = 0.25, mode: str = "it's") -> Tensor:
        return functional.leaky_relu(x, alpha)


def parametrized() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(6, 4, 3)),
        parametrizations.spectral_norm(nn.Conv2d(4, 5, 3)),
        nn.Flatten(),
        parametrizations.orthogonal(nn.Linear(15, 7)),
    )


def computed_weight() -> fx.GraphModule:
    """A weight that a parametrisation computes, called by its own path."""
    root = nn.Module()
    root.conv = parametrizations.weight_norm(nn.Conv2d(6, 4, 3, groups=2))
    graph = fx.Graph()
    x = graph.placeholder("x")
    weight = graph.call_module("conv.parametrizations.weight")
    bias = graph.get_attr("conv.bias")
    graph.output(graph.call_function(torch.conv2d, (x, weight, bias), {"groups": 2}))
    return fx.GraphModule(root, graph)


def hooked_weight() -> fx.GraphModule:
    conv = torch.nn.utils.weight_norm(nn.Conv2d(6, 4, 3, groups=2))
    root = nn.Module()
    root.conv = HookedWeight.from_module(conv)
    graph = fx.Graph()
    x, weight = graph.placeholder("x"), graph.call_module("conv")
    graph.output(graph.call_function(torch.conv2d, (x, weight), {"groups": 2}))
    return fx.GraphModule(root, graph)


def legacy_hooks() -> nn.Module:
    return nn.Sequential(
        torch.nn.utils.weight_norm(nn.Conv2d(6, 4, 3)),
        torch.nn.utils.spectral_norm(nn.Conv2d(4, 4, 1)),
        prune.l1_unstructured(nn.Conv2d(4, 4, 1), "weight", amount=0.5),
    )


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(35, 4, num_layers=2, batch_first=True, bidirectional=True)
        self.attention = nn.TransformerEncoderLayer(8, 2, 11, activation="gelu", batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x.flatten(2))
        return self.attention(out)


class OneConvUnderTwoNames(nn.Module):
    """One module under two names and called twice, and one Parameter in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(6, 6, 1, bias=False)
        self.again = self.first
        self.tied = nn.Conv2d(6, 6, 1)
        self.tied.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(self.again(self.first(x)))


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    model[0].weight.requires_grad_(False)
    model[1].eval()
    return model


def unusual_names() -> nn.Module:
    parts = nn.ModuleDict({"a-b": nn.Conv2d(6, 4, 1), "c d": nn.BatchNorm2d(4)})

    class OddlyNamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = parts

        def forward(self, x: Tensor) -> Tensor:
            return self.parts["c d"](self.parts["a-b"](x))

    return OddlyNamed()


def with_unused() -> fx.GraphModule:
    model = fx.symbolic_trace(nn.Sequential(nn.Conv2d(6, 4, 3)))
    model.register_parameter("spare", nn.Parameter(torch.ones(3)))
    model.add_module("head", nn.Linear(3, 2))
    model.register_buffer("note", torch.zeros(2), persistent=False)
    return model


def exported(train: bool, dynamic: bool) -> Callable[[], fx.GraphModule]:
    def make() -> fx.GraphModule:
        class NestedOutputs(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = nn.Sequential(nn.Conv2d(6, 4, 3, groups=2), nn.BatchNorm2d(4))
                self.register_buffer("k", torch.ones(4, 1, 1), persistent=False)

            def forward(self, x: Tensor) -> dict[str, Any]:
                y = self.body(x) * self.k
                return {"y": y, "rest": (y.flatten(1).reshape(x.shape[0], -1), [y.mean((2, 3))])}

        shapes = ({0: torch.export.Dim.AUTO},) if dynamic else None
        program = torch.export.export(
            NestedOutputs().train(train), (torch.randn(SHAPE),), dynamic_shapes=shapes
        )
        module = program.module()
        assert isinstance(module, fx.GraphModule)
        return module

    return make


def channels_last() -> nn.Module:
    return nn.Sequential(nn.Conv2d(6, 4, 3), nn.Conv2d(4, 4, 3)).to(
        memory_format=torch.channels_last
    )


def ours() -> nn.Module:
    """Every module of groupfx.nn but HookedWeight and TrainingMode, which take no input."""
    conv, mask = nn.Conv2d(4, 6, 1), torch.eye(6, 4)
    return nn.Sequential(
        ChannelGather([5, 0, 0, 2]),
        ChannelShuffle(2),
        MaskedConv2d.of(conv, mask.bool()),
        ChannelTranspose((2, 3), (1, 0)),
        MaskedConv2d.of(nn.Conv2d(6, 6, 1), 3 * torch.eye(6).long()),
        Flgc2d(6, 4, 3, group_num=2),
        ConstantChannels(nn.Parameter(torch.rand(3))),
        ConstantChannels(torch.zeros(2)),
        ByMode(nn.Identity(), nn.ReLU()),
    )


CASES: dict[str, Callable[[], nn.Module]] = {
    "split": split_conv,
    "arguments": Arguments,
    "defaults": Defaults,
    "parametrized": parametrized,
    "computed_weight": computed_weight,
    "hooked_weight": hooked_weight,
    "legacy_hooks": legacy_hooks,
    "recurrent": Recurrent,
    "shared": OneConvUnderTwoNames,
    "frozen": frozen,
    "unusual_names": unusual_names,
    "unused": with_unused,
    "channels_last": channels_last,
    "half": lambda: nn.Sequential(nn.Conv2d(6, 4, 3)).half(),
    "bfloat16": lambda: nn.Sequential(nn.Conv2d(6, 4, 3), nn.ReLU()).bfloat16(),
    "double": lambda: nn.Sequential(
        nn.ConvTranspose2d(6, 4, 3, output_padding=1, stride=2)
    ).double(),
    "dropout": lambda: nn.Sequential(nn.Conv2d(6, 4, 3), nn.Dropout(0.5)),
    "groupfx": ours,
    "exported": exported(train=False, dynamic=False),
    "exported_train": exported(train=True, dynamic=False),
    "exported_dynamic": exported(train=False, dynamic=True),
}


class PlainLeaves(fx.Tracer):
    """Keeps what groupfx.nn and torch.nn hold as leaves."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = m.__module__.startswith(("torch.nn", "groupfx.nn"))
        return known and not isinstance(m, nn.Sequential)


def graph_of(model: nn.Module) -> fx.GraphModule:
    if isinstance(model, fx.GraphModule):
        return model
    graph = PlainLeaves().trace(model)
    traced = fx.GraphModule(model, graph)
    # The constructor makes every buffer of the root persistent.
    traced._non_persistent_buffers_set |= model._non_persistent_buffers_set
    return traced


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
def test_a_graph_comes_back_the_same(
    make: Callable[[], nn.Module], train: bool, tmp_path: Path
) -> None:
    model = make()
    if not isinstance(model, fx.GraphModule):
        model.train(train)
    model = graph_of(model)
    path = tmp_path / "model.pt"
    write(path, Archive.of_graph(model, "trace"), overwrite=False)
    loaded = read(path).model
    assert loaded is not None
    assert differences(model, loaded) == []
    assert [node.format_node() for node in loaded.graph.nodes if node.op != "placeholder"] == [
        node.format_node()
        for node in model.graph.nodes
        if node.op != "placeholder" and node.name != "_guards_fn"
    ]


def lose(change: Callable[[fx.GraphModule], object]) -> Callable[[fx.GraphModule], fx.GraphModule]:
    def changed(model: fx.GraphModule) -> fx.GraphModule:
        other = decode_graph(encode_graph(model))
        # A file shares no memory with the model, encode_graph does.
        for parameter in other.parameters():
            parameter.data = parameter.data.clone(memory_format=torch.preserve_format)
        change(other)
        return other

    return changed


def untie(model: fx.GraphModule) -> None:
    model.tied.weight = nn.Parameter(model.tied.weight.detach().clone())


# Facets that must show: the checker itself is tested.
WRONG = {
    "value": (OneConvUnderTwoNames, lose(lambda m: m.first.weight.data.mul_(1.0001)), "outputs"),
    "tie": (OneConvUnderTwoNames, lose(untie), "ties"),
    "mode": (frozen, lose(lambda m: m.train()), "modes"),
    "requires_grad": (frozen, lose(lambda m: m.requires_grad_(True)), "parameters"),
    "memory_format": (
        channels_last,
        lose(lambda m: m.to(memory_format=torch.contiguous_format)),
        "parameters",
    ),
    "unused": (with_unused, lose(lambda m: delattr(m, "spare")), "keys"),
    "persistence": (
        Arguments,
        lose(lambda m: m._non_persistent_buffers_set.clear()),
        "keys",
    ),
}


@pytest.mark.parametrize(("make", "change", "facet"), WRONG.values(), ids=WRONG.keys())
def test_the_comparison_sees_what_is_lost(
    make: Callable[[], nn.Module],
    change: Callable[[fx.GraphModule], fx.GraphModule],
    facet: str,
) -> None:
    model = graph_of(make().eval() if make is not frozen else make())
    assert facet in differences(model, change(model))


def test_marks_and_plain_fields_travel() -> None:
    model = graph_of(nn.Sequential(nn.Conv2d(6, 4, 1)))
    conv = model.get_submodule("0")
    conv.groupfx_frozen = True
    conv.note = {"groups": (1, 2), "size": torch.Size([3])}
    node = next(node for node in model.graph.nodes if node.op == "call_module")
    node.meta.update(groupfx={"site": "0"}, other=object())
    model.meta["groupfx"] = {"frozen": ["0"]}
    loaded = decode_graph(encode_graph(model))
    back = loaded.get_submodule("0")
    assert (back.groupfx_frozen, back.note) == (True, conv.note)
    again = next(node for node in loaded.graph.nodes if node.op == "call_module")
    assert again.meta == {"groupfx": {"site": "0"}}
    assert loaded.meta["groupfx"] == {"frozen": ["0"]}


def test_an_expanded_buffer_is_spread_out() -> None:
    model = graph_of(nn.Sequential(nn.Conv2d(6, 4, 1)))
    model.register_buffer("wide", torch.ones(1).expand(5))
    wide = decode_graph(encode_graph(model)).get_buffer("wide")
    assert torch.equal(wide, torch.ones(5))
    assert wide.stride() == (1,)


def test_every_module_of_ours_goes_through_a_file() -> None:
    kinds = {
        kind for name in groupfx.nn.__all__ if isinstance(kind := getattr(groupfx.nn, name), type)
    }
    tested = {type(module) for module in ours()} | {HookedWeight, TrainingMode}
    # The classes for other numbers of dimensions are the same class over another convolution.
    assert {kind.__name__.rstrip("123d") for kind in kinds} == {
        kind.__name__.rstrip("123d") for kind in tested
    }


def running(operator_name: str, *before: object) -> fx.GraphModule:
    """A graph that gives another graph to an operator."""
    inner, graph = graph_of(nn.Sequential(nn.Conv2d(6, 4, 1))), fx.Graph()
    x, part = graph.placeholder("x"), graph.get_attr("part")
    run = getattr(torch.ops.higher_order, operator_name, torch.add)
    graph.output(graph.call_function(run, (*before, part, x)))
    return fx.GraphModule({"part": inner}, graph)


def test_a_graph_inside_a_graph_goes_through_a_file() -> None:
    model = running("wrap_with_set_grad_enabled", False)
    back = decode_graph(encode_graph(model))
    x = torch.randn(1, 6, 2, 2)
    assert torch.equal(back(x), model(x))
    assert not back(x).requires_grad


def test_a_graph_inside_a_graph_is_for_operators_that_run_it() -> None:
    with pytest.raises(FileError, match="given to what does not run it"):
        decode_graph(encode_graph(running("none")))


def test_an_operator_that_runs_graphs_and_is_not_known_is_none_for_files() -> None:
    with pytest.raises(FileError, match=r"strict_mode.* way='modules'"):
        encode_graph(running("strict_mode"))
